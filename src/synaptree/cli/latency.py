"""Measuring how fast the networks of runs are, from the files of their rounds."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from synaptree.artifact.syn import load_into, save
from synaptree.core.errors import SynaptreeError
from synaptree.format.errors import FormatError
from synaptree.measure.bench import OURS, bench
from synaptree.report.latency import Latency
from synaptree.report.standings import Standing
from synaptree.results import Result, environment
from synaptree.runtime.errors import EngineError
from synaptree.surgery.compact import compact
from synaptree.train import zoo
from synaptree.train.sources import source

__all__ = ["BATCHES", "Wanted", "measured", "wanted"]

BATCHES = (1, 32)
SECONDS = 1.0  # of measuring for each of them

Wanted = tuple[Result, int, Path]
"""A run, the number of a round, and the file of its network."""


def wanted(
    rows: Iterable[Standing], results: Mapping[str, Result], folders: Mapping[str, Path], known: Iterable[Latency]
) -> list[Wanted]:
    """Return one network for each row that has none measured: of its first seed whose file is there.

    Args:
        rows: of tables.
        results: configuration hash -> result.
        folders: configuration hash -> folder of the run.
        known: what was measured before.
    """
    there = {(one.config_hash, one.round) for one in known}
    out = []
    for row in rows:
        if any((run, row.round) in there for run in row.runs):
            continue
        files = ((run, folders[run] / f"round_{row.round:02d}.safetensors") for run in row.runs if run in folders)
        first = next(((run, file) for run, file in files if file.exists()), None)
        if first is not None:
            out.append((results[first[0]], row.round, first[1]))
    return out


def measured(what: Sequence[Wanted], say: Callable[[str], None]) -> Iterable[list[Latency]]:
    """Yield the measurements of each network, one thread, in samples of `BATCHES` a call.

    Args:
        what: the networks.
        say: told which network the engine cannot run, and why.
    """
    where = environment()
    for result, number, file in what:
        try:
            yield _measure(result, number, file, str(where["hardware"]["cpu"]))
        except (SynaptreeError, EngineError, FormatError, OSError) as error:
            say(f"not measured: {result.recipe}, {result.control or result.method}, round {number}: {error}")
            yield []


def _measure(result: Result, number: int, file: Path, cpu: str) -> list[Latency]:
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "network.syn"
        size = _pack(result, file, packed)
        found = bench(packed, batches=BATCHES, seconds=SECONDS)
    out = []
    for batch in BATCHES:
        ours, best = found.row(OURS[0], batch), found.best(batch)
        out.append(Latency(
            config_hash=result.config_hash, round=number, batch=batch, threads=1, seconds=ours.seconds, best=best.name,
            best_seconds=best.seconds, times=ours.times, times_low=ours.times_low, times_high=ours.times_high,
            bytes=size, cpu=cpu, versions=dict(found.versions),
        ))  # fmt: skip
    return out


def _pack(result: Result, file: Path, out: Path) -> int:
    """Compact the network of a round and write it as a `.syn` file; return its size."""
    model, options = str(result.config["model"]), dict(result.config.get("model_options") or {})
    classes = source(str(result.config["data"])).classes or 10
    network = zoo.build(model, **{"classes": classes, **options}).eval()
    topology = load_into(network, file)
    shape = (options["inputs"],) if "inputs" in options else zoo.MODELS[model].input_shape
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    small = compact(network, x, topology=topology if topology is not None and topology.masks else None)
    return save(small.model, out, example_input=x, topology=small.topology, resume=False)
