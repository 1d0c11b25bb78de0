"""`--track`: what a run's figures go to, beside the result files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from synaptree.core.errors import unknown
from synaptree.experiment import Run
from synaptree.integrate.mlflow import MLflow
from synaptree.integrate.tensorboard import TensorBoard
from synaptree.train import together
from synaptree.train.events import RunEvents, Status, Tracker, Unfailing
from synaptree.train.loop import Interrupted

__all__ = ["Tracking"]

Open = Callable[[Run], Tracker]


class Tracking:
    """The trackers a command was asked for.

    Args:
        wanted: texts such as `tensorboard`, `tensorboard:DIR`, `mlflow` and `mlflow:URI`.
        out: folder of the runs; event files lie in `tensorboard` under it where no other place is named.
        fresh: whether trackers begin anew, as runs do.

    Raises:
        OptionError: nobody knows a tracker of that name.
    """

    def __init__(self, wanted: Sequence[str], out: Path, *, fresh: bool) -> None:
        self._open = [_opener(text, out, fresh) for text in wanted]
        self._begun = False

    @contextmanager
    def told(self, run: Run, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Open trackers and yield what tells them the news of a run; none can stop it once runs go on.

        Args:
            run: that goes on within the block.
            say: gets a sentence where a tracker fails.

        Raises:
            OptionError: a tracker cannot be opened for the first run.
        """
        stories = [RunEvents(Unfailing(tracker, say), run.config) for tracker in self._opened(run, say)]

        def news() -> None:
            for story in stories:
                story.show(run.network, run.log)

        status: Status = "failed"
        try:
            yield news
            status = "done"
        except Interrupted:
            status = "interrupted"
            raise
        finally:
            for story in stories:
                story.end(run.log, status)

    def _opened(self, run: Run, say: Callable[[str], None]) -> list[Tracker]:
        trackers: list[Tracker] = []
        for open_tracker in self._open if together.first() else ():
            try:
                trackers.append(open_tracker(run))
            except Exception as error:  # hours of other runs lie behind: a server that is gone must not end it
                if not self._begun:
                    raise
                say(f"{run.title} is not tracked: {error}")
        self._begun = True
        return trackers


def _opener(text: str, out: Path, fresh: bool) -> Open:
    name, _, place = text.partition(":")
    match name:
        case "tensorboard":
            folder = Path(place) if place else out / "tensorboard"
            return lambda run: TensorBoard(folder / run.folder.name, fresh=fresh)
        case "mlflow":
            return lambda run: MLflow(run.recipe.name or run.recipe.method, run.folder.name, place or None, fresh=fresh)
    raise unknown("tracker", name, ("tensorboard", "mlflow"))
