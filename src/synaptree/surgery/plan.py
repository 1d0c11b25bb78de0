"""What compaction removes, what it has to keep, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from synaptree.graph.flow import needed
from synaptree.graph.node import Graph
from synaptree.surgery.coupling import Coupling

__all__ = ["Plan", "Units", "existing", "planned"]

UNREAD = "nothing reads them"
JOINED = "what they are joined with is still needed"
UNTAKEN = "what reads them cannot take their constants"
UNFED = "nothing feeds them; their constants are folded into what reads them"


@dataclass(frozen=True)
class Units:
    """Units of one layer that share a fate.

    Attributes:
        layer: name of the module.
        units: their indices among the layer's outputs, from 0, in rising order.
        reason: why they were removed or kept, in words.
    """

    layer: str
    units: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {len(self.units)} units: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """What was removed where and why.

    Attributes:
        removed: units that are gone.
        kept: units that nothing reads or nothing feeds and that had to stay.
        notes: what could not be compacted as a whole, and what stopped it, in sentences.

    Example:
        >>> print(Plan(removed=(Units("fc1", (0, 3), "nothing reads them"),)))
        removed fc1: 2 units: nothing reads them
    """

    removed: tuple[Units, ...] = ()
    kept: tuple[Units, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"removed {units}" for units in self.removed] + [f"kept {units}" for units in self.kept]
        return "\n".join([*lines, *self.notes]) or "nothing to remove"


def planned(
    graph: Graph, alive: Mapping[str, Tensor], unfed: Mapping[str, Tensor], refused: Mapping[str, str]
) -> tuple[Plan, dict[str, Tensor]]:
    """Return what to remove, and which channels of each node stay.

    Args:
        graph: of the model.
        alive: parameter name -> its mask after folding.
        unfed: name of each node -> bool `(channels,)`: constants before folding.
        refused: name of each node with constants that could not be folded -> why.
    """
    coupling = Coupling(graph)
    wanted = needed(graph, alive)
    kept = coupling.kept(wanted)
    why = dict(coupling.pinned)
    for name, reason in refused.items():
        for label in coupling.of(name)[unfed[name]].tolist():
            why.setdefault(label, reason)
    removed, stay, done = [], [], set()
    for node in graph.nodes:
        if node.module is None or node.module not in wanted or node.module in done:
            continue
        done.add(node.module)
        for i in range(node.channels):
            idle = not wanted[node.module][i] or bool(unfed[node.name][i])
            if not kept[node.name][i]:
                removed.append((node.module, i, UNFED if unfed[node.name][i] else UNREAD))
            elif idle:
                label = int(coupling.of(node.name)[i])
                stay.append((node.module, i, why.get(label, UNTAKEN if wanted[node.module][i] else JOINED)))
    return Plan(_grouped(removed), _grouped(stay)), kept


def _grouped(single: list[tuple[str, int, str]]) -> tuple[Units, ...]:
    found: dict[tuple[str, str], list[int]] = {}
    for layer, unit, reason in single:
        found.setdefault((layer, reason), []).append(unit)
    return tuple(Units(layer, tuple(units), reason) for (layer, reason), units in found.items())


def existing(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Return which kernels exist, bool `(out, in / groups, 1, ...)`; by the weights not being 0 without a mask.

    >>> existing(torch.tensor([[0.0, 2.0]]), None)
    tensor([[False,  True]])
    """
    found = (weight != 0) if mask is None else mask.expand(weight.shape)
    if weight.dim() < 3:
        return found.clone()
    return found.flatten(2).any(2).view(*weight.shape[:2], *(1 for _ in weight.shape[2:]))
