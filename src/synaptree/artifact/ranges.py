"""How large the values of a network get, for whoever computes with whole numbers."""

from collections.abc import Iterable
from math import floor

import torch
from torch import Tensor

from synaptree.artifact.build import Network, values_of
from synaptree.core.errors import DataError, NumericError

__all__ = ["PERCENTILE", "activation_ranges"]

PERCENTILE = 99.9


@torch.no_grad()
def activation_ranges(network: Network, batches: Iterable[Tensor], percentile: float = PERCENTILE) -> dict[int, float]:
    """Return, for each floating-point value of a network's program, that percentile of |x| over all samples.

    It is an entry that occurs: of n entries in rising order the one of index `floor(percentile / 100 (n - 1))`, from 0.
    The largest alone would make room for a few outliers at the cost of all others.

    Args:
        network: of one input, in the mode in which it will be used.
        batches: inputs, `(samples, ...)`, each as many samples as memory allows for all values at once.
        percentile: from 0 to 100.

    Raises:
        DataError: there is no sample.
        NumericError: a value is not finite.

    Example:
        >>> from synaptree.artifact.describe import describe
        >>> from synaptree.artifact.build import network
        >>> model = torch.nn.Sequential(torch.nn.ReLU())
        >>> relu = network(describe(model, torch.randn(2, 4)), {})
        >>> activation_ranges(relu, [torch.tensor([[-3.0, 1.0, 2.0, -0.5]])], percentile=100)
        {0: 3.0, 1: 2.0}
    """
    batches = list(batches)
    samples = sum(len(x) for x in batches)
    if not samples:
        raise DataError("ranges are measured on samples, and there is none")
    largest: dict[int, Tensor] = {}
    for x in batches:
        for number, value in enumerate(values_of(network, x)):
            if not value.is_floating_point():
                continue
            if not bool(value.isfinite().all()):
                raise NumericError(f"value {number} of the network, of shape {tuple(value.shape)}, is not finite")
            per_sample = value.shape[:1] == x.shape[:1]  # a constant comes once a batch
            entries = value.numel() // len(x) * samples if per_sample else value.numel() * len(batches)
            place = entries - floor(percentile / 100 * (entries - 1))  # 1 is the largest
            seen = torch.cat([largest.get(number, value.new_empty(0)), value.abs().flatten()])
            largest[number] = seen.topk(min(place, len(seen)), sorted=False).values
    return {number: float(values.min()) for number, values in largest.items()}
