"""How small a sparse network gets as a `.syn` file, beside gzip and zstd of the dense file, CSR and the entropy bound.

LeNet-300-100 with masks and weights trained on MNIST (where it is laid out: $SYNAPTREE_DATA or ./data) and with random
masks, and VGG-16 for images of 32 x 32 with 96 % of its kernels gone at random. "times": so many times as many bytes
the dense network takes in fp32; "goal": what was aimed at; "bound": the entropy of masks and values.
Prints a table: python benchmarks/size.py [--epochs N] [--json FILE]
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import zstandard
from rich.console import Console
from rich.table import Table
from safetensors.torch import save as safetensors
from torch import nn

from synaptree import Topology, build, compact, load, prune, save
from synaptree.core.errors import DataError
from synaptree.format.inspect import inspect
from synaptree.results import environment
from synaptree.train import zoo
from synaptree.train.data import Dataset
from synaptree.train.data import load as load_data
from synaptree.train.loop import TrainOptions, evaluate, train
from synaptree.train.network import Network


@dataclass(frozen=True)
class Case:
    """One network to store: what it is called, how its values are stored, and how many times smaller it should be.

    Attributes:
        network: of the zoo.
        masks: "magnitude" or "dynamic": trained on MNIST by gradual magnitude pruning or dynamic synaptic pruning;
            "uniform": drawn at random.
        density: that is asked for; dynamic pruning comes out near it.
        values: how they are stored.
        goal: times smaller than the dense network in fp32, if there is one.
    """

    network: str
    masks: str
    density: float
    values: str
    goal: float | None = None


def lenet(masks: str, density: float, **goals: float | None) -> list[Case]:
    """Return the cases of LeNet-300-100 of these masks, one for each coding of values."""
    return [Case("lenet_300_100", masks, density, values, goal) for values, goal in goals.items()]


CASES = [
    *lenet("magnitude", 0.02, int8=100), *lenet("magnitude", 0.05, int8=None, fp16=None, fp32=18),
    *lenet("magnitude", 0.10, int8=28), *lenet("dynamic", 0.10, int8=28, fp32=None),
    *lenet("uniform", 0.02, int8=90), *lenet("uniform", 0.05, fp32=18), *lenet("uniform", 0.10, int8=25),
    *(Case("vgg16", "uniform", 0.04, values, goal) for values, goal in (("fp16", 45), ("int8", None), ("fp32", None))),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30, help="of training, where masks are trained")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        data: Dataset | None = load_data("mnist")
    except DataError as missing:
        print(f"no trained masks: {missing}")
        data = None
    made: dict[tuple[str, str, float], tuple[nn.Module, Topology]] = {}
    rows = []
    for case in CASES:
        if case.masks != "uniform" and data is None:
            continue
        key = (case.network, case.masks, case.density)
        if key not in made:
            made[key] = drawn(case) if case.masks == "uniform" else trained(case, data, options.epochs)
        rows.append(measured(case, *made[key], data if case.network == "lenet_300_100" else None))
    Console(width=170).print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**environment(), "epochs": options.epochs, "rows": rows}, indent=1))
        print(f"written to {options.json}")
    return 0


def trained(case: Case, data: Dataset | None, epochs: int) -> tuple[nn.Module, Topology]:
    """Return LeNet-300-100, pruned while it trains on MNIST."""
    assert data is not None
    network, steps = Network(zoo.build("lenet_300_100", seed=0), Topology(0)), epochs * 430
    if case.masks == "magnitude":
        window = {"first": steps // 10, "last": steps * 7 // 10, "every": 100}
        method = build("gradual_magnitude", density=case.density, allocate="erdos_renyi", **window)
    else:
        method = build("dynamic_synaptic", alpha=0.55, patience=4, every=215, first=430, last=steps * 7 // 15)
    how = TrainOptions(epochs=epochs, lr=5e-3, schedule="cosine")
    exclude = () if case.masks == "magnitude" else ("fc3",)
    *_, last = train(network, data, how, seed=0, method=method, exclude=exclude)
    accuracy, density = 100 * last.validation_accuracy, network.topology.density()
    print(f"{case.masks}, {case.density}: density {density:.3f}, {accuracy:.2f} % on validation", flush=True)
    return network.model, network.topology


def drawn(case: Case) -> tuple[nn.Module, Topology]:
    """Return an untrained network with connections drawn at random, in every layer alike."""
    model = zoo.build(case.network, seed=0)
    options = {"conv": "kernel"} if case.network == "vgg16" else {}
    return model, prune(model, build("random", density=case.density, allocate="uniform", **options))


def measured(case: Case, model: nn.Module, topology: Topology, data: Dataset | None) -> dict[str, Any]:
    """Compact and store a network, and compare with other ways."""
    x = torch.rand(4, *zoo.MODELS[case.network].input_shape) if data is None else data.normalise(data.validation.x[:4])
    small = compact(model, x, topology=topology)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.syn"
        total = save(small.model, path, values=case.values, example_input=x, topology=small.topology, resume=False)
        report, again = inspect(path.read_bytes()), load(path)
    file = safetensors({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()})
    dense = sum(4 * tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    row = asdict(case) | {
        "existing": existing(model, topology), "bytes": total, "header": report.header_bytes,
        "times": dense / total, "dense": dense,
        "gzip": len(gzip.compress(file, 9)), "zstd": len(zstandard.ZstdCompressor(level=19).compress(file)),
        "csr": report.csr, "csr16": report.csr16, "bound": report.bound, "of_bound": total / report.bound,
        "masks_bytes": sum(one.mask_bytes for one in report.rows),
        "values_bytes": sum(one.value_bytes for one in report.rows),
        "max_error": small.max_error, "of_goal": None if case.goal is None else dense / total / case.goal,
    }  # fmt: skip
    if case.masks != "uniform" and data is not None:
        before, after = (100 * evaluate(net.eval(), data, data.test) for net in (model, again))
        row |= {"accuracy": before, "accuracy_stored": after}
    return row


def existing(model: nn.Module, topology: Topology) -> float:
    """Return the share of the weights of all layers that exist."""
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    whole = torch.ones((), dtype=torch.bool)
    alive = sum(int(topology.masks.get(name, whole).expand(p.shape).sum()) for name, p in weights.items())
    return alive / sum(p.numel() for p in weights.values())


def table(rows: list[dict[str, Any]]) -> Table:
    out = Table(title="Bytes of the .syn file, and of others (gzip and zstd: of the dense file with its zeros)")
    left = ("network", "masks", "values")
    sizes = ("header", "gzip", "zstd", "csr", "csr16", "bound")
    for title in (*left, "density", "bytes", "times", "goal", *sizes, "accuracy %", "stored %"):
        out.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']:.0f}"
        accuracies = [f"{row[key]:.2f}" if key in row else "" for key in ("accuracy", "accuracy_stored")]
        what = [str(row[key]) for key in left]
        out.add_row(
            *what, f"{row['existing']:.3f}", f"{row['bytes']:,}", f"{row['times']:.1f}", goal,
            *(f"{row[key]:,.0f}" for key in sizes), *accuracies,
        )  # fmt: skip
    return out


if __name__ == "__main__":
    sys.exit(main())
