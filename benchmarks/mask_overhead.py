"""What keeping dead weights at zero costs: a dense training step against ours and against torch's own ways.

Prints a table and writes JSON beside it: python benchmarks/mask_overhead.py [--rounds N] [--out FILE]
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from synaptree.core.attach import attach
from synaptree.core.oneshot import prune
from synaptree.measure.clock import interleaved
from synaptree.methods import build
from synaptree.results import environment
from synaptree.train import zoo

NETWORKS = {"lenet_300_100": (128, 1, 28, 28), "resnet20": (128, 3, 32, 32)}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
}
DENSITY = 0.1


class Masked(nn.Module):
    """The mask as a parametrization."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def with_parametrize(model: nn.Module) -> None:
    for layer in layers(model):
        mask = torch.rand_like(layer.weight) < DENSITY
        parametrize.register_parametrization(layer, "weight", Masked(mask.float()))


def with_torch_prune(model: nn.Module) -> None:
    for layer in layers(model):
        torch_prune.l1_unstructured(layer, "weight", amount=1 - DENSITY)


WAYS = ("dense", "synaptree", "parametrize", "torch prune")


def step_of(network: str, optimizer: str, way: str) -> Callable[[], object]:
    """Return a function that makes one training step on random images."""
    model = zoo.build(network)
    x, y = torch.rand(NETWORKS[network]), torch.randint(0, 10, (NETWORKS[network][0],))
    if way == "parametrize":
        with_parametrize(model)
    elif way == "torch prune":
        with_torch_prune(model)
    chosen = OPTIMIZERS[optimizer](model.parameters())
    if way == "synaptree":
        attach(model, chosen, topology=prune(model, build("magnitude", density=DENSITY)))

    def step() -> None:
        chosen.zero_grad()
        F.cross_entropy(model(x), y).backward()
        chosen.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=400, help="rounds of LeNet-300-100; ResNet-20 takes a tenth")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/mask_overhead.json"))
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    table = Table(title=f"Training step at batch 128, density {DENSITY:.0%}, time against the dense step")
    for column in ("network", "optimizer", "way", "ms", "overhead", "middle half"):
        number = column in ("ms", "overhead", "middle half")
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for network in options.networks:
        rounds = options.rounds if network == "lenet_300_100" else max(10, options.rounds // 10)
        for optimizer in OPTIMIZERS:
            timings = interleaved({way: step_of(network, optimizer, way) for way in WAYS}, rounds=rounds)
            for way in WAYS:
                ratio = timings.ratio(way, "dense")
                row = {
                    "network": network, "optimizer": optimizer, "way": way, "ms": timings.median(way) * 1e3,
                    "overhead": ratio.median - 1, "low": ratio.low - 1, "high": ratio.high - 1,
                }  # fmt: skip
                rows.append(row)
                table.add_row(
                    network, optimizer, way, f"{row['ms']:.2f}", f"{row['overhead']:+.1%}",
                    f"{row['low']:+.1%}, {row['high']:+.1%}",
                )  # fmt: skip
    Console(width=100).print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**environment(), "rows": rows}, indent=1))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
