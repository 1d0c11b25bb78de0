"""Dense convolution and linear layers of one sample, sixteen outputs to a register."""

from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from synaptree.runtime import _native
from synaptree.runtime.moves import native
from synaptree.runtime.place import LANES, Place

__all__ = ["Variant", "conv", "linear", "variants"]

Floats = NDArray[np.float32]
Pair = tuple[int, int]

LINE = 64  # bytes that are read at once


@dataclass(frozen=True)
class Variant:
    """A way to compute the layer.

    Attributes:
        pixels: output pixels whose sums stay in registers: 1, 4, 6 or 8.
        vectors: registers of 16 outputs for each of them, at most 8, 4, 4 or 3.
    """

    pixels: int
    vectors: int


def variants(weight: Floats, x: Place, y: Place) -> list[Variant]:
    """Return the ways worth timing for such a layer, the likely best first.

    Args:
        weight: (O, C, kh, kw), or (O, features).
        x: input with 1 lane.
        y: output of O channels with 1 lane.

    Raises:
        ValueError: more lanes than 1, or another number of outputs.
    """
    if (x.lanes, y.lanes, len(weight)) != (1, 1, y.channels):
        raise ValueError(f"{len(weight)} outputs of 1 lane, but x has {x.lanes} lanes and y {y.channels} x {y.lanes}")
    if y.height * y.width == 1:
        return [Variant(1, 8), Variant(1, 4)]
    registers = ceil(y.channels / LANES)
    if y.height * y.width <= 4:
        return [Variant(4, min(4, registers))]
    return [Variant(6, min(4, registers)), Variant(8, min(3, registers)), Variant(4, min(4, registers))]


def conv(
    isa: str,
    weight: Floats,
    bias: Floats | None,
    x: Place,
    y: Place,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    low: float = -inf,
    high: float = inf,
    residual: Place | None = None,
    variant: Variant,
) -> _native.Step:
    """Return the step y[o, i, j] = min(max(bias[o] + residual[o, i, j] + S, low), high).

    S = sum over c, k, l of weight[o, c, k, l] x[c, i s + k d - p, j s' + l d' - p'] with stride (s, s'), padding
    (p, p') and dilation (d, d'). Inputs that have no weight for a whole block of outputs are left out.

    Args:
        isa: one of `_native.isas()`.
        weight: (O, C, kh, kw).
        bias: (O,), or None for zeros.
        x: input of C channels, 1 lane and a border of at least the padding.
        y: output of O channels, 1 lane.
        stride: down and to the right, as the next two.
        padding: of zeros, at most the border of x.
        dilation: between neighbouring weights.
        low: the least that is written.
        high: the most that is written.
        residual: a value of y's shape that is added; any border.
        variant: one of `variants(weight, x, y)`.

    Raises:
        ValueError: shapes that do not fit together, more lanes than 1, a border that is too narrow.
    """
    _check(weight, x, y, stride, padding, dilation)
    _, channels, kernel_height, kernel_width = weight.shape
    c, k, l = np.indices((channels, kernel_height, kernel_width)).reshape(3, -1)  # noqa: E741
    offset = c * x.plane + (k * dilation[0] - padding[0]) * x.pitch + l * dilation[1] - padding[1]
    blocks = _blocks(np.asarray(weight, np.float32).reshape(len(weight), -1), variant.vectors)
    kept: list[NDArray[np.bool_]] = [np.any(block != 0, axis=0) for block in blocks]
    return _native.outputs(
        isa=isa,
        x=native(x),
        y=native(y),
        registers=_ends([ceil(len(block) / LANES) for block in blocks]),
        start=_ends([int(columns.sum()) for columns in kept]),
        offset=np.concatenate([offset[columns] for columns in kept]).astype(np.int32),
        weight=_packed(blocks, kept),
        bias=_whole_registers(np.zeros(len(weight)) if bias is None else bias),
        low=low,
        high=high,
        residual=None if residual is None else native(residual),
        pixels=variant.pixels,
        stride_down=stride[0],
        stride_right=stride[1],
    )


def linear(
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
    """Return the step y[o] = min(max(bias[o] + residual[o] + sum over k of weight[o, k] x[k], low), high).

    Args:
        isa: one of `_native.isas()`.
        weight: (O, K).
        bias: (O,), or None for zeros.
        x: K features, or C x H x W = K elements in that order; 1 lane.
        y: O features.
        low: the least that is written.
        high: the most that is written.
        residual: a value of y's shape that is added.
        variant: one of `variants(weight, x, y)`.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if weight.shape != (y.channels, x.channels * x.height * x.width):
        raise ValueError(f"weight is {weight.shape}, wanted {(y.channels, x.channels * x.height * x.width)}")
    whole = weight.reshape(y.channels, x.channels, x.height, x.width)
    return conv(isa, whole, bias, x, y, low=low, high=high, residual=residual, variant=variant)


def _check(weight: Floats, x: Place, y: Place, stride: Pair, padding: Pair, dilation: Pair) -> None:
    if weight.ndim != 4 or weight.shape[:2] != (y.channels, x.channels):
        raise ValueError(f"weight is {weight.shape}, wanted ({y.channels}, {x.channels}, kernel height, kernel width)")
    if x.top < padding[0] or x.left < padding[1]:
        raise ValueError(f"the border of x is {(x.top, x.left)} wide, the padding is {padding}")
    sizes = zip((x.height, x.width), padding, dilation, weight.shape[2:], stride, strict=True)
    wanted = tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in sizes)
    if wanted != (y.height, y.width):
        raise ValueError(f"the output is {wanted[0]} x {wanted[1]}, y is {y.height} x {y.width}")


def _blocks(weight: Floats, vectors: int) -> list[Floats]:
    """The weights (O, K) cut into blocks of about equally many registers of rows, at most `vectors`."""
    registers = ceil(len(weight) / LANES)
    count = ceil(registers / vectors)
    firsts = [LANES * (registers * block // count) for block in range(count)]
    return np.split(weight, firsts[1:])


def _packed(blocks: list[Floats], kept: list[NDArray[np.bool_]]) -> Floats:
    """The kept columns one after the other, each filled up to whole registers; lines of memory hold one register."""
    widths = [ceil(len(block) / LANES) * LANES for block in blocks]
    shapes = [(int(columns.sum()), width) for columns, width in zip(kept, widths, strict=True)]
    ends = np.cumsum([0] + [entries * width for entries, width in shapes])
    memory = np.zeros(4 * int(ends[-1]) + LINE, np.uint8)
    skipped = -memory.ctypes.data % LINE
    packed = memory[skipped : skipped + 4 * int(ends[-1])].view(np.float32)
    for block, columns, shape, end in zip(blocks, kept, shapes, ends, strict=False):
        packed[end : end + shape[0] * shape[1]].reshape(shape)[:, : len(block)] = block[:, columns].T
    return packed


def _ends(lengths: list[int]) -> NDArray[np.int32]:
    return np.cumsum([0, *lengths]).astype(np.int32)


def _whole_registers(bias: NDArray[np.floating]) -> Floats:
    filled = np.zeros(ceil(len(bias) / LANES) * LANES, np.float32)
    filled[: len(bias)] = bias
    return filled
