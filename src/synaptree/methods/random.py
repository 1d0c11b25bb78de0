"""Random pruning: what any method must beat."""

from collections.abc import Mapping

from synaptree.core.method import Method, method
from synaptree.core.signal import noise
from synaptree.rules.allocate import allocation
from synaptree.rules.density import Density

__all__ = ["random"]


@method
def random(
    density: float = 0.1, allocate: str | Mapping[str, float] = "uniform", conv: str = "weight"
) -> Method:
    """Keep connections drawn at random, without looking at them.

    Rule: in each layer `k` connections drawn uniformly without replacement stay, where `k` follows from
    `density` and `allocate`. Biases stay. The draw comes from the topology's own generator.

    Args:
        density: share in [0, 1] of all connections that stay.
        allocate: "uniform", "erdos_renyi", or a table layer -> density.
        conv: granularity in convolutions: "weight", "kernel" or "unit".

    When to use it: as the control that any rule must beat, and as a static sparse network from the start.
    When not: for a network whose accuracy matters.
    Paper: the control of Gale et al. 2019 (1902.09574), section 4.
    Differs: an exact count is met.
    """
    rule = Density(density, allocation(allocate))
    return Method(rule, {"keep": noise}, granularity={"linear": "weight", "conv": conv})
