"""SNIP: what the loss of an untrained network hardly feels goes before training."""

from collections.abc import Mapping

from torch import Tensor

from synaptree.core.method import Method, method
from synaptree.core.signal import View, at_granularity, stateless
from synaptree.rules.allocate import allocation
from synaptree.rules.density import Density

__all__ = ["snip"]


@method
def snip(
    density: float = 0.1, allocate: str | Mapping[str, float] = "global", conv: str = "weight"
) -> Method:
    """Keep the connections whose removal would change the loss most, all at once, before training.

    Rule: with `dL/dw` the gradient of the mean loss over a sample of labelled data, the connections with the
    largest `|w dL/dw|` stay, as many as `density` and `allocate` say. Kernels are ranked by the Frobenius
    norm of `w dL/dw`. Biases stay. The gradient is given to `prune`; see `signals.gradients.mean_gradients`.

    Args:
        density: share in [0, 1] of all connections that stay.
        allocate: "global" as in the paper, "uniform", "erdos_renyi", or a table layer -> density.
        conv: granularity in convolutions: "weight", "kernel" or "unit".

    When to use it: as the control that looks at data, before training. When not: training a dense network
    first is affordable. Below some per cent whole layers may go; `topology.density(name)` shows it.
    Paper: Lee et al. 2019 (1810.02340), section 4.
    Differs: an exact count is met. Which weights the network has meanwhile is up to the caller, while the paper
    draws them with a variance scaled to the layer. More than one batch may be looked at.
    """
    rule = Density(density, allocation(allocate))
    return Method(rule, {"keep": _saliency}, granularity={"linear": "weight", "conv": conv})


def _connection_sensitivity(view: View) -> Tensor:
    if view.grad is None:  # a parameter that the loss does not reach, or that is not trained
        return view.weight.new_zeros(view.mask.shape)
    # in half precision the product of two small numbers would be 0
    return at_granularity(view.weight.float() * view.grad.float(), view.mask)


_saliency = stateless(_connection_sensitivity, "gradient")
