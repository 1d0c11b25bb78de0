"""Runs as one HTML page, written to a file or served while they go on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from synaptree.cli.show import MARGINS
from synaptree.core.errors import OptionError
from synaptree.report.steps import steps

__all__ = ["needing_report", "write_report"]

ENDINGS = (".html", ".htm")


def write_report(places: Sequence[Path], out: Path, *, time: bool = False) -> None:
    """Write the page of runs, and say what is on it.

    Args:
        places: folders of runs, and files of results.
        out: the file to write.
        time: measure how long each layer takes in the engine.

    Raises:
        OptionError: the file has another ending, or a library is missing.
        DataError: a file that was named cannot be used, or nothing was found.
    """
    if out.suffix.lower() not in ENDINGS:
        raise OptionError(f"{out}: a report is a page, wanted a name that ends in {' or '.join(ENDINGS)}")
    with needing_report():
        from synaptree.report.page.render import page, write_page
    with steps(2) as step:
        step("reading runs, timing their networks" if time else "reading runs")
        made = page(places, time=time, margins=MARGINS)
        step(f"writing {out.name}")
        size = write_page(made, out)
    for sentence in made.left_out:
        typer.echo(f"left out: {sentence}", err=True)
    typer.echo(f"{out}: {size:,} bytes, {made.said}")


@contextmanager
def needing_report() -> Iterator[None]:
    """Say which extra holds a library that is missing.

    Raises:
        OptionError: one is.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("plotly", "jinja2", "markupsafe"):
            raise
        raise OptionError(f"a report needs {missing.name}: pip install 'synaptree[report]'") from None
