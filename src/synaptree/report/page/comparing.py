"""Charts of several runs: accuracy over density, differences to dense, and methods side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

import plotly.graph_objects as go

from synaptree.report.comparison import Row, rounds_by_seed
from synaptree.report.page.chart import Chart, colours, log_percent, plain, see_through
from synaptree.report.page.experiments import Experiment
from synaptree.results import Round

__all__ = ["Standing", "accuracy_chart", "difference_chart", "front", "front_chart", "standings", "swatches"]

Line = list[list[Round]]
"""The rounds of one network in order, each over its seeds."""


def swatches(experiment: Experiment) -> Mapping[str, str]:
    """Return the networks of an experiment, the method itself and its controls, with their colours."""
    names = dict.fromkeys(run.result.control or run.result.method for run in experiment.runs)
    return colours(list(names), experiment.method)


def accuracy_chart(experiment: Experiment) -> Chart | None:
    """Return accuracy over density, with the dense line; None before the first round has ended."""
    lines = _lines(experiment)
    if not lines:
        return None
    tested = all(part.test_accuracy is not None for line in lines.values() for seeds in line for part in seeds)
    kind, drawn = "test" if tested else "validation", swatches(experiment)
    out = go.Figure()
    for name, line in lines.items():
        _draw_line(out, name, drawn[name], line, kind)
    dense = lines.get(experiment.method, [[]])[0]
    if dense and all(part.round == 0 and part.density == 1 for part in dense):
        level = fmean(_percent(dense, kind))
        out.add_hline(level, line={"dash": "dash", "width": 1.5, "color": "#8c8c8c"})
    lowest = min(part.density for line in lines.values() for seeds in line for part in seeds)
    out.update_layout(
        xaxis=log_percent(lowest, "density, dense to sparse"), yaxis={"title": {"text": f"{kind} accuracy, %"}},
        showlegend=False,
    )  # fmt: skip
    several = any(len(seeds) > 1 for line in lines.values() for seeds in line)
    spread = " Means over seeds; bars from the lowest to the highest seed." if several else ""
    why = "" if tested else " Not every round has been tested."
    return Chart(
        "Accuracy over density", f"On the {kind} set.{why}{spread} The dashed line is the dense network.", out, 380
    )


def _lines(experiment: Experiment) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    for (_, method, control, _), seeds in rounds_by_seed(run.result for run in experiment.runs).items():
        # a seed network is not trained yet: beside it all others would look alike
        lines.setdefault(control or method, []).extend([list(seeds.values())])
    trained = {name: [seeds for seeds in line if seeds[0].stage != "seed"] for name, line in lines.items()}
    return {name: trained[name] or line for name, line in lines.items()}


def _percent(seeds: Sequence[Round], kind: str) -> list[float]:
    return [100 * getattr(part, f"{kind}_accuracy") for part in seeds]


def _draw_line(out: go.Figure, name: str, colour: str, line: Line, kind: str) -> None:
    means = [fmean(_percent(seeds, kind)) for seeds in line]
    out.add_scatter(
        x=plain(100 * fmean(part.density for part in seeds) for seeds in line), y=plain(means), name=name,
        mode="lines+markers" if len(line) > 1 else "markers", meta={"network": name},
        line={"color": colour, "width": 2.5}, marker={"size": 8}, customdata=[seeds[0].round for seeds in line],
        error_y={
            "array": plain(max(_percent(seeds, kind)) - mean for seeds, mean in zip(line, means, strict=True)),
            "arrayminus": plain(mean - min(_percent(seeds, kind)) for seeds, mean in zip(line, means, strict=True)),
            "thickness": 1, "width": 3, "visible": any(len(seeds) > 1 for seeds in line),
        },
        hovertemplate="%{fullData.name}, round %{customdata}<br>density %{x:.3g} %, %{y:.2f} %<extra></extra>",
    )  # fmt: skip


def difference_chart(experiment: Experiment) -> Chart | None:
    """Return the differences of the test accuracy to dense with their paired intervals, if there are any."""
    rows = [row for row in experiment.rows if row.difference is not None]
    if not rows:
        return None
    drawn, out = swatches(experiment), go.Figure()
    for name, together in groupby(rows, key=lambda row: row.control or row.method):
        line = [(row, row.difference) for row in together if row.difference is not None]
        out.add_scatter(
            x=plain(100 * row.density for row, _ in line), y=plain(d.mean for _, d in line), name=name,
            mode="markers+lines", marker={"size": 7}, line={"color": drawn[name], "width": 1.5},
            customdata=[row.round for row, _ in line], meta={"network": name},
            error_y={
                "array": plain(d.high - d.mean for _, d in line), "arrayminus": plain(d.mean - d.low for _, d in line),
                "thickness": 1.2, "width": 3,
            },
            hovertemplate="%{fullData.name}, round %{customdata}<br>%{y:+.2f} points<extra></extra>",
        )  # fmt: skip
    out.add_hline(0, line={"dash": "dash", "width": 1.5, "color": "#8c8c8c"})
    out.update_layout(
        xaxis=log_percent(min(row.density for row in rows), "density, dense to sparse"),
        yaxis={"title": {"text": "points to dense"}}, showlegend=False,
    )  # fmt: skip
    seeds = max(row.seeds for row in rows)
    over = f"test images and {seeds} seeds" if seeds > 1 else "test images, for there is one seed"
    return Chart("Difference to dense", f"Paired with dense, seed by seed; 95 % intervals over {over}.", out, 380)


@dataclass(frozen=True)
class Standing:
    """One round of a method beside other methods, mean over seeds."""

    name: str  # of the experiment
    row: Row
    best: bool  # no other has as few connections and a higher validation accuracy


def standings(found: Sequence[Experiment]) -> list[Standing]:
    """Return the rounds of all methods, and which of them no other surpasses on the validation set."""
    rows = [(one.title, row) for one in found for row in one.rows if not row.control]
    best = front([(row.density, row.validation) for _, row in rows])
    return [Standing(name, row, number in best) for number, (name, row) in enumerate(rows)]


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Return which points (density, accuracy) lie on the Pareto front: none is as sparse and as accurate.

    >>> sorted(front([(1.0, 0.9), (0.5, 0.9), (0.5, 0.8), (0.1, 0.7)]))
    [1, 3]
    """
    best, reached = set(), float("-inf")
    for number in sorted(range(len(points)), key=lambda number: (points[number][0], -points[number][1])):
        if points[number][1] > reached:
            best.add(number)
            reached = points[number][1]
    return best


def front_chart(found: Sequence[Standing], models: int = 1) -> Chart:
    """Return the rounds of all methods with the front through the best of them, which may be of several models."""
    out = go.Figure()
    drawn = colours(list(dict.fromkeys(one.name for one in found)), "")
    for name, together in groupby(found, key=lambda one: one.name):
        rows = [one.row for one in together]
        tested = [row.accuracy for row in rows]
        out.add_scatter(
            x=plain(100 * row.density for row in rows), y=plain(100 * row.validation for row in rows), name=name,
            mode="markers", marker={"size": 8, "color": see_through(drawn[name], 0.75)},
            customdata=[
                [row.round, "not tested" if accuracy is None else f"test {100 * accuracy:.2f} %"]
                for row, accuracy in zip(rows, tested, strict=True)
            ],
            hovertemplate="%{fullData.name}, round %{customdata[0]}<br>density %{x:.3g} %, validation %{y:.2f} %, "
            "%{customdata[1]}<extra></extra>", meta={"network": name},
        )  # fmt: skip
    best = sorted((one.row for one in found if one.best), key=lambda row: row.density)
    out.add_scatter(
        x=plain(100 * row.density for row in best), y=plain(100 * row.validation for row in best), name="front",
        mode="lines", line={"shape": "hv", "dash": "dot", "width": 2, "color": "#8c8c8c"}, hoverinfo="skip",
    )  # fmt: skip
    out.update_layout(
        xaxis=log_percent(min(one.row.density for one in found), "density, dense to sparse"),
        yaxis={"title": {"text": "validation accuracy, %"}}, showlegend=False,
    )  # fmt: skip
    own = f" Density is that of each one's own network; there are {models} of them." if models > 1 else ""
    return Chart(
        "All methods", "Validation accuracy over density, means over seeds. The dotted line is the Pareto front, drawn "
        "by validation accuracy alone: no round is as sparse and more accurate. The test set had no say in it." + own,
        out, 420, wide=True,
    )  # fmt: skip
