"""Rules: how scores become masks.

A rule is a frozen value called with `(groups, step)`. A group is one layer: its weight and, where
biases are connections too, its bias, aligned by receiving unit. It returns new masks by parameter name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synaptree.core.errors import NumericError, unknown
from synaptree.core.layer import Layer

__all__ = ["Group", "Part", "Rule"]


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
    """One layer: the weight and, where biases are connections too, the bias; `rng` is for rules that draw."""

    layer: Layer
    weight: Part
    bias: Part | None = None
    rng: torch.Generator = field(default_factory=torch.Generator, compare=False, repr=False)


Rule = Callable[[Sequence[Group], int], dict[str, Tensor]]
