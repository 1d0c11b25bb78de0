"""The comparison of many runs: paired intervals, rows, tables."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from reprlib import repr as shorten
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from synaptree.core.errors import DataError, OptionError
from synaptree.report import tables
from synaptree.results import Result, Round

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Interval", "Key", "Row", "accuracy_difference", "as_json", "brief", "markdown", "not_below", "paired_interval",
    "rounds_by_seed", "sparsest", "summary", "table",
]  # fmt: skip

Key = tuple[str, str, str | None, int]
"""Recipe, method, control, number of the round."""


@dataclass(frozen=True)
class Interval:
    """A mean with the interval around it, in percentage points."""

    mean: float
    low: float
    high: float


def paired_interval(
    errors_a: Sequence[Collection[int]], errors_b: Sequence[Collection[int]], items: int,
    *, level: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> Interval:
    """Return the accuracy of a minus that of b in percentage points, with its bootstrap interval.

    Seeds and items are resampled independently of each other (the pigeonhole bootstrap: A.B. Owen,
    Annals of Applied Statistics 1(2):386-411, 2007), so that the interval covers both another test
    set and another training run. With one seed only the items are resampled.

    Args:
        errors_a: misclassified test items of a, indices in [0, items), one collection per seed.
        errors_b: the same of b; entry k of both stands for the same seed.
        items: size of the test set.
        level: share of the resamples within the interval, in (0, 1).
        resamples: number of resamples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        OptionError: no seeds, unequal numbers of them, an index outside the test set, or a level or number
            of resamples outside its range.

    >>> paired_interval([[0, 1]], [[0, 1]], items=100)
    Interval(mean=0.0, low=0.0, high=0.0)
    """
    if not 0 < len(errors_a) == len(errors_b):
        got = f"{len(errors_a)} and {len(errors_b)}"
        raise OptionError(f"one entry per seed is wanted on both sides, got {got}")
    if not 0 < level < 1 or resamples < 1:
        raise OptionError(f"level must lie in (0, 1) and resamples from 1 on, got {level} and {resamples}")
    wrong_a, wrong_b = (np.stack([_wrong(e, items) for e in errors]) for errors in (errors_a, errors_b))
    # Items on which all seeds agree are interchangeable: drawing how often each pattern of differences
    # occurs is the same as drawing the items, and there are few patterns.
    patterns, counts = np.unique(wrong_b - wrong_a, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    seeds = len(errors_a)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    columns = rng.multinomial(items, counts / items, size=resamples)
    means = np.einsum("rs,sp,rp->r", rows, patterns, columns, optimize=True) * 100 / (seeds * items)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(patterns.sum(0) @ counts * 100 / (seeds * items)), float(low), float(high))


def _wrong(errors: Collection[int], items: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """1 at each misclassified item, shape `(items,)`."""
    index = np.fromiter(errors, dtype=np.int64)
    if items < 1 or (index.size and not 0 <= index.min() <= index.max() < items):
        raise OptionError(f"misclassified items must lie in [0, {items}), got {shorten(sorted(errors))}")
    wrong = np.zeros(items, dtype=np.int64)
    wrong[index] = 1
    return wrong


def not_below(interval: Interval, margin: float = 0.2) -> bool:
    """Say whether a difference to dense counts as none: its lower end is at most `margin` points below 0.

    >>> not_below(Interval(-0.05, -0.15, 0.05)), not_below(Interval(0.1, -0.3, 0.5))
    (True, False)
    """
    return interval.low >= -margin


@dataclass(frozen=True)
class Row:
    """One round of a method or control of a recipe, over its seeds; a count is the mean over them.

    What not every seed measured is None, and so is the spread of a single seed.
    """

    name: str  # of the recipe
    method: str
    control: str | None
    round: int
    seeds: int
    density: float  # [0, 1]
    validation: float  # accuracy on the validation images, [0, 1]
    accuracy: float | None  # on the test set, [0, 1]
    deviation: float | None  # standard deviation of the accuracy over seeds
    difference: Interval | None  # to dense, in percentage points
    parameters_alive: float
    bytes: float | None
    macs_alive: float | None
    indicative: bool  # fewer than three seeds


def rounds_by_seed(results: Iterable[Result]) -> dict[Key, dict[int, Round]]:
    """Return the rounds of each (recipe, method, control, round number), by seed, in this order.

    The method itself (control None) comes before its controls.

    Raises:
        DataError: two results of the same recipe, method, control and seed, or results that differ in more
            than the seed.
    """
    groups: dict[Key, dict[int, Round]] = {}
    configs: dict[Key, dict[str, Any]] = {}
    for result in results:
        experiment = (result.recipe, result.method, result.control, 0)
        config = {key: value for key, value in result.config.items() if key != "seed"}
        if configs.setdefault(experiment, config) != config:
            raise DataError(
                f"recipe {result.recipe!r}, {result.control or result.method}: seed {result.seed} ran with another "
                "configuration than the seeds before it; compare results of one configuration"
            )
        for part in result.rounds:
            group = groups.setdefault((result.recipe, result.method, result.control, part.round), {})
            if result.seed in group:
                name = f"recipe {result.recipe!r}, {result.control or result.method}, seed {result.seed}"
                raise DataError(f"{name}: round {part.round} occurs twice; leave one of the results out")
            group[result.seed] = part
    order = sorted(groups, key=lambda k: (k[0], k[1], k[2] or "", k[3]))
    return {key: dict(sorted(groups[key].items())) for key in order}


def summary(results: Iterable[Result]) -> list[Row]:
    """Return one row for each recipe, method or control, and round.

    Dense is round 0 of the method itself with the same seed, if it has all its connections; the difference
    to it is left out (None) unless every seed of the row has its dense partner and both have their test
    errors. Finished rounds of interrupted and failed runs count.

    Raises:
        DataError: a seed occurs twice in a row, seeds of different configurations or test sets of different
            sizes are compared.
    """
    groups = rounds_by_seed(results)
    return [_row(key, groups[key], dense_rounds(groups, key)) for key in groups]


def dense_rounds(groups: Mapping[Key, dict[int, Round]], key: Key) -> dict[int, Round]:
    """Return the dense rounds beside those of `key`, by seed: round 0 of the method, if it has all its connections."""
    first = groups.get((*key[:2], None, 0), {})
    return first if all(r.density == 1 for r in first.values()) else {}


def _row(key: Key, rounds: dict[int, Round], dense: dict[int, Round]) -> Row:
    recipe, method, control, number = key

    def mean(field: str, of: Callable[[list[float]], float] = fmean) -> float | None:
        values = [getattr(r, field) for r in rounds.values()]
        return None if None in values else of(values)

    return Row(
        name=recipe, method=method, control=control, round=number, seeds=len(rounds),
        density=fmean(r.density for r in rounds.values()),
        validation=fmean(r.validation_accuracy for r in rounds.values()),
        accuracy=mean("test_accuracy"),
        deviation=mean("test_accuracy", stdev) if len(rounds) > 1 else None,
        difference=None if rounds is dense else accuracy_difference(rounds, dense, recipe),
        parameters_alive=fmean(r.parameters_alive for r in rounds.values()),
        bytes=mean("bytes"),
        macs_alive=mean("macs_alive"),
        indicative=len(rounds) < 3,
    )


def accuracy_difference(rounds: dict[int, Round], others: dict[int, Round], recipe: str) -> Interval | None:
    """Return the test accuracy of `rounds` minus that of `others`, both by seed, as `paired_interval` does.

    None unless every seed of `rounds` has its partner and all have their test errors.

    Raises:
        DataError: test sets of different sizes.
    """
    if not rounds.keys() <= others.keys():
        return None
    pairs = [(r, others[seed]) for seed, r in rounds.items()]
    a, b = ([r.test_errors for r in side if r.test_errors is not None] for side in zip(*pairs, strict=True))
    if not len(a) == len(b) == len(pairs):
        return None
    sizes = sorted({r.test_items or 0 for pair in pairs for r in pair})
    if len(sizes) > 1:
        raise DataError(f"recipe {recipe!r} was tested on {sizes} items; compare results of one test set")
    return paired_interval(a, b, sizes[0])


def _cells(row: Row) -> dict[str, str]:
    """What a table prints of a row, by column."""
    def count(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}"

    accuracy = "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}"
    spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
    d = row.difference
    return {
        "recipe": row.name,
        "method": row.method if row.control is None else f"{row.method}: {row.control}",
        "round": str(row.round),
        "density %": f"{100 * row.density:.3g}",
        "test accuracy %": accuracy + spread,
        "to dense, points": "-" if d is None else f"{d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]",
        "parameters": count(row.parameters_alive),
        "bytes": count(row.bytes),
        "MACs": count(row.macs_alive),
        "seeds": f"{row.seeds} (indicative)" if row.indicative else str(row.seeds),
    }


NAME_WIDTH = 17  # what 80 columns leave for names
_LEFT = ("recipe", "method")  # columns of words; numbers stand on the right


def sparsest(rows: Iterable[Row], margin: float = 0.2) -> Row | None:
    """Return the row of a method itself with the lowest density whose validation accuracy is that of dense.

    At most `margin` points below counts as the same. The test set has no say in the choice.
    """
    own = [row for row in rows if row.control is None]
    dense = next((row.validation for row in own if row.round == 0 and row.density == 1), math.inf)
    fit = [row for row in own if row.round and row.validation >= dense - margin / 100 - 1e-9]
    return min(fit, key=lambda row: row.density, default=None)


def brief(rows: Iterable[Row], margin: float = 0.2) -> list[Row]:
    """Return the rows that matter first, in their order.

    They are, for each recipe and method: dense, the sparsest round by validation (`sparsest`), the method's
    last round, its controls at these rounds, and every control's own last round.
    """
    kept = []
    for _, together in groupby(rows, key=lambda row: (row.name, row.method)):
        group = list(together)
        last = {row.control: row.round for row in group}
        best = sparsest(group, margin)
        shown = {0, last.get(None), best.round if best else None}
        kept += [row for row in group if row.round in shown or row.round == last[row.control]]
    return kept


def table(rows: Sequence[Row], margin: float = 0.2) -> "Table":
    """Return the rows of one recipe as a table for the terminal, at most 80 columns wide wherever possible."""
    title = ", ".join(dict.fromkeys(f"{row.name}: {row.method}" for row in rows))
    columns = ("network", "round", "density", "accuracy", "to dense, points", "parameters", "bytes")
    return tables.terminal(title, columns, [(_short(row), row.control is None) for row in rows], _caption(rows, margin))


def _short(row: Row) -> list[str]:
    """What the terminal shows of a row."""
    from rich.filesize import decimal

    cells = _cells(row)
    accuracy = "-" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"
    d = row.difference
    # three digits keep the column narrow where a control falls far below dense
    points = [] if d is None else [f"{v:+.{2 if abs(v) < 9.995 else 1}f}" for v in (d.mean, d.low, d.high)]
    return [
        tables.network(row.method, row.control, row.round, row.density, NAME_WIDTH),
        cells["round"], f"{cells['density %']} %", accuracy, "{} [{},{}]".format(*points) if points else "-",
        cells["parameters"], "-" if row.bytes is None else decimal(round(row.bytes)),
    ]  # fmt: skip


def _caption(rows: Sequence[Row], margin: float) -> str:
    if not rows:
        return ""
    points = f"{margin:g} point{'' if margin == 1 else 's'}"
    text = f"Test accuracy; seeds: {tables.seeds([row.seeds for row in rows])}; in brackets 95 % intervals.\n"
    best = sparsest(rows, margin)
    if best is None:
        return f"{text}No round is within {points} of dense on the validation images."
    text += f"Sparsest within {points} of dense on the validation images: round {best.round}"
    if best.difference is None:
        return f"{text}."
    verdict = "not below" if not_below(best.difference, margin) else "below"
    return f"{text};\non the test images it is {verdict} dense (lower end of its interval)."


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, one line each."""
    return tables.markdown([_cells(row) for row in rows], _LEFT)


def as_json(rows: Sequence[Any]) -> str:
    """Return the rows, which are of any dataclass, as a JSON list of objects with its fields."""
    return json.dumps([asdict(row) for row in rows], indent=1)
