"""How fast the engine runs sparse networks, beside the best dense runtime of the same weights with zeros written out.

Masks are drawn at random, in each layer alike; the last layer of LeNet-300-100 at density 0.02 keeps half of its
weights. Weights are Kaiming-normal, made larger where masks thin them out, so that signals go through. "times": as
fast as the best of the others, by processor time on 1 thread; "goal": what was aimed at. Rows in int8 stand beside
runtimes that round to 8 bits as well. Two threads are compared by the clock on the wall, which wants an idle machine.
`--trained` adds files of your own, which have no goals.
Prints a table: python benchmarks/engine.py [--only NAME] [--trained FILE.syn ...] [--seconds S] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from synaptree import Topology, save
from synaptree.artifact.build import network as runnable
from synaptree.artifact.describe import described
from synaptree.artifact.ranges import activation_ranges
from synaptree.core.layer import layers_of
from synaptree.measure.bench import OURS, Benchmark, bench, timed, versions
from synaptree.measure.contenders import Model
from synaptree.results import environment
from synaptree.runtime.engine import Engine
from synaptree.train import zoo

Row = dict[str, Any]
LINEAR = ("onnxruntime", "openvino", "torch", "numpy")
LOAD = """
import sys, time
from synaptree.runtime.engine import Engine
started = time.perf_counter()
Engine(sys.argv[1], batch=int(sys.argv[2]))
print(time.perf_counter() - started)
"""


@dataclass(frozen=True)
class Case:
    """One network to run.

    Attributes:
        name: for people.
        network: of the zoo.
        density: share of weights or kernels that exist.
        goals: batch -> how many times as fast as the best of the others `engine.run` should be.
        calls: batch -> the same for `engine(x)`, where there is such a goal.
        conv: what a convolution's mask is made of: "weight" or "kernel".
        last: density of the last layer, where it is another.
        values: how the file stores them.
        options: of the network.
    """

    name: str
    network: str
    density: float
    goals: dict[int, float]
    calls: dict[int, float] | None = None
    conv: str = "weight"
    last: float | None = None
    values: str = "fp32"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def against(self) -> tuple[str, ...] | None:
        """The others; all linear networks have numpy among them."""
        flat = self.network in ("mlp", "lenet_300_100")
        return LINEAR if flat and self.values == "fp32" else None


def linear(size: int, density: float, goals: dict[int, float], values: str = "fp32") -> Case:
    """Return a single layer."""
    options = (("inputs", size), ("hidden", ()), ("classes", size))
    said = "" if values == "fp32" else f" {values}"
    return Case(f"linear {size}{said}", "mlp", density, goals, values=values, options=options)


LENET, VGG, RESNET = "lenet_300_100", "vgg16", "resnet20"
KERNELS = Case(f"{VGG} kernels", VGG, 0.04, {1: 5.5, 32: 14}, conv="kernel")
CASES = [
    Case(LENET, LENET, 0.02, {1: 10, 64: 13}, {1: 6, 64: 4}, last=0.5), Case(LENET, LENET, 0.10, {1: 5, 64: 4.8}),
    KERNELS, replace(KERNELS, density=0.10, goals={1: 3, 32: 8}), Case(RESNET, RESNET, 0.05, {1: 3, 32: 4}),
    linear(4096, 0.10, {1: 7, 64: 4.2}), linear(1024, 0.10, {1: 5, 64: 2.7}, "int8"),
    linear(4096, 0.05, {1: 15, 64: 3.2}, "int8"),
    Case(f"{LENET} dense", LENET, 1, {1: 0.7, 64: 0.6}), Case(f"{VGG} dense", VGG, 1, {1: 0.7, 32: 0.6}),
    Case(f"{RESNET} dense", RESNET, 1, {1: 0.7, 32: 0.6}),
]  # fmt: skip
THREADS, THREADS_GOAL, THREADS_BATCH = f"{VGG} threads", 1.6, 32
LOADING, LOADING_GOAL = f"{VGG} load", 2.0
CALLING, CALLING_GOAL = "one connection", 0.2e-6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="rows whose name has this in it")
    parser.add_argument("--trained", nargs="*", type=Path, default=[], metavar="FILE.syn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring, for each network and batch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for row in measured(options.only, options.trained, options.seconds):
        rows.append(row)
        print(" ".join(cell for cell in cells(row) if cell), flush=True)
    Console(width=150).print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        where = {key: said for key, said in environment().items() if key != "threads"}
        where["versions"] |= versions()
        options.json.write_text(json.dumps({**where, "rows": rows}, indent=1) + "\n")
        print(f"written to {options.json}")
    return 0


def measured(only: list[str], trained: list[Path], seconds: float) -> Iterator[Row]:
    """Return the rows one by one, those of trained files first."""
    for path in trained:
        yield from rows_of(path.name, bench(path, seconds=seconds))
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if wanted(f"{case.name} {case.density:g}", only):
                yield from rows_of_case(case, stored(case, Path(folder)), seconds)
        if wanted(THREADS, only):
            yield two_threads(stored(KERNELS, Path(folder)), KERNELS.density, seconds)
        if wanted(LOADING, only):
            yield from loading(stored(KERNELS, Path(folder)), KERNELS.density)
        if wanted(CALLING, only):
            yield calling(stored(linear(1, 1.0, {}), Path(folder)), seconds)


def wanted(name: str, only: list[str]) -> bool:
    return not only or any(part in name for part in only)


def stored(case: Case, folder: Path) -> Path:
    """Write the network of a case, once."""
    path = folder / f"{case.name} {case.density:g}.syn".replace(" ", "_")
    if not path.exists():
        model, topology = drawn(case)
        x = torch.randn(64, *shape_of(case), generator=torch.Generator().manual_seed(1))
        ranges = activation_ranges(runnable(*described(model, x)).eval(), [x]) if case.values == "int8" else None
        save(model, path, values=case.values, example_input=x, topology=topology, resume=False, ranges=ranges)
    return path


def shape_of(case: Case) -> tuple[int, ...]:
    inputs = dict(case.options).get("inputs")
    return zoo.MODELS[case.network].input_shape if inputs is None else (inputs,)


def drawn(case: Case) -> tuple[nn.Module, Topology | None]:
    """Return an untrained network, with the connections of a case, through which signals go."""
    model, rng = zoo.build(case.network, seed=0, **dict(case.options)), torch.Generator().manual_seed(0)
    topology = None
    if case.density < 1:
        layers = list(layers_of(model))
        topology = Topology.of(layers, {"linear": "weight", "conv": case.conv})
        density = {layer.weight: case.density for layer in layers} | {layers[-1].weight: case.last or case.density}
        drawing = {name: torch.rand(mask.shape, generator=rng) < density[name] for name, mask in topology.masks.items()}
        topology.edit(drawing)
        topology.apply(model)
        for layer in layers:
            layer.module.weight.data /= density[layer.weight] ** 0.5
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.bias, std=0.2, generator=rng)
        norm.momentum = None
    with torch.no_grad():
        model(torch.randn(16, *shape_of(case), generator=rng))
    for variance in (norm.running_var for norm in norms):
        if variance is not None:  # maps that hardly vary would make rounding errors hundreds of times as large
            variance.clamp_(min=0.1 * float(variance.mean()))
    return model.eval(), topology


def rows_of_case(case: Case, path: Path, seconds: float) -> Iterator[Row]:
    found = bench(path, case.against, tuple(case.goals), seconds=seconds)
    for row in rows_of(case.name, found):
        goals = {OURS[0]: case.goals, OURS[1]: case.calls or {}}[row["call"]]
        yield row | {"density": case.density, "last": case.last, "goal": goals.get(row["batch"])}


def rows_of(name: str, found: Benchmark) -> Iterator[Row]:
    """Return a row for each way to call the engine, beside the best of the others."""
    for row in found.rows:
        if row.name in OURS:
            best = found.best(row.batch, row.threads)
            yield {
                "name": name, "density": None, "batch": row.batch, "call": row.name, "ours": row.seconds,
                "best": best.name, "theirs": best.seconds, "times": row.times, "low": row.times_low,
                "high": row.times_high, "goal": None, "note": row.note, "rounds": row.rounds,
                "all": {one.name: one.seconds for one in found.rows if one.batch == row.batch},
            }  # fmt: skip


def two_threads(path: Path, density: float, seconds: float) -> Row:
    """Time the engine with two threads beside itself with one, on the wall's clock."""
    x = Model(path).inputs(THREADS_BATCH)
    engines = {f"{n} thread": Engine(path, threads=n, batch=THREADS_BATCH) for n in (1, 2)}
    outs = {name: engine(x) for name, engine in engines.items()}
    runs = {name: lambda name=name: engines[name].run(x, outs[name]) for name in engines}
    timings, _ = timed(runs, seconds, time.perf_counter)
    one, two = engines
    times = timings.ratio(one, two)
    return {
        "name": THREADS, "density": density, "batch": THREADS_BATCH, "call": "engine.run", "ours": timings.median(two),
        "best": one, "theirs": timings.median(one), "times": times.median, "low": times.low, "high": times.high,
        "goal": THREADS_GOAL, "note": "2 threads, on the wall",
    }  # fmt: skip


def loading(path: Path, density: float) -> Iterator[Row]:
    """Time how long the engine takes to load, plans and all, each time in a new process."""
    for batch in (1, THREADS_BATCH):
        asked = [sys.executable, "-c", LOAD, str(path), str(batch)]
        taken = [float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
        yield {
            "name": LOADING, "density": density, "batch": batch, "call": "Engine", "ours": median(taken), "best": "",
            "goal": LOADING_GOAL, "note": "to load, at most",
        }  # fmt: skip


def calling(path: Path, seconds: float) -> Row:
    """Time a call of `engine.run` on a network of a single connection."""
    engine = Engine(path)
    x = Model(path).inputs(1)
    out = engine(x)
    timings, _ = timed({"engine.run": lambda: engine.run(x, out)}, seconds, time.process_time)
    return {
        "name": CALLING, "density": 1.0, "batch": 1, "call": "engine.run", "ours": timings.median("engine.run"),
        "best": "", "goal": CALLING_GOAL, "note": "a call, at most",
    }  # fmt: skip


def table(rows: list[Row]) -> Table:
    out = Table(title="Sparse networks in the engine, beside the best dense runtime of the same weights")
    left = ("network", "call", "best", "note")
    heads = ("network", "density", "batch", "call", "µs", "best", "its µs", "times", "middle half", "goal", "", "note")
    for head in heads:
        out.add_column(head, justify="left" if head in left else "right", no_wrap=True)
    for row in rows:
        out.add_row(*cells(row))
    said = environment()
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    out.caption = f"{said['hardware']['cpu']}, {said['hardware']['cores']} cores; {libraries}"
    return out


def cells(row: Row) -> list[str]:
    """Return what the table shows of a row; a goal that was reached has a mark."""
    density = "" if row["density"] is None else f"{row['density']:g}"
    said = [row["name"], density, str(row["batch"]), row["call"], f"{1e6 * row['ours']:,.2f}", row["best"]]
    if "times" not in row:
        return [*said, "", "", "", f"{1e6 * row['goal']:,g}", "✓" * (row["ours"] <= row["goal"]), row["note"]]
    goal = "" if row["goal"] is None else f"{row['goal']:g}"
    reached = "✓" * (row["goal"] is not None and row["times"] >= row["goal"])
    shown = f"{1e6 * row['theirs']:,.1f}", f"{row['times']:.2f}", f"{row['low']:.2f}-{row['high']:.2f}"
    return [*said, *shown, goal, reached, row["note"]]


if __name__ == "__main__":
    sys.exit(main())
