"""How fast a small file runs, beside dense runtimes of the same network."""

import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from synaptree.core.errors import OptionError
from synaptree.measure.bench import Benchmark, Row, bench
from synaptree.measure.contenders import CONTENDERS
from synaptree.report import tables
from synaptree.report.steps import steps
from synaptree.results import environment

__all__ = ["bench_file", "machine", "table"]


def bench_file(
    file: Path, *, against: str | None = None, batch: str = "1,32", threads: str = "1", seconds: float = 3.0,
    precision: str | None = None, memory: bool = False, out: Path | None = None,
) -> None:  # fmt: skip
    """Time the engine on a `.syn` file beside dense runtimes, and print a table.

    Args:
        file: of a network of one input and one output.
        against: names of contenders, with commas between; the default ones if left out.
        batch: numbers of samples, with commas between.
        threads: numbers of threads, with commas between.
        seconds: that each setting is measured for.
        precision: of the contenders; as the file stores weights if left out.
        memory: whether the peak memory of each is measured as well.
        out: where the numbers go as JSON.

    Raises:
        OptionError: an option says nothing that can be measured.
        SynaptreeError: a library is missing, or one of them computes something else.
    """
    if precision is not None and precision not in CONTENDERS:
        raise OptionError(f"--precision {precision}: wanted {' or '.join(CONTENDERS)}")
    names = None if against is None else [name for name in against.split(",") if name]
    batches, counts = _numbers("--batch", batch), _numbers("--threads", threads)
    with steps(len(batches) * len(counts) + memory) as step:
        found = bench(file, names, batches, counts, seconds=seconds, precision=precision, memory=memory, tell=step)
    Console().print(table(found))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        where = {key: said for key, said in environment().items() if key != "threads"}
        where["versions"] = {**where["versions"], **found.versions}
        out.write_text(json.dumps({**where, **found.as_dict(), "versions": where["versions"]}, indent=1) + "\n")
        typer.echo(f"written to {out}")


def table(found: Benchmark) -> Table:
    """Return what was measured as a table; the fastest of each setting is bold."""
    columns = ["batch", "threads", "runs it", "µs", "times", "middle half"]
    weighed = any(row.memory is not None for row in found.rows)
    columns += ["MB"] * weighed + ["set up"]
    fastest = {(row.batch, row.threads): row.name for row in sorted(found.rows, key=lambda row: -row.seconds)}
    rows = [(_cells(row, weighed), fastest[row.batch, row.threads] == row.name) for row in found.rows]
    return tables.terminal(
        f"{found.file}, {found.precision}", columns, rows, machine(found), words=("runs it", "set up")
    )  # fmt: skip


def machine(found: Benchmark) -> str:
    """Return where it was measured, and what the columns mean."""
    hardware = environment()["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return (
        f"times: as fast as the best of the others; processor time with 1 thread, else time on the wall\n"
        f"{hardware['cpu']}, {hardware['cores']} cores; {versions}"
    )


def _cells(row: Row, weighed: bool) -> Sequence[str]:
    ratios = [f"{one:.2f}" for one in (row.times, row.times_low, row.times_high)]
    megabytes = ["" if row.memory is None else f"{row.memory / 1e6:,.1f}"] * weighed
    said = [str(row.batch), str(row.threads), row.name]
    return [*said, f"{1e6 * row.seconds:,.1f}", ratios[0], "-".join(ratios[1:]), *megabytes, row.note]


def _numbers(option: str, said: str) -> list[int]:
    """Return the numbers of an option.

    >>> _numbers("--batch", "1,32")
    [1, 32]
    """
    try:
        found = [int(one) for one in said.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise OptionError(f"{option} {said}: wanted whole numbers above 0 with commas between, such as 1,32")
    return found
