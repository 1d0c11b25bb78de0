"""What a run leaves behind: its record, the file it is kept in, and the comparison of many runs."""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from reprlib import repr as shorten
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import synaptree
from synaptree.core.errors import DataError, OptionError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "SCHEMA", "Epoch", "Interval", "Result", "Round", "Row", "as_json", "config_hash", "environment",
    "markdown", "not_below", "paired_interval", "read", "replacing", "rounds_by_seed", "summary", "table",
    "write",
]

SCHEMA: Final = 1
"""Version of the result file; another version is refused on reading."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Key = tuple[str, str, str | None, int]  # recipe, method, control, number of the round


class Record(BaseModel):
    """A part of the result file: unknown keys are refused, and a loss that is not finite survives."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Epoch(Record):
    """One pass over the training data."""

    stage: str = Field(description="name of the programme's stage")
    round: Count = Field(description="0 before any pruning")
    epoch: Count = Field(description="counted within the stage")
    step: Count = Field(description="optimizer updates since the start of the run")
    loss: float = Field(description="mean training loss of the epoch")
    validation_accuracy: Share
    density: Share = Field(description="weights alive / weights")
    seconds: Seconds


class Round(Record):
    """The network at the end of one round; round 0 is the dense one, before any pruning."""

    round: Count
    density: Share = Field(description="weights alive / weights")
    layers: dict[str, Share] = Field(description="density of each layer, in the order of the network")
    validation_accuracy: Share
    test_accuracy: Share | None = None
    test_errors: list[int] | None = Field(None, description="misclassified test items, ascending")
    test_items: Count | None = Field(None, description="size of the test set; needed beside test_errors")
    parameters: Count = Field(description="weights and biases, without batch norm")
    parameters_alive: Count
    weights: Count
    weights_alive: Count
    norm: Count = Field(description="batch-norm scales and shifts, counted apart")
    macs: Count | None = Field(None, description="multiply-accumulates for one item")
    macs_alive: Count | None = None
    bytes: Count | None = Field(None, description="size of the packed model file on disk")
    notes: list[str] = []

    @model_validator(mode="after")
    def _errors_belong_to_items(self) -> Self:
        errors, items = self.test_errors, self.test_items
        if errors is None:
            return self
        if items is None:
            raise ValueError("test_errors needs test_items, the size of the test set")
        if errors != sorted(set(errors)) or (errors and not 0 <= errors[0] <= errors[-1] < items):
            raise ValueError(f"test_errors must be ascending, distinct indices from 0 to {items - 1}")
        return self


class Result(Record):
    """One run of one recipe with one seed."""

    schema_version: Literal[1] = SCHEMA
    recipe: str
    method: str
    control: str | None = Field(None, description="None: the method itself")
    seed: int
    config: dict[str, Any] = Field(description="the resolved configuration")
    config_hash: str
    commit: str | None = None
    versions: dict[str, str]
    hardware: dict[str, Any]
    threads: Count
    status: Literal["done", "interrupted", "failed"]
    reason: str | None = Field(None, description="why the run was interrupted or failed")
    started: str = Field(description="UTC, ISO 8601")
    seconds: Seconds
    seconds_per_epoch: Seconds | None = None
    epochs: list[Epoch] = []
    rounds: list[Round] = []


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the 12 hexadecimal digits that name a configuration of this schema.

    The order of keys does not count; 1 and 1.0 are different values.

    Raises:
        OptionError: a value has no exact form in JSON.

    >>> config_hash({"epochs": 3, "lr": 0.1}) == config_hash({"lr": 0.1, "epochs": 3})
    True
    """
    try:
        text = json.dumps({"schema": SCHEMA, **config}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError(f"a configuration holds plain finite values only: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def environment() -> dict[str, Any]:
    """Return where a run happens: the fields `commit`, `versions`, `hardware` and `threads` of `Result`.

    `commit` is None outside a checkout of this project, and ends in `+changes` where the package's
    sources differ from it.

    >>> sorted(environment())
    ['commit', 'hardware', 'threads', 'versions']
    """
    import torch  # here, since reading results needs no torch

    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": os.cpu_count(), "memory_gib": _memory()}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), "synaptree": synaptree.__version__}
    for package in ("torch", "numpy", "accelerate", "scikit-learn"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    threads = torch.get_num_threads()
    return {"commit": _commit(), "versions": versions, "hardware": hardware, "threads": threads}


def _commit() -> str | None:
    package = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top) / "src" / "synaptree" != package:  # installed within somebody else's checkout
            return None
        return commit + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    with suppress(AttributeError, ValueError, OSError):  # no such call on Windows
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, which takes its place only if the block succeeds.

    The folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write(result: Result, folder: Path) -> Path:
    """Write `result` to `folder/<recipe>-<method or control>-s<seed>-<hash>.json`; return that path.

    The same run replaces its older file, whole or not at all.
    """
    recipe = PurePosixPath(result.recipe).name.removesuffix(".toml")
    name = f"{recipe}-{result.control or result.method}-s{result.seed}-{result.config_hash}"
    path = Path(folder) / (re.sub(r"[^\w.+=-]+", "_", name) + ".json")
    text = _lines(json.loads(result.model_dump_json()))
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def _lines(value: Any, indent: str = "") -> str:
    """JSON for reading and for diffs: whatever holds no list or dict stands on one line."""
    inner = indent + " "
    match value:
        case dict() if any(isinstance(v, dict | list) for v in value.values()):
            body = [f"{json.dumps(k, ensure_ascii=False)}: {_lines(v, inner)}" for k, v in value.items()]
            return "{\n" + ",\n".join(inner + line for line in body) + f"\n{indent}}}"
        case list() if any(isinstance(v, dict | list) for v in value):
            return "[\n" + ",\n".join(inner + _lines(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def read(paths: Iterable[Path]) -> list[Result]:
    """Read result files, each once; folders are searched for `*.json` at any depth, in order of name.

    Raises:
        DataError: a file is missing, damaged, of another schema version, or has an unknown key.
    """
    files = [f for p in map(Path, paths) for f in (sorted(p.rglob("*.json")) if p.is_dir() else [p])]
    return [_read(file) for file in dict.fromkeys(files)]


def _read(file: Path) -> Result:
    try:
        return Result.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        # fields come in order, so that another schema version is named before what follows from it
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise DataError(
            f"{file} is not a result of schema version {SCHEMA}: {place}: {first['msg']}, "
            f"got {shorten(first['input'])}; run the recipe again or move the file away"
        ) from error


@dataclass(frozen=True)
class Interval:
    """A mean with the interval around it, in percentage points."""

    mean: float
    low: float
    high: float


def paired_interval(
    errors_a: Sequence[Collection[int]], errors_b: Sequence[Collection[int]], items: int,
    *, level: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> Interval:
    """Return the accuracy of a minus that of b in percentage points, with its bootstrap interval.

    Seeds and items are resampled independently of each other (the pigeonhole bootstrap: A.B. Owen,
    Annals of Applied Statistics 1(2):386-411, 2007), so that the interval covers both another test
    set and another training run. With one seed only the items are resampled.

    Args:
        errors_a: misclassified test items of a, indices in [0, items), one collection per seed.
        errors_b: the same of b; entry k of both stands for the same seed.
        items: size of the test set.
        level: share of the resamples within the interval, in (0, 1).
        resamples: number of resamples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        OptionError: no seeds, unequal numbers of them, an index outside the test set, or a level or number
            of resamples outside its range.

    >>> paired_interval([[0, 1]], [[0, 1]], items=100)
    Interval(mean=0.0, low=0.0, high=0.0)
    """
    if not 0 < len(errors_a) == len(errors_b):
        got = f"{len(errors_a)} and {len(errors_b)}"
        raise OptionError(f"one entry per seed is wanted on both sides, got {got}")
    if not 0 < level < 1 or resamples < 1:
        raise OptionError(f"level must lie in (0, 1) and resamples from 1 on, got {level} and {resamples}")
    wrong_a, wrong_b = (np.stack([_wrong(e, items) for e in errors]) for errors in (errors_a, errors_b))
    # Items on which all seeds agree are interchangeable: drawing how often each pattern of differences
    # occurs is the same as drawing the items, and there are few patterns.
    patterns, counts = np.unique(wrong_b - wrong_a, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    seeds = len(errors_a)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    columns = rng.multinomial(items, counts / items, size=resamples)
    means = np.einsum("rs,sp,rp->r", rows, patterns, columns, optimize=True) * 100 / (seeds * items)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(patterns.sum(0) @ counts * 100 / (seeds * items)), float(low), float(high))


def _wrong(errors: Collection[int], items: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """1 at each misclassified item, shape `(items,)`."""
    index = np.fromiter(errors, dtype=np.int64)
    if items < 1 or (index.size and not 0 <= index.min() <= index.max() < items):
        raise OptionError(f"misclassified items must lie in [0, {items}), got {shorten(sorted(errors))}")
    wrong = np.zeros(items, dtype=np.int64)
    wrong[index] = 1
    return wrong


def not_below(interval: Interval, margin: float = 0.2) -> bool:
    """Say whether a difference to dense counts as none: its lower end is at most `margin` points below 0.

    >>> not_below(Interval(-0.05, -0.15, 0.05)), not_below(Interval(0.1, -0.3, 0.5))
    (True, False)
    """
    return interval.low >= -margin


@dataclass(frozen=True)
class Row:
    """One round of a method or control of a recipe, over its seeds; a count is the mean over them.

    What not every seed measured is None, and so is the spread of a single seed.
    """

    name: str  # of the recipe
    method: str
    control: str | None
    round: int
    seeds: int
    density: float  # [0, 1]
    accuracy: float | None  # on the test set, [0, 1]
    deviation: float | None  # standard deviation of the accuracy over seeds
    difference: Interval | None  # to dense, in percentage points
    parameters_alive: float
    bytes: float | None
    macs_alive: float | None
    indicative: bool  # fewer than three seeds


def rounds_by_seed(results: Iterable[Result]) -> dict[Key, dict[int, Round]]:
    """Return the rounds of each (recipe, method, control, round number), by seed, in this order.

    The method itself (control None) comes before its controls.

    Raises:
        DataError: two results of the same recipe, method, control and seed.
    """
    groups: dict[Key, dict[int, Round]] = {}
    for result in results:
        for part in result.rounds:
            group = groups.setdefault((result.recipe, result.method, result.control, part.round), {})
            if result.seed in group:
                name = f"recipe {result.recipe!r}, {result.control or result.method}, seed {result.seed}"
                raise DataError(f"{name}: round {part.round} occurs twice; leave one of the results out")
            group[result.seed] = part
    order = sorted(groups, key=lambda k: (k[0], k[1], k[2] or "", k[3]))
    return {key: dict(sorted(groups[key].items())) for key in order}


def summary(results: Iterable[Result]) -> list[Row]:
    """Return one row for each recipe, method or control, and round.

    Dense is round 0 of the method itself with the same seed; the difference to it is left out (None)
    unless every seed of the row has its dense partner and both have their test errors. Finished rounds
    of interrupted and failed runs count.

    Raises:
        DataError: a seed occurs twice in a row, or test sets of different sizes are compared.
    """
    groups = rounds_by_seed(results)
    return [_row(key, groups[key], groups.get((*key[:2], None, 0), {})) for key in groups]


def _row(key: Key, rounds: dict[int, Round], dense: dict[int, Round]) -> Row:
    recipe, method, control, number = key

    def mean(field: str, of: Callable[[list[float]], float] = fmean) -> float | None:
        values = [getattr(r, field) for r in rounds.values()]
        return None if None in values else of(values)

    return Row(
        name=recipe, method=method, control=control, round=number, seeds=len(rounds),
        density=fmean(r.density for r in rounds.values()),
        accuracy=mean("test_accuracy"),
        deviation=mean("test_accuracy", stdev) if len(rounds) > 1 else None,
        difference=None if rounds is dense else _difference(rounds, dense, recipe),
        parameters_alive=fmean(r.parameters_alive for r in rounds.values()),
        bytes=mean("bytes"),
        macs_alive=mean("macs_alive"),
        indicative=len(rounds) < 3,
    )


def _difference(rounds: dict[int, Round], dense: dict[int, Round], recipe: str) -> Interval | None:
    if not rounds.keys() <= dense.keys():
        return None
    pairs = [(r, dense[seed]) for seed, r in rounds.items()]
    a, b = ([r.test_errors for r in side if r.test_errors is not None] for side in zip(*pairs, strict=True))
    if not len(a) == len(b) == len(pairs):
        return None
    sizes = sorted({r.test_items or 0 for pair in pairs for r in pair})
    if len(sizes) > 1:
        raise DataError(f"recipe {recipe!r} was tested on {sizes} items; compare results of one test set")
    return paired_interval(a, b, sizes[0])


def _cells(row: Row) -> dict[str, str]:
    """What a table prints of a row, by column."""
    def count(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}"

    accuracy = "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}"
    spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
    d = row.difference
    return {
        "recipe": row.name,
        "method": row.method if row.control is None else f"{row.method}: {row.control}",
        "round": str(row.round),
        "density %": f"{100 * row.density:.3g}",
        "test accuracy %": accuracy + spread,
        "to dense, points": "-" if d is None else f"{d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]",
        "parameters": count(row.parameters_alive),
        "bytes": count(row.bytes),
        "MACs": count(row.macs_alive),
        "seeds": f"{row.seeds} (indicative)" if row.indicative else str(row.seeds),
    }


_LEFT = ("recipe", "method")  # columns of words; numbers stand on the right


def table(rows: Sequence[Row]) -> "Table":
    """Return the rows as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    out = Table()
    for column in _cells(rows[0]) if rows else ():
        out.add_column(column, justify="left" if column in _LEFT else "right")
    for row in rows:
        # Text, since the brackets of an interval are markup to rich
        out.add_row(*map(Text, _cells(row).values()), style=None if row.control else "bold")
    return out


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, one line each."""
    cells = [_cells(row) for row in rows]
    head = list(cells[0]) if rows else []
    lines = [head, [":--" if h in _LEFT else "--:" for h in head], *(c.values() for c in cells)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines if line)


def as_json(rows: Sequence[Row]) -> str:
    """Return the rows as a JSON list of objects with the fields of `Row`."""
    return _lines([asdict(row) for row in rows])
