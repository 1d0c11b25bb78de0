"""What an engine does, layer by layer, and where sparsity gains nothing."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from synaptree.runtime.ir import Net, Node

if TYPE_CHECKING:
    from synaptree.runtime.fastest import Choice, Plan

__all__ = ["Explanation", "Row", "explained"]

EVEN = 1.1  # times as fast as dense up to which we do not speak of a gain


@dataclass(frozen=True)
class Row:
    """One step of a network.

    Attributes:
        name: of the module.
        op: of the engine.
        shape: of what it gives, of one sample.
        density: share of its weights that are not 0; None if it has none.
        kernel: that computes it.
        microseconds: for one block of `lanes` samples; None where nothing was timed.
        dense_microseconds: by kernels that ignore zeros; None if nobody asked, or there are none, as for int8.
        why: why there is no gain; "" if there is.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    density: float | None
    kernel: str
    microseconds: float | None
    dense_microseconds: float | None
    why: str

    @property
    def gain(self) -> float | None:
        """How many times as fast as dense."""
        return self.dense_microseconds / self.microseconds if self.dense_microseconds and self.microseconds else None


@dataclass(frozen=True)
class Explanation:
    """What computes a network.

    Attributes:
        isa: instruction set.
        batch: samples a call was planned for.
        lanes: samples side by side in a block.
        rows: in the order in which they run.
    """

    isa: str
    batch: int
    lanes: int
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """Return it as a table."""
        blocks = -(-self.batch // self.lanes)
        plural = "s" if blocks > 1 else ""
        head = f"batch {self.batch} in {blocks} block{plural} of {self.lanes}, {self.isa}; microseconds a block"
        lines = [["layer", "op", "density", "kernel", "us", "dense us", "gain", ""]]
        lines += [list(_cells(row)) for row in self.rows]
        wide = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        padded = ([cell.ljust(width) for cell, width in zip(line, wide, strict=True)] for line in lines)
        return "\n".join([head, *("  ".join(cells).rstrip() for cells in padded)])


def _cells(row: Row) -> Iterator[str]:
    yield row.name or "-"
    yield row.op
    yield "" if row.density is None else f"{row.density:.1%}"
    yield row.kernel
    yield "" if row.microseconds is None else f"{row.microseconds:.2f}"
    yield "" if row.dense_microseconds is None else f"{row.dense_microseconds:.2f}"
    yield "" if row.gain is None else f"{row.gain:.1f} x"
    yield row.why


def explained(net: Net, plan: "Plan | None", isa: str, batch: int, dense: bool) -> Explanation:
    """Return what a plan does; without a plan the reference does it all."""
    if plan is None:
        rows = [_row(node, "reference", None, None, "no compiled kernels") for node in net.nodes]
        return Explanation(isa, batch, 1, tuple(rows))
    from synaptree.runtime.plan import dense_seconds

    rows = []
    number_of = {id(node): number for number, node in enumerate(net.nodes, 1)}
    for choice in plan.choices:
        node = choice.node
        if node is None:
            rows.append(Row("", choice.kernel, (), None, choice.kernel, 1e6 * choice.seconds, None, ""))
            continue
        compared = dense and node.op in ("linear", "conv") and not choice.kernel.startswith("int8")
        slow = dense_seconds(net, number_of[id(node)], plan.lanes, isa) if compared else None
        rows.append(_row(node, choice.kernel, choice.seconds, slow, _why(node, choice, slow)))
    return Explanation(isa, batch, plan.lanes, tuple(rows))


def _row(node: Node, kernel: str, seconds: float | None, dense: float | None, why: str) -> Row:
    density = node.density if node.op in ("linear", "conv") else None
    fast, slow = (None if time is None else 1e6 * time for time in (seconds, dense))
    return Row(node.name, node.op, node.shape, density, kernel, fast, slow, why)


def _why(node: Node, choice: "Choice", dense: float | None) -> str:
    """Return why a layer is not faster than a dense one."""
    if dense is None or choice.seconds <= 0 or dense > EVEN * choice.seconds:
        return ""
    if node.density == 1.0:
        return "no gain: every connection is there"
    assert node.weight is not None
    if np.count_nonzero(node.weight) < 500:
        return "no gain: too few weights for anything to matter"
    if node.density > 0.3:
        return f"no gain: {node.density:.0%} of the connections are there, and each costs more than in a dense layer"
    return "no gain: images too small for full registers" if node.op == "conv" else "no gain: too small a layer"
