"""Runs of methods as they stand beside each other, for tests."""

from typing import Any

from recorded import a_result, a_round

from synaptree.report.group import Task, entrants
from synaptree.report.latency import Latency
from synaptree.report.standings import Level, standings
from synaptree.results import Epoch, Result

TASK = Task("lenet5-mnist", "None", "the published test set")
POINTS = {1.0: (0.9, 1), 0.5: (0.9, 1), 0.25: (0.9, 1)}


def ran(
    method: str, seed: int, points: dict[float, tuple[float, int]], control: str | None = None, **config: Any
) -> Result:
    """A run whose rounds have these densities -> (validation accuracy, test errors); errors are the first items."""
    rounds = [
        a_round(number, list(range(errors)), density=density, validation_accuracy=validation, bytes=100 + seed)
        for number, (density, (validation, errors)) in enumerate(points.items())
    ]
    full = {"model": "lenet5", "data": "mnist", "dense": {"epochs": 1}, "method": method}
    full |= config | {"seed": seed, "control": control, "at": "all" if control else None}
    name, recipe = f"{method}{control or ''}{seed}", f"{method}-short"
    return a_result(seed, control, recipe=recipe, method=method, config=full, config_hash=name, rounds=rounds)


def levels(results: list[Result], *latencies: Latency, **options: Any) -> list[Level]:
    return standings(TASK, entrants(results), latencies, **options)


def epochs(*rounds: tuple[int, int], stage: str = "retrain") -> list[Epoch]:
    """So many epochs of two seconds in each of these rounds."""
    return [
        Epoch(stage=stage, round=number, epoch=i, step=i, loss=0, validation_accuracy=0, density=1, seconds=2)
        for number, count in rounds for i in range(count)
    ]  # fmt: skip


def a_latency(run: str, batch: int, micro: float, times: float, best: str = "torch") -> Latency:
    return Latency(
        config_hash=run, round=0, batch=batch, seconds=micro / 1e6, best=best, best_seconds=micro * times / 1e6,
        times=times, times_low=times, times_high=times, bytes=100, cpu="a processor", versions={},
    )  # fmt: skip
