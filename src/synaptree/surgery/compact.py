"""Exact compaction: a sparse network as a smaller dense-shaped one that computes the same."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from synaptree.core.errors import NumericError, OptionError
from synaptree.core.layer import require_weights, unwrapped
from synaptree.core.topology import Topology
from synaptree.graph.node import Graph, GraphError
from synaptree.graph.read import read
from synaptree.graph.residual import norm_of
from synaptree.graph.shortcut import Shortcut
from synaptree.graph.trace import reason
from synaptree.surgery.fold import fold_constants, unfed
from synaptree.surgery.narrow import Cuts, narrow, narrowed_optimizer, narrowed_topology, patched
from synaptree.surgery.parts import Part, Parts, stopped
from synaptree.surgery.plan import Plan, existing, planned
from synaptree.surgery.proof import Proof, require_fit_in_training

__all__ = ["Compacted", "compact", "require_dead_weights_zero"]


@dataclass(frozen=True)
class Compacted:
    """What `compact` returns.

    Attributes:
        model: the smaller network.
        topology: over it; None where none was given.
        optimizer: over its parameters; None where none was given.
        plan: what was removed and kept, and why.
        max_error: largest absolute difference to the given model's outputs in the proof.
    """

    model: nn.Module
    topology: Topology | None
    optimizer: Optimizer | None
    plan: Plan
    max_error: float


def compact(
    model: nn.Module,
    example_input: Tensor,
    *,
    topology: Topology | None = None,
    optimizer: Optimizer | None = None,
    fold_norms: bool = False,
) -> Compacted:
    """Return a smaller network without the units that nothing reads and those that nothing feeds.

    A unit is removed where everything it is joined with goes too: the terms of a sum, the parts of a
    concatenation, a whole group of a grouped convolution. The constant `f(b[i])` of a unit that nothing feeds
    goes into what reads it, `b[k] += w[k, i] f(b[i])`, or is taken from the running mean of the batch norm
    behind, where that is exact at every place and for inputs of any size; otherwise the unit stays. In eval mode
    the outputs are equal up to rounding, which is checked on `example_input` and on random inputs of its shape. In
    training mode a batch norm gives its shift for a constant, so that what was folded from behind one may differ
    there.

    Args:
        model: any module with one input; left as it is. The result is a copy of it with narrower layers, or a
            traced one where its forward holds fixed sizes.
        example_input: `(samples, ...)`, a batch the model accepts, on its device.
        topology: says which connections exist; without it those that are not 0 do. Left as it is.
        optimizer: over the model's parameters; left as it is.
        fold_norms: also multiply each batch norm into the layer before it. Training cannot go on then.

    Returns:
        The network, and topology and optimizer carried over to it. Where the model cannot be read as a graph, each
        child that can be and that nothing reaches into from outside is compacted on its own, with all of its inputs
        and outputs, and the plan's notes say what stopped the rest. Who reaches where is seen on the inputs of the
        proof alone.

    Raises:
        AttachError: a lazy module has no weights yet.
        GraphError: the model does not run on the example, cannot be copied, is compiled by TorchScript, or something in
            it is called "training" or the like.
        NumericError: connections that do not exist have weights other than 0, or the proof failed.
        OptionError: the example is no tensor, `fold_norms` together with a topology or an optimizer, an optimizer of
            another model, or one whose state cannot be narrowed.
        ShapeError: the topology does not fit the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> _ = model[2].weight.data.copy_(torch.tensor([[1.0, 0.0, 2.0]]))
        >>> small = compact(model, torch.zeros(1, 2))
        >>> print(small.plan)
        removed 0: 1 units: nothing reads them
        >>> small.model[0], small.model[2]
        (Linear(in_features=2, out_features=2, bias=True), Linear(in_features=2, out_features=1, bias=True))
    """
    if not isinstance(example_input, Tensor):
        raise OptionError(
            f"example_input is a {type(example_input).__name__}: wanted one tensor, (samples, ...); wrap a model of "
            "other inputs in one whose forward makes them of a tensor"
        )
    model = unwrapped(model)
    require_weights(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise GraphError("TorchScript has compiled the model, and no part of it can be narrowed: compact it before")
    if fold_norms and (topology is not None or optimizer is not None):
        raise OptionError("fold_norms ends training: compact without topology and optimizer, or without fold_norms")
    if topology is not None:
        require_dead_weights_zero(model, topology)
    proof, copy = Proof(model, example_input), _copied(model)
    try:
        smaller = _narrowed(model, copy, example_input, topology, proof, fold_norms)
    except GraphError as error:
        smaller = _narrowed_in_parts(model, error, topology, proof, fold_norms)
    return Compacted(
        smaller.model,
        None if topology is None else narrowed_topology(topology, smaller.alive, smaller.cuts, smaller.model),
        None if optimizer is None else narrowed_optimizer(optimizer, model, smaller.model, smaller.cuts),
        smaller.plan,
        proof.error(smaller.model),
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception as error:  # a module may hold anything
        raise GraphError(
            f"{type(model).__name__} cannot be copied: {reason(error)}. compact works on a copy: take out of the model "
            "what copy.deepcopy does not take"
        ) from error


@dataclass(frozen=True)
class _Smaller:
    """A narrower copy of a model, with what was planned, which connections are left, and what was cut."""

    model: nn.Module
    plan: Plan
    alive: dict[str, Tensor]
    cuts: Cuts


def _narrowed(
    model: nn.Module, smaller: nn.Module, example: Tensor, topology: Topology | None, proof: Proof, fold_norms: bool
) -> _Smaller:
    """Narrow a copy of a model, in place where its forward holds no fixed sizes.

    Raises:
        GraphError: the model cannot be read, or what is left of it would not fit its forward in training mode.
        NumericError: the copy does not compute the same.
    """
    graph = read(smaller, example)
    plan, kept, alive = _plan(graph, example, topology)
    cuts = narrow(graph, kept)
    if not proof.holds(smaller):
        if isinstance(smaller, Part):
            raise GraphError("narrower, it does not compute the same; its forward may hold fixed sizes")
        smaller = patched(smaller, graph, kept, example)
        if not proof.holds(smaller):
            raise GraphError(f"narrower, {type(model).__name__} does not compute the same; it may hold fixed sizes")
    if cuts:
        require_fit_in_training(model, smaller, graph, example)
    if fold_norms:
        _fold_norms(smaller, example)
    proof.error(smaller)
    return _Smaller(smaller, plan, alive, cuts)


def _narrowed_in_parts(
    model: nn.Module, error: GraphError, topology: Topology | None, proof: Proof, fold_norms: bool
) -> _Smaller:
    """Return a copy of a model in which the largest children that can be are narrower, all by themselves."""
    whole, notes = _Smaller(deepcopy(model), Plan(), {}, {}), list[str]()
    try:
        parts = Parts(whole.model, proof.inputs)
    except Exception as refusal:  # a model may not bear to be watched
        why = f"nothing was removed: {stopped(error)}. Its parts cannot be told apart: {stopped(refusal)}"
        return _Smaller(deepcopy(model), Plan(notes=(why,)), {}, {})
    todo, seen = parts.below(""), {""}
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        why = parts.objection(name)
        if not why:
            try:
                whole = _with_part(whole, name, parts.examples[name], topology, proof, fold_norms)
                continue
            except (GraphError, NumericError) as refusal:
                why = stopped(refusal)
        if not parts.is_container(name):
            notes.append(f"{name!r} was not compacted as a whole: {why}")
        todo = parts.below(name) + todo
    done = "only parts of the model were compacted" if whole.plan.removed else "nothing was removed"
    return replace(whole, plan=replace(whole.plan, notes=(f"{done}: {stopped(error)}", *notes)))


def _with_part(
    whole: _Smaller, name: str, example: Tensor, topology: Topology | None, proof: Proof, fold_norms: bool
) -> _Smaller:
    """Return a copy in which one child is narrower between its inputs and its outputs.

    Raises:
        GraphError: the child cannot be read.
        NumericError: the child, or with it the model, does not compute the same.
    """
    trial = deepcopy(whole.model)
    before = Part(whole.model, name)
    found = _narrowed(before, Part(trial, name), example, topology, Proof(before, example), fold_norms)
    proof.error(trial)
    plan = Plan(whole.plan.removed + found.plan.removed, whole.plan.kept + found.plan.kept)
    if not found.cuts and not fold_norms:
        return replace(whole, plan=plan)
    return _Smaller(trial, plan, whole.alive | found.alive, whole.cuts | found.cuts)


def _plan(
    graph: Graph, example: Tensor, topology: Topology | None
) -> tuple[Plan, dict[str, Tensor], dict[str, Tensor]]:
    alive = _existing(graph, topology)
    constant = unfed(graph, alive)
    before = -1
    refused: dict[str, str] = {}
    while (now := sum(int(mask.sum()) for mask in alive.values())) != before:
        before, refused = now, fold_constants(graph, example, alive)
        constant = {name: known | constant[name] for name, known in unfed(graph, alive).items()}
    plan, kept = planned(graph, alive, constant, refused)
    return plan, kept, alive


def _existing(graph: Graph, topology: Topology | None) -> dict[str, Tensor]:
    masks = {} if topology is None else topology.masks
    found: dict[str, Tensor] = {}
    for node in graph.nodes:
        module = graph.module(node.module) if node.module is not None else None
        if node.is_layer and f"{node.module}.bias" in masks:
            found[f"{node.module}.bias"] = masks[f"{node.module}.bias"]
        part = "scale" if isinstance(module, Shortcut) else "weight"
        tensor = getattr(module, part, None)
        name = f"{node.module}.{part}"
        if isinstance(tensor, nn.Parameter) and (node.is_layer or isinstance(module, _NormBase | Shortcut)):
            if topology is None or name in masks:
                found[name] = existing(tensor.detach(), masks.get(name))
            else:
                found[name] = existing(torch.ones_like(tensor), None)
    return found


def require_dead_weights_zero(model: nn.Module, topology: Topology) -> None:
    """Raise `NumericError`, with the count, if connections that do not exist have weights other than 0."""
    counts = {
        name: int(((parameter.detach() != 0) & ~topology.masks[name]).sum())
        for name, parameter in topology.parameters(model)
    }
    if total := sum(counts.values()):
        where = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
        raise NumericError(
            f"{total} weights of connections that do not exist are not 0: {where}; call topology.apply(model) first"
        )


def _fold_norms(model: nn.Module, example: Tensor) -> None:
    graph = read(model, example)
    for layer, norm in norm_of(graph).items():
        one: Any = model.get_submodule(layer)
        other: Any = model.get_submodule(norm)
        if not isinstance(other, nn.modules.batchnorm._BatchNorm) or other.running_mean is None:
            continue
        scale = (other.get_buffer("running_var").double() + other.eps).rsqrt()
        scale = scale if other.weight is None else scale * other.weight.detach().double()
        axis = 1 if isinstance(one, nn.modules.conv._ConvTransposeNd) else 0
        if axis and one.groups > 1:
            continue
        shift = torch.zeros_like(scale) if one.bias is None else one.bias.detach().double()
        shift = (shift - other.running_mean.double()) * scale
        shift = shift if other.bias is None else shift + other.bias.detach().double()
        along = [-1 if k == axis else 1 for k in range(one.weight.dim())]
        dtype = one.weight.dtype
        one.weight = nn.Parameter((one.weight.detach().double() * scale.view(along)).to(dtype))
        one.bias = nn.Parameter(shift.to(dtype))
        for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is other]:
            model.set_submodule(name, nn.Identity())
