import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from synaptree.core.errors import NumericError
from synaptree.rules.structure import Weights, counts_of_largest, largest

# few different values, so that most scores are tied
scores = st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), max_size=24)


@given(scores, st.integers(0, 30))
def test_the_largest_are_those_a_stable_sort_puts_first(values, count):
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    wanted = {i for i in order[:count] if values[i] > -math.inf}
    assert set(largest(tensor(values), count).nonzero().flatten().tolist()) == wanted


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_a_count_is_met_exactly_whatever_the_shape(rows, columns, data):
    count = data.draw(st.integers(0, rows * columns))
    mask = Weights()(torch.zeros(rows, columns), count)
    assert mask.shape == (rows, columns)
    assert mask.flatten().tolist() == [i < count for i in range(rows * columns)]


@given(scores, st.integers(0, 23))
def test_a_smaller_count_keeps_a_part_of_what_a_larger_one_keeps(values, count):
    score = tensor(values)
    assert not (largest(score, count) & ~largest(score, count + 1)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_may_have_any_precision(dtype):
    assert largest(tensor([1.0, 3.0, 3.0, 2.0], dtype=dtype), 1).tolist() == [False, True, False, False]


def test_a_score_without_entries_keeps_nothing():
    assert largest(torch.zeros(0, 3), 2).shape == (0, 3)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_a_structure_takes_a_score_without_entries(shape):
    assert Weights()(torch.zeros(shape), 0).shape == shape


def test_nan_cannot_be_ranked():
    with pytest.raises(NumericError, match=r"shape \(2, 2\) holds NaN"):
        largest(tensor([[0.0, 1.0], [math.nan, 2.0]]), 1)


def test_the_largest_of_several_scores_are_counted_for_each():
    scores = tensor([3.0, 1.0]), tensor([[2.0], [3.0]])
    assert [counts_of_largest(scores, count) for count in (0, 1, 2, 3, 9)] == [[0, 0], [1, 0], [1, 1], [1, 2], [2, 2]]
