"""Magnitude pruning, at once and gradually: the control every other method is compared with."""

from collections.abc import Mapping
from typing import Literal

from synaptree.core.errors import OptionError
from synaptree.core.method import Method, method
from synaptree.core.rule import Rule
from synaptree.core.schedule import Cubic, Every
from synaptree.core.signal import magnitude as by_magnitude
from synaptree.rules.allocate import allocation, check_density
from synaptree.rules.density import Density
from synaptree.rules.threshold import Threshold

__all__ = ["gradual_magnitude", "iterative_magnitude", "magnitude"]


@method
def magnitude(
    density: float = 0.1, allocate: str | Mapping[str, float] = "uniform", conv: str = "weight"
) -> Method:
    """Keep the connections with the largest weights, all at once.

    Rule: in each layer the `k` largest `|w|` stay, where `k` follows from `density` and `allocate`.
    Kernels are ranked by their Frobenius norm. Biases stay.

    Args:
        density: share in [0, 1] of all connections that stay.
        allocate: "uniform", "erdos_renyi", "global", or a table layer -> density.
        conv: granularity in convolutions: "weight", "kernel" or "unit".

    When to use it: as the control at equal density. When not: below a few per cent without retraining.
    Paper: Han et al. 2015 (1506.02626), section 3.
    Differs: an exact count is met, ties go to the lowest index; the paper uses a threshold per layer.
    """
    rule = Density(density, allocation(allocate))
    return Method(rule, {"keep": by_magnitude}, granularity={"linear": "weight", "conv": conv})


@method
def gradual_magnitude(
    density: float = 0.1,
    first: int = 0,
    last: int = 1000,
    every: int = 100,
    allocate: str | Mapping[str, float] = "uniform",
    conv: str = "weight",
) -> Method:
    """Cut the smallest weights little by little while the network trains.

    Rule: after update `step` the density is `d + (1 - d) (1 - (step - first) / (last - first))^3`, with
    `d = density`; it changes every `every` updates, and the last change reaches `d` exactly.

    Args:
        density: share in [0, 1] of all connections that stay in the end.
        first: updates before the first cut.
        last: update at which the end density is reached; more than `first`.
        every: updates between two cuts.
        allocate: "uniform", "erdos_renyi", "global", or a table layer -> density.
        conv: granularity in convolutions: "weight", "kernel" or "unit".

    When to use it: one training run is affordable and no pre-trained network is there. When not: the trained
    network exists already, or training is too short for the network to recover between cuts.
    Paper: Zhu and Gupta 2017 (1710.01878), equation 1.
    Differs: the last cut falls on `last` even where `every` does not divide it.
    """
    if not 0 <= first < last or every < 1:
        raise OptionError(f"gradual_magnitude: wanted 0 <= first < last and every >= 1, got {first}, {last}, {every}")
    target, regular = Cubic(1.0, check_density(density), first, last), Every(every, max(1, first), last)
    rule = Density(target, allocation(allocate))
    return Method(
        rule,
        {"keep": by_magnitude},
        when=lambda step: regular(step) or step == last,
        granularity={"linear": "weight", "conv": conv},
    )


@method
def iterative_magnitude(
    cut: float = 0.2,
    allocate: str | Mapping[str, float] = "global",
    conv: str = "weight",
    cut_rule: Literal["exact", "strict", "sigma"] = "exact",
) -> Method:
    """Cut a share of what is left, the smallest weights of the whole network first; one call is one level.

    Rule: of `n` existing connections `ceil(cut n)` with the smallest `|w|` go. With rewinding to early
    weights after each level this is the lottery-ticket procedure; the programme does the rewinding.

    Args:
        cut: share in (0, 1) of the existing connections that goes at each call.
        allocate: "global"; "present", of each layer its share of what it has; or "uniform", "erdos_renyi"
            for their densities per layer.
        conv: granularity in convolutions: "weight", "kernel" or "unit".
        cut_rule: "exact" as above; "strict" as in the published code, which also cuts the next smallest and all
            its equals, over the whole network; "sigma" cuts in each layer what is at most `cut` times the
            standard deviation of its weights about 0. The last two do not use `allocate`.

    When to use it: as the strongest control, where a training run per level is affordable. When not: it is
    not, or large networks are rewound to their very first weights; then rewind to a later step.
    Paper: Frankle and Carbin 2019 (1803.03635), section 2.
    Differs: by default exactly `ceil(cut n)` go. The published code leaves the output layer out (here:
    `exclude=[...]`). "sigma" follows Han et al. 2015 (1506.02626).
    """
    if not 0 < cut < 1:
        raise OptionError(f"iterative_magnitude: cut = {cut!r}: wanted a share between 0 and 1")
    rule: Rule = Density(1 - cut, allocation(allocate), of_remaining=True)
    if cut_rule != "exact":
        rule = Threshold(sigma=cut) if cut_rule == "sigma" else Threshold(cut=cut, strict=True)
    return Method(rule, {"keep": by_magnitude}, granularity={"linear": "weight", "conv": conv})
