"""DEEP R: a connection whose weight would change its sign gives its place to another one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from synaptree.core.attach import Attached
from synaptree.core.errors import AttachError, OptionError
from synaptree.core.layer import Layer
from synaptree.core.method import Method, Site, method
from synaptree.core.schedule import Every
from synaptree.core.signal import Signal, State
from synaptree.rules.allocate import allocation
from synaptree.rules.replace import Replace
from synaptree.rules.seed import SeedWeight, sparse_start

__all__ = ["deep_r"]


@method
def deep_r(
    density: float = 0.1,
    l1: float = 1e-5,
    noise: float = 1e-5,
    scope: Literal["layer", "global"] = "layer",
    allocate: str | Mapping[str, float] = "erdos_renyi",
    seed_weight: SeedWeight = "given",
) -> Method:
    """Replace every connection whose weight is about to change its sign by a random one, at every update.

    Rule: `w = s theta` with a sign `s` that never changes: that of the weight at the start, random where it is 0.
    After every update with rate `lr` each connection moves by `theta += lr (noise N(0, 1) - l1)`.
    Those with `theta < 0` go; as many are drawn uniformly among the connections that do not exist, those
    just gone included, and start at `theta = 0`. Attached to a network without a topology, it leaves random
    connections of `density`, shared out by `allocate`.

    Args:
        density: share in [0, 1] of all connections that exist, at every time.
        l1: strength of the pull towards 0, at least 0; `lr` is that of the weight's parameter group.
        noise: standard deviation of the random walk, at least 0, in units of `lr`.
        scope: "layer" replaces within the layer; "global" anywhere in the network.
        allocate: "uniform", "erdos_renyi", or a table layer -> density.
        seed_weight: "given" leaves what the model was made with; "he" draws sizes anew from
            `N(0, 2 / active inputs of the unit)` and sets biases to 0.

    When to use it: as the control that explores all the time, without dense gradients. When not: the edit
    at every update costs more than the update itself, as it does in small networks.
    Paper: Bellec et al. 2018 (1711.05136), algorithm 1.
    Differs: newborns start at 0, in the paper at 1e-12; one that goes and is drawn again at once keeps its optimizer
    state. The gradient step is the optimizer's, any optimizer's; the paper has plain gradient descent. With
    "global" every free place is equally likely, while the published code draws layers by their first densities.
    """
    if min(l1, noise) < 0:
        raise OptionError(f"deep_r: l1 = {l1} and noise = {noise}: wanted numbers of at least 0")
    rewiring = _Rewiring(l1, noise, sparse_start(density, allocation(allocate), seed_weight))
    return Method(
        Replace(scope, keep="theta"),
        {"theta": Signal(lambda state, view: view.weight * state["sign"], lambda view: _signs(view.weight))},
        when=Every(1),
        edit=rewiring.step,
        start=rewiring.sow,
    )


@dataclass(frozen=True)
class _Rewiring:
    """The sparse seed, and what follows each update."""

    l1: float
    noise: float
    start: Callable[[Site], None]

    def sow(self, on: Attached) -> None:
        self.start(on)
        for layer in on.layers:
            on.topology.state[f"theta/{layer.weight}"] = _signs(layer.module.weight)

    def step(self, on: Attached) -> None:
        if not isinstance(on, Attached):
            raise AttachError("deep_r moves weights at the optimizer's rate, and prune has none: use attach")
        signs = [_known_signs(on, layer) for layer in on.layers]
        for layer, sign in zip(on.layers, signs, strict=True):
            self._move(layer, on.topology.masks[layer.weight], sign, on)
        on.edit(on.masks())
        for layer, sign in zip(on.layers, signs, strict=True):  # gone and drawn again at once
            weight = layer.module.weight
            weight.masked_fill_(weight * sign < 0, 0.0)

    def _move(self, layer: Layer, exists: Tensor, sign: Tensor, on: Attached) -> None:
        weight, rate, sign = layer.module.weight, on.rate(layer), sign[exists]
        # drawn on the CPU so that one seed means one network on every device
        walk = torch.randn(len(sign), generator=on.topology.rng).to(weight)
        weight[exists] += rate * sign * (self.noise * walk - self.l1)


def _signs(weight: Tensor) -> State:
    return {"sign": weight.sign().to(torch.int8)}


def _known_signs(on: Attached, layer: Layer) -> Tensor:
    """Return the signs of all places; those not known yet are drawn now."""
    sign = on.topology.state[f"theta/{layer.weight}"]["sign"]
    unknown = sign == 0
    if bool(unknown.any()):
        drawn = torch.randint(2, (int(unknown.sum()),), generator=on.topology.rng, dtype=torch.int8)
        sign[unknown] = 2 * drawn.to(sign.device) - 1
    return sign
