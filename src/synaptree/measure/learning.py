"""How fast a network learned, by the accuracies it had after each epoch."""

from collections.abc import Sequence
from itertools import pairwise
from reprlib import repr as shorten
from statistics import fmean

from synaptree.core.errors import OptionError

__all__ = ["WINDOW", "area_under", "first_epoch_at"]

WINDOW = 3
"""Epochs whose mean accuracy must reach a target; a single one may reach it by luck."""

_SAME = 1e-9  # less than one item of any data set; what rounding may take from a mean


def first_epoch_at(accuracies: Sequence[float], target: float, window: int = WINDOW) -> int | None:
    """Return after how many epochs of training the mean over the last `window` epochs first reaches `target`.

    The least `e` with `mean(accuracies[e - window : e]) >= target`: of the epochs averaged, the last one counts, so
    that it is never less than `window`. Means within 1e-9 of the target reach it.

    Args:
        accuracies: after each epoch of one training, in order, each in [0, 1].
        target: accuracy in [0, 1].
        window: number of consecutive epochs, at least 1.

    Returns:
        Epochs from 1 on; None where no mean reaches the target, or there are fewer epochs than `window`.

    Raises:
        OptionError: an accuracy or the target outside [0, 1], or a window below 1.

    Example:
        >>> first_epoch_at([0.5, 0.7, 0.9, 0.8, 0.9], target=0.8)  # the means are 0.7, 0.8 and 0.8667
        4

    Reference: F. Zhao, Y. Zeng, Frontiers in Systems Neuroscience 15:620558 (2021), whose abstract claims that a
        network learns faster when its connections are pruned as it trains. The measure is our reading of that.
    """
    _check([*accuracies, target])
    if window < 1:
        raise OptionError(f"window is a number of epochs from 1 on, got {window}")
    ends = range(window, len(accuracies) + 1)
    return next((end for end in ends if fmean(accuracies[end - window : end]) >= target - _SAME), None)


def area_under(accuracies: Sequence[float]) -> float:
    """Return the mean height in [0, 1] of the curve of the accuracies over the epochs.

    With `n` epochs, `sum_e (accuracies[e] + accuracies[e + 1]) / 2 / (n - 1)`: the trapezoids between the epochs,
    over the width of them all. One epoch is its own mean. Only trainings of equally many epochs can be compared.

    Args:
        accuracies: after each epoch of one training, in order, each in [0, 1].

    Raises:
        OptionError: no epochs, or an accuracy outside [0, 1].

    Example:
        >>> area_under([0.0, 0.5, 1.0, 1.0])  # (0.25 + 0.75 + 1) / 3
        0.6666666666666666
    """
    _check(accuracies)
    if not accuracies:
        raise OptionError("the area under a curve needs at least one epoch, got none")
    return fmean((before + after) / 2 for before, after in pairwise(accuracies)) if accuracies[1:] else accuracies[0]


def _check(accuracies: Sequence[float]) -> None:
    wrong = [value for value in accuracies if not 0 <= value <= 1]
    if wrong:
        raise OptionError(f"accuracies and targets lie in [0, 1], got {shorten(wrong)}; divide percentages by 100")
