"""What each stage left behind: connections born and died, density and accuracy, round by round."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from synaptree.report import tables
from synaptree.report.comparison import Key, rounds_by_seed
from synaptree.results import Result, Round

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["StageRow", "markdown", "stages", "table"]


@dataclass(frozen=True)
class StageRow:
    """The network at the end of a round, mean over seeds; what not every seed has is None."""

    name: str  # of the recipe
    method: str
    control: str | None
    round: int
    stage: str | None  # that ended with it, where the programme names stages
    seeds: int
    density: float  # [0, 1]
    born: float | None  # connections, since the round before
    died: float | None
    validation: float  # accuracy, [0, 1]
    accuracy: float | None  # on the test set, [0, 1]
    indicative: bool  # fewer than three seeds


def stages(results: Iterable[Result]) -> list[StageRow]:
    """Return one row for each recipe, method or control, and round.

    Raises:
        DataError: as `rounds_by_seed`.
    """
    return [_row(key, list(rounds.values())) for key, rounds in rounds_by_seed(results).items()]


def _row(key: Key, rounds: Sequence[Round]) -> StageRow:
    def mean(field: str) -> float | None:
        values = [getattr(part, field) for part in rounds]
        return None if None in values else fmean(values)

    return StageRow(
        name=key[0], method=key[1], control=key[2], round=key[3], stage=rounds[0].stage or None, seeds=len(rounds),
        density=fmean(part.density for part in rounds), born=mean("born"), died=mean("died"),
        validation=fmean(part.validation_accuracy for part in rounds), accuracy=mean("test_accuracy"),
        indicative=len(rounds) < 3,
    )  # fmt: skip


def _cells(row: StageRow) -> dict[str, str]:
    """What a table prints of a row, by column."""
    def count(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}"

    return {
        "recipe": row.name,
        "method": row.method if row.control is None else f"{row.method}: {row.control}",
        "round": str(row.round),
        "stage": row.stage or "-",
        "density %": f"{100 * row.density:.3g}",
        "born": count(row.born),
        "died": count(row.died),
        "validation %": f"{100 * row.validation:.2f}",
        "test %": "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}",
        "seeds": f"{row.seeds} (indicative)" if row.indicative else str(row.seeds),
    }


_WORDS = ("recipe", "method", "network", "stage")
NAME_WIDTH = 17


def table(rows: Sequence[StageRow]) -> "Table":
    """Return the rows of one recipe as a table for the terminal."""
    title = ", ".join(dict.fromkeys(f"{row.name}: {row.method}" for row in rows))
    columns = ("round", "stage", "density %", "born", "died", "validation %", "test %")
    lines = [(_short(row, columns), row.control is None) for row in rows]
    caption = f"Means over seeds: {tables.seeds([row.seeds for row in rows])}." if rows else ""
    return tables.terminal(title, ("network", *columns), lines, caption, _WORDS)


def _short(row: StageRow, columns: Sequence[str]) -> list[str]:
    cells = _cells(row)
    return [
        tables.network(row.method, row.control, row.round, row.density, NAME_WIDTH),
        *(cells[column] for column in columns),
    ]


def markdown(rows: Sequence[StageRow]) -> str:
    """Return the rows as a Markdown table, one line each."""
    return tables.markdown([_cells(row) for row in rows], _WORDS)
