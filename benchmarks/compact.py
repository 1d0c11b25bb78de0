"""How long exact compaction takes on one core, and how many parameters go, at random kernel masks.

Linear layers have masks of single weights, batch norms random shifts and the statistics of random inputs. Random masks
leave few units without any connection; those of trained networks leave more.
Prints a table: python benchmarks/compact.py [NETWORKS] [--density D] [--rounds N] [--record]
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.results import environment
from synaptree.surgery.compact import compact
from synaptree.train import zoo

NETWORKS = ("vgg16", "resnet56")
GOAL = 10.0
RECORD = Path(__file__).parent / "recorded" / "compact.json"


def sparse(network: str, density: float) -> tuple[nn.Module, Topology]:
    """Return a network with random kernels through which signals go."""
    model, rng = zoo.build(network), torch.Generator().manual_seed(0)
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "kernel"})
    topology.edit({name: torch.rand(mask.shape, generator=rng) < density for name, mask in topology.masks.items()})
    topology.apply(model)
    for layer in layers_of(model):
        layer.module.weight.data /= density**0.5
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2, generator=rng)
            module.momentum = None
    with torch.no_grad():
        model(torch.randn(16, *zoo.MODELS[network].input_shape, generator=rng))
    return model.eval(), topology


def measure(network: str, density: float, rounds: int) -> dict[str, float | int | str]:
    """Time whole calls, each with a topology and an optimizer to carry over, after one that warms up."""
    model, topology = sparse(network, density)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(2, *zoo.MODELS[network].input_shape)
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        small = compact(model, x, topology=topology, optimizer=optimizer)
        seconds.append(time.perf_counter() - started)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small.model))
    return {
        "network": network, "density": density, "seconds": median(seconds[1:]), "slowest": max(seconds), "goal": GOAL,
        "parameters": before, "left": after, "units_removed": sum(len(units.units) for units in small.plan.removed),
        "units_kept": sum(len(units.units) for units in small.plan.kept), "max_error": small.max_error,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write benchmarks/recorded/compact.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(network, options.density, options.rounds) for network in options.networks]
    table = Table(title=f"Exact compaction, kernel density {options.density:g}, 1 thread")
    for column in ("network", "seconds", "slowest", "goal", "parameters", "left", "units gone", "kept", "max error"):
        table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    for row in rows:
        numbers = (f"{row[key]:.2f}" for key in ("seconds", "slowest", "goal"))
        counts = (f"{row[key]:,}" for key in ("parameters", "left", "units_removed", "units_kept"))
        table.add_row(str(row["network"]), *numbers, *counts, f"{row['max_error']:.1e}")
    Console(width=120).print(table)
    if options.record:
        RECORD.write_text(json.dumps({**environment(), "rows": rows}, indent=1))
        print(f"written to {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
