"""What lies between the layers of a network: activations, sums, pools, softmax and shortcuts."""

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from synaptree.runtime import _native
from synaptree.runtime.moves import native
from synaptree.runtime.place import Place

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "add",
    "affine",
    "avg_pool",
    "clamp",
    "leaky",
    "log_softmax",
    "max_pool",
    "prelu",
    "shortcut",
    "softmax",
]

Floats = npt.NDArray[np.float32]
Pair = tuple[int, int]


def clamp(isa: str, x: Place, y: Place, low: float = -inf, high: float = inf) -> Any:
    """Return the step `y = min(max(x, low), high)`.

    Raises:
        ValueError: if x and y differ in shape or lanes.
    """
    return add(isa, [x], y, low, high)


def add(isa: str, xs: Sequence[Place], y: Place, low: float = -inf, high: float = inf) -> Any:
    """Return the step `y = min(max(xs[0] + xs[1] + ..., low), high)`, of one to eight values.

    Raises:
        ValueError: if there are none or more than eight, or they differ in shape or lanes.
    """
    if not 1 <= len(xs) <= 8:
        raise ValueError(f"add: wanted one to eight values, got {len(xs)}")
    for x in xs:
        _check_alike("add", x, y)
    return _native.sum(isa, [native(x) for x in xs], native(y), low, high)


def affine(
    isa: str, x: Place, y: Place, scale: Floats, shift: Floats, low: float = -inf, high: float = inf
) -> Any:
    """Return the step `y[c] = min(max(scale[c] x[c] + shift[c], low), high)`, c being the channel.

    Raises:
        ValueError: if x and y differ in shape or lanes, or scale or shift is not of shape (channels,).
    """
    _check_alike("affine", x, y)
    parts = _per_channel("affine: scale", scale, x), _per_channel("affine: shift", shift, x)
    return _native.affine(isa, native(x), native(y), *parts, low, high)


def leaky(isa: str, x: Place, y: Place, slope: float) -> Any:
    """Return the step `y = x` where `x >= 0`, `slope x` elsewhere.

    Raises:
        ValueError: if x and y differ in shape or lanes.
    """
    return prelu(isa, x, y, np.full(1, slope, np.float32))


def prelu(isa: str, x: Place, y: Place, slope: Floats) -> Any:
    """Return the step `y[c] = x[c]` where `x[c] >= 0`, `slope[c] x[c]` elsewhere, c being the channel.

    Raises:
        ValueError: if x and y differ in shape or lanes, or slope is not of shape (channels,) or (1,).
    """
    _check_alike("prelu", x, y)
    slope = np.repeat(slope, x.channels) if np.shape(slope) == (1,) else slope
    return _native.leaky(isa, native(x), native(y), _per_channel("prelu: slope", slope, x))


def max_pool(
    isa: str,
    x: Place,
    y: Place,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    low: float = -inf,
    high: float = inf,
) -> Any:
    """Return the step `y[c, i, j] = max over (a, b) of x[c, i stride_h + a dilation_h - padding_h, ...]`.

    a and b run over the kernel and leave out what is outside of x, as `torch.nn.MaxPool2d` does. The shape of y says
    how many windows there are: with `ceil_mode` there may be one more. The result is kept between low and high.

    Raises:
        ValueError: if y has another number of windows, channels or lanes.
    """
    _check_channels("max_pool", x, y)
    rows = _windows("max_pool", x.height, y.height, kernel[0], stride[0], padding[0], dilation[0])
    columns = _windows("max_pool", x.width, y.width, kernel[1], stride[1], padding[1], dilation[1])
    return _native.pool(isa, "max", native(x), native(y), *rows, *columns, dilation, low, high)


def avg_pool(
    isa: str,
    x: Place,
    y: Place,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    count_include_pad: bool = True,
    divisor: int | None = None,
    low: float = -inf,
    high: float = inf,
) -> Any:
    """Return the step `y[c, i, j] = mean over (a, b) of x[c, i stride_h + a - padding_h, j stride_w + b - padding_w]`.

    Elements outside of x are 0. As in `torch.nn.AvgPool2d` the sum is divided by `divisor`, or by the elements of the
    window; with `count_include_pad` those in the padding are among them. The shape of y says how many windows there
    are: with `ceil_mode` there may be one more. The result is kept between low and high.

    Raises:
        ValueError: if y has another number of windows, channels or lanes.
    """
    _check_channels("avg_pool", x, y)
    rows = _windows("avg_pool", x.height, y.height, kernel[0], stride[0], padding[0], 1, count_include_pad)
    columns = _windows("avg_pool", x.width, y.width, kernel[1], stride[1], padding[1], 1, count_include_pad)
    if divisor is not None:
        rows = (*rows[:2], np.full(y.height, 1 / divisor, np.float32))
        columns = (*columns[:2], np.ones(y.width, np.float32))
    return _native.pool(isa, "avg", native(x), native(y), *rows, *columns, (1, 1), low, high)


def adaptive_max_pool(isa: str, x: Place, y: Place, low: float = -inf, high: float = inf) -> Any:
    """Return the step that gives every element of y the maximum of its share of x, kept between low and high.

    Element i of n takes `floor(i size / n)` to `ceil((i + 1) size / n)` of the rows, and so of the columns.

    Raises:
        ValueError: if x and y differ in channels or lanes.
    """
    return _adaptive(isa, "max", x, y, low, high)


def adaptive_avg_pool(isa: str, x: Place, y: Place, low: float = -inf, high: float = inf) -> Any:
    """Return the step that gives every element of y the mean of its share of x, kept between low and high.

    Element i of n takes `floor(i size / n)` to `ceil((i + 1) size / n)` of the rows, and so of the columns.

    Raises:
        ValueError: if x and y differ in channels or lanes.
    """
    return _adaptive(isa, "avg", x, y, low, high)


def softmax(isa: str, x: Place, y: Place) -> Any:
    """Return the step `y[c] = exp(x[c]) / (exp(x[0]) + exp(x[1]) + ...)`, over the channels of every pixel.

    Raises:
        ValueError: if x and y differ in shape or lanes.
    """
    _check_alike("softmax", x, y)
    return _native.softmax(isa, native(x), native(y), False)


def log_softmax(isa: str, x: Place, y: Place) -> Any:
    """Return the step `y[c] = x[c] - log(exp(x[0]) + exp(x[1]) + ...)`, over the channels of every pixel.

    Raises:
        ValueError: if x and y differ in shape or lanes.
    """
    _check_alike("log_softmax", x, y)
    return _native.softmax(isa, native(x), native(y), True)


def shortcut(
    isa: str,
    x: Place,
    y: Place,
    scale: Floats,
    stride: int = 1,
    z: Place | None = None,
    low: float = -inf,
    high: float = inf,
) -> Any:
    """Return the step `y[c, i, j] = min(max(scale[c] x[c - offset, i stride, j stride] + z[c, i, j], low), high)`.

    `offset` is `(y.channels - x.channels) // 2`; channels outside of x count as 0, and so does z if there is none.

    Raises:
        ValueError: if y has not the size of every stride-th row and column of x, z is not shaped as y, or scale not of
            shape (y.channels,).
    """
    size = -(-x.height // stride), -(-x.width // stride)
    if (y.height, y.width) != size or x.lanes != y.lanes:
        raise ValueError(f"shortcut: wanted {size[0]} x {size[1]} in {x.lanes} lanes, got {_shape(y)}")
    if z is not None:
        _check_alike("shortcut", z, y)
    scale = _per_channel("shortcut: scale", scale, y)
    offset = (y.channels - x.channels) // 2
    plus = None if z is None else native(z)
    return _native.shortcut(isa, native(x), native(y), scale, offset, stride, plus, low, high)


Windows = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Floats]


def _windows(
    name: str, size: int, out: int, kernel: int, stride: int, padding: int, dilation: int, include_pad: bool = False
) -> Windows:
    """Return where the windows of an axis start within it, how many elements each has there, and their shares."""
    if min(kernel, stride, dilation) < 1 or padding < 0:
        raise ValueError(f"{name}: kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}")
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    fewest, most = room // stride + 1, -(-room // stride) + 1
    most -= (most - 1) * stride >= size + padding  # none begins behind x and the padding before it
    if out not in (fewest, most):
        raise ValueError(f"{name}: wanted {fewest} windows over {size} elements, or {most} with ceil_mode, got {out}")
    begin = np.arange(out) * stride - padding
    start = np.where(begin < 0, begin + -(begin // dilation) * dilation, begin)
    stop = np.minimum(begin + (kernel - 1) * dilation + 1, size)
    count = np.maximum(-(-(stop - start) // dilation), 0)
    divisor = np.minimum(begin + kernel, size + padding) - begin if include_pad else np.maximum(count, 1)
    return np.where(count > 0, start, 0).astype(np.int32), count.astype(np.int32), (1 / divisor).astype(np.float32)


def _adaptive(isa: str, kind: str, x: Place, y: Place, low: float, high: float) -> Any:
    _check_channels(f"adaptive_{kind}_pool", x, y)
    rows, columns = _bins(x.height, y.height), _bins(x.width, y.width)
    return _native.pool(isa, kind, native(x), native(y), *rows, *columns, (1, 1), low, high)


def _bins(size: int, out: int) -> Windows:
    at = np.arange(out + 1) * size
    start, stop = at[:-1] // out, -(-at[1:] // out)
    return start.astype(np.int32), (stop - start).astype(np.int32), (1 / (stop - start)).astype(np.float32)


def _per_channel(name: str, values: Floats, place: Place) -> Floats:
    if np.shape(values) != (place.channels,):
        raise ValueError(f"{name}: wanted shape ({place.channels},), got {np.shape(values)}")
    return np.ascontiguousarray(values, np.float32)


def _check_alike(name: str, x: Place, y: Place) -> None:
    if _shape(x) != _shape(y):
        raise ValueError(f"{name}: wanted values of one shape, got {_shape(x)} and {_shape(y)}")


def _check_channels(name: str, x: Place, y: Place) -> None:
    if (x.channels, x.lanes) != (y.channels, y.lanes):
        raise ValueError(f"{name}: wanted {x.channels} channels in {x.lanes} lanes, got {_shape(y)}")


def _shape(place: Place) -> str:
    return f"{place.channels} x {place.height} x {place.width} in {place.lanes} lanes"
