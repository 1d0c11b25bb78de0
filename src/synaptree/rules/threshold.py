"""The threshold rule: keep what scores above one threshold of the whole network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from synaptree.core.allocate import check_density
from synaptree.core.errors import OptionError
from synaptree.core.rule import Group
from synaptree.core.structure import counts_of_largest, largest

__all__ = ["Threshold"]


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
