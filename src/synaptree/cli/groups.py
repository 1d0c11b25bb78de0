"""Groups of recipes: those on one model and data set, or those that a file names; and their missing runs."""

import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import synaptree
from synaptree.core.errors import OptionError, SynaptreeError, unknown
from synaptree.experiment import Run, runs
from synaptree.recipe import Recipe, load_recipe
from synaptree.report.group import group_name
from synaptree.results import Result

__all__ = ["Group", "Listed", "Missing", "listed", "missing", "select"]


@dataclass(frozen=True)
class Listed:
    """A recipe under its name: `nnrelief/lenet5-short`."""

    name: str
    recipe: Recipe

    @property
    def group(self) -> str:
        """Name of its model and data."""
        return group_name(self.recipe.model, self.recipe.model_options, self.recipe.data)

    @property
    def full(self) -> bool:
        """Whether it is the long form of another one."""
        return self.name.endswith("-full")


def listed() -> tuple[list[Listed], list[str]]:
    """Return the recipes under `recipes/`, here and in the package, and what is to be said of those not readable.

    Bases of other recipes are none, nor are files of another kind.
    """
    found, notes = [], []
    places = {place.resolve(): place for place in (Path(synaptree.__file__).parent / "recipes", Path("recipes"))}
    for place in places.values():
        for file in sorted(place.rglob("*.toml")):
            if not file.stem.endswith("-base") and _is_recipe(file):
                try:
                    found.append(Listed(file.relative_to(place).with_suffix("").as_posix(), load_recipe(file)))
                except SynaptreeError as error:
                    notes.append(f"left out: {error}")
    return found, notes


def _is_recipe(file: Path) -> bool:
    """Say whether this is meant to be a recipe, be it a broken one."""
    try:
        return not tomllib.loads(file.read_text(encoding="utf-8")).keys().isdisjoint(("model", "base", "method"))
    except (OSError, ValueError):
        return True


@dataclass(frozen=True)
class Group:
    """What is compared together.

    Attributes:
        name: for people and files.
        groups: names of models and data that belong to it.
        recipes: that belong to it.
        listed_only: results of other recipes are left out, since a file names the recipes.
    """

    name: str
    groups: frozenset[str]
    recipes: tuple[Listed, ...]
    listed_only: bool = False

    @cached_property
    def _named(self) -> frozenset[tuple[str, str]]:
        return frozenset((one.recipe.name, one.recipe.method) for one in self.recipes)

    def __contains__(self, result: Result) -> bool:
        """Say whether a result belongs to it."""
        name = group_name(
            str(result.config.get("model")), result.config.get("model_options") or {}, str(result.config.get("data"))
        )
        if name not in self.groups:
            return False
        return not self.listed_only or (result.recipe, result.method) in self._named


def select(words: Sequence[str], known: Sequence[Listed], results: Iterable[Result]) -> list[Group]:
    """Return the groups that words mean: each a group's name, a model, a data set, a recipe, or a file of recipes.

    Without words, all groups that have results.

    Args:
        words: such as `lenet_300_100-mnist`, `lenet_300_100`, `mnist`, `nnrelief/lenet5-short` or `mine.toml`.
        known: the recipes there are.
        results: the results there are; groups of theirs without recipes count as well.

    Raises:
        OptionError: nobody knows a word, or a file is no list of recipes.
    """
    meanings: dict[str, set[str]] = {}
    with_results = set()
    for one in known:
        for word in (one.group, one.recipe.model, one.recipe.data, one.name):
            meanings.setdefault(word, set()).add(one.group)
    for result in results:
        model, data = str(result.config.get("model")), str(result.config.get("data"))
        name = group_name(model, result.config.get("model_options") or {}, data)
        with_results.add(name)
        for word in (name, model, data):
            meanings.setdefault(word, set()).add(name)
    if not words:
        return [_of(name, {name}, known) for name in sorted(with_results)]
    return [
        _from_file(Path(word), known) if word.endswith(".toml") else _of(word, _meant(word, meanings), known)
        for word in dict.fromkeys(words)
    ]


def _meant(word: str, meanings: dict[str, set[str]]) -> set[str]:
    if word not in meanings:
        raise unknown("group", word, meanings)
    return meanings[word]


def _of(word: str, groups: Collection[str], known: Sequence[Listed]) -> Group:
    return Group(word, frozenset(groups), tuple(one for one in known if one.group in groups))


def _from_file(file: Path, known: Sequence[Listed]) -> Group:
    """Return the group of the recipes that a TOML file names: `recipes = ["nnrelief/lenet5-short", "mine.toml"]`."""
    try:
        names = tomllib.loads(file.read_text(encoding="utf-8")).get("recipes")
    except (OSError, ValueError) as error:
        raise OptionError(f"{file}: cannot be read as a list of recipes ({error})") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise OptionError(f'{file}: wanted recipes = ["METHOD/NAME", ...], got {names!r}')
    by_name = {one.name: one for one in known}
    chosen = []
    for name in names:
        if name.endswith(".toml"):
            chosen.append(Listed(name.removesuffix(".toml"), load_recipe(file.parent / name)))
        elif name not in by_name:
            raise unknown(f"{file}: recipe", name, by_name)
        else:
            chosen.append(by_name[name])
    return Group(file.stem, frozenset(one.group for one in chosen), tuple(chosen), listed_only=True)


@dataclass(frozen=True)
class Missing:
    """Runs of a recipe without a result.

    Attributes:
        of: the recipe.
        runs: that are missing, in the order they must happen.
        total: how many runs the recipe has.
    """

    of: Listed
    runs: tuple[Run, ...]
    total: int

    @property
    def epochs(self) -> int:
        """Epochs of training in all of them."""
        return sum(run.epochs for run in self.runs)

    @property
    def seconds(self) -> float | None:
        """How long they take by the recipe's own figure; None where it has none."""
        number = re.match(r"[\d.]+", self.of.recipe.seconds_per_epoch)
        return float(number[0]) * self.epochs if number else None

    def __str__(self) -> str:
        """Say it in a line."""
        took = "" if self.seconds is None else f", about {duration(self.seconds)} by its own figure"
        return f"{self.of.name}: missing {len(self.runs)} of {self.total} runs, {self.epochs:,} epochs{took}"


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(40), duration(600), duration(9000)
    ('1 min', '10 min', '2.5 h')
    """
    return f"{max(1, round(seconds / 60))} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def missing(
    group: Group, done: Collection[str], out: Path, *, full: bool = False, seeds: Sequence[int] | None = None
) -> list[Missing]:
    """Return what has not been run of a group, recipe by recipe.

    Args:
        group: of recipes.
        done: configuration hashes of finished runs.
        out: folder of the runs' files.
        full: the long forms of recipes as well.
        seeds: in place of the recipes' own.
    """
    found = []
    for one in group.recipes:
        if one.full and not (full or group.listed_only):
            continue
        wanted = runs(one.recipe, folder(one.recipe, out), seeds)
        left = tuple(run for run in wanted if run.hash not in done)
        if left:
            found.append(Missing(one, left, len(wanted)))
    return found


def folder(recipe: Recipe, out: Path) -> Path:
    """Return where the runs of a recipe lie, as `synaptree run` puts them."""
    return out / recipe.method / recipe.name


def named(hashes: Iterable[Any], out: Path) -> dict[str, Path]:
    """Return configuration hash -> folder of the run, of those that lie anywhere under `out` with networks in them."""
    wanted = set(hashes)
    found: dict[str, Path] = {}
    for file in sorted(out.rglob("round_*.safetensors")) if out.is_dir() else ():
        ending = file.parent.name.rpartition("-")[2]
        if ending in wanted:
            found.setdefault(ending, file.parent)
    return found
