"""Tensors and their sections: the mask, the values of its ones, arrays of any kind of numbers."""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from synaptree.format.coding import LIMIT, decode_mask, encode_mask
from synaptree.format.dtypes import DTYPES, FLOATS, ITEM_BYTES
from synaptree.format.errors import FormatError
from synaptree.format.header import VALUES, Line, Shape
from synaptree.format.values import decode_values, encode_values, quantize, value_coding

__all__ = ["Entry", "check_kind", "entry_from", "raw_array", "raw_section", "sections_of"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Channels = npt.NDArray[np.integer[Any]]
WORD = 4  # bytes


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: parts of letters, digits, _ and -, joined by dots.
        shape: of the tensor; () for a single number.
        dtype: the kind of number the tensor has in the network; see `DTYPES`. Floats that are coded are rounded to it
            by whoever makes the tensor.
        values: how the values are coded: "fp32", "fp16" or "int8" for floats, "raw" for whole numbers, bools and, to
            the last bit, float64.
        data: fp32 if coded, else of this dtype: the values where the mask is True, in order, shape (n,); the whole
            tensor if there is no mask.
        mask: bool, as many axes as the tensor, each as long or 1 (then it holds for all entries along that axis).
            What it does not keep is +0.0. None if every entry is stored.

    >>> weight = np.array([[0, 1.5], [0, 0]], np.float32)
    >>> Entry.of("fc.weight", weight, weight != 0).data
    array([1.5], dtype=float32)
    """

    name: str
    shape: Shape
    dtype: str
    values: str
    data: Array
    mask: Mask | None = None
    _sections: tuple[bytes, bytes] | None = field(default=None, init=False, repr=False)  # as they were read

    @classmethod
    def of(
        cls, name: str, tensor: Array, mask: Mask | None = None, *, values: str | None = None, dtype: str | None = None
    ) -> "Entry":
        """Return the entry of a dense tensor.

        Args:
            name: of the tensor.
            tensor: any shape; what the mask does not keep is not looked at.
            mask: bool, broadcasts over the tensor.
            values: "fp32" for float32 and float16 and "raw" for all else if None.
            dtype: the tensor's own if None.
        """
        dtype = dtype or tensor.dtype.name
        values = values or ("fp32" if tensor.dtype in (np.float32, np.float16) else "raw")
        kept = tensor if mask is None else tensor[np.broadcast_to(mask, tensor.shape)]
        kept = np.array(kept, dtype if values == "raw" else np.float32, order="C")
        return cls(name=name, shape=tensor.shape, dtype=dtype, values=values, data=kept, mask=mask)

    def tensor(self) -> Array:
        """Return a new dense array, +0.0 where there is no connection: fp32 if its values are coded."""
        if self.mask is None:
            return self.data.copy()
        dense = np.zeros(self.shape, self.data.dtype)
        dense[np.broadcast_to(self.mask, self.shape)] = self.data
        return dense

    @property
    def stored(self) -> int:
        """Number of values that are stored."""
        if self.mask is None:
            return prod(self.shape)
        return int(np.count_nonzero(self.mask)) * _each(self.mask.shape, self.shape)

    @property
    def scales(self) -> npt.NDArray[np.float16] | None:
        """Scales of int8, one per index of axis 0 (one in all for a tensor of fewer than two axes), else None."""
        if self.values != "int8":
            return None
        number = _channels(self.shape)
        if self._sections is not None:
            return np.frombuffer(self._sections[1], "<f2", number, offset=1).astype(np.float16)
        return quantize(self.data.ravel(), self.channels(), number).scales

    def channels(self) -> Channels:
        """Return the index along axis 0 of each stored value, shape (n,), of the smallest unsigned kind.

        A tensor of fewer than two axes has channel 0 alone.
        """
        if len(self.shape) < 2:
            return np.broadcast_to(np.uint8(0), (self.stored,))
        rows = np.arange(self.shape[0], dtype=np.min_scalar_type(self.shape[0]))
        if self.mask is None:
            return np.repeat(rows, prod(self.shape[1:]))
        counts = np.count_nonzero(_flat(self.mask), axis=1) * _each(self.mask.shape[1:], self.shape[1:])
        return np.repeat(rows, np.broadcast_to(counts, self.shape[:1]))

    def check(self) -> None:
        """Check that its parts fit one another.

        Raises:
            FormatError: names the tensor, what was wanted and what was got.
        """
        if self.dtype not in DTYPES or self.values not in VALUES:
            raise FormatError(f"{self.name}: unknown dtype {self.dtype!r} or coding of values {self.values!r}")
        check_kind(self.name, self.dtype, self.values)
        wanted = np.float32 if self.values != "raw" else np.dtype(self.dtype)
        if self.mask is not None:
            self._check_mask(self.mask)
        shape = self.shape if self.mask is None else (self.stored,)
        if self.data.dtype != wanted or self.data.shape != shape:
            raise FormatError(
                f"{self.name}: wanted data of shape {shape} and {np.dtype(wanted)}, got {self.data.shape} and "
                f"{self.data.dtype}"
            )

    def _check_mask(self, mask: Mask) -> None:
        fits = len(mask.shape) == len(self.shape) > 0 and all(
            own in (1, axis) for own, axis in zip(mask.shape, self.shape, strict=True)
        )
        if mask.dtype != np.bool_ or not fits or mask.size > LIMIT:
            raise FormatError(
                f"{self.name}: wanted a bool mask of at most {LIMIT} entries, with axes of 1 or those of {self.shape}, "
                f"got {mask.dtype} of shape {mask.shape}"
            )


def _each(mask: Shape, shape: Shape) -> int:
    """Return how many entries of a tensor one of its mask stands for."""
    return prod(axis for own, axis in zip(mask, shape, strict=True) if own != axis)


def check_kind(name: str, dtype: str, values: str) -> None:
    """Check that numbers of this kind may be coded so.

    Raises:
        FormatError: floats of up to 32 bits are raw, or what is no float is not.
    """
    if (values == "raw") != (dtype not in FLOATS) and (dtype, values) != ("float64", "raw"):
        wanted = "raw" if dtype not in FLOATS else "fp32, fp16 or int8"
        raise FormatError(f"{name}: values of {dtype} coded as {values}, wanted {wanted}")


def sections_of(entry: Entry) -> tuple[bytes, bytes]:
    """Return the sections of mask (empty without mask) and values: as they were read, if they were.

    Raises:
        FormatError: a value does not fit the coding; names the tensor.
    """
    if entry._sections is not None:
        return entry._sections
    try:
        mask = b"" if entry.mask is None else encode_mask(_flat(entry.mask))
        if entry.values == "raw":
            return mask, raw_section(entry.data)
        if entry.values == "int8":
            return mask, encode_values(entry.data.ravel(), "int8", entry.channels(), _channels(entry.shape))
        return mask, encode_values(entry.data.ravel(), entry.values)
    except FormatError as error:
        raise FormatError(f"{entry.name}: {error}") from error


def entry_from(line: Line, sections: tuple[bytes, bytes]) -> Entry:
    """Return the entry of a line of the table.

    Raises:
        FormatError: the sections are damaged or hold something else; names the tensor.
    """
    mask = None
    try:
        if line.mask_shape is not None:
            mask = decode_mask(sections[0], (line.mask_shape[0], prod(line.mask_shape[1:]))).reshape(line.mask_shape)
            mask.setflags(write=False)  # the sections stand for it
        empty = Entry(
            name=line.name, shape=line.shape, dtype=line.dtype, values=line.values, data=np.empty(0), mask=mask
        )
        entry = replace(empty, data=_data(empty, sections[1]))
    except FormatError as error:
        raise FormatError(f"{line.name}: {error}") from error
    entry.data.setflags(write=False)
    object.__setattr__(entry, "_sections", sections)
    return entry


def _data(entry: Entry, section: bytes) -> Array:
    """Return the values of an entry that has everything else."""
    shape = entry.shape if entry.mask is None else (entry.stored,)
    if entry.values == "raw":
        return raw_array(section, entry.dtype, shape)
    _check_coding(section, entry.values)
    if entry.values == "int8":
        return decode_values(section, entry.stored, entry.channels(), _channels(entry.shape)).reshape(shape)
    return decode_values(section, entry.stored).reshape(shape)


def _check_coding(section: bytes, wanted: str) -> None:
    if value_coding(section) != wanted:
        raise FormatError(f"values of coding {value_coding(section)}, wanted {wanted}")


def _flat(mask: Mask) -> Mask:
    """Return the mask as rows along axis 0 and columns for the rest."""
    return mask.reshape(mask.shape[0], prod(mask.shape[1:]))


def _channels(shape: Shape) -> int:
    """Return how many scales int8 has."""
    return shape[0] if len(shape) > 1 else 1


def raw_section(array: Array) -> bytes:
    """Write an array of any kind of numbers to the last bit.

    Its bytes, the lowest of each number first, in words of 32 bits, with zeros behind the last, are written as fp32.
    """
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    words = np.frombuffer(data + bytes(-len(data) % WORD), "<u4").astype(np.uint32)
    return encode_values(words.view(np.float32), "fp32")


def raw_array(section: bytes, dtype: str, shape: Shape) -> Array:
    """Read what `raw_section` wrote.

    Raises:
        FormatError: the section is damaged or holds something else.
    """
    _check_coding(section, "fp32")
    size = prod(shape) * ITEM_BYTES[dtype]
    data = decode_values(section, -(-size // WORD)).view(np.uint32).astype("<u4", copy=False).view(np.uint8)
    if data[size:].any() or (dtype == "bool" and data.max(initial=0) > 1):
        raise FormatError(f"bytes of {dtype} that are neither 0 nor 1, or not 0 behind the last")
    kind = np.dtype(dtype)
    return data[:size].view(kind.newbyteorder("<")).astype(kind, copy=False).reshape(shape)
