"""What a run leaves behind: its record, and the file it is kept in."""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from reprlib import repr as shorten
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import synaptree
from synaptree.artifact.files import replacing
from synaptree.core.errors import DataError, OptionError

__all__ = [
    "PROGRESS", "SCHEMA", "Connections", "Epoch", "Finding", "Result", "Round", "config_hash", "environment", "read",
    "write", "write_progress",
]  # fmt: skip

SCHEMA: Final = 1
"""Version of the result file; another version is refused on reading."""

PROGRESS: Final = "progress.result"
"""Name of the file that holds what an unfinished run has recorded so far; no `.json`, so that no search finds it."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class Record(BaseModel):
    """A part of the result file: unknown keys are refused, and a loss that is not finite survives."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


Ages = Annotated[list[Count], Field(min_length=5, max_length=5)]


class Connections(Record):
    """What an epoch left of the topology, where it is another than before."""

    born: Count = Field(description="so far, in this topology; fewer than before where growth was undone")
    died: Count = Field(description="so far")
    ages: Ages | None = Field(None, description="in updates: least, quartiles, most; None: nothing was born")
    layers: dict[str, Share] = Field(description="density of the weights of each layer with a mask")


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
    connections: Connections | None = Field(None, description="where the topology changed since the epoch before")


class Round(Record):
    """The network at the end of one round; round 0 is the dense one, before any pruning."""

    round: Count
    density: Share = Field(description="weights alive / weights")
    layers: dict[str, Share] = Field(description="density of each layer, in the order of the network")
    validation_accuracy: Share
    test_accuracy: Share | None = None
    test_errors: list[int] | None = Field(None, description="misclassified test items, ascending")
    test_items: Count | None = Field(None, description="size of the test set; needed beside test_errors")
    published_accuracy: Share | None = Field(None, description="on what there is of an incomplete published test set")
    published_items: Count | None = Field(None, description="size of that")
    parameters: Count = Field(description="weights and biases, without batch norm")
    parameters_alive: Count
    weights: Count
    weights_alive: Count
    norm: Count = Field(description="batch-norm scales and shifts, counted apart")
    macs: Count | None = Field(None, description="multiply-accumulates for one item")
    macs_alive: Count | None = None
    bytes: Count | None = Field(None, description="size of the packed model file on disk")
    notes: list[str] = []
    stage: str = Field("", description="name of the stage that ended with it, where the programme names stages")
    born: Count | None = Field(None, description="connections born since the round before")
    died: Count | None = Field(None, description="connections that died since the round before")
    ages: Ages | None = Field(None, description="in updates: least, quartiles, most; None: nothing was born")

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


class Finding(Record):
    """Something that was wrong with the network for a while."""

    kind: str = Field(description="as in synaptree.train.health.Finding")
    where: str = Field(description="name of the layer or parameter, or 'network'")
    text: str = Field(description="the sentence, with figures and what to do")
    stage: str = Field(description="name of the programme's stage in which it was found")
    round: Count
    epoch: Count = Field(description="epochs begun since the start of the run when it was found")
    step: Count = Field(description="optimizer updates when it was found")
    until: Count | None = Field(None, description="optimizer updates when it was gone; None: it stayed to the end")


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
    test_from: str | None = Field(None, description="where the test set comes from")
    status: Literal["done", "interrupted", "failed", "running"]
    reason: str | None = Field(None, description="why the run was interrupted or failed")
    started: str = Field(description="UTC, ISO 8601")
    seconds: Seconds
    seconds_per_epoch: Seconds | None = None
    notes: list[str] = Field([], description="what a reader should know of the run as a whole, in sentences")
    epochs: list[Epoch] = []
    rounds: list[Round] = []
    health: list[Finding] = Field([], description="what was wrong with the network; older files lack it")


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
    from torch import distributed

    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": os.cpu_count(), "memory_gib": _memory()}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    if distributed.is_available() and distributed.is_initialized():
        hardware["processes"] = distributed.get_world_size()
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


def write(result: Result, folder: Path) -> Path:
    """Write `result` to `folder/<recipe>-<method or control>-s<seed>-<hash>.json`; return that path.

    The same run replaces its older file, whole or not at all.
    """
    recipe = PurePosixPath(result.recipe).name.removesuffix(".toml")
    name = f"{recipe}-{result.control or result.method}-s{result.seed}-{result.config_hash}"
    return _put(result, Path(folder) / (re.sub(r"[^\w.+=-]+", "_", name) + ".json"))


def write_progress(result: Result, folder: Path) -> Path:
    """Write what a run has recorded so far to `folder/progress.result`; return that path."""
    return _put(result, Path(folder) / PROGRESS)


def _put(result: Result, path: Path) -> Path:
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
