"""The page itself: one HTML file that holds all it needs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from synaptree import __version__
from synaptree.artifact.files import replacing
from synaptree.report.page.chart import Chart
from synaptree.report.page.gather import Gathered, gather
from synaptree.report.page.sections import DataSection, sections

__all__ = ["Page", "notice", "page", "write_page"]


@dataclass(frozen=True)
class Page:
    """A page in its parts.

    Attributes:
        content: what a person reads, as HTML.
        charts: figures by the name of their place.
        said: how many runs are on it.
        left_out: what is not, in sentences.
    """

    content: str
    charts: Mapping[str, Any]
    said: str = ""
    left_out: Sequence[str] = ()

    def html(self, *, live: str = "") -> str:
        """Return the whole page; a live one, with a stamp, asks its server for what is newer."""
        return _templates().get_template("page.html.jinja").render(
            content=Markup(self.content), charts=_safe(self.charts), live=live, script=_file("page.js"),
            style=_file("style.css"), plotly=_plotly(),
        )  # fmt: skip


def page(
    places: Iterable[Path], *, time: bool = False, margins: Mapping[str, float] | None = None
) -> Page:
    """Return the page of runs.

    Args:
        places: folders of runs, and files of results.
        time: measure how long each layer takes in the engine.
        margins: points by data set that count as not below dense.

    Raises:
        DataError: a file that was named cannot be used, or nothing was found.
    """
    gathered = gather(places)
    found = sections(gathered, time=time, margins=margins)
    charts: dict[str, Any] = {}

    def place(chart: Chart) -> str:
        name = f"chart-{len(charts)}"
        charts[name] = chart.as_dict()
        return name

    content = _templates().get_template("content.html.jinja").render(
        title=_title(found), sets=found, place=place, gathered=gathered, version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), counted=_counted(gathered),
    )  # fmt: skip
    return Page(content, charts, _counted(gathered), gathered.left_out)


def notice(sentence: str) -> Page:
    """Return a page that says one thing."""
    return Page(str(Markup('<p class="notice">{}</p>').format(sentence)), {})


def write_page(made: Page, path: Path) -> int:
    """Write a page as one file, whole or not at all; return its bytes."""
    with replacing(path) as partial:
        return partial.write_bytes(made.html().encode())


def _title(found: Sequence[DataSection]) -> str:
    titles = [experiment.title for part in found for experiment in part.experiments]
    return titles[0] if len(titles) == 1 else f"{len(titles)} experiments"


def _counted(gathered: Gathered) -> str:
    unfinished = sum(run.result.status != "done" for run in gathered.runs)
    said = f"{len(gathered.runs)} run{'s' if len(gathered.runs) > 1 else ''}"
    return said + (f", {unfinished} unfinished" if unfinished else "")


@cache
def _templates() -> Environment:
    loader = PackageLoader("synaptree.report.page", "templates")
    found = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters["config"] = lambda value: json.dumps(value, indent=1, ensure_ascii=False)
    return found


def _file(name: str) -> Markup:
    return Markup(resources.files("synaptree.report.page").joinpath("templates", name).read_text("utf-8"))


@cache
def _plotly() -> Markup:
    """Return the plotting library; it stands in a script element, which nothing in it may end."""
    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def _safe(charts: Mapping[str, Any]) -> Markup:
    """Return JSON that no element of a page can be ended by."""
    text = json.dumps(charts, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
