"""Rules: how scores become masks.

A rule is a frozen value called with `(groups, step)`. A group is one layer: its weight and, where
biases are connections too, its bias, aligned by receiving unit. It returns new masks by parameter name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from synaptree.core.allocate import Allocation, Room, Uniform, check_density
from synaptree.core.errors import NumericError, OptionError, unknown
from synaptree.core.layer import Layer
from synaptree.core.schedule import Number, as_schedule
from synaptree.core.structure import Structure, Weights, counts_of_largest, largest

__all__ = ["Density", "Group", "Part", "Rule", "Share", "Threshold", "carrying"]


@dataclass(frozen=True)
class Part:
    """One scored parameter: its name, its mask, and one tensor of the mask's shape per signal."""

    name: str
    mask: Tensor
    scores: Mapping[str, Tensor]

    def score(self, signal: str) -> Tensor:
        """Return the scores by the signal of that name.

        Raises:
            NumericError: a score is NaN.
        """
        if signal not in self.scores:
            raise unknown("signal", signal, self.scores)
        score = self.scores[signal]
        if score.isnan().any():
            raise NumericError(f"{self.name}: signal {signal!r} holds NaN; look for NaN in the weights or in the data")
        return score


@dataclass(frozen=True)
class Group:
    """One layer: the weight and, where biases are connections too, the bias."""

    layer: Layer
    weight: Part
    bias: Part | None = None


Rule = Callable[[Sequence[Group], int], dict[str, Tensor]]


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


def carrying(contribution: Tensor, alpha: float, keep_rule: Literal["paper", "released"] = "paper") -> Tensor:
    """Return, per row, the fewest contributors that carry the share `alpha` of the row's sum.

    With contributions sorted in descending order `c_1 >= c_2 >= ...` the first `p` are kept, where
    `p = min { p : c_1 + ... + c_p >= alpha * sum(c) }`. Equal contributions go to the lowest index;
    a contributor of 0 is never kept.

    Args:
        contribution: shape `(units, contributors)`, not negative.
        alpha: in (0, 1]; 1 keeps all that is not 0.
        keep_rule: "paper" as above. "released" follows the published code: everything not above the
            `(p + 1)`-th largest goes, and where all are needed the smallest goes nevertheless.

    Returns:
        bool, of the same shape.

    Example:
        >>> carrying(torch.tensor([[0.5, 0.3, 0.2]]), 0.8)
        tensor([[ True,  True, False]])

    Paper: Dekhovich et al. 2024 (2109.10795), the rule of section 3.
    """
    if alpha == 1.0:
        return contribution > 0
    ordered, order = contribution.sort(dim=1, descending=True, stable=True)
    mass = ordered.double().cumsum(1)
    before = (mass < alpha * mass[:, -1:]).sum(1, keepdim=True)  # contributors before the p-th
    if keep_rule == "released":
        last = contribution.shape[1] - 1
        return contribution > ordered.gather(1, (before + 1).clamp(max=last))
    rank = torch.arange(contribution.shape[1], device=contribution.device).expand_as(order)
    keep = torch.zeros_like(contribution, dtype=torch.bool).scatter_(1, order, rank <= before)
    return keep & (contribution > 0)


@dataclass(frozen=True)
class Share:
    """Each receiving unit keeps the fewest contributors, its bias among them, that carry `alpha` of its signal.

    Units with one contributor are exempt: they keep it, if it exists.

    Args:
        alpha: share in (0, 1] by kind of layer; a kind left out is not pruned.
        keep_rule: see `carrying`.
        signal: the contributions; not negative.
    """

    alpha: Mapping[str, float]
    keep_rule: Literal["paper", "released"] = "paper"
    signal: str = "contribution"

    def __post_init__(self) -> None:
        for kind, alpha in self.alpha.items():
            if not 0.0 < alpha <= 1.0:
                raise OptionError(f"alpha of {kind} layers = {alpha!r}: wanted a share above 0 and at most 1")
        if self.keep_rule not in ("paper", "released"):
            raise unknown("keep_rule", self.keep_rule, ("paper", "released"))

    def __call__(self, groups: Sequence[Group], step: int) -> dict[str, Tensor]:  # noqa: ARG002
        masks = {}
        for group in groups:
            if group.layer.kind not in self.alpha:
                continue
            parts = [part for part in (group.weight, group.bias) if part is not None]
            columns = [part.mask.unsqueeze(-1).flatten(1) for part in parts]
            keep = torch.cat(columns, 1)
            if keep.shape[1] > 1:
                scores = [part.score(self.signal).unsqueeze(-1).flatten(1) for part in parts]
                keep = carrying(torch.cat(scores, 1) * keep, self.alpha[group.layer.kind], self.keep_rule)
            for part, kept in zip(parts, keep.split([column.shape[1] for column in columns], 1), strict=True):
                masks[part.name] = kept.reshape(part.mask.shape)
        return masks


@dataclass(frozen=True)
class Threshold:
    """Keep the connections whose score lies above one threshold of the whole network.

    Args:
        value: the threshold itself; or None.
        cut: share in [0, 1] of the existing connections to cut, weakest first; or None.
        floor: share in [0, 1] of each layer's connections that stay in any case, best first.
        keep: the signal that ranks them.
    """

    value: float | None = None
    cut: float | None = None
    floor: float = 0.0
    keep: str = "keep"

    def __post_init__(self) -> None:
        if (self.value is None) == (self.cut is None):
            raise OptionError(f"a threshold takes either value or cut, got value={self.value!r} and cut={self.cut!r}")
        check_density(0.0 if self.cut is None else self.cut, "cut")
        check_density(self.floor, "floor")

    def __call__(self, groups: Sequence[Group], step: int) -> dict[str, Tensor]:  # noqa: ARG002
        parts = [group.weight for group in groups]
        scores = [part.score(self.keep).masked_fill(~part.mask, -math.inf) for part in parts]
        masks = {}
        for part, score, above in zip(parts, scores, self._above(scores), strict=True):
            masks[part.name] = largest(score, max(above, math.ceil(self.floor * score.numel() - 1e-9)))
        return masks

    def _above(self, scores: Sequence[Tensor]) -> list[int]:
        """Return how many connections of each part lie above the threshold."""
        if self.value is not None:
            return [int((score > self.value).sum()) for score in scores]
        alive = sum(int((score > -math.inf).sum()) for score in scores)
        # 1e-9: as above
        return counts_of_largest(scores, alive - int((self.cut or 0.0) * alive + 1e-9))
