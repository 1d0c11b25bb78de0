"""How fast networks learned beside dense, by the validation accuracies of their epochs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from synaptree.measure.learning import WINDOW, area_under, first_epoch_at
from synaptree.report import tables
from synaptree.report.comparison import Key, rounds_by_seed
from synaptree.report.paired import Difference, paired_difference, shown
from synaptree.results import Result

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Learning", "learning", "markdown", "table"]

Curves = dict[int, list[float]]
"""Seed -> validation accuracies after each epoch."""


@dataclass(frozen=True)
class Learning:
    """How a network learned in one round, over its seeds; beside dense, if every seed has its dense partner.

    The differences are None for dense itself, for trainings of unequal length, and where no seed has both sides.
    """

    name: str  # of the recipe
    method: str
    control: str | None
    round: int
    seeds: int  # that trained in the round
    density: float  # at its end, [0, 1]
    epochs: int
    dense_epochs: int | None
    target: float | None  # final validation accuracy of dense: mean over its last three epochs, [0, 1]
    reached: int | None  # seeds whose mean over three epochs reaches it
    first: float | None  # epoch where they first do, mean over these seeds
    first_difference: Difference | None  # to dense, in epochs, over seeds where both reach it; below 0 is sooner
    area: float  # mean height of the curve, [0, 1]
    area_difference: Difference | None  # to dense, in percentage points
    indicative: bool  # fewer than three seeds


def learning(results: Iterable[Result]) -> list[Learning]:
    """Return one row for each recipe, method or control, and round that trained.

    Dense is round 0 of the method itself with the same seed, if it has all its connections. The target of a seed is
    the final validation accuracy of its dense network, the mean over the last three epochs, so that dense reaches it
    with its last epoch at the latest. Seeds that do not reach it are left out of `first` and of its difference,
    which favours networks that reach it seldom: read both beside `reached`. A round that consists of several
    trainings, as pruning until the network suffers does, is no one curve and has no row.

    Raises:
        DataError: as `rounds_by_seed`.
    """
    found = list(results)
    groups = rounds_by_seed(found)
    curves: dict[Key, Curves] = {key: {} for key in groups}
    for result in found:
        for part in result.rounds:
            if curve := _curve(result, part.round):
                curves[result.recipe, result.method, result.control, part.round][result.seed] = curve
    rows = []
    for key, rounds in groups.items():
        first = (*key[:2], None, 0)
        whole = all(part.density == 1 for part in groups.get(first, {}).values())
        dense = curves.get(first, {}) if whole else {}
        if curves[key]:
            density = fmean(rounds[seed].density for seed in curves[key])
            rows.append(_row(key, density, dict(sorted(curves[key].items())), dense))
    return rows


def _curve(result: Result, number: int) -> list[float]:
    """Return the validation accuracies of the one training in a round; of several, nothing."""
    epochs = [epoch for epoch in result.epochs if epoch.round == number]
    counts = [epoch.epoch for epoch in epochs]
    return [epoch.validation_accuracy for epoch in epochs] if counts == sorted(set(counts)) else []


def _row(key: Key, density: float, own: Curves, dense: Curves) -> Learning:
    partners = {seed: dense[seed] for seed in own} if own.keys() <= dense.keys() else {}
    first = {seed: first_epoch_at(own[seed], _final(curve)) for seed, curve in partners.items()}
    reached = [epoch for epoch in first.values() if epoch is not None]
    length = len(next(iter(own.values())))
    # beside itself dense has no difference, and areas over unequal numbers of epochs have none that says anything
    equal = all(len(own[seed]) == len(curve) for seed, curve in partners.items())
    compared = partners if equal and key[2:] != (None, 0) else {}
    areas = {seed: 100 * area_under(curve) for seed, curve in own.items()}
    return Learning(
        name=key[0], method=key[1], control=key[2], round=key[3], seeds=len(own), density=density,
        epochs=length, dense_epochs=len(next(iter(partners.values()))) if partners else None,
        target=fmean(_final(curve) for curve in partners.values()) if partners else None,
        reached=len(reached) if partners else None,
        first=fmean(reached) if reached else None,
        first_difference=_sooner({seed: first[seed] for seed in compared}, compared),
        area=fmean(areas.values()) / 100,
        area_difference=_paired([(areas[seed], 100 * area_under(curve)) for seed, curve in compared.items()]),
        indicative=len(own) < 3,
    )  # fmt: skip


def _final(curve: Sequence[float]) -> float:
    return fmean(curve[-WINDOW:])


def _sooner(first: dict[int, int | None], dense: Curves) -> Difference | None:
    """Return the difference of the first epochs at the target, over the seeds where both reach it."""
    both = [(epoch, first_epoch_at(dense[seed], _final(dense[seed]))) for seed, epoch in first.items()]
    return _paired([(a, b) for a, b in both if a is not None and b is not None])


def _paired(pairs: Sequence[tuple[float, float]]) -> Difference | None:
    return paired_difference(*map(list, zip(*pairs, strict=True))) if pairs else None


def _epochs(difference: Difference | None, between: str = ", ") -> str:
    """Return what a table prints of a difference in epochs.

    These are whole numbers, so that two of them are often equal, and their interval of no width says nothing.
    """
    if difference is None or difference.seeds > 2:
        return shown(difference, ".1f", between)
    return f"{difference.mean:+z.1f} over {difference.seeds}"


def _cells(row: Learning) -> dict[str, str]:
    """What a table prints of a row, by column."""
    pairs = 0 if row.first_difference is None else row.first_difference.seeds
    return {
        "recipe": row.name,
        "method": row.method if row.control is None else f"{row.method}: {row.control}",
        "round": str(row.round),
        "density %": f"{100 * row.density:.3g}",
        "epochs": str(row.epochs) if row.dense_epochs in (None, row.epochs) else f"{row.epochs} ({row.dense_epochs})",
        "target %": "-" if row.target is None else f"{100 * row.target:.2f}",
        "reached": "-" if row.reached is None else f"{row.reached} of {row.seeds}",
        "first epoch": "-" if row.first is None else f"{row.first:.1f}",
        "to dense, epochs": _epochs(row.first_difference),
        "pairs": str(pairs) if pairs else "-",
        "area %": f"{100 * row.area:.2f}",
        "to dense, points": shown(row.area_difference, ".2f"),
        "seeds": f"{row.seeds} (indicative)" if row.indicative else str(row.seeds),
    }


_LEFT = ("recipe", "method")
NAME_WIDTH = 13  # broken further where the intervals leave less


def table(rows: Sequence[Learning]) -> "Table":
    """Return the rows of one recipe as a table for the terminal."""
    title = ", ".join(dict.fromkeys(f"{row.name}: {row.method}" for row in rows))
    columns = ("network", "round", "epochs", "first", "by", "to dense, epochs", "area", "to dense, points")
    return tables.terminal(title, columns, [(_short(row), row.control is None) for row in rows], _caption(rows))


def _short(row: Learning) -> list[str]:
    """What the terminal shows of a row."""
    cells = _cells(row)
    return [
        tables.network(row.method, row.control, row.round, row.density, NAME_WIDTH),
        cells["round"], cells["epochs"], cells["first epoch"], cells["reached"].replace(" of ", "/"),
        _epochs(row.first_difference, ","), cells["area %"], shown(row.area_difference, ".2f", ","),
    ]  # fmt: skip


def _caption(rows: Sequence[Learning]) -> str:
    if not rows:
        return ""
    counts = tables.seeds([row.seeds for row in rows])
    lines = [
        f"first: epoch at whose end the mean over {WINDOW} epochs reaches the final validation accuracy of dense, that "
        "of its last epochs, over the seeds that reach it (by); to dense: over those where dense reaches it as well.",
        f"area: mean height of the validation curve, %. In brackets 95 % intervals over seeds: {counts}.",
        "A round that goes on from trained weights starts ahead.",
    ]
    if any(row.target is None for row in rows):
        lines.append("Without a dense network of the same seeds there is nothing to reach.")
    if any(row.dense_epochs not in (None, row.epochs) for row in rows):
        lines.append("Where dense trained another number of epochs, in brackets, the two are not compared.")
    return "\n".join(lines)


def markdown(rows: Sequence[Learning]) -> str:
    """Return the rows as a Markdown table, one line each."""
    return tables.markdown([_cells(row) for row in rows], _LEFT)
