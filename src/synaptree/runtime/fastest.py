"""Trying every way to compute something, and keeping the fastest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from synaptree.runtime import _native
from synaptree.runtime.ir import Node
from synaptree.runtime.place import FLOAT

__all__ = ["Choice", "Option", "Plan", "Timing"]

HOPELESS = 1.5  # times as slow as the best on its first run: not timed again
ROUND = 1e-3  # seconds that an option's timing takes at most, once it is known to be close
REPETITIONS = 12
SHARED = 40e-6  # seconds from which a step is worth sharing out among threads


@dataclass(frozen=True)
class Option:
    """One way to compute a node.

    Attributes:
        kernel: its name, for people, and to find it again.
        make: from bytes in the arena that are its own, to its steps.
        scratch: how many bytes that is.
    """

    kernel: str
    make: Callable[[int], Sequence[Any]]
    scratch: int = 0


@dataclass(frozen=True)
class Choice:
    """How a node is computed.

    Attributes:
        node: None for carrying samples in and out.
        kernel: name of the option.
        seconds: one block takes; 0 if it was not timed.
        steps: of the extension.
    """

    node: Node | None
    kernel: str
    seconds: float
    steps: Sequence[Any]


@dataclass(frozen=True)
class Plan:
    """How a network is computed, `lanes` samples at a time.

    Attributes:
        lanes: samples side by side.
        choices: in order, the first and last carry samples in and out.
        arena: bytes.
    """

    lanes: int
    choices: tuple[Choice, ...]
    arena: int

    @property
    def seconds(self) -> float:
        """Estimated time of a block."""
        return sum(choice.seconds for choice in self.choices)

    @property
    def steps(self) -> list[Any]:
        """All steps in order."""
        return [step for choice in self.choices for step in choice.steps]

    @property
    def shared(self) -> list[bool]:
        """Which steps are worth sharing out among threads."""
        return [choice.seconds > SHARED and len(choice.steps) == 1 for choice in self.choices for _ in choice.steps]

    @property
    def kernels(self) -> list[str]:
        """Names of what was chosen, in order."""
        return [choice.kernel for choice in self.choices]


class Timing:
    """Chooses among options by timing them in an arena, one node after the other.

    Args:
        values: bytes of the arena that hold values.
        scratch: bytes behind them for the option being tried.
        budget: seconds for all of it; when they are over, the first option that comes is taken.
        named: names of kernels chosen before, by number of the node.
        samples: as many as a block takes, for steps that look at their number.
    """

    def __init__(
        self, values: int, scratch: int, budget: float, named: Mapping[int, str], samples: npt.NDArray[np.float32]
    ) -> None:
        self.values, self.named, self.until, self.samples = values, named, perf_counter() + budget, samples
        self.arena = _native.Arena(values + scratch)
        self.end = values  # of values and of the scratch of steps chosen so far

    def choose(self, node: Node, found: Sequence[Option], number: int = -1) -> Choice:
        """Return the fastest way, its steps with scratch of their own; what it computes stands in the arena."""
        if not found:
            return Choice(node, "no work", 0.0, [])
        known = [option for option in found if option.kernel == self.named.get(number)]
        option, steps, seconds = self.fastest(known or found)
        for step in steps:
            step.run(self.arena, self.samples)
        if option.scratch:
            steps = option.make(self.end)
            self.end += -(-option.scratch // 64) * 64
        return Choice(node, option.kernel, seconds, steps)

    def fastest(self, found: Sequence[Option]) -> tuple[Option, Sequence[Any], float]:
        """Time every option, in turn and several times, those soon dropped that are far behind."""
        made: dict[str, tuple[Option, Sequence[Any]]] = {}
        tried: dict[str, float] = {}
        for option in found:
            if made and perf_counter() > self.until:
                break
            self.arena.floats[self.values // FLOAT :] = 0  # scratch, which another option may have written to
            steps = option.make(self.values)
            made[option.kernel] = option, steps
            tried[option.kernel] = self._time(steps, 2)
        best = min(tried.values())
        close = [name for name, seconds in tried.items() if seconds <= HOPELESS * best]
        repetitions = max(2, min(REPETITIONS, int(ROUND / best)))
        for name in close if len(close) > 1 and perf_counter() < self.until else ():
            tried[name] = min(tried[name], self._time(made[name][1], repetitions))
        winner = min(close, key=lambda name: tried[name])
        option, steps = made[winner]
        return option, steps, tried[winner]

    def _time(self, steps: Sequence[Any], repetitions: int) -> float:
        return float(sum(step.time(self.arena, repetitions, self.samples) for step in steps))
