"""Strategic synthesis: a sparse network grows where its strong connections are, up to a capacity."""

from dataclasses import dataclass
from typing import Literal

from synaptree.core.errors import AttachError, OptionError
from synaptree.core.layer import Layer, layers_of
from synaptree.core.method import Method, Site, method
from synaptree.core.schedule import Every
from synaptree.core.signal import at_granularity, gradient, stateless
from synaptree.rules.allocate import allocation, check_density
from synaptree.rules.growth import Growth, Kind, Origin, Scope
from synaptree.rules.propose import EndPoint
from synaptree.rules.seed import draw_weights, normal, seed_masks

__all__ = ["strategic_synthesis"]


@method
def strategic_synthesis(
    seed_density: float = 0.05,
    seed_allocate: Literal["uniform", "erdos_renyi"] = "uniform",
    seed_weight: Literal["he", "given"] = "he",
    capacity: float = 0.2,
    grow_fraction: float = 0.1,
    every: int = 430,
    first: int = 1,
    last: int | None = None,
    rule: Kind = "strategic",
    target_fraction: float = 0.1,
    target_scope: Scope = "layer",
    origin: Origin = "source",
    endpoint: EndPoint = "gauss_edge",
    k_sigma: float = 1.0,
    new_weight: Literal["zero", "gauss"] = "zero",
    grow_output: bool = False,
    conv: Literal["kernel"] | None = None,
) -> Method:
    """Grow a sparse network where its strong connections are, until a share of all places is taken.

    Rule: attached to a network without a topology, it leaves `max(units, seed_density places)` connections
    of each layer, drawn at random, at least one for each unit. At each event `min(room, max(1, round(grow_fraction
    active)))` connections are added, `room = floor(capacity places) - active`, shared out among layers in
    proportion to what they have. The `target_fraction` of connections with the largest `|w|` are the
    targets; one after the other gives the unit `i` where a new connection starts. Where it ends is drawn
    from the Gaussian over the layer's weights: the row of the connection whose weight is nearest to
    `mean + z sigma`, `z` standard normal with `|z| >= k_sigma`. What exists already is drawn anew, up to ten
    times, then uniformly; the log and the topology's notes say how often. Nothing dies: pruning comes after.

    Args:
        seed_density: share in [0, 1] of the places of a layer that exist at first; at most `capacity`.
        seed_allocate: "uniform", or "erdos_renyi" with small layers denser.
        seed_weight: "he" draws weights anew from `N(0, 2 / active inputs of the unit)` and sets biases to
            0; "given" leaves what the model was made with.
        capacity: share in [0, 1] of all places that may be taken in the end.
        grow_fraction: share in (0, 1] of the connections that is added at an event.
        every: updates between two events; 430 are an epoch of 55,000 samples in batches of 128.
        first: updates before which no event falls.
        last: updates after which none falls, or None.
        rule: "strategic" as above; "random", uniform among free places; "gradient", where `|dL/dw|` is
            largest. All three add the same number per layer.
        target_fraction: share in [0, 1] of the connections that are targets.
        target_scope: "layer", or "global" to rank all layers together.
        origin: "source"; "end_next_layer", the unit in which a target of the layer before ends;
            "node_strength", the columns with the largest sum of `|w|`.
        endpoint: "gauss_edge" as above, "gauss_pos", "strength", "uniform", "tail_ordered"; see
            `synaptree.rules.propose.end_points`.
        k_sigma: at least 0; 0 is the whole bell, 1, 2 or 3 its tails.
        new_weight: "zero" leaves the function as it was; "gauss" draws from `N(0, sigma^2)` with the layer's sigma.
        grow_output: whether the last layer is sparse and grows too, instead of staying dense and not counted.
        conv: "kernel" grows convolutions too, kernel by kernel, ranked by norm; beyond the paper.

    When to use it: a small network is wanted from the start, and dense gradients are too dear or not at
    hand. When not: a trained network exists; then prune it.
    Paper: Finlinson and Moschoyiannis 2020 (2011.11358).
    Differs: the paper's algorithm, equations, values and tables are not known to us: this is our reading
    of its text, and nothing here reproduces them. Convolutions, the random and gradient controls at equal
    counts and one input for each unit of the seed are ours.
    """
    if not 0 < check_density(seed_density, "seed_density") <= check_density(capacity, "capacity"):
        raise OptionError(
            f"strategic_synthesis: seed_density = {seed_density!r} and capacity = {capacity!r}: wanted a seed "
            "above 0 and at most the capacity; raise capacity or lower seed_density"
        )
    growth = Growth(capacity, grow_fraction, rule, target_fraction, target_scope, origin, endpoint, k_sigma)
    synthesis = _Synthesis(growth, seed_density, seed_allocate, seed_weight, new_weight, grow_output)
    return Method(
        growth,
        {"weight": _weight, **({"gradient": gradient} if rule == "gradient" else {})},
        when=Every(every, first, last),
        granularity={"linear": "weight"} if conv is None else {"linear": "weight", "conv": conv},
        edit=synthesis.grow,
        start=synthesis.sow,
    )


@dataclass(frozen=True)
class _Synthesis:
    """The sparse seed, and one event of growth."""

    growth: Growth
    density: float
    allocate: str
    weight: str
    new_weight: str
    output: bool

    def sow(self, on: Site) -> None:
        names, sharing = [layer.weight for layer in self._layers(on)], allocation(self.allocate)
        on.edit(seed_masks(on.topology, names, self.density, sharing, self.growth.capacity))
        for layer in on.layers if self.weight == "he" else ():
            draw_weights(layer, on.topology.expanded(layer.weight), on.topology.rng)

    def grow(self, on: Site) -> None:
        layers, topology = self._layers(on), on.topology
        born = on.edit(on.masks(layers)).born
        drawn = {name: f"{few} of {new}" for name, (few, new) in self.growth.fallback.items() if few}
        topology.notes = [f"{name}: {how_many} new connections drawn uniformly" for name, how_many in drawn.items()]
        if not self.growth.fallback:
            topology.notes = [f"no connection added: capacity = {self.growth.capacity} is reached"]
        for layer in layers if self.new_weight == "gauss" else ():
            weight, new = layer.module.weight, born[layer.weight].expand_as(layer.module.weight)
            if len(old := weight[topology.expanded(layer.weight) & ~new]):
                weight += normal(new, topology.rng) * old.std(correction=0)

    def _layers(self, on: Site) -> list[Layer]:
        """Return the layers in play: all that may be touched but the model's last, the output."""
        output = None if self.output else layers_of(on.model, on.method.granularity)[-1].name
        if grown := [layer for layer in on.layers if layer.name != output]:
            return grown
        raise AttachError(f"strategic_synthesis: {output!r} is the output and stays dense; set grow_output=True")


# signed, since the Gaussian is one of weights; a kernel has a norm
_weight = stateless(
    lambda view: view.weight if view.weight.shape == view.mask.shape else at_granularity(view.weight, view.mask)
)
