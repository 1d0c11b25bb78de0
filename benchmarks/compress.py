"""How small `compress` makes a network in a given time, and what that costs in accuracy.

Each network begins untrained, so its training is within the budget. The search sees training and validation data; the
test set is read once, at the end.
Prints a table: python benchmarks/compress.py [--only digits] [--seeds 0,1,2] [--record]
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.table import Table

import synaptree
from synaptree.compression.compress import Moment
from synaptree.results import environment
from synaptree.train import zoo
from synaptree.train.data import load
from synaptree.train.loop import evaluate

RECORD = Path(__file__).parent / "recorded" / "compress.json"


@dataclass(frozen=True)
class Case:
    """A network, its data, a budget, and the times fewer weights that are the goal within half a point."""

    name: str
    model: str
    options: tuple[tuple[str, object], ...]
    data: str
    budget: str
    goal: float


CASES = (
    Case("digits", "mlp", (("inputs", 64), ("hidden", (300, 100))), "digits", "2m", 20),
    Case("mnist", "lenet_300_100", (), "mnist", "20m", 30),
)


@dataclass(frozen=True)
class Row:
    """What came of one search; accuracies in points."""

    case: str
    model: str
    seed: int
    budget: str
    seconds: float
    processor_seconds: float
    epochs: float
    weights: int
    left: int
    times: float
    goal: float
    bytes: int
    file: int
    values: str
    validation_before: float
    validation_after: float
    test_before: float
    test_after: float
    engine_us: float | None
    dense_us: float | None
    dense: str


def measure(case: Case, seed: int, console: Console) -> Row:
    """Make one search."""
    data = load(case.data)
    model = zoo.build(case.model, seed=seed, **dict(case.options))
    told = 0

    def watch(moment: Moment) -> None:
        nonlocal told
        for one in moment.tries[told:]:
            said = f"{one.method} at {100 * one.density:.2f} %: {one.value:.2f}, {one.why}"
            console.print(f"  {moment.used:5.0f} s  {said}", highlight=False)
        told = len(moment.tries)

    found = synaptree.compress(model, data, budget=case.budget, seed=seed, watch=watch)
    report, timing = found.report, found.timing
    best = timing.best(1, "before") if timing else None
    before, after = (100 * evaluate(one, data, data.test) for one in (found.dense, found.model))
    return Row(
        case.name, case.model, seed, case.budget, report.seconds, report.processor_seconds, report.epochs,
        report.before.weights, report.after.weights, report.times_fewer, case.goal, report.before.bytes,
        report.after.bytes, report.values, report.before.value, report.after.value, before, after,
        timing.engine(1).microseconds if timing else None, best.microseconds if best else None,
        best.name if best else "",
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--record", action="store_true", help="write benchmarks/recorded/compress.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=140)
    cases = [case for case in CASES if not options.only or case.name in options.only]
    rows = [measure(case, int(seed), console) for case in cases for seed in options.seeds.split(",")]
    table = Table(title="compress: half a point may be lost on validation; engine and dense at batch 1, 1 thread")
    columns = ("case", "seed", "seconds", "cpu s", "epochs", "weights", "left", "times", "goal", "file", "validation",
               "test", "engine µs", "dense µs")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    for row in rows:
        changes = ((row.validation_before, row.validation_after), (row.test_before, row.test_after))
        table.add_row(
            row.case, str(row.seed), f"{row.seconds:.0f}", f"{row.processor_seconds:.0f}", f"{row.epochs:.0f}",
            f"{row.weights:,}", f"{row.left:,}", f"{row.times:.0f}", f"{row.goal:.0f}", f"{row.file:,} {row.values}",
            *(f"{before:.2f} {after - before:+.2f}" for before, after in changes),
            *("" if one is None else f"{one:.1f}" for one in (row.engine_us, row.dense_us)),
        )  # fmt: skip
    console.print(table)
    if options.record:
        kept = json.loads(RECORD.read_text())["rows"] if RECORD.exists() else []
        new = {(row.case, row.seed) for row in rows}
        kept = [row for row in kept if (row["case"], row["seed"]) not in new]
        RECORD.write_text(json.dumps({**environment(), "rows": [*kept, *map(asdict, rows)]}, indent=1) + "\n")
        print(f"written to {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
