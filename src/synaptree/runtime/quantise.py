"""Values as bytes and as rows of floats, and the ways between them and the caller."""

from dataclasses import dataclass, replace
from typing import Any

from synaptree.runtime import _native
from synaptree.runtime.place import FLOAT, Place

__all__ = ["Bytes", "Floats", "bytes_place", "floats_place", "leave_rows", "quantise"]

SLACK = 256  # bytes after a value that kernels may read beyond its end, and never use


@dataclass(frozen=True)
class Bytes:
    """A value in the arena as unsigned bytes: feature i of sample n at byte `at + n pitch + i`.

    A byte u stands for scale (u - 128); the scale is known to the steps that write and read it.
    """

    features: int
    samples: int
    pitch: int
    at: int = 0

    @property
    def bytes(self) -> int:
        """Bytes it takes in the arena, what is read beyond its end included; a multiple of 64."""
        return -(-(self.samples * self.pitch + SLACK) // 64) * 64

    @property
    def end(self) -> int:
        """Bytes from the arena's start to behind it."""
        return self.at + self.bytes

    def moved(self, at: int) -> "Bytes":
        """Return the same value at other bytes."""
        return replace(self, at=at)


@dataclass(frozen=True)
class Floats:
    """A value in the arena as rows of floats: feature i of sample n at byte `at + 4 (n pitch + i)`."""

    features: int
    samples: int
    pitch: int
    at: int = 0

    @property
    def bytes(self) -> int:
        """Bytes it takes in the arena; a multiple of 64."""
        return -(-self.samples * self.pitch * FLOAT // 64) * 64

    @property
    def end(self) -> int:
        """Bytes from the arena's start to behind it."""
        return self.at + self.bytes

    def moved(self, at: int) -> "Floats":
        """Return the same value at other bytes."""
        return replace(self, at=at)


def bytes_place(features: int, samples: int, at: int = 0) -> Bytes:
    """Return where so many features of so many samples lie as bytes.

    Rows are an odd number of cache lines apart: rows a power of two apart would contend for the same few lines.

    >>> bytes_place(1024, 64).pitch
    1088
    """
    return Bytes(features, samples, 64 * (-(-features // 64) | 1), at)


def floats_place(features: int, samples: int, at: int = 0) -> Floats:
    """Return where so many features of so many samples lie as floats.

    >>> floats_place(10, 64).pitch
    16
    """
    return Floats(features, samples, 16 * (-(-features // 16) | 1), at)


def quantise(
    isa: str, x: Place | Floats | int, y: Bytes, *, scale: float | None = None, scale_at: int | None = None
) -> Any:
    """Return the step y = round(x / scale) + 128, at least 0 and at most 255, halves to the even number.

    x / scale is taken as x times the nearest float to 1 / scale. Without a scale, it is max |x| / 127 over all samples
    that a run has (1 where all are 0), and is left as a float for the layer that reads y. Inputs that are not a number
    become some byte.

    Args:
        isa: an instruction set that this machine has.
        x: a flat value of one sample, rows of floats, or the number of features of the caller's own samples.
        y: the bytes.
        scale: of y, where it is known.
        scale_at: bytes from the arena's start to where the scale is left, where it is not.

    Raises:
        ValueError: shapes do not fit, or neither or both of scale and scale_at are given.
    """
    if (scale is None) == (scale_at is None):
        raise ValueError("a scale is either known or left somewhere: give scale or scale_at")
    features, start, pitch = _rows(x)
    if (
        features != y.features
        or (isinstance(x, Floats) and x.samples != y.samples)
        or (isinstance(x, Place) and y.samples != 1)
    ):
        raise ValueError(f"{x} does not fit into {y}")
    return _native.quantise(
        isa,
        from_=start,
        from_pitch=pitch,
        to=y.at,
        to_pitch=y.pitch,
        features=features,
        samples=y.samples,
        scale=1.0 if scale is None else scale,
        scale_at=-1 if scale_at is None else scale_at,
    )


def leave_rows(isa: str, x: Floats) -> Any:
    """Return the step that gives the caller rows of floats, of as many samples as a run has."""
    return _native.leave_rows(isa, from_=x.at, from_pitch=x.pitch, features=x.features, samples=x.samples)


def _rows(x: Place | Floats | int) -> tuple[int, int, int]:
    """Return the features of a row, bytes to the first row (-1: the caller's own) and floats from a row to the next."""
    if isinstance(x, int):
        return x, -1, x
    if isinstance(x, Floats):
        return x.features, x.at, x.pitch
    if x.lanes != 1 or (x.height, x.width, x.plane) != (1, 1, 1):
        raise ValueError(f"{x} is not flat, or not of one sample")
    return x.channels, x.at + FLOAT * x.first, x.channels
