"""Data in whatever form it comes, as batches that can be had again and again."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from synaptree.core.errors import DataError, OptionError
from synaptree.train.data import Dataset, batches
from synaptree.train.split import seeded

__all__ = ["Feed", "training_feed", "validation_feed"]

JUDGING = 1000  # samples of a batch where nothing is learned


@dataclass(frozen=True)
class Feed:
    """Batches of inputs and labels.

    Attributes:
        what: the data is called in errors.
        given: what the user gave, for a metric of the user's; what can be read once only, as a list.
        epoch: number of an epoch -> its batches.
        length: batches of an epoch, or None where nobody knows before one went by.
        finite: whether inputs that are not finite are refused.
    """

    what: str
    given: Any
    epoch: Callable[[int], Iterable[Any]]
    length: int | None = None
    finite: bool = False

    def batches(self, number: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs and labels of an epoch on a device.

        Raises:
            DataError: there is no batch, one without labels, or one with inputs that have to be finite and are not.
        """
        index = -1
        for index, batch in enumerate(self.epoch(number)):
            if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch):
                raise DataError(f"batch {index} of the {self.what} is {_form(batch)}: wanted a pair (inputs, labels)")
            x, y = batch
            if not x.dim() or not y.dim() or len(x) != len(y):
                shapes = f"{tuple(x.shape)} and labels of shape {tuple(y.shape)}"
                raise DataError(f"batch {index} of the {self.what} has inputs of shape {shapes}: wanted one for each")
            if self.finite:
                self._require_finite(x, index)
            if len(x):
                yield x.to(device), y.to(device)
        if index < 0:
            raise DataError(f"the {self.what} is empty: wanted one batch at least")

    def look(self) -> None:
        """Look at what nobody but a metric of the user's will read, which may have forms of its own.

        Raises:
            DataError: a batch has inputs that are not finite.
        """
        for index, batch in enumerate(() if self.length is None else self.epoch(0)):  # a stream may never end
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
            if isinstance(x, Tensor):
                self._require_finite(x, index)

    def _require_finite(self, x: Tensor, index: int) -> None:
        finite = x.isfinite()
        if not bool(finite.all()):
            sample = int(finite.reshape(len(x), -1).all(1).logical_not().nonzero()[0]) if x.dim() else 0
            raise DataError(
                f"batch {index} of the {self.what} has inputs that are not finite, the first in its sample {sample}: "
                "wanted finite numbers; fill in what is missing, or leave such samples out"
            )


def training_feed(data: Any, batch: int, seed: int) -> Feed:
    """Return the batches to train on.

    Args:
        data: a data set of the zoo, of which the training part serves; a pair of tensors or arrays `(samples, ...)`;
            a torch data set; or a loader or another iterable of pairs, whose order is its own.
        batch: samples of a batch, where the data does not come in batches.
        seed: of the order, for what does not come with one.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(data, Dataset):
        def augmented(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            return batches(data, data.train, batch, seed=seed, epoch=epoch, augment=data.augment)

        return Feed("training data", data, augmented, -(-len(data.train.y) // batch))
    what = "training data"
    if _is_pair(data):
        x, y = _tensors(data, what)
        return Feed(what, data, lambda epoch: _shuffled(x, y, batch, seed, epoch), len([*_parts(len(y), batch)]))
    if _is_map(data):
        order = torch.Generator().manual_seed(seed)
        data = DataLoader(data, batch, shuffle=True, generator=order)
    return _iterable(data, what)


def validation_feed(data: Any, train_data: Any) -> Feed:
    """Return the batches to judge by, in the same forms as `training_feed`.

    Args:
        data: of a data set of the zoo, the part held out for validation serves; None means that of `train_data`.
        train_data: what is trained on.

    Raises:
        DataError: it is none of the known forms.
        OptionError: it is missing, and the training data brings none.
    """
    what, data = "validation data", train_data if data is None and isinstance(train_data, Dataset) else data
    if data is None:
        raise OptionError("val_data is missing: give data to judge by that is not trained on, in a form as train_data")
    if isinstance(data, Dataset):
        def held_out(_: int) -> Iterator[tuple[Tensor, Tensor]]:
            return batches(data, data.validation, JUDGING, seed=0, epoch=0, shuffle=False)

        return Feed(what, data, held_out, -(-len(data.validation.y) // JUDGING), finite=True)
    if _is_pair(data):
        x, y = _tensors(data, what)
        parts = list(zip(x.split(JUDGING), y.split(JUDGING), strict=True)) if len(y) else []
        return Feed(what, data, lambda _: parts, len(parts), finite=True)
    return replace(_iterable(DataLoader(data, JUDGING) if _is_map(data) else data, what), finite=True)


def _iterable(data: Any, what: str) -> Feed:
    if not isinstance(data, Iterable) or isinstance(data, str | Tensor | np.ndarray | dict):
        raise DataError(
            f"the {what} is {_form(data)}: wanted a loader or another iterable of pairs (inputs, labels), a pair of "
            "tensors, or a data set of the zoo"
        )
    if iter(data) is data:  # can be read once
        data = list(data)
    return Feed(what, data, lambda _: data, len(data) if isinstance(data, Sized) and not _endless(data) else None)


def _endless(data: Sized) -> bool:
    try:
        len(data)
    except TypeError:  # a loader of a data set that is a stream
        return True
    return False


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(x, Tensor | np.ndarray) for x in data)


def _is_map(data: Any) -> bool:
    """Return whether this is a data set of torch's that gives sample by sample."""
    return isinstance(data, TorchDataset) and hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _tensors(pair: Any, what: str) -> tuple[Tensor, Tensor]:
    """Return a pair as tensors, arrays of float64 as float32."""
    x, y = (torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in pair)
    if isinstance(pair[0], np.ndarray) and x.dtype == torch.float64:
        x = x.float()
    if not x.dim() or not y.dim() or len(x) != len(y):
        raise DataError(
            f"the {what} has inputs of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}: wanted a label for "
            "each input"
        )
    return x, y


def _shuffled(x: Tensor, y: Tensor, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(y), generator=seeded(seed, epoch)).to(y.device)
    for part in _parts(len(y), batch):
        yield x[order[part].to(x.device)], y[order[part]]


def _parts(samples: int, batch: int) -> Iterator[slice]:
    """Yield where batches lie; a last one of a single sample is left out, from which no batch norm learns."""
    for first in range(0, samples, batch):
        if min(batch, samples - first) > 1 or batch == 1 or samples == 1:
            yield slice(first, first + batch)


def _form(thing: object) -> str:
    if isinstance(thing, Tensor):
        return f"a tensor of shape {tuple(thing.shape)}"
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of {len(thing)} ({', '.join(type(one).__name__ for one in thing[:4])})"
    return f"a {type(thing).__name__}"
