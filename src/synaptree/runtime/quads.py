"""Sparse int8 linear layers on many samples at once: registers hold the same four inputs of sixteen samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from synaptree.runtime import _native
from synaptree.runtime.place import LANES
from synaptree.runtime.quantise import Bytes, Floats

__all__ = ["linear_quads", "offered", "sums_bytes"]

LINE = 64  # bytes of a register
FOUR = 4  # inputs of a quad
FEWEST, MOST = 9, 64  # samples
BLOCK = 32 * 1024  # bytes of inputs in a block, at most


def offered(isa: str, samples: int) -> bool:
    """Return whether such steps exist, and can be the fastest for so many samples.

    >>> offered("avx2", 64)
    False
    """
    return isa == "avx512" and FEWEST <= samples <= MOST


def sums_bytes(rows: int, samples: int) -> int:
    """Return how many bytes of the arena the sums of a layer take.

    >>> sums_bytes(10, 64)  # of 16 rows
    4096
    """
    return -(-rows // LANES) * LANES * _quad(samples)


def linear_quads(
    isa: str,
    integers: NDArray[np.int8],
    scales: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    x: Bytes,
    y: Bytes | Floats,
    *,
    sums: int,
    scale: float | None = None,
    scale_at: int | None = None,
    output_scale: float | None = None,
    low: float = -np.inf,
    high: float = np.inf,
) -> Any:
    """Return the step y = min(max(bias + scales scale integers (x - 128), low), high) on up to `x.samples` samples.

    What it computes is what `lookup.linear_int8` does, bit for bit.

    Args:
        isa: an instruction set that this machine has.
        integers: outputs x inputs, 0 where there is no connection.
        scales: of every row of integers.
        bias: of every output, or None.
        x: the inputs.
        y: the outputs, as bytes for the next layer or as floats.
        sums: bytes from the arena's start to where `sums_bytes` are the step's own.
        scale: of x, where it is known.
        scale_at: bytes from the arena's start to where the scale of x stands, where it is not.
        output_scale: of y, where y is bytes.
        low: the least output.
        high: the greatest output.

    Raises:
        ValueError: shapes or scales do not fit, or the instruction set cannot do this.
    """
    rows, inputs = integers.shape
    if (rows, inputs) != (y.features, x.features) or x.samples != y.samples:
        raise ValueError(f"integers of {rows} x {inputs} do not lead from {x} to {y}")
    if integers.dtype != np.int8 or scales.shape != (rows,) or (bias is not None and bias.shape != (rows,)):
        raise ValueError(f"a layer of {rows} outputs has int8 integers, and a scale and a bias of each")
    if (scale is None) == (scale_at is None) or (output_scale is None) == isinstance(y, Bytes):
        raise ValueError("give scale or scale_at, and output_scale where the output is bytes")
    block = _block(inputs, x.samples)
    starts, number, weights = _packed(integers, block)
    return _native.quads(
        isa,
        x=x.at,
        x_pitch=x.pitch,
        sums=sums,
        y=y.at,
        y_pitch=y.pitch,
        to_bytes=isinstance(y, Bytes),
        rows=rows,
        inputs=inputs,
        samples=x.samples,
        vectors=_quad(x.samples) // LINE,
        scale=1.0 if scale is None else scale,
        scale_at=-1 if scale_at is None else scale_at,
        inverse=1.0 if output_scale is None else float(1 / np.float32(output_scale)),
        low=low,
        high=high,
        bias=_filled(np.zeros(rows, np.float32) if bias is None else bias.astype(np.float32)),
        scales=_filled(scales.astype(np.float32)),
        excess=_filled(128 * integers.sum(axis=1, dtype=np.int32)),
        block_quads=block,
        starts=starts,
        offsets=(number * _quad(x.samples)).astype(np.uint16),
        weights=weights,
    )


def _quad(samples: int) -> int:
    """Return the bytes of four inputs of all samples side by side."""
    return -(-samples // LANES) * LINE


def _block(inputs: int, samples: int) -> int:
    """Return the quads of a block: blocks are of much the same size."""
    quads, most = -(-inputs // FOUR), BLOCK // _quad(samples) // FOUR * FOUR
    return -(-quads // -(-quads // most) // FOUR) * FOUR


def _packed(integers: NDArray[np.int8], block: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return where each row of each block starts, the number in its block of every quad, and its four weights.

    Rows of a block have an even number of quads: where one is missing, one without weights stands in.
    """
    rows, inputs = integers.shape
    fours = np.zeros((rows, -(-inputs // FOUR) * FOUR), np.int8)
    fours[:, :inputs] = integers
    row, quad = np.nonzero(fours.view(np.int32))
    key = quad // block * rows + row
    turn = np.argsort(key, kind="stable")
    counts = np.bincount(key, minlength=-(-fours.shape[1] // FOUR // block) * rows)
    starts = np.concatenate([[0], np.cumsum(counts + counts % 2)])
    place = np.arange(turn.size) + np.repeat(starts[:-1] - (np.cumsum(counts) - counts), counts)
    number, weights = np.zeros(starts[-1], np.int64), np.zeros(starts[-1], np.int32)
    number[place] = quad[turn] % block
    weights[place] = fours.view(np.int32)[row[turn], quad[turn]]
    return starts, number, weights


def _filled(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows filled up with zeros to whole registers."""
    return np.concatenate([rows, np.zeros(-rows.size % LANES, rows.dtype)])
