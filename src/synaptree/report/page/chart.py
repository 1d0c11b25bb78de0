"""What the charts of a page have in common: colours, axes, and how they become JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from math import isfinite
from typing import Any

import plotly.graph_objects as go

__all__ = ["CONTROLS", "METHOD", "Chart", "colours", "log_percent", "plain", "see_through"]

# Okabe and Ito's colours, told apart by colour-blind readers and legible on light and on dark; the method itself has
# vermilion to itself
METHOD = "#d55e00"
CONTROLS = ("#0082c8", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")


@dataclass(frozen=True)
class Chart:
    """A figure with its words.

    What a trace belongs to stands in its `meta`, as {"layer": "fc1"}: the page's filters go by it.

    Attributes:
        title: above it.
        said: below it: how to read it, and what it leaves out.
        figure: to be drawn when it comes into view.
        height: in pixels.
        wide: whether it takes the whole width of the page.
    """

    title: str
    said: str
    figure: go.Figure
    height: int = 340
    wide: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the figure as plain JSON; how it looks is up to the page."""
        self.figure.update_layout(template=go.layout.Template())
        found: dict[str, Any] = json.loads(self.figure.to_json())
        return found


def colours(names: list[str], method: str) -> Mapping[str, str]:
    """Return the colour of the method and of each control.

    >>> colours(["nnrelief", "random"], "nnrelief")
    {'nnrelief': '#d55e00', 'random': '#0082c8'}
    """
    others = cycle(CONTROLS)
    return {name: METHOD if name == method else next(others) for name in names}


def see_through(colour: str, share: float) -> str:
    """Return a colour that covers only a share of what lies behind it.

    >>> see_through("#0082c8", 0.2)
    'rgba(0,130,200,0.2)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


def plain(values: Any, digits: int = 5) -> list[float | None]:
    """Return numbers with a few digits, for they are only looked at; None where one is not finite."""
    return [None if value is None or not isfinite(value) else float(f"{value:.{digits}g}") for value in values]


def log_percent(lowest: float, title: str) -> dict[str, Any]:
    """Return an axis of densities in percent, by powers, from dense to sparse.

    >>> log_percent(0.03, "density")["ticktext"]
    ['100 %', '50 %', '20 %', '10 %', '5 %', '2 %']
    """
    ticks = [float(f"{digit}e{power}") for power in (2, 1, 0, -1, -2, -3) for digit in (5, 2, 1)]
    ticks = [tick for tick in sorted(ticks, reverse=True) if 50 * lowest <= tick <= 100]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if str(f"{tick:e}").startswith("1")]
    return {
        "type": "log", "autorange": "reversed", "title": {"text": title}, "tickmode": "array", "tickvals": ticks,
        "ticktext": [f"{tick:g} %" for tick in ticks],
    }  # fmt: skip
