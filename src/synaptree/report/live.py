"""What a person sees while runs go on: where they are, on a terminal, and a line for every round."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from synaptree.train.network import Network
from synaptree.train.programme import Log, Stage, Train

__all__ = ["Display", "describe"]

SPEED_OVER = 1800.0  # seconds; the time left follows from the epochs within them


class Display:
    """Shows runs going on, between `with`: lines that stay, and on a terminal a part that moves.

    Attributes:
        console: where to; what is no terminal gets the lines alone.
    """

    def __init__(self, console: Console, *, runs: int, epochs: int) -> None:
        """Begin with nothing done.

        Args:
            console: where to.
            runs: how many there are in all, those that are done already included.
            epochs: epochs of training ahead, over all runs that are not done.
        """
        self.console = console
        self._runs, self._before = runs, 0
        self._number, self._title, self._rounds, self._told, self._warned = 0, "", 0, 0, 0
        self._where = Text()
        self._bar = Progress(
            BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"),
            console=console, speed_estimate_period=SPEED_OVER,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=epochs)
        self._live = Live(get_renderable=self._render, console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        """Start the moving part."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the moving part away; the lines stay."""
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays, whole however narrow the terminal is."""
        self.console.print(Text(line), soft_wrap=True)

    def begin(self, number: int, title: str, rounds: int, told: int, warned: int = 0) -> None:
        """Go on to another run.

        Args:
            number: of the run, from 1.
            title: its name.
            rounds: the last round's number.
            told: how many rounds it has recorded already.
            warned: how many findings of its health.
        """
        self._before = int(self._bar.tasks[0].completed)
        self._number, self._title, self._rounds = number, title, rounds
        self._told, self._warned = told, warned

    def show(self, stage: Stage, network: Network, log: Log) -> None:
        """Show where the run at work is, and print the findings and rounds that are new in its log."""
        where = f"run {self._number} of {self._runs}: {self._title}"
        health = log.get("health", [])
        for entry in health[self._warned :]:
            self.say(f"[{self._number}/{self._runs}] {self._title}: update {entry['step']}: {entry['text']}")
        self._warned = len(health)
        for entry in log["rounds"][self._told :]:
            self.say(
                f"[{self._number}/{self._runs}] {self._title}: round {entry['round']} of {self._rounds}, "
                f"density {100 * entry['density']:.3g} %, "
                f"validation accuracy {100 * entry['validation_accuracy']:.2f} %, {entry['bytes']:,} bytes"
            )
        self._told = len(log["rounds"])
        self._bar.update(self._task, completed=self._before + len(log["epochs"]))
        self._where = Text(f"{where}\n{describe(stage, network, log, self._rounds)}")

    def _render(self) -> Group:
        return Group(self._where, self._bar)


def describe(stage: Stage, network: Network, log: Log, rounds: int) -> str:
    """Say in a line where a run is: round, stage, epoch, density, and the last validation accuracy."""
    words = [f"round {network.round} of {rounds}"]
    if isinstance(stage, Train):
        epochs = stage.options.epochs
        words.append(f"{stage.name}, epoch {min(int(network.within.get('epoch', 0)) + 1, epochs)} of {epochs}")
    else:
        words.append(type(stage).__name__.lower())
    words.append(f"density {100 * network.topology.density():.3g} %")
    if log["epochs"]:
        words.append(f"validation {100 * log['epochs'][-1]['validation_accuracy']:.2f} %")
    return " · ".join(words)
