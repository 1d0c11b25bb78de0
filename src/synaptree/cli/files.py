"""Networks as small files: packing, unpacking, looking inside, and handing on."""

import json as text
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import typer
from torch import Tensor, nn

from synaptree.artifact.build import UNSAVED, dense, program_of
from synaptree.artifact.build import network as runnable
from synaptree.artifact.describe import described
from synaptree.artifact.interchange import save_dense, save_sparse
from synaptree.artifact.onnx import export_onnx
from synaptree.artifact.ranges import activation_ranges
from synaptree.artifact.syn import load, load_into, load_topology, save
from synaptree.cli.similarity import network_file
from synaptree.core.errors import CheckpointError, DataError, OptionError, SynaptreeError
from synaptree.core.topology import Topology
from synaptree.format.file import read_file
from synaptree.format.inspect import inspect
from synaptree.format.program import Program
from synaptree.report.steps import steps
from synaptree.results import Result, read
from synaptree.surgery.compact import Compacted, compact
from synaptree.surgery.plan import Plan
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
class Source:
    """A network to be packed.

    Attributes:
        network: with its weights.
        topology: which connections exist; None where the file says nothing of it.
        data: name of the data set it was trained on; None if nobody says.
        shape: of one sample.
        about: texts that go into the file.
    """

    network: nn.Module
    topology: Topology | None
    data: str | None
    shape: tuple[int, ...]
    about: Mapping[str, str]


def pack(
    place: Path, out: Path, *, values: Values = "fp32", index: int | None = None, model: str | None = None,
    options: Sequence[str] = (), on: str | None = None, root: Path | None = None, whole: bool = False,
    fold_norms: bool = False,
) -> None:  # fmt: skip
    """Compact a network, write it as a `.syn` file, and print what that cost and gained.

    Args:
        place: folder of a run, a `.syn` file that says what it computes, or a safetensors file.
        out: the file to write.
        values: how weights are stored.
        index: of the round, for the folder of a run; the last by default.
        model: name in the zoo, for a safetensors file that no run wrote.
        options: of the model, as KEY=VALUE.
        on: name of the data set to measure on; by default the one it was trained on.
        root: folder of the data sets; without it, data that is not there is done without.
        whole: leave units in that compaction would remove.
        fold_norms: multiply batch norms into the layers before them.

    Raises:
        OptionError: nobody says which network it is, or options that do not go together.
        DataError: the data that was asked for is not there.
        CheckpointError: the file is not of this network.
    """
    if whole and fold_norms:
        raise OptionError("--fold-norms is part of compaction: leave out --no-compact")
    if index is not None and not place.is_dir():
        raise OptionError(f"--round {index} is for the folder of a run, and {place} is none")
    file = network_file(place, index)
    _require_apart(file, out)
    origin = _source(file, model, options)
    data, missing = _data(on or origin.data, root, asked=on is not None or root is not None)
    seeded = torch.Generator().manual_seed(0)
    x = torch.rand(4, *origin.shape, generator=seeded) if data is None else data.normalise(data.validation.x[:4])
    with steps(3 if data is None else 5) as step:
        step("compacting")
        small = _compacted(origin, x, whole, fold_norms)
        step("measuring how large values get")
        ranges = None if data is None else _ranges(small.model, x, data)
        step(f"writing {out.name}")
        size = save(
            small.model, out, values=values, example_input=x, topology=small.topology, resume=False, ranges=ranges,
            about=origin.about,
        )  # fmt: skip
        tested = f"not measured, and no ranges of values kept: {missing}"
        if data is not None:
            step("testing the network before")
            before = 100 * evaluate(origin.network.eval(), data, data.test)
            step("testing the network after")
            after = 100 * evaluate(load(out), data, data.test)
            tested = f"test accuracy on {data.name}: {before:.2f} % before, {after:.2f} % after, {after - before:+.2f}"
    if not whole:
        _tell(small)
    bare = 4 * sum(t.numel() for t in origin.network.state_dict().values() if t.is_floating_point())
    typer.echo(f"{out}: {size:,} bytes; before, with its zeros in fp32, {bare:,}: {bare / size:.1f} times as many")
    typer.echo(tested)


def unpack(file: Path, out: Path, *, sparse: bool = False) -> None:
    """Write what a `.syn` file holds as safetensors: dense, or masks and the values that exist."""
    _require_apart(file, out)
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
        said = {"file": str(file), "about": dict(stored.about), "ranges": dict(stored.ranges)}
        typer.echo(text.dumps(said | asdict(report) | totals, indent=1))
        return
    for key, value in stored.about.items():
        typer.echo(_printable(f"{key}: {value}"))
    typer.echo(f"computes: {_computes(stored.program)}")
    if stored.topology is not None:
        typer.echo(f"topology: {len(stored.topology['shapes'])} masks")
    if stored.ranges:
        sizes = ", ".join(f"{number}: {size:.3g}" for number, size in stored.ranges.items())
        typer.echo(f"ranges of values, by number: {sizes}")
    typer.echo(str(report))


def export(file: Path, out: Path) -> None:
    """Write the network of a `.syn` file as ONNX, compacted, and check it with ONNX Runtime."""
    _require_apart(file, out)
    network = load(file)
    program = program_of(network)
    given = program.inputs[0]
    if given.dtype != "float32" or len(program.inputs) > 1:
        kinds = ", ".join(f"{one.name} of {one.dtype}" for one in program.inputs)
        raise OptionError(f"{file}: export takes networks of one input of float32, this one reads {kinds}")
    x = torch.randn(4, *given.shape, generator=torch.Generator().manual_seed(0))
    with steps(2) as step:
        step("compacting")
        small = compact(network, x).model
        step(f"writing {out.name} and checking it")
        error = export_onnx(small, out, x)
    parameters = sum(p.numel() for p in small.parameters())
    typer.echo(f"{out}: {out.stat().st_size:,} bytes, {parameters:,} parameters, compacted")
    typer.echo(f"ONNX Runtime repeats the network's outputs on random inputs to within {error:.1e}")


def _require_apart(file: Path, out: Path) -> None:
    if out.exists() and out.samefile(file):
        raise OptionError(f"{out} is what is read: write to another file")


def _source(file: Path, model: str | None, options: Sequence[str]) -> Source:
    """Return the network in a file: as --model says, as the file itself does, or as the result beside it."""
    if options and model is None:
        raise OptionError("--option goes with --model")
    if model is not None:
        return _of_zoo(file, model, {key: _value(value) for key, value in map(_pair, options)}, None, {})
    if file.suffix == ".syn":
        network = load(file)
        shape, about = program_of(network).inputs[0].shape, read_file(file).about
        return Source(network, load_topology(file), about.get("data"), shape, about)
    result = _result(file)
    name = str(result.config["data"])
    classes = source(name).classes
    found = {**({} if classes in (None, 10) else {"classes": classes}), **result.config.get("model_options", {})}
    about = {"run": f"{result.recipe}/{result.control or result.method}-s{result.seed}/{file.stem}"}
    return _of_zoo(file, str(result.config["model"]), found, name, about)


def _of_zoo(file: Path, model: str, options: Mapping[str, Any], data: str | None, about: Mapping[str, str]) -> Source:
    network = zoo.build(model, **options)
    topology = load_into(network, file)
    inputs = options.get("inputs")
    shape = zoo.MODELS[model].input_shape if inputs is None else (inputs,)
    said = " ".join([model, *(f"{key}={value}" for key, value in options.items())])
    texts = {"model": said, **({} if data is None else {"data": data}), **about}
    return Source(network, topology if topology is not None and topology.masks else None, data, shape, texts)


def _result(file: Path) -> Result:
    """Return the result of the run whose folder a file lies in.

    Raises:
        OptionError: there is none, or more than one.
    """
    found = []
    for place in sorted(file.parent.glob("*.json")):
        with suppress(SynaptreeError):  # other files may lie there
            found += read([place])
    own = [result for result in found if file.parent.name.endswith(result.config_hash)]
    if len(own or found) == 1:
        return (own or found)[0]
    said = f"{len(found)} results say what it might be" if found else "nothing beside it says which network it is"
    raise OptionError(f"{file}: {said}; name one with --model (see `synaptree models`)")


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


def _data(name: str | None, root: Path | None, *, asked: bool) -> tuple[Dataset | None, str]:
    """Return a data set, or None and why there is none."""
    if name is None:
        return None, "nothing says which data it is for; name it with --on"
    try:
        return load_data(name, root), ""
    except DataError as error:
        if asked:
            raise
        return None, str(error)


def _compacted(source: Source, x: Tensor, whole: bool, fold_norms: bool) -> Compacted:
    """Return what is left of a network."""
    if whole:
        return Compacted(source.network, source.topology, None, Plan(), 0.0)
    return compact(source.network, x, topology=None if fold_norms else source.topology, fold_norms=fold_norms)


def _tell(small: Compacted) -> None:
    """Say what went in compaction, and what had to stay."""
    removed = sum(len(units.units) for units in small.plan.removed)
    typer.echo(f"compacted: {removed:,} units removed; outputs equal to within {small.max_error:.1e}")
    if kept := sum(len(units.units) for units in small.plan.kept):
        typer.echo(f"{kept:,} units that do nothing had to stay, for example {small.plan.kept[0]}")
    for note in small.plan.notes:
        typer.echo(note)


def _ranges(model: nn.Module, x: Tensor, data: Dataset) -> dict[int, float]:
    images = data.normalise(sample(data.train, CALIBRATION, seed=0).x)
    return activation_ranges(runnable(*described(model, x)).eval(), images.split(BATCH))


def _printable(line: str) -> str:
    """Return a line in which a terminal finds no commands; files come from strangers."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)


def _computes(program: Program | None) -> str:
    if program is None:
        return "the file does not say; load it into a network of the same class"
    inputs = ", ".join(f"{given.name} {('samples', *given.shape)}".replace("'", "") for given in program.inputs)
    return f"{len(program.steps)} steps from {inputs}"
