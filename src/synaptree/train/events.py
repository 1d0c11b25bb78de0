"""What happens to a network while it develops, told to trackers such as TensorBoard and MLflow."""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor
from torch.optim import Optimizer

from synaptree.core.attach import Attached
from synaptree.core.topology import Topology

if TYPE_CHECKING:
    from synaptree.train.network import Network
    from synaptree.train.programme import Log

__all__ = ["Points", "RunEvents", "Status", "Tracker", "Unfailing", "ages", "connections", "flat", "track"]

Status = Literal["done", "interrupted", "failed"]

EPOCH = ("loss", "validation_accuracy", "density", "round", "seconds")
ROUND = (
    "density", "validation_accuracy", "test_accuracy", "published_accuracy", "born", "died", "weights_alive",
    "parameters_alive", "macs_alive", "bytes",
)  # fmt: skip


class Tracker(Protocol):
    """Keeps figures for people to look at; a point that it holds already is not written again."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep figures, by name, at a step."""

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """Keep how values of any shape, one at least, are distributed at a step."""

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Keep what the network is trained with: names to plain values."""

    def close(self, status: Status = "done") -> None:
        """Write what is left; the tracker may be opened again under the same name."""


def track(
    tracker: Tracker, on: Attached | Topology, step: int | None = None, *, optimizer: Optimizer | None = None,
    **figures: float,
) -> None:  # fmt: skip
    """Tell a tracker how the connections are doing, and any figures of one's own.

    Written are `density`, `density_of/LAYER`, `births` and `deaths` since the topology was made, the histograms
    `age/LAYER` of updates since birth, `lr` of the optimizer's first group, and `figures`.

    Args:
        tracker: keeps them.
        on: what `attach` returned, or a topology.
        step: of the points; the topology's by default.
        optimizer: has the learning rate; that of `on` by default.
        figures: name -> number, as `loss=0.5`.

    Example:
        >>> class Printer:
        ...     def scalars(self, values, step): print(step, values)
        ...     def histogram(self, name, values, step): print(step, name, values.tolist())
        >>> topology = Topology()
        >>> topology.add("fc.weight", (1, 2))
        >>> track(Printer(), topology, 7, loss=0.5)
        7 {'loss': 0.5, 'density': 1.0, 'density_of/fc': 1.0, 'births': 0, 'deaths': 0}
        7 age/fc [0, 0]
    """
    topology = on.topology if isinstance(on, Attached) else on
    optimizer = on.optimizer if isinstance(on, Attached) and optimizer is None else optimizer
    step = topology.step if step is None else step
    own = {"density": topology.density(), **connections(topology)}
    tracker.scalars({**figures, **_rate(optimizer), **own}, step)
    ages(tracker, topology, step)


def connections(topology: Topology) -> dict[str, float]:
    """Return the density of each layer that has a mask, in [0, 1], and how many connections came and went.

    >>> topology = Topology()
    >>> topology.add("fc.weight", (1, 2))
    >>> connections(topology)
    {'density_of/fc': 1.0, 'births': 0, 'deaths': 0}
    """
    names = [name for name, shape in topology.shapes.items() if len(shape) > 1]
    densities = {f"density_of/{_layer(name)}": topology.density(name) for name in names}
    return {**densities, "births": topology.born, "deaths": topology.died}


def ages(tracker: Tracker, topology: Topology, step: int) -> None:
    """Tell a tracker how old the connections of each layer are, in updates since birth."""
    for name, mask in topology.masks.items():
        if len(topology.shapes[name]) > 1 and bool(mask.any()):
            tracker.histogram(f"age/{_layer(name)}", topology.age(name)[mask], step)


def _rate(optimizer: Optimizer | None) -> dict[str, float]:
    return {} if optimizer is None else {"lr": float(optimizer.param_groups[0]["lr"])}


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def flat(values: Mapping[str, Any], within: str = "") -> dict[str, bool | int | float | str]:
    """Return a nested mapping as one of dotted names; what is no number and no text is written as JSON.

    >>> flat({"dense": {"lr": 0.1, "milestones": [3, 5]}, "at": None})
    {'dense.lr': 0.1, 'dense.milestones': '[3, 5]', 'at': 'null'}
    """
    found: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        name = f"{within}.{key}" if within else str(key)
        if isinstance(value, Mapping) and value:
            found |= flat(value, name)
        else:
            found[name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found


class Points:
    """Which points a tracker holds already, so that an epoch repeated after a resume gives none twice.

    Args:
        known: name of a figure -> steps it is known at; asked once for each name.

    Example:
        >>> points = Points({"loss": [10, 20]}.get)
        >>> points.new(["loss", "lr"], 20), points.new(["loss", "lr"], 20)
        (['lr'], [])
    """

    def __init__(self, known: Callable[[str], Iterable[int] | None] = lambda name: None) -> None:  # noqa: ARG005
        self._known = known
        self._steps: dict[str, set[int]] = defaultdict(set)

    def new(self, names: Iterable[str], step: int) -> list[str]:
        """Return the figures not known at this step yet; from now on they are."""
        fresh = []
        for name in names:
            if name not in self._steps:
                self._steps[name] = set(self._known(name) or ())
            if step not in self._steps[name]:
                fresh.append(name)
            self._steps[name].add(step)
        return fresh


class Unfailing:
    """A tracker that cannot stop a training: at its first error it says so once, and then keeps silent.

    Args:
        tracker: the one that may fail.
        tell: called with the sentence; a warning of Python by default.
    """

    def __init__(self, tracker: Tracker, tell: Callable[[str], None] = warnings.warn) -> None:
        self._tracker: Tracker | None = tracker
        self._tell = tell

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep figures, by name, at a step."""
        if tracker := self._tracker:
            self._try(lambda: tracker.scalars(values, step))

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """Keep how values of any shape, one at least, are distributed at a step."""
        if tracker := self._tracker:
            self._try(lambda: tracker.histogram(name, values, step))

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Keep what the network is trained with: names to plain values."""
        if tracker := self._tracker:
            self._try(lambda: tracker.parameters(values))

    def close(self, status: Status = "done") -> None:
        """Write what is left; the tracker may be opened again under the same name."""
        if tracker := self._tracker:
            self._try(lambda: tracker.close(status))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a disk, a server or a library may come up with
            name, reason = type(self._tracker).__name__, str(error).strip() or "no reason given"
            self._tracker = None
            self._tell(f"{name} failed and gets nothing more; the training goes on ({type(error).__name__}: {reason})")


class RunEvents:
    """Tells a tracker what a run's log says, as it grows: epochs by optimizer update, rounds by number.

    Args:
        tracker: keeps it.
        config: of the run, nested as it is.
    """

    def __init__(self, tracker: Tracker, config: Mapping[str, Any]) -> None:
        self.tracker = tracker
        self._epochs = self._rounds = 0
        tracker.parameters(flat(config))

    def show(self, network: "Network", log: "Log") -> None:
        """Tell what is new; with the last epoch, how the connections are doing now."""
        for entry in log["epochs"][self._epochs :]:
            values = {key: entry[key] for key in EPOCH}
            if now := entry["step"] == network.step:
                values |= {**_rate(network.optimizer), **connections(network.topology)}
            self.tracker.scalars(values, entry["step"])
            if now:
                ages(self.tracker, network.topology, network.step)
        for entry in log["rounds"][self._rounds :]:
            self._round(entry)
        self._epochs, self._rounds = len(log["epochs"]), len(log["rounds"])

    def end(self, log: "Log", status: Status) -> None:
        """Tell what reading the test set gave, and close."""
        for entry in log.get("rounds", []):
            self._round(entry)
        tested = [entry["test_accuracy"] for entry in log.get("rounds", []) if "test_accuracy" in entry]
        if tested:
            self.tracker.scalars({"test_accuracy": tested[-1]}, max((e["step"] for e in log["epochs"]), default=0))
        self.tracker.close(status)

    def _round(self, entry: Mapping[str, Any]) -> None:
        known = {f"round/{key}": entry[key] for key in ROUND if entry.get(key) is not None}
        self.tracker.scalars(known, entry["round"])
