"""Growth up to a capacity: at each event connections are born where strong ones are, and none dies."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from synaptree.core.errors import OptionError, unknown
from synaptree.core.rule import Group
from synaptree.rules.allocate import check_density
from synaptree.rules.propose import EndPoint, Proposal, check_endpoint, propose, random_places, strongest
from synaptree.rules.structure import counts_of_largest, largest

__all__ = ["Growth", "Kind", "Origin", "Scope", "shared_out"]

Kind = Literal["strategic", "random", "gradient"]
Origin = Literal["source", "end_next_layer", "node_strength"]
Scope = Literal["layer", "global"]

_log = logging.getLogger("synaptree")


@dataclass(frozen=True)
class _Layer:
    """A layer as a sparse matrix: its shape, the places taken, and the weights there."""

    group: Group
    shape: tuple[int, int]
    index: Tensor
    values: Tensor

    @classmethod
    def of(cls, group: Group, weight: str) -> "_Layer":
        mask, score = group.weight.mask, group.weight.score(weight)
        index = mask.flatten().nonzero().squeeze(1)
        # on the CPU, so that one seed means one network on every device
        return cls(group, (len(mask), mask[0].numel()), index.cpu(), score.flatten()[index].double().cpu())

    @property
    def room(self) -> int:
        return math.prod(self.shape) - len(self.index)


@dataclass(frozen=True)
class Growth:
    """Add connections to the layers in play until a share of all their places is taken.

    With `active` connections in `places` places, an event adds `n = min(room, max(1, round(fraction *
    active)))`, where `room = floor(capacity * places) - active`; nothing where there is no room. Layers
    share `n` out in proportion to their connections, by largest remainder, each up to its free places. All layers
    grow from the masks and weights as they were before the event; their order does not matter.

    The targets are the `ceil(target_fraction * active)` connections of largest `|weight|`. A
    new connection starts where `origin` says and ends where `endpoint` says, see `propose`.

    Args:
        capacity: share in [0, 1] of all places of the layers that may be taken in the end.
        fraction: share in (0, 1] of the connections that is added at an event.
        grow: "strategic" as above; "random", uniform among free places; "gradient", at the free places
            with the largest score by the signal `gradient`. The counts per layer are the same for all three.
        target_fraction: share in [0, 1] of the connections that are targets.
        target_scope: "layer" ranks within each layer. "global" ranks all layers together, and they share
            `n` out in proportion to their targets.
        origin: where a new connection starts: "source", where a target does; "end_next_layer", in the unit
            in which a target of the layer before ends (in the first layer, and where that layer has
            another number of units than this one has columns, as "source"); "node_strength", in one of
            the `ceil(target_fraction * columns)` columns with the largest sum of `|weight|`.
        endpoint: "gauss_edge", "gauss_pos", "strength", "uniform" or "tail_ordered"; see `end_points`.
        k_sigma: see `end_points`.
        weight: the signal that holds the weights, with their sign.
        gradient: the signal that ranks free places, for "gradient".

    Attributes:
        fallback: of the last event: weight -> how many of how many new connections were drawn uniformly,
            since what the strategy proposed was taken. A report, no part of the value.

    Raises:
        OptionError: an option is out of range.

    Paper: Finlinson and Moschoyiannis 2020 (2011.11358).
    Differs: the paper's equations are not known to us; this is our reading.
    """

    capacity: float
    fraction: float = 0.1
    grow: Kind = "strategic"
    target_fraction: float = 0.1
    target_scope: Scope = "layer"
    origin: Origin = "source"
    endpoint: EndPoint = "gauss_edge"
    k_sigma: float = 1.0
    weight: str = "weight"
    gradient: str = "gradient"
    fallback: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, known in (("grow", Kind), ("target_scope", Scope), ("origin", Origin)):
            if getattr(self, name) not in get_args(known):
                raise unknown(name, getattr(self, name), get_args(known))
        check_density(self.capacity, "capacity")
        check_density(self.target_fraction, "target_fraction")
        check_endpoint(self.endpoint, self.k_sigma)
        if not 0 < self.fraction <= 1:
            raise OptionError(f"grow_fraction = {self.fraction!r}: wanted a share above 0 and at most 1")

    def __call__(self, groups: Sequence[Group], step: int) -> dict[str, Tensor]:
        layers = [_Layer.of(group, self.weight) for group in groups]
        targets = self._targets(layers)
        ranked = targets if self.target_scope == "global" else [layer.index for layer in layers]
        counts = shared_out(self._births(layers), [len(these) for these in ranked], [layer.room for layer in layers])
        self.fallback.clear()
        masks = {}
        for position, count in enumerate(counts):
            weight = groups[position].weight
            masks[weight.name] = mask = weight.mask.clone(memory_format=torch.contiguous_format)
            if count:
                places, drawn = self._proposal(layers, targets, position, count)
                mask.view(-1)[places.to(mask.device)] = True
                self.fallback[weight.name] = (drawn, count)
                _log.info("step %d, %s: %d of %d new connections drawn uniformly", step, weight.name, drawn, count)
        return masks

    def _births(self, layers: Sequence[_Layer]) -> int:
        active = sum(len(layer.index) for layer in layers)
        places = sum(math.prod(layer.shape) for layer in layers)
        # 1e-9: a share such as 0.2 is a little above or below its decimal value
        room = math.floor(self.capacity * places + 1e-9) - active
        return max(0, min(room, max(1, round(self.fraction * active))))

    def _targets(self, layers: Sequence[_Layer]) -> list[Tensor]:
        """Return the targets of each layer: positions in its index, strongest first."""
        counts = [self._share(len(layer.index)) for layer in layers]
        if self.target_scope == "global" and layers:
            total = self._share(sum(len(layer.index) for layer in layers))
            counts = counts_of_largest([layer.values.abs() for layer in layers], total)
        return [strongest(layer.values, count) for layer, count in zip(layers, counts, strict=True)]

    def _share(self, total: int) -> int:
        return math.ceil(self.target_fraction * total - 1e-9)

    def _proposal(self, layers: Sequence[_Layer], targets: Sequence[Tensor], position: int, count: int) -> Proposal:
        layer = layers[position]
        rng, mask = layer.group.rng, layer.group.weight.mask
        if self.grow == "random":
            return Proposal(random_places(layer.shape, layer.index, count, rng), 0)
        if self.grow == "gradient":
            score = layer.group.weight.score(self.gradient).masked_fill(mask, -math.inf)
            return Proposal(largest(score, count).flatten().nonzero().squeeze(1), 0)
        return propose(
            layer.shape, layer.index, layer.values, count, rng, targets=targets[position],
            origins=self._origins(layers, targets, position), endpoint=self.endpoint, k_sigma=self.k_sigma,
        )  # fmt: skip

    def _origins(self, layers: Sequence[_Layer], targets: Sequence[Tensor], position: int) -> Tensor | None:
        """Return the columns to start from; None for those of the targets."""
        columns, before = layers[position].shape[1], layers[position - 1]
        if self.origin == "end_next_layer" and position and before.shape[0] == columns:
            return before.index[targets[position - 1]] // before.shape[1]
        if self.origin == "node_strength":
            layer, sums = layers[position], torch.zeros(columns, dtype=torch.float64)
            return strongest(sums.index_add_(0, layer.index % columns, layer.values.abs()), self._share(columns))
        return None


def shared_out(count: int, weights: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """Share `count` out in proportion to `weights` by largest remainder, each up to its room.

    What does not fit goes to those with room left, in proportion to their weights, or to their rooms where
    all weights left are 0. Equal remainders: the first. The sum is `min(count, sum(rooms))`.

    >>> shared_out(10, [1, 1, 2], [9, 1, 9])
    [3, 1, 6]
    """
    given = [0] * len(rooms)
    while left := min(count, sum(rooms)) - sum(given):
        free = [i for i, room in enumerate(rooms) if room > given[i]]
        share = weights if any(weights[i] for i in free) else rooms
        total = sum(share[i] for i in free)
        whole = {i: left * share[i] // total for i in free}
        remainders = sorted(free, key=lambda i: -(left * share[i] % total))
        for i in remainders[: left - sum(whole.values())]:
            whole[i] += 1
        for i in free:
            given[i] = min(rooms[i], given[i] + whole[i])
    return given
