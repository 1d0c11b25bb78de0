"""What one event of strategic growth costs among 100,000 x 100,000 places, from 10^4 to 10^7 connections, on one core.

Each size is measured in a process of its own, whose peak memory is that of the event and of what it starts from.
Prints a table: python benchmarks/growth_scale.py [SIZES] [--events N] [--json FILE]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.table import Table

from synaptree.results import environment
from synaptree.rules.propose import propose, random_places

SHAPE = (100_000, 100_000)
SIZES = (10**4, 10**5, 10**6, 10**7)
FRACTION = 0.1
LIMITS = {10**7: {"seconds": 10.0, "memory_mb": 2000.0}}


def measure(connections: int, events: int) -> dict[str, float | int]:
    """Time events, all from the same connections, after one that warms up."""
    rng = torch.Generator().manual_seed(0)
    index = random_places(SHAPE, torch.empty(0, dtype=torch.int64), connections, rng)
    values = torch.randn(connections, generator=rng)
    count, seconds = round(FRACTION * connections), []
    for _ in range(events + 1):
        started = time.perf_counter()
        proposal = propose(SHAPE, index, values, count, rng)
        seconds.append(time.perf_counter() - started)
    if len(proposal.places) != count:
        raise AssertionError(f"wanted {count} new connections, got {len(proposal.places)}")
    return {
        "connections": connections, "born": count, "seconds": median(seconds[1:]), "fastest": min(seconds[1:]),
        "slowest": max(seconds[1:]), "fallback": proposal.fallback,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def apart(connections: int, events: int) -> dict[str, float | int]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, str(connections), "--events", str(events), "--here"]
    row: dict[str, float | int] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    row["nanoseconds_per_connection"] = row["seconds"] / connections * 1e9
    for key, limit in LIMITS.get(connections, {}).items():
        row[f"{key}_of_limit"] = row[key] / limit
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--events", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help="measure one size in this process and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.here:
        print(json.dumps(measure(options.sizes[0], options.events)))
        return 0
    rows = [apart(size, options.events) for size in options.sizes]
    table = Table(title=f"One event of growth among {SHAPE[0]:,} x {SHAPE[1]:,} places, 1 thread")
    for column in ("connections", "born", "seconds", "slowest", "ns each", "peak MB", "of limits"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = [f"{row[key]:.0%}" for key in ("seconds_of_limit", "memory_mb_of_limit") if key in row]
        table.add_row(
            f"{row['connections']:.0e}", f"{row['born']:.0e}", f"{row['seconds']:.4f}", f"{row['slowest']:.4f}",
            f"{row['nanoseconds_per_connection']:.0f}", f"{row['memory_mb']:.0f}", ", ".join(shares),
        )  # fmt: skip
    Console().print(table)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**environment(), "limits": LIMITS, "rows": rows}, indent=1))
        print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
