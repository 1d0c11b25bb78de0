"""RigL: the smallest weights go, those with the largest gradients come."""

from collections.abc import Mapping

from synaptree.core.method import Method, method
from synaptree.core.schedule import Cosine, Every
from synaptree.core.signal import gradient, magnitude
from synaptree.rules.allocate import allocation, check_density
from synaptree.rules.density import Density
from synaptree.rules.seed import SeedWeight, sparse_start

__all__ = ["rigl"]


@method
def rigl(
    density: float = 0.1,
    alpha: float = 0.3,
    every: int = 100,
    last: int = 1000,
    allocate: str | Mapping[str, float] = "erdos_renyi",
    seed_weight: SeedWeight = "given",
    conv: str = "weight",
) -> Method:
    """Exchange the smallest weights for the connections with the largest gradients, at a constant density.

    Rule: attached to a network without a topology, it leaves random connections of `density`, shared out by
    `allocate`. Every `every` updates up to `last`, each layer with `n` connections loses the
    `round(f n)` with the smallest `|w|`, `f = alpha / 2 (1 + cos(pi step / last))`, and gets as many where
    `|dL/dw|` is largest among all that then do not exist, those just lost included; new ones start at 0.

    Args:
        density: share in [0, 1] of all connections that exist, at every time.
        alpha: share in [0, 1] of the connections that is exchanged at first.
        every: updates between two exchanges.
        last: update at which the share exchanged has fallen to 0, early enough for the weights to settle after it.
        allocate: "uniform", "erdos_renyi", "global", or a table layer -> density.
        seed_weight: "given" leaves what the model was made with; "he" draws weights anew from
            `N(0, 2 / active inputs of the unit)` and sets biases to 0.
        conv: granularity in convolutions: "weight", "kernel" or "unit", ranked by norms.

    When to use it: as the strongest control that trains at a constant density. When not: dense gradients
    cost too much; batches are so small that one gradient says little.
    Paper: Evci et al. 2020 (1911.11134), algorithm 1.
    Differs: the exchange follows the optimizer's update, by the gradient of the same batch, while the paper's
    replaces that update. Ties go to the lowest index; the published code adds noise of 1e-5. As there, a
    connection that goes and comes back at once keeps its weight and its optimizer state.
    """
    shared = allocation(allocate)
    return Method(
        Density(density, shared, grow="grow", turnover=Cosine(check_density(alpha, "alpha"), last)),
        {"keep": magnitude, "grow": gradient},
        when=Every(every, 1, last),
        granularity={"linear": "weight", "conv": conv},
        start=sparse_start(density, shared, seed_weight),
    )
