"""What is done with the network a search found: compacted, written small, judged from the file, timed."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synaptree.artifact.files import replacing
from synaptree.artifact.syn import load_into, save
from synaptree.compression.judge import Judge
from synaptree.compression.report import Size, Timing, TimingRow
from synaptree.compression.search import Candidate
from synaptree.core.errors import CheckpointError, NumericError, SynaptreeError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.graph.node import GraphError
from synaptree.measure.bench import timed
from synaptree.measure.contenders import Contender, Model, contenders, installed
from synaptree.measure.count import count
from synaptree.surgery.compact import compact

__all__ = ["CODINGS", "Packed", "engine_of", "packed", "size_of", "timing_of"]

CODINGS = ("int8", "fp16", "fp32")
"""How weights may be stored, the smallest first."""
BATCHES = (1, 32)
PLANNING = 0.3  # seconds for each number of lanes in which the engine tries kernels, where it is not timed


@dataclass(frozen=True)
class Packed:
    """A compacted network and its file.

    Attributes:
        model: in eval mode, with the weights of the file.
        topology: over it.
        values: how the file stores weights.
        bytes: of the file.
        value: on validation data.
        engine_value: the same, computed by the engine; None where it cannot run the network, and with a metric of the
            user's.
        removed: what compaction took out, and why units stayed.
        max_error: of its proof; None where nothing was compacted.
        notes: what could not be done.
    """

    model: nn.Module
    topology: Topology
    values: str
    bytes: int
    value: float
    engine_value: float | None
    removed: tuple[str, ...]
    max_error: float | None
    notes: tuple[str, ...]


def packed(
    found: Candidate, example: Tensor, judge: Judge, reference: float, file: Path, codings: Iterable[str] = CODINGS
) -> Packed:
    """Compact a network, write it in the smallest coding that is within what may be lost, and read it back.

    Args:
        found: the network.
        example: inputs, `(samples, ...)`.
        judge: of what may be lost.
        reference: what is not to be lost.
        file: to write.
        codings: to try, the smallest first; the last one is taken whatever it costs.

    Raises:
        CheckpointError: the last coding cannot say the weights.
        NumericError: stored like that, the network has outputs that are not finite; the file is as it was.
    """
    bare = _compacted(found, example)
    with replacing(file) as partial_file:
        result = _smallest(bare, example, judge, reference, partial_file, list(codings))
        if not math.isfinite(result.value):
            raise NumericError(
                f"the network stored as {result.values} has outputs, or a metric, that are not finite on the "
                "validation data: give values='fp32' or 'auto'; no file was written"
            )
    return result


def _smallest(
    bare: Packed, example: Tensor, judge: Judge, reference: float, file: Path, codings: list[str]
) -> Packed:
    """Write a network in the first coding that is within what may be lost, or in the last one."""
    result = bare
    for values in codings:
        try:
            result = _written(bare, example, judge, file, values)
        except CheckpointError:  # weights that are too large for it
            if values == codings[-1]:
                raise
            continue
        worth = [value for value in (result.value, result.engine_value) if value is not None]
        if all(judge.accepts(value, reference) for value in worth):
            break
    return result


def _compacted(found: Candidate, example: Tensor) -> Packed:
    if not found.topology.masks:  # nothing was cut
        found.topology.cover(layers_of(found.model), {"linear": "weight", "conv": "weight"})
    bare = Packed(found.model.eval(), found.topology, "", 0, found.value, None, (), None, ())
    try:
        small = compact(found.model, example, topology=found.topology)
    except SynaptreeError as error:
        return replace(bare, notes=(f"units that do nothing were left in: {error}",))
    assert small.topology is not None
    removed = tuple(str(small.plan).splitlines())
    return replace(
        bare, model=small.model.eval(), topology=small.topology, removed=removed, max_error=small.max_error
    )


def _written(bare: Packed, example: Tensor, judge: Judge, file: Path, values: str) -> Packed:
    model, notes = deepcopy(bare.model), bare.notes
    about = {"made by": "synaptree compress"}
    write = partial(save, bare.model, file, values=values, topology=bare.topology, resume=False, about=about)
    try:
        size = write(example_input=example)
    except GraphError as error:
        size = write()
        notes = (*notes, f"the file holds weights alone, for load_into and a model of the same class: {error}")
    load_into(model, file)
    # a metric of the user's may look into the model, and the engine has nothing to show
    served = engine_of(file, example) if judge.metric is None else ""
    engine_value = None if isinstance(served, str) else judge(served)
    return replace(
        bare, model=model.eval(), values=values, bytes=size, value=judge(model), engine_value=engine_value, notes=notes
    )


class _Served(nn.Module):
    """The engine in the form that networks are judged in."""

    def __init__(self, engine: Callable[[Any], Any]) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.engine(x.cpu().contiguous().numpy())).to(x.device)


def engine_of(file: Path, example: Tensor) -> nn.Module | str:
    """Return the engine on a file as a module, or in words why it is not there."""
    from synaptree.runtime.engine import BUILT, Engine

    if not BUILT:
        return "the engine is not there: synaptree was installed without a compiler"
    if example.dtype != torch.float32:
        return f"the engine takes float32, and the inputs are {example.dtype}"
    try:
        served = _Served(Engine(file, batch=64, budget=PLANNING))
        served(example)
    except ValueError as error:
        return str(error)
    return served


def size_of(model: nn.Module, topology: Topology | None, example: Tensor, bytes_: int | None, value: float) -> Size:
    """Return a network in numbers, all of it where no topology says what exists."""
    try:
        counted = count(model, topology, example)
    except Exception:  # a model of the user's may not bear hooks
        counted = count(model, topology)
    held = sum(t.numel() * t.element_size() for t in model.state_dict().values()) if bytes_ is None else bytes_
    if topology is None:
        weights = sum(layer.module.weight.numel() for layer in layers_of(model))
        return Size(weights, counted.parameters(norm=True), held, counted.macs, value)
    weights = sum(topology.weights_alive(name) for name, shape in topology.shapes.items() if len(shape) > 1)
    return Size(weights, counted.parameters_alive(norm=True), held, counted.macs_alive, value)


def timing_of(
    before: nn.Module, after: nn.Module, file: Path, example: Tensor, seconds: float, spare: Callable[[], bool]
) -> Timing | str:
    """Time the engine on a file beside dense runtimes, with one thread; in words why not, where that cannot be.

    Args:
        before: the network with all of its weights.
        after: the network in the file.
        file: the `.syn` file.
        example: inputs, `(samples, ...)`.
        seconds: for each number of samples.
        spare: says whether there is time left to set up runtimes beside torch, which takes seconds each.
    """
    served = engine_of(file, example)
    if isinstance(served, str):
        return served
    from synaptree.runtime.engine import Engine

    shape, threads, rows = tuple(example.shape[1:]), torch.get_num_threads(), list[TimingRow]()
    models = {"before": Model(before, shape), "compressed": Model(after, shape)}
    try:
        for batch in BATCHES:
            x = models["before"].inputs(batch)
            engine = Engine(file, batch=batch)
            runs: dict[tuple[str, str], Callable[[], object]] = {}
            runs["engine", "compressed"] = partial(engine.run, x, np.empty_like(engine(x)))
            for network, model in models.items():
                runs |= {(one.name, network): one.call for one in _runtimes(model, x, spare)}
            if not {"before", "compressed"} <= {network for name, network in runs if name != "engine"}:
                return "no dense runtime here runs the network"
            timings, _ = timed({" ".join(key): run for key, run in runs.items()}, seconds, time.process_time)
            rows += [TimingRow(batch, name, net, 1e6 * timings.median(f"{name} {net}")) for name, net in runs]
    finally:
        torch.set_num_threads(threads)
    return Timing(tuple(rows))


def _runtimes(model: Model, x: Any, spare: Callable[[], bool]) -> list[Contender]:
    """Return the runtimes that are set up in time, torch in any case."""
    found: list[Contender] = []
    for name in ("torch", *(name for name in installed("fp32") if name != "torch")):
        if name == "torch" or spare():
            with suppress(SynaptreeError):  # one that cannot run this network
                found += contenders(model, x, 1, [name])
    return found
