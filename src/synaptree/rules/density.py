"""Density: the best connections stay at a scheduled density."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from synaptree.core.rule import Group, Part
from synaptree.core.schedule import Number, as_schedule
from synaptree.rules.allocate import Allocation, Room, Uniform, check_density
from synaptree.rules.structure import Structure, Weights

__all__ = ["Density"]


@dataclass(frozen=True)
class Density:
    """Keep the best connections at a scheduled density; drop and grow where `turnover` is above 0.

    At each edit the counts per layer follow from `target` and `allocate`. Without growth they can only
    fall. With it, the share `turnover` of a layer's connections is dropped beyond that, and as many are
    grown where `grow` is largest among those that do not exist (those just dropped may return).

    Args:
        target: density in [0, 1] of the whole network, or its schedule.
        allocate: how the network's density is shared out among layers.
        structure: what shapes the kept connections may form.
        keep: the signal that ranks existing connections.
        grow: the signal that ranks those that do not exist, or None to prune only.
        turnover: share in [0, 1] of a layer's connections exchanged at an edit, or its schedule.
        of_remaining: `target` is a share of the connections that exist now instead of all; the count
            cut is rounded up.
    """

    target: float | Number
    allocate: Allocation = field(default_factory=Uniform)
    structure: Structure = field(default_factory=Weights)
    keep: str = "keep"
    grow: str | None = None
    turnover: float | Number = 0.0
    of_remaining: bool = False

    def __post_init__(self) -> None:
        for name, value in (("density", self.target), ("turnover", self.turnover)):
            if not callable(value):
                check_density(value, name)

    def __call__(self, groups: Sequence[Group], step: int) -> dict[str, Tensor]:
        parts = [group.weight for group in groups]
        scores = [part.score(self.keep).masked_fill(~part.mask, -math.inf) for part in parts]
        counts = self.allocate(self._density(parts, step), [
            Room(part.name, tuple(group.layer.module.weight.shape), part.mask.numel(), score)
            for part, group, score in zip(parts, groups, scores, strict=True)
        ])
        kept = zip(parts, scores, counts, strict=True)
        return {part.name: self._mask(part, score, count, step) for part, score, count in kept}

    def _density(self, parts: Sequence[Part], step: int) -> float:
        target = check_density(as_schedule(self.target)(step))
        if not self.of_remaining:
            return target
        alive = sum(int(part.mask.sum()) for part in parts)
        # 1e-9: a share such as 0.2 is a little above or below its decimal value
        cut = math.ceil((1 - target) * alive - 1e-9)
        return (alive - cut) / max(1, sum(part.mask.numel() for part in parts))

    def _mask(self, part: Part, score: Tensor, count: int, step: int) -> Tensor:
        alive = min(count, int(part.mask.sum()))
        if self.grow is None:
            return self.structure(score, alive)
        kept = self.structure(score, alive - round(as_schedule(self.turnover)(step) * alive))
        candidates = part.score(self.grow).masked_fill(kept, -math.inf)
        return kept | self.structure(candidates, count - int(kept.sum()))
