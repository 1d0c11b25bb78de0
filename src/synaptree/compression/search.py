"""The search for the smallest network: tries at ever lower densities, each judged before the next one."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from synaptree.compression.clock import Clock, Progress, Stopped
from synaptree.compression.judge import Judge
from synaptree.compression.training import Trainer
from synaptree.compression.ways import Task, Way, weights_alive
from synaptree.core.errors import NumericError, OptionError, SynaptreeError
from synaptree.core.layer import layers_of, mask_shape
from synaptree.core.topology import Topology
from synaptree.surgery.compact import compact

__all__ = ["Candidate", "Search", "Try", "dense_candidate"]

FIRST_STEP, STEP, LEAST_STEP = 8.0, 2.0, 1.03
"""Times fewer weights: of the first try, of the next ones, and at which it is not worth trying further."""
TRIES = 24  # in a budget, were they all as long as the first one


@dataclass(frozen=True)
class Candidate:
    """A network that was judged.

    Attributes:
        model: as it was judged.
        topology: over it.
        weights: that exist, of linear and convolution layers.
        value: on validation data.
    """

    model: nn.Module
    topology: Topology
    weights: int
    value: float


@dataclass(frozen=True)
class Try:
    """One cut and retraining, and what came of it.

    Attributes:
        method: that cut.
        density: share in [0, 1] of the weights that was left.
        weights: that were left.
        value: on validation data; NaN where it did not come so far.
        epochs: of retraining.
        seconds: on the wall.
        kept: whether the search went on from it.
        why: in words.
    """

    method: str
    density: float
    weights: int
    value: float
    epochs: float
    seconds: float
    kept: bool
    why: str


@dataclass
class Search:
    """Looks for the smallest network that is within what may be lost.

    A try cuts the best network so far to a share of its weights, retrains it and judges it. One that fails by little
    goes on at its density. Where it fails still, ways not tried yet follow, until one is kept. Where none is, half the
    step follows, in the logarithm, with twice the training, in the way that came nearest.

    Attributes:
        dense: where it starts.
        ways: of cutting, the likeliest first.
        judge: of what may be lost.
        trainer: of all retraining.
        clock: its budget.
        inputs: a sample of what is trained on, for methods that want it.
        epoch_cost: what an epoch takes of the budget, as far as known.
        judge_cost: what a look at the validation data takes of it.
        told: called after each try.
        tries: so far.
    """

    dense: Candidate
    ways: Sequence[Way]
    judge: Judge
    trainer: Trainer
    clock: Clock
    inputs: Tensor
    epoch_cost: float
    judge_cost: float
    told: Callable[[Try], None] = lambda _: None
    tries: list[Try] = field(default_factory=list)

    def run(self) -> Candidate:
        """Return the smallest network that is within what may be lost, the dense one where there is none."""
        self.reference = self.dense.value
        self.best, self.step, self.way, self.untried = self.dense, FIRST_STEP, self.ways[0], list(self.ways[1:])
        self.length = max(1.0, self._fit() / TRIES)
        try:
            while self.step > LEAST_STEP and (epochs := self._epochs()):
                if self._deeper(epochs):
                    self.step = min(self.step, STEP)
                else:
                    self.step, self.length = math.sqrt(self.step), 2 * self.length
        except Stopped:
            pass
        return self.best

    def _deeper(self, epochs: float) -> bool:
        """Try one step from the best network, by other means where that fails, and say whether anything was kept."""
        weights = self.best.weights / self.step
        found = self._try(self.way, weights, epochs)
        if found is not None and not self._good(found) and self._near(found) and (more := self._epochs()):
            further = Way(f"{self.way.name}, further", lambda _: None, self.way.lr)
            found = self._try(further, found.weights, more, start=found) or found
        if found is None or not self._good(found):
            found = self._otherwise(found, weights)
        if found is None or not self._good(found):
            return False
        self.best = found
        return True

    def _otherwise(self, found: Candidate | None, weights: float) -> Candidate | None:
        """Try the other ways, each once, until one is kept; the best of them is the way from then on."""
        while self.untried and (found is None or not self._good(found)) and (epochs := self._epochs()):
            way = self.untried.pop(0)
            other = self._try(way, weights, epochs)
            if other is not None and (found is None or _worth(other) > _worth(found)):
                self.way, found = way, other
        return found

    def _good(self, found: Candidate) -> bool:
        return self.judge.accepts(found.value, self.reference) and found.weights < self.best.weights

    def _near(self, found: Candidate) -> bool:
        near = self.judge.accepts(found.value + self.judge.max_drop, self.reference)
        return near and found.weights < self.best.weights

    def _start(self, way: Way) -> Candidate:
        """Return the best network, the dense one where the best has masks of another granularity."""
        masks = self.best.topology.masks
        for layer in layers_of(self.best.model):
            if layer.weight in masks and layer.kind in way.granularity:
                wanted = mask_shape(tuple(layer.module.weight.shape), way.granularity[layer.kind])
                if tuple(masks[layer.weight].shape) != wanted:
                    return self.dense
        return self.best

    def _fit(self) -> float:
        """Return how many epochs the time that is left has room for."""
        return max(0.0, self.clock.left() - 1.2 * self.judge_cost) / max(1e-6, self.epoch_cost)

    def _epochs(self) -> float | None:
        """Return the epochs of the next try: all that fit where another one would not; None where nothing fits."""
        fit = self._fit()
        if fit < max(0.5, self.length / 8):
            return None
        return fit if fit < 1.5 * self.length else self.length

    def _try(self, way: Way, weights: float, epochs: float, start: Candidate | None = None) -> Candidate | None:
        """Cut the best network, or another one, retrain, judge and compact; None where that could not be done."""
        start = start or self._start(way)
        model, topology = deepcopy(start.model), deepcopy(start.topology)
        before, began, found = self.clock.seconds(), self.trainer.epochs, None
        try:
            found = self._retrained(way, model, topology, weights, epochs)
            why = self._why(found)
        except Stopped:
            self._tell(way, topology, None, before, began, "the time was up")
            raise
        except NumericError as error:
            why = f"training went astray: {error}"
        except SynaptreeError as error:
            why = str(error)
        self._tell(way, topology, found, before, began, why)
        return self._narrower(found) if found is not None and self._good(found) else found

    def _retrained(self, way: Way, model: nn.Module, topology: Topology, weights: float, epochs: float) -> Candidate:
        updates = max(1, int(epochs * self.trainer.length + 1e-6))
        progress = Progress(updates, self.clock.limit(1.2 * self.judge_cost))
        method = way.cut(Task(model, topology, max(1, round(weights)), self.inputs, progress))
        if method is None and weights_alive(topology) >= self.best.weights:
            raise OptionError(f"{way.name} cuts nothing more")
        before = self.clock.used()
        trained = self.trainer.train(model, progress, topology=topology, method=method, lr=way.lr)
        self.epoch_cost = max(1e-6, self.clock.used() - before) / max(trained, 1e-3)
        return Candidate(model, topology, weights_alive(topology), self.judge(model))

    def _why(self, found: Candidate) -> str:
        if found.weights >= self.best.weights:
            return "nothing more was cut"
        if not math.isfinite(found.value):
            accuracy = self.judge.metric is None
            return "its outputs on the validation data are not finite" if accuracy else f"the metric is {found.value}"
        lost = self.reference - found.value
        if self.judge.accepts(found.value, self.reference):
            return f"{-lost:+.2f}" if lost else "level"
        return f"{-lost:+.2f}, and {-self.judge.max_drop:+.2f} is allowed"

    def _tell(
        self, way: Way, topology: Topology, found: Candidate | None, before: float, began: float, why: str
    ) -> None:
        weights = weights_alive(topology) or self.dense.weights
        self.tries.append(Try(
            way.name, weights / max(1, self.dense.weights), weights, math.nan if found is None else found.value,
            self.trainer.epochs - began, self.clock.seconds() - before, found is not None and self._good(found), why,
        ))  # fmt: skip
        self.told(self.tries[-1])

    def _narrower(self, found: Candidate) -> Candidate:
        """Take units out that do nothing, so that further training costs less; the same network where that fails."""
        try:
            small = compact(found.model, self.inputs[:4], topology=found.topology)
        except SynaptreeError:
            return found
        if small.topology is None or type(small.model) is not type(found.model):  # traced: training may differ
            return found
        return replace(found, model=small.model, topology=small.topology, weights=weights_alive(small.topology))


def _worth(found: Candidate) -> float:
    return found.value if math.isfinite(found.value) else -math.inf


def dense_candidate(model: nn.Module, value: float) -> Candidate:
    """Return the network that a search starts from, in which every connection exists.

    Raises:
        AttachError: it has no layer to prune.
    """
    weights = sum(layer.module.weight.numel() for layer in layers_of(model))
    return Candidate(model, Topology(), weights, value)
