"""Schedules: what a number is, or whether something happens, at an optimizer step.

A schedule is a frozen value called with `step`, the number of optimizer updates made so far.
Wherever a schedule is wanted, a plain number serves as one that never changes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from synaptree.core.errors import OptionError

__all__ = ["Cosine", "Cubic", "Every", "Never", "Number", "as_schedule"]

Number = Callable[[int], float]


@dataclass(frozen=True)
class Cubic:
    """Fast at first, slow at the end: `end + (start - end) * (1 - progress) ** 3`.

    >>> [Cubic(1.0, 0.0, 0, 4)(step) for step in (0, 2, 4, 9)]
    [1.0, 0.125, 0.0, 0.0]

    Paper: Zhu and Gupta 2017 (1710.01878), equation 1, written for density instead of sparsity.
    """

    start: float
    end: float
    first: int
    last: int

    def __call__(self, step: int) -> float:
        return float(self.end + (self.start - self.end) * (1 - _progress(step, self.first, self.last)) ** 3)


@dataclass(frozen=True)
class Cosine:
    """From `start` to 0 along half a cosine: `start / 2 * (1 + cos(pi * step / last))`.

    >>> [round(Cosine(0.3, 100)(step), 3) for step in (0, 50, 100, 200)]
    [0.3, 0.15, 0.0, 0.0]
    """

    start: float
    last: int

    def __call__(self, step: int) -> float:
        return self.start / 2 * (1 + math.cos(math.pi * _progress(step, 0, self.last)))


@dataclass(frozen=True)
class Every:
    """True at each multiple of `interval` from `first` to `last`, both included; `last=None` means for ever.

    >>> [step for step in range(9) if Every(2, first=3, last=6)(step)]
    [4, 6]
    """

    interval: int
    first: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise OptionError(f"interval = {self.interval}: wanted at least 1 step between two edits")

    def __call__(self, step: int) -> bool:
        return step % self.interval == 0 and self.first <= step and (self.last is None or step <= self.last)


@dataclass(frozen=True)
class Never:
    """False at every step: the method acts only when `prune` calls it."""

    def __call__(self, step: int) -> bool:  # noqa: ARG002
        return False


def as_schedule(value: float | Number) -> Number:
    """Return `value` if it is a schedule, else the schedule that always gives it."""
    return value if callable(value) else lambda step: value  # noqa: ARG005 - every schedule takes a step


def _progress(step: int, first: int, last: int) -> float:
    """Share of the way from `first` to `last` in [0, 1]; a way of no length is behind us."""
    return min(1.0, max(0.0, (step - first) / (last - first))) if last > first else float(step >= last)
