"""NNrelief: each unit keeps the fewest inputs that carry a share alpha of its signal."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from synaptree.core.layer import KINDS, layers_of, unwrapped
from synaptree.core.method import Method, method
from synaptree.core.oneshot import Calibration
from synaptree.graph.flow import needed, seen
from synaptree.graph.node import Graph, GraphError
from synaptree.graph.read import read, run
from synaptree.graph.residual import Residual, norm_of, residual_sums
from synaptree.graph.shortcut import whole_shortcuts
from synaptree.graph.units import DeadNorm, without_units
from synaptree.rules.share import Share
from synaptree.signals.contribution import Aggregate, contribution, reductions

__all__ = ["nnrelief"]

_log = logging.getLogger("synaptree")


@method
def nnrelief(
    alpha_conv: float = 0.95,
    alpha_fc: float = 0.95,
    conv_aggregate: Aggregate = "norm_of_mean",
    keep_rule: Literal["paper", "released"] = "paper",
    residual_rule: bool = True,
    backward_sweep: bool = True,
    prune_stem: bool = True,
    mask_shortcut_in_scoring: bool = True,
    dead_bn: DeadNorm = "zero",
) -> Method:
    """Each unit keeps the fewest inputs that carry a share alpha of its mean absolute signal.

    Rule: with `x` the input of a layer and `<.>` the mean over calibration samples, input `i` contributes
    `c[j, i] = |w[j, i]| <|x[i]|>` to unit `j` of a linear layer and `c[j, i] = || |K[j, i]| * <|x[i]|> ||`
    to filter `j` of a convolution (`*` is the layer's own convolution, `K[j, i]` a kernel); the bias
    contributes `|b[j]|`, times the square root of the map's positions. Sorted in descending order, unit
    `j` keeps the first `p = min { p : c_1 + ... + c_p >= alpha * sum(c) }` and loses the rest. Then:

    - where a branch `A` and a shortcut `R` are added, channel `k` of the branch goes if
      `A_k < (1 - alpha_conv) (A_k + R_k)`, and channel `k` of the shortcut in the reverse case;
    - a unit that gave only zeros loses its inputs, bias and batch norm; so does, from the output back, a
      unit that nothing reads any more.

    Convolutions are scored first, all on the network as it is; linear layers then, on what the pruned
    convolutions give. Calls add up: shares are taken over what is left, so each call prunes further.

    Args:
        alpha_conv: share in (0, 1] for kernels of convolutions, and for residual sums.
        alpha_fc: share in (0, 1] for weights of linear layers.
        conv_aggregate: how a map becomes a number: "norm_of_mean" as above; "mean_of_norm" takes the
            norm for each sample and then the mean; "l1" sums instead of taking the 2-norm.
        keep_rule: "paper" as above, ties to the lowest index; "released" as in the published code, which
            drops everything not above the `(p + 1)`-th largest, and the smallest where all are needed.
        residual_rule: whether residual sums are cut.
        backward_sweep: whether units that nothing reads lose their inputs.
        prune_stem: whether the first convolution is pruned.
        mask_shortcut_in_scoring: whether shortcut channels cut in earlier rounds stay cut while scoring.
        dead_bn: what becomes of a dead unit's batch norm: "zero" keeps scale and shift at 0; "released"
            sets them and the statistics to 0 once, and training may revive them.

    When to use it: a trained network and some hundred unlabelled samples are at hand, and rounds of
    retraining are affordable. When not: for speed by whole filters alone; without retraining.
    Paper: Dekhovich, Tax, Sluiter, Bessa, Machine Learning 113:2597-2618 (2024), arXiv 2109.10795, section 3.
    Differs: the paper's tables are not known to us and nothing here reproduces them. By default the
    aggregate is the published code's, the selection the paper's. Units with one contributor are exempt.
    The stem is pruned, and masked batch norms stay masked, unlike in the published code. Grouped
    convolutions are scored within the group. The channel cut of a shortcut needs a `Shortcut` module,
    as the zoo's networks have; `surgery.expose_shortcuts` puts them into others. Sums of linear layers
    are cut with `alpha_fc`.
    """
    alphas = {"conv": alpha_conv, "linear": alpha_fc}
    relief = _Relief(
        alphas, conv_aggregate, residual_rule, backward_sweep, prune_stem, mask_shortcut_in_scoring, dead_bn
    )
    return Method(
        Share(alphas, keep_rule),
        {"contribution": contribution(conv_aggregate)},
        granularity={"linear": "weight", "conv": "kernel"},
        biases=True,
        edit=relief,
    )


@dataclass(frozen=True)
class _Relief:
    """One pass over a network."""

    alphas: Mapping[str, float]
    aggregate: Aggregate
    residual_rule: bool
    backward_sweep: bool
    prune_stem: bool
    mask_shortcut: bool
    dead_bn: DeadNorm

    def __call__(self, on: Calibration) -> None:
        graph = _graph(on)
        norms = norm_of(graph) if graph else {}
        spared = None if self.prune_stem else _stem(on, graph)
        layers = [layer for layer in on.layers if layer.name != spared]
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
        collect = reductions(self.aggregate if kind == "conv" else "norm_of_mean")
        with nullcontext() if self.mask_shortcut else whole_shortcuts(on.model):
            stats = on.observe(collect, forward)
        stats |= {name: {"mean_abs": totals[node]} for name, node in shortcuts.items()}
        # a norm over positions: the mean over samples would only scale both sides of the comparison
        return stats, {name: totals[name].reshape(len(totals[name]), -1).norm(dim=1) for name in operands}


def _stem(on: Calibration, graph: Graph | None) -> str | None:
    """Return the name of the convolution that runs first; without a graph, of the one named first."""
    if graph:
        return next((node.module for node in graph.nodes if node.op == "conv"), None)
    return next((layer.name for layer in layers_of(on.model) if layer.kind == "conv"), None)


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
