"""A second coder of entropy-coded words, written from SPEC.md in plain integers, without the library."""

from collections.abc import Iterator

WORD, STATE, PRECISION = 32, 64, 24


def frequencies(counts: list[int]) -> list[int]:
    total = 1 << PRECISION
    found = [1 + c * (total - len(counts)) // sum(counts) for c in counts]
    found[counts.index(max(counts))] += total - sum(found)
    return found


class Decoder:
    def __init__(self, words: list[int]) -> None:
        self.words: Iterator[int] = iter(words)
        self.lower, self.range = 0, (1 << STATE) - 1
        self.point = next(self.words, 0) << WORD | next(self.words, 0)

    def read(self, counts: list[int]) -> int:
        scale = self.range >> PRECISION
        quantile = ((self.point - self.lower) % (1 << STATE)) // scale
        if quantile >= 1 << PRECISION:
            raise ValueError("no message has these words")
        left, symbol = 0, 0
        table = frequencies(counts)
        while left + table[symbol] <= quantile:
            left += table[symbol]
            symbol += 1
        self.lower = (self.lower + scale * left) % (1 << STATE)
        self.range = scale * table[symbol]
        if self.range < 1 << STATE - WORD:
            self.lower = (self.lower << WORD) % (1 << STATE)
            self.range <<= WORD
            self.point = (self.point << WORD | next(self.words, 0)) % (1 << STATE)
        return symbol

    def ended(self) -> bool:
        return next(self.words, None) is None and (self.point - self.lower) % (1 << STATE) < (1 << WORD + 1) - 1


def encode(symbols: list[int], counts: list[int]) -> list[int]:
    """Keep `lower` as one number of any length: a carry needs no care, every shift puts out one word more."""
    if not symbols:
        return []
    lower, width, shifts, table = 0, (1 << STATE) - 1, 0, frequencies(counts)
    for symbol in symbols:
        scale = width >> PRECISION
        lower, width = lower + scale * sum(table[:symbol]), scale * table[symbol]
        if width < 1 << STATE - WORD:
            lower, width, shifts = lower << WORD, width << WORD, shifts + 1
    end = (lower + (1 << WORD) - 1) >> WORD
    upper = (lower + width >> WORD) % (1 << WORD)
    last = [0] if upper == end % (1 << WORD) else []
    return [end >> WORD * place & 0xFFFFFFFF for place in range(shifts, -1, -1)] + last
