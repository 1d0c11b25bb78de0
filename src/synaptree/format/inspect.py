"""Where the bytes of a `.syn` file go, beside what other ways to store the same network take."""

from dataclasses import dataclass
from math import prod

import numpy as np

from synaptree.format.coding import mask_coding, mask_entropy
from synaptree.format.file import LIMIT, decode, split
from synaptree.format.sections import Array, Entry

__all__ = ["Report", "Row", "inspect"]

FP32, COLUMN, POINTER = 4, 4, 4  # bytes of a value, a column and a row's start in CSR


@dataclass(frozen=True)
class Row:
    """One tensor of a file; all sizes in bytes.

    Attributes:
        name, shape: of the tensor.
        density: share of its entries that are stored, from 0 to 1.
        mask_coding: "bitmap", "gaps" or "range"; None without mask.
        mask_bytes: of the mask's section.
        value_coding: "fp32", "fp16", "int8" or "raw".
        value_bytes: of the values' section.
        bound: entropy of the mask, of one density, plus that of the values: of exponents for floats (with sign and
            mantissa taken for random), of integers for int8, of bytes for raw. Masks whose rows or columns differ, and
            repeated values, can take less.
        dense: every entry, zeros too, in fp32 (raw: as it is).
        csr, csr16: compressed sparse rows along axis 0 with fp32 values, a starting place of 32 bits a row and columns
            of 32 bits, or 16 where those do; as `dense` without mask.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    mask_coding: str | None
    mask_bytes: int
    value_coding: str
    value_bytes: int
    bound: float
    dense: int
    csr: int
    csr16: int


@dataclass(frozen=True)
class Report:
    """Where the bytes of a file go.

    Attributes:
        rows: one a tensor.
        header_bytes: all but the sections: names, shapes, program, checksums.
        topology_bytes: of the topology's arrays.
        filler_bytes: zeros behind the sections.
    """

    rows: tuple[Row, ...]
    header_bytes: int
    topology_bytes: int
    filler_bytes: int

    @property
    def total(self) -> int:
        """Bytes of the file."""
        tensors = sum(row.mask_bytes + row.value_bytes for row in self.rows)
        return self.header_bytes + tensors + self.topology_bytes + self.filler_bytes

    @property
    def bound(self) -> float:
        """Sum of the tensors' bounds, in bytes."""
        return sum(row.bound for row in self.rows)

    @property
    def dense(self) -> int:
        """Bytes of all tensors in fp32."""
        return sum(row.dense for row in self.rows)

    @property
    def csr(self) -> int:
        """Bytes of all tensors, those with a mask as compressed sparse rows with columns of 32 bits."""
        return sum(row.csr for row in self.rows)

    @property
    def csr16(self) -> int:
        """Bytes of all tensors, those with a mask as compressed sparse rows with columns of 16 bits."""
        return sum(row.csr16 for row in self.rows)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=6)
        titles = f"{'density':>8}  {'mask':<6} {'bytes':>9}  {'values':<6} {'bytes':>9}  {'entropy':>9}"
        lines = [f"{'tensor':<{width}}  {titles}"]
        lines += [
            f"{row.name:<{width}}  {row.density:8.4f}  {row.mask_coding or 'none':<6} {row.mask_bytes:9d}  "
            f"{row.value_coding:<6} {row.value_bytes:9d}  {row.bound:9.0f}" for row in self.rows
        ]
        apart = {"header": self.header_bytes, "topology": self.topology_bytes, "filler": self.filler_bytes}
        lines += [f"{said}: {size}" for said, size in apart.items() if size]
        rivals = {
            "entropy, one density a tensor": self.bound, "dense in fp32, these shapes": self.dense, "CSR": self.csr,
            "CSR of 16 bits": self.csr16,
        }
        lines += [f"total: {self.total}"]
        lines += [f"{said}: {size:.0f}, total x {size / self.total:.2f}" for said, size in rivals.items()]
        return "\n".join(lines)


def inspect(data: bytes, *, limit: int = LIMIT) -> Report:
    """Say where the bytes of a file go.

    Args:
        data: all of its bytes.
        limit: most bytes that its tensors may take with zeros written out.

    Raises:
        FormatError: the bytes are no such file.

    >>> from synaptree.format.file import File, encode
    >>> weight = np.eye(4, dtype=np.float32)  # 4 of 16 entries: CSR takes 4 values, 4 columns, 5 starts of rows
    >>> report = inspect(encode(File(entries={"weight": Entry.of("weight", weight, weight != 0)})))
    >>> report.rows[0].density, report.dense, report.csr
    (0.25, 64, 52)
    """
    header, sections = split(data, limit)
    file = decode(data, limit=limit)
    left = iter(sections)
    rows = []
    for line in header.tensors:
        mask = mask_coding(next(left)) if line.mask_shape is not None else None
        next(left)
        rows.append(_row(file.entries[line.name], mask, line.sizes))
    topology = sum(stored.size for stored in header.arrays)
    start = len(data) - header.section_bytes - header.filler_bytes
    return Report(tuple(rows), start, topology, header.filler_bytes)


def _row(entry: Entry, mask: str | None, sizes: tuple[int, int]) -> Row:
    entries, stored = prod(entry.shape), entry.stored
    dense = entries * (entry.data.itemsize if entry.values == "raw" else FP32)
    bits = (0.0 if entry.mask is None else mask_entropy(entry.mask)) + _value_bits(entry)
    wide = narrow = dense
    if entry.mask is not None:
        short = COLUMN // 2 if prod(entry.shape[1:]) <= 1 << 16 else COLUMN
        pointers, each = POINTER * (entry.shape[0] + 1), dense // max(1, entries)
        wide, narrow = (stored * (each + column) + pointers for column in (COLUMN, short))
    return Row(
        entry.name, entry.shape, stored / entries if entries else 1.0, mask, sizes[0], entry.values, sizes[1],
        bits / 8, dense, wide, narrow,
    )


def _value_bits(entry: Entry) -> float:
    """Return the entropy of the values in bits, sign and mantissa of floats taken for random."""
    values = entry.data.ravel()
    if entry.values == "fp32":
        return 24 * values.size + _entropy(values.view(np.uint32) >> 23 & 255)
    if entry.values == "fp16":
        return 11 * values.size + _entropy(values.astype(np.float16).view(np.uint16) >> 10 & 31)
    if entry.values == "raw":
        return _entropy(np.ascontiguousarray(values).view(np.uint8))
    scales = entry.scales
    assert scales is not None  # it is int8
    step = scales.astype(np.float32)[entry.channels()]
    return _entropy(np.rint(np.divide(values, step, out=np.zeros_like(values), where=step > 0)))


def _entropy(symbols: Array) -> float:
    """Return the bits that symbols take where each costs what its share says."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.log2(symbols.size / counts)).sum())
