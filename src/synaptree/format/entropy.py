"""The range coder with probabilities that are integers, hence the same on every machine."""

from collections.abc import Sequence
from typing import TypeAlias

import constriction
import numpy as np
import numpy.typing as npt

from synaptree.format.errors import FormatError

__all__ = ["TOTAL", "Decoder", "Encoder", "frequencies", "model", "models"]

Ints = npt.NDArray[np.int64]
Model: TypeAlias = constriction.stream.model.Model
TOTAL = 1 << 24  # probabilities are multiples of 1 / TOTAL
CHUNK = 1 << 16  # symbols the library gets or gives at a time, 4 bytes each: bounds the memory beside the result


def frequencies(counts: Sequence[int] | Ints) -> Ints:
    """Turn counts into frequencies that sum to 2**24, by integer arithmetic alone.

    `f_i = 1 + floor(c_i (2**24 - n) / sum(c))`; what is missing to 2**24 goes to the first of the largest counts.

    Args:
        counts: 2 to 256 counts from 0 to 2**38, not all 0: no product leaves 64 bits. Or several rows of them, shape
            (tables, n).

    Returns:
        Frequencies, each at least 1, of the shape of the counts.

    >>> frequencies([3, 1, 0]).tolist()
    [12582911, 4194304, 1]
    """
    exact = np.asarray(counts, np.int64)
    number = exact.shape[-1]
    found: Ints = 1 + exact * (TOTAL - number) // exact.sum(-1, keepdims=True)
    most = np.arange(number) == exact.argmax(-1)[..., None]
    found += most * (TOTAL - found.sum(-1, keepdims=True))
    return found


def models(counts: Sequence[Sequence[int]] | Ints) -> list[Model]:
    """Return the coder's models with exactly the frequencies of these counts, one a row; see `frequencies`.

    The library scales weights to a sum of 2**24 - n and adds one to each. Integers with that sum are scaled by
    exactly 1.0, and their partial sums are below 2**24: no rounding can take place.
    """
    weights = (frequencies(np.asarray(counts, np.int64)) - 1).astype(np.float64)
    return [constriction.stream.model.Categorical(row, perfect=False) for row in weights]


def model(counts: Sequence[int] | Ints) -> Model:
    """Return the coder's model of one row of counts."""
    return models(np.asarray(counts, np.int64)[None])[0]


class Encoder:
    """Writes symbols into words of 32 bits."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def write(self, symbols: npt.NDArray[np.generic], model: Model) -> None:
        """Append symbols 0 .. n - 1 of a model over n."""
        flat = symbols.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            self._coder.encode(flat[start : start + CHUNK].astype(np.int32), model)

    def words(self) -> bytes:
        """Return all that was written, each word lowest byte first."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class Decoder:
    """Reads symbols from words of 32 bits; shape (words,)."""

    def __init__(self, words: npt.NDArray[np.uint32]) -> None:
        self._coder = constriction.stream.queue.RangeDecoder(words)
        self._unread = words.size > 0

    def read(self, size: int, model: Model) -> npt.NDArray[np.uint8]:
        """Return the next symbols, shape (size,), of a model over at most 256.

        Raises:
            FormatError: no message of this model has these words.
        """
        self._unread = self._unread and size == 0
        out = np.empty(size, np.uint8)
        for start in range(0, size, CHUNK):
            part = out[start : start + CHUNK]
            try:
                part[:] = self._coder.decode(model, part.size)
            except AssertionError as error:  # the library's word for invalid data
                raise FormatError("entropy-coded words: no message has these words") from error
        return out

    def end(self) -> None:
        """Check that all words were needed.

        Raises:
            FormatError: words are left.
        """
        if self._unread or not self._coder.maybe_exhausted():
            raise FormatError("entropy-coded words: more words than the message needs")
