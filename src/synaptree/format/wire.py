"""Bytes of a section: integers of variable length, a reader that never reads past the end, a checksum."""

import zlib

import numpy as np
import numpy.typing as npt

from synaptree.format.errors import FormatError

__all__ = ["Reader", "seal", "unseal", "varint", "varint_lengths"]

VARINT_BYTES = 9  # 63 bits: what fits a signed integer of 64 bits
LONGER = 1 << np.arange(7, 7 * VARINT_BYTES, 7)  # from each of these numbers on, a byte more
CHECKSUM_BYTES = 4


def varint(number: int) -> bytes:
    """Return a number from 0 to 2**63 - 1 in groups of seven bits, lowest first; the top bit says that more follow.

    >>> varint(5).hex(), varint(300).hex()
    ('05', 'ac02')
    """
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def varint_lengths(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many bytes each of these numbers takes, of their shape.

    >>> varint_lengths(np.array([127, 128, 1 << 56])).tolist()
    [1, 2, 9]
    """
    return 1 + np.searchsorted(LONGER, numbers, side="right")


def seal(body: bytes) -> bytes:
    """Return the bytes with their CRC-32 behind them (4 bytes, lowest first)."""
    return body + zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little")


def unseal(section: bytes) -> bytes:
    """Return the bytes before the checksum.

    Raises:
        FormatError: the section is shorter than its checksum, or the checksum differs.
    """
    body, stored = section[:-CHECKSUM_BYTES], section[-CHECKSUM_BYTES:]
    if len(section) < CHECKSUM_BYTES:
        raise FormatError(f"section of {len(section)} bytes: wanted at least the {CHECKSUM_BYTES} of the checksum")
    if zlib.crc32(body) != int.from_bytes(stored, "little"):
        raise FormatError(f"section of {len(section)} bytes: the checksum differs; the bytes are damaged")
    return body


class Reader:
    """Reads bytes from the front; every length is checked before memory is taken.

    >>> reader = Reader(bytes([5, 1, 2]))
    >>> reader.varint(limit=10), reader.take(2).hex()
    (5, '0102')
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Number of bytes not read yet."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """Return the next bytes.

        Raises:
            FormatError: fewer are left.
        """
        if size > self.left:
            raise FormatError(f"byte {self._at}: wanted {size} more bytes, {self.left} are left")
        self._at += size
        return self._data[self._at - size : self._at]

    def varint(self, limit: int) -> int:
        """Return the next number.

        Raises:
            FormatError: it is cut, longer than needed, or above `limit`.
        """
        start, number = self._at, 0
        for shift in range(0, 7 * VARINT_BYTES, 7):
            group = self.take(1)[0]
            number |= (group & 127) << shift
            if group < 128:
                break
        else:
            raise FormatError(f"byte {start}: wanted a number of at most {VARINT_BYTES} bytes")
        if group == 0 and self._at - start > 1:
            raise FormatError(f"byte {start}: the number is written with more bytes than it needs")
        if number > limit:
            raise FormatError(f"byte {start}: wanted a number up to {limit}, got {number}")
        return number

    def words(self, count: int) -> npt.NDArray[np.uint32]:
        """Return the next words of 32 bits, stored lowest byte first; shape (count,)."""
        return np.frombuffer(self.take(4 * count), "<u4").astype(np.uint32)

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            FormatError: bytes are left.
        """
        if self.left:
            raise FormatError(f"byte {self._at}: wanted the end, {self.left} bytes are left")
