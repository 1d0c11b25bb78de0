"""From a file's program to what an engine computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from synaptree.format.file import File
from synaptree.format.program import Program, Step, filled
from synaptree.runtime.errors import EngineError
from synaptree.runtime.fuse import fused
from synaptree.runtime.ir import Net, Node, Shape, volume

__all__ = ["lower"]

Array = npt.NDArray[Any]
ADVICE = "synaptree.sparsify(model) runs the model's sparse layers with the same kernels, and leaves the rest to torch"


def lower(file: File) -> Net:
    """Return what a file computes, in the engine's operators.

    Dropout and identities are left out, batch norms folded into the layers before them, activations and residual sums
    fused, hidden units of linear layers ordered by their number of connections.

    Raises:
        EngineError: names the step whose operator, option or shape the engine has not got.
    """
    program = file.program
    if program is None:
        raise EngineError("the file does not say what its network computes; save it with example_input=...")
    if len(program.inputs) != 1 or len(program.outputs) != 1 or program.returns != "value":
        raise EngineError(
            f"{len(program.inputs)} inputs and {len(program.outputs)} outputs as {program.returns}: wanted one of "
            f"each; {ADVICE}"
        )
    if program.inputs[0].dtype != "float32":
        raise EngineError(f"input of {program.inputs[0].dtype}: wanted float32; {ADVICE}")
    shape = program.inputs[0].shape
    if not 1 <= len(shape) <= 3:
        raise EngineError(f"input of shape {shape}: wanted 1 to 3 axes beside the samples'; {ADVICE}")
    nodes: list[Node] = []
    value_of = {0: 0}  # of the program -> of the net
    shapes: dict[int, Shape] = {0: shape}
    needed = _needed(program)
    for number, step in enumerate(program.steps):
        if number + 1 not in needed:  # tensors that the network holds and does not read
            continue
        read = [value_of[value] for value in step.inputs]
        try:
            found = _nodes(_Call(step, tuple(read), [shapes[value] for value in read], file))
        except EngineError as error:
            raise EngineError(f"step {number}, {step.op} {step.name!r}: {error}; {ADVICE}") from error
        for node in found:
            if node is not found[0]:
                node = replace(node, inputs=(len(nodes),))
            ranges = tuple(file.ranges.get(value, 0.0) for value in (step.inputs[0], number + 1))
            nodes.append(replace(node, ranges=(ranges[0], ranges[1])))
            shapes[len(nodes)] = node.shape
        value_of[number + 1] = len(nodes) if found else read[0]
    return fused(Net(shape, tuple(nodes), value_of[program.outputs[0]]))


def _needed(program: Program) -> set[int]:
    """Return the numbers of the values that the output depends on."""
    needed = {program.outputs[0]}
    for number, step in reversed(list(enumerate(program.steps, 1))):
        if number in needed:
            needed.update(step.inputs)
    return needed


@dataclass(frozen=True)
class _Call:
    """A step of a file's program: what it reads, and the call.shapes of that."""

    step: Step
    inputs: tuple[int, ...]
    shapes: list[Shape]
    file: File

    @property
    def options(self) -> Mapping[str, Any]:
        return filled(self.step)

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    def part(self, name: str) -> Array | None:
        """Return one of its tensors in float32, None if it has none of that name."""
        tensor = f"{self.step.name}.{name}"
        if tensor not in self.file.entries and tensor not in self.file.aliases:
            return None
        return self.file.tensor(tensor).astype(np.float32)

    def needed(self, name: str) -> Array:
        """Return one of its tensors, which must be there."""
        found = self.part(name)
        if found is None:
            raise EngineError(f"no tensor {self.step.name}.{name}")
        return found

    def node(
        self, op: str, shape: Shape, weight: Array | None = None, bias: Array | None = None, **more: Any
    ) -> Node:
        """Return a node that reads what the step reads."""
        return Node(op, self.step.name, self.inputs, shape, weight, bias, **more)


Made = Callable[[_Call], list[Node]]


def _nodes(call: _Call) -> list[Node]:
    """Return the nodes of a step, each after the first reading the one before; none if it changes nothing."""
    if call.step.op == "constant":
        raise EngineError("the engine has no constants; a layer saved by itself has: wrap it in nn.Sequential")
    if call.step.op not in _MADE:
        raise EngineError("the engine has no such operator")
    return _MADE[call.step.op](call)


def _linear(call: _Call) -> list[Node]:
    weight = call.needed("weight")
    if len(call.shape) != 1 or call.shape[0] != weight.shape[1]:
        raise EngineError(f"reads a value of shape {call.shape}, wanted ({weight.shape[1]},)")
    node = call.node("linear", weight.shape[:1], weight, call.part("bias"))
    scales = call.file.entry(f"{call.step.name}.weight").scales
    if scales is None:
        return [node]
    steps = np.where(scales > 0, scales, 1).astype(np.float32)[:, None]
    return [replace(node, integers=np.rint(weight / steps).astype(np.int8), scales=scales.astype(np.float32))]


def _conv(call: _Call) -> list[Node]:
    options = call.options
    if options["padding_mode"] != "zeros":
        raise EngineError(f"padding of {options['padding_mode']}, wanted zeros")
    weight, dims = call.needed("weight"), int(call.step.op[-2])
    weight = weight[:, :, None] if dims == 1 else weight
    stride, padding, dilation = (_pair(options[name], dims, name) for name in ("stride", "padding", "dilation"))
    rank = len(call.shape)
    channels, height, width = volume(call.shape)
    if rank != dims + 1 or channels != weight.shape[1] * int(options["groups"]):
        raise EngineError(f"reads a value of shape {call.shape}, which does not fit weights of shape {weight.shape}")
    if options["same"]:
        weight, padding = _centred(weight, dilation)
    kernel = weight.shape[2:]
    out = tuple(
        (size + 2 * border - d * (k - 1) - 1) // s + 1
        for size, border, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
    )
    if min(out) < 1:
        raise EngineError(f"a kernel of {kernel} finds no place in a value of shape {call.shape}")
    shape = (weight.shape[0], *out) if dims == 2 else (weight.shape[0], out[1])
    own = {"stride": stride, "padding": padding, "dilation": dilation, "groups": options["groups"]}
    return [call.node("conv", shape, weight, call.part("bias"), options=own)]


def _centred(weight: Array, dilation: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """Return weights and the padding that keeps the size; an even kernel gets a row or column of zeros before it."""
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(span % 2 and d > 1 for span, d in zip(spans, dilation, strict=True)):
        raise EngineError(f"padding 'same' around kernels of {weight.shape[2:]} with dilation {dilation}")
    before = [span % 2 for span in spans]
    padding = [(span + odd) // 2 for span, odd in zip(spans, before, strict=True)]
    return np.pad(weight, [(0, 0), (0, 0), (before[0], 0), (before[1], 0)]), (padding[0], padding[1])


def _pair(value: object, dims: int, name: str) -> tuple[int, int]:
    numbers = (value,) * dims if isinstance(value, int) else tuple(value) if isinstance(value, tuple) else ()
    if len(numbers) != dims:
        raise EngineError(f"{name} of {value}, wanted {dims} numbers")
    return (numbers[0], numbers[1]) if dims == 2 else ({"padding": 0}.get(name, 1), numbers[0])


def _norm(call: _Call) -> list[Node]:
    mean, variance = (call.part(part) for part in ("running_mean", "running_var"))
    if mean is None or variance is None:
        raise EngineError("a norm without running statistics")
    scale = 1 / np.sqrt(variance.astype(np.float64) + float(call.options["eps"]))
    weight, bias = (call.part(part) for part in ("weight", "bias"))
    scale = scale if weight is None else scale * weight
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean * scale
    return [call.node("affine", call.shape, scale.astype(np.float32), shift.astype(np.float32))]


def _clamp(low: float, high: float) -> Made:
    def made(call: _Call) -> list[Node]:
        return [call.node("clamp", call.shape, low=low, high=high)]

    return made


def _clamp_of(lowest: str, highest: str) -> Made:
    def made(call: _Call) -> list[Node]:
        low, high = call.options[lowest], call.options[highest]
        return _clamp(-inf if low is None else float(low), inf if high is None else float(high))(call)

    return made


def _leaky(call: _Call) -> list[Node]:
    slope = np.full(1, call.options["negative_slope"], np.float32)
    return [call.node("leaky", call.shape, np.repeat(slope, call.shape[0]))]


def _prelu(call: _Call) -> list[Node]:
    slope = call.needed("weight")
    return [call.node("leaky", call.shape, np.broadcast_to(slope, call.shape[:1]).astype(np.float32))]


def _add(call: _Call) -> list[Node]:
    if len(call.inputs) == 1:
        return _with_number(call)
    if call.shape != call.shapes[1]:
        raise EngineError(f"adds values of shapes {call.shape} and {call.shapes[1]}, wanted them equal")
    return [call.node("add", call.shape)]


def _with_number(call: _Call) -> list[Node]:
    """Return y = scale x + shift of a sum, difference, product or quotient with a number."""
    options = call.options
    if len(call.inputs) != 1 or (call.step.op == "div" and options["flipped"]):
        raise EngineError("of two values, or divided by one")
    number = float(options["number"])
    sign = -1.0 if options["flipped"] else 1.0
    scale, shift = {
        "add": (1.0, number), "sub": (sign, -sign * number), "mul": (number, 0.0),
        "div": (1 / number if number else inf, 0.0),
    }[call.step.op]  # fmt: skip
    channels = call.shape[0]
    each = (np.full(channels, number, np.float32) for number in (scale, shift))
    return [call.node("affine", call.shape, *each)]


def _cat(call: _Call) -> list[Node]:
    dim = int(call.options["dim"])
    if dim not in (1, -len(call.shape)) or len({shape[1:] for shape in call.shapes}) > 1:
        raise EngineError(f"joins values of shapes {call.shapes} along axis {dim}, wanted axis 1 and all else equal")
    return [call.node("cat", (sum(shape[0] for shape in call.shapes), *call.shape[1:]))]


def _flatten(call: _Call) -> list[Node]:
    options, rank = call.options, len(call.shape)
    if call.step.op == "flatten":
        start, end = (int(options[name]) for name in ("start_dim", "end_dim"))
        whole = start in (1, -rank) and end in (-1, rank)
    else:
        sizes = options["sizes"]
        whole = sizes == (-1, prod(call.shape))
    if not whole:
        raise EngineError(f"shapes a value of shape {call.shape} anew, wanted all axes but the samples' as one")
    return [] if rank == 1 else [call.node("flatten", (prod(call.shape),))]


def _pool(call: _Call) -> list[Node]:
    options, dims, op = call.options, int(call.step.op[-2]), call.step.op[:-2]
    channels, *size = volume(call.shape)
    if len(call.shape) != dims + 1:
        raise EngineError(f"reads a value of shape {call.shape}")
    if op.startswith("adaptive"):
        wanted = _pair(options["output_size"], dims, "output_size")
        out = tuple(axis if want == -1 else want for want, axis in zip(wanted, size, strict=True))
        own: dict[str, Any] = {"output_size": out}
    else:
        own = {"kernel_size": _pair(options["kernel_size"], dims, "kernel_size"), "ceil_mode": options["ceil_mode"]}
        own["stride"] = own["kernel_size"] if options["stride"] is None else _pair(options["stride"], dims, "stride")
        own["padding"] = _pair(options["padding"], dims, "padding")
        own["dilation"] = _pair(options.get("dilation", 1), dims, "dilation")
        own["count_include_pad"] = options.get("count_include_pad", True)
        names = ("kernel_size", "stride", "padding", "dilation")
        out = tuple(
            _pooled(axis, sizes, own["ceil_mode"])
            for axis, sizes in zip(size, zip(*(own[name] for name in names), strict=True), strict=True)
        )
    if min(out) < 1:
        raise EngineError(f"its window finds no place in a value of shape {call.shape}")
    return [call.node(op, (channels, *out[-dims:]), options=own)]


def _pooled(size: int, window: tuple[int, int, int, int], ceil: bool) -> int:
    """Return the length of an axis after pooling; torch lets no window begin behind the data and its padding before."""
    kernel, stride, padding, dilation = window
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = -(-span // stride) + 1 if ceil else span // stride + 1
    return out - 1 if ceil and (out - 1) * stride >= size + padding else out


def _over_image(op: str) -> Made:
    def made(call: _Call) -> list[Node]:
        options, rank = call.options, len(call.shape)
        given = options["dims"]
        dims = tuple(dim % (rank + 1) for dim in given) if isinstance(given, tuple) else ()
        if rank < 2 or sorted(dims) != list(range(2, rank + 1)):
            raise EngineError(f"over axes {given} of a value of shape {call.shape}, wanted those of the image")
        ones = (1,) * (rank - 1)
        pool = call.node(op, (call.shape[0], *ones), options={"output_size": (1, 1)})
        if options["keepdim"]:
            return [pool]
        return [pool, Node("flatten", call.step.name, (), call.shape[:1])]

    return made


def _softmax(call: _Call) -> list[Node]:
    dim, rank = int(call.options["dim"]), len(call.shape)
    if dim % (rank + 1) != 1:
        raise EngineError(f"along axis {dim} of a value of shape {call.shape}, wanted axis 1")
    return [call.node(call.step.op, call.shape)]


def _shortcut(call: _Call) -> list[Node]:
    scale, stride = call.needed("scale"), int(call.options["stride"])
    if stride == 1 and len(scale) == call.shape[0] and (scale == 1).all():
        return []
    if stride > 1 and len(call.shape) != 3:
        raise EngineError(f"reads a value of shape {call.shape}, wanted (channels, height, width)")
    out = tuple(-(-axis // stride) for axis in call.shape[1:])
    return [call.node("shortcut", (len(scale), *out), scale, options={"stride": stride})]


_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
_MADE: Mapping[str, Made] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d"), _conv),
    **dict.fromkeys(("batch_norm1d", "batch_norm2d"), _norm),
    **dict.fromkeys(("identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), lambda _: []),
    "relu": _clamp(0.0, inf), "relu6": _clamp(0.0, 6.0),
    "hardtanh": _clamp_of("min_val", "max_val"), "clamp": _clamp_of("min", "max"),
    "leaky_relu": _leaky, "prelu": _prelu,
    "add": _add, "sub": _with_number, "mul": _with_number, "div": _with_number,
    "cat": _cat, "flatten": _flatten, "reshape": _flatten,
    **dict.fromkeys((f"{kind}{dims}d" for kind in _POOLS for dims in (1, 2)), _pool),
    "mean": _over_image("adaptive_avg_pool"), "amax": _over_image("adaptive_max_pool"),
    "softmax": _softmax, "log_softmax": _softmax, "shortcut": _shortcut,
}  # fmt: skip
