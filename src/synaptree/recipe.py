"""Recipes: one experiment as a TOML file, with its controls, run for its seeds."""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from synaptree import methods
from synaptree.core.errors import OptionError, SynaptreeError, unknown
from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.schedule import Never
from synaptree.core.topology import Topology
from synaptree.results import Result, Round, config_hash, environment, read, write
from synaptree.train import zoo
from synaptree.train.data import SETS, Dataset, load
from synaptree.train.loop import EpochLog, Interrupted, TrainOptions
from synaptree.train.network import Network
from synaptree.train.programme import (
    CHECKPOINT,
    Adopt,
    Load,
    Log,
    Measure,
    Prune,
    Reinitialise,
    Rewind,
    Shuffle,
    Stage,
    Surroundings,
    Train,
    develop,
    read_test,
)

__all__ = ["CONTROLS", "Recipe", "Run", "find_recipe", "load_recipe", "runs", "start"]

CONTROLS = {
    "magnitude": "smallest weights go, at the method's own density in every layer",
    "magnitude_global": "smallest weights of the whole network go, at the method's density",
    "magnitude_erdos_renyi": "smallest weights go, small layers kept denser, at the method's density",
    "random": "random connections go, at the method's own density in every layer",
    "shuffled": "the method's masks, dealt out anew within each layer",
    "reinitialised": "the method's masks, on new initial weights",
}
"""What a method is compared with; each at the same density, data, seeds and epochs."""


class Part(BaseModel):
    """Base of the parts of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rounds(Part):
    """How often the method acts, and what happens between."""

    rounds: int = Field(10, ge=0)
    restart: Literal["rewind", "continue"] = "continue"
    rewind_step: int = Field(0, ge=0)
    samples: int = Field(1000, ge=1)
    sample_seed: int | None = None
    exclude: tuple[str, ...] = ()


class Recipe(Part):
    """One experiment.

    Attributes:
        name: of the file, without its ending.
        about: what it shows, in a sentence.
        seconds_per_epoch: as measured, and on what.
        model: of the zoo; `model_options` are its own.
        data: the data set; `validation` training images are held out, by a seed of its own.
        threads: CPU threads torch may use; small networks are faster with 1.
        seeds: each gives a dense network of its own, shared by the method and its controls.
        dense: how the dense network is trained.
        method: registered name; `method_options` are its own.
        rounds: how often it acts, and what happens between.
        retrain: how the network is trained after each edit; what is left out is as in `dense`.
        controls: name -> "all" (edited round by round like the method) or the rounds at which a dense
            network is brought to the method's density at once; an empty list leaves a base's control out.
    """

    name: str = ""
    about: str = ""
    seconds_per_epoch: str = ""
    model: str
    model_options: dict[str, Any] = {}
    data: str
    validation: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    seeds: tuple[int, ...] = (0,)
    dense: TrainOptions = TrainOptions.model_validate({})
    method: str
    method_options: dict[str, Any] = {}
    rounds: Rounds = Rounds.model_validate({})
    retrain: dict[str, Any] = {}
    controls: dict[str, Literal["all"] | tuple[int, ...]] = {}

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return _known("model", name, zoo.MODELS)

    @field_validator("data")
    @classmethod
    def _known_data(cls, name: str) -> str:
        return _known("data set", name, SETS)

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        return _known("method", name, methods.METHODS)

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, controls: dict[str, Any]) -> dict[str, Any]:
        for name in controls:
            _known("control", name, CONTROLS)
        return controls

    @model_validator(mode="after")
    def _retraining_is_valid(self) -> Self:
        try:
            _ = self.retraining
        except ValidationError as error:
            raise ValueError("; ".join(_explain(part, "retrain") for part in error.errors())) from None
        return self

    @model_validator(mode="after")
    def _controls_ask_for_rounds_there_are(self) -> Self:
        for name, at in self.controls.items():
            for index in at if at != "all" else ():
                if not 1 <= index <= self.count:
                    raise ValueError(f"controls.{name} asks for round {index}; there are rounds 1 to {self.count}")
        return self

    @property
    def count(self) -> int:
        """How many rounds there are: one for a method that acts in training."""
        return 1 if acts_in_training(methods.build(self.method, **self.method_options)) else self.rounds.rounds

    @property
    def retraining(self) -> TrainOptions:
        """How the network is trained after each edit."""
        return TrainOptions.model_validate(self.dense.model_dump() | self.retrain)


def acts_in_training(method: Method) -> bool:
    """Say whether a method edits the topology while the network trains, instead of between trainings."""
    return method.edit is None and not isinstance(method.when, Never)


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: `name` is a path, or a name under `recipes/`, here or in the package.

    Raises:
        OptionError: nothing lies there.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".toml":
        return path  # a missing one is told apart when it is read
    places = (Path(__file__).parent / "recipes", Path("recipes"))
    known = {
        file.relative_to(place).with_suffix("").as_posix(): file
        for place in places for file in sorted(place.rglob("*.toml"))
    }  # fmt: skip
    if name not in known:
        raise unknown("recipe", name, known or ["(none lies under recipes/)"])
    return known[name]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, and the one it is based on (`base = "other.toml"`, beside it), and check every key.

    Args:
        path: of the TOML file.
        overrides: texts `key=value` or `part.key=value`, the value as in TOML.

    Raises:
        OptionError: the file is missing or no TOML, a key or name is unknown, or a value is out of range.
    """
    config = _read(Path(path))
    for text in overrides:
        _override(config, text)
    config["name"] = Path(path).stem
    try:
        recipe = Recipe.model_validate(config)
        methods.build(recipe.method, **recipe.method_options)
        zoo.build(recipe.model, **_model_options(recipe))
    except ValidationError as error:
        raise OptionError(f"{path}: " + "; ".join(_explain(part) for part in error.errors())) from None
    return recipe


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
        unhashed = {"name", "about", "seconds_per_epoch", "seeds", "controls"}
        self.config = recipe.model_dump(mode="json", exclude=unhashed)
        self.config |= {"seed": seed, "control": control, "at": recipe.controls.get(control) if control else None}
        self.hash = config_hash(self.config)
        # two configurations never share a folder: a control must not start from another one's networks
        self.folder = out / f"{control or recipe.method}-s{seed}-{self.hash}"
        self.network, self.log = Network(torch.nn.Module()), Log()

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
        return self.recipe.dense.epochs + retraining * self.recipe.count

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted run goes on from."""
        return self.folder / CHECKPOINT

    def forget(self) -> None:
        """Remove the result and the checkpoint, so that the run starts over."""
        self.checkpoint.unlink(missing_ok=True)
        self.result_file().unlink(missing_ok=True)

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
    ) -> Iterator[Stage]:  # fmt: skip
        """Develop the network, yielding each stage before it runs, and write the result."""
        started = datetime.now(UTC)
        if self.recipe.threads is not None:
            torch.set_num_threads(self.recipe.threads)
        data = load(self.recipe.data, data_root, validation=self.recipe.validation)
        around = Surroundings(data, self.seed, self.folder, self._fresh, stop=stop, watch=watch)
        network = Network(self._fresh(self.seed), Topology(self.seed))
        self._check_fit(network.model, data)
        self.network, self.log = network, around.log
        status, reason = "failed", "stopped by an error of the programme"
        try:
            yield from develop(network, self.stages(), around, identity=self.hash, resume=resume)
            read_test(around)
            status, reason = "done", ""
        except Interrupted:
            status, reason = "interrupted", "asked to stop"
            raise
        except SynaptreeError as error:
            reason = str(error)
            raise
        finally:
            self._write(around, status, reason, started)
        self.checkpoint.unlink(missing_ok=True)

    def _check_fit(self, model: torch.nn.Module, data: Dataset) -> None:
        """Raise an OptionError for what would otherwise fail after hours: data the model or the method cannot take."""
        x = data.normalise(data.train.x[:2])
        try:
            with torch.no_grad():
                model.eval()(x)
        except RuntimeError as error:
            wanted = zoo.MODELS[self.recipe.model].input_shape
            raise OptionError(
                f"model {self.recipe.model!r} takes images of shape {wanted}, data set {data.name!r} has "
                f"{tuple(x.shape[1:])}; choose another of the two, or give model_options ({error})"
            ) from None
        if self.recipe.rounds.samples > len(data.train.y):
            raise OptionError(
                f"rounds.samples = {self.recipe.rounds.samples}: data set {data.name!r} has {len(data.train.y)} training images"
            )

    def stages(self) -> list[Stage]:
        """Return the programme of this run."""
        recipe = self.recipe
        method = methods.build(recipe.method, **recipe.method_options)
        dense: list[Stage] = [Train(recipe.dense, "dense"), Measure()]
        if self.control is None and acts_in_training(method):
            return [*dense, Rewind(0), Train(recipe.retraining, "train", method), Measure()]
        if self.control is None:
            stages = dense
            for _ in range(recipe.count):
                stages += [self._prune(method), *self._restart(), Train(recipe.retraining, "retrain"), Measure()]
            return stages
        at = recipe.controls[self.control]
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
        seen = [epoch for epoch in self._parent_result().epochs if epoch.round < before]
        return Load(self._parent().folder, epoch=len(seen), step=max((epoch.step for epoch in seen), default=0))

    def _control_round(self, index: int) -> list[Stage]:
        """Return the stages that bring a control to the method's density of round `index`."""
        parent = self._parent().folder
        aim = self._parent_round(index)
        retrain: list[Stage] = [Train(self.recipe.retraining, "retrain"), Measure()]
        match self.control:
            case "shuffled":
                return [Adopt(parent, index), Shuffle(), *self._restart(), *retrain]
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

    def _parent(self) -> "Run":
        return Run(self.recipe, self.seed, None, self.out)

    def _parent_result(self) -> Result:
        result = self._parent().done()
        if result is None:
            raise OptionError(f"the control {self.control!r} needs the method's own result first, seed {self.seed}")
        return result

    def _parent_round(self, index: int) -> Round:
        return next(part for part in self._parent_result().rounds if part.round == index)

    def _pruned_density(self, aim: Round) -> float:
        """Return the density of the layers that are not excluded, which are all that a control may prune."""
        model = self._fresh(self.seed)
        layers = layers_of(model, exclude=self.recipe.rounds.exclude)
        weights = {layer.name: layer.module.weight.numel() for layer in layers}
        return sum(aim.layers[name] * n for name, n in weights.items()) / sum(weights.values())

    def _fresh(self, seed: int) -> torch.nn.Module:
        return zoo.build(self.recipe.model, seed=seed, **_model_options(self.recipe))

    def _write(self, around: Surroundings, status: str, reason: str, started: datetime) -> None:
        epochs = around.log["epochs"]
        seconds = sorted(entry["seconds"] for entry in epochs)
        result = Result.model_validate({
            "recipe": self.recipe.name, "method": self.recipe.method, "control": self.control, "seed": self.seed,
            "config": self.config, "config_hash": self.hash, "status": status, "reason": reason or None,
            "started": started.isoformat(timespec="seconds"),
            "seconds": (datetime.now(UTC) - started).total_seconds(),
            "seconds_per_epoch": seconds[len(seconds) // 2] if seconds else None,
            **environment(), **around.log,
        })  # fmt: skip
        write(result, self.folder)


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


def _read(path: Path) -> dict[str, Any]:
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        raise unknown("recipe", path, near or ["(no recipe lies there)"]) from None
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read as a recipe ({error})") from None
    base = config.pop("base", None)
    return _merged(_read(path.parent / base), config) if base else config


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _override(config: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise OptionError(f"--set {text!r}: wanted key=value, as in dense.epochs=5")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    *parts, last = key.strip().split(".")
    for part in parts:
        config = config.setdefault(part, {})
        if not isinstance(config, dict):
            raise OptionError(f"--set {text!r}: {part!r} is no part of a recipe")
    config[last] = parsed


def _known(kind: str, name: str, known: Any) -> str:
    if name not in known:
        raise unknown(kind, name, known)
    return name


def _model_options(recipe: Recipe) -> dict[str, Any]:
    return {"classes": SETS[recipe.data].classes, **recipe.model_options}


_KEYS: dict[str, list[str]] = {
    "": list(Recipe.model_fields),
    "dense": list(TrainOptions.model_fields),
    "retrain": list(TrainOptions.model_fields),
    "rounds": list(Rounds.model_fields),
}


def _explain(problem: Mapping[str, Any], within: str = "") -> str:
    where = ".".join(str(part) for part in (within, *problem["loc"]) if part != "")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        part = where.rpartition(".")[0]
        return str(unknown("key", where, [f"{part}.{key}" if part else key for key in _KEYS.get(part, ())]))
    if problem["type"] == "value_error":  # our own words, which name what they mean
        return message if not where or where in message else f"{where}: {message}"
    return f"{where}: {message}, got {problem['input']!r}" if where else message
