"""How long one NNrelief pass over 1,000 samples takes, and how much memory it needs.

Prints a table and writes JSON beside it: python benchmarks/nnrelief_scoring.py [--rounds N] [--out FILE]
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.table import Table

from synaptree.core.oneshot import prune
from synaptree.methods import build
from synaptree.results import environment
from synaptree.train import zoo

SHAPES = {"lenet_300_100": (1, 28, 28), "lenet5": (1, 28, 28), "resnet20": (3, 32, 32), "vgg16": (3, 32, 32)}
GOALS = {"lenet_300_100": 0.05, "lenet5": 0.3, "resnet20": 5.0, "vgg16": 30.0}
SAMPLES = 1000


def measure(network: str, rounds: int, aggregate: str) -> dict[str, float | str]:
    """Time whole passes, each on a network of its own, after one that warms up."""
    x = torch.rand(SAMPLES, *SHAPES[network])
    seconds = []
    for index in range(rounds + 1):
        model = zoo.build(network, seed=index)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        prune(model, build("nnrelief", conv_aggregate=aggregate), x)
        if index:
            seconds.append(time.perf_counter() - started)
        else:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "network": network, "aggregate": aggregate, "seconds": median(seconds), "goal": GOALS[network],
        "fastest": min(seconds), "slowest": max(seconds), "memory_mb": grown / 1024,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--aggregate", default="norm_of_mean")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/nnrelief_scoring.json"))
    options = parser.parse_args()
    rows = [measure(network, options.rounds, options.aggregate) for network in options.networks]
    table = Table(title=f"One NNrelief pass, {SAMPLES} samples, {torch.get_num_threads()} threads, {options.aggregate}")
    for column in ("network", "seconds", "fastest", "slowest", "goal", "memory grown, MB"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        numbers = (f"{row[key]:.3f}" for key in ("seconds", "fastest", "slowest", "goal"))
        table.add_row(str(row["network"]), *numbers, f"{row['memory_mb']:.0f}")
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**environment(), "rows": rows}, indent=1))
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
