"""Find the norm that sets the scale of each channel a layer reads."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from synaptree.core.errors import ShapeError
from synaptree.graph.node import Graph, Node

__all__ = ["Sources", "gathered", "input_norms", "input_scale", "per_kernel"]

Sources = dict[str, Tensor]
"""Name of a norm -> `(channels,)` int64: its channel that channel `k` comes from, -1 where from none of it."""


def input_norms(graph: Graph) -> dict[str, Sources]:
    """Return which batch or instance norms feed each layer, channel by channel.

    A channel is followed back through per-channel operations (nonlinearities, pooling) and moves
    (flatten, concatenation, slices) up to a norm with a scale. Sums, layers, shortcuts and unknown
    operations end the walk: what comes out of them has no norm of its own, and neither has a norm of the
    model's very input.

    Args:
        graph: of the model.

    Returns:
        Name of each layer that is called once -> its norms; each tensor has the shape `(in,)`.

    Example:
        >>> from synaptree.graph.read import read
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
        >>> input_norms(read(model, torch.zeros(1, 1, 1, 2)))
        {'0': {}, '4': {'1': tensor([0, 0, 1, 1])}}
    """
    known: dict[str, Sources] = {}
    found: dict[str, Sources] = {}
    for node in graph.nodes:
        known[node.name] = _sources(graph, node, known)
        if node.is_layer and graph.calls[str(node.module)] == 1:
            source = graph[node.inputs[0]]
            axis = len(source.shape) - 1 if node.op == "linear" else 1
            found[str(node.module)] = known[source.name] if source.axis == axis else {}
    return found


def input_scale(layer: nn.Module, sources: Sources, modules: Mapping[str, nn.Module]) -> Tensor:
    """Return `|gamma[j]|` for every kernel `(i, j)` of a layer, 1 where no norm feeds map `j`.

    Args:
        layer: a linear layer or a convolution that is not transposed.
        sources: its entry of `input_norms`.
        modules: name -> module of the model.

    Returns:
        `(out, in / groups)`.

    Example:
        >>> norm = nn.BatchNorm2d(2)
        >>> _ = norm.weight.data.copy_(torch.tensor([0.5, -3.0]))
        >>> input_scale(nn.Conv2d(3, 1, 1), {"bn": torch.tensor([-1, 0, 1])}, {"bn": norm})
        tensor([[1.0000, 0.5000, 3.0000]])
    """
    scale = next(layer.parameters()).detach().new_ones(_size(layer)[1])
    for name, channels in sources.items():
        scale = scale * gathered(modules[name].get_parameter("weight").detach().abs(), channels)
    return per_kernel(scale, layer)


def gathered(values: Tensor, channels: Tensor) -> Tensor:
    """Return `values[channels]`, and 1 where the channel is -1.

    >>> gathered(torch.tensor([5.0, 7.0]), torch.tensor([1, -1]))
    tensor([7., 1.])
    """
    channels = channels.to(values.device)
    return torch.where(channels < 0, 1.0, values[channels.clamp_min(0)])


def per_kernel(values: Tensor, layer: nn.Module) -> Tensor:
    """Return one value per input channel as one per kernel.

    Args:
        values: `(in,)`.
        layer: a linear layer or a convolution that is not transposed.

    Returns:
        `(out, in / groups)`: entry `(i, j)` is the value of the channel that kernel `(i, j)` reads.

    Raises:
        ShapeError: there is not one value per input channel.

    Example:
        >>> per_kernel(torch.tensor([1.0, 2.0]), nn.Conv2d(2, 2, 1, groups=2))
        tensor([[1.],
                [2.]])
    """
    groups = int(getattr(layer, "groups", 1))
    units, inputs = _size(layer)
    if values.shape != (inputs,):
        raise ShapeError(
            f"values of shape {tuple(values.shape)} for {layer}: wanted ({inputs},), one for each input channel"
        )
    rows = values.view(groups, 1, -1).expand(groups, units // groups, inputs // groups)
    return rows.reshape(units, inputs // groups)


def _size(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return int(getattr(layer, "out_channels")), int(getattr(layer, "in_channels"))  # noqa: B009 - any convolution


def _sources(graph: Graph, node: Node, known: dict[str, Sources]) -> Sources:
    if node.op == "norm":
        module = graph.module(str(node.module))
        scaled = isinstance(module, _NormBase) and module.weight is not None and node.axis == 1
        return {str(node.module): torch.arange(node.channels)} if scaled else {}
    if node.op in ("pointwise", "pool") and len(node.inputs) == 1:
        source = graph[node.inputs[0]]
        return known[source.name] if source.channels == node.channels else {}
    return _moved(node, known) if node.op == "move" else {}


def _moved(node: Node, known: dict[str, Sources]) -> Sources:
    if not node.links:
        return {}
    origins = torch.bincount(torch.cat([channel for channel, _ in node.links]), minlength=node.channels)
    found: Sources = {}
    for name, (channel, origin) in zip(node.inputs, node.links, strict=True):
        for norm, channels in known[name].items():
            moved = found.setdefault(norm, torch.full((node.channels,), -1))
            moved[channel] = torch.where(origins[channel] == 1, channels[origin], -1)
    return found
