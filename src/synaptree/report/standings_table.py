"""The networks of a task as tables: for the terminal, as Markdown, as JSON."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synaptree.report import tables
from synaptree.report.comparison import Interval, as_json
from synaptree.report.standings import DENSE, Level, Standing

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["NOT_MEASURED", "caption", "json", "markdown", "table"]

NOT_MEASURED = "not measured"
WIDE = 125  # columns of a terminal that holds all of the table
_NARROW = ("network", "density %", "test %", "to the best, points", "", "bytes", "epochs")
_WORDS = ("network", "recipe", "")
NAME_WIDTH = 21


def table(levels: Sequence[Level], width: int = WIDE) -> "Table":
    """Return the levels of one task for the terminal; one narrower than `WIDE` gets fewer columns."""
    rows: list[tuple[list[str], bool]] = []
    columns: tuple[str, ...] = _NARROW
    for level in levels:
        cells = [_cells(row, level, short=width < WIDE) for row in level.rows]
        columns = tuple(cells[0]) if width >= WIDE else _NARROW
        rows.append(([level.title, *("" for _ in columns[1:])], True))
        rows += [([one[column] for column in columns], False) for one in cells]
    title = levels[0].task.title if levels else ""
    return tables.terminal(title, columns, rows, caption(levels, width), _WORDS)


def caption(levels: Sequence[Level], width: int = WIDE) -> str:
    """Return what the columns of a table mean, and how it came about."""
    rows = [row for level in levels for row in level.rows]
    if not rows:
        return ""
    speeds = [speed for row in rows for speed in row.speeds]
    lines = [
        "Rounds are those of the recipes. The best of a level has the highest accuracy on validation; nothing is "
        "selected on the test set.",
        "In brackets paired 95 % intervals over the seeds that both have and over test images; a tie: it holds 0.",
        "epochs, minutes: training behind the network, as recorded; machines and their load differ, so that epochs "
        "tell more.",
    ]
    if width < WIDE:
        lines.append(f"A terminal of {WIDE} columns also shows minutes, seeds and latency.")
    elif speeds:
        lines.append(
            "latency: the engine's time for a call of so many samples, float32, one thread, and how many times as fast "
            f"it is as the best dense runtime of the same compacted network; {_joined(s.cpu for s in speeds)}."
        )
    if not speeds:
        lines.append("latency: not measured; --measure times the networks whose files are there.")
    if any(row.indicative for row in rows):
        lines.append("* one or two seeds: indicative.")
    return "\n".join(lines)


def _joined(names: object) -> str:
    return ", ".join(sorted(set(names)))  # type: ignore[call-overload]


def name(row: Standing, level: Level) -> str:
    """Return what a row is called: a control stands below its method, and an asterisk says indicative."""
    text = f"dense ({row.name})" if level.density == DENSE else f"  {row.control}" if row.control else row.name
    return f"{text}*" if row.indicative else text


def points(difference: Interval | None) -> str:
    """Return a difference in percentage points with its interval.

    >>> points(Interval(-0.123, -0.3, 0.05)), points(None)
    ('-0.12 [-0.30,+0.05]', '-')
    """
    d = difference
    return "-" if d is None else f"{d.mean:+.2f} [{d.low:+.2f},{d.high:+.2f}]"


def latency(row: Standing) -> str:
    """Return the times of the engine for a call, and how many times as fast it is as the best dense runtime."""
    said = [f"{s.batch}: {_microseconds(s.seconds)} µs ({s.times:.1f}x)" for s in row.speeds]
    return ", ".join(said) or NOT_MEASURED


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}" if seconds < 1e-4 else f"{1e6 * seconds:,.0f}"


def _cells(row: Standing, level: Level, *, short: bool = False) -> dict[str, str]:
    """What the terminal shows of a row, by column."""
    return {
        "network": _folded(name(row, level)),
        "density %": f"{100 * row.density:.3g}",
        "test %": _accuracy(row, spread=not short),
        "to the best, points": points(row.to_best) if row.verdict != "best" else "",
        "": row.verdict or "-",
        "bytes": _count(row.bytes),
        "epochs": _count(row.epochs),
        "minutes": "-" if row.seconds is None else f"{row.seconds / 60:.1f}",
        "seeds": str(row.seeds),
        "latency": latency(row),
    }


def _folded(text: str) -> str:
    """Return a name in lines that break after blanks and underscores."""
    if len(text) <= NAME_WIDTH:
        return text
    broken, _, end = text.rpartition(" ") if " " in text.strip() else text.rpartition("_")
    indent = " " * (len(text) - len(text.lstrip()))
    return f"{broken}\n{indent}  {end}"


def _accuracy(row: Standing, *, spread: bool) -> str:
    around = f" ± {100 * row.deviation:.2f}" if spread and row.deviation is not None else ""
    return "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}{around}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def markdown(levels: Sequence[Level]) -> str:
    """Return the levels of one task as a Markdown table, one line for each network."""
    return tables.markdown([_line(row, level) for level in levels for row in level.rows], ("level", *_WORDS, "latency"))


def _line(row: Standing, level: Level) -> Mapping[str, str]:
    cells = _cells(row, level)
    control, star = f": {row.control}" if row.control else "", "*" * row.indicative
    return {
        "level": level.title,
        "network": (f"dense ({row.name})" if level.density == DENSE else f"{row.method}{control}") + star,
        "recipe": row.recipe,
        **{column: cells[column] for column in ("density %", "test %")},
        "to the best, points": "" if row.verdict == "best" else points(row.to_best),
        "": row.verdict or "-",
        "to dense, points": points(row.to_dense),
        **{column: cells[column] for column in ("bytes", "latency", "epochs", "minutes", "seeds")},
    }


def json(levels: Sequence[Level]) -> str:
    """Return the levels as a JSON list of objects with all that is known of each network."""
    return as_json(levels)
