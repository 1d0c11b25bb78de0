"""Dead units: what dies with connections, to a fixpoint, without a change of what the network computes."""

import logging
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from synaptree.core.layer import KINDS, unwrapped
from synaptree.core.method import Site
from synaptree.graph.flow import needed
from synaptree.graph.node import Graph, GraphError, Node
from synaptree.graph.read import read, run
from synaptree.graph.residual import norm_of
from synaptree.graph.trace import undisturbed
from synaptree.graph.units import without_units

__all__ = ["cascade", "constant", "edit_with_dead_units", "graph_of"]

_log = logging.getLogger("synaptree")

def graph_of(model: nn.Module, inputs: list[Tensor]) -> Graph | None:
    """Return the graph of a model; None for a single layer, which has no hidden units.

    Args:
        model: any; left as it is.
        inputs: batches it accepts, of which the first sample is used.

    Raises:
        GraphError: the model cannot be read.
    """
    model = unwrapped(model)
    if isinstance(model, KINDS["linear"] + KINDS["conv"]):
        return None
    if not inputs:
        raise GraphError(f"{type(model).__name__} was not called with a tensor as its first argument")
    return read(model, inputs[0][:1].to(next(model.parameters()).device))


def edit_with_dead_units(on: Site, masks: Mapping[str, Tensor]) -> list[str]:
    """Edit the topology to `masks`, with a `cascade` where the model can be read as a graph.

    Args:
        on: where the edit takes place.
        masks: parameter name -> new mask.

    Returns:
        What could not be done, in sentences; the log says it too.
    """
    try:
        graph = graph_of(on.model, on.inputs)
    except GraphError as error:
        on.edit(masks)
        note = f"units that nothing reads any more stay: {error}"
        if note not in on.topology.notes:
            _log.warning(note)
        return [note]
    if graph is None:
        on.edit(masks)
    else:
        cascade(graph, on, masks)
    return []


@torch.no_grad()
def cascade(graph: Graph, on: Site, masks: Mapping[str, Tensor]) -> None:
    """Edit the topology to `masks` and take along the units that die with them, until nothing changes.

    - A unit that nothing reads any more loses its incoming connections, its bias and its batch norm.
    - A unit without incoming connections is the constant `f(b[i])`. Layers that read it take
      `w[j, i] f(b[i])` into their bias and lose that connection, where this is exact: not behind a batch
      norm, in a grouped convolution or one that pads with zeros, or without a bias to take it. What is 0
      needs no bias and no care for padding.
    - Where the method's connections are whole units, one that is gone loses its bias and its batch norm too.

    In eval mode the outputs stay as `masks` make them, up to rounding; the last case apart.

    Args:
        graph: of the model.
        on: where the edit takes place; only its layers are touched. Its first input is run through the model
            where there is a constant to tell, in eval mode, and the mode is put back.
        masks: parameter name -> new mask.
    """
    norms = norm_of(graph)
    while masks:
        on.edit(_without_unread(graph, on, masks, norms))
        masks = _folded(graph, on)


def constant(graph: Graph, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return which channels no longer depend on the input, since a layer before them has no connections for them.

    Args:
        graph: of the model.
        masks: parameter name -> mask, at any granularity; a missing one means all exist.

    Returns:
        Name of each node -> bool `(channels,)`. Batch norms end it, unless the channel's scale and shift are dead.

    Example:
        >>> graph = read(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.zeros(1, 2))
        >>> constant(graph, {"0.weight": torch.tensor([[True, False], [False, False]])})["_1"]
        tensor([False,  True])
    """
    found: dict[str, Tensor] = {}
    for node in graph.nodes:
        found[node.name] = torch.zeros(node.channels, dtype=torch.bool)
        if node.is_layer and f"{node.module}.weight" in masks:
            if not isinstance(graph.module(str(node.module)), _ConvTransposeNd):
                found[node.name] = ~masks[f"{node.module}.weight"].cpu().flatten(1).any(1)
        elif node.op == "norm" and {f"{node.module}.weight", f"{node.module}.bias"} <= masks.keys():
            found[node.name] = ~(masks[f"{node.module}.weight"] | masks[f"{node.module}.bias"]).cpu()
        elif node.op in ("pointwise", "add", "pool"):
            inputs = [found[name] for name in node.inputs]
            inputs = [known if len(known) == node.channels else known.all().expand(node.channels) for known in inputs]
            found[node.name] = torch.stack(inputs).all(0)
        elif node.op == "move":
            found[node.name] = _moved(node, found)
    return found


def _moved(node: Node, found: Mapping[str, Tensor]) -> Tensor:
    linked, varying = torch.zeros(2, node.channels, dtype=torch.bool).unbind()
    for name, (channel, origin) in zip(node.inputs, node.links, strict=True):
        linked[channel] = True
        varying[channel[~found[name][origin]]] = True
    return linked & ~varying


def _without_unread(
    graph: Graph, on: Site, masks: Mapping[str, Tensor], norms: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return `masks` without the units that they leave unread."""
    gone = {name: ~units for name, units in needed(graph, {**on.topology.masks, **masks}).items()}
    for layer in on.layers:
        mask = masks.get(layer.weight)
        if mask is not None and on.method.granularity[layer.kind] == "unit" and layer.name in gone:
            gone[layer.name] = gone[layer.name] | ~mask.flatten().cpu()
    touched = {layer.name: gone[layer.name] for layer in on.layers if layer.name in gone}
    cut = without_units(unwrapped(on.model), on.topology, touched, norms=norms)
    return {**cut, **{name: mask & cut.get(name, mask) for name, mask in masks.items()}}


def _folded(graph: Graph, on: Site) -> dict[str, Tensor]:
    """Take constant inputs of layers into their biases; return the masks without those inputs."""
    known, masks = constant(graph, on.topology.masks), {}
    weights = {layer.name: layer.weight for layer in on.layers}
    readers = [
        node for node in graph.nodes
        if node.is_layer and node.module in weights and graph.calls[str(node.module)] == 1
        and bool(_readable(graph, node, known, on.topology.masks[weights[str(node.module)]]).any())
    ]  # fmt: skip
    values: dict[str, Tensor] = {}
    if readers:
        model = unwrapped(on.model)
        with undisturbed(model, on.inputs[0]):
            keep = {node.inputs[0]: partial(_keep, values, node.inputs[0]) for node in readers}
            run(graph, on.inputs[0][:1], keep)
    for node in readers:
        name = weights[str(node.module)]
        mask = on.topology.masks[name]
        inputs = _readable(graph, node, known, mask).to(mask.device)
        if (taken := _take(graph, node, values[node.inputs[0]], inputs, on.topology.masks)).any():
            masks[name] = mask & ~taken.view(1, -1, *(1 for _ in mask.shape[2:]))
    return masks


def _keep(values: dict[str, Tensor], name: str, value: Tensor) -> None:
    values[name] = value.clone()  # a later operation may overwrite it


def _readable(graph: Graph, node: Node, known: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Return which inputs of a layer are constant, connected, and can be masked one by one."""
    source = graph[node.inputs[0]]
    axis = len(source.shape) - 1 if node.op == "linear" else 1
    if source.axis != axis or mask.shape[1] != source.channels:
        return torch.zeros(source.channels, dtype=torch.bool)
    return known[source.name] & mask.transpose(0, 1).flatten(1).any(1).cpu()


def _take(graph: Graph, node: Node, value: Tensor, inputs: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    """Add to a layer's bias what its constant `inputs` give; return those for which that was exact."""
    module = graph.module(str(node.module))
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    places = value.movedim(-1 if node.op == "linear" else 1, 0).flatten(1)
    constants = places[:, 0]
    exact = inputs & (places == constants.unsqueeze(1)).all(1) & constants.isfinite()
    if _pads_with_zeros(module):
        exact &= constants == 0
    given = weight.double().flatten(2).sum(2) if weight.dim() > 2 else weight.double()
    given = (given * constants.double()).masked_fill(~exact, 0.0)
    deaf = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    if bias is not None:
        deaf = ~masks.get(f"{node.module}.bias", deaf)
    exact &= ~given[deaf].any(0)
    if bias is not None:
        bias.add_(given[:, exact].sum(1).to(bias.dtype))
    return exact


def _pads_with_zeros(module: nn.Module) -> bool:
    if not isinstance(module, _ConvNd) or module.padding_mode != "zeros":
        return False
    return module.padding == "same" if isinstance(module.padding, str) else any(module.padding)
