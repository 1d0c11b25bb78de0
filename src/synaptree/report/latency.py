"""How fast the networks of runs are: a file of measurements beside the results, one line each."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synaptree.artifact.files import replacing
from synaptree.core.errors import DataError

__all__ = ["FILE", "Latency", "read_latencies", "write_latencies"]

FILE = "latency.jsonl"
"""Name of the file of measurements in a folder of results."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Latency(BaseModel):
    """How long the engine takes for the network of one round, beside the best dense runtime of the same network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config_hash: str = Field(description="of the run")
    round: int = Field(ge=0)
    batch: int = Field(ge=1, description="samples of a call")
    threads: int = Field(1, ge=1)
    seconds: Positive = Field(description="of a call of the engine, median")
    best: str = Field(description="the fastest dense runtime of the same compacted network")
    best_seconds: Positive
    times: Positive = Field(description="how many times as fast the engine is: median of the paired ratio")
    times_low: Positive = Field(description="its lower quartile")
    times_high: Positive
    bytes: int = Field(gt=0, description="of the .syn file that was run, float32")
    cpu: str
    versions: dict[str, str]

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What is measured; a later measurement takes the place of an earlier one."""
        return self.config_hash, self.round, self.batch, self.threads


def read_latencies(folder: Path) -> list[Latency]:
    """Return the measurements in a folder of results; none where there is no such file.

    Raises:
        DataError: a line is damaged.
    """
    file = Path(folder) / FILE
    if not file.exists():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Latency.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "line"
            raise DataError(
                f"{file}, line {number}: {place}: {first['msg']}; remove the line, and measure again with --measure"
            ) from error
    return found


def write_latencies(folder: Path, measured: Iterable[Latency]) -> Path:
    """Add measurements to those in a folder of results, in place of earlier ones of the same; return the file."""
    file = Path(folder) / FILE
    kept = {one.key: one for one in (*read_latencies(folder), *measured)}
    lines = [kept[key].model_dump_json() + "\n" for key in sorted(kept)]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
    return file
