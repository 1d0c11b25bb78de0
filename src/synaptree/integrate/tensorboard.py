"""TensorBoard: figures of a developing network as event files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from synaptree.core.errors import OptionError
from synaptree.train.events import Points, Status

__all__ = ["TensorBoard"]

_PARAMETERS = "_hparams_/session_start_info"
"""Tag under which TensorBoard keeps what a run was started with."""


class TensorBoard:
    """A tracker that writes TensorBoard's event files; opened again on the same folder, it goes on in the same run.

    Args:
        folder: of the run; made if it is missing. Its parent is what `tensorboard --logdir` is given.
        fresh: whether what lies there is to be forgotten: files stay, and TensorBoard shows their points no more.

    Raises:
        OptionError: TensorBoard is not installed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     tracker = TensorBoard(folder)
        ...     tracker.scalars({"density": 0.1}, step=100)
        ...     tracker.close()
        ...     print(len(list(Path(folder).iterdir())), "file")
        1 file
    """

    def __init__(self, folder: str | Path, *, fresh: bool = False) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionError(f"TensorBoard is not installed ({error}): pip install 'synaptree[track]'") from None
        Path(folder).mkdir(parents=True, exist_ok=True)
        known = {} if fresh else _known(Path(folder))
        self._points = Points(known.get)
        # readers drop all points before such a mark that are not older than its step
        self._writer = SummaryWriter(str(folder), purge_step=0 if fresh else None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write figures, by name, at a step."""
        for name in self._points.new(values, step):
            self._writer.add_scalar(name, values[name], step)
        self._writer.flush()

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """Write how values of any shape, one at least, are distributed at a step."""
        for new in self._points.new([name], step):
            self._writer.add_histogram(new, values.detach().flatten().cpu(), step)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Write what the network is trained with, for the tab of hyperparameters; the first time counts."""
        from torch.utils.tensorboard.summary import hparams

        if not self._points.new([_PARAMETERS], 0):
            return
        plain = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in values.items()}
        for part in hparams(plain, {"test_accuracy": 0, "validation_accuracy": 0, "density": 0}):
            self._writer._get_file_writer().add_summary(part)  # `add_hparams` would make a run of its own

    def close(self, status: Status = "done") -> None:  # noqa: ARG002 - event files have none
        """Write what is left."""
        self._writer.close()


def _known(folder: Path) -> dict[str, list[int]]:
    """Return the steps of all points in a folder, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("*tfevents*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    known = {tag: [event.step for event in events.Scalars(tag)] for tag in tags["scalars"]}
    known |= {tag: [event.step for event in events.Histograms(tag)] for tag in tags["histograms"]}
    return known | ({_PARAMETERS: [0]} if _PARAMETERS in events.summary_metadata else {})
