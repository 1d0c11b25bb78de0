"""The header of a file: what it computes, which tensors follow, how long their sections are."""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np

from synaptree.format.dtypes import DTYPES, ITEM_BYTES
from synaptree.format.errors import FormatError
from synaptree.format.program import NAME_BYTES, Program
from synaptree.format.steps import read_dtype, read_program, read_shape, write_program, write_shape
from synaptree.format.tree import name_after, read_name_after, read_text, read_tree, text, tree
from synaptree.format.wire import Reader, varint

__all__ = ["VALUES", "Header", "Line", "Shape", "Stored", "entries", "read_header", "write_header"]

T = TypeVar("T")
Shape = tuple[int, ...]
VALUES = ("fp32", "fp16", "int8", "raw")  # the place in this list is the number in the file
PROGRAM, TOPOLOGY = 1, 2  # parts of the header that may be missing
SECTION_LIMIT = 1 << 48
FREE, SHARE = 1 << 20, 1 << 16  # entries of all tensors: so many, and so many for each byte behind the header


class Line(NamedTuple):
    """A tensor's line in the table of tensors.

    Attributes:
        name, shape, dtype, values: of the entry.
        mask_shape: of the mask, as many axes as `shape`, each as long or 1; None without mask.
        sizes: bytes of the sections of mask (0 without mask) and values.
    """

    name: str
    shape: Shape
    dtype: str
    values: str
    mask_shape: Shape | None
    sizes: tuple[int, int]


@dataclass(frozen=True)
class Stored:
    """An array in a tree, whose section stands behind those of the tensors.

    Attributes:
        shape, dtype: of the array.
        size: bytes of its section.
    """

    shape: Shape
    dtype: str
    size: int


class Header(NamedTuple):
    """All of a file but its sections.

    Attributes:
        program: what it computes, if it says so.
        tensors: lines of the table, in the order of their sections.
        aliases: name to the stored tensor it stands for.
        ranges: number of a value to its range.
        topology: tree; what was read has a `Stored` for each array.
        arrays: those of the tree, in the order of their sections.
        about: texts.
    """

    program: Program | None
    tensors: tuple[Line, ...]
    aliases: Mapping[str, str]
    ranges: Mapping[int, float]
    topology: Mapping[str, Any] | None
    arrays: tuple[Stored, ...]
    about: Mapping[str, str]

    @property
    def section_bytes(self) -> int:
        """Bytes of all sections."""
        return sum(sum(line.sizes) for line in self.tensors) + sum(array.size for array in self.arrays)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors and arrays, zeros written out."""
        return sum(entries(shape) * ITEM_BYTES[dtype] for shape, dtype in self._kinds)

    @property
    def filler_bytes(self) -> int:
        """Bytes behind the sections, so that no small file claims large tensors.

        All entries together are at most `2**20 + 2**16 * (section_bytes + filler_bytes)`.
        """
        claimed = sum(entries(shape) for shape, _ in self._kinds)
        return max(0, -(-(claimed - FREE) // SHARE) - self.section_bytes)

    @property
    def _kinds(self) -> list[tuple[Shape, str]]:
        return [(line.shape, line.dtype) for line in self.tensors] + [(each.shape, each.dtype) for each in self.arrays]


def entries(shape: Shape) -> int:
    """Return the product of the axes, where one of length 0 counts as 1: what an array may take in memory."""
    return prod(max(1, axis) for axis in shape)


def write_header(header: Header) -> bytes:
    """Return the header as bytes; of the same header the same bytes.

    Raises:
        FormatError: it holds what cannot be written.
    """
    places = {line.name: place for place, line in enumerate(header.tensors)}
    out = bytearray([PROGRAM * (header.program is not None) | TOPOLOGY * (header.topology is not None)])
    if header.program is not None:
        out += write_program(header.program)
    out += _named({line.name: _write_line(line) for line in header.tensors})
    out += _named({name: varint(places[stored]) for name, stored in header.aliases.items()})
    if header.program is not None:
        out += varint(len(header.ranges))
        out += b"".join(varint(value) + struct.pack("<d", header.ranges[value]) for value in sorted(header.ranges))
    if header.topology is not None:
        arrays = iter(header.arrays)
        out += tree(dict(header.topology), lambda value: _write_stored(value, arrays))
    out += varint(len(header.about))
    return bytes(out + b"".join(text(key) + text(said) for key, said in header.about.items()))


def read_header(body: bytes) -> Header:
    """Read a header.

    Raises:
        FormatError: the bytes are none, or not those that `write_header` gives.
    """
    reader = Reader(body)
    parts = reader.take(1)[0]
    if parts > PROGRAM | TOPOLOGY:
        raise FormatError(f"unknown parts of the header {parts}. Known: 0 to {PROGRAM | TOPOLOGY}")
    program = read_program(reader) if parts & PROGRAM else None
    tensors = tuple(_each_named(reader, _read_line))
    last = max(0, len(tensors) - 1)
    aliases = dict(_each_named(reader, lambda r, name: (name, r.varint(limit=last))))
    if aliases and not tensors:
        raise FormatError("aliases of no tensor")
    ranges = dict(_read_range(reader) for _ in range(reader.varint(limit=reader.left))) if parts & PROGRAM else {}
    arrays: list[Stored] = []
    topology = read_tree(reader, lambda r: _read_stored(r, arrays)) if parts & TOPOLOGY else None
    if parts & TOPOLOGY and not isinstance(topology, dict):
        raise FormatError(f"topology: wanted a dict, got {type(topology).__name__}")
    about = dict(_read_about(reader) for _ in range(reader.varint(limit=reader.left)))
    reader.end()
    stored = {name: tensors[place].name for name, place in aliases.items()}
    return Header(program, tensors, stored, ranges, topology, tuple(arrays), about)


def _named(lines: Mapping[str, bytes]) -> bytes:
    """Return how many lines there are, and each behind its name."""
    out = bytearray(varint(len(lines)))
    before = ""
    for name, line in lines.items():
        out += name_after(name, before) + line
        before = name
    return bytes(out)


def _each_named(reader: Reader, read: Callable[[Reader, str], T]) -> Iterator[T]:
    """Read what `_named` wrote."""
    name = ""
    for _ in range(reader.varint(limit=reader.left)):
        name = read_name_after(reader, name, NAME_BYTES)
        yield read(reader, name)


def _write_line(line: Line) -> bytes:
    out = bytes([DTYPES.index(line.dtype) | VALUES.index(line.values) << 4]) + write_shape(line.shape)
    if line.mask_shape is None:
        return out + varint(0) + varint(line.sizes[1])
    shorter = [own != axis for own, axis in zip(line.mask_shape, line.shape, strict=True)]
    form = 1 + sum(1 << place for place, each in enumerate(shorter) if each)
    return out + varint(form) + b"".join(varint(size) for size in line.sizes)


def _read_line(reader: Reader, name: str) -> Line:
    kind = reader.take(1)[0]
    dtype, shape = read_dtype(kind & 15), read_shape(reader)
    if kind >> 4 >= len(VALUES):
        raise FormatError(f"{name}: unknown coding of values {kind >> 4}. Known: 0 to {len(VALUES) - 1}")
    values = VALUES[kind >> 4]
    form = reader.varint(limit=1 << len(shape))
    mask_shape = tuple(1 if form - 1 >> place & 1 else axis for place, axis in enumerate(shape)) if form else None
    mask_bytes = reader.varint(limit=SECTION_LIMIT) if form else 0
    return Line(name, shape, dtype, values, mask_shape, (mask_bytes, reader.varint(limit=SECTION_LIMIT)))


def _read_range(reader: Reader) -> tuple[int, float]:
    value = reader.varint(limit=SECTION_LIMIT)
    return value, struct.unpack("<d", reader.take(8))[0]


def _read_about(reader: Reader) -> tuple[str, str]:
    key = read_text(reader)
    return key, read_text(reader)


def _write_stored(value: object, arrays: Iterator[Stored]) -> bytes:
    if not isinstance(value, Stored | np.ndarray):
        return b""
    stored = next(arrays)
    return bytes([DTYPES.index(stored.dtype)]) + write_shape(stored.shape) + varint(stored.size)


def _read_stored(reader: Reader, arrays: list[Stored]) -> Stored:
    dtype = read_dtype(reader.take(1)[0])
    arrays.append(Stored(read_shape(reader), dtype, reader.varint(limit=SECTION_LIMIT)))
    return arrays[-1]
