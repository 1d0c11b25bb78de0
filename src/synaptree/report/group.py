"""Which results belong together: one model, one data set, one test set; and who takes part in their comparison."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from synaptree.core.errors import OptionError, SynaptreeError
from synaptree.results import Result, Round, read
from synaptree.train.sources import source

__all__ = ["Entrant", "Gathered", "Task", "entrants", "gather", "group_name", "remarks", "tasks"]

NOT_RECORDED = "a test set that is not recorded"


@dataclass(frozen=True, order=True)
class Task:
    """What results have in common that stand in one table.

    Attributes:
        group: name of model and data set, see `group_name`.
        validation: images held out of the training data; None: as many as the data set usually has.
        test: where the test images come from.
    """

    group: str
    validation: str
    test: str

    @property
    def title(self) -> str:
        """Name for people."""
        held_out = "" if self.validation == "None" else f", {self.validation} images for validation"
        return f"{self.group}, tested on {self.test}{held_out}"


def group_name(model: str, options: Mapping[str, Any], data: str) -> str:
    """Return the name of what belongs together: the model, its options, the data set.

    >>> group_name("vgg_small", {"width": 32}, "cifar10"), group_name("lenet5", {}, "folder:photos/cats")
    ('vgg_small-width32-cifar10', 'lenet5-cats')
    >>> group_name("mlp", {"inputs": 64, "hidden": [300, 100]}, "digits")
    'mlp-hidden300x100-digits'
    """
    own = {key: value for key, value in sorted(options.items()) if key not in ("inputs", "classes")}  # the data's
    chosen = [f"{key}{'x'.join(map(str, v)) if isinstance(v, list | tuple) else v}" for key, v in own.items()]
    place = data.removeprefix("folder:").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.,=-]+", "_", "-".join([model, *chosen, place]))


@dataclass(frozen=True)
class Gathered:
    """Results that could be read, each run once, with the file of each; and what is to be said of the others."""

    results: tuple[Result, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()


def gather(files: Iterable[Path]) -> Gathered:
    """Read result files; one that cannot be read becomes a note, and of the same run the fullest result stays.

    Args:
        files: of results, or folders in which `*.json` at any depth are.
    """
    kept: dict[str, tuple[Result, Path]] = {}
    notes = []
    for place in files:
        for file in sorted(place.rglob("*.json")) if place.is_dir() else [place]:
            try:
                (result,) = read([file])
            except SynaptreeError as error:
                notes.append(f"left out: {error}")
                continue
            before = kept.get(result.config_hash)
            if before is None or _fullness(result) > _fullness(before[0]):
                kept[result.config_hash] = result, file
    results, used = zip(*kept.values(), strict=True) if kept else ((), ())
    return Gathered(results, tuple(dict.fromkeys(notes)), used)


def _fullness(result: Result) -> tuple[bool, int]:
    return result.status == "done", len(result.rounds)


def remarks(results: Iterable[Result]) -> list[str]:
    """Return, a sentence each, which runs did not end well, and which lost their loss to numbers that are none."""
    said = []
    for result in results:
        run = f"{result.recipe}, {result.control or result.method}, seed {result.seed}"
        if result.status != "done":
            rounds = f"{len(result.rounds)} finished round{'' if len(result.rounds) == 1 else 's'}"
            said.append(f"{run}: {result.status} ({result.reason or 'no reason given'}); shown: {rounds}")
        lost = next((epoch for epoch in result.epochs if not math.isfinite(epoch.loss)), None)
        if lost is not None:
            said.append(
                f"{run}: from epoch {lost.epoch + 1} of round {lost.round} on the training loss is no finite number; "
                "its accuracies stand as measured"
            )
    return said


def tasks(results: Iterable[Result]) -> dict[Task, list[Result]]:
    """Return the results by what they have in common, in order of name.

    Test sets of one origin but of different sizes are kept apart as well.
    """
    found: dict[Task, list[Result]] = {}
    for result in results:
        found.setdefault(_task(result), []).append(result)
    apart: dict[Task, list[Result]] = {}
    for task, group in found.items():
        sizes = sorted({_items(result) for result in group} - {0}) or [0]
        for result in group:
            size = _items(result) or sizes[0]
            test = task.test if len(sizes) == 1 else f"{task.test}, {size} images"
            apart.setdefault(Task(task.group, task.validation, test), []).append(result)
    return dict(sorted(apart.items()))


def _task(result: Result) -> Task:
    config = result.config
    model, data = str(config.get("model", "?")), str(config.get("data", "?"))
    name = group_name(model, config.get("model_options") or {}, data)
    return Task(name, str(config.get("validation")), result.test_from or _only_test_set(data))


def _only_test_set(data: str) -> str:
    """Return the test set of a result that does not say: sure where there is only one."""
    try:
        return NOT_RECORDED if source(data).spare or source(data).format == "folders" else "the published test set"
    except OptionError:
        return NOT_RECORDED


def _items(result: Result) -> int:
    return next((part.test_items for part in result.rounds if part.test_items), 0)


@dataclass(frozen=True)
class Entrant:
    """One method, or one of its controls, under one configuration, over its seeds.

    Attributes:
        name: as short as tells it apart in its task.
        results: one for each seed, in order.
        parent: the method's own entrant, for a control; None where its results are missing.
    """

    name: str
    results: tuple[Result, ...]
    parent: "Entrant | None" = None

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self.results[0].recipe

    @property
    def method(self) -> str:
        """Name of the method, or that a recipe gives its programme."""
        return self.results[0].method

    @property
    def control(self) -> str | None:
        """Name of the control; None for the method itself."""
        return self.results[0].control

    @cached_property
    def rounds(self) -> dict[int, dict[int, Round]]:
        """Rounds by number and seed."""
        out: dict[int, dict[int, Round]] = {}
        for result in self.results:
            for part in result.rounds:
                out.setdefault(part.round, {})[result.seed] = part
        return dict(sorted(out.items()))

    @property
    def dense(self) -> dict[int, Round]:
        """The dense network of each seed; none where the network began sparse."""
        own = self if self.control is None else self.parent
        first = own.rounds.get(0, {}) if own else {}
        return first if all(part.density == 1 for part in first.values()) else {}


def entrants(results: Sequence[Result]) -> list[Entrant]:
    """Return who takes part, methods before their controls.

    Two configurations of one recipe never mix: each is an entrant of its own, named by what differs.
    """
    found: dict[tuple[str, str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: (r.method, r.recipe, r.control or "", r.seed)):
        found.setdefault((result.method, result.recipe, _configuration(result, "seed")), []).append(result)
    names = _names([group[0] for group in found.values()])
    own: dict[tuple[str, str, str], Entrant] = {}
    controls: list[Entrant] = []
    for (group, name) in zip(found.values(), names, strict=True):
        key = (group[0].method, group[0].recipe, _configuration(group[0], "seed", "control", "at"))
        if group[0].control is None:
            own[key] = Entrant(name, tuple(group))
        else:
            controls.append(Entrant(name, tuple(group), own.get(key)))
    return [*own.values(), *controls]


def _configuration(result: Result, *without: str) -> str:
    return json.dumps({k: v for k, v in result.config.items() if k not in without}, sort_keys=True)


def _names(firsts: Sequence[Result]) -> list[str]:
    """Return a name for each entrant, by one result of each."""
    short = [f"{_of_recipe(result)}{': ' + result.control if result.control else ''}" for result in firsts]
    by_name: dict[str, list[Result]] = {}
    for name, result in zip(short, firsts, strict=True):
        by_name.setdefault(name, []).append(result)
    return [
        name if len(by_name[name]) == 1 else f"{name} ({_differs(result, by_name[name][0]) or result.recipe})"
        for name, result in zip(short, firsts, strict=True)
    ]


def _of_recipe(result: Result) -> str:
    """Return the method, and of the recipe's name what model, data, method and usual form do not say.

    The recipe `lenet_300_100-epochs30-short` of NNrelief is "nnrelief epochs30".
    """
    parts = Path(result.recipe).name.removesuffix(".toml").split("-")
    words = re.split(r"\W|_", f"{result.method}_{result.config.get('data')}")
    told = {str(result.config.get("model")), "short", *words}
    rest = [part for part in parts if part not in told]
    return " ".join([result.method, *rest])


def _differs(result: Result, first: Result) -> str:
    """Return what a configuration has otherwise than the first one; "" for the first itself."""
    here, there = _flat(result.config), _flat(first.config)
    keys = [key for key in {**here, **there} if here.get(key) != there.get(key) and key != "seed"]
    return ", ".join(f"{key}={json.dumps(here.get(key))}" for key in keys[:2]) + (", ..." if keys[2:] else "")


def _flat(config: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= _flat(value, f"{within}{key}.") if isinstance(value, dict) else {f"{within}{key}": value}
    return out
