"""Which channels of a model can only go together, and which must stay."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from synaptree.graph.node import Graph, Node
from synaptree.graph.operations import reads_values

__all__ = ["Coupling", "reads_channels"]


_JOINING = {"cat", "concat", "stack"}
_PICKING = {"chunk", "flip", "getitem", "narrow", "roll", "select", "split", "tensor_split", "unbind"}


class Coupling:
    """The channels of every node in classes that are kept or removed as one.

    A class holds what no narrower layer can tell apart: channel `k` of a sum and of each of its terms, the
    copies of a channel in a concatenation, the places of a channel behind a flatten, a whole group of a
    grouped convolution, and all calls of one module.

    Args:
        graph: of the model.

    Example:
        >>> from synaptree.graph.read import read
        >>> graph = read(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))
        >>> Coupling(graph).kept({"0": torch.tensor([True, False, True])})["_1"]
        tensor([ True, False,  True])
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.first: dict[str, int] = {}
        self.size = 0
        for node in graph.nodes:
            self.first[node.name], self.size = self.size, self.size + node.channels
        self._pairs: list[Tensor] = []
        self._why: dict[int, str] = {}
        calls: dict[str, Node] = {}
        for node in graph.nodes:
            self._join_node(node)
            if node.module is not None and any(True for _ in graph.module(node.module).parameters()):
                self._join_calls(calls.setdefault(node.module, node), node)
        self._pin_what_is_read_for_nothing()
        self.label = _components(self.size, self._pairs)
        self.pinned = {int(self.label[slot]): why for slot, why in self._why.items()}

    def of(self, node: str) -> Tensor:
        """Return the class of each channel of a node, `(channels,)` int64."""
        start = self.first[node]
        return self.label[start : start + self.graph[node].channels]

    def kept(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return which channels of each node stay.

        Args:
            wanted: layer or `Shortcut` -> bool `(out,)`: units that something reads. No node is left without
                a channel.

        Returns:
            Name of each node -> bool `(channels,)`.
        """
        stays = torch.zeros(self.size, dtype=torch.bool)
        stays[list(self.pinned)] = True
        for node in self.graph.nodes:
            if node.module is not None and node.module in wanted:
                stays[self.of(node.name)[wanted[node.module]]] = True
        for node in self.graph.nodes:
            if not stays[self.of(node.name)].any():
                stays[self.of(node.name)[0]] = True
        return {node.name: stays[self.of(node.name)] for node in self.graph.nodes}

    def _slots(self, node: Node) -> Tensor:
        return torch.arange(node.channels) + self.first[node.name]

    def _join(self, one: Tensor, other: Tensor) -> None:
        self._pairs.append(torch.stack([one, other]))

    def _pin(self, node: Node, why: str) -> None:
        for slot in self._slots(node).tolist():
            self._why.setdefault(slot, why)

    def _join_node(self, node: Node) -> None:
        sources = [self.graph[name] for name in node.inputs]
        module = self.graph.module(node.module) if node.module is not None else None
        if node.op == "input":
            self._pin(node, "it is an input")
        elif node.op == "output" or node.op == "other" or (module is not None and _reparametrised(module)):
            why = "it is an output" if node.op == "output" else f"{node.name!r} reads all of it"
            for part in (node, *sources):
                self._pin(part, why)
        elif module is not None and node.is_layer:
            self._join_layer(node, sources[0], module)
        elif node.op == "shortcut" and sources[0].axis != 1:
            self._pin(node, f"{node.name!r} adds what has no channels told apart")
        elif node.op == "shortcut":
            offset, inputs = (int(getattr(module, name)) for name in ("offset", "in_channels"))
            self._join(self._slots(sources[0]), self._slots(node)[offset : offset + inputs])
        elif node.op == "move":
            self._join_move(node, sources)
        else:
            self._join_channels(node, sources)

    def _join_layer(self, node: Node, source: Node, module: nn.Module) -> None:
        groups = module.groups if isinstance(module, _ConvNd) else 1
        if not reads_channels(self.graph, node):
            self._pin(source, f"{node.name!r} reads it along another axis")
            if groups > 1:
                self._pin(node, f"its groups read {source.name!r}, whose channels are not told apart")
            return
        if groups > 1:
            members = torch.cat([self._slots(n).view(groups, -1) for n in (source, node)], 1)
            self._join(members[:, :1].expand_as(members).flatten(), members.flatten())

    def _join_move(self, node: Node, sources: list[Node]) -> None:
        told_apart = {other.name for other in self.graph.nodes if other.op != "move"} | set(node.inputs)
        moves = _moves(self.graph, node.name, told_apart)
        read = {n.name for move in moves for n in move.all_input_nodes}
        left_out = [self.graph[name] for name in told_apart & read - set(node.inputs)]
        if left_out or _picks_from_several(moves) or not _in_order(node, sources):
            for part in (node, *sources, *left_out):
                self._pin(part, f"{node.name!r} picks channels by number")
            return
        for source, (channel, origin) in zip(sources, node.links, strict=True):
            self._join(self._slots(node)[channel], self._slots(source)[origin])

    def _join_channels(self, node: Node, sources: list[Node]) -> None:
        if node.op != "pool" and node.module is None and _reads_more(self.graph, node):
            for part in (node, *sources):
                self._pin(part, f"{node.name!r} joins it with a constant or a size")
        for source in sources:
            if source.channels == node.channels:
                self._join(self._slots(source), self._slots(node))
            else:
                self._pin(source, f"{node.name!r} spreads it over other channels")
                if _as_wide(source, node):
                    self._pin(node, f"{node.name!r} joins it with {source.name!r}, whose channels are not told apart")

    def _join_calls(self, one: Node, other: Node) -> None:
        if one is other:
            return
        pairs = [(one, other), *((self.graph[a], self.graph[b]) for a, b in zip(one.inputs, other.inputs, strict=True))]
        for a, b in pairs:
            if a.channels == b.channels:
                self._join(self._slots(a), self._slots(b))
            else:
                self._pin(a, f"{one.module!r} is called on it and on another width")
                self._pin(b, f"{one.module!r} is called on it and on another width")

    def _pin_what_is_read_for_nothing(self) -> None:
        """Keep what operations read whose value goes nowhere: they still run, and would not fit."""
        for idle in _without_effect(self.graph):
            moves = _moves(self.graph, idle.name, {node.name for node in self.graph.nodes})
            read = {n.name for move in moves for n in move.all_input_nodes}
            for node in self.graph.nodes:
                called = idle.op == "call_module" and idle.target == node.module
                if node.name in read or called:
                    for name in (node.name, *(node.inputs if called else ())):
                        self._pin(self.graph[name], f"{idle.name!r} reads it, whose value nothing reads")


def _without_effect(graph: Graph) -> list[fx.Node]:
    """Return the operations that the output does not depend on."""
    everything = list(graph.traced.graph.nodes)
    behind = {node.name for node in graph.nodes}
    for n in reversed(everything):
        if n.name in behind:
            behind |= {source.name for source in n.all_input_nodes}
    return [n for n in everything if n.name not in behind and reads_values(n)]


def reads_channels(graph: Graph, node: Node) -> bool:
    """Return whether a layer's input connections are the channels of the node it reads."""
    source = graph[node.inputs[0]]
    return source.axis == (len(source.shape) - 1 if node.op == "linear" else 1)


def _components(size: int, pairs: list[Tensor]) -> Tensor:
    label = torch.arange(size)
    if not pairs:
        return label
    one, other = torch.cat(pairs, 1)
    while True:
        lowest = torch.minimum(label[one], label[other])
        new = label.scatter_reduce(0, one, lowest, "amin").scatter_reduce(0, other, lowest, "amin")
        new = new[new]
        if new.equal(label):
            return label
        label = new


def _in_order(node: Node, sources: list[Node]) -> bool:
    """Return whether a move puts all channels of its inputs one after the other, each equally often."""
    if node.axis is None or not node.links:
        return False
    seen = torch.cat([channel for channel, _ in node.links])
    if not seen.sort().values.equal(torch.arange(node.channels)):
        return False
    order = sorted(range(len(sources)), key=lambda i: int(node.links[i][0].min()))
    wanted = []
    for i in order:
        channel, origin = node.links[i]
        times, rest = divmod(len(channel), sources[i].channels)
        if rest:
            return False
        wanted.append(torch.arange(sources[i].channels).repeat_interleave(times))
        if not origin[channel.argsort()].equal(wanted[-1]) or int(channel.max() - channel.min()) >= len(channel):
            return False
    return True


def _moves(graph: Graph, last: str, ends: Collection[str]) -> list[fx.Node]:
    """Return an operation and the moves before it, back to where a value at the `ends` is read."""
    found = [n for n in graph.traced.graph.nodes if n.name == last]
    for n in found:  # which grows
        found += [m for m in n.all_input_nodes if m.name not in ends and m not in found and reads_values(m)]
    return found


def _picks_from_several(moves: list[fx.Node]) -> bool:
    """Return whether something is picked by number after several inputs were joined, whose widths then count."""
    names = {n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "") for n in moves}
    return bool(names & _JOINING) and bool(names & _PICKING)


def _as_wide(source: Node, node: Node) -> bool:
    """Return whether a value without channels of its own has more than one entry where a node counts channels."""
    place = -1 if node.axis is None else node.axis - len(node.shape) + len(source.shape)
    return source.axis is None and place >= 0 and source.shape[place] > 1


def _reads_more(graph: Graph, node: Node) -> bool:
    """Return whether a function reads a tensor or a number of the model's that is no activation."""
    traced = next(n for n in graph.traced.graph.nodes if n.name == node.name)
    activations = {n.name for n in graph.nodes}
    return any(n.name not in activations for n in traced.all_input_nodes)


def _reparametrised(module: nn.Module) -> bool:
    return "parametrizations" in module._modules or hasattr(module, "weight_g") or hasattr(module, "weight_orig")
