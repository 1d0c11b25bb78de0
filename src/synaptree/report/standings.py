"""Methods beside each other at like densities: accuracy, size, speed and cost of each, and who is level with the best.

The best of a level is the one with the highest mean accuracy on *validation*; the test set has no say in it, and only
tells how the others compare with it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

from synaptree.core.errors import OptionError
from synaptree.report.comparison import Interval, accuracy_difference
from synaptree.report.cost import cost
from synaptree.report.group import Entrant, Task
from synaptree.report.latency import Latency
from synaptree.results import Round

__all__ = ["DENSE", "LEVELS", "Level", "Speed", "Standing", "Verdict", "best_of", "standings"]

LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Densities about which networks are compared."""
DENSE = 1.0
WIDEST = 2.0  # how many times as dense or sparse as the outermost levels a network may be

Verdict = Literal["best", "tie", "above", "below"]
"""Of a network beside the best of its level: the best itself; the interval of the difference holds 0, or does not."""


@dataclass(frozen=True)
class Speed:
    """The time of the engine for a call, and how many times that of the best dense runtime is; medians over seeds."""

    batch: int
    seconds: float
    times: float
    best: str  # the dense runtime that was the fastest most often
    cpu: str


@dataclass(frozen=True)
class Standing:
    """One network of an entrant at a level, over its seeds; what not every seed has is None."""

    name: str  # of the entrant
    recipe: str
    method: str
    control: str | None
    round: int
    seeds: int
    density: float  # [0, 1]
    validation: float  # accuracy, [0, 1]
    accuracy: float | None  # on the test set, [0, 1]
    deviation: float | None  # of it, over seeds
    to_dense: Interval | None  # the recipe's own dense network, in percentage points
    to_best: Interval | None  # the best of the level, in percentage points
    pairs: int  # seeds in common with the best
    verdict: Verdict | None
    bytes: float | None  # of the round's file
    epochs: float | None  # of training behind it
    seconds: float | None  # that they took, as recorded
    speeds: tuple[Speed, ...]  # by batch; none where nothing was measured
    runs: tuple[str, ...]  # configuration hashes of its results
    indicative: bool  # fewer than three seeds


@dataclass(frozen=True)
class Level:
    """The networks about a density, the best on validation first, then by accuracy; controls below."""

    task: Task
    density: float  # [0, 1]; 1 is dense
    rows: tuple[Standing, ...]

    @property
    def title(self) -> str:
        """Name for people."""
        return "dense" if self.density == DENSE else f"about {100 * self.density:g} %"


Place = tuple[Entrant, int]
"""An entrant and the number of one of its rounds."""


def standings(
    task: Task, who: Sequence[Entrant], latencies: Iterable[Latency] = (), *, levels: Sequence[float] = LEVELS,
    every: bool = False,
) -> list[Level]:  # fmt: skip
    """Return the networks of a task level by level, dense first; levels without any are left out.

    A network belongs to the level that is nearest in the logarithm of density, and of each entrant the nearest of its
    networks stands for it. Nothing is selected: the rounds are those of the recipes.

    Args:
        task: what the results have in common.
        who: its entrants.
        latencies: measurements of any runs.
        levels: densities in (0, 1).
        every: all rounds of an entrant in a level, not only the nearest.

    Raises:
        OptionError: a level outside (0, 1), or none.
    """
    if not levels or not all(0 < level < 1 for level in levels):
        raise OptionError(f"levels are densities in (0, 1), got {list(levels)}; 0.05 is 5 %")
    wanted = sorted(set(levels), reverse=True)
    measured: dict[tuple[str, int], list[Latency]] = {}
    for one in latencies:
        measured.setdefault((one.config_hash, one.round), []).append(one)
    out = []
    for level, places in [(DENSE, _dense(who)), *((level, _near(who, level, wanted, every)) for level in wanted)]:
        if places:
            out.append(_level(task, level, places, measured))
    return out


def _dense(who: Sequence[Entrant]) -> list[Place]:
    """Return each dense network once: recipes that train it alike, with the same seeds, have the same."""
    kept: dict[str, Place] = {}
    for entrant in who:
        if entrant.control is None and entrant.dense:
            key = str(entrant.results[0].config.get("dense"))
            if key not in kept or len(entrant.dense) > len(kept[key][0].dense):
                kept[key] = entrant, 0
    return list(kept.values())


def _near(who: Sequence[Entrant], level: float, levels: Sequence[float], every: bool) -> list[Place]:
    out: list[Place] = []
    for entrant in who:
        near = {
            number: abs(math.log(density / level))
            for number, rounds in entrant.rounds.items()
            if _within(density := _density(rounds), level, levels) and not _untrained(rounds)
        }
        if near:
            chosen = sorted(near) if every else [min(near, key=lambda number: (near[number], -number))]
            out += [(entrant, number) for number in chosen]
    return out


def _within(density: float, level: float, levels: Sequence[float]) -> bool:
    """Say whether a density is nearest to this level, by its logarithm, and not too far off all of them."""
    if not levels[-1] / WIDEST <= density < min(1.0, levels[0] * WIDEST):
        return False
    return min(levels, key=lambda one: abs(math.log(density / one))) == level


def _density(rounds: Mapping[int, Round]) -> float:
    return fmean(part.density for part in rounds.values())


def _untrained(rounds: Mapping[int, Round]) -> bool:
    """Say whether this is a seed network, which only grows later."""
    return all(part.stage == "seed" for part in rounds.values())


def best_of(rows: Sequence[tuple[float, int, bool]]) -> int | None:
    """Return the index of the best of (mean validation accuracy, seeds, whether it is a control).

    Controls are no candidates, and rows of fewer than three seeds only where there are no others.

    >>> best_of([(0.98, 5, False), (0.99, 1, False), (0.985, 5, True)])
    0
    """
    own = [index for index, (_, _, control) in enumerate(rows) if not control]
    firm = [index for index in own if rows[index][1] >= 3]
    return max(firm or own, key=lambda index: rows[index][0], default=None)


def _level(
    task: Task, density: float, places: Sequence[Place], measured: Mapping[tuple[str, int], list[Latency]]
) -> Level:
    found = [entrant.rounds[number] for entrant, number in places]
    candidates = [
        (fmean(part.validation_accuracy for part in rounds.values()), len(rounds), entrant.control is not None)
        for (entrant, _), rounds in zip(places, found, strict=True)
    ]
    first = best_of(candidates)
    best = None if first is None else found[first]
    rows = [
        _standing(place, rounds, best, measured) for place, rounds in zip(places, found, strict=True)
    ]
    return Level(task, density, tuple(_ordered(rows)))


def _ordered(rows: Sequence[Standing]) -> list[Standing]:
    """Return the best first, then the others by accuracy, each with its controls below it."""
    def height(row: Standing) -> float:
        return -(row.validation if row.accuracy is None else row.accuracy)

    own = sorted((row for row in rows if row.control is None), key=lambda row: (row.verdict != "best", height(row)))
    controls = sorted((row for row in rows if row.control is not None), key=height)
    out = []
    for row in own:
        out.append(row)
        # several rounds of a method in one level have their controls below the last of them
        last = [other for other in own if (other.method, other.recipe) == (row.method, row.recipe)][-1] is row
        out += [one for one in controls if last and (one.method, one.recipe) == (row.method, row.recipe)]
    return out + [row for row in controls if row not in out]


def _standing(
    place: Place, rounds: dict[int, Round], best: dict[int, Round] | None,
    measured: Mapping[tuple[str, int], list[Latency]],
) -> Standing:  # fmt: skip
    entrant, number = place
    tested = [part.test_accuracy for part in rounds.values() if part.test_accuracy is not None]
    whole = len(tested) == len(rounds)
    sizes = [part.bytes for part in rounds.values() if part.bytes is not None]
    costs = [found for seed in rounds if (found := cost(entrant, seed, number)) is not None]
    behind = len(costs) == len(rounds)
    to_best, pairs = (None, 0) if best is None else _beside(rounds, best, entrant.recipe)
    return Standing(
        name=entrant.name, recipe=entrant.recipe, method=entrant.method, control=entrant.control, round=number,
        seeds=len(rounds), density=_density(rounds),
        validation=fmean(part.validation_accuracy for part in rounds.values()),
        accuracy=fmean(tested) if whole else None,
        deviation=stdev(tested) if whole and len(tested) > 1 else None,
        to_dense=None if rounds == entrant.dense else _beside(rounds, entrant.dense, entrant.recipe)[0],
        to_best=to_best, pairs=pairs, verdict="best" if rounds is best else verdict(to_best),
        bytes=fmean(sizes) if len(sizes) == len(rounds) else None,
        epochs=fmean(one.epochs for one in costs) if behind else None,
        seconds=fmean(one.seconds for one in costs) if behind else None,
        speeds=_speeds(entrant, number, measured), indicative=len(rounds) < 3,
        runs=tuple(result.config_hash for result in entrant.results if result.seed in rounds),
    )  # fmt: skip


def _beside(rounds: dict[int, Round], others: dict[int, Round], recipe: str) -> tuple[Interval | None, int]:
    """Return the difference in test accuracy over the seeds that both have, and how many those are."""
    if rounds is others:
        return None, len(rounds)
    pairs = {seed: part for seed, part in rounds.items() if seed in others}
    return (accuracy_difference(pairs, others, recipe) if pairs else None), len(pairs)


def verdict(difference: Interval | None) -> Verdict | None:
    """Say how a network stands by the interval of its difference to the best; a tie where it holds 0.

    >>> verdict(Interval(-0.1, -0.3, 0.1)), verdict(Interval(-0.3, -0.5, -0.1)), verdict(Interval(0.2, 0.1, 0.3))
    ('tie', 'below', 'above')
    """
    if difference is None:
        return None
    return "below" if difference.high < 0 else "above" if difference.low > 0 else "tie"


def _speeds(
    entrant: Entrant, number: int, measured: Mapping[tuple[str, int], list[Latency]]
) -> tuple[Speed, ...]:
    found = [one for result in entrant.results for one in measured.get((result.config_hash, number), ())]
    by_batch: dict[int, list[Latency]] = {}
    for one in found:
        if one.threads == 1:
            by_batch.setdefault(one.batch, []).append(one)
    return tuple(_speed(batch, by_batch[batch]) for batch in sorted(by_batch))


def _speed(batch: int, found: Sequence[Latency]) -> Speed:
    names = [one.best for one in found]
    return Speed(
        batch, median(one.seconds for one in found), median(one.times for one in found),
        max(sorted(set(names)), key=names.count), ", ".join(sorted({one.cpu for one in found})),
    )  # fmt: skip
