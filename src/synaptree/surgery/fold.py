"""Take what unfed units give into the biases of the layers that read them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from synaptree.graph.node import Graph, Node
from synaptree.graph.read import run
from synaptree.graph.residual import norm_of
from synaptree.graph.scale import per_kernel
from synaptree.graph.trace import undisturbed
from synaptree.surgery.coupling import reads_channels

__all__ = ["fold_constants", "unfed"]


def unfed(
    graph: Graph, alive: Mapping[str, Tensor], uneven: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return which channels depend neither on the input nor on its size in eval mode.

    Args:
        graph: of the model.
        alive: parameter name -> which of its connections exist, bool; a missing one means all.
        uneven: name of a node -> bool `(channels,)`: channels that differ by place, as at a padded border. What
            a pool makes of them depends on the size.

    Returns:
        Name of each node -> bool `(channels,)`.

    Example:
        >>> from synaptree.graph.read import read
        >>> graph = read(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.zeros(1, 2))
        >>> unfed(graph, {"0.weight": torch.tensor([[True, False], [False, False]])})["_1"]
        tensor([False,  True])
    """
    found: dict[str, Tensor] = {}
    sized = _dependent_on_size(graph)
    for node in graph.nodes:
        found[node.name] = torch.zeros(node.channels, dtype=torch.bool)
        inputs = [found[name] for name in node.inputs]
        if node.op == "pool" and uneven and node.inputs[0] in uneven:
            inputs = [inputs[0] & ~uneven[node.inputs[0]]]
        mask = alive.get(f"{node.module}.weight")
        if node.is_layer and mask is not None:
            found[node.name] = _without_connections(graph, node, mask)
        elif node.op in ("norm", "pointwise", "add", "pool") and node.name not in sized:
            inputs = [known if len(known) == node.channels else known.all().expand(node.channels) for known in inputs]
            found[node.name] = torch.stack(inputs).all(0)
            if node.op == "norm" and mask is not None and len(mask) == node.channels:
                found[node.name] = found[node.name] | ~mask.cpu()
        elif node.op == "shortcut":
            found[node.name] = _past(graph, node, inputs[0], alive.get(f"{node.module}.scale"))
        elif node.op == "move":
            varying = torch.zeros(node.channels, dtype=torch.bool)
            linked = torch.zeros(node.channels, dtype=torch.bool)
            for known, (channel, origin) in zip(inputs, node.links, strict=True):
                linked[channel] = True
                varying[channel[~known[origin]]] = True
            found[node.name] = linked & ~varying
    return found


@torch.no_grad()
def fold_constants(graph: Graph, example: Tensor, alive: dict[str, Tensor]) -> dict[str, str]:
    """Take constant inputs of layers into their biases, or the mean of their batch norm, where that is exact.

    Args:
        graph: of a model that may be changed: biases, running means, and weights that are set to 0.
        example: a batch the model accepts.
        alive: changed too: connections that were folded exist no more.

    Returns:
        Name of each node with a constant that some layer still reads -> why it could not be folded.
    """
    known, norms = unfed(graph, alive), norm_of(graph)
    kept: dict[str, str] = {}
    with_constants = [node for node in graph.nodes if node.inputs and bool(known[node.inputs[0]].any())]
    readers = [
        node for node in with_constants
        if node.is_layer and f"{node.module}.weight" in alive and reads_channels(graph, node)
        and graph.calls[str(node.module)] == 1
    ]  # fmt: skip
    if not readers:
        return kept
    pooled = [node.inputs[0] for node in with_constants if node.op == "pool"]
    values: dict[str, Tensor] = {}
    with undisturbed(graph.traced, example):
        watched = dict.fromkeys([*pooled, *(node.inputs[0] for node in readers)])
        run(graph, example[:2].clone(), {name: partial(_keep, values, name) for name in watched})
    uneven = {name: ~_even(_places(graph[name], values[name])).cpu() for name in pooled}
    at_any_size = unfed(graph, alive, uneven)
    for node in readers:
        source = graph[node.inputs[0]]
        norm = graph.module(norms[str(node.module)]) if node.module in norms else None
        places = _places(source, values[source.name])
        if why := _fold(graph, node, norm, places, known[source.name], at_any_size[source.name], alive):
            kept[source.name] = why
    return kept


def _places(node: Node, value: Tensor) -> Tensor:
    """Return the values of each channel, `(channels, places)`."""
    return value.reshape(1, -1) if node.axis is None else value.movedim(node.axis, 0).flatten(1)


def _even(places: Tensor) -> Tensor:
    return (places == places[:, :1]).all(1)


def _keep(values: dict[str, Tensor], name: str, value: Tensor) -> None:
    values[name] = value.clone()  # a later operation may overwrite it


def _without_connections(graph: Graph, node: Node, mask: Tensor) -> Tensor:
    module = graph.module(str(node.module))
    if not isinstance(module, _ConvTransposeNd):
        return ~mask.cpu().flatten(1).any(1)
    by_group = mask.cpu().flatten(2).any(2).view(module.groups, -1, mask.shape[1])
    return ~by_group.any(1).flatten()


def _dependent_on_size(graph: Graph) -> set[str]:
    """Return the functions that may make something else of a constant where the input is of another size."""
    activations = {node.name for node in graph.nodes}
    found: set[str] = set()
    sizes: set[str] = set()
    for n in graph.traced.graph.nodes:
        read = {source.name for source in n.all_input_nodes}
        if n.name not in activations:
            if n.op == "placeholder" or read & (activations | sizes):
                sizes.add(n.name)
        elif read & sizes or n.target in ("sum", torch.sum):
            found.add(n.name)
    return found


def _past(graph: Graph, node: Node, known: Tensor, scale: Tensor | None) -> Tensor:
    module: Any = graph.module(str(node.module))
    found = torch.ones(node.channels, dtype=torch.bool)
    found[module.offset : module.offset + module.in_channels] = known if graph[node.inputs[0]].axis == 1 else False
    return found if scale is None else found | ~scale.cpu()


def _fold(
    graph: Graph, node: Node, norm: nn.Module | None, places: Tensor, known: Tensor, at_any_size: Tensor,
    alive: dict[str, Tensor],
) -> str:
    module, name = graph.module(str(node.module)), f"{node.module}.weight"
    weight = module.get_parameter("weight")
    constants, read_by = places[:, 0], _readers(module, alive[name]).to(places.device)
    known = known.to(places.device) & read_by
    exact = known & at_any_size.to(places.device) & _even(places) & constants.isfinite()
    why = f"{node.module!r} reads it, and its value differs by place or size" if not exact.equal(known) else ""
    if _cares_for_the_border(module) and (exact & (constants != 0)).any():
        exact &= constants == 0
        why = f"{node.module!r} reads it with other values at the border"
    sink = _sink(module, norm)
    if sink is None and (exact & (constants != 0)).any():
        exact &= constants == 0
        why = f"{node.module!r} reads it and has no bias to take it"
    given = _given(module, constants, exact) if sink is not None else None
    bias_alive = alive.get(f"{node.module}.bias")
    if given is not None and bias_alive is not None and given[~bias_alive.to(given.device)].any():
        exact &= constants == 0
        given, why = _given(module, constants, exact), f"{node.module!r} reads it and its bias is cut"
    if not exact.any():
        return why
    taken = _per_connection(exact, module) & alive[name].to(places.device).view(weight.shape[:2])
    if sink is not None and given is not None:
        sink += (given if module._parameters.get("bias") is not None else -given).to(sink.dtype)
    taken = taken.view(*taken.shape, *(1 for _ in weight.shape[2:]))
    alive[name] = alive[name] & ~taken.to(alive[name].device)
    weight.masked_fill_(taken, 0.0)
    return why


def _given(module: nn.Module, constants: Tensor, exact: Tensor) -> Tensor:
    """Return what the constant inputs add to each unit, `(out,)`."""
    weight = module.get_parameter("weight").double()
    by_kernel = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    return (by_kernel * per_kernel(constants.double().masked_fill(~exact, 0.0), module)).sum(1)


def _sink(module: nn.Module, norm: nn.Module | None) -> Tensor | None:
    """Return the bias, or the mean that a batch norm behind takes away: what a constant can go into."""
    if isinstance(module, _ConvTransposeNd):
        return None
    bias = module._parameters.get("bias")
    return bias if bias is not None else norm._buffers.get("running_mean") if norm is not None else None


def _readers(module: nn.Module, mask: Tensor) -> Tensor:
    """Return which input channels some connection reads, `(in,)`."""
    groups = module.groups if isinstance(module, _ConvNd) else 1
    by_kernel = mask.flatten(1).view(mask.shape[:2])
    if isinstance(module, _ConvTransposeNd):
        return by_kernel.any(1)
    return by_kernel.view(groups, -1, by_kernel.shape[1]).any(1).flatten()


def _per_connection(inputs: Tensor, module: nn.Module) -> Tensor:
    if isinstance(module, _ConvTransposeNd):
        return inputs.unsqueeze(1).expand(module.weight.shape[:2])
    return per_kernel(inputs.double(), module) > 0


def _cares_for_the_border(module: nn.Module) -> bool:
    if not isinstance(module, _ConvNd) or module.padding_mode != "zeros":
        return False
    return module.padding == "same" if isinstance(module.padding, str) else any(module.padding)
