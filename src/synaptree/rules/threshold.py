"""The threshold rule: keep what scores above one threshold, of the whole network or of each layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptree.core.errors import OptionError
from synaptree.core.rule import Group
from synaptree.rules.allocate import check_density
from synaptree.rules.structure import counts_of_largest, largest

__all__ = ["Threshold"]


@dataclass(frozen=True)
class Threshold:
    """Keep the connections whose score lies above a threshold. Just one of `value`, `cut` and `sigma` is given.

    Args:
        value: the threshold itself, for the whole network.
        cut: share in [0, 1] of the network's existing connections to cut, weakest first.
        sigma: at least 0; the threshold of a layer is `sigma` times the root mean square of its existing scores,
            which for weights with mean 0 is their standard deviation.
        strict: with `cut`, the count is rounded up, and the threshold is the score of the next connection: it goes
            too, with all its equals.
        floor: share in [0, 1] of each layer's connections that stay in any case, best first.
        keep: the signal that ranks them.
    """

    value: float | None = None
    cut: float | None = None
    sigma: float | None = None
    strict: bool = False
    floor: float = 0.0
    keep: str = "keep"

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.value, self.cut, self.sigma)) != 1:
            got = f"value={self.value!r}, cut={self.cut!r} and sigma={self.sigma!r}"
            raise OptionError(f"a threshold takes either value or cut or sigma, got {got}")
        if self.sigma is not None and not self.sigma >= 0:
            raise OptionError(f"sigma = {self.sigma!r}: wanted at least 0 standard deviations")
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
        if self.sigma is not None:
            return [_above_deviations(score, self.sigma) for score in scores]
        alive = sum(int((score > -math.inf).sum()) for score in scores)
        share = (self.cut or 0.0) * alive
        # 1e-9: as above
        kept = alive - (math.ceil(share - 1e-9) if self.strict else int(share + 1e-9))
        if not (self.strict and kept):
            return counts_of_largest(scores, kept)
        every = torch.cat([score.flatten().double() for score in scores])
        weakest = every.topk(kept, sorted=False).values.min()
        return [int((score.double() > weakest).sum()) for score in scores]


def _above_deviations(score: Tensor, sigma: float) -> int:
    alive = score[score > -math.inf].double()
    return int((alive > sigma * alive.square().mean().sqrt()).sum()) if len(alive) else 0
