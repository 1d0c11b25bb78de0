"""What a network still reads: demand carried from the outputs back to every unit."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from synaptree.core.errors import ShapeError
from synaptree.graph.node import Graph, Node
from synaptree.graph.shortcut import Shortcut

__all__ = ["needed", "seen"]

_Layer = Shortcut | nn.Linear | _ConvNd


def needed(graph: Graph, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return which units something still reads, through connections that exist.

    A unit is needed if a chain of existing connections and live shortcut channels leads from it to the
    output. One pass from the output back finds them all. Units of a module called several times are
    needed if any call needs them; what an `other` operation reads is needed.

    Args:
        graph: of the model.
        masks: parameter name to its mask, at any granularity; only `<layer>.weight`, of shape
            `(out, in / groups, ...)` or `(in, out / groups, ...)` where transposed, and
            `<shortcut>.scale`, of shape `(channels,)`, are read. A missing mask means all exist.

    Returns:
        Name of each layer and `Shortcut` in the graph to `(out,)` bool, True = needed. Modules that
        feed no output, and layers of kind `other`, are not in it.

    Raises:
        ShapeError: a mask does not fit its parameter.

    Example:
        >>> from synaptree.graph.read import read
        >>> graph = read(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.zeros(1, 2))
        >>> needed(graph, {"2.weight": torch.tensor([[True, False]])})
        {'0': tensor([ True, False]), '2': tensor([True])}

    Paper: the backward sweep of NNrelief, Dekhovich et al. 2024 (2109.10795), for any graph.
    """

    def reads(node: Node, wanted: Tensor) -> Tensor:
        module = _module(graph, node)
        if isinstance(module, Shortcut):
            live = wanted & _mask(masks, f"{node.module}.scale", module.scale)
            return live[module.offset : module.offset + module.in_channels]
        return _connected(module, _mask(masks, f"{node.module}.weight", module.weight), wanted)

    return _demand(graph, reads)


def seen(graph: Graph, nonzero: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return which units something reads that was not zero where it was read.

    The forward dead test: a unit that is False gave nothing but zeros, by the time it was read, to every
    layer and `Shortcut` that reads it.

    Args:
        graph: of the model.
        nonzero: name of a layer or `Shortcut` to `(in,)` bool: which channels of its input were ever
            not zero. A layer without an entry counts as having seen everything; a `Shortcut` without
            one hands on what was seen of the sum it goes into. Other names are ignored.

    Returns:
        Name of each layer and `Shortcut` in the graph to `(out,)` bool, True = seen. Units of the
        output are always seen.

    Raises:
        ShapeError: an entry has not one value for each input channel.

    Example:
        >>> from synaptree.graph.read import read
        >>> graph = read(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.zeros(1, 2))
        >>> seen(graph, {"2": torch.tensor([False, True])})
        {'0': tensor([False,  True]), '2': tensor([True])}

    Paper: the dead units of NNrelief, Dekhovich et al. 2024 (2109.10795), for any graph.
    """

    def reads(node: Node, wanted: Tensor) -> Tensor:
        module = _module(graph, node)
        inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        found = nonzero.get(str(node.module))
        if found is None:
            if isinstance(module, Shortcut):
                return wanted[module.offset : module.offset + module.in_channels]
            return torch.ones(inputs, dtype=torch.bool)
        if found.shape != (inputs,):
            raise ShapeError(
                f"nonzero[{node.module!r}] has shape {tuple(found.shape)}; wanted ({inputs},), one value for each "
                f"input channel of {node.module!r}"
            )
        return found.cpu().bool()

    return _demand(graph, reads)


def _demand(graph: Graph, reads: Callable[[Node, Tensor], Tensor]) -> dict[str, Tensor]:
    """Carry demand from the output back; `reads` maps a layer's to that on its input channels."""
    wanted = {node.name: torch.zeros(node.channels, dtype=torch.bool) for node in graph.nodes}
    found: dict[str, Tensor] = {}
    for node in reversed(graph.nodes):
        if node.op == "output":
            wanted[node.name].fill_(True)
        own = wanted[node.name]
        if node.is_layer or node.op == "shortcut":
            found[str(node.module)] = found.get(str(node.module), torch.zeros_like(own)) | own
            wanted[node.inputs[0]] |= _onto_axis(graph[node.inputs[0]], node, reads(node, own))
        elif node.op == "move":
            for name, (channel, origin) in zip(node.inputs, node.links, strict=True):
                wanted[name][origin[own[channel]]] = True
        else:
            for name in node.inputs:
                wanted[name] |= own if graph[name].channels == node.channels else own.any()
    return dict(reversed(found.items()))


def _onto_axis(source: Node, node: Node, demand: Tensor) -> Tensor:
    """Return a layer's demand on the channels of its input, all of them if it reads another axis."""
    axis = len(source.shape) - 1 if node.op == "linear" else 1
    return demand if source.axis == axis else demand.any()


def _connected(module: nn.Module, mask: Tensor, wanted: Tensor) -> Tensor:
    """Return which input channels a connection leads from to a wanted output channel."""
    groups = module.groups if isinstance(module, _ConvNd) else 1
    by_group = mask.flatten(2).any(2) if mask.dim() > 2 else mask
    by_group = by_group.view(groups, -1, by_group.shape[1])
    if isinstance(module, _ConvTransposeNd):
        by_group = by_group.transpose(1, 2)
    return (by_group & wanted.view(groups, -1, 1)).any(1).flatten()


def _mask(masks: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    mask = masks.get(name)
    if mask is None:
        return torch.ones(parameter.shape[:2], dtype=torch.bool)
    pairs = zip(mask.shape, parameter.shape, strict=False)
    if mask.dim() != parameter.dim() or any(m not in (1, p) for m, p in pairs):
        raise ShapeError(
            f"the mask of {name} has shape {tuple(mask.shape)}; wanted {tuple(parameter.shape)}, the parameter's, "
            f"with 1 for axes that one connection spans"
        )
    return mask.cpu().bool().expand(*parameter.shape[:2], *mask.shape[2:])


def _module(graph: Graph, node: Node) -> _Layer:
    return cast(_Layer, graph.module(str(node.module)))
