"""Whole data sets as tensors in memory, and batches of them that any step can make again."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from synaptree.core.errors import OptionError, ShapeError, unknown
from synaptree.train.download import FileState, download, verify
from synaptree.train.readers import READERS
from synaptree.train.sources import SETS, directory, source
from synaptree.train.split import Split, derive, hold_out, seeded, take

__all__ = [
    "AUGMENTATIONS", "SETS", "Dataset", "FileState", "Split",
    "batches", "crop_flip", "derive", "download", "load", "sample", "verify",
]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in three parts, with what it takes to feed it to a network.

    Of a table, the images are its rows, and a channel is a column.

    Attributes:
        name: its name in SETS, or `folder:PATH`.
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
        """Return (x / scale - mean) / std as float32, channel by channel.

        Args:
            x: uint8 images (n, channels, height, width), or rows of a table (n, features).

        Raises:
            ShapeError: the images have another number of channels or axes than the set.
        """
        axes = self.train.x.ndim
        if x.ndim != axes or x.shape[1] != len(self.mean):
            wanted = f"images must be (n, {len(self.mean)}, height, width)" if axes == 4 else (
                f"rows must be (n, {len(self.mean)})"
            )
            raise ShapeError(f"{self.name}: {wanted}, got {tuple(x.shape)}")
        per_channel = (-1, *(1,) * (axes - 2))
        x = x.to(torch.float32, copy=True).div_(self.scale)
        if any(self.mean):
            x.sub_(x.new_tensor(self.mean).view(per_channel))
        if any(std != 1 for std in self.std):
            x.div_(x.new_tensor(self.std).view(per_channel))
        return x


def sample(split: Split, n: int, seed: int) -> Split:
    """Return `n` images drawn without replacement: the first n of a permutation of `seed`.

    So a smaller sample of the same seed is the beginning of a larger one.

    Raises:
        OptionError: n is negative or larger than the split.
    """
    if not 0 <= n <= len(split.y):
        raise OptionError(f"cannot draw {n} images from a split of {len(split.y)}")
    return take(split, torch.randperm(len(split.y), generator=seeded(seed))[:n])


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
        images, float32 (b, channels, height, width), or rows of a table, float32 (b, features), and their
        classes, int64 (b,).

    Raises:
        OptionError: a number is out of range, nobody knows the augmentation, or it is none for a table.

    >>> digits = load("digits")
    >>> [len(y) for x, y in batches(digits, digits.test, 150, seed=0, epoch=0)]
    [150, 150, 60]
    """
    if size < 1 or first_step < 0:
        raise OptionError(f"size must be at least 1 and first_step at least 0, got {size} and {first_step}")
    if augment not in AUGMENTATIONS:
        raise unknown("augmentation", augment, AUGMENTATIONS)
    if augment != "none" and split.x.ndim != 4:
        raise OptionError(f"augment must be 'none' for {dataset.name}, which holds no images, got {augment!r}")
    n = len(split.y)
    order = torch.randperm(n, generator=seeded(seed, epoch)).to(split.x.device) if shuffle else None

    def one(step: int) -> tuple[Tensor, Tensor]:
        part: slice | Tensor = slice(step * size, (step + 1) * size)
        if order is not None:
            part = order[part]
        # Moved as bytes: a quarter of the normalised batch.
        x, y = split.x[part].to(device), split.y[part].to(device)
        return dataset.normalise(AUGMENTATIONS[augment](x, seeded(seed, epoch, step))), y

    return map(one, range(first_step, -(-n // size)))


def load(
    name: str, root: str | os.PathLike[str] | None = None, *, validation: int | None = None, split_seed: int = 0
) -> Dataset:
    """Return the data set `name` from its published files under ROOT/NAME, or the images of a folder.

    The validation images are drawn from the training set, each class in its share. CIFAR-10 always
    trains on batches 1 to 4 and the first 5,000 images of batch 5, so that networks compare wherever
    they were trained; the last 5,000 are the test set where the published one is missing. Tiny-ImageNet's
    test set is its published validation set, and its classes are those whose folders are there. Of
    the tables, a fifth, always the same, is the test set. Tables and folders of your own are standardised by
    mean and deviation of what is trained on.

    Args:
        name: a name in SETS, or `folder:PATH` for images of one size in PATH/train/CLASS/*.png and
            PATH/test/CLASS/*.png, or .jpg; PATH is not looked for in `root`.
        root: the directory of all data sets; by default $SYNAPTREE_DATA, then ./data.
        validation: number of training images held out; by default 5,000, digits 240, letter 2,000, pendigits
            1,000, images in folders a tenth of them.
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
    tenth = -(-len(parts.train.y) // 10)
    count = next(n for n in (validation, known.validation, tenth) if n is not None)
    train, held = hold_out(parts.train, count, split_seed)
    mean, std = (known.mean, known.std) if known.mean else _statistics(train.x, known.scale)
    return Dataset(
        name, train, held, parts.test, parts.classes or known.classes, mean, std, known.scale, known.augment,
        parts.test_from, parts.test_published,
    )


def _statistics(x: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of x / scale for each channel; the deviation of a constant one counts as 1."""
    total = squares = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in x.split(1000):  # all images at once would take eight times their memory
        values = part.double().div_(scale).transpose(0, 1).flatten(1)
        total, squares = total + values.sum(1), squares + values.square().sum(1)
    n = max(1, x.numel() // max(1, x.shape[1]))
    mean = total / n
    std = (squares / n - mean.square()).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(std.where(std > 1e-6, 1.0).tolist())
