"""The sparse random network that growth and exchange start from."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from synaptree.core.errors import OptionError
from synaptree.core.layer import Layer
from synaptree.core.method import Site
from synaptree.core.topology import Topology
from synaptree.rules.allocate import Allocation, Room, check_density
from synaptree.rules.propose import random_places
from synaptree.rules.structure import largest

__all__ = ["SeedWeight", "draw_weights", "normal", "seed_masks", "sparse_start"]

SeedWeight = Literal["given", "he"]
"""Weights of a sparse seed: those the model was made with, or drawn anew by `draw_weights`."""


def sparse_start(density: float, allocate: Allocation, weights: SeedWeight = "given") -> Callable[[Site], None]:
    """Return the `start` of a method that trains a sparse network from the beginning.

    In each layer `k` connections drawn uniformly without replacement exist, where `k` follows from
    `density` and `allocate`: the masks that pruning by `random` gives under the same seed.

    Args:
        density: share in [0, 1] of all connections.
        allocate: how the layers share it.
        weights: "given" leaves what the model was made with; "he" draws them anew, see `draw_weights`.

    Raises:
        OptionError: the density is out of range.

    Example:
        >>> from synaptree.rules.allocate import Uniform
        >>> from synaptree.core.attach import attach
        >>> from synaptree.core.method import Method
        >>> from synaptree.rules.density import Density
        >>> from synaptree.core.schedule import Every
        >>> method = Method(Density(0.25), {}, Every(9), start=sparse_start(0.25, Uniform()))
        >>> model = torch.nn.Linear(4, 2)
        >>> attach(model, torch.optim.SGD(model.parameters()), method).topology.density()
        0.25
    """
    check_density(density)

    def start(on: Site) -> None:
        masks, rng = [on.topology.masks[layer.weight] for layer in on.layers], on.topology.rng
        rooms = [
            # drawn on the CPU so that one seed means one network on every device
            Room(layer.weight, on.topology.shapes[layer.weight], mask.numel(), torch.rand(mask.shape, generator=rng))
            for layer, mask in zip(on.layers, masks, strict=True)
        ]
        counts = zip(rooms, masks, allocate(density, rooms), strict=True)
        on.edit({room.name: largest(room.score, count).to(mask.device) for room, mask, count in counts})
        for layer in on.layers if weights == "he" else ():
            draw_weights(layer, on.topology.expanded(layer.weight), rng)

    return start


def seed_masks(
    topology: Topology, names: Sequence[str], density: float, allocate: Allocation, capacity: float = 1.0
) -> dict[str, Tensor]:
    """Return sparse random masks in which every unit has an input.

    A layer gets the connections that `allocate` gives it, but at least one for each unit: each unit gets
    one at a place drawn at random, the rest are uniform among the places left. So a path leads from the
    inputs of the network to every unit of layers that follow one another.

    Args:
        topology: of the layers; not edited, but all is drawn from its generator.
        names: of the weights.
        density: share in [0, 1] of their places.
        allocate: how they share it.
        capacity: share in [0, 1] of their places that may be taken.

    Returns:
        weight -> bool, of the shape of its mask.

    Raises:
        OptionError: an input for each unit takes more than `capacity`; then nothing is drawn.

    Example:
        >>> from synaptree.rules.allocate import Uniform
        >>> topology = Topology(seed=0)
        >>> topology.add("fc.weight", (3, 4))
        >>> seed_masks(topology, ["fc.weight"], 0.1, Uniform())["fc.weight"].sum(1)
        tensor([1, 1, 1])
    """
    old = [topology.masks[name] for name in names]
    rooms = [Room(name, topology.shapes[name], mask.numel(), mask) for name, mask in zip(names, old, strict=True)]
    counts = [max(len(mask), count) for mask, count in zip(old, allocate(density, rooms), strict=True)]
    places = sum(mask.numel() for mask in old)
    # 1e-9: a share such as 0.2 is a little above or below its decimal value
    if sum(counts) > capacity * places + 1e-9:
        raise OptionError(
            f"a seed in which each unit has an input takes {sum(counts)} of the {places} places of {', '.join(names)}, "
            f"more than capacity = {capacity}: raise capacity to {sum(counts) / places:.4f} or more"
        )
    return {name: _seed(mask, count, topology.rng) for name, mask, count in zip(names, old, counts, strict=True)}


def draw_weights(layer: Layer, mask: Tensor, rng: torch.Generator) -> None:
    """Draw a layer's existing weights from `N(0, 2 / n)`, `n` the existing inputs of their unit; biases become 0.

    Args:
        layer: changed in place.
        mask: bool, of the shape of the weight; `n` counts the entries of one unit.
        rng: a CPU generator.
    """
    weight = layer.module.weight.detach()
    inputs = mask.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * (weight.dim() - 1))
    weight.copy_(normal(mask, rng) * (2 / inputs).sqrt())
    if layer.module.bias is not None:
        layer.module.bias.detach().zero_()


def normal(mask: Tensor, rng: torch.Generator) -> Tensor:
    """Return standard normal numbers where the mask is True, else 0."""
    # drawn on the CPU so that one seed means one network on every device
    return torch.randn(mask.shape, generator=rng).to(mask.device) * mask


def _seed(old: Tensor, count: int, rng: torch.Generator) -> Tensor:
    mask = torch.zeros_like(old, memory_format=torch.contiguous_format)
    rows, columns = len(mask), mask[0].numel()
    each = torch.arange(rows) * columns + torch.randint(columns, (rows,), generator=rng)
    rest = random_places((rows, columns), each, count - rows, rng)
    mask.view(-1)[torch.cat([each, rest]).to(mask.device)] = True
    return mask
