"""Differences between runs of the same seeds, and one recipe beside another."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from synaptree.core.errors import OptionError, unknown
from synaptree.report import tables
from synaptree.report.comparison import Key, accuracy_difference, rounds_by_seed
from synaptree.results import Result, Round

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Contrast", "Difference", "against", "markdown", "paired_difference", "shown", "table"]


@dataclass(frozen=True)
class Difference:
    """A mean difference over seeds with the interval around it; a single seed may have none."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def paired_difference(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> Difference:
    """Return the mean of `a - b` over seeds with its interval, `mean ± t s / sqrt(n)`.

    `s` is the standard deviation of the `n` differences and `t` the quantile of Student's distribution with `n - 1`
    degrees of freedom at `(1 + level) / 2`: 12.7 for two seeds, 4.3 for three, 2.8 for five at the level 0.95.
    This is for numbers of which each run has one; accuracies on common test items have `paired_interval`, which
    knows of the items as well. Differences that are all equal give an interval of no width.

    Args:
        a: a number for each seed, of any unit.
        b: the same; entry k of both stands for the same seed.
        level: share of such intervals that hold the true mean, in (0, 1), as far as differences are normal.

    Raises:
        OptionError: no seeds, unequal numbers of them, or a level outside its range.

    >>> paired_difference([3.0, 4.0], [3.0], level=0.5)
    Traceback (most recent call last):
    synaptree.core.errors.OptionError: one number per seed is wanted on both sides, got 2 and 1
    >>> found = paired_difference([1.0, 3.0], [0.0, 0.0], level=0.5)  # t is 1 here, and s is sqrt(2)
    >>> found.mean, round(found.low, 6), round(found.high, 6), found.seeds
    (2.0, 1.0, 3.0, 2)
    """
    from scipy.special import stdtrit  # slow to import, and seldom wanted

    if not 0 < len(a) == len(b):
        raise OptionError(f"one number per seed is wanted on both sides, got {len(a)} and {len(b)}")
    if not 0 < level < 1:
        raise OptionError(f"level must lie in (0, 1), got {level}")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, n = fmean(differences), len(differences)
    if n == 1:
        return Difference(mean, None, None, 1)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def shown(difference: Difference | None, form: str, between: str = ", ") -> str:
    """Return what a table prints of a difference; `form` is that of its numbers.

    >>> shown(Difference(-1.5, -2.0, -1.0, 3), ".1f"), shown(Difference(2.0, None, None, 1), ".0f"), shown(None, "")
    ('-1.5 [-2.0, -1.0]', '+2', '-')
    """
    if difference is None:
        return "-"
    mean, *ends = (f"{v:+z{form}}" for v in (difference.mean, difference.low, difference.high) if v is not None)
    return f"{mean} [{between.join(ends)}]" if ends else mean


@dataclass(frozen=True)
class Contrast:
    """One measure of a round of one recipe and the same round of another, over the seeds they have in common."""

    name: str  # of the recipe
    method: str
    other: str  # method/recipe
    round: int
    stage: str | None  # both, where they differ
    measure: str
    here: float  # mean over seeds, shares in percent
    there: float
    difference: Difference  # here - there, shares in percentage points
    indicative: bool  # fewer than three seeds


_MEASURES: dict[str, Callable[[Round], float]] = {
    "validation %": lambda r: 100 * r.validation_accuracy,
    "density %": lambda r: 100 * r.density,
    "weights": lambda r: float(r.weights_alive),
}


def against(results: Iterable[Result], other: str) -> list[Contrast]:
    """Return how the recipes differ from `other`, round by round of the same number.

    Recipes on other data or with another model are left out, and so are controls. The interval of the test
    accuracy is over test items and seeds (`paired_interval`), that of all else over seeds (`paired_difference`).

    Args:
        results: of all of them.
        other: name of a recipe, with its method before it, `method/recipe`, where several methods have one.

    Raises:
        OptionError: nobody or more than one recipe has that name, or nothing can be compared with it.
        DataError: as `rounds_by_seed`, and for test sets of different sizes.
    """
    own = [result for result in results if result.control is None]
    tasks = {(result.recipe, result.method): _task(result) for result in own}
    there, groups = _named(other, list(tasks)), rounds_by_seed(own)
    fitting = [key for key in groups if key[:2] != there and tasks[key[:2]] == tasks[there]]
    pairs = {key: (groups[key], groups.get((*there, None, key[3]), {})) for key in fitting}
    rows = [row for key, pair in pairs.items() for row in _contrasts(key, f"{there[1]}/{there[0]}", *pair)]
    if not rows:
        raise OptionError(f"no other recipe on the same data and model has rounds and seeds in common with {other!r}")
    return rows


def _task(result: Result) -> list[Any]:
    return [result.config.get(key) for key in ("data", "validation", "model", "model_options")]


def _named(name: str, known: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the recipe and method that `name` means."""
    full = {f"{method}/{recipe}": (recipe, method) for recipe, method in known}
    fitting = [key for key, (recipe, _) in full.items() if name in (key, recipe)]
    if not fitting:
        raise unknown("recipe among the results", name, full)
    if len(fitting) > 1:
        raise OptionError(f"recipe {name!r} has results of several methods; name one: {', '.join(sorted(fitting))}")
    return full[fitting[0]]


def _contrasts(key: Key, other: str, here: dict[int, Round], there: dict[int, Round]) -> list[Contrast]:
    seeds = [seed for seed in here if seed in there]
    if not seeds:
        return []
    a, b = ([side[seed] for seed in seeds] for side in (here, there))
    found: dict[str, tuple[list[float], list[float], Difference]] = {}
    tested = accuracy_difference(dict(zip(seeds, a, strict=True)), dict(zip(seeds, b, strict=True)), key[0])
    if tested is not None:
        x, y = ([100 - 100 * len(r.test_errors or ()) / (r.test_items or 1) for r in side] for side in (a, b))
        found["test %"] = x, y, Difference(tested.mean, tested.low, tested.high, len(seeds))
    for measure, of in _MEASURES.items():
        x, y = ([of(r) for r in side] for side in (a, b))
        found[measure] = x, y, paired_difference(x, y)
    stage = " / ".join(dict.fromkeys(r.stage for r in (a[0], b[0]) if r.stage)) or None
    return [
        Contrast(key[0], key[1], other, key[3], stage, measure, fmean(x), fmean(y), difference, len(seeds) < 3)
        for measure, (x, y, difference) in found.items()
    ]


def _cells(row: Contrast) -> dict[str, str]:
    """What a table prints of a row, by column."""
    form = ",.0f" if row.measure == "weights" else ".2f"
    return {
        "recipe": row.name,
        "method": row.method,
        "against": row.other,
        "round": str(row.round),
        "stage": row.stage or "-",
        "measure": row.measure,
        "here": f"{row.here:{form}}",
        "there": f"{row.there:{form}}",
        "difference": shown(row.difference, form),
        "seeds": f"{row.difference.seeds} (indicative)" if row.indicative else str(row.difference.seeds),
    }


_WORDS = ("recipe", "method", "against", "stage", "measure")


def table(rows: Sequence[Contrast]) -> "Table":
    """Return the rows of one recipe as a table for the terminal."""
    columns = ("round", "stage", "measure", "here", "there", "difference")
    title = ", ".join(dict.fromkeys(f"{row.name}: {row.method} (here) against {row.other} (there)" for row in rows))
    lines = [([_cells(row)[column] for column in columns], row.measure == "test %") for row in rows]
    caption = ""
    if rows:
        counts = tables.seeds([row.difference.seeds for row in rows])
        caption = (
            f"Same seeds on both sides: {counts}; in brackets 95 % intervals, "
            "over test images and seeds for the test accuracy, over seeds for all else."
        )
    return tables.terminal(title, columns, lines, caption, _WORDS)


def markdown(rows: Sequence[Contrast]) -> str:
    """Return the rows as a Markdown table, one line each."""
    return tables.markdown([_cells(row) for row in rows], _WORDS)
