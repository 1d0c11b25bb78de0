"""A run in the processes that torchrun started: each trains on its part of every batch; the first one writes.

In a single process all of this does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from synaptree.core.errors import OptionError

__all__ = [
    "anyone", "first", "joined", "mean", "mean_loss", "part", "same",
    "same_buffers", "size", "wait",
]


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun started, for as long as the block lasts; alone, stay alone.

    Raises:
        OptionError: torchrun's environment says that there are others, but they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not distributed.is_available() or distributed.is_initialized():
        yield
        return
    try:
        distributed.init_process_group("gloo")  # recipes run on processors
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']} says that other processes train too, but they cannot be reached "
            f"({error}); start with torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield
    finally:
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
    """Return this process's share of the samples of a batch; of a batch too small for two each, all of it."""
    return values[distributed.get_rank() :: size()] if _shared(len(values)) else values


def mean_loss(outputs: Tensor, y: Tensor, samples: int) -> Tensor:
    """Return the cross-entropy whose mean over the processes is that of the whole batch.

    Args:
        outputs: of this process's share, `(n, classes)`.
        y: its classes, `(n,)`.
        samples: in the whole batch.
    """
    if not _shared(samples):
        return F.cross_entropy(outputs, y)
    return F.cross_entropy(outputs, y, reduction="sum") * (size() / samples)


def _shared(samples: int) -> bool:
    return 1 < size() <= samples // 2  # no batch norm learns from one sample


def same(seen: object) -> bool:
    """Return whether all processes see the same, by its text."""
    seen_by_all: list[str] = [""] * size()
    if size() > 1:
        distributed.all_gather_object(seen_by_all, str(seen))
    return len(set(seen_by_all)) == 1


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
    number = torch.tensor([value], dtype=torch.float64)
    distributed.all_reduce(number, how)
    return float(number)
