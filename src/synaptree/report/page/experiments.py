"""Runs put in order: those of one data set together, in them those of one configuration."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from synaptree.report.comparison import Row, summary
from synaptree.report.page.gather import Found

__all__ = ["Experiment", "by_data", "experiments"]

OF_A_RUN = ("seed", "control", "at")  # in which the runs of a method and of its controls differ


@dataclass(frozen=True)
class Experiment:
    """A method and its controls under one configuration.

    Attributes:
        recipe: its name.
        method: its name.
        apart: what tells it from others of the same recipe and method; "" where there are none.
        runs: in order of control and seed.
    """

    recipe: str
    method: str
    apart: str
    runs: tuple[Found, ...]

    @property
    def title(self) -> str:
        """Name for people."""
        recipe = self.recipe.removesuffix(".toml").rpartition("/")[2]
        return f"{recipe}: {self.method}" + (f" ({self.apart})" if self.apart else "")

    @property
    def detailed(self) -> Found:
        """The run that is shown in detail: the method's own with the lowest seed, else the first control's."""
        return min(self.runs, key=lambda run: (run.result.control is not None, run.result.seed))

    @cached_property
    def rows(self) -> list[Row]:
        """Its rounds, mean over seeds, with their differences to dense."""
        return summary(run.result for run in self.runs)

    @property
    def model(self) -> str:
        """The network that it developed."""
        config = self.runs[0].result.config
        return f"{config.get('model', '')} {config.get('model_options') or ''}".strip()


def by_data(runs: Iterable[Found]) -> dict[str, list[Found]]:
    """Return the runs of each data set, by its name."""
    found: dict[str, list[Found]] = {}
    for run in runs:
        found.setdefault(str(run.result.config.get("data", "no data set named")), []).append(run)
    return found


def experiments(runs: Sequence[Found]) -> list[Experiment]:
    """Return the runs of one data set by recipe, method and configuration."""
    latest = {_at(run): run.result.config.get("at") for run in sorted(runs, key=lambda run: run.written)}
    groups: dict[tuple[str, str], list[tuple[dict[str, Any], list[Found]]]] = {}
    for run in runs:
        config, at = _config(run), run.result.config.get("at")
        if at != latest[_at(run)]:  # a control that was asked for otherwise before
            config["at"] = at
        alike = groups.setdefault((run.result.recipe, run.result.method), [])
        for known, members in alike:
            if known == config:
                members.append(run)
                break
        else:
            alike.append((config, [run]))
    return [
        Experiment(recipe, method, apart, tuple(members))
        for (recipe, method), alike in groups.items()
        for apart, (_, members) in zip(_apart([config for config, _ in alike]), alike, strict=True)
    ]


def _config(run: Found) -> dict[str, Any]:
    return _flat({key: value for key, value in run.result.config.items() if key not in OF_A_RUN})


def _at(run: Found) -> tuple[str, str, str | None, str]:
    """Return what runs have in common that must have one value of `at`."""
    return run.result.recipe, run.result.method, run.result.control, str(_config(run))


def _apart(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what tells each configuration from the others.

    >>> _apart([{"lr": 0.1, "epochs": 3}, {"lr": 0.2, "epochs": 3}]), _apart([{"lr": 0.1}])
    (['lr = 0.1', 'lr = 0.2'], [''])
    """
    keys = sorted({key for config in configs for key in config})
    differ = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
    return [", ".join(f"{key} = {config.get(key, 'none')}" for key in differ) for config in configs]


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return a configuration with dotted keys.

    >>> _flat({"dense": {"lr": 0.1}, "data": "mnist"})
    {'dense.lr': 0.1, 'data': 'mnist'}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat
