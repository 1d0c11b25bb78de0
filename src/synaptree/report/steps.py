"""What a person sees while a command works for more than a moment: a bar on a terminal, nothing elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["steps"]


class Rate(ProgressColumn):
    """Steps done in a second, or in a minute where that is less than one."""

    def render(self, task: Task) -> Text:
        """Return it for a task; nothing before two steps are done."""
        return Text(_rate(task.speed))


def _rate(speed: float | None) -> str:
    """Return steps per second as a person says it.

    >>> _rate(None), _rate(2.5), _rate(0.1)
    ('', '2.5/s', '6.0/min')
    """
    if not speed:
        return ""
    return f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min"


@contextmanager
def steps(total: int, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """Yield a function that says which step begins; the one before it is done then.

    A terminal shows step, rate, time passed and time left, and is left as it was. Print after the block, not in it:
    what is printed by other means than this console's lands in the middle of the bar.

    Args:
        total: how many there are.
        console: where to; the error stream by default, so that what a command writes can be read by another.

    >>> with steps(2) as step:
    ...     step("reading")
    ...     step("writing")
    """
    console = console or Console(stderr=True)
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn(), Rate(),
        TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
        redirect_stdout=False,
    )  # fmt: skip
    begun = False
    with bar:
        task = bar.add_task("", total=total)

        def step(name: str) -> None:
            nonlocal begun
            bar.update(task, advance=int(begun), description=name, refresh=True)
            begun = True

        yield step
