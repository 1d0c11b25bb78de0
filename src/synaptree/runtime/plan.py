"""Plan by timing: every way to compute a layer is tried on this machine, and the fastest stays."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from synaptree.runtime import moves
from synaptree.runtime.fastest import Choice, Plan, Timing
from synaptree.runtime.ir import Net
from synaptree.runtime.layout import layout
from synaptree.runtime.options import options

__all__ = ["dense_seconds", "plan"]


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
    found = [options(net, number, where, isa) for number in range(1, len(net.nodes) + 1)]
    scratch = max((option.scratch for several in found for option in several), default=0)
    x, y = (np.prod(shape, dtype=np.int64) for shape in (net.shape, net.shape_of(net.output)))
    samples = np.random.default_rng(0).standard_normal((lanes, int(x))).astype(np.float32)
    timing = Timing(where.bytes, scratch, budget, dict(enumerate(kernels or ())), samples)
    enter, leave = moves.enter(isa, where.places[0]), moves.leave(isa, where.places[net.output])
    choices = [Choice(None, "enter", enter.time(timing.arena, 3, samples), [enter])]
    for number, (node, several) in enumerate(zip(net.nodes, found, strict=True), 1):
        choices.append(timing.choose(node, several, number))
    out = np.empty((lanes, int(y)), np.float32)
    choices.append(Choice(None, "leave", leave.time(timing.arena, 3, None, out), [leave]))
    return Plan(lanes, tuple(choices), timing.end)


def dense_seconds(net: Net, number: int, lanes: int, isa: str) -> float | None:
    """Return the time of a block of a linear layer or convolution by kernels that ignore zeros; None for others."""
    node = net.nodes[number - 1]
    if node.weight is None or node.op not in ("linear", "conv"):
        return None
    whole = replace(node, weight=np.where(node.weight == 0, np.float32(1e-3), node.weight))
    full = replace(net, nodes=(*net.nodes[: number - 1], whole, *net.nodes[number:]))
    where = layout(full, lanes)
    found = options(full, number, where, isa, dense=True)
    scratch = max((option.scratch for option in found), default=0)
    samples = np.zeros((lanes, 1), np.float32)
    return Timing(where.bytes, scratch, 1.0, {}, samples).fastest(found)[2] if found else None
