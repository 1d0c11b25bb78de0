"""The share rule: each receiving unit keeps the fewest contributors that carry alpha of its signal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from synaptree.core.errors import OptionError, unknown
from synaptree.core.rule import Group

__all__ = ["Share", "carrying"]


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
