"""What a sweep chooses: by validation accuracy and density, never by the test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from synaptree.results import Result, Round
from synaptree.sweep.trials import Trial

__all__ = ["Candidate", "best", "candidates", "front"]


@dataclass(frozen=True)
class Candidate:
    """The network that a trial has at the end of one round, its numbers means over the seeds.

    Attributes:
        trial: whose it is.
        round: of the trial, counted from 0; the dense network, round 0, stands for itself only where there is no other.
        last: whether the trial ends with it.
        validation: accuracy on the validation images, in [0, 1].
        density: share of the weights that exist, in [0, 1].
        test: accuracy on the test set, in [0, 1]; for the eye, nothing is chosen by it.
        seconds: of training in the whole trial, all seeds together.
        seeds: how many.
    """

    trial: Trial
    round: int
    last: bool
    validation: float
    density: float
    test: float | None
    seconds: float
    seeds: int


def candidates(trial: Trial, results: Sequence[Result]) -> list[Candidate]:
    """Return the networks a trial left, one for each round that all of its seeds have.

    Args:
        trial: the trial.
        results: of its runs, one for each seed.
    """
    by_seed = [{part.round: part for part in result.rounds} for result in results]
    rounds = sorted(set.intersection(*map(set, by_seed)))
    after_dense = [number for number in rounds if number > 0] or rounds
    return [
        _candidate(trial, number, number == rounds[-1], [parts[number] for parts in by_seed], results)
        for number in after_dense
    ]


def _candidate(
    trial: Trial, number: int, last: bool, parts: Sequence[Round], results: Sequence[Result]
) -> Candidate:
    tests = [part.test_accuracy for part in parts if part.test_accuracy is not None]
    return Candidate(
        trial, number, last,
        validation=fmean(part.validation_accuracy for part in parts),
        density=fmean(part.density for part in parts),
        test=fmean(tests) if len(tests) == len(parts) else None,
        seconds=sum(epoch.seconds for result in results for epoch in result.epochs), seeds=len(results),
    )  # fmt: skip


def best(among: Sequence[Candidate], max_density: float | None = None) -> Candidate | None:
    """Return the network with the highest validation accuracy, of equal ones the sparsest; None if there is none.

    Args:
        among: networks of all trials.
        max_density: networks up to this density count, of every round; without it, those the trials end with.
    """
    allowed = [c for c in among if (c.last if max_density is None else c.density <= max_density)]
    return min(allowed, key=lambda c: (-c.validation, c.density), default=None)


def front(among: Sequence[Candidate], max_density: float | None = None) -> list[Candidate]:
    """Return the networks that no other one beats, the sparsest first.

    One beats another that is nowhere better than it, in validation accuracy or in density, and somewhere worse.
    Every round of a trial counts. Of equals the first stays.

    Args:
        among: networks of all trials.
        max_density: networks up to this density count.
    """
    allowed = [c for c in among if max_density is None or c.density <= max_density]
    chosen: list[Candidate] = []
    for candidate in sorted(allowed, key=lambda c: (c.density, -c.validation)):
        if not chosen or candidate.validation > chosen[-1].validation:
            chosen.append(candidate)
    return chosen
