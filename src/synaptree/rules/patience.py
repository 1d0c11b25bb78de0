"""The patience rule: a connection whose life is used up dies, unless too few would be left."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synaptree.core.errors import OptionError
from synaptree.core.rule import Group, Part

__all__ = ["Patience"]

_log = logging.getLogger("synaptree")


@dataclass(frozen=True)
class Patience:
    """A connection dies where the life left to it is at most 0.

    Args:
        floor: by kind of layer, connections that each unit keeps in any case: those with the most life, lowest
            index first among equals; where it has fewer, all of them. A kind left out has none.
        guard: share in [0, 1) of a layer's places. A cut that would leave fewer is not made: the mask of that
            layer is not among those returned, and the log says so. 0 lets a layer die.
        life: the signal of the life left.

    Raises:
        OptionError: an option is out of range.
    """

    floor: Mapping[str, int] = field(default_factory=dict)
    guard: float = 0.01
    life: str = "life"

    def __post_init__(self) -> None:
        if min(self.floor.values(), default=0) < 0 or not 0.0 <= self.guard < 1.0:
            raise OptionError(
                f"wanted floor >= 0 connections per unit and a guard in [0, 1), got floor = {dict(self.floor)!r} and "
                f"guard = {self.guard!r}"
            )

    def __call__(self, groups: Sequence[Group], step: int) -> dict[str, Tensor]:
        masks = {}
        for group in groups:
            part = group.weight
            mask = self._mask(part, self.floor.get(group.layer.kind, 0))
            left = int(mask.sum())
            if left < self.guard * mask.numel() and not torch.equal(mask, part.mask):
                _log.warning(
                    "%s: no cut at step %d: it would leave %d of %d connections, less than the share %g",
                    part.name, step, left, mask.numel(), self.guard,
                )  # fmt: skip
            else:
                masks[part.name] = mask
        return masks

    def _mask(self, part: Part, floor: int) -> Tensor:
        life = part.score(self.life)
        doomed = part.mask & (life <= 0)
        keep = part.mask & ~doomed
        return keep | _spared(life, keep, doomed, floor)


def _spared(life: Tensor, keep: Tensor, doomed: Tensor, floor: int) -> Tensor:
    """Return those of the doomed with the most life that bring each row to `floor`, as far as there are any."""
    spared = torch.zeros_like(doomed.flatten(1))
    missing = (floor - keep.flatten(1).sum(1)).clamp_min(0)
    short = (missing > 0) & doomed.flatten(1).any(1)
    if short.any():
        candidates, lowest = doomed.flatten(1)[short], torch.finfo(life.dtype).min
        # above -inf, which marks those that are no candidates
        worth = life.flatten(1)[short].clamp_min(lowest).masked_fill(~candidates, -torch.inf)
        order = worth.argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(order.shape[1], device=order.device).expand_as(order)
        first = torch.zeros_like(candidates).scatter_(1, order, rank < missing[short].unsqueeze(1))
        spared[short] = first & candidates
    return spared.view_as(doomed)
