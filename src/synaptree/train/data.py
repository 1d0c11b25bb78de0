"""Whole image sets as tensors in memory, and batches of them that any step can make again."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synaptree.core.errors import OptionError, ShapeError, unknown
from synaptree.train.download import SETS, FileState, Source, directory, download, needs_extra, read, source, verify

__all__ = [
    "AUGMENTATIONS", "SETS", "Dataset", "FileState", "Split",
    "batches", "crop_flip", "derive", "download", "load", "sample", "verify",
]


class Split(NamedTuple):
    """Images `x`, uint8 (n, channels, height, width), and their classes `y`, int64 (n,)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """An image set in three parts, with what it takes to feed it to a network.

    Attributes:
        name: its name in SETS.
        train: images to train on.
        validation: images held out of the training set, to choose by.
        test: images to report on.
        classes: number of classes; labels are 0..classes-1.
        mean: subtracted from each channel after scaling.
        std: divides each channel after that.
        scale: the pixel value that becomes 1.
        augment: the augmentation that suits the set, a name in AUGMENTATIONS.
        test_from: where `test` comes from, to say beside every figure.
        test_published: the part at hand of an incomplete published test set, or None.
    """

    name: str
    train: Split = field(repr=False)
    validation: Split = field(repr=False)
    test: Split = field(repr=False)
    classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    augment: str = "none"
    test_from: str = "the published test set"
    test_published: Split | None = field(default=None, repr=False)

    def normalise(self, x: Tensor) -> Tensor:
        """Return (x / scale - mean) / std as float32, channel by channel, of uint8 images (n, c, h, w).

        Raises:
            ShapeError: the images have another number of channels than the set.
        """
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise ShapeError(
                f"{self.name}: images must be (n, {len(self.mean)}, height, width), got {tuple(x.shape)}"
            )
        x = x.to(torch.float32, copy=True).div_(self.scale)
        if any(self.mean):
            x.sub_(x.new_tensor(self.mean).view(-1, 1, 1))
        if any(std != 1 for std in self.std):
            x.div_(x.new_tensor(self.std).view(-1, 1, 1))
        return x


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


def sample(split: Split, n: int, seed: int) -> Split:
    """Return `n` images drawn without replacement: the first n of a permutation of `seed`.

    So a smaller sample of the same seed is the beginning of a larger one.

    Raises:
        OptionError: n is negative or larger than the split.
    """
    if not 0 <= n <= len(split.y):
        raise OptionError(f"cannot draw {n} images from a split of {len(split.y)}")
    return _take(split, torch.randperm(len(split.y), generator=_generator(seed))[:n])


def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (n, c, h, w) shifted by up to 4 pixels each way over black and mirrored half of the time.

    He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2016, section 4.2.
    """
    n, _, height, width = x.shape
    top, left = torch.randint(9, (2, n), generator=generator).to(x.device)
    mirrored = torch.randint(2, (n, 1, 1, 1), generator=generator).bool().to(x.device)
    windows = F.pad(x, (4, 4, 4, 4)).unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(n, device=x.device), :, top, left]
    return torch.where(mirrored, crops.flip(3), crops)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda x, _: x,
    "crop_flip": crop_flip,
}


def batches(
    dataset: Dataset,
    split: Split,
    size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    augment: str = "none",
    first_step: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of `split` as normalised batches, the short one at the end included.

    The order comes from (seed, epoch) alone and the augmentation of a batch from (seed, epoch, step)
    alone: `first_step=k` yields exactly what the whole epoch yields from step k on.

    Args:
        dataset: says how images are normalised.
        split: the images, on any device.
        size: images in a batch, at least 1.
        seed: of the run, at least 0.
        epoch: at least 0.
        shuffle: whether to permute the split; evaluation needs no order.
        augment: a name in AUGMENTATIONS.
        first_step: batches to leave out at the beginning, at least 0.
        device: where the batches are wanted.

    Yields:
        images, float32 (b, channels, height, width), and their classes, int64 (b,).

    Raises:
        OptionError: a number is out of range or nobody knows the augmentation.

    >>> digits = load("digits")
    >>> [len(y) for x, y in batches(digits, digits.test, 150, seed=0, epoch=0)]
    [150, 150, 60]
    """
    if size < 1 or first_step < 0:
        raise OptionError(f"size must be at least 1 and first_step at least 0, got {size} and {first_step}")
    if augment not in AUGMENTATIONS:
        raise unknown("augmentation", augment, AUGMENTATIONS)
    n = len(split.y)
    order = torch.randperm(n, generator=_generator(seed, epoch)).to(split.x.device) if shuffle else None

    def one(step: int) -> tuple[Tensor, Tensor]:
        part: slice | Tensor = slice(step * size, (step + 1) * size)
        if order is not None:
            part = order[part]
        # Moved as bytes: a quarter of the normalised batch.
        x, y = split.x[part].to(device), split.y[part].to(device)
        return dataset.normalise(AUGMENTATIONS[augment](x, _generator(seed, epoch, step))), y

    return map(one, range(first_step, -(-n // size)))


def load(
    name: str, root: str | os.PathLike[str] | None = None, *, validation: int | None = None, split_seed: int = 0
) -> Dataset:
    """Return the data set `name` from its published files under ROOT/NAME.

    The validation images are drawn from the training set, each class in its share. CIFAR-10 always
    trains on batches 1 to 4 and the first 5,000 images of batch 5, so that networks compare wherever
    they were trained; the last 5,000 are the test set where the published one is missing.

    Args:
        name: a name in SETS.
        root: the directory of all data sets; by default $SYNAPTREE_DATA, then ./data.
        validation: number of training images held out; by default 5,000, digits 240.
        split_seed: decides which.

    Raises:
        OptionError: nobody knows the name, or `validation` is not in 0..training images.
        DataError: a file is missing or damaged.

    >>> digits = load("digits")
    >>> digits.train.x.shape, len(digits.validation.y), len(digits.test.y)
    (torch.Size([1197, 1, 8, 8]), 240, 360)
    """
    known = source(name)
    parts = READERS[known.format](name, known, directory(name, root))
    count = known.validation if validation is None else validation
    train, held = _hold_out(parts.train, count, split_seed)
    return Dataset(
        name, train, held, parts.test, known.classes, known.mean, known.std, known.scale, known.augment,
        parts.test_from, parts.test_published,
    )


class _Parts(NamedTuple):
    train: Split
    test: Split
    test_from: str = "the published test set"
    test_published: Split | None = None


def _read_idx(name: str, known: Source, folder: Path) -> _Parts:
    """Read the four files of an MNIST-like set."""
    def images(raw: bytes) -> Tensor:
        return _idx(raw, 2051, known.shape[1:]).unsqueeze(1)

    def labels(raw: bytes) -> Tensor:
        return _labels(_idx(raw, 2049, ()), known)

    x, y, test_x, test_y = (
        read(name, folder, file, parse)
        for file, parse in zip(known.files, (images, labels) * 2, strict=True)
    )
    return _Parts(Split(x, y), Split(test_x, test_y))


def _idx(raw: bytes, magic: int, shape: tuple[int, ...]) -> Tensor:
    """Return the uint8 tensor (n, *shape) of an IDX file; ValueError unless its header fits its content."""
    header = np.frombuffer(raw, ">i4", count=2 + len(shape)).tolist()
    body = np.frombuffer(raw, np.uint8, offset=4 * len(header))
    if header[0] != magic or header[2:] != list(shape) or body.size != header[1] * np.prod(shape, dtype=int):
        raise ValueError(f"header {header} wanted [{magic}, n, *{shape}] and n entries, got {body.size} bytes")
    return torch.from_numpy(body.reshape(-1, *shape).copy())


def _read_records(name: str, known: Source, folder: Path) -> _Parts:
    """Read CIFAR's training batches and what there is of its test set."""
    def records(raw: bytes) -> Split:
        rows = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, 1 + int(np.prod(known.shape))).copy())
        return Split(rows[:, 1:].reshape(-1, *known.shape), _labels(rows[:, 0], known))

    *training, published = known.files
    parts = [read(name, folder, file, records) for file in training]
    whole = Split(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    n = len(whole.y) - known.spare
    train, spare = (Split(whole.x[part], whole.y[part]) for part in (slice(n), slice(n, None)))
    if (folder / published.name).exists():
        return _Parts(train, read(name, folder, published, records))
    partial = [read(name, folder, file, records) for file in known.extra if (folder / file.name).exists()]
    origin = f"the last {known.spare} images of {training[-1].name}, which is not the published test set"
    return _Parts(train, spare, origin, partial[0] if partial else None)


def _read_digits(name: str, _known: Source, _folder: Path) -> _Parts:
    """Read scikit-learn's digits; a fifth of them is the test set, always the same."""
    with needs_extra(name):
        from sklearn.datasets import load_digits
    digits = load_digits()
    x = torch.from_numpy(digits.images.astype(np.uint8)).unsqueeze(1)
    train, test = _hold_out(Split(x, torch.from_numpy(digits.target.astype(np.int64))), 360, seed=0)
    return _Parts(train, test, "360 of the 1797 images, each class in its share")


READERS: dict[str, Callable[[str, Source, Path], _Parts]] = {
    "idx": _read_idx, "records": _read_records, "digits": _read_digits,
}


def _labels(raw: Tensor, known: Source) -> Tensor:
    if raw.numel() and int(raw.max()) >= known.classes:
        raise ValueError(f"label {int(raw.max())} where labels are 0..{known.classes - 1}")
    return raw.long()


def _hold_out(split: Split, n: int, seed: int) -> tuple[Split, Split]:
    """Return the split without n images and those n, each class in its share, both in the order they had."""
    total = len(split.y)
    if not 0 <= n <= total:
        raise OptionError(f"validation must be in 0..{total}, the number of training images, got {n}")
    order = torch.randperm(total, generator=_generator(seed))
    # Each image's place within its class, in [0, 1): the n lowest take every class alike.
    place = torch.empty(total, dtype=torch.float64)
    for c in split.y.unique():
        of_class = order[split.y[order] == c]
        place[of_class] = (torch.arange(len(of_class), dtype=torch.float64) + 0.5) / len(of_class)
    held = torch.zeros(total, dtype=torch.bool)
    held[order[place[order].argsort(stable=True)[:n]]] = True
    return _take(split, ~held), _take(split, held)


def _take(split: Split, part: Tensor) -> Split:
    return Split(split.x[part], split.y[part])


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(*numbers))
