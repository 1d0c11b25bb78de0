"""Structures: which `count` connections a score keeps, and what shapes they may form.

A structure is a frozen value called with `(score, count)`; it returns a bool mask of the score's
shape with exactly `count` connections (or the nearest count the structure can express, never
more). Equal scores go to the lowest flat index. A score of `-inf` is never kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptree.core.errors import NumericError

__all__ = ["Structure", "Weights", "counts_of_largest", "largest"]


def largest(score: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` largest entries of `score`; ties go to the lowest flat index.

    Args:
        score: any shape; larger is more worth having, `-inf` is never kept, NaN is an error.
        count: entries to keep, at least 0; more than there are keeps all that are not `-inf`.

    Example:
        >>> largest(torch.tensor([[2., 1.], [2., 2.]]), 2)
        tensor([[ True, False],
                [ True, False]])
    """
    flat = score.detach().flatten()
    if flat.isnan().any():
        raise NumericError(f"a score of shape {tuple(score.shape)} holds NaN; wanted numbers that can be ranked")
    if count <= 0 or not flat.numel():
        return torch.zeros_like(score, dtype=torch.bool)
    if count >= flat.numel():
        return score > -math.inf
    # topk returns the right values but an arbitrary choice among equals, so only its threshold is used
    threshold = flat.topk(count, sorted=False).values.min()
    keep = flat > threshold
    equal = ((flat == threshold) & (flat > -math.inf)).nonzero().squeeze(1)
    keep[equal[: count - int(keep.sum())]] = True
    return keep.view_as(score)


def counts_of_largest(scores: Sequence[Tensor], count: int) -> list[int]:
    """Return how many of the `count` largest entries of all `scores` lie in each of them."""
    keep = largest(torch.cat([score.flatten().double() for score in scores]), count)
    return [int(piece.sum()) for piece in keep.split([score.numel() for score in scores])]


Structure = Callable[[Tensor, int], Tensor]
"""What shapes the kept connections may form: `(score, count) -> bool mask` of the shape of `score`."""


@dataclass(frozen=True)
class Weights:
    """Single connections, free in place: exactly `count`."""

    def __call__(self, score: Tensor, count: int) -> Tensor:
        return largest(score, count)
