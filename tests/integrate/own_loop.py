"""A loop of one's own for torchrun: python own_loop.py KIND METHOD FOLDER UPDATES [DIE-AT]; not a test itself."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from synaptree import Attached, attach, build
from synaptree.core.layer import parameters_of
from synaptree.core.ranks import whole
from synaptree.integrate.sharded import load_sharded, save_sharded, sharded_exists
from synaptree.testing.golden import golden_path, read_golden
from synaptree.testing.together import sharded
from synaptree.testing.toys import CONVOLUTIONAL as TOY


def developed(
    model: nn.Module, x: Tensor, targets: Tensor, name: str, updates: int, restore: Any = None, after: Any = None
) -> Attached:
    """Train on the same batch again and again; the loss is the sum over all processes."""
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    attached = attach(model, optimizer, build(name, **read_golden(golden_path(name)).training))
    if restore is not None:
        restore(model, optimizer, attached)
    while attached.topology.step < updates:
        optimizer.zero_grad()
        (size * (model(x) * targets).sum()).backward()
        optimizer.step()
        if after is not None:
            after(model, optimizer, attached)
    return attached


def outcome(attached: Attached) -> dict[str, Any]:
    """Return what all processes must agree on."""
    weights = {name: whole(p.detach()).tolist() for name, p in parameters_of(attached.model).items()}
    return {"masks": attached.topology.digest(), "weights": weights, "died": attached.topology.died}


def main(kind: str, name: str, folder: Path, updates: int, die_at: int) -> None:
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    model = {"ddp": DistributedDataParallel, "fsdp": sharded}[kind](TOY.model())
    latest = folder / "latest"

    def after(*whose: Any) -> None:
        step = whose[-1].topology.step
        if step == die_at and rank == size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 3 == 0:
            save_sharded(latest, *whose)

    restore = partial(load_sharded, latest) if sharded_exists(latest) else None
    x, targets = TOY.inputs.chunk(size)[rank], TOY.targets.chunk(size)[rank]
    attached = developed(model, x, targets, name, updates, restore, after)
    (folder / f"rank{rank}.json").write_text(json.dumps(outcome(attached)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    kind, name, folder, updates, *die_at = sys.argv[1:]
    main(kind, name, Path(folder), int(updates), int(die_at[0]) if die_at else -1)
