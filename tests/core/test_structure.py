import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from synaptree.core.errors import NumericError, ShapeError
from synaptree.core.structure import Blocks, NOfM, Weights, counts_of_largest, largest

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


@pytest.mark.parametrize("structure", [Blocks(1, 1), Weights()])
@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_structures_take_a_score_without_entries(structure, shape):
    assert structure(torch.zeros(shape), 0).shape == shape


def test_nan_cannot_be_ranked():
    with pytest.raises(NumericError, match=r"shape \(2, 2\) holds NaN"):
        largest(tensor([[0.0, 1.0], [math.nan, 2.0]]), 1)


def test_the_largest_of_several_scores_are_counted_for_each():
    scores = tensor([3.0, 1.0]), tensor([[2.0], [3.0]])
    assert [counts_of_largest(scores, count) for count in (0, 1, 2, 3, 9)] == [[0, 0], [1, 0], [1, 1], [1, 2], [2, 2]]


def test_equal_blocks_go_to_the_first():
    kept = Blocks(2, 2)(torch.ones(4, 4), 8)
    assert kept.tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


def test_blocks_of_kernels_hold_all_weights_of_their_kernels():
    score = torch.zeros(2, 2, 3, 3)
    score[1, 0, 1, 1] = 1.0
    kept = Blocks(1, 1)(score, 9)
    assert kept[1, 0].all()
    assert int(kept.sum()) == 9


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"shape \(3, 4\) cannot be cut into blocks of 2 x 2"):
        Blocks(2, 2)(torch.ones(3, 4), 4)


def test_n_of_m_keeps_the_first_of_equals_and_nothing_that_is_dead():
    score = tensor([[1.0, 1.0, 1.0, 1.0], [-math.inf, -math.inf, 3.0, -math.inf]])
    assert NOfM(2, 4)(score, 0).tolist() == [[True, True, False, False], [False, False, True, False]]


def test_n_of_m_needs_rows_that_can_be_cut():
    with pytest.raises(ShapeError, match="rows of 6 connections cannot be cut into groups of 4"):
        NOfM(2, 4)(torch.ones(1, 6), 0)
