"""What the listing commands print: methods, networks, data sets, results."""

import inspect
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from synaptree.core.errors import DataError, OptionError, unknown
from synaptree.report import comparison, paired
from synaptree.report import learning as speed
from synaptree.report import stages as development
from synaptree.report.steps import steps
from synaptree.results import Result
from synaptree.train import download as sets
from synaptree.train.sources import class_names

__all__ = [
    "download_data", "show_against", "show_data", "show_learning", "show_method", "show_methods", "show_models",
    "show_results", "show_stages", "verify_data",
]  # fmt: skip

MARGINS = {"cifar10": 0.5, "digits": 1.0}
"""Points that a network may seem below dense and yet counts as not below, where it is not 0.2; the test set of the
digits has 360 images, so that one of them is 0.28 points."""


def show_results(
    console: Console, results: Sequence[Result], *, all_rounds: bool = False, markdown: bool = False
) -> None:
    """Print a table for each recipe and method among the results, of the telling rounds or of all.

    Below stand the runs that did not reach their end.
    """
    def experiment(result: Result) -> tuple[str, str]:
        return result.recipe, result.method

    for _, together in groupby(sorted(results, key=experiment), key=experiment):
        group = list(together)
        margin = MARGINS.get(group[0].config.get("data", ""), 0.2)
        rows = comparison.summary(group)
        rows = rows if all_rounds else comparison.brief(rows, margin)
        if not rows:
            continue
        if markdown:
            typer.echo(comparison.markdown(rows))
        else:
            console.print()
            console.print(comparison.table(rows, margin))
    for result in results:
        if result.status != "done":
            console.print(Text(("- " if markdown else "") + _unfinished(result)), soft_wrap=True)


def _unfinished(result: Result) -> str:
    """Return how a run ended that did not reach its end, and why."""
    reason = f": {result.reason}" if result.reason else ""
    return f"{result.recipe}: {result.control or result.method}, seed {result.seed}: {result.status}{reason}"


def show_learning(console: Console, results: Sequence[Result], *, json: bool = False, markdown: bool = False) -> None:
    """Print how fast each round learned beside dense."""
    _show(console, speed, speed.learning(results), json=json, markdown=markdown)


def show_stages(console: Console, results: Sequence[Result], *, json: bool = False, markdown: bool = False) -> None:
    """Print what each stage left behind."""
    _show(console, development, development.stages(results), json=json, markdown=markdown)


def show_against(
    console: Console, results: Sequence[Result], other: str, *, json: bool = False, markdown: bool = False
) -> None:
    """Print how the recipes among the results differ from one of them, seed by seed.

    Raises:
        OptionError: nobody knows the recipe, or nothing can be compared with it.
    """
    _show(console, paired, paired.against(results, other), json=json, markdown=markdown)


class Tables(Protocol):
    """A module that makes tables of its own rows."""

    def table(self, rows: Any) -> Table:
        """Return them for the terminal."""

    def markdown(self, rows: Any) -> str:
        """Return them as Markdown."""


def _show(console: Console, kind: Tables, rows: Sequence[Any], *, json: bool, markdown: bool) -> None:
    """Print rows: as JSON all in one, else a table for each recipe and method."""
    if json:
        typer.echo(comparison.as_json(rows))
        return
    for _, together in groupby(rows, key=lambda row: (row.name, row.method)):
        group = list(together)
        if markdown:
            typer.echo(kind.markdown(group))
        else:
            console.print()
            console.print(kind.table(group))


def show_methods() -> None:
    """Print each method's name and what it does in a sentence."""
    from synaptree.methods import METHODS

    out = _table("method", "what it does")
    for name, build in sorted(METHODS.items()):
        out.add_row(name, (inspect.getdoc(build) or "").partition("\n")[0])
    Console().print(out)


def show_method(name: str) -> None:
    """Print the card of a method and its options.

    Raises:
        OptionError: nobody knows the name.
    """
    from synaptree.methods import METHODS

    if name not in METHODS:
        raise unknown("method", name, METHODS)
    before, meanings, after = _card(inspect.getdoc(METHODS[name]) or "")
    options = _table("option", "default", "meaning")
    for option in inspect.signature(METHODS[name]).parameters.values():
        options.add_row(option.name, repr(option.default), Text(meanings.get(option.name, "")))
    console = Console()
    console.print(Text(name, "bold"))
    for part in (*_paragraphs(before), options, *_paragraphs(after)):
        console.print()
        console.print(part)


def _card(text: str) -> tuple[str, dict[str, str], str]:
    """Split a docstring into what stands before its options, the options, and what stands after them."""
    before, _, rest = text.partition("\nArgs:\n")
    options, _, after = rest.partition("\n\n")
    pairs = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", options, re.MULTILINE)
    return before, {name: " ".join(meaning.split()) for name, meaning in pairs}, after


def _paragraphs(text: str) -> list[Text]:
    """Join the lines of each paragraph; one begins after a blank line, and with a dash or `Some words: `."""
    parts = re.split(r"\n(?=\n|- |[A-Z][\w ]*: )", text)
    return [Text(" ".join(part.split())) for part in parts if part.strip()]


def show_models() -> None:
    """Print the networks of the zoo; parameters are counted as in the results, without batch norm."""
    import torch

    from synaptree.measure.count import count
    from synaptree.train import zoo

    out = _table("network", "input", "parameters", "what it is")
    out.columns[2].justify = "right"
    for name, card in zoo.MODELS.items():
        parameters = count(zoo.build(name), None, torch.zeros(1, *card.input_shape)).parameters()
        options = "".join(f" {key}={value!r}" for key, value in card.options.items())
        about = card.description + (f" Options:{options}." if options else "")
        out.add_row(name, " x ".join(map(str, card.input_shape)), f"{parameters:,}", Text(about))
    Console().print(out)


def show_data(name: str | None, root: Path | None) -> None:
    """Print the data sets and whether their files are there, without reading them."""
    for known in _names(name):
        source = sets.source(known)
        shape, classes = " x ".join(map(str, source.shape)), f"{source.classes} classes" if source.classes else ""
        # no table, which would break the paths
        typer.echo(f"{known:14} {shape:12} {classes:11}  {_there(source, sets.directory(known, root))}")


def _there(source: sets.Source, folder: Path) -> str:
    """Return how much of a data set is in its folder."""
    if source.format == "folders":
        return f"{len(class_names(folder))} class folders in {folder}"
    paths = [sets.locate(folder, file) for file in source.files]
    there = sum(path.exists() and path.stat().st_size == file.bytes for path, file in paths)
    return f"{there} of {len(paths)} files in {folder}" if paths else "part of scikit-learn"


def verify_data(name: str | None, root: Path | None) -> None:
    """Read every file of one data set, or of all that are there, and say which are damaged.

    Raises:
        DataError: a file is damaged or missing. Whole sets may be missing unless `name` asks for one,
            and so may the published test set where the training set serves in its stead.
    """
    names = _names(name)
    said: list[tuple[str, bool]] = []
    with steps(len(names)) as step:
        for known in names:
            step(f"reading {known}")
            said += _verified(known, root, alone=name is not None)
    for line, _ in said:
        typer.echo(line)
    wrong = sum(bad for _, bad in said)
    if wrong:
        raise DataError(f"{wrong} file(s) damaged or missing; `synaptree data download NAME` fetches them anew")


def _verified(name: str, root: Path | None, *, alone: bool) -> list[tuple[str, bool]]:
    """Return what there is to say of each file of a data set, and whether it is damaged, or missing and needed."""
    states, folder = sets.verify(name, root), sets.directory(name, root)
    if sets.source(name).format == "folders":
        return [_images(name, root, needed=alone)]
    if states and all(state.state == "missing" for state in states) and not alone:
        return [(f"{name}: not there ({folder})", False)]
    spared = {sets.SETS[name].files[-1].name} if sets.SETS[name].spare else set()
    said = []
    for state in states:
        optional = state.state == "missing" and state.path.name in spared
        words = f"{state.state}{' (one can do without it)' if optional else ''}"
        said.append((f"{name}: {words}: {state.path}", state.state != "ok" and not optional))
    return said or [(f"{name}: ok: part of scikit-learn", False)]


def _images(name: str, root: Path | None, *, needed: bool) -> tuple[str, bool]:
    """Read all images of a set, which have no published checksums; return how that went, and whether it failed."""
    from synaptree.train.data import load

    folder = sets.directory(name, root)
    if not needed and not class_names(folder):
        return f"{name}: not there ({folder})", False
    try:
        data = load(name, root, validation=0)
    except DataError as error:
        return str(error), True
    images = len(data.train.y) + len(data.test.y)
    return f"{name}: ok: all {images} images of {data.classes} classes can be read: {folder}", False


def download_data(name: str | None, root: Path | None, mirror: str | None) -> None:
    """Fetch what is missing or damaged of a data set, with a progress bar on a terminal.

    Raises:
        OptionError: no name, or nobody knows it.
        DataError: a file could not be fetched.
    """
    if name is None:
        raise OptionError(f"name the data set to download: {', '.join(sets.SETS)}")
    sets.download(name, root, mirror=mirror, progress=sys.stderr.isatty())
    typer.echo(f"{name}: complete ({sets.directory(name, root)})")


def _names(name: str | None) -> list[str]:
    if name is None:
        return list(sets.SETS)
    sets.source(name)  # raises for one that nobody knows
    return [name]


def _table(*columns: str) -> Table:
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        out.add_column(column, overflow="fold")
    out.columns[0].no_wrap = True
    return out
