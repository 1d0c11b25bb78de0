"""Carrying out a recipe: every run that is not done, in sight of a person who may stop it."""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType

import typer
from rich.console import Console

from synaptree.cli.show import show_results
from synaptree.experiment import Run, runs
from synaptree.recipe import Recipe
from synaptree.report.live import Display
from synaptree.report.picture import picture
from synaptree.results import write
from synaptree.train.data import load
from synaptree.train.loop import Interrupted
from synaptree.train.programme import Stage

__all__ = ["carry_out", "stoppable"]

STOPPED = 130  # the exit status of what Ctrl-C stopped


def carry_out(
    recipe: Recipe, out: Path, *, data: Path | None = None, seeds: Sequence[int] | None = None,
    record: Path | None = None, fresh: bool = False, all_rounds: bool = False,
) -> None:  # fmt: skip
    """Run what a recipe asks for, then show table, picture and files.

    Args:
        recipe: the experiment.
        out: folder for networks, results and the picture.
        data: where the data sets lie.
        seeds: in place of the recipe's own.
        record: folder that gets copies of the result files.
        fresh: do again what is done already.
        all_rounds: show every round in the table.

    Raises:
        typer.Exit: with status 130, when a signal asked to stop; a checkpoint is left.
    """
    console = Console()
    wanted = runs(recipe, out, seeds)
    if fresh:
        load(recipe.data, data, validation=recipe.validation)  # nothing is forgotten where it could not run
        for run in wanted:
            run.forget()
    with stoppable() as stop:
        try:
            _develop(wanted, console, data, stop)
        except Interrupted:
            again = shlex.join(["synaptree", *(word for word in sys.argv[1:] if word != "--fresh")])
            typer.echo(f"stopped; what was reached is kept in {out}. To go on:\n  {again}", err=True)
            raise typer.Exit(STOPPED) from None
    finished = [result for run in wanted if (result := run.done())]
    show_results(console, finished, all_rounds=all_rounds)
    picture(finished, out / "picture.png")
    typer.echo(f"\npicture: {out / 'picture.png'}")
    typer.echo(f"results: {len(finished)} in {out}/*/*.json")
    if record:
        for result in finished:
            write(result, record)
        typer.echo(f"copies:  {record}")


def _develop(wanted: Sequence[Run], console: Console, data: Path | None, stop: Callable[[], bool]) -> None:
    """Run what is not done, one after the other."""
    left = {number: run for number, run in enumerate(wanted, 1) if run.done() is None}
    with Display(console, runs=len(wanted), epochs=sum(run.epochs for run in left.values())) as display:
        if len(left) < len(wanted):
            display.say(f"{len(wanted) - len(left)} of {len(wanted)} runs are done already (--fresh does them again)")
        for number, run in left.items():
            if stop():
                raise Interrupted
            _one(run, number, display, data, stop)


def _one(run: Run, number: int, display: Display, data: Path | None, stop: Callable[[], bool]) -> None:
    resumed = run.checkpoint.exists()

    def watch(stage: Stage, _: object) -> None:
        display.show(stage, run.network, run.log)

    for index, stage in enumerate(run.run(data, resume=True, stop=stop, watch=watch)):
        if index == 0:
            display.begin(number, run.title, run.recipe.count, len(run.log["rounds"]))
            if resumed:
                display.say(f"{run.title}: goes on from update {run.network.step} (--fresh starts over)")
        watch(stage, None)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM asked to stop; a second signal acts as ever."""
    asked = Event()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        restore()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        restore()
