"""Carry samples into the arena and out of it, and values from place to place."""

from typing import Any

from synaptree.runtime import _native
from synaptree.runtime.place import FLOAT, Place

__all__ = ["copy", "enter", "leave", "native", "split"]


def native(place: Place) -> Any:
    """Return a place as kernels have it: where its first element lies that is no border, and the steps from there."""
    return _native.Place(
        at=place.at + FLOAT * place.first,
        channels=place.channels,
        height=place.height,
        width=place.width,
        lanes=place.lanes,
        plane=place.plane,
        pitch=place.pitch,
    )


def enter(isa: str, place: Place) -> Any:
    """Return the step that carries samples in, `place[c, i, j, lane] = x[lane, c, i, j]`.

    `x` is what the caller gives, of shape (samples, features) in C order; lanes without a sample are 0.
    """
    return _native.enter(isa, native(place))


def leave(isa: str, place: Place) -> Any:
    """Return the step that carries samples out, `y[lane, c, i, j] = place[c, i, j, lane]`.

    `y` is what the caller wants, of shape (samples, features) in C order; lanes without a sample are left out.
    """
    return _native.leave(isa, native(place))


def copy(isa: str, x: Place, y: Place, channel: int = 0) -> Any:
    """Return the step `y[channel + c, i, j] = x[c, i, j]`, for values one behind another and for other borders.

    If only one of the two is flat, its features are the elements of the other in the order channel, row, column:
    `y[channel + (c height + i) width + j] = x[c, i, j]`, or `y[channel + c, i, j] = x[(c height + i) width + j]`.

    Raises:
        ValueError: if x does not fit into y from that channel on, or their lanes differ.
    """
    area_x, area_y = x.height * x.width, y.height * y.width
    flattens = area_x == 1 or area_y == 1
    same = (x.height, x.width) == (y.height, y.width) or flattens
    room = (y.channels - channel) * area_y
    if not same or x.lanes != y.lanes or channel < 0 or x.channels * area_x > room or x.channels * area_x % area_y:
        raise ValueError(
            f"copy: wanted channels {channel} to the last of {_shape(y)} to take all of x, which is {_shape(x)}"
        )
    return _native.copy(isa, native(x), native(y), channel)


def split(isa: str, x: Place, y: Place, stride: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> Any:
    """Return the step that gives every stride-th row and column a plane of its own.

    `y[(py stride_w + px) x.channels + c, i, j] = x[c, i stride_h + py - padding_h, j stride_w + px - padding_w]` for
    `0 <= py < stride_h` and `0 <= px < stride_w`, and 0 where that is outside of x. A convolution of that stride and
    padding is then one of stride 1 without padding, tap (ky, kx) of channel c being tap
    `(ky // stride_h, kx // stride_w)` of channel `((ky % stride_h) stride_w + kx % stride_w) x.channels + c`.

    Args:
        isa: instruction set.
        x: of one lane.
        y: of one lane, `x.channels stride_h stride_w` channels, any height and width.
        stride: rows and columns from one element of a plane to the next.
        padding: rows and columns of zeros before x.

    Raises:
        ValueError: if y has another number of channels, or one of them more than one lane.
    """
    channels = x.channels * stride[0] * stride[1]
    if min(stride) < 1 or min(padding) < 0 or (x.lanes, y.lanes) != (1, 1) or y.channels != channels:
        raise ValueError(
            f"split: wanted {channels} channels of one lane for stride {stride} and padding {padding} of {_shape(x)}, "
            f"got {_shape(y)}"
        )
    return _native.split(isa, native(x), native(y), stride, padding)


def _shape(place: Place) -> str:
    return f"{place.channels} x {place.height} x {place.width} in {place.lanes} lanes"
