"""Codings of the values that stay: fp32 without loss, fp16, int8 per channel; entropy-coded where that helps."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from synaptree.format.entropy import Decoder, Encoder, model
from synaptree.format.errors import FormatError
from synaptree.format.wire import Reader, seal, unseal, varint, varint_lengths

__all__ = ["VALUE_CODINGS", "Quantized", "decode_values", "encode_values", "quantize", "value_coding"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Channels = npt.NDArray[np.integer[Any]]
VALUE_CODINGS = ("fp32", "fp16", "int8")  # the place in this list is the coding's number in the file
WIDTH = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes a value has before entropy coding
RAW, CODED, CONSTANT = range(3)  # how a plane is written
COUNT_LIMIT = 1 << 38
GROUPS = 6  # neighbouring bytes share a count in groups of 1, 2, 4, .. 32
LEVELS = 127  # of int8, on each side of zero
PART = 1 << 15  # values worked on at a time: what is made on the way stays in the cache
GAIN = 0.01  # share of its bytes a plane must save to be entropy-coded: raw it is read 50 times as fast


class Quantized(NamedTuple):
    """Values in steps: `w ~ scale[channel] integer`.

    Attributes:
        integers: from -127 to 127, shape (n,).
        scales: fp16, shape (channels,); 0 for a channel without values other than 0.
        error: largest difference to the values, in their unit; at most half of the largest scale.
    """

    integers: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]
    error: float


def quantize(values: Floats, channels: Channels, number: int) -> Quantized:
    """Round values to int8, symmetric, with one scale per channel.

    `scale[c] = max |w| / 127` over the values of channel c, rounded up to fp16; `integer = round(w / scale[c])`, halves
    to the even neighbour.

    Args:
        values: finite, shape (n,).
        channels: channel of each value, from 0 to number - 1, shape (n,).
        number: number of channels.

    Raises:
        FormatError: a value is not finite, or a scale is above what fp16 holds.

    >>> found = quantize(np.array([1.27, -0.5, 0.01], np.float32), np.array([0, 0, 1]), 2)
    >>> found.integers.tolist(), found.scales.tolist()
    ([127, -50, 127], [0.01000213623046875, 7.87973403930664e-05])
    """
    if not np.isfinite(values).all():
        raise FormatError(f"int8: {int((~np.isfinite(values)).sum())} of {values.size} values are not finite")
    exact = _largest(values, channels, number) / LEVELS
    if exact.max(initial=0) > np.finfo(np.float16).max:
        raise FormatError(f"int8: a scale of {exact.max():.6g}, wanted at most {np.finfo(np.float16).max}; use fp32")
    scales = exact.astype(np.float16)
    scales = np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)
    steps = np.where(scales > 0, scales, 1).astype(np.float64)  # a channel without values other than 0 takes any
    integers, error = np.empty(values.size, np.int8), 0.0
    for start in range(0, values.size, PART):
        part = slice(start, start + PART)
        step = steps[channels[part]]
        rounded = np.rint(values[part] / step)
        integers[part] = rounded
        error = max(error, float(np.abs(rounded * step - values[part]).max()))
    return Quantized(integers, scales, error)


def _largest(values: Floats, channels: Channels, number: int) -> npt.NDArray[np.float64]:
    """Return the largest absolute value of each channel, 0 for a channel without values."""
    largest = np.zeros(number)
    if values.size:
        runs = np.concatenate([[0], np.flatnonzero(channels[1:] != channels[:-1]) + 1])  # channels mostly come in order
        np.maximum.at(largest, channels[runs], np.maximum.reduceat(np.abs(values), runs).astype(np.float64))
    return largest


def encode_values(values: Floats, coding: str, channels: Channels | None = None, number: int = 1) -> bytes:
    """Write values.

    Args:
        values: shape (n,).
        coding: "fp32" (without loss, NaN and infinity included), "fp16" (finite values up to 65504, rounded to the
            nearest) or "int8" (see `quantize`).
        channels: for int8, the channel of each value; all of channel 0 if None.
        number: for int8, the number of channels.

    Returns:
        The section: the coding's number, what it wrote, and a checksum.

    Raises:
        FormatError: the array is not fp32 of one dimension, does not fit the coding, or nobody knows the coding.

    >>> decode_values(encode_values(np.array([0.5, -3], np.float32), "fp16"), 2).tolist()
    [0.5, -3.0]
    """
    if coding not in VALUE_CODINGS:
        raise FormatError(f"unknown value coding {coding!r}. Known: {', '.join(VALUE_CODINGS)}")
    if values.dtype != np.float32 or values.ndim != 1:
        raise FormatError(f"values of shape {values.shape}: wanted fp32 of one dimension, got {values.dtype}")
    head = bytes([VALUE_CODINGS.index(coding)])
    if coding == "int8":
        found = quantize(values, _checked(channels, values.size, number), number)
        symbols = found.integers.view(np.uint8) ^ np.uint8(128)  # the same bits as adding 128
        return seal(head + found.scales.astype("<f2").tobytes() + _write_plane(symbols))
    patterns = values.view(np.uint32) if coding == "fp32" else _halves(values).view(np.uint16)
    rotated = patterns << 1 | patterns >> (8 * WIDTH[coding] - 1)  # exponent alone in the highest byte, sign lowest
    planes = rotated.astype(f"<u{WIDTH[coding]}").view(np.uint8).reshape(values.size, WIDTH[coding])
    return seal(head + b"".join(_write_plane(plane) for plane in np.ascontiguousarray(planes.T)))


def decode_values(section: bytes, size: int, channels: Channels | None = None, number: int = 1) -> Floats:
    """Read values.

    Args:
        section: what `encode_values` returned.
        size: number of values, known from the mask.
        channels: for int8, the channel of each value; all of channel 0 if None.
        number: for int8, the number of channels.

    Returns:
        fp32, shape (size,).

    Raises:
        FormatError: the bytes are damaged or hold no such values.
    """
    coding = value_coding(section)
    reader = Reader(unseal(section))
    reader.take(1)
    if coding == "int8":
        return _read_int8(reader, _checked(channels, size, number), number)
    width = WIDTH[coding]
    planes = np.empty((size, width), np.uint8)
    for place in range(width):
        planes[:, place] = _read_plane(reader, size)
    reader.end()
    patterns = planes.view(f"<u{width}").ravel().astype(f"u{width}", copy=False)
    for start in range(0, size, PART):  # turned back where they stand
        part = patterns[start : start + PART]
        part[:] = part >> 1 | part << (8 * width - 1)
    if coding == "fp32":
        return patterns.view(np.float32)
    halves = patterns.view(np.float16)
    if not np.isfinite(halves).all():
        raise FormatError("fp16: a value is not finite")
    return halves.astype(np.float32)


def value_coding(section: bytes) -> str:
    """Return the name of the coding values were written in.

    Raises:
        FormatError: nobody knows the coding.
    """
    number = section[0] if section else -1
    if not 0 <= number < len(VALUE_CODINGS):
        raise FormatError(f"unknown value coding {number}. Known: 0 to {len(VALUE_CODINGS) - 1}")
    return VALUE_CODINGS[number]


def _checked(channels: Channels | None, size: int, number: int) -> Channels:
    """Return the channel of each value, checked."""
    if channels is None:
        channels = np.broadcast_to(np.int64(0), (size,))  # takes no memory
    if channels.shape != (size,):
        raise FormatError(f"int8: channels of shape {channels.shape}, wanted ({size},)")
    if size and not 0 <= channels.min() <= channels.max() < number:
        raise FormatError(f"int8: channels from {channels.min()} to {channels.max()}, wanted 0 to {number - 1}")
    return channels


def _halves(values: Floats) -> npt.NDArray[np.float16]:
    """Return the values rounded to fp16."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        count = int((~np.isfinite(halves)).sum())
        raise FormatError(f"fp16: {count} of {values.size} values are not finite or above 65504; use fp32")
    return halves


def _read_int8(reader: Reader, channels: Channels, number: int) -> Floats:
    scales = np.frombuffer(reader.take(2 * number), "<f2").astype(np.float32)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise FormatError("int8: a scale is negative or not finite")
    symbols = _read_plane(reader, channels.size)
    reader.end()
    if (symbols == 0).any():
        raise FormatError("int8: an integer of -128, wanted -127 to 127")
    values = np.empty(symbols.size, np.float32)
    for start in range(0, symbols.size, PART):
        part = slice(start, start + PART)
        integers = (symbols[part] ^ 128).view(np.int8)  # the same bits as subtracting 128
        values[part] = integers * scales[channels[part]]  # at most 18 bits: exact in fp32
    return values


def _write_plane(symbols: Bytes) -> bytes:
    """Write bytes as one repeated byte, entropy-coded where that saves enough, or raw."""
    raw = bytes([RAW]) + symbols.tobytes()
    if symbols.size == 0:
        return raw
    counts = _counts(symbols)
    used = np.flatnonzero(counts)
    low, high = int(used[0]), int(used[-1])
    if low == high:
        return min(raw, bytes([CONSTANT, low]), key=len)
    table = _table(counts[low : high + 1], (1 - GAIN) * symbols.size)
    if table is None:
        return raw
    coder = Encoder()
    coder.write(symbols - np.uint8(low), model(_spread(table.shares, table.group, high - low + 1)))
    words = coder.words()
    head = bytes([CODED, low, high - low, table.group]) + b"".join(varint(int(c)) for c in table.shares)
    return min(raw, head + varint(len(words) // 4) + words, key=len)


def _counts(symbols: Bytes) -> Ints:
    """Return how often each byte occurs, shape (256,)."""
    counts = np.zeros(256, np.int64)
    for start in range(0, symbols.size, PART):
        counts += np.bincount(symbols[start : start + PART], minlength=256)
    return counts


class Table(NamedTuple):
    """Counts as they are written.

    Attributes:
        cost: about how many bytes symbols and counts need.
        group: 2**group neighbouring bytes share a count.
        shares: count of each byte of a group, shape (groups,).
    """

    cost: float
    group: int
    shares: Ints


def _table(counts: Ints, limit: float) -> Table | None:
    """Return the cheapest table; None if none costs less than the limit."""
    best: Table | None = None
    for group in range(GROUPS):
        starts = np.arange(0, counts.size, 1 << group)
        widths = np.diff(starts, append=counts.size)
        sums = np.add.reduceat(counts, starts)
        if _bytes(sums, sums / widths, widths) + sums.size < limit:  # no table of these groups costs less than that
            table = _rounded(sums, widths, group)
            if table.cost < limit:
                best, limit = table, table.cost
    return best


def _rounded(sums: Ints, widths: Ints, group: int) -> Table:
    """Return the cheapest table of the mean counts of groups, divided by a power of two."""
    deepest = int(sums.max()).bit_length()  # from there on all counts are 0 or 1
    divisors = widths << np.arange(0, deepest, 2)[:, None]
    shares = -(-sums // divisors)  # up: what occurs gets no count of 0
    costs = _bytes(sums, shares, widths) + varint_lengths(shares).sum(1) + 8
    cheapest = int(costs.argmin())
    return Table(float(costs[cheapest]), group, shares[cheapest])


def _bytes(sums: Ints, shares: Ints | npt.NDArray[np.float64], widths: Ints) -> npt.NDArray[np.float64]:
    """Return about how many bytes the symbols take, coded with these counts for each byte of a group."""
    whole = (shares * widths).sum(-1, keepdims=True)
    found: npt.NDArray[np.float64] = (sums * np.log2(whole / np.where(sums, shares, 1))).sum(-1) / 8
    return found


def _spread(shares: Ints, group: int, size: int) -> Ints:
    """Return the count of each byte."""
    return np.repeat(shares, 1 << group)[:size]


def _read_plane(reader: Reader, size: int) -> Bytes:
    """Read bytes, shape (size,)."""
    way = reader.take(1)[0]
    if way == RAW:
        return np.frombuffer(reader.take(size), np.uint8)
    if way == CONSTANT:
        return np.full(size, reader.take(1)[0], np.uint8)
    if way != CODED:
        raise FormatError(f"unknown way to write a plane {way}. Known: {RAW}, {CODED}, {CONSTANT}")
    low, span, group = reader.take(3)
    if group >= GROUPS:
        raise FormatError(f"plane: groups of 2**{group} bytes, wanted at most 2**{GROUPS - 1}")
    if span == 0 or low + span > 255:
        raise FormatError(f"plane: bytes from {low} to {low + span}, wanted two or more up to 255")
    shares = [reader.varint(limit=COUNT_LIMIT) for _ in range((span >> group) + 1)]
    if not any(shares):
        raise FormatError("plane: all counts are 0")
    coder = Decoder(reader.words(reader.varint(limit=reader.left // 4)))
    symbols = coder.read(size, model(_spread(np.array(shares, np.int64), group, span + 1)))
    coder.end()
    symbols += np.uint8(low)
    return symbols
