"""Trials: the recipes that a sweep runs, each with its point's values, and each as a file of its own."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synaptree.artifact.files import replacing
from synaptree.core.errors import OptionError
from synaptree.recipe import Recipe, load_recipe
from synaptree.results import config_hash
from synaptree.sweep.space import Space

__all__ = ["Trial", "recipe_text", "trials", "write_recipe"]

LONGEST_NAME = 100  # of a trial, in characters: files are called by it

_NOTHING_CHANGES = ("name", "about", "seconds_per_epoch", "seeds", "controls")  # by these keys, in what a run does


@dataclass(frozen=True)
class Trial:
    """One point of a space: its values, dotted key -> value, and the recipe that has them and is named by them."""

    values: dict[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        """What its results and its file are called."""
        return self.recipe.name


def trials(recipe: str | Path, space: Space) -> list[Trial]:
    """Return a trial for each point of a space, every one of them a valid recipe; equal ones count once.

    Args:
        recipe: file of the recipe that is changed.
        space: what is tried.

    Raises:
        OptionError: a key or value of the space fits no recipe; the message names both.
    """
    for key in space.domains:
        if key.partition(".")[0] in _NOTHING_CHANGES:
            raise OptionError(f"{space.file}: {key} changes nothing in what a run does, so there is nothing to compare")
    _ = load_recipe(recipe)  # what is wrong with the recipe itself is not the space's fault
    found: dict[str, tuple[dict[str, Any], Recipe]] = {}
    for point in space.points():
        changed = _changed(recipe, space, point)
        found.setdefault(config_hash(changed.config()), (point, changed))
    names: dict[str, Trial] = {}
    for code, (point, changed) in found.items():
        name = _name(changed.name, point)
        name = name if len(name) <= LONGEST_NAME and name not in names else f"{changed.name}-{code}"
        names[name] = Trial(point, changed.model_copy(update={"name": name}))
    return list(names.values())


def _changed(recipe: str | Path, space: Space, point: Mapping[str, Any]) -> Recipe:
    try:
        return load_recipe(recipe, [f"{key}={_toml(value)}" for key, value in point.items()])
    except OptionError as error:
        values = ", ".join(f"{key} = {_toml(value)}" for key, value in point.items())
        raise OptionError(f"{space.file}: no recipe has {values}: {error}") from None


def _name(recipe: str, point: Mapping[str, Any]) -> str:
    """Return a name that says the values, by the last parts of their keys where those differ."""
    last = [key.rpartition(".")[2] for key in point]
    keys = last if len(set(last)) == len(last) else list(point)
    text = "-".join([recipe, *(f"{key}={value}" for key, value in zip(keys, point.values(), strict=True))])
    return re.sub(r"[^\w.+=-]+", "_", text)


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as TOML that `load_recipe` reads back, without a base; what was left out stays left out.

    >>> print(recipe_text(Recipe(model="mlp", data="digits", method="magnitude", dense={"lr": 0.01})), end="")
    model = "mlp"
    data = "digits"
    method = "magnitude"
    <BLANKLINE>
    [dense]
    lr = 0.01
    """
    parts = recipe.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    tables = {key: value for key, value in parts.items() if isinstance(value, dict)}
    lines = [_line(key, value) for key, value in parts.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_line(key, value) for key, value in table.items())]
    return "\n".join(line for line in lines if line is not None) + "\n"


def write_recipe(trial: Trial, folder: Path) -> Path:
    """Write a trial's recipe to `folder/NAME.toml`; return that path."""
    path = folder / f"{trial.name}.toml"
    with replacing(path) as partial:
        partial.write_text(recipe_text(trial.recipe), encoding="utf-8")
    return path


def _line(key: str, value: Any) -> str | None:
    """Return `key = value`, the tables of a list on lines of their own; None for None, which TOML has no word for."""
    if value is None:
        return None
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return f"{_key(key)} = [\n" + "".join(f"    {_toml(item)},\n" for item in value) + "]"
    return f"{_key(key)} = {_toml(value)}"


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            inner = ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None)
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case int() | float():
            return repr(value)
    return json.dumps(str(value), ensure_ascii=False)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)
