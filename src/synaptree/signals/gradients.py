"""Gradients of a loss over batches, for methods that look at them before or between trainings."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from synaptree.core.errors import DataError
from synaptree.core.layer import parameters_of, unwrapped
from synaptree.core.ranks import Ranks, made_whole

__all__ = ["Loss", "mean_gradients"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""`(outputs, targets) -> scalar`, the mean over the samples."""


def mean_gradients(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over all samples: `dL/dw = 1/n sum_i dL_i/dw`, by parameter name.

    Weights that are 0 have one too: it says what a connection there would bring. Processes that train together
    give each its own batches, and get the mean over all of them.

    Args:
        model: used in the mode it is in: in training mode batch norms go on counting and dropout draws.
            Parameters without `requires_grad` get no gradient; no `.grad` is touched.
        batches: tuples of inputs `(samples, ...)` and targets.
        loss: the mean loss of a batch.

    Raises:
        DataError: there is no batch.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batches = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 1))]
        >>> mean_gradients(model, batches, lambda y, target: (y - target).mean())["weight"]
        tensor([[2., 1.]])
    """
    ranks = Ranks(model)
    with made_whole(unwrapped(model)) as whole:
        parameters = {name: p for name, p in parameters_of(whole).items() if p.requires_grad}
        total, samples = {name: torch.zeros_like(p) for name, p in parameters.items()}, 0
        for x, y in batches:
            with torch.enable_grad():
                grads = torch.autograd.grad(loss(whole(x), y), list(parameters.values()), allow_unused=True)
            samples += len(x)
            for name, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    total[name] += grad * len(x)
    if not samples:
        raise DataError("gradients want data, got no batch: give batches of (inputs, targets)")
    seen = ranks.add_up({"all": {**total, "samples": samples}})["all"]
    return {name: (seen[name] / seen["samples"]).to(parameters[name].dtype) for name in total}
