"""Remove whole units from a topology: their connections, their bias, their batch norm."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from synaptree.core.topology import Topology

__all__ = ["DeadNorm", "without_units"]

DeadNorm = Literal["zero", "released"]


@torch.no_grad()
def without_units(
    model: nn.Module,
    topology: Topology,
    gone: Mapping[str, Tensor],
    *,
    norms: Mapping[str, str],
    dead_norm: DeadNorm = "zero",
) -> dict[str, Tensor]:
    """Return the masks without the incoming connections of the units that are gone.

    A layer's unit loses its row of the weight, its bias, and the entries of the batch norm after it; a
    `Shortcut`'s channel loses its scale. Parameters that have no mask yet get one; layers whose weight
    has none are left alone.

    Args:
        model: running statistics of batch norms are reset in place, to mean 0 and variance 1.
        topology: read, and given new masks where needed; not edited.
        gone: name of a layer or `Shortcut` -> bool `(out,)`.
        norms: layer -> the batch norm after it.
        dead_norm: "zero" keeps a gone unit's scale and shift at 0 for good. "released" sets scale, shift
            and both statistics to 0 once, as the published code of NNrelief does; training may revive them.
    """
    masks: dict[str, Tensor] = {}
    for name, units in gone.items():
        module: Any = model.get_submodule(name)
        if not units.any():
            continue
        if isinstance(getattr(module, "scale", None), nn.Parameter):
            masks |= _cut(topology, f"{name}.scale", module.scale, units)
        elif f"{name}.weight" in topology.masks:
            masks |= _cut(topology, f"{name}.weight", module.weight, units)
            if getattr(module, "bias", None) is not None:
                masks |= _cut(topology, f"{name}.bias", module.bias, units)
            if name in norms:
                masks |= _cut_norm(model, topology, norms[name], units, dead_norm)
    return masks


def _cut(topology: Topology, name: str, parameter: Tensor, units: Tensor) -> dict[str, Tensor]:
    if name not in topology.masks:
        topology.add(name, tuple(parameter.shape), device=parameter.device)
    mask = topology.masks[name].clone()
    mask[units.to(mask.device)] = False
    return {name: mask}


def _cut_norm(
    model: nn.Module, topology: Topology, name: str, units: Tensor, dead_norm: DeadNorm
) -> dict[str, Tensor]:
    norm = model.get_submodule(name)
    zeroed = [getattr(norm, part, None) for part in ("weight", "bias", "running_mean")]
    variance = getattr(norm, "running_var", None)
    for value in (part for part in (*zeroed, variance) if part is not None):
        value[units.to(value.device)] = 1.0 if value is variance and dead_norm == "zero" else 0.0
    masks: dict[str, Tensor] = {}
    for part, value in (("weight", zeroed[0]), ("bias", zeroed[1])):
        if value is not None and dead_norm == "zero":
            masks |= _cut(topology, f"{name}.{part}", value, units)
    return masks
