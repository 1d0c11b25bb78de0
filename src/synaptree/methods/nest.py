"""NeST: a sparse network grows where gradients are large, then the smallest weights go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from synaptree.core.attach import Attached
from synaptree.core.errors import OptionError
from synaptree.core.method import Method, method
from synaptree.core.rule import Group
from synaptree.core.schedule import Every
from synaptree.core.signal import Signal, State, View, at_granularity, magnitude
from synaptree.methods.strategic_synthesis import strategic_synthesis
from synaptree.rules.allocate import Present, check_density
from synaptree.rules.density import Density
from synaptree.rules.growth import Growth
from synaptree.rules.seed import SeedWeight

__all__ = ["nest"]


@method
def nest(
    seed_density: float = 0.1,
    seed_allocate: Literal["uniform", "erdos_renyi"] = "uniform",
    seed_weight: SeedWeight = "he",
    capacity: float = 0.2,
    grow_fraction: float = 0.1,
    grow_every: int = 430,
    grow_last: int = 4300,
    cut: float = 0.01,
    cut_every: int = 20,
    end_density: float = 0.05,
    new_weight: Literal["zero", "gauss"] = "zero",
    grow_output: bool = False,
    conv: Literal["kernel"] | None = None,
) -> Method:
    """Grow a sparse network where gradients are large, up to a capacity; then cut the smallest weights again.

    Rule: it starts from the seed of `strategic_synthesis`, and up to update `grow_last` adds as many connections
    as that does, but where `|mean dL/dw|` is largest: the mean is over the updates since the last event.
    From then on, every `cut_every` updates, of `n` connections the `max(1, round(cut n))` with the
    smallest `|w|` go, shared out among layers in proportion to what they have, until `end_density` is left.

    Args:
        seed_density: share in [0, 1] of the places of a layer that exist at first; at most `capacity`.
        seed_allocate: "uniform", or "erdos_renyi" with small layers denser.
        seed_weight: "he" draws weights anew from `N(0, 2 / active inputs of the unit)` and sets biases to
            0; "given" leaves what the model was made with.
        capacity: share in [0, 1] of all places that may be taken in the end.
        grow_fraction: share in (0, 1] of the connections that is added at an event.
        grow_every: updates between two events; 430 are an epoch of 55,000 samples in batches of 128.
        grow_last: update after which nothing grows, and cuts begin.
        cut: share in [0, 1] of the connections that goes at a cut.
        cut_every: updates between two cuts.
        end_density: share in [0, 1] of all places at which cuts end.
        new_weight: "zero" leaves the function as it was; "gauss" draws from `N(0, sigma^2)` with the layer's sigma.
        grow_output: whether the last layer is sparse too, instead of staying dense and not counted.
        conv: "kernel" grows and cuts convolutions too, kernel by kernel, ranked by norm.

    When to use it: as the control of `strategic_synthesis` that may look at gradients. When not: dense
    gradients at every update cost too much; a trained network exists; then prune it.
    Paper: Dai et al. 2019 (1711.02017), growth of connections and pruning by magnitude.
    Differs: neurons and kernels do not grow, and convolutions are never cut to a part of their area. How many
    connections come at an event, the value they start from and when events and cuts fall are our choice: we know
    of no statement of the paper's. `strategic_synthesis(rule="gradient")` grows alike, by the gradient of one batch.
    """
    if not 0 < check_density(seed_density, "seed_density") <= check_density(capacity, "capacity"):
        raise OptionError(
            f"nest: seed_density = {seed_density} and capacity = {capacity}: wanted a seed above 0 and at most "
            "the capacity; raise capacity or lower seed_density"
        )
    base = strategic_synthesis(
        seed_density, seed_allocate, seed_weight, capacity, grow_fraction, rule="gradient", new_weight=new_weight,
        grow_output=grow_output, conv=conv,
    )  # fmt: skip
    grows, cuts = Every(grow_every, 1, grow_last), Every(cut_every, grow_last + 1)
    return replace(
        base,
        rule=_GrowThenCut(cast(Growth, base.rule), grow_last, check_density(cut, "cut"), check_density(end_density)),
        signals={**base.signals, "gradient": _mean_gradient, "keep": magnitude},
        when=lambda step: grows(step) or cuts(step),
        edit=_Event(cast(Callable[[Attached], None], base.edit), grow_last),
    )


@dataclass(frozen=True)
class _GrowThenCut:
    """Growth up to the update `last`, cuts after it."""

    growth: Growth
    last: int
    share: float
    end: float
    grow: str = "gradient"

    def __call__(self, groups: Sequence[Group], step: int) -> dict[str, Tensor]:
        if step <= self.last:
            return self.growth(groups, step)
        masks = [group.weight.mask for group in groups]
        active, places = (sum(int(size(mask)) for mask in masks) for size in (Tensor.sum, Tensor.numel))
        left = max(min(active, round(self.end * places)), active - max(1, round(self.share * active)))
        return Density(left / max(1, places), Present())(groups, step)


@dataclass(frozen=True)
class _Event:
    """An edit, after which gradients are averaged anew."""

    edit: Callable[[Attached], None]
    last: int

    def __call__(self, on: Attached) -> None:
        self.edit(on)
        for name in [name for name in on.topology.state if name.startswith("gradient/")]:
            on.topology.state[name]["sum"].zero_()
        if on.topology.step > self.last:
            on.topology.notes = []  # they speak of growth


def _zeros(view: View) -> State:
    return {"sum": torch.zeros_like(view.weight, dtype=torch.promote_types(view.weight.dtype, torch.float32))}


def _add(state: State, view: View) -> State:
    return state if view.grad is None else {"sum": state["sum"] + view.grad}


# a sum ranks as a mean does
_mean_gradient = Signal(
    lambda state, view: at_granularity(state["sum"], view.mask), _zeros, _add, frozenset({"gradient"})
)
