"""What `compress` found: networks before and after, every try, times, and words."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from synaptree.artifact.files import replacing
from synaptree.compression.judge import Judge
from synaptree.compression.search import Try
from synaptree.core.topology import Topology

__all__ = ["Compressed", "Report", "Size", "Timing", "TimingRow", "outcome", "write_report"]


@dataclass(frozen=True)
class Size:
    """A network in numbers.

    Attributes:
        weights: of linear and convolution layers that exist.
        parameters: numbers that exist, biases and norms among them.
        bytes: before, of the parameters and buffers in memory; after, of the `.syn` file.
        macs: multiplications for one sample by weights that exist; None where they cannot be counted.
        value: on validation data: accuracy in points, or what the metric gave.
    """

    weights: int
    parameters: int
    bytes: int
    macs: int | None
    value: float


@dataclass(frozen=True)
class TimingRow:
    """How long one call takes.

    Attributes:
        batch: samples of a call.
        name: "engine", or a dense runtime.
        network: "compressed", or "before": the network as it was given, all weights there.
        microseconds: median, one thread, processor time.
    """

    batch: int
    name: str
    network: str
    microseconds: float


@dataclass(frozen=True)
class Timing:
    """The engine on the compressed network beside dense runtimes of it and of the network before."""

    rows: tuple[TimingRow, ...]

    def best(self, batch: int, network: str) -> TimingRow:
        """Return the fastest of the dense runtimes of a network, "before" or "compressed"."""
        rows = [row for row in self.rows if (row.batch, row.network) == (batch, network) and row.name != "engine"]
        return min(rows, key=lambda row: row.microseconds)

    def torch(self, batch: int) -> TimingRow | None:
        """Return the row of torch with the network before, None where torch could not be timed."""
        rows = (row for row in self.rows if (row.batch, row.network, row.name) == (batch, "before", "torch"))
        return next(rows, None)

    def engine(self, batch: int) -> TimingRow:
        """Return the row of the engine."""
        return next(row for row in self.rows if row.batch == batch and row.name == "engine")

    @property
    def batches(self) -> list[int]:
        """The numbers of samples that were timed."""
        return sorted({row.batch for row in self.rows})


@dataclass(frozen=True)
class Report:
    """What was done and found.

    Attributes:
        metric: what values are: "accuracy", in points, or the name of the user's metric.
        max_drop: that was allowed, in its unit.
        before: the network that came in, or as it was trained first.
        after: the compressed one, as the file holds it.
        values: how the file stores weights: "fp32", "fp16" or "int8".
        tries: every one, in order.
        budget: as it was given.
        seconds: that were used, on the wall.
        processor_seconds: of this process.
        epochs: of training, in all.
        removed: units that compaction took out at the end, and why others stayed, in lines.
        max_error: of the proof of compaction: the largest difference of outputs; None where nothing was compacted.
        engine_value: on validation data, computed by the engine; None where it cannot run the network, and with a
            metric of the user's.
        words: the outcome in sentences.
    """

    metric: str
    max_drop: float
    before: Size
    after: Size
    values: str
    tries: tuple[Try, ...]
    budget: str
    seconds: float
    processor_seconds: float
    epochs: float
    removed: tuple[str, ...]
    max_error: float | None
    engine_value: float | None
    words: tuple[str, ...]

    @property
    def times_fewer(self) -> float:
        """How many times fewer weights there are."""
        return self.before.weights / max(1, self.after.weights)

    def __str__(self) -> str:
        return "\n".join(self.words)


@dataclass(frozen=True)
class Compressed:
    """What `compress` returns.

    Attributes:
        model: the smaller network, in eval mode, with the weights that the file holds.
        topology: over it; which connections exist.
        dense: what it is compared with: a copy of the model given, trained first where that was not.
        file: the `.syn` file; None where no folder was named.
        report: what was done and found.
        timing: of the engine; None where it is not there, cannot run the network, or was not asked.
    """

    model: nn.Module
    topology: Topology
    dense: nn.Module
    file: Path | None
    report: Report
    timing: Timing | None


def write_report(path: Path, report: Report, timing: Timing | None) -> None:
    """Write a report as JSON; numbers that are none become null."""
    said: dict[str, Any] = {"schema": 1, **asdict(report), "times_fewer": report.times_fewer}
    said["timing"] = None if timing is None else [asdict(row) for row in timing.rows]
    with replacing(path) as partial:
        partial.write_text(json.dumps(_plain(said), indent=1, allow_nan=False) + "\n")


def outcome(
    metric: str, before: Size, after: Size, tries: Sequence[Try], judge: Judge, notes: Sequence[str],
    timing: Timing | None, why_untimed: str,
) -> tuple[str, ...]:  # fmt: skip
    """Return in sentences what was gained, and where nothing was."""
    words = list(notes)
    if after.weights < before.weights:
        words.append(
            f"{before.weights / max(1, after.weights):.1f} times fewer weights ({before.weights:,} to "
            f"{after.weights:,}); {metric} on validation {before.value:.2f} before, {after.value:.2f} after "
            f"({after.value - before.value:+.2f}, {-judge.max_drop:+.2f} allowed)"
        )
        words.append(f"it was chosen there{_unsure(judge, after.value)}, so other data may see a larger loss")
    else:
        words.append(f"no gain here, because {_why_none(tries)}; the network is as dense as before")
    times = before.bytes / max(1, after.bytes)
    small = f"{times:.1f} times fewer bytes ({before.bytes:,} to {after.bytes:,})"
    words.append(small if times > 1 else f"no gain in bytes, because the file takes {after.bytes:,} and the weights "
                 f"{before.bytes:,}")
    words += [_speed(timing, batch) for batch in timing.batches] if timing else [f"not timed: {why_untimed}"]
    return tuple(words)


def _unsure(judge: Judge, value: float) -> str:
    """Return how well so many samples can tell an accuracy, two standard errors."""
    if judge.metric is not None:
        return ""
    share, samples = value / 100, judge.samples()
    return f", on {samples:,} samples, which tell it to ±{200 * math.sqrt(share * (1 - share) / samples):.1f} points"


def _speed(timing: Timing, batch: int) -> str:
    engine, before, after = timing.engine(batch), timing.best(batch, "before"), timing.best(batch, "compressed")
    facts = (
        f"the engine takes {engine.microseconds:.1f} µs, {before.name} with the network before "
        f"{before.microseconds:.1f} µs, {after.name} with the compressed one {after.microseconds:.1f} µs"
    )
    if engine.microseconds < min(before.microseconds, after.microseconds):
        return f"batch {batch}: {_faster(engine, timing.torch(batch), before)}; {facts}"
    return f"batch {batch}: no gain in speed here, because {facts}"


def _faster(engine: TimingRow, torch: TimingRow | None, best: TimingRow) -> str:
    """Return how many times as fast as torch the engine is, and as the fastest of all dense runtimes."""
    by_name = {
        one.name: f"{one.microseconds / engine.microseconds:.1f} times as fast as {one.name}"
        for one in (torch, best) if one is not None
    }  # fmt: skip
    return f"{', '.join(by_name.values())}, the fastest dense runtime that was timed"


def _why_none(tries: Sequence[Try]) -> str:
    if not tries:
        return "there was no time for a try"
    nearest = max(tries, key=lambda one: one.value if one.value == one.value else float("-inf"))
    return f"no try came out well enough; the nearest, {nearest.method} at {100 * nearest.density:.1f} %: {nearest.why}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and value - value != 0 else value
