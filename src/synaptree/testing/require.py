"""What checks demand: each raises an AssertionError that says what was wanted and what was got."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from synaptree.core.layer import layers_of, mask_shape
from synaptree.testing.toys import Trial

__all__ = ["counts", "require", "require_legal", "require_same", "require_zeros"]


def require(condition: bool, message: str) -> None:
    """Require the condition."""
    if not condition:
        raise AssertionError(message)


def require_same(wanted: Any, got: Any, where: str) -> None:
    """Require equality of nested mappings, tensors and plain values, bit for bit except for the sign of 0."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        require(list(wanted) == list(got), f"{where}: wanted {list(wanted)}, got {list(got)}")
        for key in wanted:
            require_same(wanted[key], got[key], f"{where}, {key}")
    elif isinstance(wanted, Tensor) and isinstance(got, Tensor):
        same = wanted.dtype == got.dtype and torch.equal(wanted, got)
        require(same, f"{where}: wanted {wanted}, got {got}")
    else:
        require(wanted == got, f"{where}: wanted {wanted!r}, got {got!r}")


def require_zeros(trial: Trial) -> None:
    """Require dead weights to be 0, of either sign."""
    for name, parameter in trial.topology.parameters(trial.model):
        dead = parameter.detach()[~trial.topology.expanded(name)]
        require(not dead.any(), f"{trial.toy.name}, {name}: wanted dead weights 0, got {dead}")


def require_legal(trial: Trial) -> None:
    """Require masks as they must be, dead weights 0 and all weights finite."""
    granularity, masks, toy = trial.method.granularity, trial.topology.masks, trial.toy.name
    for layer in layers_of(trial.model):
        shape = tuple(layer.module.weight.shape)
        if layer.kind not in granularity:
            require(layer.weight not in masks, f"{toy}, {layer.weight}: wanted no mask ({layer.kind}), got one")
            continue
        legal = mask_shape(shape, granularity[layer.kind])
        require(layer.weight in masks, f"{toy}, {layer.weight}: wanted a mask of shape {legal}, got none")
        got = tuple(masks[layer.weight].shape)
        require(got == legal, f"{toy}, {layer.weight}: wanted a mask of shape {legal}, got {got}")
    for name, parameter in trial.topology.parameters(trial.model):
        require(masks[name].dtype == torch.bool, f"{toy}, {name}: wanted a bool mask, got {masks[name].dtype}")
        require(bool(parameter.isfinite().all()), f"{toy}, {name}: wanted finite weights, got {parameter.data}")
    require_zeros(trial)


def counts(masks: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many connections of layers exist, and how many there could be."""
    weights = [mask for mask in masks.values() if mask.dim() > 1]
    return sum(int(mask.sum()) for mask in weights), sum(mask.numel() for mask in weights)
