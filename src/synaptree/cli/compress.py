"""A network made as small as its accuracy on validation data allows, in sight of a person who may stop it."""

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path
from traceback import extract_tb
from types import ModuleType, TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import nn

from synaptree.cli.run import stoppable
from synaptree.compression.compress import FILE, REPORT, Moment, compress
from synaptree.compression.report import Compressed
from synaptree.compression.search import Try
from synaptree.core.errors import OptionError
from synaptree.report import tables
from synaptree.train import zoo
from synaptree.train.data import Dataset, load
from synaptree.train.loop import evaluate

__all__ = ["brought", "compress_model", "tries_table"]


def compress_model(
    model: str, *, data: str | None, max_drop: float, budget: str, method: str, out: Path, values: str,
    root: Path | None, seed: int, batch: int, timing: bool,
) -> None:  # fmt: skip
    """Compress a network of the zoo or of the user, and print tries and outcome.

    Args:
        model: a name of the zoo, or MODULE:FUNCTION, which returns a model, or a model, training and validation data.
        data: name of the data set; of a model of the user's, where the function brings none.
        max_drop: points of validation accuracy that may be lost.
        budget: of time, as "20m".
        method: "auto" or a name of the registry.
        out: folder that gets the file and the report.
        values: how weights are stored.
        root: folder of the data sets.
        seed: of weights and training.
        batch: samples of a training batch.
        timing: whether the engine is timed at the end.

    Raises:
        OptionError: an option is out of range, or nobody knows what the model is.
    """
    network, train_data, val_data = _asked(model, data, root, seed)
    with stoppable() as stop, Display(Console()) as display:
        found = compress(
            network, train_data, val_data, max_drop, budget, method, out=out, values=values, batch=batch, seed=seed,
            timing=timing, watch=display.show, stop=stop,
        )  # fmt: skip
    Console().print(tries_table(found))
    for line in found.report.words:
        typer.echo(line)
    if isinstance(train_data, Dataset):
        typer.echo(_tested(found, train_data))
    typer.echo(f"network: {out / FILE}\nreport:  {out / REPORT}")


class Display:
    """Shows a search going on, between `with`: a line for every try, and on a terminal how much time is left."""

    def __init__(self, console: Console) -> None:
        self.console, self.told = console, 0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("left at most"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("begins", total=None)

    def __enter__(self) -> Self:
        """Start the moving part."""
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the moving part away; the lines stay."""
        self.bar.stop()

    def show(self, moment: Moment) -> None:
        """Show where the search is."""
        for one in moment.tries[self.told :]:
            self.console.print(Text(line_of(one)), soft_wrap=True)
        self.told = len(moment.tries)
        self.bar.update(self.task, description=moment.doing, total=moment.budget, completed=moment.used)


def line_of(one: Try) -> str:
    """Return a try as a line.

    >>> line_of(Try("magnitude", 0.05, 120, 97.5, 10.0, 3.2, True, "+0.10"))
    'magnitude at 5.00 %: 97.50, kept: +0.10'
    """
    kept = "kept" if one.kept else "not kept"
    return f"{one.method} at {100 * one.density:.2f} %: {one.value:.2f}, {kept}: {one.why}"


def tries_table(found: Compressed) -> Table:
    """Return the tries of a search as a table; the last one kept is bold."""
    report = found.report
    kept = [index for index, one in enumerate(report.tries) if one.kept]
    rows = [
        ([
            one.method, f"{100 * one.density:.2f}", f"{one.weights:,}", f"{one.value:.2f}", f"{one.epochs:.0f}",
            f"{one.seconds:.1f}", "yes" if one.kept else "no", one.why,
        ], kept[-1:] == [index])
        for index, one in enumerate(report.tries)
    ]  # fmt: skip
    caption = f"{report.epochs:.0f} epochs in {report.seconds:.0f} s, of a budget of {report.budget}"
    columns = ["method", "density %", "weights", report.metric, "epochs", "seconds", "kept", "why"]
    return tables.terminal("Tries, judged on validation data", columns, rows, caption, words=("method", "kept", "why"))


def _tested(found: Compressed, data: Dataset) -> str:
    """Return what the test set says, which nothing was chosen by."""
    before, after = (100 * evaluate(one, data, data.test) for one in (found.dense, found.model))
    return f"test accuracy on {data.name}: {before:.2f} before, {after:.2f} after, {after - before:+.2f}"


def _asked(model: str, data: str | None, root: Path | None, seed: int) -> tuple[nn.Module, Any, Any]:
    """Return the model and its data."""
    if ":" in model:
        network, *own = brought(model)
        if own and data is not None:
            raise OptionError(f"--data {data}: {model} brings its own data; leave one of them out")
        if own:
            return network, *own
    if data is None:
        raise OptionError(f"--data is missing: name the data set for {model}, one of `synaptree data list`")
    found = load(data, root)
    return network if ":" in model else _from_zoo(model, found, seed), found, None


def _from_zoo(name: str, data: Dataset, seed: int) -> nn.Module:
    fitting = {"inputs": data.train.x[0].numel()} if name == "mlp" else {}
    return zoo.build(name, classes=data.classes, seed=seed, **fitting)


def brought(place: str) -> tuple[Any, ...]:
    """Return what a function of the user's returns: a model, or a model with training and validation data.

    Args:
        place: "MODULE:FUNCTION"; the module lies in the working directory or is installed.

    Raises:
        OptionError: there is no such function, it cannot be called, or it raises or returns something else.
    """
    made = _called(place, _function(place))
    found = made if isinstance(made, tuple) else (made,)
    if len(found) not in (1, 3) or not isinstance(found[0], nn.Module):
        kinds = ", ".join(type(one).__name__ for one in found)
        raise OptionError(f"{place} returned ({kinds}): wanted a model, or (model, train_data, val_data)")
    return found


def _function(place: str) -> Callable[[], Any]:
    """Return the function of the user's, which can be called without arguments."""
    module, _, name = place.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise OptionError(f"{place}: wanted MODULE:FUNCTION, as in mine:network")
    home = _imported(place, module)
    if not hasattr(home, name):
        raise OptionError(f"{place}: {module} has no {name}")
    function = getattr(home, name)
    if isinstance(function, nn.Module) or not callable(function):
        kind = type(function).__name__
        raise OptionError(f"{place} is a {kind} and no function: wanted a function that returns the model")
    _require_no_arguments(place, function)
    return function  # type: ignore[no-any-return]


def _require_no_arguments(place: str, function: Callable[..., Any]) -> None:
    try:
        asked = signature(function)
    except ValueError:  # builtins may not say what they take
        return
    try:
        asked.bind()
    except TypeError as missing:
        raise OptionError(f"{place} is called without arguments: {missing}; wanted one that needs none") from None


def _imported(place: str, module: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        if module == missing.name or module.startswith(f"{missing.name}."):
            here = Path.cwd()
            raise OptionError(f"{place}: there is no module {module} in {here} or among those installed") from None
        raise OptionError(f"{place}: {module} cannot be imported, {_of_the_users(missing, module)}") from missing
    except (Exception, SystemExit) as error:
        raise OptionError(f"{place}: {module} cannot be imported, {_of_the_users(error, module)}") from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _called(place: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise OptionError(f"{place} raised {_of_the_users(error, place.partition(':')[0])}") from error


def _of_the_users(error: BaseException, module: str) -> str:
    """Return an error of a module's in a line: its type, its message, and where in the module it arose."""
    file, frames = module.replace(".", "/") + ".py", extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).as_posix().endswith(f"/{file}")]
    where = f" ({file}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
