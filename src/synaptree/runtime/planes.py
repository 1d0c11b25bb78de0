"""Convolution of 3x3 whose weights are zero by whole kernels."""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from synaptree.runtime import _native
from synaptree.runtime.moves import native
from synaptree.runtime.place import FLOAT, LANES, Place

__all__ = ["Variant", "conv", "variants"]

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]

TILES = ((4, 4), (2, 8), (2, 7), (2, 4), (3, 3), (2, 2), (1, 8), (1, 1))  # rows x columns, best first
RUNS = (16, 8, 4, 2, 1)
NEAREST_CACHE = 32768  # bytes of it that the inputs of a tile may take
HELD_SUMS = 8192  # floats of sums that are kept while an input plane is in registers
CHUNKS = 8  # worth having for threads to share


@dataclass(frozen=True)
class Variant:
    """A way to compute the convolution.

    Attributes:
        way: "tiles" of rows x columns pixels of many samples; with 1 lane "runs" of rows x 16 pixels, "held" input
            planes of at most rows x rows pixels, whose nine shifts stay in registers, or "unfolded" planes of 2 x 2,
            of which a kernel is a 4 x 4 matrix.
        rows, columns: of a tile.
        part: input channels that all outputs add before the next ones begin.
    """

    way: str
    rows: int
    columns: int
    part: int


def variants(weight: Floats, x: Place, y: Place) -> list[Variant]:
    """Return the ways worth timing for such a layer, the likely best first.

    Args:
        weight: (O, C, 3, 3), zero by whole kernels.
        x: input of C channels.
        y: output of O channels, with the height, width and lanes of x.
    """
    _check(weight, x, y)
    channels = x.channels
    if x.lanes == 1:
        return _single_lane(y, channels)
    found = []
    for rows, columns in _fitting_tiles(y.height, y.width):
        pixel_bytes = (rows + 2) * (columns + 2) * LANES * FLOAT
        near = max(8, NEAREST_CACHE // pixel_bytes // 8 * 8)
        overlap = y.height % rows or y.width % columns  # where partial sums of one tile would meet another's
        parts = (channels,) if overlap else (channels, 2 * near, near)
        found += [Variant("tiles", rows, columns, part) for part in parts if part <= channels]
    return found[:5]


def conv(
    isa: str,
    weight: Floats,
    bias: Floats | None,
    x: Place,
    y: Place,
    *,
    low: float = -inf,
    high: float = inf,
    residual: Place | None = None,
    variant: Variant,
) -> _native.Step:
    """Return the step y[o, i, j] = min(max(bias[o] + residual[o, i, j] + S, low), high).

    S = sum over c, k, l of weight[o, c, k, l] x[c, i + k - 1, j + l - 1], stride 1 and padding 1. Time and size grow
    with the number of kernels weight[o, c] that are not all zero.

    Args:
        isa: one of `_native.isas()`.
        weight: (O, C, 3, 3).
        bias: (O,), or None for zeros.
        x: input of C channels; "runs", and "tiles" smaller than the image, read its border, which is then at least 1
            wide.
        y: output of O channels, with the height, width and lanes of x.
        low: the least that is written.
        high: the most that is written.
        residual: a value of y's shape and lanes that is added; any border.
        variant: one of `variants(weight, x, y)`.

    Raises:
        ValueError: shapes that do not fit together, or a variant that does not fit them.
    """
    _check(weight, x, y)
    whole = variant.way == "tiles" and (variant.rows, variant.columns) == (y.height, y.width)
    if variant.way in ("runs", "tiles") and not whole and (x.top < 1 or x.left < 1):
        raise ValueError(f"{variant.way} want a border of at least 1 around x, got {x.top} above and {x.left} beside")
    if min(variant.rows, variant.columns) < 1:
        raise ValueError(f"a tile has rows and columns, got {variant.rows} x {variant.columns}")
    if not 1 <= variant.part <= x.channels:
        raise ValueError(f"a part has 1 to {x.channels} channels, got {variant.part}")
    weight = np.asarray(weight, np.float32)
    ranges = _ranges(variant, y)
    kept: NDArray[np.bool_] = np.any(weight != 0, axis=(2, 3))
    if variant.way == "held":
        start, source, kernels = _by_channel(weight, kept, ranges)
    else:
        start, source, kernels = _by_output(weight, kept, variant.part)
    if variant.way == "unfolded":
        kernels = _unfolded(kernels)
    return _native.planes(
        isa=isa,
        way=variant.way,
        x=native(x),
        y=native(y),
        start=start,
        source=source,
        weight=np.ascontiguousarray(kernels),
        bias=np.zeros(y.channels, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32),
        low=low,
        high=high,
        residual=None if residual is None else native(residual),
        rows=variant.rows,
        columns=variant.columns,
        parts=ceil(x.channels / variant.part),
        ranges=ranges,
    )


def _check(weight: Floats, x: Place, y: Place) -> None:
    if weight.shape != (y.channels, x.channels, 3, 3):
        raise ValueError(f"weight is {weight.shape}, wanted {(y.channels, x.channels, 3, 3)} for {x} and {y}")
    if (x.height, x.width, x.lanes) != (y.height, y.width, y.lanes):
        raise ValueError(f"height, width and lanes differ: {(x.height, x.width, x.lanes)} of x, of y "
                         f"{(y.height, y.width, y.lanes)}")


def _single_lane(y: Place, channels: int) -> list[Variant]:
    height, width = y.height, y.width
    found = []
    if (height, width) == (2, 2) and y.pitch < 15:
        found.append(Variant("unfolded", 2, 2, channels))
    found += [Variant("held", side, side, channels) for side in (4, 8) if height <= side and width <= side][:1]
    if width > 8 or not found:
        rows = [rows for rows in RUNS if rows <= height]
        found += [Variant("runs", rows, LANES, channels) for rows in rows[:3]]
    return found


def _fitting_tiles(height: int, width: int) -> list[tuple[int, int]]:
    """The tiles that compute the fewest pixels twice; large ones load a pixel less often."""
    fitting = [(rows, columns) for rows, columns in TILES if rows <= height and columns <= width]
    pixels = {(r, c): ceil(height / r) * r * ceil(width / c) * c for r, c in fitting}
    large = [tile for tile in fitting if tile[0] * tile[1] >= min(8, height * width)] or fitting[:2]
    least = min(pixels[tile] for tile in large)
    return sorted((tile for tile in large if pixels[tile] <= 1.15 * least), key=lambda tile: pixels[tile])


def _ranges(variant: Variant, y: Place) -> int:
    """Into how many ranges outputs are cut, so that threads have enough to share."""
    outputs = y.channels
    if variant.way == "held":
        return max(ceil(outputs * variant.rows**2 / HELD_SUMS), min(2, max(1, outputs // 32)))
    tiles = 1 if variant.way == "unfolded" else ceil(y.height / variant.rows) * ceil(y.width / variant.columns)
    return max(1, min(ceil(CHUNKS / tiles), outputs // 16))


def _by_output(weight: Floats, kept: NDArray[np.bool_], part: int) -> tuple[Indices, Indices, Floats]:
    """Kernels part by part and output by output: where each list starts, channels, kernels (n, 3, 3)."""
    channels = kept.shape[1]
    firsts = range(0, channels, part)
    o, c = np.nonzero(kept)
    order = np.argsort(c // part, kind="stable") if part < channels else slice(None)
    lengths = np.stack([kept[:, first : first + part].sum(axis=1) for first in firsts])
    return _starts(lengths), c[order].astype(np.int32), weight[o[order], c[order]]


def _by_channel(weight: Floats, kept: NDArray[np.bool_], ranges: int) -> tuple[Indices, Indices, Floats]:
    """Kernels range by range of outputs and channel by channel: list starts, outputs in their range, kernels."""
    firsts = np.arange(ranges + 1) * len(kept) // ranges
    c, o = np.nonzero(kept.T)
    range_of = np.searchsorted(firsts, o, side="right") - 1
    order = np.argsort(range_of, kind="stable")
    c, o, range_of = c[order], o[order], range_of[order]
    lengths = np.stack([kept[first:last].sum(axis=0) for first, last in pairwise(firsts)])
    return _starts(lengths), (o - firsts[range_of]).astype(np.int32), weight[o, c]


def _starts(lengths: NDArray[np.int64]) -> Indices:
    """Where lists of these lengths start and end, (groups, lists + 1); they follow one another."""
    ends = lengths.cumsum().reshape(lengths.shape)
    firsts = (ends - lengths)[:, :1]
    return np.ascontiguousarray(np.concatenate([firsts, ends], axis=1), np.int32)


def _unfolded(kernels: Floats) -> Floats:
    """The matrix of each kernel on planes of 2 x 2: (n, input pixel, output pixel)."""
    row, column = np.divmod(np.arange(4), 2)
    down, right = row[:, None] - row + 1, column[:, None] - column + 1
    return kernels[:, down, right]
