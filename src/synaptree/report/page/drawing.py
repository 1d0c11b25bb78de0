"""Charts of a network's topology: what inputs keep, kernels, and degrees of units."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from synaptree.report.page.chart import CONTROLS, METHOD, Chart, plain
from synaptree.report.page.networks import Counts, LayerFacts

__all__ = ["degrees_chart", "inputs_chart", "kernels_chart"]

MOST_CELLS = 64  # of a map in one direction


def inputs_chart(maps: Mapping[int, Counts], shape: Sequence[int]) -> Chart | None:
    """Return how many connections each input keeps, as an image where inputs are pixels.

    Args:
        maps: counts `(inputs,)` by round.
        shape: of a sample, `(channels, height, width)` or `(features,)`; of another size it says nothing.
    """
    if not maps or np.prod(shape) != len(next(iter(maps.values()))):
        return None
    out, last = go.Figure(), max(maps)
    for index, counts in maps.items():
        belongs = {"meta": {"round": str(index)}, "visible": index == last}
        if len(shape) == 1:
            out.add_bar(
                x=[f"input {number}" for number in range(len(counts))], y=counts.tolist(),
                marker={"color": CONTROLS[0]}, hovertemplate="%{x} keeps %{y}<extra></extra>", **belongs,
            )  # fmt: skip
        else:
            out.add_heatmap(
                z=counts.reshape(shape).sum(0).astype(np.int32), colorscale="Viridis", zmin=0,
                hovertemplate="row %{y}, column %{x} keeps %{z}<extra></extra>",
                colorbar={"thickness": 10, "outlinewidth": 0}, **belongs,
            )  # fmt: skip
    if len(shape) > 1:
        hidden = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
        out.update_layout(xaxis={**hidden, "constrain": "domain"}, yaxis={
            **hidden, "autorange": "reversed", "scaleanchor": "x", "constrain": "domain",
        })  # fmt: skip
    out.update_layout(showlegend=False)
    dead = int((maps[last] == 0).sum())
    said = f"Connections of the first layer from each input; {dead} of {len(maps[last])} keep none in round {last}."
    return Chart("What each input keeps", said, out, 360)


def kernels_chart(layers: Sequence[LayerFacts]) -> Chart | None:
    """Return the kernels of every convolution, inputs across and outputs down."""
    layers = [layer for layer in layers if layer.kind == "conv"]
    if not layers:
        return None
    out, blocked = go.Figure(), False
    for number, layer in enumerate(layers):
        share = _blocks(layer.kernels / layer.size)
        blocked |= share.shape != layer.kernels.shape
        out.add_heatmap(
            z=np.rint(100 * share).astype(np.uint8), colorscale="Viridis", zmin=0, zmax=100, visible=number == 0,
            meta={"layer": layer.name}, colorbar={"thickness": 10, "outlinewidth": 0, "ticksuffix": " %"},
            hovertemplate="output %{y}, input %{x}<br>%{z} % of the weights exist<extra></extra>"
            if share.shape == layer.kernels.shape else "%{z} % of the weights of these kernels exist<extra></extra>",
        )  # fmt: skip
    out.update_layout(
        xaxis={"title": {"text": "input map"}, "showgrid": False, "zeroline": False},
        yaxis={"title": {"text": "output map"}, "autorange": "reversed", "showgrid": False, "zeroline": False},
    )  # fmt: skip
    empty = {layer.name: int((layer.kernels.sum(1) == 0).sum()) for layer in layers}
    dead = [f"{number} of {name}" for name, number in empty.items() if number]
    said = "Share of the weights that exist in each kernel."
    said += f" Layers of more than {MOST_CELLS} maps are shown in blocks of neighbouring kernels." if blocked else ""
    said += f" Filters without any weight: {', '.join(dead)}." if dead else " Every filter keeps some weight."
    return Chart("Kernels", said, out, 360)


def _blocks(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return means over blocks, at most `MOST_CELLS` in each direction."""
    for axis in (0, 1):
        if shares.shape[axis] > MOST_CELLS:
            parts = np.array_split(shares, MOST_CELLS, axis)
            shares = np.stack([part.mean(axis) for part in parts], axis)
    return shares


def degrees_chart(layers: Sequence[LayerFacts]) -> Chart:
    """Return for each layer how many inputs its units keep, and how many outputs the units before it."""
    out = go.Figure()
    for number, layer in enumerate(layers):
        exists = layer.kernels > 0
        for name, degrees, colour in (
            ("inputs of its units", exists.sum(1), CONTROLS[0]), ("outputs of the units before", exists.sum(0), METHOD),
        ):  # fmt: skip
            counts, edges = np.histogram(degrees, bins=_edges(int(degrees.max())))
            out.add_bar(
                x=plain((low + high - 1) / 2 for low, high in pairwise(edges)), y=counts.tolist(), name=name,
                width=plain(np.diff(edges) * 0.95), marker={"color": colour}, opacity=0.7, visible=number == 0,
                meta={"layer": layer.name}, customdata=[_range(low, high) for low, high in pairwise(edges)],
                hovertemplate="%{y} units with %{customdata}<extra>%{fullData.name}</extra>",
            )  # fmt: skip
    out.update_layout(
        barmode="overlay", xaxis={"title": {"text": "connections of a unit"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "units"}}, legend={"orientation": "h", "y": 1.18},
    )  # fmt: skip
    return Chart(
        "Degrees of units", "How many units keep how many connections; a kernel counts once, as long as some weight of "
        "it exists.", out, 360,
    )  # fmt: skip


def _edges(most: int, bins: int = 30) -> list[int]:
    """Return the first degrees of bins of equal whole width that reach from 0 to `most`.

    >>> _edges(2), _edges(90, bins=3)
    ([0, 1, 2, 3], [0, 31, 62, 93])
    """
    width = -(-(most + 1) // bins)
    return list(range(0, most + width + 1, width))


def _range(low: int, high: int) -> str:
    return str(low) if high == low + 1 else f"{low} to {high - 1}"
