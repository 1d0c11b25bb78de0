"""A `.syn` file: a sparse network as data. Reading trusts nothing, writing gives the same bytes every time."""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from synaptree.format.dtypes import DTYPES
from synaptree.format.errors import FormatError
from synaptree.format.header import Header, Line, Shape, Stored, read_header, write_header
from synaptree.format.program import Program, check, check_name
from synaptree.format.replacing import replacing
from synaptree.format.sections import Array, Entry, check_kind, entry_from, raw_array, raw_section, sections_of
from synaptree.format.tree import tree
from synaptree.format.wire import CHECKSUM_BYTES, Reader, seal, unseal

__all__ = ["LIMIT", "MAGIC", "VERSION", "Entry", "File", "decode", "encode", "read_file", "split", "write_file"]

MAGIC = b"\x89SYN\r\n\x1a\n"  # not text, and damaged by whatever takes it for text
VERSION = 1
HEADER_LIMIT = 1 << 22  # bytes; what is made of them takes up to a hundred times as many
LIMIT = 1 << 33  # bytes of all tensors, zeros written out, that a reader accepts unless told otherwise
START = struct.Struct("<8sHII")  # magic, version, bytes of the header, checksum of the sections' checksums


@dataclass(frozen=True, eq=False)
class File:
    """A sparse network as data.

    Attributes:
        program: what it computes; None if it says nothing about that.
        entries: tensors by name.
        aliases: tied tensors: name to the name of the entry that is stored.
        ranges: number of a value of the program to how large it gets: the 99.9th percentile of |x|.
        topology: dicts with text as keys, lists, numbers, texts and arrays; the masks are those of the entries.
        about: texts, for people.

    Arrays that were read cannot be written to: the file keeps the bytes they came from and writes those again.

    >>> file = File(entries={"weight": Entry.of("weight", np.eye(2, dtype=np.float32), np.eye(2, dtype=bool))})
    >>> decode(encode(file)).tensor("weight")
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """

    program: Program | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[int, float] = field(default_factory=dict)
    topology: Mapping[str, Any] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    _arrays: dict[int, tuple[Array, bytes]] = field(default_factory=dict, init=False, repr=False)  # as they were read

    def entry(self, name: str) -> Entry:
        """Return the entry of a name or an alias.

        Raises:
            FormatError: there is none.
        """
        stored = self.aliases.get(name, name)
        if stored not in self.entries:
            raise FormatError(f"no tensor {name!r} in the file. Known: {', '.join([*self.entries, *self.aliases])}")
        return self.entries[stored]

    def tensor(self, name: str) -> Array:
        """Return a new dense array: fp32 if its values are coded, +0.0 where there is no connection.

        Raises:
            FormatError: there is no such tensor.
        """
        return self.entry(name).tensor()

    def mask(self, name: str) -> npt.NDArray[np.bool_] | None:
        """Return a new array with the mask, which broadcasts over the tensor; None if every entry is stored.

        Raises:
            FormatError: there is no such tensor.
        """
        mask = self.entry(name).mask
        return None if mask is None else mask.copy()


def encode(file: File) -> bytes:
    """Return the bytes of a file, the same for the same content.

    What was read, and not replaced, is written as it was read: `encode(decode(data)) == data`.

    Raises:
        FormatError: names the tensor or the step that cannot be written, and why.
    """
    for name, entry in file.entries.items():
        if name != entry.name:
            raise FormatError(f"entry {entry.name!r} stands under the name {name!r}")
        entry.check()
    shapes, dtypes = ({n: getattr(e, what) for n, e in file.entries.items()} for what in ("shape", "dtype"))
    _check_names(file.program, shapes, dtypes, file.aliases, file.ranges)
    pairs = {name: sections_of(entry) for name, entry in file.entries.items()}
    arrays = _arrays_of(file)
    header = Header(
        file.program, tuple(_line(entry, pairs[name]) for name, entry in file.entries.items()), file.aliases,
        file.ranges, file.topology, tuple(stored for stored, _ in arrays), file.about,
    )
    body = write_header(header)
    if len(body) > HEADER_LIMIT:
        raise FormatError(f"header of {len(body)} bytes, wanted at most {HEADER_LIMIT}; the topology's lists take most")
    sections = [section for pair in pairs.values() for section in pair if section]
    sections += [section for _, section in arrays]
    start = START.pack(MAGIC, VERSION, len(body), _joint_checksum(sections))
    return b"".join([seal(start + body), *sections, bytes(header.filler_bytes)])


def decode(data: bytes, *, limit: int = LIMIT) -> File:
    """Read a file.

    Args:
        data: all of its bytes.
        limit: most bytes that its tensors may take with zeros written out.

    Returns:
        The file. Its masks take a byte an entry, its values 4; reading takes at most twice that and twice the bytes,
        and some MiB.

    Raises:
        FormatError: says at which byte, tensor or step the bytes are not what the format says.
    """
    header, sections = split(data, limit)
    left = iter(sections)
    entries = {line.name: entry_from(line, _pair(line, left)) for line in header.tensors}
    arrays = [(_read_array(stored, section), section) for stored, section in zip(header.arrays, left, strict=True)]
    topology = None if header.topology is None else _filled(header.topology, iter([array for array, _ in arrays]))
    file = File(header.program, entries, header.aliases, header.ranges, topology, header.about)
    file._arrays.update({id(array): (array, section) for array, section in arrays})
    return file


def split(data: bytes, limit: int = LIMIT) -> tuple[Header, list[bytes]]:
    """Read the header, check all that it claims, and cut the sections out; what is in them is not looked at.

    Args:
        data: all bytes of a file.
        limit: most bytes that its tensors may take with zeros written out.

    Returns:
        The header; for each tensor the section of its mask, if it has one, and that of its values; then those of the
        topology's arrays.

    Raises:
        FormatError: the bytes are no such file.
    """
    reader = Reader(data)
    if not data.startswith(MAGIC):
        raise FormatError(f"no .syn file: begins with {data[: len(MAGIC)]!r}, wanted {MAGIC!r}")
    start = reader.take(START.size)
    _, version, size, joint = START.unpack(start)
    if version != VERSION:
        raise FormatError(f"unknown version {version}. Known: {VERSION}; it may have been written by a later synaptree")
    if size > HEADER_LIMIT:
        raise FormatError(f"header of {size} bytes, wanted at most {HEADER_LIMIT}")
    body = unseal(start + reader.take(size) + reader.take(CHECKSUM_BYTES))[START.size :]
    header = read_header(body)
    _check_claims(header, reader.left, limit)
    shapes, dtypes = ({line.name: getattr(line, what) for line in header.tensors} for what in ("shape", "dtype"))
    _check_names(header.program, shapes, dtypes, header.aliases, header.ranges)
    if write_header(header) != body:
        raise FormatError("header: names or keys that stand twice, out of order, or written longer than needed")
    sizes = [size for line in header.tensors for size in line.sizes[line.mask_shape is None :]]
    sections = [reader.take(size) for size in (*sizes, *(array.size for array in header.arrays))]
    if any(reader.take(reader.left)):
        raise FormatError("the bytes behind the last section are not zero")
    if _joint_checksum(sections) != joint:
        raise FormatError("the sections are not those that the header was written for")
    return header, sections


def write_file(path: str | Path, file: File) -> int:
    """Write a file, whole or not at all, and return its bytes.

    Raises:
        FormatError: it cannot be written; names what and why. A file that was there before stands as it was.
    """
    data = encode(file)
    try:
        with replacing(path) as partial, open(partial, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # whole before it takes the old one's place
    except OSError as error:
        raise FormatError(f"{path}: cannot be written: {error.strerror or error}") from error
    return len(data)


def read_file(path: str | Path, *, limit: int = LIMIT) -> File:
    """Read a file; see `decode`.

    Raises:
        FormatError: names the path, and what is wrong with it.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(len(MAGIC))
            data = start + stream.read() if start == MAGIC else start
        return decode(data, limit=limit)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _check_names(
    program: Program | None, shapes: Mapping[str, Shape], dtypes: Mapping[str, str], aliases: Mapping[str, str],
    ranges: Mapping[int, float],
) -> None:
    """Check names of tensors and aliases, and the program with them."""
    for name in (*shapes, *aliases):
        check_name(name)
    for name, stored in aliases.items():
        if name in shapes or stored not in shapes:
            raise FormatError(f"alias {name!r} of {stored!r}: wanted a name of its own for a tensor that is stored")
    values = 0
    if program is not None:
        values = len(program.inputs) + len(program.steps)
        tied = {name: shapes[stored] for name, stored in aliases.items()}
        check(program, {**shapes, **tied}, {**dtypes, **{name: dtypes[stored] for name, stored in aliases.items()}})
    for value, largest in ranges.items():
        if not 0 <= value < values or not isfinite(largest) or largest < 0:
            raise FormatError(f"range {largest} of value {value}: wanted a finite one, of one of {values} values")


def _check_claims(header: Header, left: int, limit: int) -> None:
    """Check the lengths in the header against the bytes behind it, and the size of what they stand for."""
    for line in header.tensors:
        check_kind(line.name, line.dtype, line.values)
        if line.mask_shape is not None and not line.shape:
            raise FormatError(f"{line.name}: a mask of a single number")
    if any(array.dtype == "bfloat16" for array in header.arrays):
        raise FormatError("topology: an array of bfloat16; wanted another dtype")
    if header.section_bytes + header.filler_bytes != left:
        wanted = f"{header.section_bytes} bytes of sections and {header.filler_bytes} of filler"
        raise FormatError(f"wanted {wanted} behind the header, got {left}")
    if header.dense_bytes > limit:
        raise FormatError(f"tensors of {header.dense_bytes} bytes, wanted at most {limit}; raise the limit to read it")


def _joint_checksum(sections: Iterable[bytes]) -> int:
    """Return the CRC-32 of the checksums of sections: it changes where two are exchanged."""
    return zlib.crc32(b"".join(section[-CHECKSUM_BYTES:] for section in sections))


def _line(entry: Entry, sections: tuple[bytes, bytes]) -> Line:
    mask_shape = None if entry.mask is None else entry.mask.shape
    return Line(entry.name, entry.shape, entry.dtype, entry.values, mask_shape, (len(sections[0]), len(sections[1])))


def _pair(line: Line, sections: Iterator[bytes]) -> tuple[bytes, bytes]:
    return b"" if line.mask_shape is None else next(sections), next(sections)


def _arrays_of(file: File) -> list[tuple[Stored, bytes]]:
    """Return the arrays of the topology in order, with their sections: as they were read, if they were."""
    found: list[tuple[Stored, bytes]] = []

    def take(value: object) -> bytes:
        if not isinstance(value, np.ndarray):
            return b""
        if value.dtype.name not in DTYPES:
            raise FormatError(f"topology: an array of {value.dtype}. Known: {', '.join(DTYPES)}")
        array, section = file._arrays.get(id(value), (None, b""))
        section = section if array is value else raw_section(value)
        found.append((Stored(value.shape, value.dtype.name, len(section)), section))
        return b"."

    if file.topology is not None:
        tree(dict(file.topology), take)
    return found


def _read_array(stored: Stored, section: bytes) -> Array:
    array = raw_array(section, stored.dtype, stored.shape)
    array.setflags(write=False)  # the section stands for it
    return array


def _filled(value: Any, arrays: Iterator[Array]) -> Any:
    """Return a tree with each `Stored` replaced by its array."""
    if isinstance(value, Stored):
        return next(arrays)
    if isinstance(value, list):
        return [_filled(each, arrays) for each in value]
    return {key: _filled(each, arrays) for key, each in value.items()} if isinstance(value, dict) else value
