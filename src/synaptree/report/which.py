"""Which method? Answers from recorded results: the best at a density, who is level with it, what is the cheapest."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from synaptree.report import tables
from synaptree.report.group import Task
from synaptree.report.standings import DENSE, Level, Standing

__all__ = ["ASKED", "Answer", "answers", "markdown"]

ASKED = (0.1, 0.05, 0.02)
"""Densities about which the question is asked."""


@dataclass(frozen=True)
class Answer:
    """Who may be taken at a level, and who not."""

    level: Level
    best: Standing | None
    level_with: tuple[Standing, ...]  # methods whose interval to the best holds 0 or lies above it
    controls: tuple[Standing, ...]  # likewise
    cheapest: Standing | None  # of the best and those level with it: the fewest epochs
    below: tuple[Standing, ...]


def answers(levels: Sequence[Level], asked: Collection[float] = ASKED) -> list[Answer]:
    """Return an answer for each level that is asked for and has networks."""
    return [_answer(level) for level in levels if level.density in asked]


def _answer(level: Level) -> Answer:
    best = next((row for row in level.rows if row.verdict == "best"), None)
    fit = [row for row in level.rows if row.verdict in ("tie", "above")]
    own = [row for row in fit if row.control is None]
    candidates = [row for row in (best, *own) if row is not None and row.epochs is not None]
    cheapest = min(candidates, key=lambda row: (row.epochs, row.seconds), default=None)
    return Answer(
        level, best, tuple(own), tuple(row for row in fit if row.control is not None), cheapest,
        tuple(row for row in level.rows if row.control is None and row.verdict == "below"),
    )  # fmt: skip


def markdown(found: Mapping[Task, Sequence[Level]], missing: Mapping[str, Sequence[str]]) -> str:
    """Return the answers as Markdown: a section for each task.

    Args:
        found: task -> its levels.
        missing: group -> what was not run of it, in words.
    """
    parts = []
    for task, levels in found.items():
        lines = tables.markdown([_cells(answer) for answer in answers(levels)], ("density", *_cells_of_words()))
        dense = [row for level in levels if level.density == DENSE for row in level.rows]
        said = _dense(dense) if dense else "No dense network beside them."
        parts.append(f"## {task.title}\n\n{said}\n\n{lines or NOTHING}\n{_missing(missing.get(task.group, ()))}")
    empty = {group: names for group, names in missing.items() if group not in {task.group for task in found}}
    if empty:
        lines = "".join(f"- {group}: {', '.join(names)}\n" for group, names in sorted(empty.items()))
        parts.append(f"## Not run at all\n\nRecipes without recorded results:\n\n{lines}")
    return "\n".join(parts)


def _dense(rows: Sequence[Standing]) -> str:
    several = "s" * (len(rows) > 1)
    return f"Dense network{several} of the recipe{several} of {', '.join(map(_with_accuracy, rows))}."


NOTHING = "No network at these densities."


def _missing(names: Sequence[str]) -> str:
    return f"Not run, or not all of it: {', '.join(names)}.\n" if names else "All recipes were run.\n"


def _cells_of_words() -> tuple[str, ...]:
    return ("best on validation", "level with it", "controls level with it", "cheapest of these", "below it")


def _cells(answer: Answer) -> dict[str, str]:
    cheapest = answer.cheapest
    return {
        "density": answer.level.title,
        "best on validation": "-" if answer.best is None else _with_accuracy(answer.best),
        "level with it": _listed(answer.level_with),
        "controls level with it": _listed(answer.controls),
        "cheapest of these": "-" if cheapest is None else f"{_name(cheapest)}: {cheapest.epochs:,.0f} epochs",
        "below it": _listed(answer.below),
    }


def _listed(rows: Sequence[Standing]) -> str:
    return "<br>".join(_with_accuracy(row) for row in rows) or "-"


def _name(row: Standing) -> str:
    return row.name + "*" * row.indicative


def _with_accuracy(row: Standing) -> str:
    accuracy = "not tested" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"
    density = "" if row.density == DENSE else f" at {100 * row.density:.3g} %"
    return f"{_name(row)}{density} ({accuracy})"
