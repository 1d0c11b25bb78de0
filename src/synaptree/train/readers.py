"""How the files of each format become tensors."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synaptree.train.download import needs_extra, read
from synaptree.train.folders import read_folders
from synaptree.train.sources import Source
from synaptree.train.split import Parts, Split, hold_out

__all__ = ["READERS"]


def _read_idx(name: str, known: Source, folder: Path) -> Parts:
    """Read the four files of an MNIST-like set."""
    def images(raw: bytes) -> Tensor:
        return _idx(raw, 2051, known.shape[1:]).unsqueeze(1)

    def labels(raw: bytes) -> Tensor:
        return _labels(_idx(raw, 2049, ()), known)

    x, y, test_x, test_y = (
        read(name, folder, file, parse)
        for file, parse in zip(known.files, (images, labels) * 2, strict=True)
    )
    return Parts(Split(x, y), Split(test_x, test_y))


def _idx(raw: bytes, magic: int, shape: tuple[int, ...]) -> Tensor:
    """Return the uint8 tensor (n, *shape) of an IDX file; ValueError unless its header fits its content."""
    header = np.frombuffer(raw, ">i4", count=2 + len(shape)).tolist()
    body = np.frombuffer(raw, np.uint8, offset=4 * len(header))
    if header[0] != magic or header[2:] != list(shape) or body.size != header[1] * np.prod(shape, dtype=int):
        raise ValueError(f"header {header} wanted [{magic}, n, *{shape}] and n entries, got {body.size} bytes")
    return torch.from_numpy(body.reshape(-1, *shape).copy())


def _read_records(name: str, known: Source, folder: Path) -> Parts:
    """Read CIFAR's training batches and what there is of its test set."""
    def records(raw: bytes) -> Split:
        length = known.labels + int(np.prod(known.shape))
        rows = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, length).copy())
        x, y = rows[:, known.labels:], rows[:, known.labels - 1]
        return Split(x.reshape(-1, *known.shape), _labels(y, known))

    *training, published = known.files
    parts = [read(name, folder, file, records) for file in training]
    whole = Split(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    n = len(whole.y) - known.spare
    train, spare = (Split(whole.x[part], whole.y[part]) for part in (slice(n), slice(n, None)))
    if (folder / published.name).exists() or not known.spare:
        return Parts(train, read(name, folder, published, records))
    partial = [read(name, folder, file, records) for file in known.extra if (folder / file.name).exists()]
    origin = f"the last {known.spare} images of {training[-1].name}, which is not the published test set"
    return Parts(train, spare, origin, partial[0] if partial else None)


def _read_table(name: str, known: Source, folder: Path) -> Parts:
    """Read a table whose last column is the class; a fifth of its rows is the test set, always the same."""
    def rows(raw: bytes) -> Split:
        table = np.loadtxt(io.BytesIO(raw), delimiter="\t", skiprows=1, ndmin=2)
        features = table[:, :-1]
        whole = (features >= 0) & (features <= 255) & (features == np.floor(features))
        if features.shape[1:] != known.shape or not whole.all():
            raise ValueError(f"wanted rows of {known.shape[0]} whole numbers in 0..255 and a class")
        classes, y = np.unique(table[:, -1], return_inverse=True)
        if len(classes) != known.classes:
            raise ValueError(f"{len(classes)} classes where there are {known.classes}")
        return Split(torch.from_numpy(features.astype(np.uint8)), torch.from_numpy(y.astype(np.int64)))

    whole = read(name, folder, known.files[0], rows)
    train, test = hold_out(whole, len(whole.y) // 5, seed=0)
    return Parts(train, test, f"{len(test.y)} of the {len(whole.y)} rows, each class in its share")


def _read_digits(name: str, _known: Source, _folder: Path) -> Parts:
    """Read scikit-learn's digits; a fifth of them is the test set, always the same."""
    with needs_extra(name):
        from sklearn.datasets import load_digits
    digits = load_digits()
    x = torch.from_numpy(digits.images.astype(np.uint8)).unsqueeze(1)
    train, test = hold_out(Split(x, torch.from_numpy(digits.target.astype(np.int64))), 360, seed=0)
    return Parts(train, test, "360 of the 1797 images, each class in its share")


READERS: dict[str, Callable[[str, Source, Path], Parts]] = {
    "idx": _read_idx, "records": _read_records, "table": _read_table, "folders": read_folders,
    "digits": _read_digits,
}


def _labels(raw: Tensor, known: Source) -> Tensor:
    if raw.numel() and int(raw.max()) >= known.classes:
        raise ValueError(f"label {int(raw.max())} where labels are 0..{known.classes - 1}")
    return raw.long()
