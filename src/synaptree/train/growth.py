"""Stages that try and judge: a sparse seed, gated growth, and pruning until the network suffers."""

from dataclasses import dataclass, replace

import torch

from synaptree.core.attach import attach, forget
from synaptree.core.errors import OptionError
from synaptree.core.layer import layers_of
from synaptree.core.method import Method, Site
from synaptree.core.oneshot import prune
from synaptree.graph.cascade import edit_with_dead_units
from synaptree.train.loop import TrainOptions, evaluate, macro_auc
from synaptree.train.network import Network
from synaptree.train.programme import Surroundings, Train, density_of, loss_gradients

__all__ = ["Grow", "PruneUntil", "Seed"]


@dataclass(frozen=True)
class Seed:
    """Make the network the sparse one that `method` starts from, without training it.

    Attributes:
        method: has a `start`.
        exclude: patterns of layer names it leaves alone.
        index: of the round this begins.
    """

    method: Method
    exclude: tuple[str, ...] = ()
    index: int | None = None

    def run(self, network: Network, around: Surroundings) -> None:  # noqa: ARG002
        """Draw the seed under the topology's own random state.

        Raises:
            OptionError: the method has no start, or the network has connections that do not exist.
        """
        if self.method.start is None or network.topology.masks:
            why = "the network has a topology already; renew it first" if self.method.start else "it starts dense"
            raise OptionError(f"no seed can be made by {self.method!r}: {why}")
        network.round = network.round + 1 if self.index is None else self.index
        optimizer = torch.optim.SGD(network.model.parameters())
        attach(network.model, optimizer, self.method, topology=network.topology, exclude=self.exclude).finish()


@dataclass(frozen=True)
class Grow:
    """Train with one growth event after every epoch; a gate undoes those that make the network worse.

    An event is judged by the epoch after it: where validation accuracy and macro-AUC both fall, weights,
    masks and optimizer state are what they were before the event, exactly; the random draws, the learning
    rate and the data order go on. Growth ends when the capacity is reached, or after `limit` events in a row were
    undone; training goes on to the last epoch.

    Attributes:
        options: how to train.
        method: what grows at an event.
        gate: whether events are judged.
        limit: events undone in a row that end growth, at least 1.
        samples: training images whose gradient is taken, where the method needs it.
        name: in the log.
        exclude: patterns of layer names it leaves alone.
        index: of the round this begins; the next one by default.
    """

    options: TrainOptions
    method: Method
    gate: bool = False
    limit: int = 3
    samples: int = 1000
    name: str = "grow"
    exclude: tuple[str, ...] = ()
    index: int | None = None

    def run(self, network: Network, around: Surroundings) -> None:
        """Train, grow and judge; `network.trial` holds the last state that passed and its figures."""
        if not network.within:
            network.round = network.round + 1 if self.index is None else self.index
            network.trial = {"undone": 0, "grown": 0, "ended": False}
            layers = layers_of(network.model, self.method.granularity, exclude=self.exclude)
            network.topology.cover(layers, self.method.granularity, biases=self.method.biases)
        for _ in Train(self.options, self.name, index=network.round).epochs(network, around):
            if not network.trial["ended"]:
                self._judge(network, around)
                self._event(network, around)
        grown, undone = network.trial["grown"], network.trial.get("undone_in_all", 0)
        network.topology.notes.append(f"{grown} growth events, {undone} of them undone")
        network.trial = {}

    def _judge(self, network: Network, around: Surroundings) -> None:
        """Undo the last event if both figures fell."""
        trial, data = network.trial, around.data
        if not self.gate:
            return
        accuracy = evaluate(network.model, data, data.validation)
        auc = macro_auc(network.model, data, data.validation)
        if "before" in trial and accuracy < trial["accuracy"] and auc < trial["auc"]:
            network.restore(trial["before"])
            trial["undone"] += 1
            trial["undone_in_all"] = trial.get("undone_in_all", 0) + 1
            return
        trial |= {"undone": 0, "accuracy": accuracy, "auc": auc}

    def _event(self, network: Network, around: Surroundings) -> None:
        trial, topology = network.trial, network.topology
        trial["ended"] = trial["undone"] >= self.limit
        if trial["ended"] or network.within["epoch"] == self.options.epochs:
            trial.pop("before", None)
            return
        if self.gate:
            trial["before"] = network.snapshot()
        before = dict(topology.masks)
        gradients = loss_gradients(network, around, self.samples) if "gradient" in self.method.needs else None
        prune(network.model, self.method, topology=topology, exclude=self.exclude, gradients=gradients)
        born = {name: mask & ~before[name] for name, mask in topology.masks.items() if name in before}
        for name, parameter in topology.parameters(network.model):
            if name in born:
                forget(network.optimizer, parameter, born[name])
        trial["ended"] = not any(bool(part.any()) for part in born.values())
        trial["grown"] += not trial["ended"]


@dataclass(frozen=True)
class PruneUntil:
    """Prune and retrain until the network suffers; keep the last one that did not.

    After each cut the network is retrained, and has failed where its validation accuracy lies more than
    `tolerance` below the mean of the last three epochs before this stage. After `fails` failures in a row,
    or at `min_density`, the last network within the tolerance comes back exactly.

    Attributes:
        options: how to retrain after each cut.
        method: what one cut takes away.
        tolerance: accuracy in [0, 1] that may be lost.
        fails: failures in a row that end it, at least 1.
        min_density: density in [0, 1] of the network below which nothing is cut.
        unused_paths: whether units without existing inputs or outputs lose their connections at each cut,
            where that leaves the outputs what they are: the constant such a unit gave goes into the biases after it.
        name: in the log.
        exclude: patterns of layer names it leaves alone.
        index: of the round this begins; the next one by default.
    """

    options: TrainOptions
    method: Method
    tolerance: float = 0.005
    fails: int = 2
    min_density: float = 0.0
    unused_paths: bool = True
    name: str = "prune"
    exclude: tuple[str, ...] = ()
    index: int | None = None

    def run(self, network: Network, around: Surroundings) -> None:
        """Cut, retrain and judge; `network.trial` holds the last network that passed."""
        if not network.within and not network.trial:
            network.round = network.round + 1 if self.index is None else self.index
            if not (recent := network.recent):
                raise OptionError("nothing was trained before pruning: no accuracy to count the tolerance from")
            wanted = sum(recent) / len(recent) - self.tolerance
            network.trial = {"wanted": wanted, "failed": 0, "cuts": 0, "kept": 0, "best": network.snapshot()}
        trial = network.trial
        while network.within or (trial["failed"] < self.fails and density_of(network) > self.min_density):
            if not network.within:
                before = network.topology.digest()
                self._cut(network, around)
                if network.topology.digest() == before:
                    break
                trial["cuts"] += 1
            for _ in Train(self.options, self.name, index=network.round).epochs(network, around):
                pass
            around.optimizer_state = {}
            passed = evaluate(network.model, around.data, around.data.validation) >= trial["wanted"]
            trial["failed"] = 0 if passed else trial["failed"] + 1
            if passed:
                trial |= {"best": network.snapshot(), "kept": trial["cuts"]}
        network.restore(trial["best"])
        network.topology.notes = [f"{trial['cuts']} cuts, the first {trial['kept']} of them kept"]
        network.trial = {}

    def _cut(self, network: Network, around: Surroundings) -> None:
        topology = network.topology
        topology.count_from(network.step)
        method = replace(self.method, edit=_with_unused_paths) if self.unused_paths else self.method
        example = around.data.normalise(around.data.train.x[:1])
        prune(network.model, method, example, topology=topology, exclude=self.exclude)


def _with_unused_paths(on: Site) -> None:
    """Make one pass of the rule, and take along the units that die with it."""
    on.topology.notes += edit_with_dead_units(on, on.masks())
