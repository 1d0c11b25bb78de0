"""Experiments: a recipe carried out, for the method and each control, seed by seed."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synaptree import methods
from synaptree.core.errors import OptionError, SynaptreeError
from synaptree.core.layer import layers_of
from synaptree.core.ranks import reached
from synaptree.core.topology import Topology
from synaptree.recipe import Recipe
from synaptree.results import PROGRESS, Result, Round, config_hash, environment, read, write, write_progress
from synaptree.stages import programme_stages
from synaptree.train import together, zoo
from synaptree.train.alone import alone_in
from synaptree.train.checkpoint import BEFORE, CHECKPOINT, remove, remove_partial, whereabouts
from synaptree.train.data import Dataset, load
from synaptree.train.growth import Grow, PruneUntil
from synaptree.train.health import Guard
from synaptree.train.loop import EpochLog, Interrupted
from synaptree.train.network import Network
from synaptree.train.programme import (
    Adopt,
    Load,
    Log,
    Measure,
    Prune,
    Reinitialise,
    Renew,
    Rewind,
    Shuffle,
    Stage,
    Surroundings,
    Train,
    develop,
    read_test,
)

__all__ = ["Run", "runs", "start"]

SIGN_EVERY = 1.0  # seconds at least between two writings of what a run has recorded so far


class Run:
    """One network's development under a recipe: the method's, or a control's, with one seed.

    Attributes:
        recipe: the experiment.
        seed: of the run.
        control: name of the control, or None for the method itself.
        folder: where it keeps its files.
        network: the network at work, while it runs.
        log: what it has recorded so far, while it runs.
    """

    def __init__(self, recipe: Recipe, seed: int, control: str | None, out: Path) -> None:
        self.recipe, self.seed, self.control, self.out = recipe, seed, control, out
        self.config = recipe.config()
        self.config |= {"seed": seed, "control": control, "at": recipe.controls.get(control) if control else None}
        self.hash = config_hash(self.config)
        # two configurations never share a folder: a control must not start from another one's networks
        self.folder = out / f"{control or recipe.method}-s{seed}-{self.hash}"
        self.network, self.log = Network(nn.Module()), Log()
        self._classes: int | None = None

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.control or self.recipe.method}, seed {self.seed}"

    @property
    def epochs(self) -> int:
        """Epochs of training in the whole run."""
        retraining = self.recipe.retraining.epochs
        if self.control is not None:
            at = self.recipe.controls[self.control]
            return retraining * (self.recipe.count if at == "all" else len(at))
        stages = self.stages()
        return sum(stage.options.epochs for stage in stages if isinstance(stage, Train | Grow | PruneUntil))

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted run goes on from; a kill between two moves leaves only the one before."""
        last, before = self.folder / CHECKPOINT, self.folder / BEFORE
        return before if before.exists() and not last.exists() else last

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this run says of itself: recipe, method, model, seed, and all else that was chosen."""
        return {"recipe": self.recipe.name, **self.config}

    def forget(self) -> None:
        """Remove the result and the checkpoints, so that the run starts over."""
        if not together.first():
            return
        self.result_file().unlink(missing_ok=True)
        remove(self.folder)

    def tidy(self) -> None:
        """Remove what a finished run no longer needs; a kill at its very end may have left it."""
        if not together.first():
            return
        remove(self.folder)
        remove_partial(self.folder)
        with suppress(OSError):
            (self.folder / PROGRESS).unlink()

    def result_file(self) -> Path:
        """Return the file of the finished result."""
        return next(iter(sorted(self.folder.glob(f"*-{self.hash}.json"))), self.folder / "missing.json")

    def done(self) -> Result | None:
        """Return the finished result of this very configuration, or None."""
        file = self.result_file()
        result = read([file])[0] if file.exists() else None
        return result if result is not None and result.status == "done" else None

    def run(
        self, data_root: Path | None, *, resume: bool = False, stop: Callable[[], bool] = lambda: False,
        watch: Callable[[Stage, EpochLog | None], None] = lambda stage, log: None,  # noqa: ARG005
        say: Callable[[str], None] = lambda line: warnings.warn(line, stacklevel=2), every: float = 60.0,
    ) -> Iterator[Stage]:  # fmt: skip
        """Develop the network, yielding each stage before it runs, and write the result.

        In the processes that torchrun started each trains on its part of every batch, and the first one writes.

        Args:
            data_root: where the data sets lie.
            resume: go on from the checkpoint, if there is one.
            stop: asked after every update; true interrupts, and leaves a checkpoint.
            watch: told what happens: `(stage, epoch log or None)`.
            say: told, in a sentence, what a person should know.
            every: seconds between checkpoints.

        Raises:
            OptionError: another process is at work in the run's folder, or model, data and method do not fit.
        """
        started = datetime.now(UTC)
        if self.recipe.threads is not None:
            torch.set_num_threads(self.recipe.threads)
        data = load(self.recipe.data, data_root, validation=self.recipe.validation)
        self._classes = data.classes
        where = environment()
        around = Surroundings(
            data, self.seed, self.folder, self._fresh, stop=stop, say=say, machine=whereabouts(where),
            guard=Guard(self.recipe.health.limits),
        )
        around.watch = self._signing(around, started, where, watch)
        network = Network(self._fresh(self.seed), Topology(self.seed))
        self._check_fit(network.model, data)
        self.network, self.log = network, around.log
        with alone_in(self.folder):
            yield from self._developed(around, resume, every, started, where)
            self.tidy()
        together.wait()

    def _developed(
        self, around: Surroundings, resume: bool, every: float, started: datetime, where: Mapping[str, Any]
    ) -> Iterator[Stage]:  # fmt: skip
        """Develop the network, and write how that ended, unless it was refused before it began."""
        began, status, reason = False, "failed", ""
        try:
            with reached(together.size()):
                stages = self.stages()
                for stage in develop(
                    self.network, stages, around, identity=self.identity, resume=resume, every=every
                ):  # fmt: skip
                    began = True
                    yield stage
            read_test(around)
            began, status = True, "done"
        except Interrupted:
            status, reason = "interrupted", "asked to stop"
            raise
        except (GeneratorExit, KeyboardInterrupt):
            status, reason = "interrupted", "left before its end"
            raise
        except (OSError, SynaptreeError) as error:
            reason = str(error)
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            if together.first() and began:
                with suppress(*([] if status == "done" else [OSError])):  # what stopped the run says more
                    write(self._result(around, status, reason, started, where), self.folder)
                with suppress(OSError):
                    (self.folder / PROGRESS).unlink()

    def _signing(
        self, around: Surroundings, started: datetime, where: Mapping[str, Any],
        watch: Callable[[Stage, EpochLog | None], None],
    ) -> Callable[[Stage, EpochLog | None], None]:  # fmt: skip
        """Return `watch` that also writes down, now and then, what was recorded so far."""
        signed = 0.0

        def sign_and_watch(stage: Stage, log: EpochLog | None) -> None:
            nonlocal signed
            if together.first() and time.monotonic() - signed > SIGN_EVERY:
                with suppress(OSError):  # it is for onlookers: training goes on without
                    write_progress(self._result(around, "running", "", started, where), self.folder)
                signed = time.monotonic()
            watch(stage, log)

        return sign_and_watch

    def _check_fit(self, model: nn.Module, data: Dataset) -> None:
        """Raise an OptionError for what would otherwise fail after hours: data the model or the method cannot take."""
        x = data.normalise(data.train.x[:2])
        try:
            with torch.no_grad():
                outputs = model.eval()(x).shape[-1]
        except RuntimeError as error:
            wanted = zoo.MODELS[self.recipe.model].input_shape
            raise OptionError(
                f"model {self.recipe.model!r} takes images of shape {wanted}, data set {data.name!r} has "
                f"{tuple(x.shape[1:])}; choose another of the two, or give model_options ({error})"
            ) from None
        if outputs != data.classes:
            raise OptionError(
                f"model {self.recipe.model!r} has {outputs} outputs, data set {data.name!r} has {data.classes} "
                "classes: leave model_options.classes out"
            )
        images = len(data.train.y)
        for stage in self.stages() if self.control is None else ():
            if isinstance(stage, Prune | Grow) and stage.method.needs and stage.samples > images:
                raise OptionError(f"samples = {stage.samples}: data set {data.name!r} has {images} training images")

    def stages(self) -> list[Stage]:
        """Return the programme of this run."""
        recipe = self.recipe
        if self.control is None and recipe.programme is not None:
            return programme_stages(recipe.programme, recipe.dense)
        dense: list[Stage] = [Train(recipe.dense, "dense"), Measure()]
        if self.control is None and recipe.acts_in_training:
            stages = dense
            for options in recipe.points:
                method = methods.build(recipe.method, **options)
                training = Train(recipe.retraining, "train", method, recipe.rounds.exclude)
                stages += [Renew(), training, Measure()]
            return stages
        if self.control is None:
            method, stages = methods.build(recipe.method, **recipe.method_options), dense
            for _ in range(recipe.count):
                stages += [self._prune(method), *self._restart(), Train(recipe.retraining, "retrain"), Measure()]
            return stages
        at = recipe.controls[self.control]
        if at == "all" and recipe.sweep is not None:  # each point starts anew
            at = tuple(range(1, recipe.count + 1))
        if at == "all":
            stages = [self._load(1)]
            for index in range(1, recipe.count + 1):
                stages += self._control_round(index)
            return stages
        stages = []
        for index in at:
            stages += [self._load(index), *self._control_round(index)]
        return stages

    def _load(self, before: int) -> Stage:
        """Return the stage that starts from the dense network, with the data order the method met in round `before`."""
        seen = [epoch for epoch in self._parent_result.epochs if epoch.round < before]
        return Load(self._parent.folder, epoch=len(seen), step=max((epoch.step for epoch in seen), default=0))

    def _control_round(self, index: int) -> list[Stage]:
        """Return the stages that bring a control to the method's density of round `index`."""
        parent = self._parent.folder
        aim = self._parent_round(index)
        retrain: list[Stage] = [Train(self.recipe.retraining, "retrain"), Measure()]
        match self.control:
            case "shuffled":
                return [Adopt(parent, index), Shuffle(), *self._restart(), *retrain]
            case "rewound":
                return [Adopt(parent, index), Rewind(0), *retrain]
            case "reinitialised":
                return [Adopt(parent, index), Reinitialise(), *retrain]
            case "random" | "magnitude":
                method = methods.build(self.control, allocate=dict(aim.layers))
            case _:
                allocate = str(self.control).removeprefix("magnitude_")
                method = methods.build("magnitude", density=self._pruned_density(aim), allocate=allocate)
        return [self._prune(method, index), *self._restart(), *retrain]

    def _prune(self, method: Any, index: int | None = None) -> Stage:
        rounds = self.recipe.rounds
        return Prune(method, rounds.samples, rounds.sample_seed, rounds.exclude, index)

    def _restart(self) -> list[Stage]:
        rounds = self.recipe.rounds
        return [Rewind(rounds.rewind_step)] if rounds.restart == "rewind" else []

    @cached_property
    def _parent(self) -> "Run":
        return Run(self.recipe, self.seed, None, self.out)

    @cached_property
    def _parent_result(self) -> Result:
        result = self._parent.done()
        if result is None:
            raise OptionError(f"the control {self.control!r} needs the method's own result first, seed {self.seed}")
        return result

    def _parent_round(self, index: int) -> Round:
        return next(part for part in self._parent_result.rounds if part.round == index)

    def _pruned_density(self, aim: Round) -> float:
        """Return the density of the layers that are not excluded, which are all that a control may prune."""
        model = self._fresh(self.seed)
        layers = layers_of(model, exclude=self.recipe.rounds.exclude)
        weights = {layer.name: layer.module.weight.numel() for layer in layers}
        return sum(aim.layers[name] * n for name, n in weights.items()) / sum(weights.values())

    def _fresh(self, seed: int) -> nn.Module:
        return self.recipe.build_model(seed, self._classes)

    def _result(
        self, around: Surroundings, status: str, reason: str, started: datetime, where: Mapping[str, Any]
    ) -> Result:
        epochs = around.log["epochs"]
        seconds = sorted(entry["seconds"] for entry in epochs)
        return Result.model_validate({
            "recipe": self.recipe.name, "method": self.recipe.method, "control": self.control, "seed": self.seed,
            "config": self.config, "config_hash": self.hash, "status": status, "reason": reason or None,
            "started": started.isoformat(timespec="seconds"),
            "seconds": (datetime.now(UTC) - started).total_seconds(),
            "seconds_per_epoch": seconds[len(seconds) // 2] if seconds else None,
            "test_from": around.data.test_from, **where, **around.log,
        })  # fmt: skip


def runs(recipe: Recipe, out: Path, seeds: Sequence[int] | None = None) -> list[Run]:
    """Return the runs of a recipe in the order they must happen: the method, then its controls, seed by seed."""
    return [
        Run(recipe, seed, control, out)
        for seed in dict.fromkeys(recipe.seeds if seeds is None else seeds)
        for control in (None, *(name for name, at in recipe.controls.items() if at))
    ]


def start(recipe: Recipe, out: Path, data_root: Path | None = None, **options: Any) -> list[Result]:
    """Run everything a recipe asks for that is not there yet; return all its results.

    Args:
        recipe: the experiment.
        out: folder for the runs' files.
        data_root: where the data sets lie.
        options: `seeds`, and those of `Run.run`.
    """
    seeds, results = options.pop("seeds", None), []
    for run in runs(recipe, out, seeds):
        if run.done() is None:
            for _ in run.run(data_root, **options):
                pass
        result = run.done()
        assert result is not None
        results.append(result)
    return results
