"""Exact changes of a network that save work: norms folded, activations and sums fused, hidden units ordered."""

from dataclasses import replace
from math import inf

import numpy as np
import numpy.typing as npt

from synaptree.runtime.ir import Net, Node

__all__ = ["fused"]

Graph = dict[int, Node]  # by number of the value it gives, in the order in which they run


def fused(net: Net) -> Net:
    """Return a network that computes the same, up to rounding, in fewer nodes."""
    graph = {number + 1: node for number, node in enumerate(net.nodes)}
    output = net.output
    for value in list(graph):
        for fuse in (_fold_norm, _fuse_sum, _fuse_clamp):
            if value in graph:
                output = fuse(graph, value, output)
    _order_units(graph, output)
    return _numbered(net, graph, output)


def _sole_reader(graph: Graph, value: int, output: int) -> bool:
    return value != output and sum(node.reads.count(value) for node in graph.values()) == 1


def _open(node: Node) -> bool:
    """Return whether nothing happens to the sums of a node yet."""
    return node.low == -inf and node.high == inf


def _merge(graph: Graph, value: int, before: int, node: Node, output: int) -> int:
    """Put a node in the place of two: that of `value`, which read `before`."""
    del graph[before]
    graph[value] = node
    return output


def _fold_norm(graph: Graph, value: int, output: int) -> int:
    """Fold `scale (W x + b) + shift` into the layer: weights `scale W`, bias `scale b + shift`."""
    norm = graph[value]
    if norm.op != "affine" or not _open(norm):
        return output
    layer = graph.get(norm.inputs[0])
    if layer is None or layer.op not in ("linear", "conv") or layer.residual is not None:
        return output
    if not _open(layer) or not _sole_reader(graph, norm.inputs[0], output):
        return output
    assert norm.weight is not None
    assert norm.bias is not None
    assert layer.weight is not None
    scale = norm.weight.astype(np.float64)
    weight = (layer.weight * scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))).astype(np.float32)
    bias = norm.bias if layer.bias is None else (layer.bias * scale + norm.bias).astype(np.float32)
    scales = None if layer.scales is None else (layer.scales * scale).astype(np.float32)
    folded = replace(layer, weight=weight, bias=bias, scales=scales, ranges=(layer.ranges[0], norm.ranges[1]))
    return _merge(graph, value, norm.inputs[0], folded, output)


def _fuse_sum(graph: Graph, value: int, output: int) -> int:
    """Let a convolution add the other term of a sum to its own result."""
    add = graph[value]
    if add.op != "add" or not _open(add) or len(set(add.inputs)) < 2:
        return output
    for host in sorted(add.inputs, reverse=True):  # the later one: the other is there when it runs
        layer = graph.get(host)
        if layer is None or layer.op != "conv" or layer.residual is not None or not _open(layer):
            continue
        if _sole_reader(graph, host, output):
            other = next(term for term in add.inputs if term != host)
            ranges = (layer.ranges[0], add.ranges[1])
            return _merge(graph, value, host, replace(layer, residual=other, ranges=ranges), output)
    return output


def _fuse_clamp(graph: Graph, value: int, output: int) -> int:
    clamp = graph[value]
    if clamp.op != "clamp":
        return output
    before = graph.get(clamp.inputs[0])
    if before is None or before.op not in ("linear", "conv", "affine", "add") or not _open(before):
        return output
    if not _sole_reader(graph, clamp.inputs[0], output):
        return output
    ranges = (before.ranges[0], clamp.ranges[1])
    return _merge(graph, value, clamp.inputs[0], replace(before, low=clamp.low, high=clamp.high, ranges=ranges), output)


def _order_units(graph: Graph, output: int) -> None:
    """Order hidden units between linear layers by their number of connections.

    Kernels that compute sixteen units at a time then wait for none that has many more than the others.
    """
    for value in list(graph):
        layer = graph[value]
        readers = [(number, node) for number, node in graph.items() if value in node.reads]
        if layer.op != "linear" or value == output or len(readers) != 1 or readers[0][1].op != "linear":
            continue
        assert layer.weight is not None
        order = np.argsort(np.count_nonzero(layer.weight, axis=1), kind="stable")
        graph[value] = _permuted(layer, order, slice(None))
        graph[readers[0][0]] = _permuted(readers[0][1], slice(None), order)


def _permuted(node: Node, rows: slice | npt.NDArray[np.intp], columns: slice | npt.NDArray[np.intp]) -> Node:
    assert node.weight is not None
    return replace(
        node,
        weight=np.ascontiguousarray(node.weight[rows][:, columns]),
        bias=None if node.bias is None else node.bias[rows],
        integers=None if node.integers is None else np.ascontiguousarray(node.integers[rows][:, columns]),
        scales=None if node.scales is None else node.scales[rows],
    )


def _numbered(net: Net, graph: Graph, output: int) -> Net:
    """Return the network with values numbered anew, without nodes whose results nobody reads."""
    wanted = {output}
    for value, node in reversed(graph.items()):
        if value in wanted:
            wanted.update(node.reads)
    number = {0: 0}
    nodes = []
    for value, node in graph.items():
        if value in wanted:
            residual = None if node.residual is None else number[node.residual]
            nodes.append(replace(node, inputs=tuple(number[read] for read in node.inputs), residual=residual))
            number[value] = len(nodes)
    return Net(net.shape, tuple(nodes), number[output])
