"""Spaces: which values of a recipe's keys a sweep tries."""

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synaptree.core.errors import OptionError, unknown

__all__ = ["DRAWS", "Domain", "Search", "Space", "load_space"]

DIGITS = 6  # of a drawn number: enough to tell trials apart, few enough to copy

DRAWS: Final[dict[str, Callable[[Random, Any], Any]]] = {
    "choice": lambda rng, values: rng.choice(values),
    "uniform": lambda rng, ends: _short(rng.uniform(*ends)),
    "loguniform": lambda rng, ends: _short(math.exp(rng.uniform(*map(math.log, ends)))),
    "randint": lambda rng, ends: rng.randint(*ends),
}
"""How a value is drawn; `grid` is not among them, since it takes every value."""


class Search(BaseModel):
    """How a space is searched, and what counts as best; nothing of it looks at the test set.

    Attributes:
        kind: "grid" tries every combination; "random" draws; "pareto" does either, and asks for the front of
            validation accuracy against density instead of one best trial.
        samples: how many points are drawn, for keys that are no grid.
        seed: of the draws; more samples of the same seed begin with the same points.
        max_density: a network denser than this, in (0, 1], is not chosen; without it, a trial is judged by the
            network it ends with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["grid", "random", "pareto"] = "grid"
    samples: int | None = Field(None, ge=1)
    seed: int = 0
    max_density: float | None = Field(None, gt=0, le=1)


@dataclass(frozen=True)
class Domain:
    """The values one key may take: `kind` is "grid" or a name in `DRAWS`, `values` its list or its two ends."""

    kind: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    """What a sweep tries.

    Attributes:
        file: it was read from.
        domains: dotted key of a recipe -> its values.
        search: how they are combined or drawn.

    >>> domains = {"dense.lr": Domain("grid", (0.1, 0.01)), "dense.epochs": Domain("grid", (5,))}
    >>> Space("space.toml", domains, Search()).points()
    [{'dense.lr': 0.1, 'dense.epochs': 5}, {'dense.lr': 0.01, 'dense.epochs': 5}]
    """

    file: str | Path
    domains: Mapping[str, Domain]
    search: Search

    def points(self) -> list[dict[str, Any]]:
        """Return the points to try, key -> value; each drawn point meets every combination of the grids."""
        grids = {key: domain.values for key, domain in self.domains.items() if domain.kind == "grid"}
        combinations = [dict(zip(grids, values, strict=True)) for values in product(*grids.values())]
        rng = Random(self.search.seed)
        return [
            {key: (drawn | combination)[key] for key in self.domains}
            for drawn in (self._draw(rng) for _ in range(self.search.samples or 1))
            for combination in combinations
        ]

    def _draw(self, rng: Random) -> dict[str, Any]:
        drawn = {key: domain for key, domain in self.domains.items() if domain.kind != "grid"}
        return {key: DRAWS[domain.kind](rng, domain.values) for key, domain in drawn.items()}

    def with_samples(self, samples: int | None) -> Self:
        """Return the space with another number of samples, unless it is None.

        Raises:
            OptionError: nothing is drawn from this space, or what is drawn has no number.
        """
        space = self if samples is None else replace(self, search=self.search.model_copy(update={"samples": samples}))
        space._check_samples()
        return space

    def _check_samples(self) -> None:
        kind, samples = self.search.kind, self.search.samples
        drawn = [key for key, domain in self.domains.items() if domain.kind != "grid"]
        if kind == "grid" and drawn:
            how = self.domains[drawn[0]].kind
            raise OptionError(
                f"{self.file}: {drawn[0]} = {{ {how} = ... }} is drawn, and search.kind is 'grid'; list its values as "
                "{ grid = [...] }, or search with kind = \"random\""
            )
        if kind == "random" and not drawn:
            raise OptionError(
                f"{self.file}: search.kind is 'random', and every key is a grid, of which nothing is drawn; use "
                f"{', '.join(DRAWS)}, or kind = \"grid\""
            )
        if drawn and samples is None:
            raise OptionError(f"{self.file}: {drawn[0]} is drawn, but how often? Set search.samples, or give --samples")
        if samples is not None and not drawn:
            raise OptionError(f"{self.file}: samples = {samples}, but every key is a grid: nothing is drawn")


def load_space(path: str | Path) -> Space:
    """Read a space: a TOML file like a recipe, with a way to choose in place of each value, and a table `[search]`.

    Whether the keys are those of a recipe shows when `trials` brings both together.

    Args:
        path: of the file.

    Raises:
        OptionError: the file is missing or no TOML, a key has no values to try, or values that cannot be.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read as a space ({error})") from None
    search = _search(path, tables.pop("search", {}))
    domains = dict(_domains(path, tables, ""))
    if not domains:
        raise OptionError(f"{path}: wanted keys of a recipe with values to try, as dense.lr = {{ grid = [0.1, 0.01] }}")
    return Space(path, domains, search)


def _search(path: str | Path, table: Any) -> Search:
    try:
        return Search.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("search", *first["loc"])))
        if first["type"] == "extra_forbidden":
            raise OptionError(f"{path}: {unknown('key', key, (f'search.{k}' for k in Search.model_fields))}") from None
        raise OptionError(f"{path}: {key}: {first['msg']}, got {first['input']!r}") from None


def _domains(path: str | Path, table: Mapping[str, Any], within: str) -> Iterator[tuple[str, Domain]]:
    """Yield dotted keys and their domains; `a.b` may be written as a quoted key, a dotted key or a key of a table."""
    ways = ("grid", *DRAWS)
    for name, value in table.items():
        key = f"{within}.{name}" if within else name
        kinds = [kind for kind in ways if kind in value] if isinstance(value, dict) else []
        if isinstance(value, list) and within:  # a mistyped way looks like a key
            raise OptionError(f"{path}: {within}: {unknown('way to choose', name, ways)}")
        if not isinstance(value, dict) or not value:
            raise OptionError(f"{path}: {key} = {value!r} is no choice; write {key} = {{ grid = [...] }} or another of "
                              f"{', '.join(ways)}")  # fmt: skip
        if not kinds:
            yield from _domains(path, value, key)
        elif len(value) > 1:
            raise OptionError(f"{path}: {key}: wanted one way to choose, got {', '.join(value)}")
        else:
            yield key, _domain(path, key, kinds[0], value[kinds[0]])


def _domain(path: str | Path, key: str, kind: str, values: Any) -> Domain:
    def wrong(wanted: str) -> OptionError:
        return OptionError(f"{path}: {key}: wanted {kind} = {wanted}, got {values!r}")

    if not isinstance(values, list) or not values:
        raise wrong("a list of values, one at least")
    if kind not in ("grid", "choice"):
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
        if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
            raise wrong("[smallest, largest], two numbers")
        if kind == "loguniform" and numbers[0] <= 0:
            raise wrong("[smallest, largest], both above 0")
        if kind == "randint" and not all(isinstance(v, int) for v in numbers):
            raise wrong("[smallest, largest], two whole numbers")
    return Domain(kind, tuple(values))


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
