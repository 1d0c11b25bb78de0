import math

import pytest
import torch
from torch import tensor

from synaptree.core.errors import ShapeError
from synaptree.rules.blocks import Blocks, NOfM


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_blocks_take_a_score_without_entries(shape):
    assert Blocks(1, 1)(torch.zeros(shape), 0).shape == shape


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
