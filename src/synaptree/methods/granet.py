"""GraNet: gradual pruning that lets connections grow again after each cut."""

from collections.abc import Mapping

from synaptree.core.errors import OptionError
from synaptree.core.method import Method, method
from synaptree.core.schedule import Cosine, Cubic, Every
from synaptree.core.signal import gradient, magnitude
from synaptree.rules.allocate import allocation, check_density
from synaptree.rules.density import Density
from synaptree.rules.seed import SeedWeight, sparse_start

__all__ = ["granet"]


@method
def granet(
    density: float = 0.1,
    initial: float = 0.5,
    first: int = 0,
    last: int = 1000,
    every: int = 100,
    swap: float = 0.5,
    swap_last: int | None = None,
    allocate: str | Mapping[str, float] = "erdos_renyi",
    seed_weight: SeedWeight = "given",
    conv: str = "weight",
) -> Method:
    """Cut the smallest weights of the network little by little, and swap some of the rest after each cut.

    Rule: attached to a network without a topology, it leaves random connections of the density `initial`,
    shared out by `allocate`. Every `every` updates the smallest `|w|` of all layers together go until the
    density is `d + (initial - d) (1 - (step - first) / (last - first))^3`, with `d = density`. Then each layer
    with `n` connections left loses the `round(f n)` with the smallest `|w|`, `f = swap / 2
    (1 + cos(pi step / swap_last))`, and gets as many where `|dL/dw|` is largest; new ones start at 0.

    Args:
        density: share in [0, 1] of all connections that exist in the end.
        initial: share in [density, 1] that exists at first; 1 starts dense.
        first: updates before the first cut.
        last: update at which the end density is reached; more than `first`.
        every: updates between two cuts.
        swap: share in [0, 1] of the connections that is swapped at first.
        swap_last: update at which the share swapped has fallen to 0, at least `last`, which None stands for.
        allocate: of the start: "uniform", "erdos_renyi", or a table layer -> density. Later the weights decide.
        seed_weight: "given" leaves what the model was made with; "he" draws weights anew from
            `N(0, 2 / active inputs of the unit)` and sets biases to 0.
        conv: granularity in convolutions: "weight", "kernel" or "unit", ranked by norms.

    When to use it: as the control between gradual pruning and RigL. When not: the network must never be
    denser than it ends.
    Paper: Liu et al. 2021 (2106.10404), gradual pruning with neuroregeneration.
    Differs: exact counts are met, where the published code keeps what exceeds a threshold; there the swapped
    share falls to 0.005 at the end of training. The last cut falls on `last` even where `every` does not divide it.
    """
    end = last if swap_last is None else swap_last
    if not 0 <= first < last <= end:
        raise OptionError(f"granet: wanted 0 <= first < last <= swap_last, got {first}, {last}, {end}")
    if check_density(initial, "initial") < check_density(density):
        raise OptionError(f"granet: initial = {initial} lies below density = {density}; it only falls: raise initial")
    regular, turnover = Every(every, max(1, first), end), Cosine(check_density(swap, "swap"), end)
    return Method(
        Density(Cubic(initial, density, first, last), allocation("global"), grow="grow", turnover=turnover),
        {"keep": magnitude, "grow": gradient},
        when=lambda step: regular(step) or step == last,
        granularity={"linear": "weight", "conv": conv},
        start=sparse_start(initial, allocation(allocate), seed_weight),
    )
