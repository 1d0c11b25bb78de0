"""Sharded checkpoints: every process writes the part it holds, through torch.distributed.checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from torch import distributed, nn
from torch.optim import Optimizer

from synaptree.core.attach import Attached
from synaptree.core.errors import CheckpointError
from synaptree.integrate.state import read_state, write_state

__all__ = ["load_sharded", "save_sharded", "sharded_exists"]

_TOPOLOGY = "synaptree.safetensors"


def save_sharded(folder: str | Path, model: nn.Module, optimizer: Optimizer, attached: Attached) -> None:
    """Write model, optimizer and topology of processes that train together into a folder they share.

    All processes call it at the same update. The folder before takes the name `FOLDER.before` when the new one is
    complete, and goes when that has taken its place, so that one of the two can be loaded at any moment.

    Args:
        folder: on a file system all processes see.
        model: sharded by `fully_shard`, or wrapped in `DistributedDataParallel`.
        optimizer: of its parameters.
        attached: what `attach` returned for the two.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = Path(folder)
    partial, before = _beside(folder, "partial"), _beside(folder, "before")
    state = _state(model, optimizer)
    if distributed.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_state(attached.state_dict(), partial / _TOPOLOGY)
    distributed.barrier()
    save(state, checkpoint_id=partial)
    if distributed.get_rank() == 0:
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.replace(before)
        partial.replace(folder)
        shutil.rmtree(before, ignore_errors=True)
    distributed.barrier()


def load_sharded(folder: str | Path, model: nn.Module, optimizer: Optimizer, attached: Attached) -> None:
    """Take over what `save_sharded` wrote, in any number of processes.

    Args:
        folder: that it was written to; where a kill left only the one before it, that is taken.
        model: as it was when saving, sharded over the processes there are now.
        optimizer: of its parameters.
        attached: what `attach` returned for the two, with the same method.

    Raises:
        CheckpointError: the folder holds no complete checkpoint, one without masks, or of another model or method; then
            nothing is changed. Where a part is damaged, topology and weights are as before, the optimizer may not be.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    found = next((place for place in (Path(folder), _beside(Path(folder), "before")) if _complete(place)), None)
    if found is None:
        raise CheckpointError(f"{folder}: holds no complete sharded checkpoint; give the folder of `save_sharded`")
    topology = read_state(found / _TOPOLOGY)
    state = _state(model, optimizer)
    with attached.topology.restored_on_error(*model.parameters()):
        attached.load_state_dict(topology)  # refuses a stranger before anything else is read
        try:
            load(state, checkpoint_id=found)
        except (Exception, CheckpointException) as error:  # which is none
            raise CheckpointError(f"{found}: cannot be read into {type(model).__name__}: {error}") from error
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    attached.topology.apply(model)


def sharded_exists(folder: str | Path) -> bool:
    """Return whether there is a checkpoint to go on from, also where a kill left only the one before."""
    return any(_complete(place) for place in (Path(folder), _beside(Path(folder), "before")))


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")


def _complete(folder: Path) -> bool:
    return (folder / ".metadata").exists()


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return what the processes hold of model and optimizer."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments}
