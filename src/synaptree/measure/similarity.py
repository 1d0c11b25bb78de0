"""How much of their topology two networks have in common, beside what chance and a common seed account for.

Every function takes `a` and `b`, the topologies of two networks of one architecture: masks by parameter
name, bool, True where a connection exists, or `Topology` objects. Connections are those of weights, which
are tensors of two or more axes, units first; biases, batch norms and shortcuts are left out. A mask counts
its own entries at whatever granularity; in a `Topology` a kernel counts as its weights.

Over layers `l` with `N_l` places, of which `a_l` and `b_l` hold a connection, sets `E_a`, `E_b`. Shares of
nothing are 1 where both networks have nothing, else 0.

Two independent masks of density `d` agree at `d^2 + (1 - d)^2` of their places: 0.905 at 5 %. And what two
networks inherit from one sparse seed, they share. So no measure says much without its level of chance. Nor
does a comparison place by place of networks with different starts, whose hidden units are exchangeable: it
finds chance only, and `nnstd` matches the units first.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from synaptree.core.errors import OptionError, ShapeError, SynaptreeError, unknown
from synaptree.core.topology import Topology

__all__ = [
    "MARGIN", "Masks", "Measures", "Similarity", "agree", "agree_chance", "check_same_network", "compare", "dice",
    "jaccard", "kappa", "neuron", "nnstd", "nnstd_chance", "overlap", "overlap_chance", "seed_chance", "seed_floor",
]  # fmt: skip

Masks = Mapping[str, Tensor] | Topology
"""A topology: parameter name -> bool mask, or the object that owns them."""

MARGIN = 0.05
"""What an overlap must exceed chance and seed by to count as clearly above them."""


@dataclass(frozen=True)
class Measures:
    """The similarity of one layer, or of several together; shares in [0, 1] but for `kappa`.

    Attributes:
        size: places where a connection can be.
        a: connections of the first network.
        b: those of the second.
        both: those they have in common.
        overlap: see the function of that name, as for all below.
        overlap_chance: overlap of independent masks of the same densities.
        seed_floor: share of the smaller network that is common and from the seed; None without a seed.
        seed_chance: overlap of networks that grow independently from the seed; None without a seed.
        jaccard: common share of all connections of either.
        dice: common share of the mean number of connections.
        agree: share of places where both have a connection or neither has.
        agree_chance: agreement of independent masks of the same densities.
        kappa: agreement beyond chance, in [-1, 1].
        neuron: common share of the units that have an input.
        nnstd: 1 - distance after matching units, the mean over layers; None unless the layers are a chain.
        nnstd_chance: the same of masks shuffled within layers; likewise.
    """

    size: int
    a: int
    b: int
    both: int
    overlap: float
    overlap_chance: float
    seed_floor: float | None
    seed_chance: float | None
    jaccard: float
    dice: float
    agree: float
    agree_chance: float
    kappa: float
    neuron: float
    nnstd: float | None = None
    nnstd_chance: float | None = None


@dataclass(frozen=True)
class Similarity:
    """All measures of two topologies; `dataclasses.asdict` makes plain JSON of it.

    Attributes:
        total: over the layers that are not excluded.
        layers: of each layer, by parameter name, excluded ones too.
        excluded: names of the layers that `total` leaves out.
        dense: names of the layers that are dense in both networks, which are alike whatever else is.
        notes: what could not be measured, or should be known of the numbers, in sentences.
    """

    total: Measures
    layers: dict[str, Measures]
    excluded: tuple[str, ...]
    dense: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def clear(self) -> bool:
        """Whether the overlap exceeds the largest of chance, seed floor and seed chance by more than 0.05, `MARGIN`."""
        return self.total.overlap - max(self.total.overlap_chance, self.total.seed_chance or 0.0) > MARGIN

    @property
    def verdict(self) -> str:
        """Whether the two are `clear`ly more alike than they would be anyway, with the numbers, in a sentence."""
        t = self.total
        figures = f"overlap {t.overlap:.3f}, chance {t.overlap_chance:.3f}"
        if t.seed_floor is None or t.seed_chance is None:
            found = "above chance, no seed given" if self.clear else "not clearly above chance"
            return f"{found}: {figures}"
        figures += f", seed floor {t.seed_floor:.3f} ({t.seed_chance:.3f} with independent growth)"
        if self.clear:
            return f"above chance and seed floor: {figures}"
        level = "chance" if t.overlap_chance > t.seed_chance else "what the common seed leads to"
        return f"not clearly above {level}: {figures}"


class _Count(NamedTuple):
    """What two networks have of one layer; counts of several layers add up.

    `expected` and `inherited` are common connections to expect: of independent masks, and of masks that kept
    from the seed what they have in common of it and are independent elsewhere.
    """

    size: int
    a: int
    b: int
    both: int
    expected: float
    kept: int
    inherited: float
    units_a: int
    units_b: int
    units_both: int

    def of_smaller(self, connections: float) -> float:
        return _share(connections, min(self.a, self.b), self.a == self.b)

    def jaccard(self) -> float:
        return _share(self.both, self.a + self.b - self.both)

    def dice(self) -> float:
        return _share(2 * self.both, self.a + self.b)

    def agreement(self, both: float) -> float:
        return _share(self.size - self.a - self.b + 2 * both, self.size)

    def kappa(self) -> float:
        chance = self.agreement(self.expected)
        return (self.agreement(self.both) - chance) / (1 - chance) if chance < 1 else 0.0

    def neuron(self) -> float:
        return _share(self.units_both, min(self.units_a, self.units_b), self.units_a == self.units_b)


def overlap(a: Masks, b: Masks) -> float:
    """Return `|E_a & E_b| / min(|E_a|, |E_b|)`, the overlap coefficient, in [0, 1].

    >>> a, b = (torch.tensor([row]).bool() for row in ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]))
    >>> overlap({"weight": a}, {"weight": b})
    0.5

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    count = _total(a, b)
    return count.of_smaller(count.both)


def overlap_chance(a: Masks, b: Masks) -> float:
    """Return the overlap of independent masks, `(sum_l a_l b_l / N_l) / min(|E_a|, |E_b|)`, in [0, 1].

    >>> a, b = (torch.tensor([row]).bool() for row in ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]))
    >>> overlap_chance({"weight": a}, {"weight": b})  # 2 * 3 / 5 of 2
    0.6

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    count = _total(a, b)
    return count.of_smaller(count.expected)


def seed_floor(a: Masks, b: Masks, seed: Masks) -> float:
    """Return `|SEED & E_a & E_b| / min(|E_a|, |E_b|)`: what of the overlap comes from the seed, in [0, 1].

    It is all of the overlap where the seed is dense, and so says nothing of networks pruned from dense ones.

    >>> a, b, seed = (torch.tensor([row]).bool() for row in ([1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 0]))
    >>> round(seed_floor({"weight": a}, {"weight": b}, {"weight": seed}), 3)
    0.333

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    count = _total(a, b, seed)
    return count.of_smaller(count.kept)


def seed_chance(a: Masks, b: Masks, seed: Masks) -> float:
    """Return the overlap of networks that share what these share of the seed and are independent elsewhere.

    With `s_l` connections in the seed, and `x_l`, `y_l` those of `a` and `b` outside it:
    `(|SEED & E_a & E_b| + sum_l x_l y_l / (N_l - s_l)) / min(|E_a|, |E_b|)`, in [0, 1], at least `seed_floor`.
    Where both keep a seed of density `d0` whole and grow to `d` it is `(d0 + (d - d0)^2 / (1 - d0)) / d`.

    >>> a, b, seed = (torch.tensor([row]).bool() for row in ([1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 0]))
    >>> round(seed_chance({"weight": a}, {"weight": b}, {"weight": seed}), 3)  # 1 + 2 * 2 / 3 of 3
    0.778

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    count = _total(a, b, seed)
    return count.of_smaller(count.inherited)


def jaccard(a: Masks, b: Masks) -> float:
    """Return `|E_a & E_b| / |E_a | E_b|`, in [0, 1].

    >>> a, b = (torch.tensor([row]).bool() for row in ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]))
    >>> jaccard({"weight": a}, {"weight": b})
    0.25

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    return _total(a, b).jaccard()


def dice(a: Masks, b: Masks) -> float:
    """Return `2 |E_a & E_b| / (|E_a| + |E_b|)`, in [0, 1].

    >>> a, b = (torch.tensor([row]).bool() for row in ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]))
    >>> dice({"weight": a}, {"weight": b})
    0.4

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    return _total(a, b).dice()


def agree(a: Masks, b: Masks) -> float:
    """Return the share of all places where both have a connection or neither has, in [0, 1].

    Sparse masks agree by all they lack: compare it with `agree_chance`, or take `kappa`.

    >>> a, b = (torch.tensor([row]).bool() for row in ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]))
    >>> agree({"weight": a}, {"weight": b})
    0.4

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    count = _total(a, b)
    return count.agreement(count.both)


def agree_chance(a: Masks, b: Masks) -> float:
    """Return the agreement of independent masks, `sum_l (a_l b_l + (N_l - a_l)(N_l - b_l)) / N_l / sum_l N_l`.

    >>> a, b = (torch.tensor([row]).bool() for row in ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]))
    >>> round(agree_chance({"weight": a}, {"weight": b}), 3)  # (2 * 3 + 3 * 2) / 5 of 5
    0.48

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    count = _total(a, b)
    return count.agreement(count.expected)


def kappa(a: Masks, b: Masks) -> float:
    """Return the agreement beyond chance, `(agree - agree_chance) / (1 - agree_chance)`, in [-1, 1].

    It is 1 for equal masks, about 0 for independent ones, and 0 where chance leaves no room to differ.

    >>> a, b = (torch.tensor([row]).bool() for row in ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]))
    >>> round(kappa({"weight": a}, {"weight": b}), 3)  # (0.4 - 0.48) / 0.52
    -0.154

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    return _total(a, b).kappa()


def neuron(a: Masks, b: Masks) -> float:
    """Return the units with an existing input in both, of the smaller number of such units, in [0, 1].

    Units are the rows of every weight: neurons or filters, inputs of the network not among them.

    >>> a, b = torch.tensor([[1, 0], [0, 0], [0, 0]]).bool(), torch.tensor([[0, 1], [1, 1], [0, 0]]).bool()
    >>> neuron({"weight": a}, {"weight": b})
    1.0

    Raises:
        ShapeError: the masks are not bool, or not of one network.
    """
    return _total(a, b).neuron()


def nnstd(a: Masks, b: Masks, *, classes: bool = True) -> dict[str, float]:
    """Return the distance of each layer after its units are matched, the sparse topology distance, in [0, 1].

    Units `p` of `a` and `q` of `b` with input sets `P`, `Q` differ by `|P ^ Q| / |P | Q|`, 0 where both are
    empty. From the first layer on, units are matched one to one so that the sum of their differences is
    least; its mean is the layer's distance, and the inputs of `b`'s next layer are put in the order found.

    Args:
        a: weights of a chain of linear layers, `(units, inputs)`, in order, each fed by the one before.
        b: likewise.
        classes: the units of the last layer are classes, which stay where they are; False if the output layer
            is not among the layers given.

    Raises:
        ShapeError: the masks are not bool, or not of one network, or no such chain. Convolutions, and a linear
            layer after them, are not supported; residual connections between linear layers are not seen.
        SynaptreeError: scipy is not installed.

    Example:
        >>> hidden, output = torch.tensor([[1, 1, 0], [0, 0, 1]]).bool(), torch.tensor([[1, 0]]).bool()
        >>> a, b = {"fc1": hidden, "fc2": output}, {"fc1": hidden.flip(0), "fc2": output}
        >>> nnstd(a, b)  # fc1 is the same but for the order of its units, so fc2 reads another unit
        {'fc1': 0.0, 'fc2': 1.0}

    Paper: Liu et al., ECML-PKDD 2020 (2006.14085), section 3.
    Differs: classes are not matched; among equally good matches units stay in place.
    """
    a, b = _pair(a, b)
    if fault := _chain_fault(a):
        raise ShapeError(fault)
    return _distances(a, b, classes)


def nnstd_chance(
    a: Masks, b: Masks, *, classes: bool = True, draws: int = 5, shuffle_seed: int = 0
) -> dict[str, float]:
    """Return `nnstd` by layer where the connections of both are dealt out anew within each layer, in [0, 1].

    Args:
        a: as for `nnstd`.
        b: likewise.
        classes: likewise.
        draws: shuffles of both that the mean is taken over, at least 1.
        shuffle_seed: of the shuffles; the same seed gives the same numbers.

    Raises:
        OptionError: draws is less than 1.
        ShapeError: as for `nnstd`.
        SynaptreeError: scipy is not installed.

    Example:
        >>> a, b = torch.tensor([[1, 0, 0, 0]]).bool(), torch.tensor([[1, 1, 1, 1]]).bool()
        >>> nnstd_chance({"fc": a}, {"fc": b})  # wherever the one input of a lies
        {'fc': 0.75}
    """
    if draws < 1:
        raise OptionError(f"draws = {draws}: wanted at least 1")
    a, b = _pair(a, b)
    if fault := _chain_fault(a):
        raise ShapeError(fault)
    rng = torch.Generator().manual_seed(shuffle_seed)
    found = [_distances(_shuffled(a, rng), _shuffled(b, rng), classes) for _ in range(draws)]
    return {name: fmean(distances[name] for distances in found) for name in a}


def compare(
    a: Masks, b: Masks, seed: Masks | None = None, *, layers: Iterable[str] = ("*",), exclude: Iterable[str] = (),
    classes: bool = True, draws: int = 5, shuffle_seed: int = 0,
) -> Similarity:  # fmt: skip
    """Return all measures of two topologies, by layer and in total.

    A layer that is dense in both is as alike as can be and tells nothing, while it raises overlap and chance
    together: leave it out of the total with `exclude`. It still tells `nnstd` where the classes are.

    Args:
        a: topology of the first network.
        b: topology of the second.
        seed: what both started from, if they grew.
        layers: shell patterns of the layers that the total covers: "fc1", or "fc1.weight".
        exclude: likewise, of those that it leaves out; wins over `layers`.
        classes: as for `nnstd`.
        draws: shuffles for the level of chance of `nnstd`, at least 1.
        shuffle_seed: of these shuffles.

    Raises:
        OptionError: a pattern fits no layer, no layer is left, or draws is less than 1.
        ShapeError: the masks are not bool, or not of one network.
        SynaptreeError: the layers are a chain of linear ones, and scipy is not installed to match their units.

    Example:
        >>> a = {"fc1.weight": torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]).bool(), "fc2.weight": torch.ones(1, 2).bool()}
        >>> b = {"fc1.weight": torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]]).bool(), "fc2.weight": torch.ones(1, 2).bool()}
        >>> similarity = compare(a, b, exclude=["fc2"])
        >>> print(similarity.verdict)
        above chance, no seed given: overlap 0.667, chance 0.375
        >>> similarity.total.both, round(similarity.total.nnstd, 3), similarity.dense
        (2, 0.667, ('fc2.weight',))
    """
    a, b, *seeds = _pair(a, b, seed)
    covered = _chosen(tuple(a), tuple(layers), tuple(exclude))
    counts = {name: _count(a[name], b[name], seeds[0][name] if seeds else None) for name in a}
    near: dict[str, tuple[float, float]] = {}
    fault = _chain_fault(a)
    if not fault:
        chance = nnstd_chance(a, b, classes=classes, draws=draws, shuffle_seed=shuffle_seed)
        near = {name: (1 - distance, 1 - chance[name]) for name, distance in _distances(a, b, classes).items()}

    def measures(*names: str) -> Measures:
        total = _Count(*map(sum, zip(*(counts[name] for name in names), strict=True)))
        return _measures(total, seeded=bool(seeds), near=[near[name] for name in names if near])

    dense = tuple(name for name, count in counts.items() if count.a == count.b == count.size)
    notes = [f"units are not matched: {fault}"] if fault else []
    if idle := [name for name in dense if name in covered]:
        notes.append(f"dense in both and yet part of the total: {', '.join(idle)}")
    excluded = tuple(name for name in a if name not in covered)
    return Similarity(measures(*covered), {name: measures(name) for name in a}, excluded, dense, tuple(notes))


def check_same_network(networks: Mapping[str, Masks]) -> None:
    """Raise an error unless these topologies, by what a message is to call each, are of one architecture.

    >>> check_same_network({"x": {"fc.weight": torch.ones(2, 3).bool()}, "y": {"fc.weight": torch.ones(2, 4).bool()}})
    Traceback (most recent call last):
    synaptree.core.errors.ShapeError: y: fc.weight has shape (2, 4), in x it has (2, 3); wanted networks of ...

    Raises:
        ShapeError: the masks are not bool, or differ in the names or shapes of their weights.
    """
    _aligned(networks)


def _pair(a: Masks, b: Masks, seed: Masks | None = None) -> list[dict[str, Tensor]]:
    given = {"the first topology": a, "the second": b}
    return _aligned(given if seed is None else given | {"the seed": seed})


def _aligned(networks: Mapping[str, Masks]) -> list[dict[str, Tensor]]:
    """Return the masks of the weights of each network, in the order of the first."""
    found = {title: _weights(title, masks) for title, masks in networks.items()}
    first, own = next(iter(found.items()))
    for title, masks in found.items():
        advice = "wanted networks of one architecture, with masks of one granularity"
        if differ := sorted(masks.keys() ^ own.keys()):
            where = "; ".join(f"{name} only in {title if name in masks else first}" for name in differ)
            raise ShapeError(f"{title} and {first} have different weights: {where}; {advice}")
        for name, mask in own.items():
            if (got := tuple(masks[name].shape)) != (shape := tuple(mask.shape)):
                raise ShapeError(f"{title}: {name} has shape {got}, in {first} it has {shape}; {advice}")
    return [{name: masks[name] for name in own} for masks in found.values()]


def _weights(title: str, masks: Masks) -> dict[str, Tensor]:
    whole = {name: masks.expanded(name) for name in masks.masks} if isinstance(masks, Topology) else masks
    found = {name: mask.detach().cpu() for name, mask in whole.items() if mask.dim() > 1}
    for name, mask in found.items():
        if mask.dtype != torch.bool:
            raise ShapeError(f"{title}: {name} of shape {tuple(mask.shape)} is {mask.dtype}; wanted a bool mask")
    if not found:
        raise ShapeError(f"{title}: wanted masks of weights, which have two or more axes, got {len(whole)} of fewer")
    return found


def _chosen(names: tuple[str, ...], include: tuple[str, ...], exclude: tuple[str, ...]) -> list[str]:
    def fits(name: str, pattern: str) -> bool:
        return any(fnmatchcase(form, pattern) for form in (name, name.removesuffix(".weight")))

    for pattern in (*(p for p in include if p != "*"), *exclude):
        if not any(fits(name, pattern) for name in names):
            raise unknown("layer", pattern, names)
    chosen = [n for n in names if any(fits(n, p) for p in include) and not any(fits(n, p) for p in exclude)]
    if not chosen:
        raise OptionError(f"no layer is left to compare: `layers` and `exclude` leave out all of {', '.join(names)}")
    return chosen


def _count(a: Tensor, b: Tensor, seed: Tensor | None) -> _Count:
    size, of_a, of_b, both = a.numel(), int(a.sum()), int(b.sum()), int((a & b).sum())
    kept, inherited = 0, 0.0
    if seed is not None:
        kept = int((a & b & seed).sum())
        grown = int((a & ~seed).sum()) * int((b & ~seed).sum())
        inherited = kept + grown / max(1, size - int(seed.sum()))
    units_a, units_b = a.flatten(1).any(1), b.flatten(1).any(1)
    units = (int(units_a.sum()), int(units_b.sum()), int((units_a & units_b).sum()))
    return _Count(size, of_a, of_b, both, of_a * of_b / max(1, size), kept, inherited, *units)


def _total(a: Masks, b: Masks, seed: Masks | None = None) -> _Count:
    a, b, *seeds = _pair(a, b, seed)
    counts = [_count(a[name], b[name], seeds[0][name] if seeds else None) for name in a]
    return _Count(*map(sum, zip(*counts, strict=True)))


def _share(part: float, whole: int, alike: bool = True) -> float:
    return part / whole if whole else float(alike)


def _measures(count: _Count, *, seeded: bool, near: list[tuple[float, float]]) -> Measures:
    """Return the measures of a count; `near` holds similarity and chance of the matched units of its layers."""
    matched, by_chance = map(fmean, zip(*near, strict=True)) if near else (None, None)
    return Measures(
        size=count.size, a=count.a, b=count.b, both=count.both,
        overlap=count.of_smaller(count.both), overlap_chance=count.of_smaller(count.expected),
        seed_floor=count.of_smaller(count.kept) if seeded else None,
        seed_chance=count.of_smaller(count.inherited) if seeded else None,
        jaccard=count.jaccard(), dice=count.dice(),
        agree=count.agreement(count.both), agree_chance=count.agreement(count.expected), kappa=count.kappa(),
        neuron=count.neuron(), nnstd=matched, nnstd_chance=by_chance,
    )  # fmt: skip


def _chain_fault(masks: Mapping[str, Tensor]) -> str:
    """Return why the layers are no chain of linear ones, or nothing."""
    advice = "only chains of linear layers are supported, without convolutions"
    for name, mask in masks.items():
        if mask.dim() != 2:
            return f"{name} has shape {tuple(mask.shape)}, wanted (units, inputs); {advice}"
    for (before, below), (name, mask) in pairwise(masks.items()):
        if mask.shape[1] != below.shape[0]:
            return f"{name} has {mask.shape[1]} inputs, {before} before it has {below.shape[0]} units; {advice}"
    return ""


def _distances(a: Mapping[str, Tensor], b: Mapping[str, Tensor], classes: bool) -> dict[str, float]:
    distances = {}
    last = list(a)[-1]
    order = torch.arange(next(iter(a.values())).shape[1])
    for name in a:
        cost = _differences(a[name], b[name][:, order])
        order = torch.arange(len(cost)) if classes and name == last else _match(cost)
        distances[name] = float(cost[torch.arange(len(cost)), order].mean())
    return distances


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Return the difference of the input sets of every unit of `a` and every one of `b`, `(units, units)`."""
    common = (a.float() @ b.float().T).double()
    union = a.sum(1)[:, None] + b.sum(1) - common
    return torch.where(union > 0, 1 - common / union, 0.0)


def _match(cost: Tensor) -> Tensor:
    """Return the unit of the second network for each of the first, at the least sum of costs."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise SynaptreeError("matching units needs scipy: pip install 'synaptree[train]'") from error
    # too little to change what is best, enough to leave units in place where several matches are
    moved = 1e-9 * (1 - torch.eye(len(cost), dtype=cost.dtype)) / max(1, len(cost))
    return torch.from_numpy(np.asarray(linear_sum_assignment((cost + moved).numpy())[1]))


def _shuffled(masks: Mapping[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=rng)].view_as(mask) for name, mask in masks.items()
    }
