"""Make layers narrower in place, and carry a topology and an optimizer over to them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

from synaptree.core.errors import OptionError
from synaptree.core.layer import parameters_of
from synaptree.core.topology import Topology
from synaptree.graph.node import Graph, GraphError, Node
from synaptree.graph.trace import trace, undisturbed
from synaptree.surgery.coupling import reads_channels

__all__ = ["Cuts", "narrow", "narrowed_optimizer", "narrowed_topology", "patched", "selected"]

Cuts = dict[str, dict[int, Tensor]]
"""Name of a parameter or buffer -> axis -> the indices that stay."""


def narrow(graph: Graph, kept: Mapping[str, Tensor]) -> Cuts:
    """Narrow the modules of a graph in place to the channels that stay.

    Args:
        graph: of a model that may be changed.
        kept: name of each node -> bool `(channels,)`.

    Returns:
        What was cut.
    """
    found: Cuts = {}
    done = set()
    for node in graph.nodes:
        if node.module is None or node.module in done or node.op == "other":
            continue
        done.add(node.module)
        module = graph.module(node.module)
        out = kept[node.name].nonzero().flatten()
        sizes = _cut_module(graph, node, module, out, kept)
        for part, axes in sizes.items():
            tensor = getattr(module, part, None)
            if tensor is None:
                continue
            axes = {axis: at for axis, at in axes.items() if len(at) < tensor.shape[axis]}
            if axes:
                found[f"{node.module}.{part}"] = axes
                smaller = selected(tensor.detach(), axes)
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(module, part, nn.Parameter(smaller, tensor.requires_grad) if is_parameter else smaller)
    return found


def selected(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    """Return the entries of a tensor that stay, as a copy.

    >>> selected(torch.tensor([[1, 2], [3, 4]]), {1: torch.tensor([1])})
    tensor([[2],
            [4]])
    """
    for axis, at in axes.items():
        tensor = tensor.index_select(axis, at.to(tensor.device))
    return tensor.clone()


def patched(model: nn.Module, graph: Graph, kept: Mapping[str, Tensor], example: Tensor) -> fx.GraphModule:
    """Return the narrowed model as an fx module in which fixed sizes of reshapes are the new ones.

    Raises:
        GraphError: its forward asks for `self.training`, which a trace would fix to one mode.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    with undisturbed(model, example):
        by_mode = [trace(model.train(mode)) for mode in (True, False)]
    if by_mode[0].code != by_mode[1].code:
        raise GraphError(
            f"{type(model).__name__} asks for self.training in its forward, which a trace would fix to one mode; "
            f"use modules (nn.Dropout for F.dropout), or x.flatten(1) for fixed sizes"
        )
    traced = by_mode[1]
    for n in traced.graph.nodes:
        node = next((node for node in graph.nodes if node.name == n.name), None)
        if node is not None and node.op == "move" and node.axis is not None:
            new = int(kept[node.name].sum())
            n.args = (n.args[0], *_with_size(n.args[1:], node.axis, node.channels, new))
    traced.recompile()
    for name, module in traced.named_modules():
        module.training = modes.get(name, model.training)
    return traced


def narrowed_topology(topology: Topology, alive: Mapping[str, Tensor], cuts: Cuts, model: nn.Module) -> Topology:
    """Return a copy of a topology over the narrowed model.

    Masks, ages and what signals remember lose the same rows and columns; what a signal remembers in another
    shape than the mask's or the parameter's is dropped, and a note says so.

    Args:
        topology: of the model before; left as it is.
        alive: parameter name -> which kernels still exist after folding.
        cuts: what was cut.
        model: the narrowed one; masks of parameters it has no more are left out.
    """
    whole = Topology()
    whole.restore(topology.state_dict())
    folded = {
        name: mask & alive[name].to(mask.device) for name, mask in topology.masks.items()
        if name in alive and mask.dim() > 1 and mask.shape[1] == alive[name].shape[1]
    }  # fmt: skip
    whole.edit(folded)
    state, own = whole.state_dict(), parameters_of(model)
    masks, shapes = dict(state["masks"]), dict(state["shapes"])
    names = [name for name in masks if name in own]
    state["masks"] = {name: _like_mask(masks[name], cuts.get(name, {})) for name in names}
    state["shapes"] = {name: list(own[name].shape) for name in names}
    births = state["births"]
    state["births"] = {name: _like_mask(births[name], cuts.get(name, {})) for name in names if name in births}
    for key, values in list(state["state"].items()):
        name = key.partition("/")[2]
        if not cuts.get(name):
            continue
        forms = (tuple(masks[name].shape), tuple(shapes[name])) if name in masks else ()
        fits = {part: value for part, value in values.items() if not value.dim() or tuple(value.shape) in forms}
        state["state"][key] = {part: _like_mask(value, cuts[name]) for part, value in fits.items()}
        if dropped := sorted(values.keys() - fits.keys()):
            state["notes"].append(f"{key} was not carried over to the narrower {name}: {', '.join(dropped)}")
    narrower = Topology()
    narrower.masks = {name: torch.ones((), dtype=torch.bool, device=own[name].device) for name in names}
    narrower.restore(state)
    return narrower


def narrowed_optimizer(optimizer: Optimizer, before: nn.Module, after: nn.Module, cuts: Cuts) -> Optimizer:
    """Return a new optimizer of the same class and options over the narrowed parameters, its state narrowed too.

    Args:
        optimizer: over parameters of `before`; left as it is.
        before: the model as it was.
        after: the narrowed one.
        cuts: what was cut.

    Raises:
        OptionError: it holds a parameter that is none of the model's, cannot be made from its options, or has
            state that is neither a number nor of the parameter's shape.
    """
    named = list(parameters_of(before).items())
    names = {id(parameter): name for name, parameter in reversed(named)}  # the first name of each, as in the graph
    own = parameters_of(after)
    groups: list[dict[str, Any]] = []
    pairs: list[tuple[nn.Parameter, str]] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise OptionError(
                    f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is none of "
                    f"{type(before).__name__}'s; pass the optimizer of this model"
                )
        inside = [(p, names[id(p)]) for p in group["params"] if names[id(p)] in own]
        pairs += inside
        groups.append({**group, "params": [own[name] for _, name in inside]})
    try:
        make: Callable[..., Optimizer] = type(optimizer)  # the base class also wants defaults
        new = make(groups)
    except TypeError as error:
        raise OptionError(f"{type(optimizer).__name__} cannot be made from its param_groups alone: {error}") from error
    new.defaults = dict(optimizer.defaults)  # of groups that are added later
    for old, name in pairs:
        if old in optimizer.state:
            new.state[own[name]] = {
                key: _carried(f"{key!r} of {name}", value, old, cuts.get(name, {}))
                for key, value in optimizer.state[old].items()
            }
    return new


def _carried(what: str, value: Any, parameter: Tensor, axes: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return selected(value, axes)
    if isinstance(value, list | tuple | dict) or (isinstance(value, Tensor) and value.dim() and axes):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise OptionError(
            f"the optimizer's state {what} is of {got}; wanted a number or a tensor of the parameter's shape "
            f"{tuple(parameter.shape)}, which can be narrowed with it; make a new optimizer for the compacted model"
        )
    return value.clone() if isinstance(value, Tensor) else value


def _like_mask(value: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    """Cut a tensor along the axes in which it has more than one entry for all."""
    size = {axis: at for axis, at in axes.items() if axis < value.dim() and value.shape[axis] > 1}
    return selected(value, size)


def _cut_module(
    graph: Graph, node: Node, module: Any, out: Tensor, kept: Mapping[str, Tensor]
) -> dict[str, dict[int, Tensor]]:
    """Set a module's sizes; return which part of it loses what."""
    if isinstance(module, _NormBase):
        module.num_features = len(out) if node.axis == 1 else module.num_features
        parts = ("weight", "bias", "running_mean", "running_var") if node.axis == 1 else ()
        return {part: {0: out} for part in parts}
    if isinstance(module, nn.PReLU):
        each = module.num_parameters == node.channels
        module.num_parameters = len(out) if each else module.num_parameters
        return {"weight": {0: out}} if each else {}
    if node.op == "shortcut":
        return _cut_shortcut(graph, node, module, out, kept)
    if not node.is_layer:
        return {}
    inputs = kept[node.inputs[0]].nonzero().flatten() if reads_channels(graph, node) else None
    if isinstance(module, nn.Linear):
        module.out_features = len(out)
        module.in_features = module.in_features if inputs is None else len(inputs)
        return {"weight": {0: out} | ({} if inputs is None else {1: inputs}), "bias": {0: out}}
    return _cut_conv(module, out, inputs)


def _cut_conv(module: _ConvNd, out: Tensor, inputs: Tensor | None) -> dict[str, dict[int, Tensor]]:
    transposed = isinstance(module, _ConvTransposeNd)
    if module.groups > 1:
        module.groups = module.groups * len(out) // module.out_channels
        first = inputs if transposed else out
        axes = {} if first is None else {0: first}
    else:
        axes = {1 if transposed else 0: out} | ({} if inputs is None else {0 if transposed else 1: inputs})
    module.out_channels = len(out)
    module.in_channels = module.in_channels if inputs is None else len(inputs)
    return {"weight": axes, "bias": {0: out}}


def _cut_shortcut(
    graph: Graph, node: Node, module: Any, out: Tensor, kept: Mapping[str, Tensor]
) -> dict[str, dict[int, Tensor]]:
    if graph[node.inputs[0]].axis == 1:
        module.offset = int(kept[node.name][: module.offset].sum())
        module.in_channels, module.out_channels = int(kept[node.inputs[0]].sum()), len(out)
        return {"scale": {0: out}}
    return {}


def _with_size(sizes: tuple[Any, ...], axis: int, old: int, new: int) -> tuple[Any, ...]:
    """Replace a fixed size `old` at its axis, in arguments given one by one or as one tuple."""
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        return (tuple(_with_size(tuple(sizes[0]), axis, old, new)),)
    return tuple(new if place == axis and size == old else size for place, size in enumerate(sizes))
