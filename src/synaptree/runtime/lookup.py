"""Sparse linear layers on one sample: the inputs stand in registers, and every connection looks its own up."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synaptree.runtime import _native
from synaptree.runtime.place import FLOAT, LANES, Place
from synaptree.runtime.quantise import Bytes, Floats

__all__ = ["Variant", "linear", "linear_int8", "order", "variants", "variants_int8"]

FOUR = 4  # looks that share one register of indices
MOST_GROUPS_INT8 = 32
SPANS = (4, 2, 1)  # looks one after the other for the same group
MOST_GROUPS = 64  # of a block, so that its sums stay in the nearest cache


@dataclass(frozen=True)
class Variant:
    """How a layer is stored.

    Attributes:
        width: inputs of a tile, which registers hold: 32, 64 or 128 floats, or 64, 128 or 256 bytes; 0 for compressed
            rows, without look-up.
        kept: whether only the kept weights are stored, or a value for every place of a look. The former takes longer
            to look up and less to read: it is for layers of floats that no near cache holds.
        groups: of 16 rows in a block; threads share out blocks.
    """

    width: int
    kept: bool = False
    groups: int = MOST_GROUPS

    def __str__(self) -> str:
        return f"lookup{self.width}{'k' if self.kept else ''}g{self.groups}" if self.width else "compressed"


def variants(isa: str, weight: NDArray[np.float32], threads: int = 1) -> list[Variant]:
    """Return the ways to store this layer that can be the fastest, compressed rows always among them."""
    if isa != "avx512":
        return [Variant(0)]
    whole = -(-weight.shape[0] // LANES)
    groups = min(MOST_GROUPS, -(-whole // threads))
    tables = [(32, False), (64, False), (128, False), (32, True), (64, True)]
    return [*(Variant(width, kept, groups) for width, kept in tables), Variant(0)]


def variants_int8(isa: str, integers: NDArray[np.int8], samples: int, threads: int = 1) -> list[Variant]:
    """Return the ways to store this layer of bytes that can be the fastest, compressed rows always among them."""
    if isa != "avx512":
        return [Variant(0)]
    widths = (64, 128, 256) if samples < 8 else (64, 128)  # wide tiles of many samples do not fit into registers
    groups = min(MOST_GROUPS_INT8, -(-integers.shape[0] // (LANES * threads)))
    return [*(Variant(width, groups=groups) for width in widths), Variant(0)]


def order(weight: NDArray[Any]) -> NDArray[np.int32]:
    """Return the rows from few connections to many, those with as many as before.

    >>> order(np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 2.0]]))
    array([1, 2, 0], dtype=int32)
    """
    return np.argsort(np.count_nonzero(weight, axis=1), kind="stable").astype(np.int32)


def positions(place: Place) -> NDArray[np.int32]:
    """Return where the features of a value of one sample lie, in floats from its first.

    >>> from synaptree.runtime.place import place
    >>> positions(place((1, 2, 2), 1, 1, 1))  # a border of one between the rows
    array([0, 1, 3, 4], dtype=int32)
    """
    channel = np.arange(place.channels)[:, None, None] * place.plane
    row = np.arange(place.height)[:, None] * place.pitch
    return (channel + row + np.arange(place.width)).ravel().astype(np.int32)


def linear(
    isa: str,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    x: Place,
    y: Place,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    variant: Variant,
    sorted: bool = False,
) -> Any:
    """Return the step y = min(max(bias + weight x, low), high) on one sample.

    Where every place of a look has a value (`Variant.kept` is false), a missing connection is 0 times some input of the
    same tile: an input that is infinite or not a number then also reaches rows that it is not connected to. The other
    variants keep such inputs apart.

    Args:
        isa: an instruction set that this machine has.
        weight: outputs x inputs, 0 where there is no connection.
        bias: of every output, or None.
        x: the inputs, at lanes of 1; (channels, height, width) are read in that order.
        y: the outputs, at lanes of 1.
        low: the least output.
        high: the greatest output.
        variant: how the layer is stored.
        sorted: whether rows with like numbers of connections already stand together, as `order` puts them.

    Raises:
        ValueError: shapes do not fit, or the instruction set cannot do this variant.
    """
    rows, inputs = weight.shape
    source, target = positions(x), positions(y)
    if x.lanes != 1 or y.lanes != 1:
        raise ValueError(f"look-ups work on one sample, not on {x.lanes} and {y.lanes} side by side")
    if (rows, inputs) != (len(target), len(source)):
        raise ValueError(
            f"a weight of {rows} x {inputs} does not lead from {len(source)} inputs to {len(target)} outputs"
        )
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"a bias of shape {bias.shape} is none for {rows} outputs")
    permutation = np.arange(rows, dtype=np.int32) if sorted or not variant.width else order(weight)
    output = target[permutation]
    span = int(source[-1]) + 1
    common = {
        "x": x.at + FLOAT * x.first,
        "y": y.at + FLOAT * y.first,
        "rows": rows,
        "low": low,
        "high": high,
        "order": None if np.array_equal(output, np.arange(rows)) else output,
    }
    bias = np.zeros(rows, np.float32) if bias is None else bias.astype(np.float32)
    row, column = np.nonzero(weight)
    value = weight[row, column].astype(np.float32)
    if not variant.width:
        starts = np.searchsorted(row, np.arange(rows + 1))
        columns = source[column]
        return _native.compressed(isa, **common, width=span, bias=bias, starts=starts, columns=columns, values=value)
    rank = np.empty(rows, np.int64)
    rank[permutation] = np.arange(rows)
    packed = pack(rank[row], source[column], variant.width, variant.groups, 1, rows, span)
    store = _store_kept if variant.kept else _store_all
    return _native.lookup(
        isa,
        **common,
        width=variant.width,
        tiles=packed.tiles,
        groups=variant.groups,
        bias=_filled(bias[permutation], packed.blocks * variant.groups * LANES),
        fours=packed.fours,
        sums=packed.sums,
        **store(packed, value, variant.width),
    )


def linear_int8(
    isa: str,
    integers: NDArray[np.int8],
    scales: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    x: Bytes,
    y: Bytes | Floats,
    *,
    scale: float | None = None,
    scale_at: int | None = None,
    output_scale: float | None = None,
    low: float = -np.inf,
    high: float = np.inf,
    variant: Variant,
    sorted: bool = False,
) -> Any:
    """Return the step y = min(max(bias + scales scale integers (x - 128), low), high) on up to `x.samples` samples.

    Sums are whole numbers, and exact for up to 65000 connections of a row. Bytes are y = round(y / output_scale) + 128,
    at least 0 and at most 255, where y / output_scale is y times the nearest float to 1 / output_scale.

    Args:
        isa: an instruction set that this machine has.
        integers: outputs x inputs, 0 where there is no connection.
        scales: of every row of integers.
        bias: of every output, or None.
        x: the inputs.
        y: the outputs, as bytes for the next layer or as floats.
        scale: of x, where it is known.
        scale_at: bytes from the arena's start to where the scale of x stands, where it is not.
        output_scale: of y, where y is bytes.
        low: the least output.
        high: the greatest output.
        variant: how the layer is stored.
        sorted: whether rows with like numbers of connections already stand together, as `order` puts them.

    Raises:
        ValueError: shapes or scales do not fit, or the instruction set cannot do this variant.
    """
    rows, inputs = integers.shape
    if (rows, inputs) != (y.features, x.features) or x.samples != y.samples:
        raise ValueError(f"integers of {rows} x {inputs} do not lead from {x} to {y}")
    if integers.dtype != np.int8 or scales.shape != (rows,) or (bias is not None and bias.shape != (rows,)):
        raise ValueError(f"a layer of {rows} outputs has int8 integers, and a scale and a bias of each")
    if (scale is None) == (scale_at is None) or (output_scale is None) == isinstance(y, Bytes):
        raise ValueError("give scale or scale_at, and output_scale where the output is bytes")
    block = LANES * max(variant.groups, 1) if variant.width else LANES
    whole = -(-rows // block) * block
    permutation = np.arange(rows, dtype=np.int32) if sorted or not variant.width else order(integers)
    excess = 128 * integers.sum(axis=1, dtype=np.int32)
    layer = _native.LayerInt8(
        x=x.at,
        x_pitch=x.pitch,
        y=y.at,
        y_pitch=y.pitch,
        to_bytes=isinstance(y, Bytes),
        rows=rows,
        samples=x.samples,
        scale=1.0 if scale is None else scale,
        scale_at=-1 if scale_at is None else scale_at,
        inverse=1.0 if output_scale is None else float(1 / np.float32(output_scale)),
        low=low,
        high=high,
        bias=_filled((np.zeros(rows) if bias is None else bias)[permutation].astype(np.float32), whole),
        scales=_filled(scales[permutation].astype(np.float32), whole),
        excess=_filled(excess[permutation], whole),
        order=None if np.array_equal(permutation, np.arange(rows)) else permutation,
    )
    row, column = np.nonzero(integers)
    value = integers[row, column]
    if not variant.width:
        starts = np.searchsorted(row, np.arange(rows + 1))
        return _native.compressed_int8(
            isa, layer, width=inputs, starts=starts, columns=column.astype(np.int32), values=value
        )
    rank = np.empty(rows, np.int64)
    rank[permutation] = np.arange(rows)
    packed = pack(rank[row], column, variant.width, variant.groups, 4, rows, inputs)
    places = (packed.look * LANES + packed.lane) * 4 + packed.turn
    index = _zeros(packed.sums.size * LANES * 4, np.uint8)
    values = _zeros(index.size, np.int8)
    index[places] = packed.local
    values[places] = value
    return _native.lookup_int8(
        isa,
        layer,
        width=variant.width,
        tiles=packed.tiles,
        groups=variant.groups,
        fours=packed.fours,
        sums=packed.sums,
        index=index,
        values=values,
    )


@dataclass(frozen=True)
class Packed:
    """Connections shared out over looks.

    Attributes:
        blocks, tiles: how many.
        fours: the first four looks of every (block, tile, span), then their number.
        sums: where each look adds to, in lanes of its block.
        look, lane, turn: of each connection: its look, its row's lane, and its turn among the connections of a look.
        local: of each connection, its column's number within the tile.
    """

    blocks: int
    tiles: int
    fours: NDArray[np.int64]
    sums: NDArray[np.uint16]
    look: NDArray[np.int64]
    lane: NDArray[np.int64]
    turn: NDArray[np.int64]
    local: NDArray[np.uint8]


def pack(
    row: NDArray[Any], column: NDArray[Any], width: int, groups: int, per_look: int, rows: int, columns: int
) -> Packed:
    """Share connections out over looks: `per_look` of each of 16 rows at a time, tile after tile of `width` columns."""
    tiles = -(-columns // width)
    blocks = -(-rows // (groups * LANES))
    tile = column // width
    key = row * tiles + tile
    counts = np.bincount(key, minlength=blocks * groups * LANES * tiles)
    looks = -(-counts.reshape(blocks * groups, LANES, tiles).max(axis=1).ravel() // per_look)  # of (group, tile)
    fours, sums, at = _places(looks, tiles, groups, blocks)
    nth = _count_up(key, counts)
    look = at[(np.cumsum(looks) - looks)[row // LANES * tiles + tile] + nth // per_look]
    return Packed(blocks, tiles, fours, sums, look, row % LANES, nth % per_look, (column % width).astype(np.uint8))


def _places(
    looks: NDArray[np.int64], tiles: int, groups: int, blocks: int
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.int64]]:
    """Return the fours of every (block, tile, span), where each look adds to, and the place of every look.

    Spans go round the groups: what one adds to is not needed again at once.
    """
    of = np.repeat(np.arange(looks.size), looks)  # the (group, tile) of every look
    nth = np.arange(of.size) - np.repeat(np.cumsum(looks) - looks, looks)
    group, tile = of // tiles, of % tiles
    left = looks[of] - nth // 4 * 4  # of its group and tile, from its four on
    span = np.select([left >= 4, (left >= 2) & (nth % 4 < 2)], [0, 1], 2)
    part = (group // groups * tiles + tile) * len(SPANS) + span
    rounds = int(looks.max(initial=0)) // 4 + 1
    turn = np.argsort((part * rounds + nth // 4) * groups + group % groups, kind="stable")
    size = np.bincount(part, minlength=blocks * tiles * len(SPANS))
    fours = np.concatenate([[0], np.cumsum(-(-size // FOUR))])
    at = np.empty(of.size, np.int64)
    at[turn] = np.arange(of.size) + np.repeat(FOUR * fours[:-1] - (np.cumsum(size) - size), size)
    sums = np.full(FOUR * fours[-1], groups * LANES, np.uint16)
    sums[at] = group % groups * LANES
    return fours, sums, at


def _count_up(key: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many of the same key stand before each; equal keys stand in runs, but the runs in any order."""
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if key.size else np.zeros(0, np.int64)
    return np.arange(key.size) - np.repeat(begins, counts[key[begins]])


def _index(packed: Packed, width: int, kept: bool) -> NDArray[np.uint8]:
    """Return the bytes [four][lane][look]: five low bits for their own look, the high bits for the look after it."""
    index = _zeros(packed.sums.size * LANES, np.uint8)
    four, turn = packed.look // FOUR, packed.look % FOUR
    word = (four * LANES + packed.lane) * FOUR
    bits = {32: 0, 64: 1, 128: 2}[width]
    high = packed.local >> 5 << (8 - bits - kept)
    if kept:
        high |= 128
    index[word + (turn - 1) % FOUR] = high
    index[word + turn] |= packed.local & 31
    return index


def _store_all(packed: Packed, value: NDArray[np.float32], width: int) -> dict[str, Any]:
    values = _zeros(packed.sums.size * LANES, np.float32)
    values[packed.look * LANES + packed.lane] = value
    return {"index": _index(packed, width, False), "values": values, "kept": None}


def _store_kept(packed: Packed, value: NDArray[np.float32], width: int) -> dict[str, Any]:
    places = packed.look * LANES + packed.lane
    values = np.zeros(packed.sums.size * LANES, np.float32)
    there = np.zeros(values.size, np.bool_)
    values[places] = value
    there[places] = True
    first = packed.fours[: -1 : packed.tiles * len(SPANS)] * FOUR * LANES
    before = np.concatenate([[0], np.cumsum(there)])[first]
    return {"index": _index(packed, width, True), "values": values[there], "kept": before}


def _zeros(size: int, dtype: Any) -> NDArray[Any]:
    """Return zeros that begin with a cache line: a register is then read from one line, not from two."""
    bytes_ = size * np.dtype(dtype).itemsize
    raw = np.zeros(bytes_ + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + bytes_].view(dtype)


def _filled(rows: NDArray[Any], size: int) -> NDArray[Any]:
    return np.concatenate([rows, np.zeros(size - rows.size, rows.dtype)])
