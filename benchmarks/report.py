"""The page of a large run: bytes of its data, seconds to make it, seconds to the first paint in Chromium.

    python benchmarks/report.py

The run is of ResNet-20, twenty layers, with 50 rounds of ten epochs: real results and real files of networks, whose
masks and accuracies are drawn and not trained.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from synaptree.artifact.interchange import save_sparse
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.measure.count import count
from synaptree.report.page.render import page, write_page
from synaptree.results import Connections, Epoch, Result, Round, environment, write
from synaptree.train import zoo

TEST_ITEMS = 10_000


def a_large_run(folder: Path, rounds: int, epochs: int, model: str) -> Path:
    """Write a run of many rounds and return its folder."""
    run = folder / "magnitude-s0-000000000000"
    network, topology, rng = zoo.build(model), Topology(), torch.Generator().manual_seed(0)
    example = torch.zeros(1, *zoo.MODELS[model].input_shape)
    told_epochs: list[Epoch] = []
    told_rounds: list[Round] = []
    for index in range(rounds):
        before = topology.born, topology.died
        if index == 1:
            topology.cover(layers_of(network), {"linear": "weight", "conv": "weight"})
        for number in range(epochs):
            topology.step += 100
            if index:
                _edit(topology, rng)
            told_epochs.append(_epoch(topology, index, number, rounds))
        topology.apply(network)
        size = save_sparse(network, run / f"round_{index:02d}.safetensors", topology)
        counted = count(network, topology, example)
        told_rounds.append(Round(
            round=index, density=counted.density, validation_accuracy=0.9 - 0.002 * index,
            layers={layer.name: layer.weights_alive / layer.weights for layer in counted.layers},
            test_errors=list(range(0, 1000 + 20 * index)), test_items=TEST_ITEMS, test_accuracy=0.9 - 0.002 * index,
            parameters=counted.parameters(), parameters_alive=counted.parameters_alive(),
            weights=counted.parameters(biases=False), weights_alive=counted.parameters_alive(biases=False),
            norm=counted.norm, macs=counted.macs, macs_alive=counted.macs_alive, bytes=size,
            born=topology.born - before[0], died=topology.died - before[1],
        ))  # fmt: skip
    write(Result(
        recipe="large", method="magnitude", control=None, seed=0, config={"model": model, "data": "cifar10"},
        config_hash="000000000000", status="done", started="2026-01-01T00:00:00+00:00", seconds=3600.0,
        epochs=told_epochs, rounds=told_rounds, **environment(),
    ), run)  # fmt: skip
    return run


def _edit(topology: Topology, rng: torch.Generator) -> None:
    """Take a hundredth of the connections away, and let a thousandth of the others be born."""
    masks = {}
    for name, mask in topology.masks.items():
        drawn = torch.rand(mask.shape, generator=rng)
        masks[name] = (mask & (drawn > 0.01)) | (~mask & (drawn < 0.001))
    topology.edit(masks)


def _epoch(topology: Topology, index: int, number: int, rounds: int) -> Epoch:
    layers = {name.removesuffix(".weight"): round(topology.density(name), 6) for name in topology.masks}
    said = Connections(
        born=topology.born, died=topology.died, ages=[0, 100, 1000, 10_000, topology.step], layers=layers
    ) if layers else None  # fmt: skip
    return Epoch(
        stage="train", round=index, epoch=number, step=topology.step, loss=1.0, density=topology.density(), seconds=1.0,
        validation_accuracy=0.9 - 0.1 * index / rounds - 0.01 * (number % 3), connections=said,
    )  # fmt: skip


def first_paint(file: Path) -> float | None:
    """Return the seconds until Chromium paints the first text; None without Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(file.as_uri())
        tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        painted = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.close()
    return float(painted) / 1000


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--rounds", type=int, default=50)
    given.add_argument("--epochs", type=int, default=10)
    given.add_argument("--model", default="resnet20")
    chosen = given.parse_args()
    with TemporaryDirectory() as folder:
        run = a_large_run(Path(folder), chosen.rounds, chosen.epochs, chosen.model)
        begun, busy = time.perf_counter(), time.process_time()
        made = page([run])
        size = write_page(made, Path(folder) / "report.html")
        seconds, busy = time.perf_counter() - begun, time.process_time() - busy
        data = len(json.dumps(made.charts, separators=(",", ":")).encode()) + len(made.content.encode())
        painted = first_paint(Path(folder) / "report.html")
    print(f"{chosen.model}, {chosen.rounds} rounds of {chosen.epochs} epochs: a page of {size:,} bytes")
    print(f"data apart from the plotting library: {data / 1e6:.2f} MB")
    print(f"made in: {seconds:.2f} s, {busy:.2f} s of them processor time")
    print("first paint: " + ("not measured, there is no chromium" if painted is None else f"{painted:.2f} s"))


if __name__ == "__main__":
    main()
