"""Wanda: each unit keeps the weights that are large and meet large inputs."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from synaptree.core.errors import AttachError
from synaptree.core.layer import Layer
from synaptree.core.method import Method, method
from synaptree.core.signal import Signal, State, View, at_granularity
from synaptree.rules.allocate import allocation
from synaptree.rules.blocks import Rows
from synaptree.rules.density import Density

__all__ = ["wanda"]


@method
def wanda(
    density: float = 0.5,
    allocate: str | Mapping[str, float] = "uniform",
    conv: Literal["weight", "kernel"] = "weight",
) -> Method:
    """Each unit keeps the connections with the largest product of weight and size of the input, all at once.

    Rule: with `x[i]` the input `i` of a layer over the calibration data, connection `(j, i)` scores
    `|w[j, i]| ||x[i]||_2`. Every unit `j` of a layer keeps the same number with the largest scores: the whole part of
    what the layer gets by `density` and `allocate`, divided by its units. In a convolution `x[i]` is the
    whole input map `i`: the norm is over samples and positions. Biases stay, no weight is changed.

    Args:
        density: share in [0, 1] of all connections that stay; rounded down to equal counts per unit.
        allocate: "uniform" as in the paper, "erdos_renyi", or a table layer -> density.
        conv: granularity in convolutions: "weight", or "kernel", ranked by the Frobenius norm of its scores.

    When to use it: a trained network is pruned to a moderate density and cannot be retrained. When not:
    rounds of retraining are affordable; then `nnrelief`, which weighs inputs too, may stop at each unit's own count.
    Paper: Sun et al. 2023 (2306.11695), equation 1 and section 3.
    Differs: all layers are scored on the network as it is, while the paper goes on from block to block on
    what the pruned ones give. Convolutions are our extension. The published code rounds in favour of keeping.
    """
    return Method(
        Density(density, allocation(allocate), structure=Rows()),
        {"keep": Signal(_score, needs=frozenset({"data"}), watch={"square": _sum_of_squares})},
        granularity={"linear": "weight", "conv": conv},
    )


def _sum_of_squares(layer: Layer, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    """Return the sum of `x[i]^2` over samples and positions: `(in,)`."""
    x = x.double()
    return x.reshape(-1, x.shape[-1]).square().sum(0) if layer.kind == "linear" else x.square().flatten(2).sum((0, 2))


def _score(state: State, view: View) -> Tensor:  # noqa: ARG001
    if "square" not in view.stats:
        raise AttachError(f"layer {view.layer.name!r}: nothing flows through it, so wanda cannot score it; exclude it")
    groups, units = getattr(view.layer.module, "groups", 1), len(view.weight)
    norms = view.stats["square"].sqrt().view(groups, -1).repeat_interleave(units // groups, 0)
    sizes = norms.view(*norms.shape, *[1] * (view.weight.dim() - 2))
    return at_granularity(view.weight * sizes.to(view.weight), view.mask)
