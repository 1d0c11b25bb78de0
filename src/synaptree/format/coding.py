"""Exact codings of a mask: bitmap, gaps, range. The smallest is written."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synaptree.format.entropy import Decoder, Encoder, Model, model, models
from synaptree.format.errors import FormatError
from synaptree.format.wire import Reader, seal, unseal, varint, varint_lengths

__all__ = ["LIMIT", "MASK_CODINGS", "decode_mask", "encode_mask", "mask_coding", "mask_entropy"]

Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MASK_CODINGS = ("bitmap", "gaps", "range")  # the place in this list is the coding's number in the file
LIMIT = 1 << 31  # entries of a mask a reader accepts unless told otherwise
CLASSES = (1, 2, 4, 8, 16)  # into how many parts rows and columns may be sorted; each divides the next
MOST = 16  # classes a sorting may have
LEAST = 8  # rows are sorted where they have this many entries: the order takes 8 bytes a row
SPAN = 1 << 18  # entries of a block decoded at a time
PART = 1 << 14  # columns whose places are found at a time


def encode_mask(mask: Mask, coding: str | None = None) -> bytes:
    """Write a mask without loss in the coding that needs the fewest bytes.

    Args:
        mask: bool, shape (rows, columns).
        coding: "bitmap", "gaps" or "range"; the smallest if None, the first of these among equals.

    Returns:
        The section: the coding's number, what it wrote, and a checksum.

    Raises:
        FormatError: the mask is not bool or has not two dimensions, nobody knows the coding, or "gaps" is asked for
            and needs more bytes than "bitmap".

    >>> mask = np.eye(3, dtype=bool)
    >>> section = encode_mask(mask)
    >>> mask_coding(section), len(section), bool((decode_mask(section, (3, 3)) == mask).all())
    ('bitmap', 7, True)
    """
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise FormatError(f"mask of shape {mask.shape}: wanted bool of two dimensions, got {mask.dtype}")
    if coding is not None and coding not in MASK_CODINGS:
        raise FormatError(f"unknown mask coding {coding!r}. Known: {', '.join(MASK_CODINGS)}")
    bitmap = _bitmap_bytes(mask.size)
    plans = {name: PLANS[name](mask) for name in (MASK_CODINGS if coding is None else (coding,))}
    plans = {name: plan for name, plan in plans.items() if name != "gaps" or plan.least <= bitmap}
    bodies: dict[str, bytes] = {}
    for name, plan in sorted(plans.items(), key=lambda item: item[1].least):
        if all(plan.least <= len(body) for body in bodies.values()):
            bodies[name] = plan.write()
    if len(bodies.get("gaps", b"")) > bitmap:
        del bodies["gaps"]
    if not bodies:
        raise FormatError(f"mask of shape {mask.shape}: 'gaps' needs more bytes than 'bitmap'; use that")
    best = min((name for name in MASK_CODINGS if name in bodies), key=lambda name: len(bodies[name]))
    return seal(bytes([MASK_CODINGS.index(best)]) + bodies[best])


def decode_mask(section: bytes, shape: tuple[int, int], limit: int = LIMIT) -> Mask:
    """Read a mask.

    Args:
        section: what `encode_mask` returned.
        shape: rows and columns, known from the file's header.
        limit: most entries accepted.

    Returns:
        The mask, bool, of that shape. Beside it and the section at most 2 MiB are in memory; "gaps" takes up to 50
        bytes per byte of the section, "range" 10 per row and per column where they are sorted.

    Raises:
        FormatError: the bytes are damaged, are no mask of this shape, or the shape is above the limit.
    """
    rows, columns = shape
    if min(shape) < 0 or rows * columns > limit:
        raise FormatError(f"mask of shape {shape}: wanted at most {limit} entries, got {rows * columns}")
    coding = mask_coding(section)
    reader = Reader(unseal(section))
    reader.take(1)
    return READERS[coding](reader, rows, columns)


def mask_coding(section: bytes) -> str:
    """Return the name of the coding a mask was written in.

    Raises:
        FormatError: nobody knows the coding.
    """
    number = section[0] if section else -1
    if not 0 <= number < len(MASK_CODINGS):
        raise FormatError(f"unknown mask coding {number}. Known: 0 to {len(MASK_CODINGS) - 1}")
    return MASK_CODINGS[number]


def mask_entropy(mask: Mask) -> float:
    """Return the layer-wise entropy in bits: `-k log2(k / n) - (n - k) log2(1 - k / n)` for k ones among n entries.

    >>> round(mask_entropy(np.array([[True, False, False, False]])), 3)  # 1 x 2 + 3 x 0.415
    3.245
    """
    return float(_bits(int(np.count_nonzero(mask)), mask.size))


def _bits(ones: Ints | int, entries: Ints | int) -> Floats:
    """Return the entropy of each block in bits."""
    return _weighed(entries) - _weighed(ones) - _weighed(entries - ones)


def _weighed(numbers: Ints | int) -> Floats:
    """Return `n log2(n)`, 0 for 0."""
    found: Floats = np.multiply(numbers, np.log2(np.maximum(numbers, 1)))
    return found


def _bitmap_bytes(entries: int) -> int:
    return (entries + 7) // 8


class Plan(NamedTuple):
    """A way to write a mask.

    Attributes:
        least: bytes it takes at least: a plan that cannot be the shortest is not carried out.
        write: returns the body.
    """

    least: int
    write: Callable[[], bytes]


def _bitmap(mask: Mask) -> Plan:
    return Plan(_bitmap_bytes(mask.size), partial(_write_bitmap, mask))


def _gaps(mask: Mask) -> Plan:
    return Plan(int(np.count_nonzero(mask)), partial(_write_gaps, mask))  # a gap takes at least one byte


def _range(mask: Mask) -> Plan:
    if mask.size == 0:
        return Plan(1, lambda: b"\0")
    grid = _grid(mask)
    return Plan(grid.least, partial(_write_range, mask, grid))


def _write_bitmap(mask: Mask) -> bytes:
    return np.packbits(mask, axis=None, bitorder="little").tobytes()


def _read_bitmap(reader: Reader, rows: int, columns: int) -> Mask:
    size = rows * columns
    bits = np.frombuffer(reader.take(_bitmap_bytes(size)), np.uint8)
    reader.end()
    if size % 8 and bits[-1] >> size % 8:
        raise FormatError("bitmap: the bits behind the last entry are not zero")
    return np.unpackbits(bits, count=size, bitorder="little").view(np.bool_).reshape(rows, columns)


def _write_gaps(mask: Mask) -> bytes:
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    lengths = np.ones(gaps.size, np.int64)
    for shift in range(7, 63, 7):
        lengths += gaps >> shift > 0
    ends = np.cumsum(lengths)
    out = np.empty(ends[-1] if gaps.size else 0, np.uint8)
    for place in range(int(lengths.max(initial=0))):
        longer = lengths > place
        group = gaps[longer] >> 7 * place & 127
        out[(ends - lengths)[longer] + place] = group | np.where(lengths[longer] > place + 1, 128, 0)
    return out.tobytes()


def _read_gaps(reader: Reader, rows: int, columns: int) -> Mask:
    if reader.left > _bitmap_bytes(rows * columns):
        raise FormatError(f"gaps: {reader.left} bytes, more than the bitmap's {_bitmap_bytes(rows * columns)}")
    groups = np.frombuffer(reader.take(reader.left), np.uint8)
    ends = np.flatnonzero(groups < 128)
    if groups.size and (ends.size == 0 or ends[-1] != groups.size - 1):
        raise FormatError("gaps: the last number is cut")
    lengths = np.diff(ends, prepend=-1)
    if lengths.size and lengths.max() > 5:
        raise FormatError("gaps: a number of more than 5 bytes")
    if (groups[ends[lengths > 1]] == 0).any():
        raise FormatError("gaps: a number is written with more bytes than it needs")
    gaps = np.zeros(ends.size, np.int64)
    for place in range(int(lengths.max(initial=0))):
        longer = lengths > place
        gaps[longer] |= (groups[(ends - lengths + 1)[longer] + place] & 127).astype(np.int64) << 7 * place
    places = np.cumsum(gaps + 1) - 1
    if places.size and places[-1] >= rows * columns:
        raise FormatError(f"gaps: entry {places[-1]} of a mask with {rows * columns}")
    mask = np.zeros(rows * columns, np.bool_)
    mask[places] = True
    return mask.reshape(rows, columns)


class Sorting(NamedTuple):
    """Rows (or columns) cut into classes by their ones.

    Attributes:
        of: class of each row.
        sizes: number of rows of each class, none 0.
    """

    of: Bytes
    sizes: Ints

    @property
    def parts(self) -> list[Ints | slice]:
        """The rows of each class, in order; a slice where one class has them all."""
        if len(self.sizes) == 1:
            return [slice(0, int(self.sizes[0]))]
        return list(np.split(self.order, np.cumsum(self.sizes)[:-1]))

    @property
    def order(self) -> Ints:
        """Rows class after class, within a class in order."""
        return np.argsort(self.of, kind="stable")

    @property
    def head(self) -> bytes:
        """The sizes as they are written."""
        return b"".join(varint(int(n)) for n in self.sizes) if len(self.sizes) > 1 else b""


class Grid(NamedTuple):
    """Sortings of rows and columns.

    Attributes:
        rows: sorting of the rows.
        columns: sorting of the columns.
        table: ones of each block, shape (row classes, column classes).
        least: bytes the range coding takes at least; it takes a word or two more.
    """

    rows: Sorting
    columns: Sorting
    table: Ints
    least: int


def _grid(mask: Mask) -> Grid:
    """Return the sortings of rows and columns that need the fewest bytes."""
    rows = _choices(mask.sum(1, dtype=np.int64), mask.shape[1])
    sums = np.stack([mask[part].sum(0, dtype=np.int64) for part in rows[-1].parts])
    columns = _choices(sums.sum(0), mask.shape[0])
    finest = np.stack([sums[:, part].sum(1) for part in columns[-1].parts], axis=1)
    table = _joining(rows) @ finest @ _joining(columns).T
    least = _least_bytes(table, rows, columns)
    r, c = divmod(int(least.argmin()), len(columns))
    table = np.split(np.split(table, _starts(rows)[1:])[r], _starts(columns)[1:], axis=1)[c]
    return Grid(rows[r], columns[c], table, int(least[r, c]))


def _choices(ones: Ints, entries: int) -> list[Sorting]:
    """Return the sortings worth a try, each finer than the one before.

    Rows are cut into about equal parts by their ones; equals stay together, empty rows apart.
    """
    numbers, which, rows = np.unique(ones, return_inverse=True, return_counts=True)
    found: list[Sorting] = []
    for parts in CLASSES if entries >= LEAST else CLASSES[:1]:
        begins = np.zeros(len(numbers), np.bool_)
        begins[np.searchsorted(np.cumsum(rows), np.arange(1, parts) * len(ones) // parts, side="right")] = True
        begins[1:2] |= parts > 1 and numbers[0] == 0
        begins[0] = True
        sizes = np.add.reduceat(rows, np.flatnonzero(begins))
        if len(sizes) <= MOST and (not found or len(sizes) > len(found[-1].sizes)):
            found.append(Sorting((np.cumsum(begins) - 1).astype(np.uint8)[which], sizes))
    return found


def _starts(choices: list[Sorting]) -> Ints:
    """Return where the classes of each choice begin among those of all choices, one choice behind the other."""
    return np.cumsum([0, *(len(each.sizes) for each in choices[:-1])])


def _joining(choices: list[Sorting]) -> Ints:
    """Return the matrix that adds up the finest classes to the classes of all choices, one choice behind the other."""
    begins = np.cumsum(choices[-1].sizes) - choices[-1].sizes
    joined = [
        np.arange(len(each.sizes))[:, None] == np.searchsorted(np.cumsum(each.sizes), begins, side="right")
        for each in choices
    ]
    return np.concatenate(joined).astype(np.int64)


def _least_bytes(table: Ints, rows: list[Sorting], columns: list[Sorting]) -> Ints:
    """Return how many bytes each pair of choices needs at least, shape (choices of rows, choices of columns).

    No message is shorter than its entropy under the counts it is coded with; one bit is left to rounding.
    """
    entries = np.outer(*(np.concatenate([each.sizes for each in side]) for side in (rows, columns)))
    bits, heads = (
        np.add.reduceat(np.add.reduceat(of_blocks, _starts(rows), axis=0), _starts(columns), axis=1)
        for of_blocks in (_bits(table, entries), varint_lengths(table))
    )
    for side, shape in ((rows, (-1, 1)), (columns, (1, -1))):
        bits = bits + np.reshape([_weighed(len(each.of)) - _weighed(each.sizes).sum() for each in side], shape)
        heads = heads + np.reshape([len(each.head) for each in side], shape)
    return 1 + heads + 4 * np.ceil((bits - 1) / 32).astype(np.int64)


def _write_range(mask: Mask, grid: Grid) -> bytes:
    rows, columns, table, _ = grid
    classes = (len(rows.sizes) - 1) << 4 | (len(columns.sizes) - 1)
    head = bytes([classes]) + rows.head + columns.head + b"".join(varint(int(k)) for k in table.ravel())
    coder = Encoder()
    for side in (rows, columns):
        if len(side.sizes) > 1:
            coder.write(side.of, model(side.sizes))
    order, places = columns.order, list(pairwise([0, *np.cumsum(columns.sizes)]))
    for part, height, ones in zip(rows.parts, rows.sizes, table, strict=True):
        band = mask[part].take(order, axis=1) if len(places) > 1 else mask[part]
        tables = models(np.stack([height * columns.sizes - ones, ones], axis=1))
        for (left, right), count, chosen in zip(places, ones, tables, strict=True):
            if 0 < count < height * (right - left):
                coder.write(band[:, left:right], chosen)
    return head + coder.words()


def _read_range(reader: Reader, rows: int, columns: int) -> Mask:
    classes = reader.take(1)[0]
    if rows * columns == 0:
        reader.end()
        return np.zeros((rows, columns), np.bool_)
    row_sizes = _read_sizes(reader, rows, (classes >> 4) + 1, columns)
    column_sizes = _read_sizes(reader, columns, (classes & 15) + 1, rows)
    table = [(r * c, reader.varint(limit=r * c)) for r in row_sizes for c in column_sizes]
    if reader.left % 4:
        raise FormatError(f"range: wanted words of 4 bytes, got {reader.left} bytes")
    least = sum(_least_bits(entries, ones) for entries, ones in table)
    if least > 8 * reader.left:
        raise FormatError(f"range: {reader.left} bytes cannot hold the ones they claim, {least} bits at least")
    coder = Decoder(reader.words(reader.left // 4))
    across, down = _read_sorting(coder, row_sizes).parts, _read_sorting(coder, column_sizes)
    mask = np.zeros((rows, columns), np.bool_)
    places = [slice(end - size, end) for end, size in zip(np.cumsum(column_sizes), column_sizes, strict=True)]
    tables = models([(entries - ones, ones) for entries, ones in table])
    for (into, beside), (entries, ones), chosen in zip(product(across, places), table, tables, strict=True):
        if ones == entries:
            mask[into, beside] = True
        elif ones:
            _read_block(coder, chosen, mask, (into, beside), ones)
    coder.end()
    if len(places) > 1:
        _put_back(mask, down)
    return mask


def _least_bits(entries: int, ones: int) -> int:
    """Return what the entropy of a block is at least: `k log2(n / k)`, rounded down."""
    rare = min(ones, entries - ones)
    return rare * ((entries // rare).bit_length() - 1) if rare else 0


def _read_sizes(reader: Reader, whole: int, number: int, entries: int) -> list[int]:
    """Read how many rows, of so many entries, each class has; one class has them all."""
    if number == 1:
        return [whole]
    if entries < LEAST:
        raise FormatError(f"range: rows or columns of {entries} entries are sorted, wanted at least {LEAST} entries")
    sizes = [reader.varint(limit=whole) for _ in range(number)]
    if sum(sizes) != whole or not all(sizes):
        raise FormatError(f"range: {number} classes of {sizes} rows or columns, wanted {whole} and none empty")
    return sizes


def _read_sorting(coder: Decoder, sizes: list[int]) -> Sorting:
    """Read the class of each row and check that the classes have their sizes."""
    if len(sizes) == 1:
        return Sorting(np.empty(0, np.uint8), np.array(sizes))  # nobody asks for the order
    classes = coder.read(sum(sizes), model(sizes))
    if np.bincount(classes, minlength=len(sizes)).tolist() != sizes:
        raise FormatError("range: the classes of rows or columns do not have the sizes written before them")
    return Sorting(classes, np.array(sizes))


def _read_block(coder: Decoder, chosen: Model, mask: Mask, place: tuple[Ints | slice, slice], ones: int) -> None:
    """Read a block into these rows and columns, some rows at a time, and check the number of its ones."""
    into, beside = place
    height = into.stop if isinstance(into, slice) else into.size
    seen, step = 0, max(1, SPAN // (beside.stop - beside.start))
    for top, left in product(range(0, height, step), range(beside.start, beside.stop, SPAN)):
        rows = slice(top, min(top + step, height))
        columns = slice(left, min(left + SPAN, beside.stop))
        bits = coder.read((rows.stop - top) * (columns.stop - left), chosen).view(np.bool_)
        seen += int(np.count_nonzero(bits))
        mask[rows if isinstance(into, slice) else into[rows], columns] = bits.reshape(rows.stop - top, -1)
    if seen != ones:
        raise FormatError(f"range: a block with {seen} ones, wanted {ones}")


def _put_back(mask: Mask, down: Sorting) -> None:
    """Move columns, now class after class, to their own places, some rows at a time."""
    places, free = np.empty(down.of.size, np.int64), np.cumsum(down.sizes) - down.sizes
    for start in range(0, places.size, PART):  # the inverse of the order, made without it
        of = down.of[start : start + PART]
        for number in range(free.size):
            here = np.flatnonzero(of == number)
            places[start + here] = free[number] + np.arange(here.size)
            free[number] += here.size
    step = max(1, SPAN // places.size)
    for top in range(0, len(mask), step):
        mask[top : top + step] = mask[top : top + step].take(places, axis=1)


PLANS = {"bitmap": _bitmap, "gaps": _gaps, "range": _range}
READERS = {"bitmap": _read_bitmap, "gaps": _read_gaps, "range": _read_range}
