"""What a network is worth on validation data, and how much of that may be lost."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from synaptree.compression.feed import Feed
from synaptree.core.errors import DataError, OptionError

__all__ = ["Judge", "Metric", "device_of", "evaluating"]

Metric = Callable[[nn.Module, Any], float]
LOST = 0.5  # points of accuracy that may be lost where nobody says more
LEARNED = 0.1  # share of the way from the most frequent class to all right, from which on a model counts as trained
_SLACK = 1e-9


@dataclass(frozen=True)
class Judge:
    """Measures networks on validation data.

    Attributes:
        feed: the validation data.
        metric: `(model, data) -> number`, higher is better; None means accuracy in points, 0 to 100.
        max_drop: what may be lost, in the same unit, at least 0.
    """

    feed: Feed
    metric: Metric | None
    max_drop: float

    @classmethod
    def of(cls, feed: Feed, metric: Metric | None, max_drop: float | None) -> "Judge":
        """Return a judge after a look at what may be lost.

        Raises:
            OptionError: `max_drop` is no number of at least 0, or is missing beside a metric.
        """
        if max_drop is None and metric is not None:
            raise OptionError("max_drop is missing: say how much of your metric may be lost, in its own unit")
        drop: Any = LOST if max_drop is None else max_drop
        if not _is_number(drop) or not (math.isfinite(drop) and drop >= 0):
            raise OptionError(f"max_drop = {max_drop!r}: wanted a number of at least 0, in points of accuracy")
        return cls(feed, metric, float(drop))

    def __call__(self, model: nn.Module) -> float:
        """Return what a model is worth, NaN where its outputs are not finite; its mode is put back.

        Raises:
            OptionError: the metric gave something that is no number.
        """
        with evaluating(model), torch.no_grad():
            value: Any = self._accuracy(model) if self.metric is None else self.metric(model, self.feed.given)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not _is_number(value):
            raise OptionError(f"metric gave {value!r}, a {type(value).__name__}: wanted one number, higher is better")
        return float(value)

    def accepts(self, value: float, reference: float) -> bool:
        """Return whether a value is within what may be lost; one that is not finite never is."""
        return math.isfinite(value) and value >= reference - self.max_drop - _SLACK

    def chance(self) -> float:
        """Return the accuracy in points of always saying the most frequent class."""
        labels = torch.cat([y for _, y in self.feed.batches(0, torch.device("cpu"))])
        return 100.0 * int(labels.unique(return_counts=True)[1].max()) / len(labels)

    def learned_from(self) -> float:
        """Return the accuracy in points from which on a network counts as one that learned something."""
        chance = self.chance()
        return chance + LEARNED * (100 - chance)

    def samples(self) -> int:
        """Return how many samples there are to judge by."""
        return sum(len(y) for _, y in self.feed.batches(0, torch.device("cpu")))

    def _accuracy(self, model: nn.Module) -> float:
        right = total = 0
        for x, y in self.feed.batches(0, device_of(model)):
            scores = model(x)
            if y.is_floating_point() or y.dim() != 1 or not isinstance(scores, Tensor) or scores.dim() != 2:
                got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise DataError(
                    f"accuracy wants outputs (samples, classes) and whole labels (samples,), got {got} and {y.dtype} "
                    f"of shape {tuple(y.shape)}; give a metric of your own, and the loss to train with"
                )
            best = scores.max(1)
            if not bool(best.values.isfinite().all()):  # a class may be ruled out by minus infinity
                return math.nan
            right, total = right + int((best.indices == y).sum()), total + len(y)
        return 100.0 * right / max(1, total)


class evaluating:  # noqa: N801 - reads as a word after `with`
    """Hold a model in eval mode, and put the mode of each of its modules back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.modes = {module: module.training for module in self.model.modules()}
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes.items():
            module.training = training


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter is, the CPU for one without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
