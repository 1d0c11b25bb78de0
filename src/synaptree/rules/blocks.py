"""Structures of blocks: kept connections that lie together, or evenly spread."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptree.core.errors import ShapeError
from synaptree.rules.structure import largest

__all__ = ["Blocks", "NOfM", "Rows"]


@dataclass(frozen=True)
class Blocks:
    """Blocks of `rows` x `columns` of the first two axes, ranked by the sum of their scores.

    >>> Blocks(2, 1)(torch.tensor([[1., 5.], [4., 1.], [0., 3.], [0., 3.]]), 4).int()
    tensor([[0, 1],
            [0, 1],
            [0, 1],
            [0, 1]], dtype=torch.int32)
    """

    rows: int
    columns: int

    def __call__(self, score: Tensor, count: int) -> Tensor:
        height, width, *kernel = score.shape
        if height % self.rows or width % self.columns:
            raise ShapeError(
                f"a score of shape {tuple(score.shape)} cannot be cut into blocks of {self.rows} x "
                f"{self.columns}: its first two axes must be multiples of the block's"
            )
        area = math.prod(kernel)
        tiles = score.reshape(height // self.rows, self.rows, width // self.columns, self.columns, area)
        each = self.rows * self.columns * area
        keep = largest(tiles.sum((1, 3, 4)), count // each)
        return keep[:, None, :, None, None].expand_as(tiles).reshape(score.shape)


@dataclass(frozen=True)
class NOfM:
    """At most `n` of every `m` neighbours along the input axis, whatever `count` says.

    >>> NOfM(1, 2)(torch.tensor([[1., 5., 4., 1.]]), 4).int()
    tensor([[0, 1, 1, 0]], dtype=torch.int32)
    """

    n: int
    m: int

    def __call__(self, score: Tensor, count: int) -> Tensor:  # noqa: ARG002 - n of m fixes the count
        rows = score.flatten(1)
        if rows.shape[1] % self.m:
            raise ShapeError(f"rows of {rows.shape[1]} connections cannot be cut into groups of {self.m}")
        groups = rows.reshape(-1, self.m)
        order = groups.argsort(dim=1, descending=True, stable=True)
        keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, : self.n], True)
        return (keep & (groups > -math.inf)).view(score.shape)


@dataclass(frozen=True)
class Rows:
    """The same number in every row: `count // rows` of the first axis, the best of each.

    >>> Rows()(torch.tensor([[1., 5., 4.], [9., 8., 7.]]), 5).int()
    tensor([[0, 1, 1],
            [1, 1, 0]], dtype=torch.int32)
    """

    def __call__(self, score: Tensor, count: int) -> Tensor:
        rows = score.flatten(1)
        order = rows.argsort(dim=1, descending=True, stable=True)
        keep = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order[:, : count // max(1, len(rows))], True)
        return (keep & (rows > -math.inf)).view(score.shape)
