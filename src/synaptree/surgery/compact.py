"""Exact compaction: a sparse network as a smaller dense-shaped one that computes the same."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from synaptree.core.errors import NumericError, OptionError
from synaptree.core.layer import unwrapped
from synaptree.core.topology import Topology
from synaptree.graph.node import Graph, GraphError
from synaptree.graph.read import read
from synaptree.graph.residual import norm_of
from synaptree.graph.shortcut import Shortcut
from synaptree.graph.trace import reason, undisturbed
from synaptree.surgery.fold import fold_constants, unfed
from synaptree.surgery.narrow import Cuts, narrow, narrowed_optimizer, narrowed_topology, patched
from synaptree.surgery.plan import Plan, existing, planned

__all__ = ["Compacted", "compact"]


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
    behind, where that is exact at every place; otherwise the unit stays. In eval mode the outputs are equal up
    to rounding, which is checked on `example_input` and on random inputs of its shape. In training mode a
    batch norm gives its shift for a constant, so that what was folded from behind one may differ there.

    Args:
        model: any module with one input; left as it is. The result is a copy of it with narrower layers, or a
            traced one where its forward holds fixed sizes.
        example_input: `(samples, ...)`, a batch the model accepts, on its device.
        topology: says which connections exist; without it those that are not 0 do. Left as it is.
        optimizer: over the model's parameters; left as it is.
        fold_norms: also multiply each batch norm into the layer before it. Training cannot go on then.

    Returns:
        The network, and topology and optimizer carried over to it. A model that cannot be read as a graph
        comes back as a plain copy, and the plan's notes say what stopped it.

    Raises:
        GraphError: the model does not run on the example.
        NumericError: connections that do not exist have weights other than 0, or the proof failed.
        OptionError: `fold_norms` together with a topology or an optimizer, an optimizer of another model, or one
            whose state cannot be narrowed.
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
    model = unwrapped(model)
    if fold_norms and (topology is not None or optimizer is not None):
        raise OptionError("fold_norms ends training: compact without topology and optimizer, or without fold_norms")
    if topology is not None:
        _require_dead_weights_zero(model, topology)
    try:
        wanted = _proof_outputs(model, example_input)
    except (RuntimeError, ValueError) as error:
        shape = tuple(example_input.shape)
        raise GraphError(f"the model does not run on an example of shape {shape}: {reason(error)}") from error
    smaller, plan, alive, cuts = _compacted(model, example_input, topology, wanted)
    if fold_norms and not plan.notes:
        _fold_norms(smaller, example_input)
    return Compacted(
        smaller,
        None if topology is None else narrowed_topology(topology, alive, cuts, smaller),
        None if optimizer is None else narrowed_optimizer(optimizer, model, smaller, cuts),
        plan,
        _proved(_ran(smaller, example_input), wanted),
    )


def _compacted(
    model: nn.Module, example: Tensor, topology: Topology | None, wanted: list[Tensor]
) -> tuple[nn.Module, Plan, dict[str, Tensor], Cuts]:
    smaller = deepcopy(model)
    try:
        graph = read(smaller, example)
        plan, kept, alive = _plan(graph, example, topology)
        cuts = narrow(graph, kept)
        if not _repeats(smaller, example, wanted):
            smaller = patched(smaller, graph, kept, example)
    except GraphError as error:
        return deepcopy(model), Plan(notes=(f"nothing was removed: {error}",)), {}, {}
    return smaller, plan, alive, cuts


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


def _require_dead_weights_zero(model: nn.Module, topology: Topology) -> None:
    counts = {
        name: int(((parameter.detach() != 0) & ~topology.masks[name]).sum())
        for name, parameter in topology.parameters(model)
    }
    if total := sum(counts.values()):
        where = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
        raise NumericError(
            f"{total} weights of connections that do not exist are not 0: {where}; call topology.apply(model) first"
        )


def _proof_outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    """Return every output tensor on the example and on random inputs of its shape, in eval mode."""
    inputs = [example]
    if example.is_floating_point():
        rng = torch.Generator().manual_seed(0)
        inputs.append(torch.randn(example.shape, generator=rng).to(example.device, example.dtype))
    with undisturbed(model, example):
        return [leaf.clone() for x in inputs for leaf in tree_leaves(model(x.clone())) if isinstance(leaf, Tensor)]


def _ran(model: nn.Module, example: Tensor) -> list[Tensor]:
    try:
        return _proof_outputs(model, example)
    except (RuntimeError, ValueError) as error:
        raise NumericError(f"the compacted model does not run, nothing is returned: {reason(error)}") from error


def _repeats(model: nn.Module, example: Tensor, wanted: list[Tensor]) -> bool:
    try:
        _proved(_ran(model, example), wanted)
    except NumericError:
        return False
    return True


def _proved(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest difference.

    Raises:
        NumericError: it is beyond rounding.
    """
    shapes = [[tuple(leaf.shape) for leaf in leaves] for leaves in (got, wanted)]
    if shapes[0] != shapes[1]:
        raise NumericError(f"the compacted model gives outputs of shapes {shapes[0]}, wanted {shapes[1]}")
    largest = 0.0
    for one, other in zip(got, wanted, strict=True):
        error, scale = (torch.nan_to_num(part.double()).abs().max().item() for part in (one - other, other))
        resolution = torch.finfo(other.dtype).eps if other.is_floating_point() else 0.0
        if error > 1000 * resolution * max(1.0, scale) or not one.isfinite().equal(other.isfinite()):
            raise NumericError(
                f"the compacted model's outputs of shape {tuple(one.shape)} differ by up to {error:.3g} from the "
                f"model's, of size up to {scale:.3g}; nothing is returned"
            )
        largest = max(largest, error)
    return largest


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
        model.set_submodule(norm, nn.Identity())
