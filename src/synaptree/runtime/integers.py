"""Networks of int8 linear layers, computed in whole numbers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from synaptree.runtime import lookup, quads
from synaptree.runtime.fastest import Choice, Option, Plan, Timing
from synaptree.runtime.ir import Net, Node
from synaptree.runtime.quantise import Bytes, Floats, bytes_place, floats_place, leave_rows, quantise

__all__ = ["MOST", "computable", "plan_integers"]

MOST = 64  # samples of a block
LEVELS = 127
SCALE_BYTES = 64


def computable(net: Net) -> bool:
    """Return whether a network is a chain of int8 linear layers, flattening its input at most."""
    layers = _layers(net)
    follows = all(node.inputs == (number,) for number, node in enumerate(net.nodes))
    whole = bool(layers) and all(node.integers is not None for node in layers)
    return follows and whole and net.output == len(net.nodes)


def _layers(net: Net) -> list[Node]:
    """Return the nodes that compute something, or none if one of them is no linear layer."""
    layers = [node for node in net.nodes if node.op != "flatten"]
    return layers if all(node.op == "linear" for node in layers) else []


def plan_integers(net: Net, samples: int, isa: str, *, budget: float, kernels: Sequence[str] | None = None) -> Plan:
    """Return how to compute a network in whole numbers, up to `samples` samples at a time.

    A value is bytes, `x ~ scale (u - 128)`. Its scale is its range from the file over 127; where the file tells none,
    it is taken from each block's own values. The sums of a layer are exact.

    Args:
        net: of which `computable` holds.
        samples: of a block, at most `MOST`.
        isa: instruction set.
        budget: seconds for timing.
        kernels: names chosen before.
    """
    sketch = _Sketch(net, samples, isa)
    x = np.random.default_rng(0).standard_normal((samples, sketch.features)).astype(np.float32)
    out = np.empty((samples, sketch.layers[-1].shape[0]), np.float32)
    found = [list(sketch.options(number)) for number in range(len(sketch.layers))]
    scratch = max(option.scratch for several in found for option in several)
    timing = Timing(sketch.bytes, scratch, budget, dict(enumerate(kernels or ())), x)
    enter = quantise(isa, sketch.features, sketch.inputs[0], **sketch.given[0])
    choices = [Choice(None, "enter", enter.time(timing.arena, 3, x), [enter])]
    for number, (node, several) in enumerate(zip(sketch.layers, found, strict=True), 1):
        choices.append(timing.choose(node, several, number))
    leave = leave_rows(isa, sketch.outputs[-1])
    choices.append(Choice(None, "leave", leave.time(timing.arena, 3, None, out), [leave]))
    return Plan(samples, tuple(choices), timing.end)


class _Sketch:
    """Where the values of such a network lie, and at which scales."""

    def __init__(self, net: Net, samples: int, isa: str) -> None:
        self.layers, self.samples, self.isa, self.bytes = _layers(net), samples, isa, 0
        self.features = int(np.prod(net.shape, dtype=np.int64))
        self.inputs: list[Bytes] = []
        self.given: list[dict[str, Any]] = []  # scale, or where it stands
        self.outputs: list[Floats] = []
        for node in self.layers:
            features = node.integers.shape[1] if node.integers is not None else 0
            given = bytes_place(features, samples)
            self.inputs.append(given.moved(self._take(given.bytes)))
            limit = node.ranges[0]
            self.given.append({"scale": limit / LEVELS} if limit > 0 else {"scale_at": self._take(SCALE_BYTES)})
            out = floats_place(node.shape[0], samples)
            self.outputs.append(out.moved(self._take(out.bytes)))

    def _take(self, size: int) -> int:
        at, self.bytes = self.bytes, self.bytes + -(-size // 64) * 64
        return at

    def options(self, number: int) -> Iterator[Option]:
        """Yield the ways to compute a layer."""
        node = self.layers[number]
        assert node.integers is not None
        for variant in lookup.variants_int8(self.isa, node.integers, self.samples):
            yield Option(f"int8 {variant}", partial(self._look_up, number, variant))
        if quads.offered(self.isa, self.samples):
            scratch = quads.sums_bytes(node.shape[0], self.samples)
            yield Option("int8 quads", partial(self._multiply_quads, number), scratch)

    def _look_up(self, number: int, variant: lookup.Variant, _: int) -> list[Any]:
        return self._steps(number, partial(lookup.linear_int8, variant=variant))

    def _multiply_quads(self, number: int, scratch: int) -> list[Any]:
        return self._steps(number, partial(quads.linear_quads, sums=scratch))

    def _steps(self, number: int, linear: Callable[..., Any]) -> list[Any]:
        """Return the steps of a layer, up to the bytes of the next."""
        node, last = self.layers[number], number + 1 == len(self.layers)
        following = None if last else self.given[number + 1].get("scale")
        straight = following is not None  # to the next layer's bytes
        y: Bytes | Floats = self.inputs[number + 1] if straight else self.outputs[number]
        step = linear(
            self.isa, node.integers, node.scales, node.bias, self.inputs[number], y, low=node.low, high=node.high,
            output_scale=following, **self.given[number],
        )  # fmt: skip
        if last or straight:
            return [step]
        return [step, quantise(self.isa, self.outputs[number], self.inputs[number + 1], **self.given[number + 1])]
