"""Networks as small files: packing, unpacking, looking inside, and handing on."""

import json as text
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import typer
from torch import Tensor, nn

from synaptree.artifact.build import UNSAVED, dense
from synaptree.artifact.build import network as runnable
from synaptree.artifact.describe import described
from synaptree.artifact.interchange import save_dense, save_sparse
from synaptree.artifact.onnx import export_onnx
from synaptree.artifact.ranges import activation_ranges
from synaptree.artifact.syn import load, load_into, load_topology, save
from synaptree.cli.similarity import network_file
from synaptree.core.errors import CheckpointError, DataError, OptionError
from synaptree.core.topology import Topology
from synaptree.format.file import read_file
from synaptree.format.inspect import inspect
from synaptree.format.program import Program
from synaptree.results import Result, read
from synaptree.surgery.compact import Compacted, compact
from synaptree.train import zoo
from synaptree.train.data import Dataset, sample
from synaptree.train.data import load as load_data
from synaptree.train.loop import evaluate
from synaptree.train.sources import source

__all__ = ["export", "pack", "show_file", "unpack"]

Values = Literal["fp32", "fp16", "int8"]
CALIBRATION = 512  # training images that ranges are measured on
BATCH = 64


@dataclass(frozen=True)
class Origin:
    """Where a network comes from.

    Attributes:
        file: with its weights.
        model: name in the zoo.
        options: of the model, with the number of classes.
        data: name of the data set it was trained on; None if nobody says.
    """

    file: Path
    model: str
    options: Mapping[str, Any]
    data: str | None


def pack(
    place: Path, out: Path, *, values: Values = "fp32", index: int | None = None, model: str | None = None,
    options: Sequence[str] = (), on: str | None = None, root: Path | None = None, whole: bool = False,
    fold_norms: bool = False, resume: bool = False,
) -> None:  # fmt: skip
    """Compact a network, write it as a `.syn` file, and print what that cost and gained.

    Args:
        place: folder of a run, or a safetensors file.
        out: the file to write.
        values: how weights are stored.
        index: of the round, for the folder of a run; the last by default.
        model: name in the zoo, where no run says it.
        options: of the model, as KEY=VALUE.
        on: name of the data set to measure on, where no run says it.
        root: folder of the data sets; without it, data that is not there is done without.
        whole: leave units in that compaction would remove.
        fold_norms: multiply batch norms into the layers before them.
        resume: also keep what the topology needs so that development goes on exactly.

    Raises:
        OptionError: nobody says which network it is, or options that do not go together.
        DataError: the data that was asked for is not there.
        CheckpointError: the file is not of this network.
    """
    if fold_norms and resume:
        raise OptionError("--fold-norms ends training: leave out --resume")
    if whole and fold_norms:
        raise OptionError("--fold-norms is part of compaction: leave out --no-compact")
    origin = _origin(network_file(place, index), model, options, on)
    network = zoo.build(origin.model, **origin.options)
    topology = load_into(network, origin.file)
    topology = topology if topology is not None and topology.masks else None
    data = _data(origin.data, root, asked=on is not None or root is not None)
    x = _example(origin, data)
    small = _compacted(network, x, topology, whole, fold_norms)
    _say_plan(small)
    ranges = None if data is None else _ranges(small.model, x, data)
    bytes_ = save(
        small.model, out, values=values, example_input=x, topology=small.topology, resume=resume, ranges=ranges,
        about=_about(origin),
    )  # fmt: skip
    bare = 4 * sum(t.numel() for t in network.state_dict().values() if t.is_floating_point())
    typer.echo(f"{out}: {bytes_:,} bytes; the dense network in fp32 has {bare:,}, {bare / bytes_:.1f} times as many")
    if data is None:
        typer.echo(f"not measured: no data ({origin.data or 'name it with --on'}); so no ranges of values either")
    else:
        before, after = (100 * evaluate(one, data, data.test) for one in (network.eval(), load(out)))
        typer.echo(f"test accuracy on {data.name}: {before:.2f} % before, {after:.2f} % after, {after - before:+.2f}")


def unpack(file: Path, out: Path, *, sparse: bool = False) -> None:
    """Write what a `.syn` file holds as safetensors: dense, or masks and the values that exist."""
    topology = load_topology(file) if sparse else None
    if sparse and topology is None:
        raise CheckpointError(f"{file} holds no topology: unpack it without --sparse")
    stored = read_file(file)
    names = [name for name in (*stored.entries, *stored.aliases) if not name.rpartition(".")[2].startswith(UNSAVED)]
    tensors = {name: dense(stored, name) for name in names}
    size = save_sparse(tensors, out, topology) if sparse else save_dense(tensors, out)
    typer.echo(f"{out}: {size:,} bytes, {len(tensors)} tensors")


def show_file(file: Path, *, json: bool = False) -> None:
    """Print what is in a `.syn` file, tensor by tensor, beside what other ways of writing it would take."""
    stored = read_file(file)
    report = inspect(file.read_bytes())
    if json:
        totals = {what: getattr(report, what) for what in ("total", "bound", "dense", "csr", "csr16")}
        typer.echo(text.dumps({"file": str(file), "about": dict(stored.about)} | asdict(report) | totals, indent=1))
        return
    for key, value in stored.about.items():
        typer.echo(f"{key}: {value}")
    typer.echo(f"computes: {_computes(stored.program)}")
    if stored.topology is not None:
        typer.echo(f"topology: {len(stored.topology['shapes'])} masks, so that training can go on")
    typer.echo(str(report))


def export(file: Path, out: Path) -> None:
    """Write the network of a `.syn` file as ONNX, compacted, and check it with ONNX Runtime."""
    network = load(file)
    program = network.program
    given = program.inputs[0]
    if given.dtype != "float32" or len(program.inputs) > 1:
        raise OptionError(f"{file}: export takes networks of one input of kind float32, got {program.inputs}")
    x = torch.randn(4, *given.shape, generator=torch.Generator().manual_seed(0))
    small = compact(network, x).model
    error = export_onnx(small, out, x)
    parameters = sum(p.numel() for p in small.parameters())
    typer.echo(f"{out}: {out.stat().st_size:,} bytes, {parameters:,} parameters, compacted")
    typer.echo(f"ONNX Runtime repeats the network's outputs on random inputs to within {error:.1e}")


def _origin(file: Path, model: str | None, options: Sequence[str], on: str | None) -> Origin:
    """Return what a network is: as options say, else as the result beside its file says."""
    if model is not None:
        return Origin(file, model, {key: _value(value) for key, value in map(_pair, options)}, on)
    result = _result(file)
    if result is None:
        raise OptionError(
            f"{file}: nothing beside it says which network it is; name one with --model (see `synaptree models`)"
        )
    if options:
        raise OptionError(f"the options of the model are those of the run of {file}; --option goes with --model")
    name = str(result.config["data"])
    classes = source(name).classes
    found = {**({} if classes is None else {"classes": classes}), **result.config.get("model_options", {})}
    return Origin(file, str(result.config["model"]), found, on or name)


def _result(file: Path) -> Result | None:
    places = sorted(file.parent.glob("*.json"))
    return read(places)[0] if places else None


def _pair(option: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not equals:
        raise OptionError(f"--option {option!r}: wanted KEY=VALUE, as width=32")
    return key, value


def _value(value: str) -> Any:
    try:
        return text.loads(value)
    except ValueError:
        return value


def _data(name: str | None, root: Path | None, *, asked: bool) -> Dataset | None:
    if name is None:
        return None
    try:
        return load_data(name, root)
    except DataError:
        if asked:
            raise
        return None


def _example(origin: Origin, data: Dataset | None) -> Tensor:
    if data is not None:
        return data.normalise(data.validation.x[:4])
    inputs = origin.options.get("inputs")
    shape = zoo.MODELS[origin.model].input_shape if inputs is None else (inputs,)
    return torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))


def _compacted(network: nn.Module, x: Tensor, topology: Topology | None, whole: bool, fold_norms: bool) -> Compacted:
    if whole:
        return Compacted(network, topology, None, compact(nn.Identity(), x).plan, 0.0)
    return compact(network, x, topology=None if fold_norms else topology, fold_norms=fold_norms)


def _say_plan(small: Compacted) -> None:
    removed = sum(len(units.units) for units in small.plan.removed)
    kept = sum(len(units.units) for units in small.plan.kept)
    typer.echo(f"compacted: {removed:,} units removed; outputs equal to within {small.max_error:.1e}")
    if kept:
        typer.echo(f"{kept:,} units that do nothing had to stay, for example {small.plan.kept[0]}")
    for note in small.plan.notes:
        typer.echo(note)


def _ranges(model: nn.Module, x: Tensor, data: Dataset) -> dict[int, float]:
    images = data.normalise(sample(data.train, CALIBRATION, seed=0).x)
    return activation_ranges(runnable(*described(model, x)).eval(), images.split(BATCH))


def _about(origin: Origin) -> dict[str, str]:
    return {"model": origin.model} | ({} if origin.data is None else {"data": origin.data})


def _computes(program: Program | None) -> str:
    if program is None:
        return "the file does not say; load it into a network of the same class"
    inputs = ", ".join(f"{given.name} {('samples', *given.shape)}".replace("'", "") for given in program.inputs)
    return f"{len(program.steps)} steps from {inputs}"
