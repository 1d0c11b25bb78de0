"""A budget of time or of epochs, what is left of it, and how far a training has come."""

import math
import re
import time
from collections.abc import Callable

from synaptree.core.errors import OptionError

__all__ = ["Clock", "EpochClock", "Progress", "Stopped", "clock_of", "seconds_of"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_ENDING_SHARE, _ENDING_MOST = 0.15, 30.0  # of a budget, and seconds


class Stopped(Exception):  # noqa: N818 - it is no error
    """The time is up, or somebody asked to stop."""


def seconds_of(budget: float | str) -> float:
    """Return the seconds of a budget such as `90`, "90s", "20m" or "1h30m".

    >>> seconds_of("1h30m"), seconds_of("20m"), seconds_of(45)
    (5400.0, 1200.0, 45.0)

    Raises:
        OptionError: it is no such, or not above 0.
    """
    said = str(budget).strip()
    found = math.nan
    if isinstance(budget, int | float) and not isinstance(budget, bool):
        found = float(budget)
    elif re.fullmatch(r"\d+(\.\d+)?", said):
        found = float(said)
    elif re.fullmatch(r"(\d+(\.\d+)?[smh])+", said):
        found = sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smh])", said))
    if not (math.isfinite(found) and found > 0):
        raise OptionError(
            f"budget = {budget!r}: wanted seconds above 0, or a text such as '90s', '20m', '1h30m' or '40 epochs'"
        )
    return found


def clock_of(budget: float | str, stop: Callable[[], bool] = lambda: False) -> "Clock":
    """Return the clock of a budget, of time as in `seconds_of`, or of epochs as in "40 epochs".

    >>> clock_of("40 epochs").left(), clock_of("1m").budget
    (40.0, 60.0)

    Raises:
        OptionError: it is no such, or not above 0.
    """
    epochs = re.fullmatch(r"(\d+) epochs?", str(budget).strip())
    if epochs and int(epochs[1]):
        return EpochClock(int(epochs[1]), stop)
    return Clock(seconds_of(budget), stop)


class Clock:
    """Time on the wall that is left of a budget.

    Attributes:
        budget: in seconds.
        ending: seconds of it that are kept for what follows all training.

    Args:
        seconds: of the budget; it begins now.
        stop: asked as well; true counts as no time left.
    """

    def __init__(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        self.budget, self.stop = float(seconds), stop
        self.ending = min(_ENDING_SHARE * self.budget, _ENDING_MOST)
        self._started, self._processor = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Return the seconds that went by on the wall."""
        return time.perf_counter() - self._started

    def processor(self) -> float:
        """Return the seconds of processor time that this process took."""
        return time.process_time() - self._processor

    def used(self) -> float:
        """Return how much of the budget is gone."""
        return self.seconds()

    def left(self) -> float:
        """Return what is left for training, 0 where somebody asked to stop."""
        return 0.0 if self.stop() else max(0.0, self.budget - self.ending - self.used())

    def limit(self, reserve: float) -> float:
        """Return the seconds that a training may take that begins now and leaves a reserve."""
        return max(0.0, self.left() - reserve)

    def spend(self, epochs: float) -> None:
        """Note a part of an epoch that was trained."""

    def cost(self, seconds: float, epochs: float) -> float:
        """Return what something costs that takes so many seconds and epochs, in the unit of the budget."""
        del epochs
        return seconds

    def spare(self, processor: float) -> bool:
        """Return whether all that is left has room for so much processor time, at the pace so far."""
        pace = max(1.0, self.seconds() / max(1e-3, self.processor()))
        return self.budget - self.used() >= processor * pace

    def require(self) -> None:
        """Raise `Stopped` where nothing is left."""
        if self.left() <= 0:
            raise Stopped


class EpochClock(Clock):
    """Epochs that are left of a budget; so the same seed gives the same network on machines that compute alike.

    Args:
        epochs: of the budget.
        stop: asked as well.
    """

    def __init__(self, epochs: float, stop: Callable[[], bool] = lambda: False) -> None:
        super().__init__(epochs, stop)
        self.ending, self._spent = 0.0, 0.0

    def used(self) -> float:
        """Return the epochs that were trained."""
        return self._spent

    def limit(self, reserve: float) -> float:  # noqa: ARG002
        """Return that time does not count."""
        return math.inf

    def spend(self, epochs: float) -> None:
        """Count a part of an epoch."""
        self._spent += epochs

    def spare(self, processor: float) -> bool:  # noqa: ARG002
        """Return true: time does not count."""
        return True

    def cost(self, seconds: float, epochs: float) -> float:
        """Return the epochs."""
        del seconds
        return epochs


class Progress:
    """How far a training has come, by updates, or by time where that is further on.

    So a machine that becomes slow shortens a training and does not break it off: what follows a schedule by `share`
    comes to its end in time.

    Attributes:
        share: in [0, 1].

    Args:
        updates: of the whole training, at least 1.
        seconds: that it may take.
    """

    def __init__(self, updates: int, seconds: float) -> None:
        self.updates, self.limit, self.share, self._made = max(1, updates), seconds, 0.0, 0
        self._started = time.perf_counter()

    def advance(self) -> None:
        """Count an update, before it is made; the last one finds `share` at 1."""
        self._made += 1
        by_time = (time.perf_counter() - self._started) / self.limit if self.limit > 0 else 1.0
        self.share = min(1.0, max(self._made / self.updates, by_time))
