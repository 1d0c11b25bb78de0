import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from synaptree.rules.blocks import Rows


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 30), st.integers(0, 9))
def test_every_row_keeps_its_best_and_never_more_than_asked_for(rows, columns, count, seed):
    score = torch.randint(4, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    kept = Rows()(score, count)
    assert kept.sum(1).tolist() == [min(columns, count // rows)] * rows
    for values, mask in zip(score, kept, strict=True):
        if mask.any() and not mask.all():
            assert values[mask].min() >= values[~mask].max()


def test_the_first_of_equals_stay_and_nothing_that_is_dead():
    score = tensor([[1.0, 1.0, 1.0], [-math.inf, -math.inf, 1.0]])
    assert Rows()(score, 4).tolist() == [[True, True, False], [False, False, True]]


def test_a_row_of_a_convolution_is_a_filter():
    score = torch.arange(16.0).view(2, 2, 2, 2)
    # three of each eight: the last three
    assert Rows()(score, 7).flatten(1).int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]] * 2


def test_a_score_without_rows_keeps_nothing():
    assert Rows()(torch.zeros(0, 3), 2).shape == (0, 3)
