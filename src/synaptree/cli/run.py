"""Carrying out a recipe: every run that is not done, in sight of a person who may stop it."""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import typer
from rich.console import Console

from synaptree.cli.show import show_results
from synaptree.cli.track import Tracking
from synaptree.core.errors import CheckpointError, NumericError, OptionError
from synaptree.experiment import Run, runs
from synaptree.recipe import Recipe
from synaptree.report.live import Display
from synaptree.report.picture import picture
from synaptree.results import write
from synaptree.train import together
from synaptree.train.alone import alone_in
from synaptree.train.data import load
from synaptree.train.loop import Interrupted
from synaptree.train.programme import Stage

__all__ = ["Screen", "Stop", "carry_out", "develop_runs", "made_folder", "stoppable"]

PIPE = int(getattr(signal, "SIGPIPE", 13))


class Stop:
    """Called, it says whether a signal asked to stop.

    Attributes:
        signal: the number of the one that did; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Say whether one did."""
        return self.signal is not None

    @property
    def status(self) -> int:
        """The exit status that shells know it by: 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads on."""
        return 128 + (self.signal or signal.SIGINT)


class Screen(Console):
    """Where runs are shown; where nobody reads on, as in `| head`, it falls silent and asks to stop.

    Attributes:
        stop: that is asked; None: nobody.
    """

    stop: Stop | None = None

    def on_broken_pipe(self) -> None:
        """Fall silent, and let the run reach its checkpoint."""
        with suppress(SystemExit):
            super().on_broken_pipe()
        if self.stop is not None:
            self.stop.signal = PIPE


def carry_out(
    recipe: Recipe, out: Path, *, data: Path | None = None, seeds: Sequence[int] | None = None,
    record: Path | None = None, fresh: bool = False, resume: bool = False, every: float = 60.0,
    all_rounds: bool = False, track: Sequence[str] = (),
) -> None:  # fmt: skip
    """Run what a recipe asks for, then show table, picture and files.

    Args:
        recipe: the experiment.
        out: folder for networks, results and the picture.
        data: where the data sets lie.
        seeds: in place of the recipe's own.
        record: folder that gets copies of the result files.
        fresh: do again what is done already.
        resume: there must be something to go on from.
        every: seconds between checkpoints.
        all_rounds: show every round in the table.
        track: where figures go as well: `tensorboard`, `tensorboard:DIR`, `mlflow`, `mlflow:URI`.

    Raises:
        OptionError: there is nothing to go on from, it should both be gone on from and forgotten, another process is at
            work on the same runs, or `record` is no folder.
        typer.Exit: with status 130 or 143, when a signal asked to stop, 141 when nobody read on; a checkpoint is left.
    """
    made_folder(record)
    console = Screen(quiet=not together.first())
    wanted, tracking = runs(recipe, out, seeds), Tracking(track, out, fresh=fresh)
    if resume:
        _require_begun(wanted, fresh)
    if fresh:
        load(recipe.data, data, validation=recipe.validation)  # nothing is forgotten where it could not run
        _forget(wanted)
    together.wait()
    with stoppable() as stop:
        console.stop = stop
        try:
            develop_runs(wanted, console, data, stop, every, tracking)
        except Interrupted:
            _tell(f"stopped; what was reached is kept in {out}. To go on:\n  {_again()}", err=True)
            raise typer.Exit(stop.status) from None
        except (CheckpointError, NumericError, OSError) as error:
            if any(run.checkpoint.exists() for run in wanted) and (advice := _advice(error)):
                error.add_note(f"what was reached is kept in {out}. {advice}")
            raise
    if not together.first():
        return
    finished = [result for run in wanted if (result := run.done())]
    show_results(console, finished, all_rounds=all_rounds)
    picture(finished, out / "picture.png")
    if record:
        for result in finished:
            write(result, record)
    typer.echo(f"\npicture: {out / 'picture.png'}")
    typer.echo(f"results: {len(finished)} in {out}/*/*.json")
    if record:
        typer.echo(f"copies:  {record}")


def made_folder(folder: Path | None) -> None:
    """Make a folder that is written to after hours, if there is to be one.

    Raises:
        OptionError: it cannot be made.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--record {folder}: wanted a folder, which cannot be made ({error.strerror})") from None


def _forget(wanted: Sequence[Run]) -> None:
    """Forget runs, all or, where another process is at work on one, none of them."""
    with ExitStack() as held:
        for run in wanted:
            held.enter_context(alone_in(run.folder))
        for run in wanted:
            run.forget()


def _advice(error: Exception) -> str:
    """Return what can be done about what stopped a run, where its own words do not say it."""
    if isinstance(error, NumericError):
        return "The same command ends there again; a smaller lr, as with --set dense.lr=VALUE, starts anew"
    if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
        return f"To go on, once it can:\n  {_again()}"
    return ""


def _require_begun(wanted: Sequence[Run], fresh: bool) -> None:
    """Raise an OptionError where none of the runs is done or has a checkpoint."""
    if fresh:
        raise OptionError("--resume goes on from what is there, --fresh forgets it; give one of them")
    if not any(run.checkpoint.exists() or run.done() for run in wanted):
        places = [str(run.checkpoint) for run in wanted]
        more = f" and {len(places) - 3} more places" if len(places) > 3 else ""
        raise OptionError(
            f"--resume: nothing to go on from; no checkpoint and no result lies at {', '.join(places[:3])}{more}. "
            "Leave --resume out to begin, or give the recipe, the --set values and the --out folder it was begun with"
        )


def _tell(text: str, *, err: bool = False) -> None:
    if together.first():
        typer.echo(text, err=err)


def _again() -> str:
    """Return the command that goes on."""
    if together.size() > 1:
        return "the same torchrun command, with as many processes as you like"
    return shlex.join(["synaptree", *(word for word in sys.argv[1:] if word != "--fresh")])


def develop_runs(
    wanted: Sequence[Run], console: Console, data: Path | None, stop: Callable[[], bool], every: float,
    tracking: Tracking,
) -> None:  # fmt: skip
    """Run what is not done, one after the other."""
    left = {number: run for number, run in enumerate(wanted, 1) if run.done() is None}
    with Display(console, runs=len(wanted), epochs=sum(run.epochs for run in left.values())) as display:
        if len(left) < len(wanted):
            display.say(f"{len(wanted) - len(left)} of {len(wanted)} runs are done already (--fresh does them again)")
        for number, run in enumerate(wanted, 1):
            if number not in left:
                run.tidy()
        for number, run in left.items():
            if together.anyone(stop()):
                raise Interrupted
            with tracking.told(run, display.say) as news:
                _one(run, number, display, data, stop, every, news)


def _one(
    run: Run, number: int, display: Display, data: Path | None, stop: Callable[[], bool], every: float,
    news: Callable[[], None],
) -> None:  # fmt: skip
    resumed = run.checkpoint.exists()

    def watch(stage: Stage, _: object) -> None:
        display.show(stage, run.network, run.log)
        news()

    def say(line: str) -> None:
        display.say(f"{run.title}: {line}")

    for index, stage in enumerate(run.run(data, resume=True, stop=stop, watch=watch, say=say, every=every)):
        if index == 0:
            display.begin(
                number, run.title, run.recipe.count, len(run.log["rounds"]), len(run.log.get("health", []))
            )
            if resumed:
                display.say(f"{run.title}: goes on from update {run.network.step} (--fresh starts over)")
        watch(stage, None)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Yield what says whether SIGINT or SIGTERM asked to stop; a second signal acts as ever."""
    stop = Stop()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.signal = number
        restore()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        restore()
