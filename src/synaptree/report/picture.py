"""One recipe as a picture: accuracy over density, beside its controls, and where the connections died."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from synaptree.artifact.files import replacing
from synaptree.core.errors import OptionError
from synaptree.report.comparison import rounds_by_seed
from synaptree.results import Result, Round

__all__ = ["figure", "percent_ticks", "picture"]

Line = list[list[Round]]  # the rounds in order, each over its seeds

LOOK: Any = {
    "font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left", "axes.titlepad": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.4", "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "0.92", "xtick.color": "0.3", "ytick.color": "0.3",
    "legend.frameon": False, "figure.dpi": 150, "savefig.dpi": 150,
    "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.wspace": 0.06,
    "svg.fonttype": "path", "svg.hashsalt": "synaptree",  # the same results give the same file
}
# Okabe and Ito's colours, told apart by colour-blind readers; the method itself has vermilion to itself
METHOD = "#D55E00"
CONTROLS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "sD^vp<>h*"
MOST_NAMES = 24  # layer names that fit one above the other


def picture(results: Sequence[Result], path: Path) -> None:
    """Draw the results of one recipe into a `.png` or `.svg` file, whole or not at all.

    Raises:
        OptionError: the file has another ending, or `figure` cannot draw the results.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise OptionError(f"a picture is a .png or .svg file, got {str(path)!r}")
    drawn = figure(results)
    with mpl.rc_context(LOOK), replacing(path) as partial:
        drawn.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})


def figure(results: Sequence[Result]) -> Figure:
    """Draw the results of one recipe: accuracy over density on the left, density per layer on the right.

    Lines are means over seeds, the band around them reaches from the lowest to the highest seed. The
    accuracy is that on the test set where every round has one, else that on the validation set; a seed
    network, which is not trained yet, has none on the left.

    Raises:
        OptionError: the results are not of one recipe and method, or the method itself is not among them.
        DataError: a seed occurs twice.
    """
    groups = rounds_by_seed(results)
    names = sorted({key[:2] for key in groups})
    if len(names) != 1:
        raise OptionError(f"a picture shows one recipe and method, got {names or 'no rounds'}")
    lines: dict[str | None, Line] = {}
    for (_, _, control, _), rounds in groups.items():
        lines.setdefault(control, []).append(list(rounds.values()))
    recipe, method = names[0]
    if None not in lines:
        raise OptionError(f"recipe {recipe!r}: {method} itself is not among the results, only {list(lines)}")
    with mpl.rc_context(LOOK):
        out = Figure(figsize=(11, 5.2), layout="constrained")
        left, right = out.subplots(1, 2, width_ratios=(1.15, 1))
        out.suptitle(recipe.removesuffix(".toml"), x=0.012, ha="left", fontsize=14, fontweight="bold")
        _accuracy(left, lines, method)
        _layers(right, lines[None], method)
        entries = zip(*left.get_legend_handles_labels(), strict=True)
        method_first = sorted(entries, key=lambda entry: entry[1] != method)
        out.legend(*zip(*method_first, strict=True), loc="outside lower left", ncols=4)
    return out


def _accuracy(axes: Axes, lines: dict[str | None, Line], method: str) -> None:
    # a seed network is not trained yet: beside it all others would look alike
    trained = {control: [seeds for seeds in line if seeds[0].stage != "seed"] for control, line in lines.items()}
    lines = {control: trained[control] or line for control, line in lines.items()}
    tested = all(r.test_accuracy is not None for line in lines.values() for seeds in line for r in seeds)
    kind = "test" if tested else "validation"
    controls = zip((c for c in lines if c is not None), cycle(CONTROLS), cycle(MARKERS), strict=False)
    for control, color, marker in controls:
        _curve(axes, lines[control], kind, label=control, color=color, marker=marker, lw=1.2, ms=7, zorder=3)
    _curve(axes, lines[None], kind, label=method, color=METHOD, marker="o", lw=2.8, ms=8, zorder=5)
    if lines[None][0][0].round == 0 and all(r.density == 1 for r in lines[None][0]):
        dense = fmean(_percent(lines[None][0], kind))
        axes.axhline(dense, color="0.45", lw=1.2, ls=(0, (5, 3)), zorder=2, label="dense")
    axes.set(title=f"Accuracy on the {kind} set", xlabel="density (dense to sparse)", xscale="log")
    axes.invert_xaxis()
    percent_ticks(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(symbol=" %"))


def _percent(seeds: list[Round], kind: str) -> list[float]:
    return [100 * getattr(r, f"{kind}_accuracy") for r in seeds]


def _curve(axes: Axes, line: Line, kind: str, *, color: str, zorder: int, **look: Any) -> None:
    density = [fmean(r.density for r in seeds) for seeds in line]
    seen = [_percent(seeds, kind) for seeds in line]
    low, mean, high = [min(s) for s in seen], [fmean(s) for s in seen], [max(s) for s in seen]
    single = len(line) == 1
    axes.plot(density, mean, color=color, zorder=zorder, ls="none" if single else "-", mec="white", mew=0.8, **look)
    if single:
        axes.vlines(density, low, high, color=color, lw=1.2, zorder=zorder - 1)
    else:
        axes.fill_between(density, low, high, color=color, alpha=0.12, lw=0, zorder=zorder - 1)


def _layers(axes: Axes, line: Line, method: str) -> None:
    names = list(line[-1][0].layers)
    rounds = [seeds[0].round for seeds in line]
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.8, len(names)))  # from the input to the output
    ends = []
    for name, color in zip(names, colors, strict=True):
        density = np.array([fmean(r.layers.get(name, 0.0) for r in seeds) for seeds in line])
        density[density == 0] = np.nan  # a dead layer has no place on a logarithmic axis: its line ends
        axes.plot(rounds, density, color=color, marker="o", ms=4, lw=1.6, label=name)
        if (alive := np.flatnonzero(np.isfinite(density))).size:
            ends.append((float(density[alive[-1]]), rounds[alive[-1]], name, color))
    axes.set(title=f"Density of each layer, {method}", xlabel="round", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    percent_ticks(axes.yaxis)
    _names(axes, ends[:: -(-len(ends) // MOST_NAMES) or 1])


def percent_ticks(axis: Axis) -> None:
    """Give a logarithmic axis of shares ticks in percent."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 4 * low else range(1, 10)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))


def _names(axes: Axes, ends: list[tuple[float, int, str, Any]]) -> None:
    """Write each name beside the end of its line, moved apart where lines end close together."""
    ends = sorted(ends, key=lambda end: end[0])
    low, high = np.log(axes.get_ylim())
    shift = np.arange(len(ends)) * min(0.045, 1 / max(1, len(ends) - 1))
    # less their shift, names need only stay in order: the mean of lifting the lower and sinking the upper
    bare = (np.log([density for density, *_ in ends]) - low) / (high - low) - shift
    ordered = (np.maximum.accumulate(bare) + np.minimum.accumulate(bare[::-1])[::-1]) / 2
    height = np.clip(ordered, 0, 1 - shift[-1:].sum()) + shift
    for (density, number, name, color), y in zip(ends, height, strict=True):
        axes.annotate(
            name, (number, density), (1.06, y), textcoords="axes fraction", va="center", fontsize=9,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "alpha": 0.5, "shrinkA": 0, "relpos": (0, 0.5)},
        )
