"""Comparing methods: what was recorded of a group of recipes, what is missing, and running it."""

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import track

from synaptree.cli.groups import Group, Missing, duration, listed, missing, named, select
from synaptree.cli.latency import measured, wanted
from synaptree.cli.report import write_report
from synaptree.cli.run import Screen, develop_runs, stoppable
from synaptree.cli.track import Tracking
from synaptree.core.errors import DataError, OptionError, SynaptreeError
from synaptree.experiment import Run
from synaptree.report import standings_table, which
from synaptree.report.group import Gathered, Task, entrants, gather, remarks, tasks
from synaptree.report.latency import FILE, Latency, read_latencies, write_latencies
from synaptree.report.standings import LEVELS, Level, standings
from synaptree.report.standings_picture import picture
from synaptree.results import Result, write
from synaptree.train.loop import Interrupted

__all__ = ["Asked", "by_group", "compare", "recorded", "tables_of"]

FAILED = 1  # the exit status where a run failed and others went on
EVERY = 60.0  # seconds between checkpoints


@dataclass(frozen=True)
class Asked:
    """What `synaptree compare` was asked for.

    Attributes:
        words: groups, models, data sets, recipes, or files of recipes; none means all that have results.
        out: folder of the runs' files.
        results: folder of recorded results.
        data: where the data sets lie.
        run: whether what is missing is run first.
        measure: whether the latency of networks without one is measured.
        full: whether the long forms of recipes count as missing.
        seeds: in place of the recipes' own, of what is missing.
        levels: densities about which networks are compared.
        every: whether every round is shown.
        picture: whether pictures are drawn, in `compare` under the runs' folder; they are where something is run.
        form: "table", "markdown", "json", or "which": the answers in place of tables.
        page: file of a page of the same results, as `synaptree report` writes it.
    """

    words: Sequence[str] = ()
    out: Path = Path("runs")
    results: Path = Path("results")
    data: Path | None = None
    run: bool = False
    measure: bool = False
    full: bool = False
    seeds: Sequence[int] | None = None
    levels: Sequence[float] = LEVELS
    every: bool = False
    picture: bool = False
    form: str = "table"
    page: Path | None = None


def compare(asked: Asked) -> None:
    """Run what is missing if asked to, then print tables, draw pictures if asked to, and say what is missing.

    Raises:
        OptionError: nobody knows a group.
        DataError: there are no results.
        typer.Exit: with status 1 where a run failed; 130 or 143 where a signal asked to stop.
    """
    known, notes = listed()
    groups = select(asked.words, known, gather([asked.results] if asked.results.exists() else []).results)
    failed: list[str] = []
    if asked.run:
        if not asked.words:
            raise OptionError("--run needs to know what: name a group, as `synaptree compare lenet5-mnist --run`")
        failed = _run(groups, asked)
    found = [(group, _of(group, asked)) for group in groups]
    if not any(gathered.results for _, gathered in found):
        _say_missing([(group, missing(group, (), asked.out, full=asked.full, seeds=asked.seeds)) for group in groups])
        raise DataError(f"no result files in {asked.results} or {asked.out} for {_names(groups)}; --run makes them")
    if asked.measure:
        _measure(found, asked)
    for group, gathered in found:
        _show(group, gathered, asked)
    if asked.page is not None:
        write_report([file for _, gathered in found for file in gathered.files], asked.page)
    for note in dict.fromkeys([*notes, *(note for _, gathered in found for note in gathered.notes), *failed]):
        typer.echo(note, err=True)
    if failed:
        raise typer.Exit(FAILED)


def _names(groups: Sequence[Group]) -> str:
    return ", ".join(group.name for group in groups) or "any recipe"


def _of(group: Group, asked: Asked) -> Gathered:
    """Return the recorded results of a group, and those that runs of its recipes left anywhere in the runs' folder."""
    hashes = {run.hash for one in missing(group, (), asked.out, full=True, seeds=asked.seeds) for run in one.runs}
    left = [file for file in sorted(asked.out.rglob("*.json")) if file.stem.rpartition("-")[2] in hashes]
    gathered = gather([place for place in (asked.results, *left) if place.exists()])
    mine = [(result, file) for result, file in zip(gathered.results, gathered.files, strict=True) if result in group]
    return Gathered(tuple(result for result, _ in mine), gathered.notes, tuple(file for _, file in mine))


def recorded(results: Path) -> dict[Task, list[Level]]:
    """Return the levels of every task of the recorded results, with latencies."""
    return tables_of(gather([results]).results, read_latencies(results))


def tables_of(
    results: Sequence[Result], latencies: Iterable[Latency], levels: Sequence[float] = LEVELS, every: bool = False
) -> dict[Task, list[Level]]:
    """Return the levels of every task of some results."""
    known = list(latencies)
    return {
        task: standings(task, entrants(group), known, levels=levels, every=every)
        for task, group in tasks(results).items()
    }


def by_group(left: Iterable[Missing]) -> dict[str, list[str]]:
    """Return what is missing by model and data: the recipe, and how many of its runs where others are done."""
    found: dict[str, list[str]] = {}
    for part in left:
        count = f" (missing {len(part.runs)} of {part.total} runs)" if len(part.runs) < part.total else ""
        found.setdefault(part.of.group, []).append(part.of.name + count)
    return found


def _show(group: Group, gathered: Gathered, asked: Asked) -> None:
    found = tables_of(gathered.results, read_latencies(asked.results), asked.levels, asked.every)
    done = {result.config_hash for result in gathered.results if result.status == "done"}
    left = missing(group, done, asked.out, full=asked.full, seeds=asked.seeds)
    match asked.form:
        case "json":
            typer.echo(standings_table.json([level for levels in found.values() for level in levels]))
            return
        case "markdown":
            for task, levels in found.items():
                typer.echo(f"## {task.title}\n\n{standings_table.markdown(levels)}")
            return
        case "which":
            typer.echo(which.markdown(found, by_group(left)))
            return
    console = Console()
    if len(found) > 1:
        typer.echo(f"{group.name}: {len(found)} tables, since other data, models or test sets do not compare")
    for levels in found.values():
        if levels:
            console.print()
            console.print(standings_table.table(levels, console.width))
    for remark in remarks(gathered.results):
        typer.echo(remark)
    if asked.run or asked.picture:
        _draw(found, asked.out / "compare")
    _say_missing([(group, left)])


def _draw(found: dict[Task, list[Level]], folder: Path) -> None:
    for number, (task, levels) in enumerate(found.items()):
        if levels:
            twins = sum(other.group == task.group for other in list(found)[:number])
            file = folder / f"{task.group}{f'-{twins + 1}' if twins else ''}.png"
            picture(levels, file)
            typer.echo(f"picture: {file}")


def _say_missing(left: Sequence[tuple[Group, Sequence[Missing]]]) -> None:
    for group, parts in left:
        if not parts:
            continue
        typer.echo(f"\n{group.name}: runs without a result")
        for one in parts:
            typer.echo(f"  {one}")
        known = [one.seconds for one in parts]
        took = "" if None in known else f"   # about {duration(sum(seconds or 0 for seconds in known))} in all"
        typer.echo(f"to run them:\n  {shlex.join(['synaptree', 'compare', group.name, '--run'])}{took}")


def _run(groups: Sequence[Group], asked: Asked) -> list[str]:
    """Run what has no result yet, recipe by recipe; return what failed, a sentence each.

    Raises:
        typer.Exit: a signal asked to stop; a checkpoint is left.
    """
    console, failed = Screen(), []
    with stoppable() as stop:
        console.stop = stop
        for group in groups:
            done = {result.config_hash for result in _of(group, asked).results if result.status == "done"}
            for part in missing(group, done, asked.out, full=asked.full, seeds=asked.seeds):
                typer.echo(str(part))
                try:
                    failed += _run_part(part, console, asked, stop)
                except Interrupted:
                    again = shlex.join(["synaptree", *sys.argv[1:]])
                    typer.echo(f"stopped; what was reached is kept in {asked.out}. To go on:\n  {again}", err=True)
                    raise typer.Exit(stop.status) from None
    return failed


def _run_part(part: Missing, console: Console, asked: Asked, stop: Callable[[], bool]) -> list[str]:
    """Run what is missing of a recipe, and record it; a run that fails leaves the other seeds alone."""
    left, failed = _with_parents(part.runs, asked.out), []
    while left:
        try:
            develop_runs(left, console, asked.data, stop, EVERY, Tracking((), asked.out, fresh=False))
        except (SynaptreeError, OSError) as error:
            culprit = next(run for run in left if run.done() is None)
            failed.append(f"failed: {part.of.name}, {culprit.title}: {error}")
            left = [run for run in left if run.seed != culprit.seed and run.done() is None]
            if isinstance(error, DataError):  # without its data no seed can run
                break
        else:
            break
        finally:
            _record(part.runs, asked.results)
    return failed


def _with_parents(wanted: Sequence[Run], out: Path) -> list[Run]:
    """Return the runs, each control after the method's own run whose networks it starts from."""
    chosen: dict[str, Run] = {}
    for run in wanted:
        parent = Run(run.recipe, run.seed, None, run.out)
        if run.control is not None and parent.hash not in chosen:
            if parent.done() is None:
                typer.echo(
                    f"{parent.title}: recorded, but its networks are not in {out}; done again, for the controls begin "
                    "with them. The recorded result stays."
                )
            chosen[parent.hash] = parent
        chosen[run.hash] = run
    return list(chosen.values())


def _record(wanted: Iterable[Run], results: Path) -> None:
    for run in wanted:
        if (finished := run.done()) is not None:
            write(finished, results)


def _measure(found: Sequence[tuple[Group, Gathered]], asked: Asked) -> None:
    """Measure the networks of the rows whose files are there, and keep the figures beside the results."""
    results = {result.config_hash: result for _, gathered in found for result in gathered.results}
    known = read_latencies(asked.results)
    levels = [
        level
        for _, gathered in found
        for levels in tables_of(gathered.results, known, asked.levels, asked.every).values()
        for level in levels
    ]
    folders = named(results, asked.out)
    what = wanted([row for level in levels for row in level.rows], results, folders, known)
    if not what:
        typer.echo(f"nothing to measure: no files of networks in {asked.out} that are not measured yet", err=True)
        return
    console, timed = Console(stderr=True), 0
    for new in track(
        measured(what, lambda line: typer.echo(line, err=True)), "measuring", total=len(what), console=console,
        disable=not console.is_terminal, transient=True,
    ):  # fmt: skip
        if new:
            write_latencies(asked.results, new)
            timed += 1
    typer.echo(f"measured: {timed} of {len(what)} networks; kept in {asked.results / FILE}", err=True)
