"""Propose new connections of a layer from those that exist; what is made is as long as the index, never dense."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from synaptree.core.errors import NumericError, OptionError, ShapeError, unknown
from synaptree.rules.structure import largest

__all__ = [
    "ENDPOINTS", "EndPoint", "Proposal", "check_endpoint", "end_points",
    "merged", "propose", "random_places", "strongest", "tail_normal",
]  # fmt: skip

EndPoint = Literal["gauss_edge", "gauss_pos", "strength", "uniform", "tail_ordered"]

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Steps of the walk, int64 `(n,)` -> rows, int64 `(n,)`; or `(0,)` where no row can be drawn."""

_ROUNDS = 10  # walks on after collisions, before the rest is drawn uniformly


class Proposal(NamedTuple):
    """New connections of one layer.

    Attributes:
        places: int64 `(n,)`, sorted flat places `row * columns + column` where nothing exists yet.
        fallback: how many of them were drawn uniformly, since the end points drawn were all taken.
    """

    places: Tensor
    fallback: int


class _Edges(NamedTuple):
    """A layer's connections: the units they end in, their weights, and which of them are targets."""

    rows: int
    row: Tensor
    values: Tensor
    targets: Tensor


def propose(
    shape: tuple[int, int], index: Tensor, values: Tensor, count: int, rng: torch.Generator, *,
    targets: Tensor | None = None, origins: Tensor | None = None, target_fraction: float = 0.1,
    endpoint: EndPoint = "gauss_edge", k_sigma: float = 1.0,
) -> Proposal:  # fmt: skip
    """Return `min(count, places left)` new connections that start where strong ones do.

    The targets, strongest first, are walked in order, again from the first after the last. At each step
    the new connection `(j, i)` starts in `i`, the column of the target, and ends in the row `j` that
    `endpoint` draws; see `end_points`. It counts unless it exists or was found before. The walk goes on
    for what is short, at most ten times; what is short then is drawn uniformly among the places left.

    Args:
        shape: rows (receiving units) and columns (sending units) of the layer.
        index: int64 `(n,)`, sorted flat places `row * columns + column` of the connections that exist.
        values: `(n,)`, their weights.
        count: new connections wanted.
        rng: a CPU generator; everything is drawn from it.
        targets: int64, positions in `index` in the order they are walked; by default the
            `ceil(target_fraction * n)` connections with the largest `|values|`.
        origins: int64, columns that are walked instead of those of the targets.
        target_fraction: share in [0, 1] of the connections that are targets.
        endpoint: how the row is drawn.
        k_sigma: see `end_points`.

    Raises:
        OptionError: an option is out of range.
        ShapeError: the index is not sorted, leaves the layer, or has another length than the values.
        NumericError: a value is NaN or infinite.

    Example:
        >>> propose((2, 3), torch.tensor([0, 4]), torch.tensor([5.0, 1.0]), 1, torch.Generator(), target_fraction=0.5,
        ...         endpoint="tail_ordered", k_sigma=0.0)
        Proposal(places=tensor([3]), fallback=0)

    Paper: Finlinson and Moschoyiannis 2020 (2011.11358) rank weights by magnitude, take high performing
        connections for the origin of a new one, and the Gaussian over the weights for its end.
    Differs: the paper's equations are not known to us; this is our reading.
    """
    columns = _checked(shape, index, values, target_fraction)
    check_endpoint(endpoint, k_sigma)
    if targets is None:
        targets = strongest(values, math.ceil(target_fraction * len(values) - 1e-9))
    walk = index[targets] % columns if origins is None else origins
    count = max(0, min(count, math.prod(shape) - len(index)))
    found, start = index.new_empty(0), 0
    if count and len(walk) and len(targets):
        draw = end_points(shape, index, values, targets, endpoint, k_sigma)
        for _ in range(_ROUNDS):
            steps = torch.arange(start, start + count - len(found))
            rows = draw(steps, rng)
            if not len(rows):
                break
            start += len(steps)
            fresh = (rows * columns + walk[steps % len(walk)]).unique()
            fresh = fresh[~_among(fresh, index)]
            found = merged(found, fresh[~_among(fresh, found)])
    missing = count - len(found)
    if missing:
        found = merged(found, random_places(shape, merged(index, found), missing, rng))
    return Proposal(found, missing)


def end_points(
    shape: tuple[int, int], index: Tensor, values: Tensor, targets: Tensor, endpoint: EndPoint, k_sigma: float = 1.0
) -> Draw:
    """Return the function that draws the rows in which new connections end: `(steps, rng) -> rows`.

    With `mean` and `sigma` the mean and standard deviation of `values`, `k = k_sigma`, and `z` standard
    normal:

    - "gauss_edge": the row of the connection whose weight is nearest to `mean + sigma z`, with `|z| >= k`;
    - "gauss_pos": `round(row of the target + max(1, k rows / 6) z)`, modulo the rows;
    - "strength": row `j` with a probability in proportion to `sum_i |w[j, i]| + 1e-12`;
    - "uniform": any row;
    - "tail_ordered": the rows that hold a weight with `|w - mean| > k sigma`, in order, one further at
      each walk; nothing is random.

    Args:
        shape: as in `propose`.
        index: as in `propose`; not empty.
        values: as in `propose`.
        targets: as in `propose`; not empty.
        endpoint: one of the five.
        k_sigma: `k`, at least 0.

    Returns:
        A function of the steps of the walk, int64 `(n,)`, and a generator, to rows, int64 `(n,)`; to none
        at all where no weight is in the tail of "tail_ordered".

    Example:
        >>> draw = end_points((2, 2), torch.tensor([0, 3]), torch.tensor([-1., 9.]), torch.tensor([1]), "gauss_edge")
        >>> sorted(set(draw(torch.arange(50), torch.Generator().manual_seed(0)).tolist()))
        [0, 1]
    """
    check_endpoint(endpoint, k_sigma)
    rows, columns = shape
    return _ENDPOINTS[endpoint](_Edges(rows, index // columns, values.double(), targets), float(k_sigma))


def tail_normal(count: int, k_sigma: float, rng: torch.Generator) -> Tensor:
    """Return `count` draws of a standard normal variable `z` on condition that `|z| >= k_sigma`.

    `z = +-sqrt(2) erfinv(min(2 u - 1, 1 - 1e-12))` with `u = lo + (1 - lo) U(0, 1)` and
    `lo = (1 + erf(k_sigma / sqrt(2))) / 2`, in float64.

    Args:
        count: of draws.
        k_sigma: at least 0, in standard deviations.
        rng: a CPU generator.

    Example:
        >>> bool((tail_normal(1000, 2.0, torch.Generator()).abs() >= 2.0).all())
        True
    """
    low = (1 + math.erf(k_sigma / math.sqrt(2))) / 2
    u = low + (1 - low) * torch.rand(count, dtype=torch.float64, generator=rng)
    # rounding may lead below k_sigma, and far out in the tail so does the limit
    size = (math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(max=1 - 1e-12))).clamp(min=k_sigma)
    return torch.where(torch.rand(count, generator=rng) < 0.5, -size, size)


def random_places(shape: tuple[int, int], index: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return `min(count, places left)` places drawn uniformly without replacement among those not in `index`.

    Numbers of free places are drawn, and the `r`-th free place (from 0) is `r` plus the connections before it.

    Args:
        shape: rows and columns of the layer.
        index: int64 `(n,)`, sorted flat places that are taken.
        count: places wanted.
        rng: a CPU generator.

    Returns:
        int64, sorted flat places.

    Example:
        >>> random_places((2, 3), torch.tensor([0, 4]), 9, torch.Generator())
        tensor([1, 2, 3, 5])
    """
    free = math.prod(shape) - len(index)
    number = _distinct(free, max(0, min(count, free)), rng)
    free_before = index - torch.arange(len(index))
    return number + torch.searchsorted(free_before, number, right=True)


def strongest(values: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` largest `|values|` in descending order; equals in order of position.

    >>> strongest(torch.tensor([1., -3., 3., 2.]), 3)
    tensor([1, 2, 3])
    """
    size = values.abs()
    chosen = largest(size, count).nonzero().squeeze(1)
    return chosen[size[chosen].argsort(descending=True, stable=True)]


def merged(index: Tensor, other: Tensor) -> Tensor:
    """Return two sorted indices without common places as one.

    >>> merged(torch.tensor([1, 5]), torch.tensor([3]))
    tensor([1, 3, 5])
    """
    both: Tensor = torch.cat([index, other]).sort().values
    return both


def check_endpoint(endpoint: str, k_sigma: float) -> None:
    """Refuse an end point nobody knows and a tail that is none.

    Raises:
        OptionError: so it is.
    """
    if endpoint not in _ENDPOINTS:
        raise unknown("endpoint", endpoint, _ENDPOINTS)
    if not 0 <= k_sigma < math.inf:
        raise OptionError(f"k_sigma = {k_sigma!r}: wanted a number of standard deviations, at least 0")


def _checked(shape: tuple[int, int], index: Tensor, values: Tensor, target_fraction: float) -> int:
    """Return the number of columns, where all is as it must be."""
    if not 0.0 <= target_fraction <= 1.0:
        raise OptionError(f"target_fraction = {target_fraction!r}: wanted a share from 0 to 1")
    if index.dim() != 1 or index.shape != values.shape:
        raise ShapeError(
            f"wanted an index of shape (n,) and as many values, got {tuple(index.shape)} and {tuple(values.shape)}"
        )
    inside = not len(index) or (int(index[0]) >= 0 and int(index[-1]) < math.prod(shape))
    if not inside or not bool((index[1:] > index[:-1]).all()):
        raise ShapeError(
            f"the index of {len(index)} connections must rise from 0 to below {math.prod(shape)} in a layer of shape "
            f"{tuple(shape)}, without repeats; sort it"
        )
    if not values.isfinite().all():
        raise NumericError("a weight is NaN or infinite; propose from the last good checkpoint")
    return shape[1]


def _among(places: Tensor, index: Tensor) -> Tensor:
    """Return which of `places` lie in the sorted `index`."""
    if not len(index):
        return torch.zeros_like(places, dtype=torch.bool)
    found: Tensor = index[torch.searchsorted(index, places).clamp_(max=len(index) - 1)] == places
    return found


def _distinct(total: int, count: int, rng: torch.Generator) -> Tensor:
    """Return `count` distinct numbers below `total`, sorted, each set as likely as any other."""
    if total <= 4 * count:
        return torch.randperm(total, generator=rng)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while short := count - len(drawn):
        drawn = torch.cat([drawn, torch.randint(total, (short,), generator=rng)]).unique()
    return drawn


def _gauss_edge(edges: _Edges, k: float) -> Draw:
    mean, sigma = _gaussian(edges.values)
    value, order = edges.values.sort(stable=True)
    row, last = edges.row[order], len(value) - 1

    def draw(steps: Tensor, rng: torch.Generator) -> Tensor:
        wanted = mean + sigma * tail_normal(len(steps), k, rng)
        above = torch.searchsorted(value, wanted).clamp_(max=last)
        below = (above - 1).clamp_(min=0)
        return row[torch.where(wanted - value[below] <= value[above] - wanted, below, above)]

    return draw


def _gauss_pos(edges: _Edges, k: float) -> Draw:
    end, spread = edges.row[edges.targets], max(1.0, k * edges.rows / 6)

    def draw(steps: Tensor, rng: torch.Generator) -> Tensor:
        z = torch.randn(len(steps), dtype=torch.float64, generator=rng)
        row: Tensor = (end[steps % len(end)] + spread * z).round().long() % edges.rows
        return row

    return draw


def _strength(edges: _Edges, k: float) -> Draw:  # noqa: ARG001
    strength = torch.zeros(edges.rows, dtype=torch.float64).index_add_(0, edges.row, edges.values.abs())
    upto = (strength + 1e-12).cumsum(0)

    def draw(steps: Tensor, rng: torch.Generator) -> Tensor:
        u = torch.rand(len(steps), dtype=torch.float64, generator=rng) * upto[-1]
        return torch.searchsorted(upto, u, right=True).clamp_(max=edges.rows - 1)

    return draw


def _uniform(edges: _Edges, k: float) -> Draw:  # noqa: ARG001
    return lambda steps, rng: torch.randint(edges.rows, (len(steps),), generator=rng)


def _tail_ordered(edges: _Edges, k: float) -> Draw:
    mean, sigma = _gaussian(edges.values)
    tail: Tensor = edges.row[(edges.values - mean).abs() > k * sigma].unique()

    def draw(steps: Tensor, rng: torch.Generator) -> Tensor:  # noqa: ARG001
        walks, at = steps // len(edges.targets), steps % len(edges.targets)
        return tail[(at + walks) % len(tail)] if len(tail) else tail

    return draw


def _gaussian(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), values.std(correction=0) + 1e-12


_ENDPOINTS: dict[str, Callable[[_Edges, float], Draw]] = {
    "gauss_edge": _gauss_edge, "gauss_pos": _gauss_pos, "strength": _strength, "uniform": _uniform,
    "tail_ordered": _tail_ordered,
}  # fmt: skip

ENDPOINTS = tuple(_ENDPOINTS)
