"""What tables of results have in common, on the terminal and in Markdown."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["markdown", "network", "seeds", "terminal"]


def terminal(
    title: str, columns: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]], caption: str,
    words: Collection[str] = ("network",),
) -> "Table":  # fmt: skip
    """Return rows for the terminal, those marked true in bold.

    Columns not among `words` hold numbers: they stand on the right and are never broken.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(
        box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False,
        title=Text(title, "bold"), title_justify="left", caption=Text(caption), caption_justify="left",
    )  # fmt: skip
    for column in columns:
        number = column not in words
        out.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for cells, bold in rows:
        # Text, since the brackets of an interval are markup to rich
        out.add_row(*map(Text, cells), style="bold" if bold else None)
    return out


def network(method: str, control: str | None, number: int, density: float, width: int) -> str:
    r"""Return the name of a network in a table, broken after underscores into lines of `width`.

    >>> network("nnrelief", None, 0, 1.0, 17), network("nnrelief", "magnitude_erdos_renyi", 3, 0.1, 17)
    ('dense', 'magnitude_erdos_\nrenyi')
    """
    dense = control is None and number == 0 and density == 1
    name = "dense" if dense else control or method
    return "\n".join(wrap(name.replace("_", "_ "), width)).replace("_ ", "_")


def seeds(counts: Collection[int]) -> str:
    """Return how many seeds the rows of a table have, for its caption.

    >>> seeds([5, 5]), seeds([2, 5])
    ('5', '2 to 5 (fewer than three are indicative)')
    """
    fewest, most = min(counts), max(counts)
    indicative = " (fewer than three are indicative)" if fewest < 3 else ""
    return (f"{fewest} to {most}" if fewest < most else str(most)) + indicative


def markdown(cells: Sequence[Mapping[str, str]], words: Collection[str]) -> str:
    """Return rows, each column -> text, as a Markdown table, one line each; numbers stand on the right.

    >>> print(markdown([{"name": "lenet5", "round": "1"}], words=["name"]), end="")
    | name | round |
    | :-- | --: |
    | lenet5 | 1 |
    """
    head = list(cells[0]) if cells else []
    lines = [head, [":--" if h in words else "--:" for h in head], *(list(c.values()) for c in cells)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines if line)
