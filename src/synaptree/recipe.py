"""Recipes: one experiment as a TOML file."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import nn

from synaptree import methods
from synaptree.core.errors import OptionError, unknown
from synaptree.stages import StageTable, TrainTable, programme_stages
from synaptree.train import zoo
from synaptree.train.health import Limits
from synaptree.train.loop import TrainOptions
from synaptree.train.programme import Measure
from synaptree.train.sources import source

__all__ = ["CONTROLS", "Recipe", "find_recipe", "load_recipe"]

CONTROLS = {
    "magnitude": "smallest weights go, at the method's own density in every layer",
    "magnitude_global": "smallest weights of the whole network go, at the method's density",
    "magnitude_erdos_renyi": "smallest weights go, small layers kept denser, at the method's density",
    "random": "random connections go, at the method's own density in every layer",
    "shuffled": "the method's masks, dealt out anew within each layer",
    "reinitialised": "the method's masks, on new initial weights",
    "rewound": "the method's masks, on the weights it started from",
}
"""What a method is compared with; each at the same density, data, seeds and epochs."""


Seed = Annotated[int, Field(ge=0, le=zoo.LARGEST_SEED)]


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


class Health(Part):
    """From where on something is said to be wrong with a network; `guards = false` says nothing."""

    guards: bool = True
    dead_units: float = Field(Limits.dead_units, ge=0, le=1)
    density: float = Field(Limits.density, ge=0, le=1)

    @property
    def limits(self) -> Limits | None:
        """What guards go by, or None where there are none."""
        return Limits(self.dead_units, self.density) if self.guards else None


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
        method: registered name; `method_options` are its own. With a programme, whose stages name their own
            methods, it is what the programme is called in results.
        rounds: how often it acts, and what happens between.
        retrain: how the network is trained after each edit; what is left out is as in `dense`.
        programme: the stages the network goes through, in place of rounds; see `synaptree.stages`. Round 0
            is the first, dense and trained.
        sweep: an option of a method that acts in training -> its values: each is a round of its own, trained
            from the initial weights.
        controls: name -> "all" (edited round by round like the method) or the rounds at which a dense
            network is brought to the method's density at once; an empty list leaves a base's control out.
        health: from where on something is said to be wrong with a network; no part of what a run is.
    """

    name: str = ""
    about: str = ""
    seconds_per_epoch: str = ""
    model: str
    model_options: dict[str, Any] = {}
    data: str
    validation: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    dense: TrainOptions = TrainOptions.model_validate({})
    method: str
    method_options: dict[str, Any] = {}
    rounds: Rounds = Rounds.model_validate({})
    retrain: dict[str, Any] = {}
    programme: Annotated[tuple[StageTable, ...], Field(min_length=1)] | None = None
    sweep: dict[str, tuple[Any, ...]] | None = None
    controls: dict[str, Literal["all"] | tuple[int, ...]] = {}
    health: Health = Health.model_validate({})

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return _known("model", name, zoo.MODELS)

    @field_validator("data")
    @classmethod
    def _known_data(cls, name: str) -> str:
        try:
            source(name)
        except OptionError as error:
            raise ValueError(str(error)) from None
        return name

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
    def _the_programme_is_valid(self) -> Self:
        if self.programme is None:
            _known("method", self.method, methods.METHODS)
        elif self.sweep is not None or self.method_options:
            key = "sweep" if self.sweep is not None else "method_options"
            raise ValueError(f"a recipe has a programme or {key}, not both: the stages say what their methods do")
        elif self.controls and not (isinstance(first := self.programme[0], TrainTable) and first.method is None):
            raise ValueError("controls start from the dense network: begin the programme with a stage that trains it")
        if self.programme is not None:
            try:
                _ = programme_stages(self.programme, self.dense)
            except ValidationError as error:
                raise ValueError("; ".join(_explain(part, "programme") for part in error.errors())) from None
            except OptionError as error:
                raise ValueError(str(error)) from None
        for option, values in (self.sweep or {}).items():
            if len(self.sweep or {}) > 1 or not values or not self.acts_in_training:
                raise ValueError(f"sweep.{option}: wanted values of one option of a method that acts in training")
        return self

    @model_validator(mode="after")
    def _controls_ask_for_rounds_there_are(self) -> Self:
        for name, at in self.controls.items():
            if at != "all" and len(set(at)) < len(at):
                raise ValueError(f"controls.{name} asks for a round twice: {list(at)}")
            for index in at if at != "all" else ():
                if not 1 <= index <= self.count:
                    raise ValueError(f"controls.{name} asks for round {index}; there are rounds 1 to {self.count}")
        return self

    @property
    def acts_in_training(self) -> bool:
        """Whether the method does."""
        return methods.build(self.method, **self.method_options).acts_in_training

    @property
    def points(self) -> list[dict[str, Any]]:
        """The method's options, for each point of the sweep."""
        swept = [{option: value} for option, values in (self.sweep or {}).items() for value in values]
        return [self.method_options | point for point in swept or [{}]]

    @property
    def count(self) -> int:
        """How many rounds there are after the first: one, or one for each point, for a method that acts in training."""
        if self.programme is not None:
            return sum(isinstance(s, Measure) for s in programme_stages(self.programme, self.dense)) - 1
        return len(self.points) if self.acts_in_training else self.rounds.rounds

    def config(self) -> dict[str, Any]:
        """Return what decides what a run does, as plain JSON; keys that came later are left out where unused."""
        unhashed = {"name", "about", "seconds_per_epoch", "seeds", "controls", "health"}
        config = self.model_dump(mode="json", exclude=unhashed)
        for part, later in ((config, ("programme", "sweep")), (config["dense"], ("penalty", "autocast"))):
            for key in later:
                if part[key] is None:
                    del part[key]
        return config

    def build_model(self, seed: int, classes: int | None = None) -> nn.Module:
        """Return a new network, with initial weights from `seed`; its outputs are the classes of the data."""
        classes = classes or source(self.data).classes or 10  # an image folder says how many when it is read
        return zoo.build(self.model, seed=seed, **{"classes": classes, **self.model_options})

    @property
    def retraining(self) -> TrainOptions:
        """How the network is trained after each edit."""
        return TrainOptions.model_validate(self.dense.model_dump() | self.retrain)


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: `name` is a path, or a name under `recipes/`, here or in the package.

    Raises:
        OptionError: nothing lies there, or something that is no file.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".toml":
        return path  # a missing one is told apart when it is read
    places = (Path(__file__).parent / "recipes", Path("recipes"))
    known = {
        file.relative_to(place).with_suffix("").as_posix(): file
        for place in places for file in sorted(place.rglob("*.toml")) if file.parent.name != "spaces"
    }  # fmt: skip
    if name in known:
        return known[name]
    if path.exists():
        raise OptionError(f"{name} is not a recipe file; give a TOML file, or the name of a recipe under recipes/")
    error = unknown("recipe", name, known or ["(none lies under recipes/)"])
    more = "" if Path("recipes").is_dir() else "; other recipes come with a checkout of synaptree, and are found there"
    raise OptionError(f"{error}{more}")


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
        for options in recipe.points if recipe.programme is None else ():
            methods.build(recipe.method, **options)
        recipe.build_model(seed=0)
    except ValidationError as error:
        raise OptionError(f"{path}: " + "; ".join(_explain(part) for part in error.errors())) from None
    return recipe


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
    inner: Any = config
    for part in parts:
        listed = isinstance(inner, list) and part.isdigit() and int(part) < len(inner)
        inner = inner[int(part)] if listed else inner.setdefault(part, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict | list):
            raise OptionError(f"--set {text!r}: {part!r} is no part of a recipe")
    if not isinstance(inner, dict):
        raise OptionError(f"--set {text!r}: wanted a stage and its key, as in programme.0.options.epochs=5")
    inner[last] = parsed


def _known(kind: str, name: str, known: Any) -> str:
    if name not in known:
        raise unknown(kind, name, known)
    return name


_KEYS: dict[str, list[str]] = {
    "": list(Recipe.model_fields),
    "dense": list(TrainOptions.model_fields),
    "retrain": list(TrainOptions.model_fields),
    "rounds": list(Rounds.model_fields),
    "health": list(Health.model_fields),
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
