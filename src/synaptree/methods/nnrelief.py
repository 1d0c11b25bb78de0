"""NNrelief: each unit keeps the fewest inputs that carry a share alpha of its signal."""

from typing import Literal

from synaptree.core.method import Method, method
from synaptree.graph.relief import Relief
from synaptree.graph.units import DeadNorm
from synaptree.rules.share import Share
from synaptree.signals.contribution import Aggregate, contribution, reductions

__all__ = ["nnrelief"]


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
    collect = {"conv": reductions(conv_aggregate), "linear": reductions("norm_of_mean")}
    relief = Relief(
        alphas, collect.__getitem__, residual_rule, backward_sweep, prune_stem, mask_shortcut_in_scoring, dead_bn
    )
    return Method(
        Share(alphas, keep_rule),
        {"contribution": contribution(conv_aggregate)},
        granularity={"linear": "weight", "conv": "kernel"},
        biases=True,
        edit=relief,
    )
