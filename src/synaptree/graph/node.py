"""The graph of a model as plain data."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, fx, nn

from synaptree.core.errors import SynaptreeError, unknown

__all__ = ["Graph", "GraphError", "Node"]


class GraphError(SynaptreeError):
    """A model cannot be read as a graph."""


@dataclass(frozen=True)
class Node:
    """One operation on activations.

    Attributes:
        name: unique in the graph.
        op: `input`, `output`; `linear`, `conv` (transposed too): the layers; `shortcut`: a `Shortcut`;
            `norm` (batch or instance norm), `pointwise`, `pool` (reductions over other axes too), `add`:
            channel `k` depends on channel `k` of each input alone, or on all of an input with one channel;
            `move`: only moves values (flatten, cat, slices, padding ...), as `links` say;
            `other`: unknown or mixing, and taken to read everything.
        inputs: names of the nodes it reads; sizes, parameters and constants are no inputs.
        module: qualified name of the module called, None for a function.
        shape: of the value; `()` if it is not one tensor.
        axis: which axis counts channels; None where channels are not told apart.
        links: for `move`, one `(2, p)` integer tensor per input: pairs of channel and input channel.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    module: str | None
    shape: tuple[int, ...]
    axis: int | None
    links: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)

    @property
    def channels(self) -> int:
        """Number of channels; 1 where they are not told apart."""
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def is_layer(self) -> bool:
        """Whether it is a `linear` or `conv`, whose inputs are connected to its outputs by weights."""
        return self.op in ("linear", "conv")


@dataclass(frozen=True)
class Graph:
    """A model's nodes in the order in which they run, without those nothing reads.

    `graph[name]` is the node of that name, `graph.module(name)` the model's own module.

    Attributes:
        nodes: each after its inputs.
        traced: the traced model; shares every module with the model that was read.
    """

    nodes: tuple[Node, ...]
    traced: fx.GraphModule = field(repr=False, compare=False)

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def __getitem__(self, name: str) -> Node:
        if name not in self._by_name:
            raise unknown("node", name, self._by_name)
        return self._by_name[name]

    def module(self, name: str) -> nn.Module:
        """Return the model's module of that qualified name."""
        return self.traced.get_submodule(name)

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Names of nodes to the nodes that read them."""
        found: dict[str, tuple[Node, ...]] = {node.name: () for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                found[name] += (node,)
        return found

    @cached_property
    def calls(self) -> Counter[str]:
        """Names of modules to the number of times the model calls them."""
        return Counter(node.module for node in self.nodes if node.module is not None)
