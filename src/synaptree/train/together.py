"""A run in the processes that torchrun started: each trains on its part of every batch; the first one writes.

In a single process all of this does nothing.
"""

import os
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from synaptree.core.errors import OptionError

__all__ = ["anyone", "first", "join", "leave", "mean", "mean_loss", "part", "same_buffers", "size", "wait"]


def join() -> None:
    """Become one of the processes that torchrun started; alone, stay alone.

    Raises:
        OptionError: torchrun's environment says that there are others, but they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not distributed.is_available() or distributed.is_initialized():
        return
    try:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']} says that other processes train too, but they cannot be reached "
            f"({error}); start with torchrun, or unset WORLD_SIZE"
        ) from error


def leave() -> None:
    """Let go of the other processes."""
    if distributed.is_available() and distributed.is_initialized():
        with suppress(RuntimeError):  # one that is gone already
            distributed.destroy_process_group()


def size() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def first() -> bool:
    """Return whether this is the process that writes and speaks."""
    return size() == 1 or distributed.get_rank() == 0


def wait() -> None:
    """Wait until all have come here, for instance to read what the first has written."""
    if size() > 1:
        distributed.barrier()


def part(values: Tensor) -> Tensor:
    """Return this process's share of the samples of a batch."""
    return values if size() == 1 else values[distributed.get_rank() :: size()]


def mean_loss(outputs: Tensor, y: Tensor, samples: int) -> Tensor:
    """Return the cross-entropy whose mean over the processes is that of the whole batch.

    Args:
        outputs: of this process's share, `(n, classes)`.
        y: its classes, `(n,)`.
        samples: in the whole batch.
    """
    if size() == 1:
        return F.cross_entropy(outputs, y)
    return F.cross_entropy(outputs, y, reduction="sum") * (size() / samples)


def mean(value: float) -> float:
    """Return the mean over the processes."""
    return value if size() == 1 else _reduced(value, distributed.ReduceOp.SUM) / size()


def anyone(said: bool) -> bool:
    """Return whether any of the processes says so, in all of them."""
    return said if size() == 1 else bool(_reduced(float(said), distributed.ReduceOp.MAX))


def same_buffers(model: nn.Module) -> None:
    """Let all processes have the first one's running statistics: each has seen other samples."""
    for buffer in model.buffers() if size() > 1 else ():
        distributed.broadcast(buffer, 0)


def _reduced(value: float, how: distributed.ReduceOp.RedOpType) -> float:
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    number = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.all_reduce(number, how)
    return float(number)
