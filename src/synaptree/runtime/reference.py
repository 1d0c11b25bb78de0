"""What the engine computes, slowly and plainly: kernels are compared with it, and it runs where none were built."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from synaptree.runtime.ir import Net, Node, volume

__all__ = ["compute", "run"]

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


def run(net: Net, x: Floats) -> Floats:
    """Return what a network makes of samples `(samples, *net.shape)`, in float32, the sums of layers in float64."""
    values: list[Array] = [x]
    for node in net.nodes:
        values.append(compute(node, *(values[value] for value in node.reads)))
    return np.ascontiguousarray(values[net.output], np.float32)


def compute(node: Node, *values: Array) -> Floats:
    """Return what a node makes of the values it reads, the residual last."""
    given = values if node.residual is None else values[:-1]
    y = _COMPUTE[node.op](node, *given)
    if node.residual is not None:
        y = y + values[-1]
    y = np.minimum(np.maximum(y, node.low), node.high)
    return y.reshape(len(y), *node.shape).astype(np.float32)


def _columns(node: Node, numbers: Array | None) -> Array:
    """Return one number per channel as an array that broadcasts over samples."""
    assert numbers is not None
    return numbers.reshape(-1, *(1,) * (len(node.shape) - 1))


def _linear(node: Node, x: Array) -> Array:
    assert node.weight is not None
    y = x.astype(np.float64) @ node.weight.T.astype(np.float64)
    return y if node.bias is None else y + node.bias


def _conv(node: Node, x: Array) -> Array:
    assert node.weight is not None
    options, groups = node.options, int(node.options["groups"])
    x = x.reshape(len(x), *volume(x.shape[1:])).astype(np.float64)
    sides = [(0, 0), (0, 0), *((border, border) for border in options["padding"])]
    outs = []
    for part, weight in zip(np.split(np.pad(x, sides), groups, 1), np.split(node.weight, groups), strict=True):
        windows = _windows(part, weight.shape[2:], options["stride"], options["dilation"])
        outs.append(np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64), optimize=True))
    y = np.concatenate(outs, 1)
    return y if node.bias is None else y + node.bias[:, None, None]


def _windows(x: Array, kernel: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]) -> Array:
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = sliding_window_view(x, tuple(spans), (2, 3))
    return windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _affine(node: Node, x: Array) -> Array:
    return x * _columns(node, node.weight) + _columns(node, node.bias)


def _leaky(node: Node, x: Array) -> Array:
    return np.where(x < 0, x * _columns(node, node.weight), x)


def _shortcut(node: Node, x: Array) -> Array:
    stride = node.options["stride"]
    if stride > 1:
        x = x[:, :, ::stride, ::stride]
    before = (node.shape[0] - x.shape[1]) // 2
    after = node.shape[0] - x.shape[1] - before
    padded = np.pad(x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    return padded * _columns(node, node.weight)


def _pool(node: Node, x: Array, empty: float) -> tuple[Array, Array]:
    """Return the windows of a pool, (samples, channels, height, width, *kernel), and which of their entries count."""
    options = node.options
    x = x.reshape(len(x), *volume(x.shape[1:])).astype(np.float64)
    out = volume(node.shape)[1:]
    names = ("kernel_size", "stride", "padding", "dilation")
    sides, counted = [], np.ones((), bool)
    for size, length, (kernel, stride, padding, dilation) in zip(
        x.shape[2:], out, zip(*(options[name] for name in names), strict=True), strict=True
    ):
        reach = (length - 1) * stride + dilation * (kernel - 1) + 1
        behind = max(0, reach - size - padding)
        sides.append((padding, behind))
        place = np.arange(size + padding + behind)
        inside = (place >= padding) & (place < padding + size)
        if options["count_include_pad"]:
            inside = place < size + 2 * padding
        counted = np.multiply.outer(counted, inside)
    whole = np.pad(x, [(0, 0), (0, 0), *sides], constant_values=empty)
    stride, dilation = options["stride"], options["dilation"]
    windows = _windows(whole, options["kernel_size"], stride, dilation)[:, :, : out[0], : out[1]]
    counts = _windows(counted[None, None], options["kernel_size"], stride, dilation)[:, :, : out[0], : out[1]]
    return windows, counts


def _max_pool(node: Node, x: Array) -> Array:
    windows, _ = _pool(node, x, -np.inf)
    return np.asarray(windows.max((4, 5)))


def _avg_pool(node: Node, x: Array) -> Array:
    windows, counts = _pool(node, x, 0.0)
    return np.asarray(windows.sum((4, 5)) / counts.sum((4, 5)))


def _adaptive(reduce: Callable[..., Any]) -> Callable[..., Array]:
    def pooled(node: Node, x: Array) -> Array:
        x = x.reshape(len(x), *volume(x.shape[1:])).astype(np.float64)
        out = node.options["output_size"]
        y = np.empty((*x.shape[:2], *out))
        for place in product(*(range(length) for length in out)):
            rows, columns = (
                slice(at * size // length, -(-(at + 1) * size // length))
                for at, size, length in zip(place, x.shape[2:], out, strict=True)
            )
            y[:, :, place[0], place[1]] = reduce(x[:, :, rows, columns], axis=(2, 3))
        return y

    return pooled


def _log_softmax(_: Node, x: Array) -> Array:
    shifted = x.astype(np.float64) - x.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


_COMPUTE: dict[str, Callable[..., Array]] = {
    "linear": _linear,
    "conv": _conv,
    "affine": _affine,
    "leaky": _leaky,
    "shortcut": _shortcut,
    "clamp": lambda _, x: x,
    "flatten": lambda _, x: x.reshape(len(x), -1),
    "add": lambda _, *terms: sum(terms),
    "cat": lambda _, *parts: np.concatenate(parts, 1),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive(np.mean),
    "adaptive_max_pool": _adaptive(np.max),
    "softmax": lambda node, x: np.exp(_log_softmax(node, x)),
    "log_softmax": _log_softmax,
}
