"""Tables of a page."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Rows of texts.

    Attributes:
        head: names of the columns.
        rows: as many cells each; whether the row stands out goes with it.
        words: columns of words, which stand on the left.
    """

    head: Sequence[str]
    rows: Sequence[tuple[Sequence[str], bool]]
    words: Sequence[str] = ()
