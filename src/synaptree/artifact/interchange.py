"""Sparse networks as safetensors: packed masks and the values that exist, nothing else, no pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from synaptree.artifact.files import replacing
from synaptree.core.errors import CheckpointError
from synaptree.core.layer import modules_of
from synaptree.core.topology import Topology

__all__ = ["load_into", "read_tensors", "save_dense", "save_sparse", "write_tensors"]

_FORMAT = "synaptree sparse 1"


def save_sparse(
    model: nn.Module | Mapping[str, Tensor], path: str | Path, topology: Topology | None = None
) -> int:
    """Write the weights that exist, and where they are, and return the size of the file in bytes.

    A masked parameter `name` is stored as `name:mask`, one bit per connection at the mask's
    granularity, and `name:values`, its existing weights in order; all else is stored whole.

    Args:
        model: its `state_dict` is written, tied tensors under each of their names; or tensors by name.
        path: of the file; replaced only when the new one is complete.
        topology: the connections; without it everything is stored whole.
    """
    tensors: dict[str, Tensor] = {}
    masks, shapes = (topology.masks, topology.shapes) if topology else ({}, {})
    for name, value in _state(model).items():
        if name in masks and not bool(masks[name].all()):
            tensors[f"{name}:mask"] = _pack(masks[name])
            tensors[f"{name}:values"] = value[masks[name].expand_as(value)]
        else:
            tensors[name] = value
    meta = {
        "format": _FORMAT,
        "masks": {name: list(mask.shape) for name, mask in masks.items()},
        "shapes": {name: shape for name, shape in shapes.items() if shape != tuple(masks[name].shape)},
    }
    write_tensors(path, tensors, meta)
    return Path(path).stat().st_size


def save_dense(model: nn.Module | Mapping[str, Tensor], path: str | Path) -> int:
    """Write the model's `state_dict` as a plain safetensors file, zeros and all, and return its bytes.

    Args:
        model: or tensors by name; tied tensors are written under each of their names.
        path: of the file; replaced only when the new one is complete.
    """
    with replacing(path) as partial:
        partial.write_bytes(save(_copies(_state(model))))
    return Path(path).stat().st_size


def load_into(model: nn.Module, path: str | Path) -> Topology:
    """Load a safetensors file into a model of the same class, and return the topology.

    Args:
        model: takes over the weights.
        path: of what `save_sparse` wrote, or of a plain file with one tensor for each of the model's; the topology
            has no masks then.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model; then nothing is changed.
    """
    tensors, meta = _read(path)
    if meta is None:
        meta = {"format": _FORMAT, "masks": {}, "shapes": {}}
    if meta.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: wanted the format {_FORMAT!r}, got {meta.get('format')!r}")
    own = _state(model)
    stored = {name.removesuffix(":mask").removesuffix(":values") for name in tensors}
    if differ := stored ^ set(own):
        raise CheckpointError(f"{path}: the file and {type(model).__name__} differ in {', '.join(sorted(differ))}")
    topology, values = Topology(), {}
    for name, value in own.items():
        try:
            values[name] = _restored(f"{path}: {name}", name, value, tensors, meta, topology)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {name} is damaged ({type(error).__name__}: {error})") from error
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(values[name])
    return topology


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON text as one safetensors file, atomically."""
    with replacing(path) as partial:
        # not save_file, whose files only their owner can read
        partial.write_bytes(save(_copies(tensors), {"json": json.dumps(meta)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON text of a file that `write_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    tensors, meta = _read(path)
    if meta is None:
        raise CheckpointError(f"{path}: cannot be read as a synaptree file ('json')")
    return tensors, meta


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the tensors of a safetensors file, and the JSON text if it has one."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            text = (file.metadata() or {}).get("json")
            meta: Any = None if text is None else json.loads(text)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a synaptree file ({error})") from None
    if text is not None and not isinstance(meta, dict):
        raise CheckpointError(f"{path}: cannot be read as a synaptree file (its JSON text is no table)")
    return tensors, meta


def _state(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `state_dict` would, under the names a topology knows."""
    if not isinstance(model, nn.Module):
        return dict(model)
    state: dict[str, Tensor] = {}
    for name, module in modules_of(model):
        module._save_to_state_dict(state, f"{name}." if name else "", keep_vars=False)
    return state


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies: safetensors refuses tensors that share memory."""
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _restored(
    where: str, name: str, value: Tensor, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], topology: Topology
) -> Tensor:
    """Return what is stored of a parameter, at the shape of `value`, and give `topology` its mask if it has one."""
    shape = tuple(value.shape)
    if name in tensors:
        got = tuple(tensors[name].shape)
    else:  # where it is not said it is that of the mask; the first files said it nowhere
        got = tuple(meta["shapes"].get(name, meta["masks"][name])) if "shapes" in meta else shape
    if got != shape:
        raise CheckpointError(f"{where} has shape {got}, the model wants {shape}")
    exists = torch.ones(shape, dtype=torch.bool)
    if name in meta["masks"]:
        mask = _unpack(where, tensors.get(f"{name}:mask"), tuple(meta["masks"][name]))
        exists = mask.expand(shape)
        topology.add(name, shape, device=value.device)
        topology.masks[name] = mask.to(value.device)
    if name in tensors:
        return tensors[name]
    stored = tensors[f"{name}:values"]
    if len(stored) != int(exists.sum()):
        raise CheckpointError(f"{where} holds {len(stored)} values for {int(exists.sum())} connections")
    restored = torch.zeros(shape, dtype=stored.dtype)
    restored[exists] = stored
    return restored


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel()))


def _unpack(where: str, packed: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if packed is None:
        return torch.ones(shape, dtype=torch.bool)
    count = torch.Size(shape).numel()
    if packed.numel() != -(-count // 8):
        raise CheckpointError(f"{where} holds {packed.numel()} bytes of mask for {count} connections")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).view(shape)
