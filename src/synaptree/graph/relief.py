"""One pass of NNrelief over a network, beyond the layers themselves: residual sums, dead units, the stem."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from synaptree.core.errors import DataError
from synaptree.core.layer import KINDS, layers_of, modules_of, parameters_of, unwrapped
from synaptree.core.oneshot import Calibration
from synaptree.core.probe import Reduction
from synaptree.graph.flow import needed, seen
from synaptree.graph.node import Graph, GraphError
from synaptree.graph.read import read, run, used_by_functions
from synaptree.graph.residual import Residual, norm_of, residual_sums
from synaptree.graph.shortcut import whole_shortcuts
from synaptree.graph.units import DeadNorm, without_units

__all__ = ["Relief"]

_log = logging.getLogger("synaptree")


@dataclass(frozen=True)
class Relief:
    """One pass of NNrelief over a network: layers, residual sums, and the units that die with them.

    Args:
        alphas: kind of layer -> share in (0, 1] that is kept; of residual sums too.
        collect: kind of layer -> what probes must collect of the input of such layers.
        residual_rule: whether residual sums are cut.
        backward_sweep: whether units that nothing reads lose their inputs.
        prune_stem: whether the convolution that runs first is pruned.
        mask_shortcut: whether shortcut channels that are cut stay cut while the network is looked at.
        dead_bn: what becomes of a dead unit's batch norm, see `graph.units.without_units`.
    """

    alphas: Mapping[str, float]
    collect: Callable[[str], Mapping[str, Reduction]]
    residual_rule: bool
    backward_sweep: bool
    prune_stem: bool
    mask_shortcut: bool
    dead_bn: DeadNorm

    def __call__(self, on: Calibration) -> None:
        """Edit the topology of `on` layer kind by layer kind, convolutions first."""
        graph = _graph(on)
        norms = norm_of(graph) if graph else {}
        _say_what_is_no_layers(on)
        spared = _shared(on, graph) | (set() if self.prune_stem else {_stem(on, graph)})
        layers = [layer for layer in on.layers if layer.name not in spared]
        kinds = {layer.name: layer.kind for layer in layers}
        phases = [kind for kind in ("conv", "linear") if kind in kinds.values()]
        if graph and phases:
            kinds |= {str(node.module): phases[0] for node in graph.nodes if node.op == "shortcut"}
        residuals = _residuals(on, graph) if graph and self.residual_rule else []
        clear = partial(without_units, unwrapped(on.model), on.topology, dead_norm=self.dead_bn)
        for kind in phases:
            sums = [r for r in residuals if kinds.get(str(r.layer), phases[0]) == kind]
            stats, sizes = self._observe(on, graph, sums, kind)
            chosen = [layer for layer in layers if layer.kind == kind]
            if idle := [layer.name or "the model itself" for layer in chosen if not stats[layer.name]]:
                _note(on, f"left alone, since nothing flows through them: {', '.join(idle)}")
            on.edit(on.masks([layer for layer in chosen if stats[layer.name]], stats))
            if graph:
                dead = {name: ~units for name, units in seen(graph, _nonzero(stats)).items() if kinds.get(name) == kind}
                on.edit(clear(dead, norms=norms))
                outweighed = _outweighed(sums, sizes, 1 - self.alphas[kind], kinds)
                on.edit(clear(outweighed, norms=norms if self.dead_bn == "zero" else {}))
        if graph and self.backward_sweep:
            unread = {name: ~units for name, units in needed(graph, on.topology.masks).items() if name in kinds}
            on.edit(clear(unread, norms=norms))

    def _observe(
        self, on: Calibration, graph: Graph | None, sums: list[Residual], kind: str
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Return the statistics of the input of each layer and `Shortcut`, and of each operand of a sum the sizes."""
        totals: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            totals[name] = totals.get(name, 0) + value.abs().sum(0, dtype=torch.float64)

        shortcuts = {str(node.module): node.inputs[0] for node in graph.nodes if node.op == "shortcut"} if graph else {}
        operands = {name for r in sums for name in (r.branch, r.skip)}
        watch = {name: partial(add, name) for name in operands.union(shortcuts.values())}
        forward = partial(run, graph, watch=watch) if graph else None
        with nullcontext() if self.mask_shortcut else whole_shortcuts(on.model):
            stats = on.observe(self.collect(kind), forward)
        _require_samples(on, stats)
        stats |= {name: {"mean_abs": totals[node]} for name, node in shortcuts.items()}
        totals = on.ranks.add_up({"operands": totals})["operands"]
        # a norm over positions: the mean over samples would only scale both sides of the comparison
        return stats, {name: totals[name].reshape(len(totals[name]), -1).norm(dim=1) for name in operands}


def _say_what_is_no_layers(on: Calibration) -> None:
    layers = {id(layer.module.weight) for layer in layers_of(on.model)}
    others = [name for name, p in parameters_of(on.model).items() if p.dim() > 1 and id(p) not in layers]
    if others:
        _note(on, f"left alone, since they are no linear layer's and no convolution's: {', '.join(others)}")


def _shared(on: Calibration, graph: Graph | None) -> set[str | None]:
    """Return the names of the layers whose weight or bias another module or a function uses too."""
    holders = Counter(id(p) for module in {m for _, m in modules_of(on.model)} for p in module._parameters.values())
    by_functions = {id(p) for p in used_by_functions(graph)} if graph else set()

    def is_shared(parameter: Tensor | None) -> bool:
        return parameter is not None and (holders[id(parameter)] > 1 or id(parameter) in by_functions)

    shared = [layer.name for layer in on.layers if is_shared(layer.module.weight) or is_shared(layer.module.bias)]
    if shared:
        _note(on, f"left alone, since something else uses their weights too: {', '.join(shared)}")
    return set(shared)


def _stem(on: Calibration, graph: Graph | None) -> str | None:
    """Return the name of the convolution that runs first; without a graph, of the one named first."""
    if graph:
        return next((node.module for node in graph.nodes if node.op == "conv"), None)
    return next((layer.name for layer in layers_of(on.model) if layer.kind == "conv"), None)


def _require_samples(on: Calibration, stats: Mapping[str, Mapping[str, Tensor]]) -> None:
    for layer in on.layers:
        axes = layer.module.weight.dim() - 1
        if stats[layer.name] and stats[layer.name]["mean_abs"].dim() != axes:
            raise DataError(
                f"layer {layer.name}: what flows into it has no axis of samples; give batches of shape (samples, ...), "
                f"of which the layer gets {axes + 1} axes"
            )


def _graph(on: Calibration) -> Graph | None:
    model = unwrapped(on.model)
    if isinstance(model, KINDS["linear"] + KINDS["conv"]):
        return None  # a single layer, whose units are the outputs: nothing to sweep
    try:
        return read(model, on.inputs[0][:1].to(next(model.parameters()).device))
    except GraphError as error:
        on.observe({})  # raises an error if it is the data that the model does not take
        _note(on, f"pruned without dead-unit sweeps and without the rule for residual sums: {error}")
        return None


def _residuals(on: Calibration, graph: Graph) -> list[Residual]:
    found = list(residual_sums(graph))
    if hidden := [r.add for r in found if r.shortcut is None and not r.projection]:
        _note(
            on,
            f"the shortcuts of {len(hidden)} residual sums ({', '.join(hidden)}) cannot be cut: they are no Shortcut "
            "modules; synaptree.surgery.expose_shortcuts makes them so",
        )
    return [r for r in found if graph[r.add].axis == 1]


def _nonzero(stats: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return which input channels of each layer were ever not zero."""
    means = {name: stat["mean_abs"] for name, stat in stats.items() if stat}
    return {name: mean.flatten(1).any(1) if mean.dim() > 1 else mean > 0 for name, mean in means.items()}


def _outweighed(
    sums: list[Residual], sizes: Mapping[str, Tensor], beta: float, kinds: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the channels that carry less than the share `beta` of a residual sum, on either side of it."""
    gone: dict[str, Tensor] = {}
    for r in sums:
        branch, skip = sizes[r.branch], sizes[r.skip]
        if r.layer in kinds:
            gone[str(r.layer)] = branch < beta * (branch + skip)
        if r.shortcut in kinds:
            gone[str(r.shortcut)] = skip < beta * (branch + skip)
    return gone


def _note(on: Calibration, text: str) -> None:
    _log.warning("nnrelief: %s", text)
    on.topology.notes.append(text)
