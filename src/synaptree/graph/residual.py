"""Find residual sums and the batch norm of each layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from synaptree.graph.node import Graph, Node

__all__ = ["Residual", "norm_of", "residual_sums"]


@dataclass(frozen=True)
class Residual:
    """A sum of a branch and what goes past it.

    Attributes:
        add: name of the sum's node.
        branch: name of the node of the operand with the layers of the block.
        skip: name of the node of the other operand.
        layer: module name of the last layer of the branch, if only per-channel operations lie between
            it and the sum, and nothing but the sum depends on it.
        norm: module name of the norm after that layer.
        shortcut: module name of the `Shortcut` the skip operand comes from through per-channel
            operations.
        projection: whether the skip operand has layers of its own.
    """

    add: str
    branch: str
    skip: str
    layer: str | None
    norm: str | None
    shortcut: str | None
    projection: bool


def residual_sums(graph: Graph) -> tuple[Residual, ...]:
    """Return the sums of two operands that fork from one value, in the order in which they run.

    An operand is the skip if it reaches, without crossing a layer, something the other one also depends
    on. If neither does, both end in layers: the sum is a projection, and the operand with more layers
    behind it up to the fork is the branch. Layers here are `linear`, `conv` and modules of kind `other`
    (attention, recurrent ...).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synaptree.graph.read import read
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return x + self.fc(x).relu()
        >>> (found,) = residual_sums(read(Block(), torch.zeros(1, 3)))
        >>> found.skip, found.branch, found.layer
        ('x', 'relu', 'fc')
    """
    sums = (_residual(graph, node) for node in graph.nodes if node.op == "add" and len(node.inputs) == 2)
    return tuple(found for found in sums if found is not None)


def norm_of(graph: Graph) -> dict[str, str]:
    """Return the batch or instance norm directly after each layer, as module names.

    A layer is in it if the norm is all that reads it, and the model calls both just once.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from synaptree.graph.read import read
        >>> norm_of(read(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), torch.zeros(1, 1, 2, 2)))
        {'0': '1'}
    """
    found = {}
    for node in graph.nodes:
        readers = graph.consumers[node.name]
        if node.is_layer and len(readers) == 1 and readers[0].op == "norm":
            layer, norm = str(node.module), str(readers[0].module)
            if graph.calls[layer] == graph.calls[norm] == 1:
                found[layer] = norm
    return found


def _residual(graph: Graph, add: Node) -> Residual | None:
    near = [_behind(graph, name, through_layers=False) for name in add.inputs]
    far = [_behind(graph, name, through_layers=True) for name in add.inputs]
    own = [sum(_ends_walk(graph[name]) for name in far[i] - far[1 - i]) for i in (0, 1)]
    reaches = [not near[i].isdisjoint(far[1 - i]) for i in (0, 1)]
    alike = reaches[0] == reaches[1]
    branch = int(own[1] > own[0]) if alike else int(reaches[0])
    if far[0].isdisjoint(far[1]) or not own[branch]:
        return None
    names = add.inputs[branch], add.inputs[1 - branch]
    layer, norm = _last_layer(graph, names[0])
    *_, start = _back(graph, names[1])
    shortcut = start.module if start.op == "shortcut" else None
    return Residual(add.name, *names, layer, norm, shortcut, projection=not any(reaches))


def _last_layer(graph: Graph, name: str) -> tuple[str | None, str | None]:
    """Return the layer a value comes from and the norm after it."""
    path = list(_back(graph, name))
    layer = path[-1]
    alone = all(len(graph.consumers[node.name]) == 1 for node in path)
    if not (alone and layer.is_layer and graph.calls[str(layer.module)] == 1):
        return None, None
    return layer.module, next((node.module for node in reversed(path) if node.op == "norm"), None)


def _back(graph: Graph, name: str) -> Iterator[Node]:
    """Walk from a node back through per-channel operations; the last one yielded is none."""
    node = graph[name]
    yield node
    while node.op in ("norm", "pointwise", "pool") and len(node.inputs) == 1:
        node = graph[node.inputs[0]]
        yield node


def _behind(graph: Graph, name: str, *, through_layers: bool) -> set[str]:
    """Return the names of a node and of all it depends on, up to and with the first layers or all."""
    found: set[str] = set()
    todo = [name]
    while todo:
        node = graph[todo.pop()]
        if node.name not in found:
            found.add(node.name)
            todo += node.inputs if through_layers or not _ends_walk(node) else ()
    return found


def _ends_walk(node: Node) -> bool:
    return node.is_layer or (node.op == "other" and node.module is not None)
