"""Images with their classes, and what is drawn from them by a seed."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from synaptree.core.errors import OptionError

__all__ = ["Parts", "Split", "derive", "hold_out", "seeded", "take"]


class Split(NamedTuple):
    """Images `x`, uint8 (n, channels, height, width), and their classes `y`, int64 (n,).

    Of a table, `x` holds its rows, uint8 (n, features).
    """

    x: Tensor
    y: Tensor


class Parts(NamedTuple):
    """What the files of a data set hold.

    Attributes:
        train: images to train on, those to be held out among them.
        test: images to report on.
        test_from: where `test` comes from, to say beside every figure.
        test_published: the part at hand of an incomplete published test set, or None.
        classes: number of classes where only the files tell, else None.
    """

    train: Split
    test: Split
    test_from: str = "the published test set"
    test_published: Split | None = None
    classes: int | None = None


def derive(*numbers: int) -> int:
    """Return a seed in [0, 2**63) that depends on each number, their order and how many they are.

    Args:
        numbers: integers in [0, 2**64), such as seed, epoch and step.

    Raises:
        OptionError: a number is outside that range.

    >>> derive(1, 2) == derive(1, 2), derive(1, 2) == derive(2, 1), derive(1) == derive(1, 0)
    (True, False, False)
    """
    try:
        words = np.array(numbers, dtype="<u8").view("<u4").tolist()
    except OverflowError as error:
        raise OptionError(f"seeds, epochs and steps must be in [0, 2**64), got {numbers}") from error
    # The seed sequence pads with zeros: without the length, (1,) and (1, 0) would be one seed.
    state = np.random.SeedSequence([len(numbers), *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def hold_out(split: Split, n: int, seed: int) -> tuple[Split, Split]:
    """Return the split without n images and those n, each class in its share, both in the order they had."""
    total = len(split.y)
    if not 0 <= n <= total:
        raise OptionError(f"validation must be in 0..{total}, the number of training images, got {n}")
    order = torch.randperm(total, generator=seeded(seed))
    # Each image's place within its class, in [0, 1): the n lowest take every class alike.
    place = torch.empty(total, dtype=torch.float64)
    for c in split.y.unique():
        of_class = order[split.y[order] == c]
        place[of_class] = (torch.arange(len(of_class), dtype=torch.float64) + 0.5) / len(of_class)
    held = torch.zeros(total, dtype=torch.bool)
    held[order[place[order].argsort(stable=True)[:n]]] = True
    return take(split, ~held), take(split, held)


def take(split: Split, part: Tensor) -> Split:
    """Return what an index or a mask picks of a split."""
    return Split(split.x[part], split.y[part])


def seeded(*numbers: int) -> torch.Generator:
    """Return a new generator whose seed comes from `numbers` alone."""
    return torch.Generator().manual_seed(derive(*numbers))
