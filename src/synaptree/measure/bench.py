"""How fast the engine runs a network, beside dense runtimes of the same network."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synaptree.core.errors import OptionError, SynaptreeError, unknown
from synaptree.measure.clock import Ratio, Timings
from synaptree.measure.contenders import CONTENDERS, TOLERANCES, Contender, Model, contenders, installed, require_equal
from synaptree.measure.memory import ENGINE, peak_memory

__all__ = ["OURS", "Benchmark", "Row", "bench", "timed", "versions"]

OURS = ("engine.run", "engine(x)")
"""The rows of the engine: into a buffer that is given, and into a new array."""
LEAST_SECONDS = 1e-3  # that a measurement is meant to take, so that it takes half of it for sure
LEAST_ROUNDS = 5
MOST_CALLS = 1 << 20

Call = Callable[[], object]
Timer = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """What one way to run the network took, in one setting.

    Attributes:
        name: of the contender, or one of `OURS`.
        batch: samples of the input.
        threads: that it was allowed.
        seconds: median over rounds of the time of one call.
        low: lower quartile of it.
        high: upper quartile.
        times: how many times as fast as the best of the others it is: the median over rounds of their ratio.
        times_low: lower quartile of the ratio.
        times_high: upper quartile.
        calls: in each measurement.
        rounds: measurements.
        note: how it was set up.
        memory: bytes its process grew by at its largest; None where that was not asked for.
    """

    name: str
    batch: int
    threads: int
    seconds: float
    low: float
    high: float
    times: float
    times_low: float
    times_high: float
    calls: int
    rounds: int
    note: str = ""
    memory: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """What was measured of one file.

    Attributes:
        file: its name.
        precision: "fp32" or "int8".
        rows: setting by setting.
        versions: of the libraries.
    """

    file: str
    precision: str
    rows: tuple[Row, ...]
    versions: Mapping[str, str]

    def row(self, name: str, batch: int, threads: int = 1) -> Row:
        """Return the row of this name and setting."""
        for row in self.rows:
            if (row.name, row.batch, row.threads) == (name, batch, threads):
                return row
        raise OptionError(f"there is no row of {name} at batch {batch} and {threads} threads")

    def best(self, batch: int, threads: int = 1) -> Row:
        """Return the row of the contender with the lowest median, the engine's own left out if there are others."""
        found = [row for row in self.rows if (row.batch, row.threads) == (batch, threads)]
        return min([row for row in found if row.name not in OURS] or found, key=lambda row: row.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "versions": dict(self.versions)}


def bench(
    file: str | Path,
    against: Iterable[str] | None = None,
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1,),
    *,
    seconds: float = 3.0,
    precision: str | None = None,
    memory: bool = False,
    engine: Callable[..., Any] | None = None,
    timer: Timer | None = None,
    tell: Callable[[str], None] = lambda what: None,  # noqa: ARG005
) -> Benchmark:
    """Time the engine on a file beside dense runtimes of the same network.

    In each setting all take turns, see `timed`. With one thread the clock is the processor time of this process,
    which other processes disturb little; with more it is the clock on the wall. Before that, all outputs are compared.

    Args:
        file: a `.syn` file of a network of one input and one output.
        against: names of `synaptree.measure.contenders`; the default ones that are installed if left out, none if
            empty.
        batches: numbers of samples.
        threads: numbers of threads; torch's own number is what it was when all is done.
        seconds: that each setting is measured for, and five rounds at least.
        precision: of the contenders: "fp32" or "int8"; as the file stores weights if left out. The engine computes
            as the file says.
        memory: also measure the peak memory of each, in processes of their own; takes seconds each.
        engine: makes what is timed from `(file, threads=, batch=)`: something to be called, with a method `run`.
        timer: returns the time in seconds.
        tell: told what begins: each setting, and then the memory.

    Raises:
        OptionError: a number is out of range, or nobody knows a name.
        SynaptreeError: a library is missing, or the engine cannot run the network.
        NumericError: one of them computes something else.
    """
    if not (batches and threads and min(batches) > 0 and min(threads) > 0 and seconds > 0):
        raise OptionError(
            f"wanted batches, threads and seconds above 0, got {list(batches)}, {list(threads)} and {seconds}"
        )
    engine = _engine() if engine is None else engine
    model, stored = Model(file), _stored(file)
    precision = precision or stored
    if precision not in CONTENDERS:
        raise unknown("precision", precision, CONTENDERS)
    names = installed(precision) if against is None else tuple(against)
    tolerance = max(TOLERANCES[stored], TOLERANCES.get(precision, 0.0))
    rows: list[Row] = []
    before = torch.get_num_threads()
    try:
        for count in threads:
            for batch in batches:
                tell(f"batch {batch}, {count} thread{'s' if count > 1 else ''}")
                x = model.inputs(batch)
                others = contenders(model, x, count, names, precision)
                made = _loaded(engine, file, count, batch)
                runs = [*_ours(made, x, model, tolerance), *others]
                rows += _rows(runs, batch, count, seconds, timer)
    finally:
        torch.set_num_threads(before)
    if memory:
        tell("peak memory")
        rows = [_with_memory(row, file, model, precision) for row in rows]
    return Benchmark(Path(file).name, precision, tuple(rows), versions())


def timed(runs: Mapping[str, Call], seconds: float, timer: Timer) -> tuple[Timings, dict[str, int]]:
    """Return the time of one call of each, round by round, and how many calls a measurement is made of.

    Each measurement follows a call that is not timed, and is made of so many calls that it takes half a millisecond
    or more. In each round all take their turn; the next round starts with the next one.

    Args:
        runs: name -> what to time.
        seconds: start no further round once the rounds took this long, and there were five.
        timer: returns the time in seconds.

    Example:
        >>> ticks = iter(range(1000))
        >>> timings, calls = timed({"a": lambda: None, "b": lambda: None}, 1.0, lambda: float(next(ticks)))
        >>> timings.seconds, calls
        ({'a': [1.0, 1.0, 1.0, 1.0, 1.0], 'b': [1.0, 1.0, 1.0, 1.0, 1.0]}, {'a': 1, 'b': 1})
    """
    calls = {name: _calls(run, timer) for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names, begin, n = list(runs), timer(), 0
    while n < LEAST_ROUNDS or timer() - begin < seconds:
        first = n % len(names)
        for name in names[first:] + names[:first]:
            runs[name]()
            taken[name].append(_lasts(runs[name], calls[name], timer) / calls[name])
        n += 1
    return Timings(taken), calls


def _calls(run: Call, timer: Timer) -> int:
    run()
    calls = 1
    while calls < MOST_CALLS and _lasts(run, calls, timer) < LEAST_SECONDS:
        calls *= 2
    return calls


def _lasts(run: Call, calls: int, timer: Timer) -> float:
    start = timer()
    for _ in range(calls):
        run()
    return timer() - start


def _engine() -> Callable[..., Any]:
    try:
        return import_module("synaptree.runtime.engine").Engine  # type: ignore[no-any-return]
    except ImportError as missing:
        raise SynaptreeError(f"the native engine cannot be imported: {missing}") from missing


def _stored(file: str | Path) -> str:
    """Return how a file stores weights: "int8" if any of them are."""
    from synaptree.format.file import read_file

    return "int8" if any(entry.scales is not None for entry in read_file(file).entries.values()) else "fp32"


def _loaded(engine: Callable[..., Any], file: str | Path, threads: int, batch: int) -> Any:
    try:
        return engine(file, threads=threads, batch=batch)
    except ValueError as error:  # which knows nothing of this library's errors
        raise SynaptreeError(f"{file}: {error}") from error


def _ours(made: Any, x: np.ndarray[Any, Any], model: Model, tolerance: float) -> list[Contender]:
    """Return the two ways to call the engine, after a look at their outputs."""
    wanted = model.outputs(x)
    out = np.full_like(wanted, np.nan)
    made.run(x, out)
    require_equal(zip(OURS, (out, made(x)), strict=True), wanted, tolerance)
    note = getattr(made, "isa", "")
    return [Contender(OURS[0], partial(made.run, x, out), note), Contender(OURS[1], partial(made, x), note)]


def _rows(runs: Sequence[Contender], batch: int, threads: int, seconds: float, timer: Timer | None) -> list[Row]:
    clock = timer or (time.process_time if threads == 1 else time.perf_counter)
    timings, calls = timed({one.name: one.call for one in runs}, seconds, clock)
    others = [one.name for one in runs if one.name not in OURS]
    best = min(others or OURS, key=timings.median)
    return [_row(one, batch, threads, timings, timings.ratio(best, one.name), calls[one.name]) for one in runs]


def _row(run: Contender, batch: int, threads: int, timings: Timings, times: Ratio, calls: int) -> Row:
    taken = timings.seconds[run.name]
    low, median, high = np.quantile(taken, [0.25, 0.5, 0.75]).tolist()
    return Row(
        run.name, batch, threads, median, low, high, times.median, times.low, times.high, calls, len(taken), run.note
    )


def _with_memory(row: Row, file: str | Path, model: Model, precision: str) -> Row:
    name = ENGINE if row.name in OURS else row.name.removesuffix(f" {precision}")
    found = peak_memory(name, file, model, batch=row.batch, threads=row.threads, precision=precision)
    return replace(row, memory=found)


def versions() -> dict[str, str]:
    """Return library -> version, of those that may take part and are there."""
    found = {}
    for package in ("torch", "numpy", "scipy", "onnxruntime", "openvino"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
