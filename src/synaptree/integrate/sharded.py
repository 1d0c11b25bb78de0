"""Sharded checkpoints: every process writes the part it holds, through torch.distributed.checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from torch import distributed, nn
from torch.optim import Optimizer

from synaptree.core.attach import Attached
from synaptree.core.errors import CheckpointError
from synaptree.integrate.state import read_state, write_state

__all__ = ["load_sharded", "save_sharded"]

_TOPOLOGY = "synaptree.safetensors"


def save_sharded(folder: str | Path, model: nn.Module, optimizer: Optimizer, attached: Attached) -> None:
    """Write model, optimizer and topology of processes that train together into a folder they share.

    All processes call it at the same update. The folder is replaced only when the new one is complete.

    Args:
        folder: on a file system all processes see.
        model: sharded by `fully_shard`, or wrapped in `DistributedDataParallel`.
        optimizer: of its parameters.
        attached: what `attach` returned for the two.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    folder, partial = Path(folder), Path(f"{folder}.partial")
    state = _state(model, optimizer, attached)
    if distributed.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_state(attached.state_dict(), partial / _TOPOLOGY)
    distributed.barrier()
    save(state, checkpoint_id=partial)
    if distributed.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    distributed.barrier()


def load_sharded(folder: str | Path, model: nn.Module, optimizer: Optimizer, attached: Attached) -> None:
    """Take over what `save_sharded` wrote, in any number of processes.

    Args:
        folder: that it was written to.
        model: as it was when saving, sharded over the processes there are now.
        optimizer: of its parameters.
        attached: what `attach` returned for the two, with the same method.

    Raises:
        CheckpointError: the folder holds no complete checkpoint, one without masks, or of another model or method.
    """
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    folder = Path(folder)
    if not (folder / ".metadata").exists():
        raise CheckpointError(f"{folder}: holds no complete sharded checkpoint; give the folder of `save_sharded`")
    topology = read_state(folder / _TOPOLOGY)
    state = _state(model, optimizer, attached)
    attached.load_state_dict(topology)  # refuses a stranger before anything else is changed
    try:
        load(state, checkpoint_id=folder)
    except Exception as error:
        raise CheckpointError(f"{folder}: cannot be read into {type(model).__name__}: {error}") from error
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    attached.topology.apply(model)


def _state(model: nn.Module, optimizer: Optimizer, attached: Attached) -> dict[str, Any]:
    """Return what the processes hold of model and optimizer."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    before = attached.state_dict()
    weights, moments = get_state_dict(model, optimizer)
    if attached.topology.step != before["topology"]["step"]:  # it makes an empty step where there are no moments yet
        attached.load_state_dict(before)
    return {"model": weights, "optimizer": moments}
