"""Where a value lies in an arena, and how."""

from dataclasses import dataclass, replace

__all__ = ["FLOAT", "LANES", "Place", "place"]

FLOAT = 4  # bytes
LANES = 16  # floats of the widest register
SLACK = 512  # floats after a value that kernels may read beyond its end, and never use


@dataclass(frozen=True)
class Place:
    """A value of a network in the arena.

    Element (channel, row, column) of sample `lane` lies, in floats from `at`, at
    `channel plane + (row + top) pitch + (column + left) lanes + lane`. Borders are 0 and stay 0.

    With lanes of 1 the right border of a row is the left border of the next: a plane is one run of floats, of which
    kernels read whole registers. With more, `lanes` samples lie side by side and a register holds one pixel of them.

    Attributes:
        channels, height, width: of one sample; a flat value of n features has n channels of 1 x 1.
        lanes: samples side by side: 1, or a multiple of 16.
        top, left: border above and below, and beside.
        pitch: floats from a row to the next.
        plane: floats from a channel to the next.
        at: bytes from the arena's start, a multiple of 64.
    """

    channels: int
    height: int
    width: int
    lanes: int
    top: int
    left: int
    pitch: int
    plane: int
    at: int = 0

    @property
    def first(self) -> int:
        """Floats from `at` to the first element that is no border."""
        return self.top * self.pitch + self.left * self.lanes

    @property
    def bytes(self) -> int:
        """Bytes it takes in the arena, what is read beyond its end included; a multiple of 64."""
        return -(-(self.channels * self.plane + SLACK) * FLOAT // 64) * 64

    @property
    def end(self) -> int:
        """Bytes from the arena's start to behind it."""
        return self.at + self.bytes

    def moved(self, at: int) -> "Place":
        """Return the same place at other bytes."""
        return replace(self, at=at)


def place(shape: tuple[int, int, int], lanes: int, top: int = 0, left: int = 0, at: int = 0) -> Place:
    """Return where a value of this shape lies, (channels, height, width) of one sample.

    >>> place((3, 8, 8), 16, 1, 1).plane  # ten rows of ten pixels of sixteen samples
    1600
    >>> place((3, 8, 8), 1, 1, 1).pitch  # the border between two rows is there once
    9
    """
    channels, height, width = shape
    if lanes > 1:
        pitch = (width + 2 * left) * lanes
        return Place(channels, height, width, lanes, top, left, pitch, (height + 2 * top) * pitch, at)
    if (height, width) == (1, 1) and not (top or left):
        return Place(channels, 1, 1, 1, 0, 0, 1, 1, at)
    pitch = width + left
    whole = -(-((height - 1) * pitch + width) // LANES) * LANES  # in whole registers from the first element on
    plane = max((height + 2 * top) * pitch + left, top * pitch + left + whole)
    return Place(channels, height, width, 1, top, left, pitch, plane, at)
