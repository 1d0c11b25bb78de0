"""The drawing of a network: its units, and the connections between them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from synaptree.report.page.chart import CONTROLS, METHOD, Chart, plain
from synaptree.report.page.networks import LayerFacts

__all__ = ["network_chart", "wires"]

MOST = 400  # connections drawn


class Wire(NamedTuple):
    """A connection as it is drawn: from a unit of one column to a unit of the next; column 0 is the inputs."""

    column: int
    start: int
    end: int
    strength: float


def network_chart(layers: Sequence[LayerFacts], *, past: bool = False, most: int = MOST) -> Chart | None:
    """Return the network as units and connections; of a larger one the strongest paths to its outputs.

    None where the layers do not fit one after the other, or no path is left.

    Args:
        layers: in the order of the model.
        past: whether something may lead past them, which is not drawn.
        most: connections that are drawn.
    """
    drawn = wires(layers, most)
    if not any(wire.column == 0 for wire in drawn):
        return None
    widths = [layers[0].kernels.shape[1], *(layer.kernels.shape[0] for layer in layers)]
    names = ["inputs", *(layer.name for layer in layers)]
    out = go.Figure()
    for name, colour, chosen in (
        ("positive", CONTROLS[0], [wire for wire in drawn if layers[wire.column].size == 1 and wire.strength >= 0]),
        ("negative", METHOD, [wire for wire in drawn if layers[wire.column].size == 1 and wire.strength < 0]),
        ("kernels", CONTROLS[1], [wire for wire in drawn if layers[wire.column].size > 1]),
    ):
        if not chosen:
            continue
        ends = [(_height(w.start, widths[w.column]), _height(w.end, widths[w.column + 1])) for w in chosen]
        out.add_scatter(
            x=[at for wire in chosen for at in (wire.column, wire.column + 1, None)],
            y=plain([at for start, end in ends for at in (start, end, None)], 4),
            mode="lines", name=name, line={"width": 0.8, "color": colour}, opacity=0.6, hoverinfo="skip",
        )  # fmt: skip
    units = sorted({(w.column, w.start) for w in drawn} | {(w.column + 1, w.end) for w in drawn})
    out.add_scatter(
        x=[column for column, _ in units], y=plain([_height(unit, widths[column]) for column, unit in units], 4),
        mode="markers", text=[f"{names[column]} {unit}" for column, unit in units], showlegend=False,
        marker={"size": 6, "color": "#8c8c8c"}, hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    out.update_layout(
        xaxis={"tickvals": list(range(len(names))), "ticktext": names, "showgrid": False, "zeroline": False},
        yaxis={"visible": False}, legend={"orientation": "h", "y": 1.12},
    )  # fmt: skip
    return Chart("The network", _said(layers, len(drawn), past), out, 520, wide=True)


def _said(layers: Sequence[LayerFacts], drawn: int, past: bool) -> str:
    there = sum(int((layer.kernels > 0).sum()) for layer in layers)
    said = f"All {there:,} connections, units as points." if drawn == there else (
        f"A sample: the {drawn:,} strongest of {there:,} connections, layer by layer back from the outputs, and the "
        "units they join."
    )  # fmt: skip
    if any(layer.kind == "conv" for layer in layers):
        said += " Maps are units here; a line between them stands for a kernel, by its magnitude."
    return said + (" What leads past layers, as shortcuts do, is not drawn." if past else "")


def wires(layers: Sequence[LayerFacts], most: int) -> list[Wire]:
    """Return the connections to draw: all, or of more than `most` the strongest into units on the way to an output.

    None at all where the layers are no chain.
    """
    joined = [_positions(before, after) for before, after in pairwise(layers)]
    positions = [1, *(position for position in joined if position is not None)]
    if len(positions) != len(layers):
        return []
    everything = sum(int((layer.kernels > 0).sum()) for layer in layers) <= most
    each = most if everything else most // len(layers)
    found: list[Wire] = []
    reached: set[int] | None = None  # units of the column behind that are drawn; None: all
    for column in reversed(range(len(layers))):
        strongest = _strongest(layers[column], None if everything else reached, each)
        wired = [Wire(column, entry // positions[column], unit, strength) for unit, entry, strength in strongest]
        reached = {wire.start for wire in wired}
        found += wired
    return found


def _positions(before: LayerFacts, after: LayerFacts) -> int | None:
    """Return how many inputs of a layer one output of the layer before it becomes; None if they do not fit."""
    outputs, inputs = before.kernels.shape[0], after.kernels.shape[1]
    flattened = before.kind == "conv" and after.kind == "linear" and inputs % outputs == 0
    return inputs // outputs if inputs == outputs or flattened else None


def _strongest(layer: LayerFacts, into: set[int] | None, most: int) -> list[tuple[int, int, float]]:
    """Return existing connections (output, input, strength) into some outputs, the largest first, ties in order."""
    outputs, inputs = np.nonzero(layer.kernels)
    if into is not None:
        chosen = np.isin(outputs, list(into))
        outputs, inputs = outputs[chosen], inputs[chosen]
    strengths = layer.strengths[outputs, inputs]
    order = np.argsort(-np.abs(strengths), kind="stable")[:most]
    return list(zip(outputs[order].tolist(), inputs[order].tolist(), strengths[order].tolist(), strict=True))


def _height(unit: int, width: int) -> float:
    """Return where a unit stands in its column, in (0, 1), the first at the top."""
    return 1 - (unit + 0.5) / width
