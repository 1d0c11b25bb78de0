"""Exact codings of a mask: bitmap, gaps, range. The smallest is written."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synaptree.format.entropy import Decoder, Encoder
from synaptree.format.errors import FormatError
from synaptree.format.wire import Reader, seal, unseal, varint, varint_bytes

__all__ = ["LIMIT", "MASK_CODINGS", "decode_mask", "encode_mask", "mask_coding", "mask_entropy"]

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
MASK_CODINGS = ("bitmap", "gaps", "range")  # the place in this list is the coding's number in the file
LIMIT = 1 << 31  # entries of a mask a reader accepts unless told otherwise
CLASSES = (1, 2, 4, 8, 16)  # into how many parts rows and columns may be sorted; each divides the next
LEAST = 8  # rows are sorted where they have this many entries: the order takes 8 bytes a row
SPAN = 1 << 18  # entries of a block decoded at a time


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
    tried: tuple[str, ...] = MASK_CODINGS if coding is None else (coding,)
    if int(np.count_nonzero(mask)) > _bitmap_bytes(mask.size):  # a gap takes at least one byte
        tried = tuple(name for name in tried if name != "gaps")
    bodies = {name: WRITERS[name](mask) for name in tried}
    bodies = {name: body for name, body in bodies.items() if name != "gaps" or len(body) <= _bitmap_bytes(mask.size)}
    if not bodies:
        raise FormatError(f"mask of shape {mask.shape}: 'gaps' needs more bytes than 'bitmap'; use that")
    best = min(bodies, key=lambda name: len(bodies[name]))
    return seal(bytes([MASK_CODINGS.index(best)]) + bodies[best])


def decode_mask(section: bytes, shape: tuple[int, int], limit: int = LIMIT) -> Mask:
    """Read a mask.

    Args:
        section: what `encode_mask` returned.
        shape: rows and columns, known from the file's header.
        limit: most entries accepted.

    Returns:
        The mask, bool, of that shape. Beside it at most 2 MiB, the section and its entries are in memory; "gaps"
        and the sorting of rows and columns take up to 50 bytes per byte of the section.

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
    return float(_bits(np.array([int(mask.sum())]), np.array([mask.size])))


def _bits(ones: Ints, entries: Ints) -> float:
    """Return the sum over blocks of the entropy in bits."""
    mixed = (ones > 0) & (ones < entries)
    k, n = ones[mixed].astype(np.float64), entries[mixed].astype(np.float64)
    return float((n * np.log2(n) - k * np.log2(k) - (n - k) * np.log2(n - k)).sum())


def _bitmap_bytes(entries: int) -> int:
    return (entries + 7) // 8


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
    """Rows (or columns) in order of their ones, cut into classes.

    Attributes:
        order: numbers of the rows, class after class; within a class as in the mask.
        starts: where each class begins in `order`, ending with the number of rows.
    """

    order: Ints
    starts: Ints

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.starts) - 1

    @property
    def sizes(self) -> Ints:
        """Number of rows of each class."""
        return np.diff(self.starts)

    def of(self) -> Ints:
        """Return the class of each row."""
        found = np.empty(len(self.order), np.int64)
        found[self.order] = np.repeat(np.arange(self.classes), self.sizes)
        return found


def _sorting(classes: npt.NDArray[np.integer], number: int) -> Sorting:
    """Return the sorting from the class of each row."""
    starts = np.cumsum(np.bincount(classes, minlength=number))
    return Sorting(np.argsort(classes, kind="stable"), np.concatenate([[0], starts]))


def _sorted_by(ones: Ints, parts: int) -> Sorting:
    """Cut rows into about `parts` equal parts by their ones; equals stay together, empty rows apart."""
    ranked = np.sort(ones)
    bounds = [int(ranked[i * len(ranked) // parts]) for i in range(1, parts)]
    bounds = sorted({*bounds, 1} if parts > 1 else ())
    classes = np.searchsorted(np.array(bounds, np.int64), ones, side="right")
    _, classes = np.unique(classes, return_inverse=True)  # none may be without rows
    return _sorting(classes, int(classes.max()) + 1)


def _table(mask: Mask, rows: Sorting, columns: Sorting) -> Ints:
    """Return the number of ones of each block, shape (row classes, column classes)."""
    row, column = np.nonzero(mask)
    cells = (rows.of() * columns.classes)[row] + columns.of()[column]
    found = np.bincount(cells, minlength=rows.classes * columns.classes).reshape(rows.classes, columns.classes)
    return found.astype(np.int64)


def _coarser(table: Ints, fine: tuple[Sorting, Sorting], coarse: tuple[Sorting, Sorting]) -> Ints:
    """Add up the blocks of sortings whose bounds are among the finer ones'."""
    for axis, (before, after) in enumerate(zip(fine, coarse, strict=True)):
        table = np.add.reduceat(table, np.searchsorted(before.starts, after.starts[:-1]), axis=axis)
    return table


def _cost(table: Ints, rows: Sorting, columns: Sorting) -> int:
    """Return about how many bytes the range coding needs."""
    entries = np.outer(rows.sizes, columns.sizes)
    bits = _bits(table.ravel(), entries.ravel())
    for side in (rows, columns):
        n = side.sizes.astype(np.float64)
        bits += float((n * np.log2(n.sum() / n)).sum()) + 16 * (side.classes > 1) * side.classes
    return round(bits / 8) + varint_bytes(table)


def _write_range(mask: Mask) -> bytes:
    if mask.size == 0:
        return b"\0"
    table, rows, columns = _grid(mask)
    head, coder = bytearray([(rows.classes - 1) << 4 | (columns.classes - 1)]), Encoder()
    for side in (rows, columns):
        if side.classes > 1:
            head += b"".join(varint(int(n)) for n in side.sizes)
            coder.write(side.of(), side.sizes)
    head += b"".join(varint(int(k)) for k in table.ravel())
    ordered = mask[rows.order][:, columns.order]
    for (r, c), ones in np.ndenumerate(table):
        block = ordered[rows.starts[r] : rows.starts[r + 1], columns.starts[c] : columns.starts[c + 1]]
        if 0 < ones < block.size:
            coder.write(block, (block.size - int(ones), int(ones)))
    return bytes(head) + coder.words()


def _grid(mask: Mask) -> tuple[Ints, Sorting, Sorting]:
    """Return the ones of each block, and the sortings of rows and columns, that need the fewest bytes."""
    rows, columns = (_choices(mask.sum(axis), mask.shape[axis]) for axis in (1, 0))
    fine = rows[-1], columns[-1]
    table = _table(mask, *fine)
    tried = [(_coarser(table, fine, (r, c)), r, c) for r in rows for c in columns if max(r.classes, c.classes) <= 16]
    return min(tried, key=lambda grid: _cost(*grid))


def _choices(ones: Ints, entries: int) -> list[Sorting]:
    """Return the sortings worth a try, each finer than the one before."""
    return [_sorted_by(ones, parts) for parts in (CLASSES if entries >= LEAST else (1,))]


def _read_range(reader: Reader, rows: int, columns: int) -> Mask:
    classes = reader.take(1)[0]
    if rows * columns == 0:
        reader.end()
        return np.zeros((rows, columns), np.bool_)
    row_sizes = _read_sizes(reader, rows, (classes >> 4) + 1, columns)
    column_sizes = _read_sizes(reader, columns, (classes & 15) + 1, rows)
    table = [(r, c, reader.varint(limit=r * c)) for r in row_sizes for c in column_sizes]
    if reader.left % 4:
        raise FormatError(f"range: wanted words of 4 bytes, got {reader.left} bytes")
    least = sum(_least_bits(r * c, ones) for r, c, ones in table)
    if least > 8 * reader.left:
        raise FormatError(f"range: {reader.left} bytes cannot hold the ones they claim, {least} bits at least")
    coder = Decoder(reader.words(reader.left // 4))
    across, down = _read_sorting(coder, row_sizes), _read_sorting(coder, column_sizes)
    mask = np.zeros((rows, columns), np.bool_)
    for number, (height, width, ones) in enumerate(table):
        r, c = divmod(number, len(column_sizes))
        into, beside = _members(across, r), _members(down, c)
        if ones == height * width:
            mask[_cells(into, beside)] = True
        elif ones:
            _read_block(coder, mask, (into, beside), (height, width), ones)
    coder.end()
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


def _read_sorting(coder: Decoder, sizes: list[int]) -> Sorting | None:
    """Read the class of each row and check that the classes have their sizes; None for one class."""
    if len(sizes) == 1:
        return None
    classes = coder.read(sum(sizes), sizes)
    if np.bincount(classes, minlength=len(sizes)).tolist() != sizes:
        raise FormatError("range: the classes of rows or columns do not have the sizes written before them")
    return _sorting(classes, len(sizes))


def _members(side: Sorting | None, number: int) -> Ints | slice:
    """Return the rows (or columns) of a class."""
    return slice(None) if side is None else side.order[side.starts[number] : side.starts[number + 1]]


def _part(members: Ints | slice, start: int, end: int) -> Ints | slice:
    """Return some of the rows (or columns) of a class."""
    return slice(start, end) if isinstance(members, slice) else members[start:end]


def _cells(rows: Ints | slice, columns: Ints | slice) -> tuple[Ints | slice, Ints | slice]:
    """Return the index of these rows and columns."""
    return rows if isinstance(rows, slice) or isinstance(columns, slice) else rows[:, None], columns


def _read_block(
    coder: Decoder, mask: Mask, cells: tuple[Ints | slice, Ints | slice], shape: tuple[int, int], ones: int
) -> None:
    """Read a block, some rows at a time, and check the number of its ones."""
    (into, beside), (height, width) = cells, shape
    seen, step = 0, max(1, SPAN // width)
    for top, left in ((top, left) for top in range(0, height, step) for left in range(0, width, SPAN)):
        bottom, right = min(top + step, height), min(left + SPAN, width)
        bits = coder.read((bottom - top) * (right - left), (height * width - ones, ones)).view(np.bool_)
        seen += int(np.count_nonzero(bits))
        part = _cells(_part(into, top, bottom), _part(beside, left, right))
        mask[part] = bits.reshape(bottom - top, right - left)
    if seen != ones:
        raise FormatError(f"range: a block with {seen} ones, wanted {ones}")


WRITERS = {"bitmap": _write_bitmap, "gaps": _write_gaps, "range": _write_range}
READERS = {"bitmap": _read_bitmap, "gaps": _read_gaps, "range": _read_range}
