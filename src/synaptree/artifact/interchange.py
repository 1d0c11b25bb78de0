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
from synaptree.core.layer import clean
from synaptree.core.topology import Topology

__all__ = ["load_into", "read_tensors", "save_sparse", "write_tensors"]

_FORMAT = "synaptree sparse 1"


def save_sparse(model: nn.Module, path: str | Path, topology: Topology | None = None) -> int:
    """Write the weights that exist, and where they are, and return the size of the file in bytes.

    A masked parameter `name` is stored as `name:mask`, one bit per connection at the mask's
    granularity, and `name:values`, its existing weights in order; all else is stored whole.

    Args:
        model: its `state_dict` is written.
        path: of the file; replaced only when the new one is complete.
        topology: the connections; without it everything is stored whole.
    """
    tensors: dict[str, Tensor] = {}
    masks = topology.masks if topology else {}
    for raw, value in model.state_dict().items():
        name = clean(raw)
        if name in masks and not bool(masks[name].all()):
            tensors[f"{name}:mask"] = _pack(masks[name])
            tensors[f"{name}:values"] = value.detach()[masks[name].expand_as(value)]
        else:
            tensors[name] = value.detach()
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    write_tensors(path, tensors, {"format": _FORMAT, "masks": shapes})
    return Path(path).stat().st_size


def load_into(model: nn.Module, path: str | Path) -> Topology:
    """Load what `save_sparse` wrote into a model of the same class, and return the topology.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model; then nothing is changed.
    """
    tensors, meta = read_tensors(path)
    if meta.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: wanted the format {_FORMAT!r}, got {meta.get('format')!r}")
    own = {clean(name): value for name, value in model.state_dict().items()}
    stored = {name.partition(":")[0] for name in tensors}
    if differ := stored ^ set(own):
        raise CheckpointError(f"{path}: the file and {type(model).__name__} differ in {', '.join(sorted(differ))}")
    topology, values = Topology(), {}
    for name, value in own.items():
        shape = tuple(value.shape)
        if name in meta["masks"]:
            topology.add(name, shape)
            topology.masks[name] = _unpack(tensors.get(f"{name}:mask"), tuple(meta["masks"][name]))
        values[name] = _restored(path, name, shape, tensors, topology)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(values[name])
    return topology


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON text as one safetensors file, atomically."""
    with replacing(path) as partial:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # not save_file, whose files only their owner can read
        partial.write_bytes(save(plain, {"json": json.dumps(meta)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON text of a file that `write_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            meta: dict[str, Any] = json.loads((file.metadata() or {})["json"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a synaptree file ({error})") from None
    return tensors, meta


def _restored(
    path: str | Path, name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor], topology: Topology
) -> Tensor:
    if name in tensors:
        value = tensors[name]
        if tuple(value.shape) != shape:
            raise CheckpointError(f"{path}: {name} has shape {tuple(value.shape)}, the model wants {shape}")
        return value
    stored, exists = tensors[f"{name}:values"], topology.expanded(name)
    if len(stored) != int(exists.sum()):
        raise CheckpointError(f"{path}: {name} holds {len(stored)} values for {int(exists.sum())} connections")
    value = torch.zeros(shape, dtype=stored.dtype)
    value[exists] = stored
    return value


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel()))


def _unpack(packed: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    count = torch.Size(shape).numel()
    if packed is None:
        return torch.ones(shape, dtype=torch.bool)
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).view(shape)
