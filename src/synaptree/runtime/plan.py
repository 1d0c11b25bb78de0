"""Plan by timing: every way to compute a layer is tried on this machine, and the fastest stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from synaptree.runtime import _native, moves
from synaptree.runtime.ir import Net, Node
from synaptree.runtime.layout import Layout, layout
from synaptree.runtime.options import Option, options
from synaptree.runtime.place import FLOAT

__all__ = ["Choice", "Plan", "dense_seconds", "plan"]

HOPELESS = 1.5  # times as slow as the best on its first run: not timed again
ROUND = 1e-3  # seconds that a layer's timing may take at most, twice
REPETITIONS = 12
SHARED = 40e-6  # seconds from which a step is worth sharing out among threads


@dataclass(frozen=True)
class Choice:
    """How a node is computed.

    Attributes:
        node: None for carrying samples in and out.
        kernel: name of the option.
        seconds: one block takes; 0 if it was not timed.
        steps: of the extension.
        tried: seconds of every option that was timed, by name.
    """

    node: Node | None
    kernel: str
    seconds: float
    steps: Sequence[Any]
    tried: Mapping[str, float]


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


def plan(net: Net, lanes: int, isa: str, *, budget: float = 2.0, kernels: Sequence[str] | None = None) -> Plan:
    """Return how to compute a network.

    Args:
        net: to be computed.
        lanes: samples side by side: 1 or a multiple of 16.
        isa: instruction set.
        budget: seconds for timing; when they are over, the first way that comes is taken.
        kernels: names chosen before: nothing is timed that is among them.
    """
    where = layout(net, lanes)
    return _Planner(net, where, isa, perf_counter() + budget, dict(enumerate(kernels or ()))).plan()


def dense_seconds(net: Net, number: int, lanes: int, isa: str) -> float | None:
    """Return the time of a block of a linear layer or convolution by kernels that ignore zeros; None if there is none."""
    node = net.nodes[number - 1]
    if node.weight is None or node.op not in ("linear", "conv"):
        return None
    whole = replace(node, weight=np.where(node.weight == 0, np.float32(1e-3), node.weight))
    full = replace(net, nodes=(*net.nodes[: number - 1], whole, *net.nodes[number:]))
    planner = _Planner(full, layout(full, lanes), isa, perf_counter() + 1.0, {})
    found = options(full, number, planner.where, isa, dense=True)
    return planner.fastest(found)[2] if found else None


class _Planner:
    def __init__(self, net: Net, where: Layout, isa: str, until: float, named: Mapping[int, str]) -> None:
        self.net, self.where, self.isa, self.until, self.named = net, where, isa, until, named
        self.found = [options(net, number, where, isa) for number in range(1, len(net.nodes) + 1)]
        scratch = max((option.scratch for found in self.found for option in found), default=0)
        self.arena = _native.Arena(where.bytes + scratch)
        self.end = where.bytes  # of values and of the scratch of steps chosen so far

    def plan(self) -> Plan:
        """Choose node by node, each timed on what those before it made of random samples."""
        features = int(np.prod(self.net.shape, dtype=np.int64))
        samples = np.random.default_rng(0).standard_normal((self.where.lanes, features)).astype(np.float32)
        enter = moves.enter(self.isa, self.where.places[0])
        choices = [Choice(None, "enter", enter.time(self.arena, 3, samples), [enter], {})]
        for number, (node, found) in enumerate(zip(self.net.nodes, self.found, strict=True), 1):
            choices.append(self.choose(node, found, self.named.get(number)))
        leave = moves.leave(self.isa, self.where.places[self.net.output])
        out = np.empty((self.where.lanes, int(np.prod(self.net.shape_of(self.net.output)))), np.float32)
        choices.append(Choice(None, "leave", leave.time(self.arena, 3, None, out), [leave], {}))
        return Plan(self.where.lanes, tuple(choices), self.end)

    def choose(self, node: Node, found: Sequence[Option], name: str | None = None) -> Choice:
        """Return the fastest way, its steps with scratch of their own; what it computes stands in the arena."""
        if not found:
            return Choice(node, "no work", 0.0, [], {})
        known = [option for option in found if option.kernel == name]
        option, steps, seconds, tried = self.fastest(known or found)
        for step in steps:
            step.run(self.arena)
        if option.scratch:
            steps = option.make(self.end)
            self.end += -(-option.scratch // 64) * 64
        return Choice(node, option.kernel, seconds, steps, tried)

    def fastest(self, found: Sequence[Option]) -> tuple[Option, Sequence[Any], float, dict[str, float]]:
        """Time every option, in turn and several times, those soon dropped that are far behind."""
        made: dict[str, tuple[Option, Sequence[Any]]] = {}
        tried: dict[str, float] = {}
        for option in found:
            if made and perf_counter() > self.until:
                break
            self.arena.floats[self.where.bytes // FLOAT :] = 0  # scratch, which another option may have written to
            steps = option.make(self.where.bytes)
            made[option.kernel] = option, steps
            tried[option.kernel] = _time(steps, self.arena, 2)
        best = min(tried.values())
        close = [name for name, seconds in tried.items() if seconds <= HOPELESS * best]
        repetitions = max(2, min(REPETITIONS, int(ROUND / best)))
        for name in close if len(close) > 1 and perf_counter() < self.until else ():
            tried[name] = min(tried[name], _time(made[name][1], self.arena, repetitions))
        winner = min(close, key=lambda name: tried[name])
        option, steps = made[winner]
        return option, steps, tried[winner], tried


def _time(steps: Sequence[Any], arena: Any, repetitions: int) -> float:
    return sum(step.time(arena, repetitions) for step in steps)
