"""Programmes: the stages a network goes through, each a frozen value with `run(network, run)`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synaptree.artifact.interchange import load_into, read_tensors, save_sparse, write_tensors
from synaptree.core.errors import AttachError, OptionError
from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.topology import Topology
from synaptree.measure.count import Count, count
from synaptree.signals.gradients import mean_gradients
from synaptree.train.data import Dataset, derive, sample
from synaptree.train.loop import EpochLog, Interrupted, TrainOptions, evaluate, mistakes, train
from synaptree.train.network import Network, load_checkpoint, reached, save_checkpoint

__all__ = [
    "CHECKPOINT", "Adopt", "Load", "Log", "Measure", "Prune", "Reinitialise", "Renew", "Reshaping", "Rewind", "Shuffle",
    "Stage", "Surroundings", "Train", "density_of", "develop", "loss_gradients", "read_test",
]  # fmt: skip

CHECKPOINT = "checkpoint.safetensors"

Log = dict[str, list[dict[str, Any]]]
"""What a run records: "epochs" and "rounds", each entry plain JSON."""


@dataclass
class Surroundings:
    """What stages need beside the network.

    Attributes:
        data: the data set.
        seed: of everything random in the run.
        folder: where the run keeps its files.
        fresh: seed -> new untrained model of the same class.
        log: what has been recorded so far.
        stop: asked after every update; true interrupts.
        watch: told what happens: `(stage, epoch log or None)`.
        keep: steps that a later rewind asks for.
        optimizer_state: of the stage that was interrupted, until it goes on.
    """

    data: Dataset
    seed: int
    folder: Path
    fresh: Callable[[int], nn.Module]
    log: Log = field(default_factory=lambda: {"epochs": [], "rounds": []})
    stop: Callable[[], bool] = lambda: False
    watch: Callable[["Stage", EpochLog | None], None] = lambda stage, log: None  # noqa: ARG005
    keep: frozenset[int] = frozenset()
    optimizer_state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted run goes on from."""
        return self.folder / CHECKPOINT

    def round_file(self, index: int) -> Path:
        """Return the file that holds the network at the end of a round."""
        return self.folder / f"round_{index:02d}.safetensors"

    def kept_file(self, step: int) -> Path:
        """Return the file that holds the weights of a step that rewinds ask for."""
        return self.folder / f"kept_{step}.safetensors"


class Stage(Protocol):
    """One stage of a programme."""

    def run(self, network: Network, around: Surroundings) -> None:
        """Let the network develop."""


@runtime_checkable
class Reshaping(Protocol):
    """A stage that changes the modules of the network; going on from a checkpoint, it is done again before loading."""

    def reshape(self, network: Network, around: Surroundings) -> None:
        """Give the network the modules it has after this stage."""


@dataclass(frozen=True)
class Train:
    """Train; connections that do not exist stay 0. With a `method`, which edits the topology meanwhile, a new round.

    Attributes:
        options: how to train.
        name: in the log.
        method: edits the topology meanwhile, by its own schedule.
        exclude: patterns of layer names the method leaves alone.
        index: of the round this begins; by default the next one where there is a method.
    """

    options: TrainOptions
    name: str = "train"
    method: Method | None = None
    exclude: tuple[str, ...] = ()
    index: int | None = None

    def run(self, network: Network, around: Surroundings) -> None:
        """Train from where `network.within` says to the end."""
        if not network.within:
            self._check_acts(around.data)
            network.round = network.round + (self.method is not None) if self.index is None else self.index
            if self.method is not None:
                network.topology.count_from(0)
                network.topology.state = {}  # what another method's signals remembered under the same name
        for _ in self.epochs(network, around):
            pass

    def _check_acts(self, data: Dataset) -> None:
        """Raise an OptionError where the method would sleep through the whole stage."""
        updates = self.options.epochs * -(-len(data.train.y) // self.options.batch)
        if self.method is not None and updates and not any(map(self.method.when, range(1, updates + 1))):
            raise OptionError(
                f"{self.method!r} never acts in the {updates} updates of stage {self.name!r}: its windows or intervals "
                "are longer than the run, or begin after it; make them shorter, or train longer"
            )

    def epochs(self, network: Network, around: Surroundings) -> Iterator[EpochLog]:
        """Train and log; pause after every epoch."""
        logs = train(
            network, around.data, self.options, seed=around.seed, method=self.method, exclude=self.exclude,
            keep=around.keep, optimizer_state=around.optimizer_state, stop=around.stop,
        )  # fmt: skip
        for log in logs:
            network.recent = [*network.recent, log.validation_accuracy][-3:]
            yield log
            around.log["epochs"].append({
                "stage": self.name, "round": network.round, "epoch": log.epoch, "step": network.step,
                "loss": log.loss, "validation_accuracy": log.validation_accuracy,
                "density": density_of(network), "seconds": log.seconds,
            })  # fmt: skip
            around.watch(self, log)


@dataclass(frozen=True)
class Prune:
    """Let `method` edit the topology once; this begins a new round.

    Attributes:
        method: what decides.
        samples: training images it may look at, drawn once per run and never augmented.
        sample_seed: of that draw; the run's seed by default.
        exclude: patterns of layer names it leaves alone.
        index: of the round this begins; the next one by default.
    """

    method: Method
    samples: int = 1000
    sample_seed: int | None = None
    exclude: tuple[str, ...] = ()
    index: int | None = None

    def run(self, network: Network, around: Surroundings) -> None:
        """Begin the next round with an edit."""
        batches = None
        if "data" in self.method.needs:
            seed = around.seed if self.sample_seed is None else self.sample_seed
            batches = around.data.normalise(sample(around.data.train, self.samples, seed).x)
        network.round = network.round + 1 if self.index is None else self.index
        network.topology.count_from(network.step)
        gradients = loss_gradients(network, around, self.samples) if "gradient" in self.method.needs else None
        prune(
            network.model, self.method, batches, topology=network.topology, exclude=self.exclude, gradients=gradients
        )


def loss_gradients(network: Network, around: Surroundings, samples: int) -> dict[str, Tensor]:
    """Return the mean gradient of the cross-entropy over training images drawn anew for every round."""
    drawn = sample(around.data.train, samples, derive(around.seed, 3, network.step))
    network.model.eval()
    return mean_gradients(network.model, [(around.data.normalise(drawn.x), drawn.y)], F.cross_entropy)


@dataclass(frozen=True)
class Rewind:
    """Bring back weights and batch-norm statistics of an earlier step; masks and ages survive."""

    step: int = 0

    def run(self, network: Network, around: Surroundings) -> None:  # noqa: ARG002
        """Load the kept weights under the present masks.

        Raises:
            OptionError: the step was never reached.
        """
        if self.step not in network.kept:
            raise OptionError(f"rewind_step = {self.step}: the dense training ended at update {network.step}")
        network.load_weights(network.kept[self.step])


@dataclass(frozen=True)
class Renew:
    """Begin anew with the initial weights, all connections and no history; the data order goes on."""

    def run(self, network: Network, around: Surroundings) -> None:
        """Forget the topology and bring back the first weights."""
        network.topology, network.counted = Topology(around.seed), [0, 0]
        network.load_weights(network.kept[0])


@dataclass(frozen=True)
class Reinitialise:
    """Give the surviving connections new initial weights, from a seed of their own."""

    def run(self, network: Network, around: Surroundings) -> None:
        """Load weights of a new model under the present masks."""
        network.load_weights(around.fresh(derive(around.seed, 1, network.round)).state_dict())


@dataclass(frozen=True)
class Load:
    """Start from the dense network of another run of the same seed.

    Attributes:
        folder: of that run.
        epoch: epochs of data it stands for; the data order goes on from there.
        step: optimizer updates it stands for.
    """

    folder: Path
    epoch: int = 0
    step: int = 0

    def run(self, network: Network, around: Surroundings) -> None:
        """Load the dense weights and those that later rewinds ask for; all else is forgotten."""
        there = replace(around, folder=self.folder)
        load_into(network.model, there.round_file(0))
        network.topology, network.counted = Topology(around.seed), [0, 0]
        network.round, network.epoch, network.step = 0, self.epoch, self.step
        network.kept = {step: read_tensors(there.kept_file(step))[0] for step in around.keep}


@dataclass(frozen=True)
class Adopt:
    """Take over the masks another run had at the end of a round; the next stage applies them."""

    folder: Path
    index: int

    def run(self, network: Network, around: Surroundings) -> None:
        """Load the masks; weights stay what they are."""
        there = replace(around, folder=self.folder)
        network.topology = load_into(around.fresh(0), there.round_file(self.index))
        network.counted = [network.topology.born, network.topology.died]
        network.round = self.index


@dataclass(frozen=True)
class Shuffle:
    """Deal the connections of each layer out anew, at random places; their number stays.

    Weights and biases are dealt out each within their tensor; batch norms and shortcuts are whole again, since
    the units they belonged to are no longer the ones that lost their connections.
    """

    def run(self, network: Network, around: Surroundings) -> None:
        """Shuffle the masks and apply them."""
        rng = torch.Generator().manual_seed(derive(around.seed, 2, network.round))
        masks, dealt = network.topology.masks, {}
        for name, mask in masks.items():
            weight = masks.get(f"{name.rpartition('.')[0]}.weight".removeprefix("."))
            layered = weight is not None and weight.dim() > 1
            order = torch.randperm(mask.numel(), generator=rng)
            dealt[name] = mask.flatten()[order].view_as(mask) if layered else torch.ones_like(mask)
        network.topology.edit(dealt)
        network.topology.apply(network.model)


@dataclass(frozen=True)
class Measure:
    """Record the network at the end of a round and write it to disk; the test set is not read here."""

    name: str = ""

    def run(self, network: Network, around: Surroundings) -> None:
        """Append a round to the log."""
        topology = network.topology
        born, died = topology.born - network.counted[0], topology.died - network.counted[1]
        network.counted = [topology.born, topology.died]
        x = around.data.normalise(around.data.validation.x[:1])
        counted = count(network.model, network.topology if network.topology.masks else None, x)
        size = save_sparse(network.model, around.round_file(network.round), network.topology)
        for step, weights in network.kept.items() if network.round == 0 else ():
            write_tensors(around.kept_file(step), weights, {})
        around.log["rounds"].append({
            "round": network.round, "stage": self.name, "born": born, "died": died,
            "density": _density(counted),
            "layers": {layer.name: layer.weights_alive / max(1, layer.weights) for layer in counted.layers},
            "validation_accuracy": evaluate(network.model, around.data, around.data.validation),
            "parameters": counted.parameters(), "parameters_alive": counted.parameters_alive(),
            "weights": counted.parameters(biases=False), "weights_alive": counted.parameters_alive(biases=False),
            "norm": counted.norm, "macs": counted.macs, "macs_alive": counted.macs_alive, "bytes": size,
            "notes": list(network.topology.notes),
        })  # fmt: skip


def develop(
    network: Network, stages: Sequence[Stage], around: Surroundings, *, identity: str, resume: bool = False,
    every: float = 60.0,
) -> Iterator[Stage]:  # fmt: skip
    """Take `network` through the stages and yield each before it runs; leave a checkpoint when interrupted.

    Args:
        network: developed in place.
        stages: the programme.
        around: what stages need beside the network.
        identity: whose checkpoint this is.
        resume: go on from the checkpoint in the run's folder, if there is one.
        every: seconds between checkpoints at the ends of epochs and stages.

    Raises:
        Interrupted: `around.stop` said so; the checkpoint is written.
        CheckpointError: the checkpoint belongs to another run.
    """
    file = around.checkpoint
    around.keep = frozenset(stage.step for stage in stages if isinstance(stage, Rewind))
    network.kept.setdefault(0, network.weights())
    if resume and file.exists():
        for stage in stages[: reached(file)]:
            if isinstance(stage, Reshaping):
                stage.reshape(network, around)
        log, around.optimizer_state = load_checkpoint(network, file, identity=identity)
        around.log.update(log)
    saved = time.monotonic()
    watch = around.watch

    def save() -> None:
        nonlocal saved
        save_checkpoint(network, file, identity=identity, log=around.log)
        saved = time.monotonic()

    def watch_and_save(stage: Stage, log: EpochLog | None) -> None:
        watch(stage, log)
        if time.monotonic() - saved > every:
            save()

    around.watch = watch_and_save
    try:
        for stage in stages[network.stage :]:
            yield stage
            stage.run(network, around)
            around.optimizer_state = {}
            network.stage += 1
            watch_and_save(stage, None)
    except Interrupted:
        save()
        raise
    finally:
        around.watch = watch


def density_of(network: Network) -> float:
    """Return the share of weights that exist, in [0, 1], of all linear and convolution layers."""
    try:
        layers = layers_of(network.model)
    except AttachError:  # a network whose layers all have strengths
        return 1.0
    masks, weights = network.topology.masks, sum(layer.module.weight.numel() for layer in layers)
    alive = sum(
        network.topology.weights_alive(layer.weight) if layer.weight in masks else layer.module.weight.numel()
        for layer in layers
    )
    return alive / weights


def read_test(around: Surroundings) -> None:
    """Read the test set, once, for the networks that all rounds of the run left on disk."""
    model = around.fresh(around.seed)
    for entry in around.log["rounds"]:
        load_into(model, around.round_file(entry["round"]))
        wrong = mistakes(model, around.data, around.data.test)
        items = len(around.data.test.y)
        entry |= {"test_errors": wrong, "test_accuracy": 1 - len(wrong) / items, "test_items": items}
        if (published := around.data.test_published) is not None:
            accuracy = evaluate(model, around.data, published)
            entry |= {"published_accuracy": accuracy, "published_items": len(published.y)}


def _density(counted: Count) -> float:
    weights = counted.parameters(biases=False)
    return counted.parameters_alive(biases=False) / weights if weights else 1.0
