"""Dynamic synaptic pruning: connections that are inactive or weakly active again and again die while training."""

from dataclasses import dataclass
from typing import Literal

import torch

from synaptree.core.errors import OptionError
from synaptree.core.layer import layers_of
from synaptree.core.method import Method, Site, method
from synaptree.graph.cascade import edit_with_dead_units
from synaptree.rules.patience import Patience
from synaptree.signals.activity import Criterion, Flow, Scope, Weak, Windows, consecutive, survival

__all__ = ["dynamic_synaptic"]


@method
def dynamic_synaptic(
    alpha: float = 0.5,
    patience: int = 5,
    every: int = 430,
    first: int = 1290,
    last: int | None = None,
    criterion: Criterion = "contrib",
    threshold_scope: Scope = "layer",
    inactive_eps: float = 0.0,
    patience_rule: Literal["consecutive", "leaky"] = "consecutive",
    count_from: Literal["first", "second"] = "first",
    penalty: float = 1.5,
    bonus: float = 2.0,
    survival_start: float = 10.0,
    tau: int = 13,
    weaken: float = 1.0,
    first_layer_activity: Literal["abs", "abs_minus_min"] = "abs",
    conv: Literal["weight", "kernel", "unit"] | None = None,
    prune_output: bool = False,
    floor: int = 1,
    guard: float = 0.01,
    cascade: bool = True,
) -> Method:
    """Cut the connections that were inactive or weakly active in several windows of training in a row.

    Rule: over a window of `every` updates input `i` of a layer has the mean activity `a[i] = <|x[i]|>`, and
    connection `i -> j` carries `S[j, i] = |w[j, i]| a[i]`. It is weak if `S[j, i] <= alpha mu`, where `mu` is
    the mean of `S` over the layer's existing connections. A connection that was weak in `patience` windows
    in a row dies for good; one window in which it was not starts the count anew. Of each unit the `floor`
    connections that carry most stay. With `patience_rule = "leaky"` a survival score decides instead:

        u = clip((S - min S) / (quartile S - min S), 0, 1);  delta = 2 u - penalty;  delta += bonus if delta > 0
        R = 0.999 R + delta exp(-floor(e / tau)), from survival_start at window e = 0; it dies at R <= 0

    Then units die by consequence: one that nothing reads loses its connections and its bias; one without
    inputs is a constant, which the layers that read it take into their biases where this is exact.

    Args:
        alpha: at least 0; 0 cuts what carries exactly nothing. From about 1 on layers die.
        patience: windows in a row, 1 to 254; "consecutive" only, as are `alpha`, `threshold_scope`,
            `inactive_eps`, `count_from` and `weaken`.
        every: updates in a window; 430 are an epoch of 55,000 samples in batches of 128.
        first: updates before the first window.
        last: updates after which nothing is cut any more, or None.
        criterion: "contrib" as above; "pre" `a[i]`; "mag" `|w|`; "pre_post" `a[i]` times the mean of
            `|y[j]|` of the unit before its activation function; "trend", the growth of `|w|` over the window;
            "gradient", the sum of `|dL/dw|`.
        threshold_scope: "layer" as above; "post", the mean of the receiving unit; "percentile", the share
            `alpha` that carries least; "absolute", `alpha` itself.
        inactive_eps: mean activity up to which an input counts as silent, and what it feeds as weak.
        patience_rule: "consecutive" or "leaky".
        count_from: "first": the first weak window counts; "second": only those after it.
        penalty: above 0; what a window costs; "leaky" only, as are the next three.
        bonus: at least 0; what a strong window gives beside.
        survival_start: above 0.
        tau: windows in which changes fall to an e-th, at least 1.
        weaken: in (0, 1]; weak weights are multiplied by it after each window.
        first_layer_activity: "abs", or "abs_minus_min" for `x - min(x)` of the batch in the layer that the
            model names first; on a topology that has masks already from its second window on.
        conv: granularity in convolutions, with `a` a mean over positions too; None leaves them alone.
        prune_output: whether the last linear layer is pruned too. If not, it loses only what dead units gave it.
        floor: connections that each unit keeps, unless it dies by consequence; none where filters die whole.
        guard: share in [0, 1) of a layer's connections; a cut that leaves fewer is not made, and the layer is
            left alone from then on, which the log and the topology's notes say. 0 allows every cut.
        cascade: whether units die by consequence.

    When to use it: training from scratch, with fully connected layers that are larger than need be.
    When not: a trained network exists; or inputs are standardized: blank pixels then look active, unless
    `first_layer_activity` says otherwise.
    Paper: Zhao and Zeng 2021 (Frontiers in Systems Neuroscience 15:620558); the leaky rule follows DPAP, Han,
    Zhao, Zeng and Shen 2024 (2211.12714), with `S` as its signal; filters there have 0.65, 5, 10 and 12.
    Differs: of the paper we know the abstract; the formulas, thresholds and defaults are our reading, and no
    table of it is reproduced. Convolutions, guard, floor and cascade are ours.
    """
    if not 0.0 < weaken <= 1.0 or (weaken < 1.0 and patience_rule == "leaky"):
        raise OptionError(f"weaken = {weaken!r}: wanted a factor above 0 and at most 1, and 1 with the leaky rule")
    windows, flow = Windows(every, first, last), Flow(criterion, first_layer_activity == "abs_minus_min")
    if patience_rule == "leaky":
        life = survival(flow, windows, penalty=penalty, bonus=bonus, start=survival_start, tau=tau)
    else:
        weak = Weak(alpha, threshold_scope)
        life = consecutive(flow, windows, weak, patience, inactive_eps=inactive_eps, count_from=count_from)
    return Method(
        Patience({"linear": floor, "conv": floor if conv != "unit" else 0}, guard),
        {"life": life},
        when=windows,
        granularity={"linear": "weight"} if conv is None else {"linear": "weight", "conv": conv},
        biases=True,  # those of dead units die
        edit=_Pruning(weaken, prune_output, cascade, flow.from_minimum),
        start=_shift if flow.from_minimum else None,
    )


@dataclass(frozen=True)
class _Pruning:
    """What happens at the end of a window."""

    weaken: float
    output: bool
    cascade: bool
    shift: bool

    def __call__(self, on: Site) -> None:
        memory = {layer: on.topology.state[f"life/{layer.weight}"] for layer in on.layers}
        spared = [] if self.output else [la.name for la in layers_of(on.model) if la.kind == "linear"][-1:]
        layers = [layer for layer in on.layers if layer.name not in spared and "stopped" not in memory[layer]]
        masks = on.masks(layers)
        for layer in layers:
            if layer.weight not in masks and layer.module.weight.requires_grad:  # the guard held the cut back
                memory[layer]["stopped"] = torch.tensor(True)
        notes = [f"{la.weight}: no longer pruned: too little would be left" for la in memory if "stopped" in memory[la]]
        cut = any((on.topology.masks[name] & ~mask).any() for name, mask in masks.items())
        if cut and self.cascade:
            notes += edit_with_dead_units(on, masks)
        elif cut:
            on.edit(masks)
        on.topology.notes = notes
        for layer in layers if self.weaken < 1 else ():
            layer.module.weight.mul_(torch.where(memory[layer]["memory"] > 0, self.weaken, 1.0))
        if self.shift:
            _shift(on)


def _shift(on: Site) -> None:
    first = on.topology.state.get(f"life/{layers_of(on.model)[0].weight}")
    if first is not None:
        first["from_minimum"] = torch.tensor(True)
