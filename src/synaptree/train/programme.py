"""Programmes: the stages a network goes through, each a frozen value with `run(network, run)`."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synaptree.artifact.interchange import load_into, read_tensors, save_sparse, write_tensors
from synaptree.core.errors import AttachError, CheckpointError, NumericError, OptionError, RankError
from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.topology import Topology
from synaptree.measure.ages import age_quartiles
from synaptree.measure.count import Count, count
from synaptree.signals.gradients import mean_gradients
from synaptree.train import together
from synaptree.train.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    Identity,
    newest,
    remove_partial,
    save_checkpoint,
    set_aside,
)
from synaptree.train.data import Dataset, derive, sample
from synaptree.train.health import Guard
from synaptree.train.loop import EpochLog, Interrupted, TrainOptions, evaluate, mistakes, train
from synaptree.train.network import Network

__all__ = [
    "Adopt", "Load", "Log", "Measure", "Prune", "Reinitialise", "Renew", "Reshaping", "Rewind", "Shuffle",
    "Stage", "Surroundings", "Train", "density_of", "develop", "loss_gradients", "read_test",
]  # fmt: skip

Log = dict[str, list[Any]]
"""What a run records, plain JSON: "epochs", "rounds", findings of "health"; "notes" if there is something to say."""


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)


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
        say: told, in a sentence, what a person should know of the run.
        machine: where the run happens, as `checkpoint.whereabouts` says it.
        keep: steps that a later rewind asks for.
        optimizer_state: of the stage that was interrupted, until it goes on.
        guard: looks after the network's health.
    """

    data: Dataset
    seed: int
    folder: Path
    fresh: Callable[[int], nn.Module]
    log: Log = field(default_factory=lambda: {"epochs": [], "rounds": [], "health": []})
    stop: Callable[[], bool] = lambda: False
    watch: Callable[["Stage", EpochLog | None], None] = lambda stage, log: None  # noqa: ARG005
    say: Callable[[str], None] = _warn
    machine: Mapping[str, Any] = field(default_factory=dict)
    keep: frozenset[int] = frozenset()
    optimizer_state: Mapping[str, Any] = field(default_factory=dict)
    guard: Guard = field(default_factory=Guard)

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
        def stop() -> bool:
            around.guard.after_update(network, around, self.name, self.method, self.exclude)
            return around.stop()

        logs = train(
            network, around.data, self.options, seed=around.seed, method=self.method, exclude=self.exclude,
            keep=around.keep, optimizer_state=around.optimizer_state, stop=stop,
        )  # fmt: skip
        for log in logs:
            network.recent = [*network.recent, log.validation_accuracy][-3:]
            yield log
            around.log["epochs"].append({
                "stage": self.name, "round": network.round, "epoch": log.epoch, "step": network.step,
                "loss": log.loss, "validation_accuracy": log.validation_accuracy,
                "density": density_of(network), "seconds": log.seconds,
                "connections": _changed(network.topology, around.log["epochs"]),
            })  # fmt: skip
            around.guard.mark(network, around, self.name, self.method, self.exclude)
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
        file = around.round_file(network.round)
        if together.first():
            save_sparse(network.model, file, network.topology)
            for step, weights in network.kept.items() if network.round == 0 else ():
                write_tensors(around.kept_file(step), weights, {})
        together.wait()
        if not file.exists():
            raise RankError(f"{file} was written by another process and is not here; give --out a folder all share")
        around.log["rounds"].append({
            "round": network.round, "stage": self.name, "born": born, "died": died,
            "ages": age_quartiles(topology),
            "density": _density(counted),
            "layers": {layer.name: layer.weights_alive / max(1, layer.weights) for layer in counted.layers},
            "validation_accuracy": evaluate(network.model, around.data, around.data.validation),
            "parameters": counted.parameters(), "parameters_alive": counted.parameters_alive(),
            "weights": counted.parameters(biases=False), "weights_alive": counted.parameters_alive(biases=False),
            "norm": counted.norm, "macs": counted.macs, "macs_alive": counted.macs_alive, "bytes": file.stat().st_size,
            "notes": list(network.topology.notes),
        })  # fmt: skip


def develop(
    network: Network, stages: Sequence[Stage], around: Surroundings, *, identity: Identity, resume: bool = False,
    every: float = 60.0,
) -> Iterator[Stage]:  # fmt: skip
    """Take `network` through the stages and yield each before it runs; leave a checkpoint when interrupted.

    Args:
        network: developed in place.
        stages: the programme.
        around: what stages need beside the network.
        identity: whose checkpoint this is.
        resume: go on from the checkpoint in the run's folder, if there is one.
        every: seconds between checkpoints, after any update or stage.

    Raises:
        Interrupted: `around.stop` said so; the checkpoint is written.
        NumericError: the loss is not finite; the last good state is in the checkpoint.
        CheckpointError: the checkpoint belongs to another run, is damaged, or cannot be written.
    """
    around.keep = frozenset(stage.step for stage in stages if isinstance(stage, Rewind))
    network.kept.setdefault(0, network.weights())
    if together.first():
        remove_partial(around.folder)
    saving = _Saving(network, around, identity, every)
    if resume:
        saving.resume(stages)
    together.wait()  # until all have read what the first may now replace
    if saving.step is None:
        saving.save()  # a disk that is full says so before hours have passed
    watch, stop = around.watch, around.stop
    around.watch, around.stop = saving.watching(watch), saving.stopping(stop)
    try:
        for stage in stages[network.stage :]:
            yield stage
            stage.run(network, around)
            around.optimizer_state = {}
            network.stage += 1
            _look(stage, network, around)
            around.watch(stage, None)
    except Interrupted:
        saving.save()
        raise
    except NumericError as error:
        raise NumericError(f"{error}; the state of update {saving.step} is kept in {around.checkpoint}") from error
    finally:
        around.watch, around.stop = watch, stop


class _Saving:
    """Writes the checkpoints of a run, and goes on from them: the one place that does.

    Attributes:
        step: updates made when the last one was written; None before the first.
    """

    def __init__(self, network: Network, around: Surroundings, identity: Identity, every: float) -> None:
        self.network, self.around, self.identity, self.every = network, around, identity, every
        self.step: int | None = None
        self._saved = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint, but none of a network that training has ruined: it is about to say so itself."""
        around, network = self.around, self.network
        try:
            if together.first():
                save_checkpoint(
                    network, around.checkpoint, identity=self.identity, log=around.log, machine=around.machine
                )
            self.step = network.step
        except NumericError as error:
            around.say(f"no checkpoint at update {network.step}: {error}")
        except OSError as error:
            kept = "nothing was trained yet" if self.step is None else f"that of update {self.step} is whole"
            raise CheckpointError(
                f"{around.checkpoint}: the checkpoint of update {network.step} cannot be written "
                f"({error.strerror or error}); {kept}. Mend that, and run the same command again"
            ) from error
        self._saved = time.monotonic()

    def resume(self, stages: Sequence[Stage]) -> None:
        """Go on from the last whole checkpoint, if there is any."""
        around, network = self.around, self.network
        found, damage = newest(around.checkpoint)
        if not together.same((found and found.step, damage)):
            raise RankError(
                f"{around.folder}: processes that train together see different checkpoints there; give them an --out "
                "folder that all of them share"
            )
        if found is None:
            return
        found.require(self.identity)
        _require_masks(found, stages)
        for stage in stages[: found.stage]:
            if isinstance(stage, Reshaping):
                stage.reshape(network, around)
        around.optimizer_state = found.restore(network)
        around.log.update(found.content["log"])
        self.step = network.step
        if damage:
            together.wait()
            if together.first():
                set_aside(around.checkpoint)
            around.say(f"the last checkpoint is damaged ({damage}); goes on from the one before, of update {self.step}")
        if differ := found.elsewhere(around.machine):
            note = f"went on from update {self.step} elsewhere ({', '.join(differ)}): the last bits may differ since"
            around.log.setdefault("notes", []).append(note)
            around.say(note)

    def watching(self, watch: Callable[[Stage, EpochLog | None], None]) -> Callable[[Stage, EpochLog | None], None]:
        """Return `watch` with a checkpoint after it where one is due."""

        def watch_and_save(stage: Stage, log: EpochLog | None) -> None:
            watch(stage, log)
            self._when_due()

        return watch_and_save

    def stopping(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Return `stop` with a checkpoint after it where one is due and the run goes on."""

        def save_or_stop() -> bool:
            if stop():
                return True
            self._when_due()
            return False

        return save_or_stop

    def _when_due(self) -> None:
        if time.monotonic() - self._saved > self.every:
            self.save()


def _require_masks(found: Checkpoint, stages: Sequence[Stage]) -> None:
    """Raise a CheckpointError where the stages before have pruned a network that has no masks."""
    pruned = None
    for stage in stages[: found.stage]:
        if isinstance(stage, Prune) or (isinstance(stage, Train) and stage.method is not None):
            pruned = stage
        elif isinstance(stage, Renew | Load):
            pruned = None
    if pruned is not None and not found.masked:
        raise CheckpointError(
            f"{found.path}: the checkpoint holds no masks, though it comes after {pruned!r}; "
            "it cannot be gone on from; --fresh starts over"
        )


def _look(stage: Stage, network: Network, around: Surroundings) -> None:
    """Look after the network at the end of a stage; masks that the next stage will apply are looked at after that."""
    if not isinstance(stage, Adopt):
        name = getattr(stage, "name", "") or type(stage).__name__.lower()
        asked = (stage.method, stage.exclude) if isinstance(stage, Train | Prune) else (None, ())
        around.guard.look(network, around, name, *asked)


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


def _changed(topology: Topology, epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what there is of connections, or None where the last epoch that said it said the same."""
    last = next((said for epoch in reversed(epochs) if (said := epoch.get("connections"))), None)
    counted = {"born": topology.born, "died": topology.died}
    if not topology.masks or (last is not None and counted.items() <= last.items()):
        return None
    weights = {name: shape for name, shape in topology.shapes.items() if len(shape) > 1}
    layers = {name.removesuffix(".weight"): round(topology.density(name), 6) for name in weights}
    return {**counted, "ages": age_quartiles(topology), "layers": layers}


def _density(counted: Count) -> float:
    weights = counted.parameters(biases=False)
    return counted.parameters_alive(biases=False) / weights if weights else 1.0
