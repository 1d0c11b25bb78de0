"""What it took to train the network of a round, as its run recorded it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synaptree.report.group import Entrant
from synaptree.results import Epoch, Result

__all__ = ["Cost", "cost"]

MASKS_OF_THE_METHOD = ("shuffled", "reinitialised", "rewound")
"""Controls that need the method's own masks, and with them its training."""


@dataclass(frozen=True)
class Cost:
    """Training behind a network.

    Attributes:
        epochs: passes over the training data.
        seconds: that they took on the machine of the run.
    """

    epochs: int
    seconds: float


def cost(entrant: Entrant, seed: int, number: int) -> Cost | None:
    """Return the training behind the network of round `number`, from the weights that were last initial ones.

    Rounds add up; a method that acts in training starts anew with each point of its sweep, and a programme with
    `renew`, so that the dense network beside them costs nothing. A control costs the dense network that it prunes, or,
    with the method's masks, what the method did. None where the epochs of a run it needs are not recorded.
    """
    result = next((one for one in entrant.results if one.seed == seed), None)
    if result is None:
        return None
    if entrant.control is None:
        return _sum(result, begins(result, number), number)
    masks = entrant.control in MASKS_OF_THE_METHOD
    before = cost(entrant.parent, seed, number if masks else 0) if entrant.parent else None
    level_by_level = result.config.get("at") == "all" and not masks and not result.config.get("sweep")
    own = _sum(result, 1 if level_by_level else number, number)
    if before is None or own is None:
        return None
    return Cost(before.epochs + own.epochs, before.seconds + own.seconds)


def _sum(result: Result, first: int, last: int) -> Cost | None:
    counted = [epoch for epoch in result.epochs if first <= epoch.round <= last]
    if not result.epochs:
        return None
    return Cost(len(counted), sum(epoch.seconds for epoch in counted))


def begins(result: Result, number: int) -> int:
    """Return the first round whose training is in the network of round `number`."""
    programme = result.config.get("programme")
    if programme is None:
        return number if _anew(result.epochs, number) else 0
    begin = index = 0
    for stage in _flat(programme):
        if index > number:
            break
        if stage == "renew":
            begin = index
        elif stage != "rewind":  # all others leave a network that is measured
            index += 1
    return begin


def _anew(epochs: Sequence[Epoch], number: int) -> bool:
    """Say whether a round without a programme was trained from initial weights: what retrains is called so."""
    return number > 0 and any(epoch.round == number and epoch.stage == "train" for epoch in epochs)


def _flat(programme: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for table in programme:
        if table["stage"] == "repeat":
            for _ in range(table["times"]):
                yield from _flat(table["programme"])
        else:
            yield table["stage"]
