"""Fair timing on machines that other work disturbs."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from synaptree.core.errors import NumericError, OptionError, unknown

__all__ = ["Ratio", "Timings", "interleaved"]


class Ratio(NamedTuple):
    """The median of the per-round ratios, and their quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timings:
    """What each contender took, round by round.

    Args:
        seconds: contender -> its time in each round; equal places are the same round.

    Example:
        >>> timings = Timings({"dense": [2.0, 2.0, 8.0], "sparse": [1.0, 1.0, 2.0]})
        >>> timings.median("dense"), timings.ratio("dense", "sparse")
        (2.0, Ratio(median=2.0, low=2.0, high=3.0))
    """

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median time of a contender, in seconds."""
        return float(np.median(self._of(name)))

    def ratio(self, name: str, against: str) -> Ratio:
        """Return time of `name` / time of `against`, paired by round, with its interquartile range.

        Pairing cancels what disturbs a whole round, so the ratio is steadier than either time.

        Raises:
            NumericError: `against` took no measurable time in a round.
        """
        times, others = np.array(self._of(name)), np.array(self._of(against))
        if not others.all():
            raise NumericError(
                f"{against!r} took no measurable time in {np.sum(others == 0)} of {others.size} rounds; "
                "let the contender repeat its work"
            )
        low, median, high = np.quantile(times / others, [0.25, 0.5, 0.75]).tolist()
        return Ratio(median, low, high)

    def _of(self, name: str) -> list[float]:
        if name not in self.seconds:
            raise unknown("contender", name, self.seconds)
        return self.seconds[name]


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    seconds: float | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time all contenders in every round, each round starting with the next one.

    Slow spells of the machine then fall on all contenders alike, and none always comes first.
    A contender that starts work elsewhere (on an accelerator) must wait for its end.

    Args:
        contenders: name -> what to time, called without arguments.
        rounds: how many rounds are timed, at least 1.
        warmup: rounds run before, untimed.
        seconds: start no further round once the timed rounds took this long; the first is always run.
        timer: returns the time in seconds.

    Raises:
        OptionError: there is no contender, or a number is out of range.
    """
    if not contenders or rounds < 1 or warmup < 0 or (seconds is not None and not seconds > 0):
        raise OptionError(
            "timing takes at least one contender, rounds >= 1, warmup >= 0 and seconds > 0, got "
            f"{len(contenders)} contenders, rounds={rounds}, warmup={warmup}, seconds={seconds}"
        )
    for _ in range(warmup):
        for run in contenders.values():
            run()
    names = list(contenders)
    taken: dict[str, list[float]] = {name: [] for name in names}
    begin = timer()
    for n in range(rounds):
        if n and seconds is not None and timer() - begin >= seconds:
            break
        first = n % len(names)
        for name in names[first:] + names[:first]:
            start = timer()
            contenders[name]()
            taken[name].append(timer() - start)
    return Timings(taken)
