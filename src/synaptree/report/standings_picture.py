"""Methods beside each other as a picture: test accuracy over density, with the interval of each over seeds."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synaptree.artifact.files import replacing
from synaptree.core.errors import OptionError
from synaptree.report.picture import CONTROLS, LOOK, MARKERS, METHOD, percent_ticks
from synaptree.report.standings import DENSE, Level, Standing

__all__ = ["figure", "picture"]

COLOURS = (METHOD, *CONTROLS)


def picture(levels: Sequence[Level], path: Path) -> None:
    """Draw the levels of one task into a `.png` or `.svg` file, whole or not at all.

    Raises:
        OptionError: the file has another ending, or there is nothing to draw.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise OptionError(f"a picture is a .png or .svg file, got {str(path)!r}")
    drawn = figure(levels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(LOOK), replacing(Path(path)) as partial:
        drawn.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})


def figure(levels: Sequence[Level]) -> Figure:
    """Draw test accuracy over density: methods as lines, their controls as pale lines of the same colour.

    Bars reach one standard deviation over seeds to either side; what one or two seeds say is drawn hollow.

    Raises:
        OptionError: there are no levels.
    """
    if not levels:
        raise OptionError("a picture needs at least one level, got none")
    lines: dict[tuple[str, str, str | None], list[Standing]] = {}
    for level in levels:
        for row in level.rows if level.density != DENSE else ():
            if row.accuracy is not None:
                lines.setdefault((row.name.partition(":")[0], row.name, row.control), []).append(row)
    own_names = list(dict.fromkeys(own for own, _, _ in sorted(lines, key=lambda line: line[2] is not None)))
    # seven colours and eight markers: a colour that comes again has another marker, and a broken line
    looks = dict(zip(own_names, zip(cycle(COLOURS), cycle("oDsv^p<h"), strict=False), strict=False))
    with mpl.rc_context(LOOK):
        out = Figure(figsize=(11, 5.6), layout="constrained")
        axes = out.subplots()
        _dense(axes, levels)
        markers = dict(zip(dict.fromkeys(control for *_, control in lines if control), cycle(MARKERS), strict=False))
        for (own, name, control), rows in sorted(lines.items(), key=lambda line: own_names.index(line[0][0])):
            colour, marker = looks[own]
            again = own_names.index(own) >= len(COLOURS)
            _line(axes, rows, name, colour, markers.get(control, marker) if control else marker, again=again)
        axes.set(title=levels[0].task.title, xlabel="density (dense to sparse)", ylabel="test accuracy", xscale="log")
        axes.invert_xaxis()
        percent_ticks(axes.xaxis)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    return out


def _dense(axes: Axes, levels: Sequence[Level]) -> None:
    rows = [row for level in levels if level.density == DENSE for row in level.rows]
    best = next((row for row in rows if row.verdict == "best" and row.accuracy is not None), None)
    if best is not None and best.accuracy is not None:
        height = 100 * best.accuracy
        axes.axhline(height, color="0.45", lw=1.2, ls=(0, (5, 3)), zorder=2, label="dense, best on validation")


def _line(axes: Axes, rows: Sequence[Standing], name: str, colour: str, marker: str, *, again: bool) -> None:
    control = rows[0].control is not None
    pale = {"alpha": 0.45, "lw": 1.0, "ms": 5, "ls": ":"}
    look: dict[str, Any] = pale if control else {"lw": 2.0, "ms": 7, "ls": (0, (5, 1.5)) if again else "-"}
    axes.errorbar(
        [row.density for row in rows], [100 * (row.accuracy or 0.0) for row in rows],
        yerr=[100 * (row.deviation or 0.0) for row in rows], color=colour, marker=marker, capsize=2, elinewidth=0.9,
        mfc="white" if rows[0].indicative else colour, label=f"{name}{'*' * rows[0].indicative}",
        zorder=3 if control else 5, **look,
    )  # fmt: skip
