"""What training in several processes costs at an edit, and whether any of many edits ever differs between them.

In each process two copies of a network are edited in turn: one whose masks all processes share, one of its own. An
update with an edit of the first is compared with one of the second plus a single all-reduce; the goal is 1.3 times.
"""

import argparse
import time
from statistics import median

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from synaptree import attach, build
from synaptree.testing.together import in_processes
from synaptree.train.zoo import build as build_model

NETWORKS = {"lenet_300_100": (1, 28, 28), "lenet5": (1, 28, 28), "resnet20": (3, 32, 32)}
METHODS = {
    "rigl": {"density": 0.2, "every": 1},
    "set": {"density": 0.2, "every": 1},
    "dynamic_synaptic": {"every": 1, "patience": 2, "first": 0},
}


def prepared(network: str, method: str, group: object) -> tuple[nn.Module, torch.optim.Optimizer, object]:
    torch.manual_seed(0)
    model = build_model(network)
    if group is None:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, optimizer, attach(model, optimizer, build(method, **METHODS[method]), group=group)


def backward(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad()
    model(x).square().mean().backward()


def seconds(work) -> float:
    distributed.barrier()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(rank: int, network: str, method: str, edits: int) -> None:
    torch.set_num_threads(1)
    groups = [distributed.new_group([one]) for one in range(distributed.get_world_size())]
    together, alone = prepared(network, method, None), prepared(network, method, groups[rank])
    number = torch.zeros(2, dtype=torch.int64)
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for step in range(edits):
        x = torch.randn(8, *NETWORKS[network], generator=torch.Generator().manual_seed(2 * step + rank))
        for (model, optimizer, _), spent in zip((together, alone), times, strict=False):
            backward(model, x)
            spent.append(seconds(optimizer.step))
        times[2].append(seconds(lambda: distributed.all_reduce(number)))
    if rank == 0:
        shared, own, reduced = (1000 * median(spent[2:]) for spent in times)
        print(
            f"{network:14s} {method:17s} {own:8.2f} ms alone {shared:8.2f} ms together {reduced:6.2f} ms all-reduce "
            f"{shared / (own + reduced):6.2f} times"
        )


def agree(rank: int, edits: int) -> None:
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for name in ("rigl", "set", "dynamic_synaptic", "deep_r"):
        options = {**METHODS.get(name, {"density": 0.2})}
        attached = attach(model, optimizer, build(name, **options))
        made = 0
        for step in range(edits // 4):
            x = torch.randn(8, 64, generator=torch.Generator().manual_seed(2 * step + rank))
            backward(model, x)
            optimizer.step()  # raises where the processes differ
            made += 1
        attached.finish()
        if rank == 0:
            print(f"{name:17s} {made} edits in {distributed.get_world_size()} processes, 0 differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=1000, help="in which the processes must agree")
    parser.add_argument("--timed", type=int, default=40, help="edits timed of each network and method")
    options = parser.parse_args()
    for processes in (2, 4):
        in_processes(processes, agree, options.edits)
    for network in NETWORKS:
        for method in METHODS:
            in_processes(2, compare, network, method, options.timed)


if __name__ == "__main__":
    main()
