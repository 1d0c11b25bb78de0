"""Charts of one run over its training: accuracy, density of each layer, births, deaths and ages."""

from collections.abc import Iterable, Sequence
from math import log10
from typing import Any

import plotly.graph_objects as go

from synaptree.report.page.chart import CONTROLS, METHOD, Chart, plain, see_through
from synaptree.results import Connections, Epoch, Result

__all__ = ["ages_chart", "changes", "changes_chart", "density_chart", "training_chart"]

Changes = list[tuple[int, int, int, int]]
"""Number of the round or epoch, connections born, died, and undone."""


def training_chart(result: Result) -> Chart | None:
    """Return validation accuracy and density after every epoch; None before the first."""
    epochs = result.epochs
    if not epochs:
        return None
    out, numbers = go.Figure(), list(range(1, len(epochs) + 1))
    where = [f"{epoch.stage}, round {epoch.round}" for epoch in epochs]
    for name, values, colour, axis in (
        ("validation accuracy", [epoch.validation_accuracy for epoch in epochs], CONTROLS[0], "y"),
        ("density", [epoch.density for epoch in epochs], METHOD, "y2"),
    ):
        out.add_scatter(
            x=numbers, y=plain(100 * value for value in values), name=name, mode="lines", text=where, yaxis=axis,
            line={"color": colour, "width": 2, "shape": "linear" if axis == "y" else "hv"},
            hovertemplate="epoch %{x} (%{text})<br>%{y:.2f} %<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    out.update_layout(
        xaxis=_times("epoch", numbers), yaxis={"title": {"text": "validation accuracy, %"}},
        yaxis2={
            "title": {"text": "density, %"}, "overlaying": "y", "side": "right", "range": [0, 105], "dtick": 25,
            "showgrid": False, "tickmode": "linear",
        },
        legend={"orientation": "h", "y": 1.15},
    )  # fmt: skip
    return Chart("Training", f"All {len(epochs)} epochs so far, over all rounds.", out, wide=True)


def density_chart(result: Result) -> Chart | None:
    """Return the density of each layer over rounds, or over epochs where the topology changed more often."""
    over = _over(result)
    times, columns = _by_epochs(result.epochs) if over == "epoch" else _by_rounds(result)
    names = list(dict.fromkeys(name for column in columns for name in column))
    if not names:
        return None
    shares = [[column.get(name, 1.0) for column in columns] for name in names]
    ticks = [100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1]
    out = go.Figure(go.Heatmap(
        x=times, y=names, z=[plain((log10(share) if share else None) for share in row) for row in shares],
        text=[[f"{100 * share:.3g} %" for share in row] for row in shares], xgap=1 if len(times) < 30 else 0, ygap=1,
        colorscale="Viridis", zmax=0, hovertemplate="%{y}, " + over + " %{x}<br>density %{text}<extra></extra>",
        texttemplate="%{text}" if len(times) <= 9 else None,
        colorbar={
            "tickvals": [log10(tick / 100) for tick in ticks], "ticktext": [f"{tick:g} %" for tick in ticks],
            "thickness": 10, "outlinewidth": 0,
        },
    ))  # fmt: skip
    out.update_layout(
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
        xaxis=_times(over, times, showgrid=False),
    )  # fmt: skip
    return Chart(
        "Density of each layer", f"Over {over}s, input at the top. The colours go by powers; an empty cell is a layer "
        "that has lost all its connections.", out, max(240, 90 + 26 * len(names)), wide=len(times) > 12,
    )  # fmt: skip


def _over(result: Result) -> str:
    """Return whether the topology changed more often than at the ends of rounds: over "epoch" or "round"."""
    return "epoch" if len(_told(result.epochs)) > len(result.rounds) + 1 else "round"


def _times(over: str, numbers: Sequence[int], **more: Any) -> dict[str, Any]:
    """Return an axis of rounds or epochs, with whole numbers at most twelve times."""
    least = (max(numbers) - min(numbers) + 1) / 12
    apart = next(step * 10**power for power in range(9) for step in (1, 2, 5) if step * 10**power >= least)
    first = numbers[0] if apart == 1 else 0
    return {"title": {"text": over}, "tick0": first, "dtick": apart, "zeroline": False, **more}


def _told(epochs: Iterable[Epoch]) -> list[tuple[int, Epoch, Connections]]:
    """Return the epochs that say what became of the connections, with their numbers."""
    return [(number, epoch, epoch.connections) for number, epoch in enumerate(epochs, 1) if epoch.connections]


def _by_epochs(epochs: Sequence[Epoch]) -> tuple[list[int], list[dict[str, float]]]:
    """Return what the layers were after each epoch; what an epoch does not say is as it was before."""
    columns: list[dict[str, float]] = []
    for epoch in epochs:
        dense = epoch.density == 1.0
        said = dict(epoch.connections.layers) if epoch.connections else {}
        columns.append(said or ({} if dense or not columns else columns[-1]))
    return list(range(1, len(epochs) + 1)), columns


def _by_rounds(result: Result) -> tuple[list[int], list[dict[str, float]]]:
    return [part.round for part in result.rounds], [dict(part.layers) for part in result.rounds]


def changes(result: Result) -> Changes:
    """Return the births and deaths of each round, or of each epoch where the topology changed more often.

    Counts that fall within a round were undone: growth that a gate took back.
    """
    if _over(result) == "round":
        return [
            (part.round, part.born, part.died, 0)
            for part in result.rounds if part.born is not None and part.died is not None
        ]  # fmt: skip
    found: Changes = []
    round_before, born_before, died_before = 0, 0, 0
    for number, epoch, now in _told(result.epochs):
        if epoch.round != round_before and now.died < died_before:  # another topology, counted anew
            born_before = died_before = 0
        born, died = now.born - born_before, now.died - died_before
        found.append((number, max(0, born), max(0, died), max(0, -born) + max(0, -died)))
        round_before, born_before, died_before = epoch.round, now.born, now.died
    return found


def changes_chart(result: Result) -> Chart | None:
    """Return connections born and died; None where nothing says it."""
    found = changes(result)
    if not any(sum(numbers) for _, *numbers in found):
        return None
    out, times = go.Figure(), [time for time, *_ in found]
    for name, values, colour in (
        ("born", [born for _, born, _, _ in found], CONTROLS[1]),
        ("died", [-died for _, _, died, _ in found], METHOD),
        ("undone", [undone for *_, undone in found], CONTROLS[5]),
    ):
        if any(values):
            out.add_bar(
                x=times, y=values, name=name, marker={"color": colour}, customdata=[abs(value) for value in values],
                hovertemplate=_over(result) + " %{x}: %{customdata:,} %{fullData.name}<extra></extra>",
            )  # fmt: skip
    out.update_layout(
        barmode="relative", xaxis=_times(_over(result), times), yaxis={"title": {"text": "connections"}},
        legend={"orientation": "h", "y": 1.15}, showlegend=True,
    )  # fmt: skip
    said = "Connections as the masks count them: upwards those that were born, downwards those that died."
    return Chart("Births and deaths", said + _cut(out, found, _over(result)) + _ageless(result, found), out)


def _cut(out: go.Figure, found: Changes, over: str) -> str:
    """Cut off a bar beside which no other could be seen, and say so: sparse training begins with many deaths."""
    heights = sorted((max(born, died, undone), number) for number, born, died, undone in found)
    if len(heights) < 3 or heights[-1][0] < 8 * heights[-2][0] or not heights[-2][0]:
        return ""
    most, (largest, number) = 1.3 * heights[-2][0], heights[-1]
    out.update_layout(yaxis={"range": [-most, most]})
    return f" The bar of {over} {number} is cut off: {largest:,}."


def _ageless(result: Result, found: Changes) -> str:
    if not any(born for _, born, *_ in found):
        return " Nothing was born: all connections are as old as the network."
    return "" if ages_chart(result) else " The run did not record their ages."


def ages_chart(result: Result) -> Chart | None:
    """Return the ages of connections; None where nothing was ever born, so that all are as old as the network."""
    by_epoch = [(number, said.ages) for number, _, said in _told(result.epochs) if said.ages]
    by_round = [(part.round, part.ages) for part in result.rounds if part.ages]
    over, found = ("epoch", by_epoch) if len(by_epoch) > len(by_round) else ("round", by_round)
    if not found:
        return None
    times, out = [time for time, _ in found], go.Figure()
    for low, high, share, name in ((0, 4, 0.15, "all"), (1, 3, 0.35, "middle half")):
        for at, fill in ((low, None), (high, "tonexty")):
            out.add_scatter(
                x=times, y=[ages[at] for _, ages in found], mode="lines", line={"width": 0}, fill=fill, name=name,
                fillcolor=see_through(CONTROLS[0], share), showlegend=fill is not None, hoverinfo="skip",
            )  # fmt: skip
    out.add_scatter(
        x=times, y=[ages[2] for _, ages in found], mode="lines+markers", name="median",
        line={"color": CONTROLS[0], "width": 2.5},
        customdata=[ages for _, ages in found],
        hovertemplate=over + " %{x}: half of the connections are at least %{y:,} updates old, all from "
        "%{customdata[0]:,} to %{customdata[4]:,}<extra></extra>",
    )  # fmt: skip
    out.update_layout(
        xaxis=_times(over, times), yaxis={"title": {"text": "age, updates"}, "rangemode": "tozero"},
        legend={"orientation": "h", "y": 1.15},
    )  # fmt: skip
    return Chart("Age of connections", "Optimizer updates since birth, of the connections that exist.", out)
