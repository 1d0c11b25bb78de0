"""Carrying out a sweep: its trials, what they reached, and the one to take."""

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import typer
from rich.console import Console

from synaptree.cli.imports import import_file
from synaptree.cli.run import made_folder, stoppable
from synaptree.core.errors import SynaptreeError
from synaptree.recipe import find_recipe, load_recipe
from synaptree.report.tables import terminal
from synaptree.sweep import Candidate, Outcome, Space, Trial, best, front, load_space, recipe_text, sweep, trials
from synaptree.train.loop import Interrupted

__all__ = ["carry_out_sweep", "command_with_controls"]

NOT_BY_TEST = "Chosen by validation, never by test."


def carry_out_sweep(
    recipe: str, space_file: Path, out: Path | None, *, data: Path | None = None, seeds: Sequence[int] | None = None,
    samples: int | None = None, parallel: int | None = None, address: str | None = None, record: Path | None = None,
    every: float = 60.0, imports: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Run the trials of a space, then show what each reached, and the best one or the front.

    Args:
        recipe: file or name of the recipe that is changed.
        space_file: TOML file of the space.
        out: folder for the runs; by default the one `synaptree run` would take.
        data: where the data sets lie.
        seeds: in place of the recipe's own.
        samples: in place of the space's own.
        parallel: runs at a time.
        address: of a running Ray cluster.
        record: folder that gets copies of the result files.
        every: seconds between checkpoints.
        imports: Python files with methods of one's own, which every worker needs.

    Raises:
        typer.Exit: with status 130 or 143, when a signal asked to stop; checkpoints are left.
        OptionError: `record` is no folder.
        SynaptreeError: no trial reached its end.
    """
    made_folder(record)
    file = find_recipe(recipe)
    space = load_space(space_file).with_samples(samples)
    tried = trials(file, space)
    base = load_recipe(file)
    out = out or Path("runs") / base.method / base.name
    typer.echo(f"{len(tried)} trials of {base.name}, recipes in {out / 'trials'}")
    with stoppable() as stop:
        try:
            outcome = sweep(
                tried, out, data=data, seeds=seeds, parallel=parallel, address=address, every=every, stop=stop,
                say=typer.echo, record=record, prepare=partial(import_once, [file.absolute() for file in imports]),
            )  # fmt: skip
        except Interrupted:
            again = shlex.join(["synaptree", *sys.argv[1:]])
            typer.echo(f"stopped; what was reached is kept in {out}. To go on:\n  {again}", err=True)
            raise typer.Exit(stop.status) from None
    if not outcome.results:
        name, reason = next(iter(outcome.failed.items()))
        raise SynaptreeError(f"none of {len(tried)} trials reached its end; {name}: {reason}")
    console = Console()
    chosen = _show(console, outcome, space)
    if chosen is not None:
        command = command_with_controls(chosen.trial, out, seeds=seeds or (), data=data, imports=imports)
        typer.echo(f"with its controls:\n  {command}")
        typer.echo(f"its recipe:\n\n{recipe_text(chosen.trial.recipe)}")
    if record:
        typer.echo(f"copies:  {record}")


def import_once(files: Sequence[Path]) -> None:
    """Run Python files, but none again that this worker has run for another trial."""
    for file in files:
        if file.stem not in sys.modules:
            import_file(file)


def _show(console: Console, outcome: Outcome, space: Space) -> Candidate | None:
    """Print the table of trials, what failed, and the choice; return it."""
    found = outcome.candidates
    chosen = best(found, space.search.max_density)
    shown = [chosen if chosen and chosen.trial == c.trial else c for c in found if c.last]
    console.print()
    console.print(_table("Trials", shown, list(space.domains), bold=chosen))
    for name, reason in outcome.failed.items():
        typer.echo(f"failed: {name}: {reason}")
    if space.search.kind == "pareto":
        rows = front(found, space.search.max_density)
        console.print()
        console.print(_table("Front: no other network is both sparser and better", rows, list(space.domains)))
    limit = "" if space.search.max_density is None else f" of density {space.search.max_density:g} or less"
    if chosen is None:
        typer.echo(f"\nno network{limit}: let the method cut more, or raise search.max_density")
        return None
    typer.echo(f"\nbest{limit} by validation: {chosen.trial.name}, round {chosen.round}")
    return chosen


def command_with_controls(
    trial: Trial, out: Path, *, seeds: Sequence[int] = (), data: Path | None = None, imports: Sequence[Path] = ()
) -> str:  # fmt: skip
    """Return the command that finds the trial's runs done, and runs their controls beside them."""
    words: list[object] = ["synaptree"]
    for file in imports:
        words += ["--import", file]
    words += ["run", out / "trials" / f"{trial.name}.toml", "--out", out]
    for seed in seeds:
        words += ["--seed", seed]
    words += ["--data", data] if data is not None else []
    return shlex.join(map(str, words))


def _table(title: str, rows: Sequence[Candidate], keys: Sequence[str], bold: Candidate | None = None) -> object:
    columns = [*keys, "round", "validation %", "density %", "test %", "seconds"]
    seeds = rows[0].seeds if rows else 0
    caption = f"Means over {seeds} seed{'s' * (seeds != 1)}. {NOT_BY_TEST}"
    return terminal(title, columns, [(_cells(row, keys), row == bold) for row in rows], caption, words=keys)


def _cells(row: Candidate, keys: Sequence[str]) -> list[str]:
    values = [str(row.trial.values[key]) for key in keys]
    test = "-" if row.test is None else f"{100 * row.test:.2f}"
    numbers = [f"{100 * row.validation:.2f}", f"{100 * row.density:.2f}", test, f"{row.seconds:.1f}"]
    return [*values, str(row.round), *numbers]
