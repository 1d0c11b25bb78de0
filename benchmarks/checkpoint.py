"""What a checkpoint costs: seconds beside those of an epoch, bytes by what they hold, and seconds to go on from it.

    python benchmarks/checkpoint.py [--steps 100] [--out FILE]

Each network trains some updates while connections die by patience or are replaced, so that there are counters or ages
to keep. The seconds of an epoch are those of the updates that were made, extrapolated to all of them. CPU time is what
counts on a busy machine; it leaves out the waiting for the disk.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from synaptree.core.method import Method
from synaptree.methods import build
from synaptree.recipe import Recipe, find_recipe, load_recipe
from synaptree.results import environment
from synaptree.train.checkpoint import CHECKPOINT, newest, save_checkpoint, sizes
from synaptree.train.data import Dataset, load
from synaptree.train.loop import Interrupted
from synaptree.train.network import Network
from synaptree.train.programme import Prune, Surroundings, Train, develop

NETWORKS = {
    "LeNet-5 on MNIST": ("nnrelief/lenet5-short", build("dynamic_synaptic", every=20, first=0, conv="weight")),
    "ResNet-20 on CIFAR-10": ("nnrelief/resnet20-short", build("rigl", every=5, density=0.3)),
}
EVERY = 60.0  # seconds between checkpoints
REPEATS = 7


class Times(NamedTuple):
    """Seconds by the clock, and of the processor."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Times":
        return cls(time.perf_counter(), time.process_time())

    def since(self, begun: "Times", parts: int = 1) -> "Times":
        return Times((self.wall - begun.wall) / parts, (self.cpu - begun.cpu) / parts)


def stages(recipe: Recipe, method: Method) -> list[Prune | Train]:
    """Return the stages: prune at random, then let the method act in training."""
    return [Prune(build("random", density=0.3)), Train(recipe.dense, "train", method)]


def trained(recipe: Recipe, method: Method, data: Dataset, folder: Path, steps: int) -> tuple[Network, Times]:
    """Return a network in the middle of an epoch, and seconds per update."""
    times: list[Times] = []

    def stop() -> bool:
        times.append(Times.now())
        return len(times) > steps

    network = Network(recipe.build_model(0))
    around = Surroundings(data, 0, folder, lambda seed: recipe.build_model(seed), stop=stop)
    try:
        for _ in develop(network, stages(recipe, method), around, identity="benchmark", every=float("inf")):
            pass
    except Interrupted:
        pass
    return network, times[-1].since(times[0], len(times) - 1)


def seconds_to_resume(recipe: Recipe, method: Method, folder: Path) -> Times:
    """Return the seconds until the next update is made, with reading the data; nothing is imported anew."""
    begun = Times.now()
    network, data = Network(recipe.build_model(0)), load(recipe.data, validation=recipe.validation)
    around = Surroundings(data, 0, folder, lambda seed: recipe.build_model(seed), stop=lambda: True)
    try:
        there = stages(recipe, method)
        for _ in develop(network, there, around, identity="benchmark", resume=True, every=float("inf")):
            pass
    except Interrupted:
        return Times.now().since(begun)
    raise AssertionError("nothing was left to train")


def measured(name: str, recipe: Recipe, method: Method, steps: int) -> dict[str, Any]:
    """Return the figures of one network."""
    data = load(recipe.data, validation=recipe.validation)
    torch.set_num_threads(recipe.threads or 1)
    with tempfile.TemporaryDirectory() as folder:
        network, update = trained(recipe, method, data, Path(folder), steps)
        path = Path(folder) / CHECKPOINT
        seconds = []
        for _ in range(REPEATS):
            begun = Times.now()
            save_checkpoint(network, path, identity="benchmark", log={"epochs": [], "rounds": []})
            seconds.append(Times.now().since(begun))
        updates = -(-len(data.train.y) // recipe.dense.batch)
        found, _ = newest(path)
        assert found is not None
        topology = found.content["topology"]
        counters = [value for memory in topology["state"].values() for value in memory.values()]
        return {
            "network": name, "steps": steps, "save": median(seconds)._asdict(),
            "epoch": Times(update.wall * updates, update.cpu * updates)._asdict(),
            "again": median([seconds_to_resume(recipe, method, Path(folder)) for _ in range(3)])._asdict(),
            "bytes": sizes(path), "bits": sum(mask.numel() for mask in topology["masks"].values()) / 8,
            "uncompressed": {
                "ages": sum(births.nbytes for births in topology["births"].values()),
                "counters": sum(value.nbytes for value in counters),
            },
        }  # fmt: skip


def lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield what there is to say of one network."""
    save, epoch, again = row["save"], row["epoch"], row["again"]
    many = max(1.0, epoch["wall"] / EVERY)
    yield f"{row['network']}: {REPEATS} checkpoints, an epoch extrapolated from {row['steps']} updates"
    yield f"  one checkpoint           {1000 * save['wall']:9.1f} ms      CPU {1000 * save['cpu']:.1f} ms"
    yield f"  one epoch                {epoch['wall']:9.1f} s       CPU {epoch['cpu']:.1f} s"
    yield f"  one as share of an epoch {save['wall'] / epoch['wall']:9.3%}       CPU {save['cpu'] / epoch['cpu']:.3%}"
    yield f"  {many:.1f} an epoch, every {EVERY:g} s {many * save['wall'] / epoch['wall']:10.3%}"
    for part, size in row["bytes"].items():
        beside = f"   {size / row['bits']:.3f} x bit-packed ({row['bits']:,.0f})" if part == "masks" else ""
        if part in row["uncompressed"] and size:
            beside = f"   {row['uncompressed'][part]:,} before compression"
        yield f"  {part:24s} {size:9,d} bytes{beside}"
    yield f"  to go on, data read      {again['wall']:9.2f} s       CPU {again['cpu']:.2f} s"


def median(times: list[Times]) -> Times:
    return Times(*(statistics.median(column) for column in zip(*times, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    rows = []
    for name, (recipe, method) in NETWORKS.items():
        rows.append(measured(name, load_recipe(find_recipe(recipe)), method, options.steps))
        print(*lines(rows[-1]), sep="\n", flush=True)
    if options.out:
        options.out.write_text(json.dumps({**environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
