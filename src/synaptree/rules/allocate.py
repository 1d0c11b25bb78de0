"""Allocation: how many connections each layer gets at a given density of the whole network.

An allocation is a frozen value called with `(density, parts)`; it returns one count per part. The
counts add up to `round(density * connections)`, as far as the layers have room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptree.core.errors import OptionError, unknown
from synaptree.rules.structure import counts_of_largest

__all__ = ["Allocation", "ErdosRenyi", "Global", "Present", "Room", "Table", "Uniform", "allocation", "check_density"]


@dataclass(frozen=True)
class Room:
    """What an allocation knows of one part: its name, the shape of its weight, its connections and scores."""

    name: str
    weight: tuple[int, ...]
    connections: int
    score: Tensor


def check_density(density: float, name: str = "density") -> float:
    """Return `density` if it lies in [0, 1].

    Raises:
        OptionError: it does not.
    """
    if not 0.0 <= density <= 1.0:
        raise OptionError(f"{name} = {density!r}: wanted a number from 0 (nothing exists) to 1 (dense)")
    return float(density)


@dataclass(frozen=True)
class Uniform:
    """The same density in every layer.

    >>> Uniform()(0.5, [Room("a", (3, 1), 3, torch.zeros(3)), Room("b", (2, 1), 2, torch.zeros(2))])
    [1, 1]
    """

    def __call__(self, density: float, parts: Sequence[Room]) -> list[int]:
        return _apportion([density * part.connections for part in parts], density, parts)


@dataclass(frozen=True)
class Present:
    """Each layer in proportion to the connections it has at present; a score of `-inf` marks one it has not.

    >>> score = torch.tensor([1.0, 2.0, -torch.inf, -torch.inf])
    >>> Present()(0.25, [Room("a", (4, 1), 4, torch.ones(4)), Room("b", (4, 1), 4, score)])
    [1, 1]
    """

    def __call__(self, density: float, parts: Sequence[Room]) -> list[int]:
        alive = [int((part.score > -torch.inf).sum()) for part in parts]
        share = density * sum(part.connections for part in parts) / max(1, sum(alive))
        return _apportion([min(1.0, share) * n for n in alive], density, parts)


@dataclass(frozen=True)
class ErdosRenyi:
    """Density of a layer in proportion to `(n_out + n_in + kernel sizes) / (n_out * n_in * kernel area)`.

    Small layers stay denser. Densities are clipped to 1 and the others scaled up to the target.

    Paper: Mocanu et al. 2018 (linear layers); Evci et al. 2020 (1911.11134), section 3, for convolutions ("ERK").
    """

    def __call__(self, density: float, parts: Sequence[Room]) -> list[int]:
        raw = [sum(part.weight) / max(1, torch.Size(part.weight).numel()) for part in parts]
        full: set[int] = set()
        target = density * sum(part.connections for part in parts)
        while True:
            free = [i for i in range(len(parts)) if i not in full]
            rest = target - sum(parts[i].connections for i in full)
            share = sum(raw[i] * parts[i].connections for i in free)
            scale = rest / share if share else 0.0
            over = {i for i in free if raw[i] * scale > 1.0}
            if not over:
                break
            full |= over
        wanted = [p.connections * (1.0 if i in full else max(0.0, raw[i] * scale)) for i, p in enumerate(parts)]
        return _apportion(wanted, density, parts)


@dataclass(frozen=True)
class Global:
    """The best connections of the whole network, wherever they lie."""

    def __call__(self, density: float, parts: Sequence[Room]) -> list[int]:
        total = round(density * sum(part.connections for part in parts))
        return counts_of_largest([part.score for part in parts], total)


@dataclass(frozen=True)
class Table:
    """A density of its own for each part, by parameter or layer name, whatever the target says."""

    densities: Mapping[str, float]

    def __call__(self, density: float, parts: Sequence[Room]) -> list[int]:  # noqa: ARG002
        counts = []
        for part in parts:
            layer = part.name.rpartition(".")[0]
            if part.name not in self.densities and layer not in self.densities:
                raise unknown("layer in the table of densities", part.name, self.densities)
            own = self.densities.get(part.name, self.densities.get(layer, 1.0))
            counts.append(round(check_density(own, f"density of {part.name}") * part.connections))
        return counts


Allocation = Uniform | Present | ErdosRenyi | Global | Table


def _apportion(wanted: list[float], density: float, parts: Sequence[Room]) -> list[int]:
    """Round to whole connections by largest remainder, so that the network's density is met exactly."""
    counts = [min(int(w), part.connections) for w, part in zip(wanted, parts, strict=True)]
    # not from the sum of `wanted`, which may end up on the other side of a half
    short = round(density * sum(part.connections for part in parts)) - sum(counts)
    by_remainder = sorted(range(len(parts)), key=lambda i: (counts[i] - wanted[i], i))
    for i in [i for i in by_remainder if counts[i] < parts[i].connections][:short]:
        counts[i] += 1
    return counts


_NAMED: Mapping[str, Allocation] = {
    "uniform": Uniform(), "present": Present(), "erdos_renyi": ErdosRenyi(), "global": Global(),
}  # fmt: skip


def allocation(wanted: str | Mapping[str, float]) -> Allocation:
    """Return the allocation of that name ("uniform", "present", "erdos_renyi", "global"), or the table of densities.

    >>> allocation("global")
    Global()

    Raises:
        OptionError: nobody knows the name.
    """
    if not isinstance(wanted, str):
        return Table(dict(wanted))
    if wanted not in _NAMED:
        raise unknown("allocation", wanted, _NAMED)
    return _NAMED[wanted]
