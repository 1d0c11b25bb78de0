"""The topology in a file, read without the model it belongs to."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from synaptree.artifact.interchange import _FORMAT, _unpack, read_tensors
from synaptree.core.errors import CheckpointError

__all__ = ["StoredMasks", "read_masks"]


class StoredMasks(NamedTuple):
    """What a file says of the topology of its network.

    Attributes:
        masks: parameter name -> bool tensor of the parameter's shape, in the order of the topology.
        whole: shapes of the tensors of two or more axes that have no mask, most of them dense weights.
    """

    masks: dict[str, Tensor]
    whole: dict[str, tuple[int, ...]]


def read_masks(path: str | Path) -> StoredMasks:
    """Return the masks in a file that `save_sparse` wrote.

    In files of the first version, which did not store it, the shape is that of the mask.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    tensors, meta = read_tensors(path)
    if meta.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: wanted the format {_FORMAT!r}, got {meta.get('format')!r}")
    masks: dict[str, Tensor] = {}
    try:
        for name, shape in meta["masks"].items():
            mask = _unpack(f"{path}: {name}", tensors.get(f"{name}:mask"), tuple(shape))
            masks[name] = mask.expand(meta.get("shapes", {}).get(name, shape))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the masks are damaged ({type(error).__name__}: {error})") from error
    whole = {name: tuple(t.shape) for name, t in tensors.items() if name not in masks and t.dim() > 1}
    return StoredMasks(masks, whole)
