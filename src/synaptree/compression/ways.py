"""Ways to bring a network to a number of weights: which method cuts, and how it is steered there."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from synaptree.compression.clock import Progress
from synaptree.compression.training import HOLD
from synaptree.core.errors import OptionError, unknown
from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.signal import magnitude
from synaptree.core.topology import Topology
from synaptree.methods import METHODS, build
from synaptree.rules.allocate import allocation
from synaptree.rules.density import Density

__all__ = ["Task", "Way", "steerable", "ways", "weights_alive"]

CUTS = 30  # edits of a gradual cut
SEARCHES = 12  # halvings of the interval in which an option is looked for


@dataclass(frozen=True)
class Task:
    """What a way works on.

    Attributes:
        model: may be pruned in place.
        topology: over it, dense at first.
        weights: that shall exist in the end.
        inputs: a sample of what it is trained on, `(samples, ...)`.
        progress: of the training that follows.
    """

    model: nn.Module
    topology: Topology
    weights: int
    inputs: Tensor
    progress: Progress

    @property
    def density(self) -> float:
        """What the topology's density shall become, in [0, 1]."""
        return self.weights / max(1, sum(self.topology.weights(name) for name in weight_names(self.topology)))


@dataclass(frozen=True)
class Way:
    """A way to cut.

    Attributes:
        name: in the table of tries.
        cut: prunes at once and returns None, or returns the method that does it as training goes on.
        lr: factor on the learning rate.
        granularity: of its masks, by kind of layer.
    """

    name: str
    cut: Callable[[Task], Method | None]
    lr: float = 1.0
    granularity: Mapping[str, str] = field(default_factory=lambda: {"linear": "weight", "conv": "weight"})


def ways(method: str, own_optimizer: bool) -> tuple[Way, ...]:
    """Return the ways worth trying at first, the likeliest first.

    Args:
        method: "auto", or a name of the registry.
        own_optimizer: the user chose the learning rate, which is then left alone.

    Raises:
        OptionError: nobody knows the method, or it cannot be steered to a density.
    """
    if method != "auto":
        named = _way(method)
        return (named,) if own_optimizer else (named, replace(named, name=f"{method}, lr / 5", lr=0.2))
    slow = () if own_optimizer else (Way("magnitude, lr / 5", gradual("global"), 0.2),)
    return Way("magnitude", gradual("global")), *slow, Way("erdos_renyi", gradual("erdos_renyi")), _way("nnrelief")


def steerable() -> list[str]:
    """Return the names of the methods that can be brought to a density.

    >>> "nnrelief" in steerable(), "nest" in steerable()
    (True, False)
    """
    return sorted(name for name in METHODS if name in _STEERED or _takes_density(name))


def gradual(allocate: str) -> Callable[[Task], Method]:
    """Return the way that cuts the smallest weights little by little, by equal shares of what is left.

    Args:
        allocate: how connections are shared out among layers, as of `rules.allocate`.
    """

    def cut(task: Task) -> Method:
        task.topology.cover(layers_of(task.model), {"linear": "weight", "conv": "weight"})
        start, end, progress = task.topology.density(), task.density, task.progress

        def density(_: int) -> float:
            share = min(1.0, progress.share / HOLD)
            return float(min(1.0, start) ** (1 - share) * end**share)

        return Method(Density(density, allocation(allocate)), {"keep": magnitude}, when=Notches(progress))

    return cut


class Notches:
    """True at the steps at which training passes the next of `CUTS` equal parts of its time for cutting."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.passed = progress, 0

    def __call__(self, step: int) -> bool:  # noqa: ARG002 - every schedule takes a step
        now = min(CUTS, int(self.progress.share / HOLD * CUTS + 1e-9))
        due, self.passed = now > self.passed, now
        return due


def weight_names(topology: Topology) -> list[str]:
    """Return the names of the masked weights, biases and norms left out."""
    return [name for name, shape in topology.shapes.items() if len(shape) > 1]


def weights_alive(topology: Topology) -> int:
    """Return how many weights exist."""
    return sum(topology.weights_alive(name) for name in weight_names(topology))


def _way(name: str) -> Way:
    return Way(name, _named(name), granularity=build(name).granularity)


def _named(name: str) -> Callable[[Task], Method | None]:
    if name not in METHODS:
        raise unknown("method", name, ["auto", *METHODS])
    if name in _STEERED:
        return _STEERED[name]
    if not _takes_density(name):
        raise OptionError(
            f"method {name!r} has no option that brings a network to a density: wanted auto or one of "
            f"{', '.join(steerable())}"
        )

    def cut(task: Task) -> None:
        known = build(name)
        task.topology.cover(layers_of(task.model, known.granularity), known.granularity, biases=known.biases)
        prune(task.model, build(name, density=task.density), task.inputs, topology=task.topology)

    return cut


def _takes_density(name: str) -> bool:
    options = signature(METHODS[name]).parameters
    if "density" not in options:
        return False
    method = build(name)
    return not method.acts_in_training and "gradient" not in method.needs


def _share(name: str) -> Callable[[Task], None]:
    """Return the way of a method whose option `cut` is a share of what exists."""

    def cut(task: Task) -> None:
        task.topology.cover(layers_of(task.model, build(name).granularity), build(name).granularity)
        share = 1 - task.density / task.topology.density()
        method = build(name, cut=min(0.9999, max(1e-4, share)))
        prune(task.model, method, task.inputs, topology=task.topology)

    return cut


def _relief(task: Task) -> None:
    """Prune by NNrelief with the share of contributions that comes nearest to the weights wanted, from above."""

    def pruned(alpha: float, model: nn.Module, topology: Topology) -> int:
        prune(model, build("nnrelief", alpha_conv=alpha, alpha_fc=alpha), task.inputs, topology=topology)
        return weights_alive(topology)

    low, high = 0.0, 1.0
    for _ in range(SEARCHES):
        alpha = (low + high) / 2
        enough = pruned(alpha, deepcopy(task.model), deepcopy(task.topology)) >= task.weights
        low, high = (low, alpha) if enough else (alpha, high)
    pruned(high, task.model, task.topology)


def _exchanging(name: str, **options: Any) -> Callable[[Task], Method]:
    """Return the way of a method that exchanges connections at a density, while the learning rate is high."""

    def cut(task: Task) -> Method:
        task.topology.cover(layers_of(task.model), {"linear": "weight", "conv": "weight"})
        every = max(1, int(HOLD * task.progress.updates / CUTS))
        last = max(1, every * CUTS)
        now = {"initial": max(task.density, task.topology.density())} if name == "granet" else {}
        return build(name, density=task.density, every=every, last=last, **now, **options)

    return cut


_STEERED: dict[str, Callable[[Task], Method | None]] = {
    "gradual_magnitude": gradual("uniform"),
    "iterative_magnitude": _share("iterative_magnitude"),
    "kernel_norm": _share("kernel_norm"),
    "nnrelief": _relief,
    "granet": _exchanging("granet", first=0),
    "rigl": _exchanging("rigl"),
    "set": _exchanging("set"),
}


def first_inputs(batches: Iterable[tuple[Tensor, Tensor]], samples: int) -> Tensor:
    """Return the first inputs of some batches, `(samples, ...)`, fewer where there are no more."""
    found: list[Tensor] = []
    for x, _ in batches:
        found.append(x)
        if sum(map(len, found)) >= samples:
            break
    return torch.cat(found)[:samples]
