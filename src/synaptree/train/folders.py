"""Folders of images as data sets: a folder for each class, or a list that names the class of each image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synaptree.core.errors import DataError
from synaptree.train.download import needs_extra
from synaptree.train.sources import FOLDER, Source, class_names
from synaptree.train.split import Parts, Split

__all__ = ["read_folders"]

ENDINGS = (".jpeg", ".jpg", ".png")
ANNOTATIONS = "val_annotations.txt"
"""Tiny-ImageNet's list of images and classes, a line each, between tabs; the images lie beside it in `images`."""


def read_folders(name: str, known: Source, folder: Path) -> Parts:
    """Read the images of `folder`/train/CLASS and of the test folder, class by class in the order of their names.

    In the test folder, too, every class has a folder, unless Tiny-ImageNet's val_annotations.txt lies there. A class
    folder holds its images itself or in a folder `images`. Images are grey if all of them are, else in colours.

    Raises:
        DataError: a folder or image is missing, a class has none, or an image cannot be read or has another size.
    """
    classes, test = class_names(folder), folder / known.test_folder
    if not classes or not test.is_dir():
        wrong = f"{test} is missing" if classes else f"{folder / 'train'} is missing or holds no folders"
        raise DataError(
            f"{name}: {wrong}; wanted images as train/CLASS/*.jpg (.jpeg, .png) and {test.name}/CLASS/*.jpg in {folder}"
            + ("" if name.startswith(FOLDER) else f". Run `synaptree data download {name}`, or set SYNAPTREE_DATA")
        )
    listed = [_in_folders(name, folder / "train", classes)]
    annotations = test / ANNOTATIONS
    listed += [_annotated(name, annotations, classes) if annotations.exists() else _in_folders(name, test, classes)]
    paths = [path for part in listed for path, _ in part]
    x = _decode(name, paths)
    y = torch.tensor([label for part in listed for _, label in part])
    n = len(listed[0])
    return Parts(
        Split(x[:n], y[:n]), Split(x[n:], y[n:]), f"the images of the folder {test.name}", classes=len(classes)
    )


def _in_folders(name: str, part: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return the images below `part`, with their labels."""
    strange = sorted(p.name for p in part.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in classes)
    if strange:
        raise DataError(f"{name}: {part / strange[0]} is no class of the training set, which has no such folder")
    found = []
    for label, of_class in enumerate(classes):
        place = part / of_class / "images" if (part / of_class / "images").is_dir() else part / of_class
        images = sorted(p for p in place.glob("*") if p.suffix.lower() in ENDINGS)
        if not images:
            raise DataError(
                f"{name}: class {of_class!r} has no images ({', '.join(ENDINGS)}) in {place}; "
                f"put some there, or remove the class from both folders"
            )
        found += [(path, label) for path in images]
    return found


def _annotated(name: str, annotations: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return the images that a list names, with their labels."""
    labels = {of_class: label for label, of_class in enumerate(classes)}
    found = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        image, of_class, *_ = *line.split("\t"), ""
        path = annotations.parent / "images" / image
        if of_class not in labels:
            raise DataError(
                f"{name}: {annotations}, line {number}: {of_class!r} is no class of the training set; wanted image, "
                f"class and what else there is, between tabs"
            )
        if not path.is_file():
            raise DataError(f"{name}: {annotations}, line {number} names {image!r}, but {path} is missing")
        found.append((path, labels[of_class]))
    if not found:
        raise DataError(f"{name}: {annotations} is empty; wanted a line for each image of the test set")
    return found


def _decode(name: str, paths: Sequence[Path]) -> Tensor:
    """Return the images, uint8 (n, channels, height, width), with one channel if all are grey, else three."""
    with needs_extra("reading images"):
        from PIL import Image

    x: NDArray[np.uint8] = np.empty(0, np.uint8)
    grey = True
    for n, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"its mode is {image.mode}, wanted 8 bits a channel")
                grey = grey and image.mode in ("1", "L")
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{name}: {path} cannot be read as an image: {error}") from error
        if n == 0:
            x = np.empty((len(paths), 3, *pixels.shape[:2]), np.uint8)
        if pixels.shape[:2] != x.shape[2:]:
            (height, width), (h, w) = pixels.shape[:2], x.shape[2:]
            raise DataError(
                f"{name}: {path} is {width} x {height} pixels, {paths[0]} is {w} x {h}; all images of a set must have "
                f"one size: bring them to it first, for example with Pillow's ImageOps.fit"
            )
        x[n] = pixels.transpose(2, 0, 1)
    return torch.from_numpy(x[:, :1].copy() if grey else x)
