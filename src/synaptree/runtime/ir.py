"""What an engine computes: few operators, batch norms folded away, activations and residual sums fused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["OPS", "Net", "Node", "Shape", "volume"]

Floats = npt.NDArray[np.float32]
Shape = tuple[int, ...]
OPS = (
    "linear", "conv", "affine", "clamp", "leaky", "add", "cat", "flatten", "shortcut", "max_pool", "avg_pool",
    "adaptive_avg_pool", "adaptive_max_pool", "softmax", "log_softmax",
)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator, `y = min(max(f(inputs) + residual, low), high)`.

    Attributes:
        op: one of `OPS`.
        name: of the module it comes from, for people.
        inputs: numbers of the values it reads: 0 is the network's input, n + 1 what node n gives.
        shape: of what it gives, of one sample: (features,) or (channels, height, width).
        weight: linear (outputs, inputs), conv (outputs, inputs / groups, height, width), zeros where there is no
            connection; affine and shortcut: scale (channels,); leaky: slope (channels,).
        bias: (outputs,); affine: shift (channels,).
        options: of the operator: for conv stride, padding, dilation and groups; for pools as torch names them.
        low: least value given.
        high: largest value given.
        residual: number of a value of the same shape added before that; conv only.
        integers: of an int8 linear layer, (outputs, inputs); weight is `scales[:, None] * integers`.
        scales: of its rows, (outputs,).
        ranges: how large its input and its output get, 0 if nobody knows.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    shape: Shape
    weight: Floats | None = None
    bias: Floats | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    low: float = -inf
    high: float = inf
    residual: int | None = None
    integers: npt.NDArray[np.int8] | None = None
    scales: Floats | None = None
    ranges: tuple[float, float] = (0.0, 0.0)

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of all values it reads, the residual among them."""
        return self.inputs if self.residual is None else (*self.inputs, self.residual)

    @property
    def density(self) -> float:
        """Share of its weights that are not 0; 1 if it has none."""
        if self.op not in ("linear", "conv") or self.weight is None or not self.weight.size:
            return 1.0
        return float(np.count_nonzero(self.weight)) / self.weight.size


@dataclass(frozen=True, eq=False)
class Net:
    """Nodes in the order in which they run.

    Attributes:
        shape: of one sample of the input.
        nodes: each reads only what comes before it.
        output: number of the value that is given back.
    """

    shape: Shape
    nodes: tuple[Node, ...]
    output: int

    def shape_of(self, value: int) -> Shape:
        """Return the shape of one sample of a value."""
        return self.nodes[value - 1].shape if value else self.shape

    def readers(self, value: int) -> list[Node]:
        """Return the nodes that read a value."""
        return [node for node in self.nodes if value in node.reads]


def volume(shape: Shape) -> tuple[int, int, int]:
    """Return a shape as (channels, height, width), lengths of 1 filled in.

    >>> volume((784,)), volume((8, 100)), volume((3, 32, 32))
    ((784, 1, 1), (8, 1, 100), (3, 32, 32))
    """
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2:
        return shape[0], 1, shape[1]
    return prod(shape), 1, 1
