"""SET: the smallest weights of either sign go, as many random connections come."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from synaptree.core.attach import Attached
from synaptree.core.method import Method, method
from synaptree.core.schedule import Every
from synaptree.core.signal import View, at_granularity, noise, stateless
from synaptree.rules.allocate import allocation, check_density
from synaptree.rules.density import Density
from synaptree.rules.seed import SeedWeight, normal, sparse_start

__all__ = ["set"]


@method
def set(
    density: float = 0.1,
    zeta: float = 0.3,
    every: int = 430,
    last: int | None = None,
    allocate: str | Mapping[str, float] = "erdos_renyi",
    seed_weight: SeedWeight = "given",
    new_weight: Literal["zero", "gauss"] = "zero",
    conv: str = "weight",
) -> Method:
    """Exchange the smallest weights of either sign for random connections, at a constant density.

    Rule: attached to a network without a topology, it leaves random connections of `density`, shared out by
    `allocate`. Every `every` updates each layer with `n` connections loses `round(zeta n)`: of the positive
    weights and of the negative ones the same share, the smallest `|w|` first. As many are drawn uniformly among the
    connections that then do not exist, and start at 0.

    Args:
        density: share in [0, 1] of all connections that exist, at every time. With "erdos_renyi" and no full
            layer it is the paper's `epsilon = density * connections / sum(n_in + n_out)`.
        zeta: share in [0, 1] of the connections that is exchanged.
        every: updates between two exchanges; 430 are an epoch of 55,000 samples in batches of 128.
        last: updates after which nothing is exchanged, or None.
        allocate: "uniform", "erdos_renyi", "global", or a table layer -> density.
        seed_weight: "given" leaves what the model was made with; "he" draws weights anew from
            `N(0, 2 / active inputs of the unit)` and sets biases to 0.
        new_weight: "zero", or "gauss" for `N(0, 1) / 10`.
        conv: granularity in convolutions: "weight", or "kernel" or "unit", which have a norm and no sign.

    When to use it: as the control of every method that chooses where to grow. When not: dense gradients are
    affordable; `rigl` grows by them.
    Paper: Mocanu et al. 2018 (1707.04780).
    Differs: an exact count goes and comes, both signs within one connection of the same share. A connection
    that goes and is drawn again at once keeps its weight. The output layer is sparse too (else `exclude`).
    The published code has new weights of 0 (Keras) or `N(0, 1) / 10` (sparse matrices).
    """
    shared = allocation(allocate)
    return Method(
        Density(density, shared, grow="grow", turnover=check_density(zeta, "zeta")),
        {"keep": _rank_within_sign, "grow": noise},
        when=Every(every, 1, last),
        granularity={"linear": "weight", "conv": conv},
        edit=_with_weights if new_weight == "gauss" else None,
        start=sparse_start(density, shared, seed_weight),
    )


def _rank(view: View) -> Tensor:
    """Return for each connection the share of those of its sign that are smaller, and half of itself; 0 for zeros."""
    size = at_granularity(view.weight, view.mask)
    if size.isnan().any():
        return size.double()  # the rule says what is wrong
    weight = view.weight if view.weight.shape == view.mask.shape else size
    rank = torch.zeros(view.mask.shape, dtype=torch.float64, device=size.device)
    for side in (weight > 0, weight < 0):
        these = (side & view.mask).flatten().nonzero().squeeze(1)
        order = size.flatten()[these].argsort(descending=True, stable=True)
        smaller = torch.arange(len(these) - 1, -1, -1, dtype=torch.float64, device=size.device)
        rank.view(-1)[these[order]] = (smaller + 0.5) / max(1, len(these))
    return rank


_rank_within_sign = stateless(_rank)


def _with_weights(on: Attached) -> None:
    """Exchange, and draw the weights of the newborn."""
    born = on.edit(on.masks()).born
    for layer in on.layers:
        weight = layer.module.weight
        weight += normal(born[layer.weight].expand_as(weight), on.topology.rng) / 10
