"""Signals: what is observed about each connection, as plain functions with explicit state."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from synaptree.core.layer import Layer
from synaptree.core.probe import Reduction

__all__ = ["Signal", "State", "View", "at_granularity", "gradient", "magnitude", "noise", "stateless"]

State = dict[str, Tensor]


class View(NamedTuple):
    """One parameter as a signal sees it; read-only.

    Attributes:
        layer: the layer the parameter belongs to.
        role: "weight" or "bias".
        weight: the parameter's values.
        grad: dense gradient of the same shape, unscaled and averaged, or None outside training.
        mask: bool, at its granularity.
        step: optimizer updates made so far.
        rng: the topology's random generator.
        stats: what probes have seen of the layer, by name of the statistic: means over the samples; in
            training sums since the last update, with their number under "samples".
    """

    layer: Layer
    role: str
    weight: Tensor
    grad: Tensor | None
    mask: Tensor
    step: int
    rng: torch.Generator
    stats: Mapping[str, Any]


class Signal(NamedTuple):
    """A quantity per connection, at the granularity of the mask; larger is more worth having.

    Attributes:
        read: `(state, view) -> Tensor` of the mask's shape.
        init: `view -> state`, named tensors; none for a signal without memory.
        update: `(state, view) -> state` after every optimizer update; None for a signal without memory.
        needs: what must be there: "gradient" (of the loss), "data" (calibration batches).
        watch: statistics of what flows through the layer, see `Probe`, that `view.stats` must hold.
    """

    read: Callable[[State, View], Tensor]
    init: Callable[[View], State] = lambda view: {}  # noqa: ARG005
    update: Callable[[State, View], State] | None = None
    needs: frozenset[str] = frozenset()
    watch: Mapping[str, Reduction] = MappingProxyType({})


def at_granularity(values: Tensor, mask: Tensor) -> Tensor:
    """Return the Euclidean norm of `values` over the axes that one entry of `mask` stands for.

    >>> at_granularity(torch.tensor([[[[3., 4.]]]]), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    tensor([[[[5.]]]])
    """
    if values.shape == mask.shape:
        return values.abs()
    axes = [axis for axis, size in enumerate(mask.shape) if size != values.shape[axis]]
    return cast(Tensor, torch.linalg.vector_norm(values, dim=axes, keepdim=True))


def stateless(read: Callable[[View], Tensor], *needs: str) -> Signal:
    """Return the signal without memory that `read` computes from a view."""
    return Signal(lambda state, view: read(view), needs=frozenset(needs))  # noqa: ARG005


magnitude = stateless(lambda view: at_granularity(view.weight, view.mask))
"""`|w|`, or the Frobenius norm of a kernel."""


def _gradient(view: View) -> Tensor:
    return view.weight.new_zeros(view.mask.shape) if view.grad is None else at_granularity(view.grad, view.mask)


gradient = stateless(_gradient, "gradient")
"""`|dL/dw|` of the present update, also where no connection exists."""


def _noise(view: View) -> Tensor:
    # drawn on the CPU so that one seed means one network on every device
    return torch.rand(view.mask.shape, generator=view.rng).to(view.weight.device)


noise = stateless(_noise)
"""Uniform random numbers in [0, 1)."""
