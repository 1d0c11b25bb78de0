"""Linear layers and convolutions as rows of (offset, weight): any sparsity, any size, stride, dilation and groups."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from synaptree.runtime import _native
from synaptree.runtime.place import FLOAT, LANES, Place

__all__ = ["ROWS", "Variant", "conv", "dense_variants", "linear", "variants"]

ROWS = (1, 2, 4, 6, 8)  # outputs of a group that share their offsets
CACHE = 36 * 1024  # bytes of x that should stay in the first cache while the outputs take turns
CHUNKS = 8  # that a step should offer to threads
RANGE = 512  # outputs that take turns on one part of x, so that their sums stay in the second cache

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Variant:
    """One way to run a layer; all compute the same numbers up to rounding.

    Attributes:
        rows: outputs of a group, which share their offsets: 1, 2, 4, 6 or 8; fewer where there are no registers for it.
        vectors: registers of 16 floats that are worked out together, at most; fewer where the machine has not so many.
        unroll: entries in flight, at most: 1, 2 or 4. More hide the latency of sums where rows times vectors is small.
        part: input channels, or features, that all outputs use before the next ones; 0 for all of them.
    """

    rows: int = 1
    vectors: int = 4
    unroll: int = 2
    part: int = 0


@dataclass(frozen=True)
class _Window:
    """How the pixels of the output look at those of the input."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def size(self, height: int, width: int) -> Pair:
        """Height and width of the output."""
        pairs = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        sizes = [(n + 2 * pad - far * (k - 1) - 1) // step + 1 for n, k, step, pad, far in pairs]
        return sizes[0], sizes[1]

    def offsets(self, x: Place, channels: int) -> Integers:
        """Bytes from the first pixel of the window to (channel, row, column), flat."""
        channel = np.arange(channels)[:, None, None] * x.plane
        row = np.arange(self.kernel[0])[:, None] * (self.dilation[0] * x.pitch)
        column = np.arange(self.kernel[1]) * (self.dilation[1] * x.lanes)
        return ((channel + row + column) * FLOAT).ravel()


def variants(isa: str, weight: Floats, x: Place, y: Place, *, stride: Pair = (1, 1), groups: int = 1) -> list[Variant]:
    """Return the few variants worth timing for a layer, the one that should be fastest first.

    Args:
        isa: one of `_native.isas()`.
        weight: (O, C / groups, kh, kw), or (N, K), zero where there is no connection.
        x: input of the layer.
        y: its output.
        stride: (rows, columns) of a convolution.
        groups: of channels that meet only each other.

    Returns:
        At most five.
    """
    whole = weight if weight.ndim == 4 else weight.reshape(len(weight), x.channels, x.height, x.width)
    present = whole != 0
    entries = {rows: int(_grouped(present, rows, groups).any(axis=1).sum()) for rows in ROWS}
    return _fastest(isa, entries, whole.shape, x, y, stride)[:5]


def dense_variants(
    isa: str, weight: Floats, x: Place, y: Place, *, stride: Pair = (1, 1), groups: int = 1
) -> list[Variant]:
    """Return the few variants worth timing for a layer of this shape without missing connections, likely best first.

    Args:
        isa: one of `_native.isas()`.
        weight: (O, C / groups, kh, kw), or (N, K); only its shape counts.
        x: input of the layer.
        y: its output.
        stride: (rows, columns) of a convolution.
        groups: of channels that meet only each other.

    Returns:
        At most five.
    """
    shape = weight.shape if weight.ndim == 4 else (len(weight), x.channels, x.height, x.width)
    share, inputs = shape[0] // groups, math.prod(shape[1:])
    entries = {rows: groups * -(-share // rows) * inputs for rows in ROWS}
    return _fastest(isa, entries, shape, x, y, stride)[:5]


@dataclass(frozen=True)
class _Tile:
    """What one tile of a layer costs, as measured, on machines that multiply and load two registers a cycle."""

    isa: str
    x: Place
    outputs: int
    kernel: Pair

    def part(self, vectors: int, caches: float) -> int:
        """Channels of equal parts that fill so many caches, 0 for all of them."""
        parts = -(-self.x.channels // max(1, int(caches * CACHE / self._bytes(vectors))))
        return -(-self.x.channels // parts) if parts > 1 else 0

    def cost(self, variant: Variant, entries: int) -> float:
        """Cycles, for so many entries of groups."""
        pieces = {"avx512": 1, "avx2": 2}.get(self.isa, 4)
        sums = variant.rows * variant.vectors * pieces
        across = 2 if self.x.lanes == 1 and pieces == 1 else 1  # a load that lies in two lines of the cache
        channels = variant.part or self.x.channels
        loads = variant.rows + variant.vectors * pieces * across
        far = 0.3 * variant.vectors if self._bytes(variant.vectors) * channels > 1.5 * CACHE else 0
        entry = (sums + 0.6 * loads / variant.rows) / 2 + far  # loads that rows share hide behind products
        visits = -(-self.outputs // variant.rows) * -(-self.x.channels // channels)
        return entries * entry + min(visits, entries) * (12 + 1.5 * sums)

    def _bytes(self, vectors: int) -> int:
        """Bytes of a channel that the tile looks at."""
        halo = (self.kernel[1] - 1) * self.x.lanes // LANES
        return self.kernel[0] * (vectors + halo) * LANES * FLOAT


def _fastest(
    isa: str, entries: dict[int, int], shape: tuple[int, ...], x: Place, y: Place, stride: Pair
) -> list[Variant]:
    """Variants by what they should cost: for each number of rows and vectors the two best parts."""
    tile = _Tile(isa, x, shape[0], (shape[2], shape[3]))
    starts, registers, _, _ = _strands(x, y, y, stride)
    found: list[tuple[float, Variant]] = []
    for rows in ROWS:
        most = min(_native.rows_most_vectors(isa, rows), registers)
        for vectors in {most, -(-most // 2)} - {0}:
            tiles = len(starts) * -(-registers // vectors)
            parts = {tile.part(vectors, 1), tile.part(vectors, 2), 0}
            choices = [Variant(rows, vectors, _unroll(rows, vectors), part) for part in parts]
            found += sorted(((tiles * tile.cost(v, entries[rows]), v) for v in choices), key=lambda one: one[0])[:2]
    found.sort(key=lambda one: one[0])
    return [variant for cost, variant in found if cost <= 1.3 * found[0][0]]


def _unroll(rows: int, vectors: int) -> int:
    """Entries in flight that keep the multipliers from waiting for sums."""
    return 4 if rows * vectors <= 2 else 2 if rows * vectors == 3 else 1


def conv(
    isa: str,
    weight: Floats,
    bias: Floats,
    x: Place,
    y: Place,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    low: float = -np.inf,
    high: float = np.inf,
    residual: Place | None = None,
    variant: Variant = Variant(),
) -> Any:
    """Return the step of a convolution, `y = min(max(bias + residual + weight * x, low), high)`.

    Args:
        isa: one of `_native.isas()`.
        weight: (O, C / groups, kh, kw) float32, zero where there is no connection.
        bias: (O,) float32.
        x: (C, H, W), with borders of at least `padding`; zeros beside the image are read from there.
        y: (O, (H + 2 padding - dilation (kh - 1) - 1) // stride + 1, ...); its borders are not touched.
        stride: (rows, columns); 1 with lanes of 1.
        padding: (rows, columns) on each side.
        dilation: (rows, columns).
        groups: of channels that meet only each other.
        low: least value of the activation, -inf for none.
        high: greatest value of the activation, inf for none.
        residual: of the shape and lanes of y, added before the bounds; it may be y itself.
        variant: how.

    Raises:
        ValueError: shapes do not fit, a border is too narrow, or a place overlaps y.

    >>> from synaptree.runtime.place import place
    >>> x, y = place((1, 2, 2), 16, 1, 1), place((1, 2, 2), 16, 1, 1, at=16384)
    >>> step = conv("generic", np.ones((1, 1, 3, 3), "f"), np.zeros(1, "f"), x, y, padding=(1, 1))
    >>> arena = _native.Arena(32768)
    >>> arena.floats[x.first : x.first + 16] = 5
    >>> step.run(arena)
    >>> float(arena.floats[16384 // 4 + y.first])
    5.0
    """
    window = _Window((weight.shape[2], weight.shape[3]), stride, padding, dilation, groups)
    _check(weight, bias, x, y, window, residual, variant)
    fits = max(rows for rows in ROWS if rows <= variant.rows and _native.rows_most_vectors(isa, rows))
    rows = _Rows(weight, x, window, fits)
    part = variant.part if 0 < variant.part < x.channels else x.channels
    vectors = min(variant.vectors, _native.rows_most_vectors(isa, fits))
    tiles, masks, steps = _tiles(x, y, residual, window.stride, vectors)
    packed = rows.packed(part, _ranges(len(rows.first), fits, len(tiles)))
    other = y if residual is None else residual
    corner = x.first - padding[0] * x.pitch - padding[1] * x.lanes
    return _native.rows(
        isa,
        **packed,
        tiles=tiles,
        masks=masks,
        bias=np.ascontiguousarray(bias),
        x=x.at + corner * FLOAT,
        y=y.at + y.first * FLOAT,
        residual=-1 if residual is None else residual.at + residual.first * FLOAT,
        x_step=steps[0],
        y_step=steps[1],
        residual_step=steps[1],
        y_plane=y.plane,
        residual_plane=other.plane,
        unroll=variant.unroll,
        parts=-(-x.channels // part),
        low=low,
        high=high,
    )


def linear(
    isa: str,
    weight: Floats,
    bias: Floats,
    x: Place,
    y: Place,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    residual: Place | None = None,
    variant: Variant = Variant(),
) -> Any:
    """Return the step of a linear layer, `y = min(max(bias + residual + weight @ x, low), high)`.

    Args:
        isa: one of `_native.isas()`.
        weight: (N, K) float32, zero where there is no connection.
        bias: (N,) float32.
        x: (C, H, W) with C H W = K, read in that order.
        y: (N, 1, 1).
        low: least value of the activation, -inf for none.
        high: greatest value of the activation, inf for none.
        residual: of the shape and lanes of y, added before the bounds; it may be y itself.
        variant: how; its parts are of channels of x.

    Raises:
        ValueError: shapes do not fit, or a place overlaps y.
    """
    if weight.ndim != 2 or weight.shape[1] != x.channels * x.height * x.width:
        raise ValueError(f"weight of shape {weight.shape} does not fit x of {x.channels} x {x.height} x {x.width}")
    whole = weight.reshape(len(weight), x.channels, x.height, x.width)
    return conv(isa, whole, bias, x, y, low=low, high=high, residual=residual, variant=variant)


def _check(
    weight: Floats, bias: Floats, x: Place, y: Place, window: _Window, residual: Place | None, variant: Variant
) -> None:
    outputs, inputs = weight.shape[0], weight.shape[1]
    groups = window.groups
    if weight.dtype != np.float32 or bias.dtype != np.float32 or bias.shape != (outputs,):
        raise ValueError("weight and bias are float32, with one bias for each output")
    if groups < 1 or outputs % groups or inputs * groups != x.channels or outputs != y.channels or weight.size == 0:
        fit = f"{x.channels} to {y.channels} channels in {groups} groups"
        raise ValueError(f"weight of shape {weight.shape} does not fit {fit}")
    if min(window.stride) < 1 or min(window.dilation) < 1 or min(window.padding) < 0:
        raise ValueError("stride and dilation are at least 1, padding at least 0")
    if (y.height, y.width) != window.size(x.height, x.width):
        raise ValueError(f"y is {y.height} x {y.width}, the convolution gives {window.size(x.height, x.width)}")
    if x.top < window.padding[0] or x.left < window.padding[1]:
        raise ValueError(f"x has borders of ({x.top}, {x.left}), the padding is {window.padding}")
    if x.lanes != y.lanes or (x.lanes == 1 and (y.height, y.width) != (1, 1) and window.stride != (1, 1)):
        raise ValueError("x and y have the same lanes, and lanes of 1 need a stride of 1")
    if x.channels * x.plane * FLOAT > np.iinfo(np.int32).max:
        raise ValueError("x is larger than 2 GiB")
    if residual is not None and (_shape(residual) != _shape(y)):
        raise ValueError("residual has the shape and the lanes of y")
    for other in (x,) if residual in (None, y) else (x, residual):
        if other is not None and other.at < _end(y) and y.at < _end(other):
            raise ValueError("y overlaps what it is made from")
    if variant.rows not in ROWS or variant.vectors < 1 or variant.unroll < 1 or variant.part < 0:
        raise ValueError(f"no such variant: {variant}")


def _shape(place: Place) -> tuple[int, int, int, int]:
    return place.channels, place.height, place.width, place.lanes


def _end(place: Place) -> int:
    return place.at + place.channels * place.plane * FLOAT


class _Rows:
    """Connections of groups of outputs, ordered by group and then by input."""

    def __init__(self, weight: Floats, x: Place, window: _Window, rows: int) -> None:
        grouped = _grouped(weight, rows, window.groups)
        present = np.flatnonzero((grouped != 0).any(axis=1))
        inputs, outputs = grouped.shape[2], len(weight) // window.groups
        shares = len(grouped) // window.groups  # groups of rows in a group of channels
        taps = window.kernel[0] * window.kernel[1]
        first = np.arange(shares) * rows
        self.rows = rows
        self.values = grouped.transpose(0, 2, 1).reshape(-1, rows)[present]
        self.first = (np.arange(window.groups)[:, None] * outputs + first).ravel()
        self.live = np.tile(np.minimum(rows, outputs - first), window.groups)
        self.group = present // inputs
        column = present % inputs + self.group // shares * inputs
        self.channel = column // taps
        self.offset = window.offsets(x, x.channels)[column]
        self.channels = x.channels

    def packed(self, part: int, ranges: int) -> dict[str, npt.NDArray[Any]]:
        """Arrays of the kernel: range by range, part by part, groups with few entries first."""
        groups, parts = len(self.first), -(-self.channels // part)
        bounds = np.linspace(0, groups, ranges + 1).astype(np.int64)
        counts = np.bincount(self.group * parts + self.channel // part, minlength=groups * parts)
        counts = counts.reshape(groups, parts)
        where = np.repeat(np.arange(ranges), np.diff(bounds))
        group, piece = (index.ravel() for index in np.indices(counts.shape))
        order = np.lexsort((counts.ravel(), piece, where[group]))  # what comes last matters most
        ends = (piece == 0) | (piece == parts - 1)
        order = order[(ends | (counts.ravel() > 0))[order]]
        length = counts.ravel()[order]
        start = (np.cumsum(counts.ravel()) - counts.ravel())[order]
        to = np.cumsum(length) - length
        entry = np.repeat(start - to, length) + np.arange(int(length.sum()))
        block = where[group[order]] * parts + piece[order]
        visits = np.searchsorted(block, np.arange(ranges * parts + 1))
        entries = np.append(to, length.sum())[visits]
        return {
            "values": self.values[entry],
            "offsets": self.offset[entry].astype(np.int32),
            "visits": np.stack([self.first[group[order]], self.live[group[order]], length], 1).astype(np.int32),
            "blocks": np.stack([visits, entries], 1).astype(np.int64),
        }


def _grouped(values: npt.NDArray[Any], rows: int, groups: int) -> npt.NDArray[Any]:
    """Values (O, ...) as (groups of rows, rows, inputs), with zeros after the last row of a group of channels."""
    outputs = len(values) // groups
    split = values.reshape(groups, outputs, -1)
    if outputs % rows:
        split = np.pad(split, ((0, 0), (0, -outputs % rows), (0, 0)))
    return split.reshape(-1, rows, split.shape[2])


def _ranges(groups: int, rows: int, tiles: int) -> int:
    """Ranges of groups, so that there is enough to share out and sums stay close."""
    outputs = groups * rows
    return max(1, -(-outputs // RANGE), min(CHUNKS // tiles, outputs // 64))


def _tiles(
    x: Place, y: Place, residual: Place | None, stride: Pair, vectors: int
) -> tuple[Integers, npt.NDArray[np.uint16], Pair]:
    """Tiles as (x, y, residual, vectors, masks) in floats from the first pixels, masks, and steps in x and in y."""
    starts, registers, keep, steps = _strands(x, y, residual or y, stride)
    pieces = -(-registers // vectors)
    cuts = np.linspace(0, registers, pieces + 1).astype(np.int64)
    tiles = np.zeros((len(starts), pieces, 5), np.int64)
    tiles[:, :, :3] = starts[:, None, :] + cuts[:-1, None] * np.array([steps[0], steps[1], steps[1]])
    tiles[:, :, 3] = np.diff(cuts)
    tiles[:, :, 4] = cuts[:-1]
    masks = (keep.reshape(registers, LANES) << np.arange(LANES)).sum(1).astype(np.uint16)
    return tiles.reshape(-1, 5), masks, steps


def _strands(x: Place, y: Place, residual: Place, stride: Pair) -> tuple[Integers, int, Integers, Pair]:
    """Registers at even distances: where strands of them start in x, y, residual, how many, what to keep, and steps."""
    row = np.array([x.pitch * stride[0], y.pitch, residual.pitch])
    starts = np.arange(y.height)[:, None] * row
    if y.lanes == 1:
        if y.height == 1 or not x.pitch == y.pitch == residual.pitch:
            registers = -(-y.width // LANES)
            return starts, registers, (np.arange(registers * LANES) < y.width).astype(np.int64), (LANES, LANES)
        floats = (y.height - 1) * y.pitch + y.width
        registers = -(-floats // LANES)
        run = np.arange(registers * LANES)
        return starts[:1], registers, ((run < floats) & (run % y.pitch < y.width)).astype(np.int64), (LANES, LANES)
    if stride[1] == 1 or y.width == 1:
        registers = y.width * y.lanes // LANES
        if y.height > 1 and (row == y.width * y.lanes).all():
            registers, starts = registers * y.height, starts[:1]
        return starts, registers, np.ones(registers * LANES, np.int64), (LANES, LANES)
    shifts = np.arange(0, y.lanes, LANES)[:, None, None]
    return (starts + shifts).reshape(-1, 3), y.width, np.ones(y.width * LANES, np.int64), (stride[1] * x.lanes, y.lanes)
