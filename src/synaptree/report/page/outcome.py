"""What came of an experiment: the figures that matter, and its rounds as tables."""

from collections.abc import Sequence

from synaptree.report import comparison, tables
from synaptree.report.comparison import Row
from synaptree.report.page.comparing import Standing
from synaptree.report.page.table import Table

__all__ = ["cards", "outcome", "rounds_table", "standings_table"]


def standings_table(found: Sequence[Standing]) -> Table:
    """Return the rounds on the front, the sparsest first."""
    cells = [
        (one.name, str(one.row.round), f"{100 * one.row.density:.3g}", f"{100 * one.row.validation:.2f}",
         "-" if one.row.accuracy is None else f"{100 * one.row.accuracy:.2f}", str(one.row.seeds))
        for one in sorted((one for one in found if one.best), key=lambda one: one.row.density)
    ]  # fmt: skip
    head = ("on the front", "round", "density %", "validation %", "test %", "seeds")
    return Table(head, [(row, False) for row in cells], head[:1])


def cards(rows: Sequence[Row], margin: float) -> dict[str, str]:
    """Return the figures that matter first."""
    found: dict[str, str] = {}
    dense = next((row for row in rows if row.control is None and row.round == 0 and row.density == 1), None)
    if dense is not None:
        found["dense"] = _accuracy(dense)
    best = comparison.sparsest(rows, margin)
    chosen = best or next((row for row in reversed(rows) if row.control is None), None)
    if chosen is None or chosen is dense:
        return found
    found[f"round {chosen.round}" + (", sparsest as good" if best else "")] = _accuracy(chosen)
    found["density"] = f"{100 * chosen.density:.3g} %"
    if dense is not None and chosen.parameters_alive:
        found["fewer parameters"] = f"{dense.parameters_alive / chosen.parameters_alive:.1f} x"
    if dense is not None and dense.bytes and chosen.bytes:
        found["fewer bytes"] = f"{dense.bytes / chosen.bytes:.1f} x"
    return found


def _accuracy(row: Row) -> str:
    tested = row.accuracy is not None
    return f"{100 * (row.accuracy if row.accuracy is not None else row.validation):.2f} % " + (
        "test" if tested else "validation"
    )


def outcome(rows: Sequence[Row], margin: float) -> str:
    """Return what came of a method in a sentence or two; choosing is by the validation images alone."""
    if not rows:
        return "No round has ended yet."
    points = f"{margin:g} point{'' if margin == 1 else 's'}"
    best = comparison.sparsest(rows, margin)
    if best is None:
        return f"No round is within {points} of dense on the validation images."
    said = f"Sparsest round within {points} of dense on the validation images: round {best.round}."
    d = best.difference
    if d is None:
        return said
    verdict = "not below" if comparison.not_below(d, margin) else "below"
    return f"{said} Its test accuracy is {d.mean:+.2f} points [{d.low:+.2f}, {d.high:+.2f}] from dense: {verdict} it."


def rounds_table(rows: Sequence[Row]) -> Table:
    """Return rounds with their accuracies, differences to dense and sizes; the method's own stand out."""
    head = (
        "network", "round", "density %", "validation %", "test %", "to dense, points", "parameters", "bytes", "seeds",
    )  # fmt: skip
    body = []
    for row in rows:
        d = row.difference
        spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
        cells = (
            tables.network(row.method, row.control, row.round, row.density, 60), str(row.round),
            f"{100 * row.density:.3g}", f"{100 * row.validation:.2f}",
            "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}{spread}",
            "-" if d is None else f"{d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]",
            f"{row.parameters_alive:,.0f}", "-" if row.bytes is None else f"{row.bytes:,.0f}",
            f"{row.seeds} (indicative)" if row.indicative else str(row.seeds),
        )  # fmt: skip
        body.append((cells, row.control is None))
    return Table(head, body, head[:1])
