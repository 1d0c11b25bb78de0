"""The checks of methods in several processes that train together, on exactly summable data."""

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from synaptree.core.layer import parameters_of
from synaptree.core.method import Method
from synaptree.core.ranks import whole
from synaptree.testing.require import require, require_same
from synaptree.testing.toys import STEPS, Toy, Trial

__all__ = ["in_processes", "replicas", "sharded", "shards"]

Spread = Callable[[nn.Module], nn.Module]


def in_processes(count: int, work: Callable[..., None], *args: Any) -> None:
    """Run `work(rank, *args)` in `count` forked processes that form a group.

    Args:
        count: at least 1.
        work: called in each of them, with torch.distributed at work over gloo.
        args: for it.

    Raises:
        AssertionError: one of the processes failed; what it said is in the message.
    """
    for wrapper in ("torch._dynamo", "torch.distributed.fsdp"):  # seconds each, once instead of in every process
        import_module(wrapper)
    fork, said = get_context("fork"), get_context("fork").SimpleQueue()
    with TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [fork.Process(target=_work, args=(rank, count, store, said, work, args)) for rank in range(count)]
        for process in processes:
            process.start()
        complaints = list(_heard(processes, said))
    codes = [process.exitcode for process in processes]
    require(not any(codes), "\n".join([*complaints, f"exit codes of the {count} processes: {codes}"]))


def _heard(processes: list[Any], said: Any) -> Iterator[str]:
    """Yield what the processes say until all have ended; a pipe that nobody reads would hold them up."""
    while any(process.is_alive() for process in processes) or not said.empty():
        if said.empty():
            processes[0].join(0.01) if processes[0].is_alive() else time.sleep(0.01)
        else:
            yield said.get()


def _work(rank: int, count: int, store: str, said: Any, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        torch.set_num_threads(1)
        group = cast(Any, distributed).FileStore(store, count)
        distributed.init_process_group("gloo", store=group, rank=rank, world_size=count)
        work(rank, *args)
        distributed.destroy_process_group()
    except BaseException:
        said.put(f"rank {rank}: {traceback.format_exc()}")
        sys.exit(1)


def replicas(method: Callable[[], Method], toys: tuple[Toy, ...]) -> str | None:
    """Compare, step by step, two processes under `DistributedDataParallel` with one that sees all data."""
    return _same(method, toys, DistributedDataParallel)


def shards(method: Callable[[], Method], toys: tuple[Toy, ...]) -> str | None:
    """Compare, step by step, two processes that hold a part of the parameters each, by `fully_shard`, with one."""
    return _same(method, toys, sharded)


def _same(method: Callable[[], Method], toys: tuple[Toy, ...], spread: Spread) -> str | None:
    if not distributed.is_available() or sys.platform != "linux":
        return "it wants torch.distributed, and processes that are forked, which only Linux does safely"
    for toy in toys:
        alone = [_state(trial) for trial in _steps(Trial(method(), toy))]
        in_processes(2, _compare, method, toy, spread, alone)
    return None


def _steps(trial: Trial) -> Any:
    for _ in trial.develop():
        yield trial


def _state(trial: Trial) -> dict[str, Any]:
    weights = {name: whole(p.detach()).clone() for name, p in parameters_of(trial.model).items()}
    return {"topology": deepcopy(trial.topology.state_dict()), "weights": weights}


def _compare(rank: int, method: Callable[[], Method], toy: Toy, spread: Spread, alone: list[dict[str, Any]]) -> None:
    trial = _Part(rank, method(), toy, model=spread(toy.model()))
    for step, state in enumerate(_state(trial) for _ in trial.develop()):
        require_same(alone[step], state, f"{toy.name}, rank {rank} of 2, update {step} of {STEPS}")


class _Part(Trial):
    """A trial that sees the rank's half of the data; gradients are averaged over ranks, so each counts twice."""

    def __init__(self, rank: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inputs, self.targets = self.inputs.chunk(2)[rank], self.targets.chunk(2)[rank]

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().loss(x, targets)


def sharded(model: nn.Module) -> nn.Module:
    """Return the model with its parameters spread over all processes by `fully_shard`, child by child."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for child in model.children():
        if any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
