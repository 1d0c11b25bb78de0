"""Calls of torch's functions, and of methods of tensors, in the operators of the file format."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synaptree.artifact.build import TORCH_NAMES
from synaptree.format.operators import OPERATORS
from synaptree.format.options import Option
from synaptree.format.program import Step
from synaptree.graph.node import GraphError

__all__ = ["ASKS", "Form", "Held", "Steps", "Value", "Varies", "call", "name_of", "options_of", "spread"]


@dataclass(frozen=True)
class Varies:
    """A size, or another number, that depends on the number of samples: what it is in two runs."""

    first: Any
    second: Any


Size = int | Varies
Sizes = tuple[Size, ...]


@dataclass(frozen=True)
class Form:
    """Shape and kind of numbers of a tensor."""

    shape: Sizes
    dtype: torch.dtype


@dataclass(frozen=True)
class Value:
    """A value of the program: its number and the form it has."""

    number: int
    form: Form

    @property
    def shape(self) -> Sizes:
        """Its size along each axis."""
        return self.form.shape

    def axis(self, dim: object) -> int:
        """Return an axis counted from the front."""
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise GraphError(f"an axis of {_said(dim)}")
        return dim % max(1, len(self.shape))


@dataclass(frozen=True)
class Held:
    """A tensor the model holds, by its name in the file."""

    name: str
    tensor: Tensor


@dataclass
class Steps:
    """Steps as they are written.

    Attributes:
        inputs: number of inputs, whose values come first.
        names: of the tensors of `state_dict`.
        modules: of the model: name -> operator, of those that have one.
        steps: so far.
        held: name -> tensor that some step reads.
    """

    inputs: int
    names: frozenset[str]
    modules: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)
    held: dict[str, Tensor] = field(default_factory=dict)
    _constants: dict[str, int] = field(default_factory=dict)

    def add(self, op: str, inputs: Sequence[Any], name: str = "", **options: Any) -> int:
        """Add a step and return the number of its value; options at their default are left out."""
        known, numbers = OPERATORS[op].options, tuple(self.number(value) for value in inputs)
        said = {key: value for key, value in options.items() if known[key].required or value != known[key].default}
        self.steps.append(Step(op, name, numbers, said))
        return self.inputs + len(self.steps) - 1

    def number(self, value: Any) -> int:
        """Return the number of a value, that of a tensor the model holds included."""
        if isinstance(value, Held):
            if value.name not in self._constants:
                self.held[value.name] = value.tensor
                trained = isinstance(value.tensor, torch.nn.Parameter)
                self._constants[value.name] = self.add("constant", (), value.name, trained=trained)
            return self._constants[value.name]
        if isinstance(value, Value):
            return value.number
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise GraphError(f"wanted a tensor, got {_said(value)}")

    def above(self, parts: Mapping[str, Any], op: str) -> str:
        """Return the name of the module that holds these tensors as its parts and nothing else, "" if none does."""
        names = {tensor.name if isinstance(tensor, Held) else "" for tensor in parts.values()}
        above = next(iter(names), "").rpartition(".")[0]
        below = {name for name in (*self.names, *self.modules) if name.startswith(f"{above}.")}
        whole = names == below == {f"{above}.{part}" for part in parts}
        return above if whole and self.modules.get(above, op) == op else ""

    def read(self, value: Any) -> Value:
        """Return a value of the program, that of a tensor the model holds included."""
        if isinstance(value, Held):
            return Value(self.number(value), Form(tuple(value.tensor.shape), value.tensor.dtype))
        if isinstance(value, Value):
            return value
        raise GraphError(f"wanted a tensor, got {_said(value)}")


def call(steps: Steps, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Any:
    """Write a call of one of torch's functions.

    Args:
        steps: to add to.
        name: of the function or method, as `name_of` returns it.
        args: `Value` and `Held` for tensors, sizes as numbers or `Varies`.
        kwargs: likewise.
        out: the `Form` of the result, or a tuple of them.

    Returns:
        A `Value` or a tuple of them.

    Raises:
        GraphError: there is no operator for it.
    """
    name = _OTHER_NAMES.get(name, name)
    if name in _SIGNATURES:
        op, given = _OPERATOR.get(name, name), _bound(["x", *_SIGNATURES[name].split()], args, kwargs)
        x = steps.read(given.pop("x"))
        return Value(steps.add(op, [x], **options_of(op, given)), out)
    if name in _LAYERS:
        return _layer(steps, name, _bound(_LAYERS[name].split(), args, kwargs), out)
    if name not in _HANDLERS:
        raise GraphError("the file format has no operator for it")
    names, handle = _HANDLERS[name]
    return handle(steps, name, _bound(names.split(), args, kwargs), out)


def name_of(target: Any) -> str | None:
    """Return the name under which `call` knows a function or a method, None if it does not.

    >>> name_of(operator.truediv), name_of("view"), name_of(torch.fft.fft)
    ('truediv', 'view', None)
    """
    name = target if isinstance(target, str) else _FUNCTIONS.get(target)
    in_place = name is not None and name.endswith("_") and not name.endswith("__")
    return name[:-1] if name is not None and in_place else name


def options_of(op: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an operator, from attributes of torch's module or arguments of its function.

    Raises:
        GraphError: something is asked for that the operator cannot do, or depends on the number of samples.
    """
    for name, known in _ONLY.items():
        if name not in OPERATORS[op].options and given.get(name, known[0]) not in known:
            raise GraphError(f"{name}={_said(given[name])}, which the file format does not know")
    names = TORCH_NAMES.get(op, {})
    return {
        option: _coerced(option, kind, given[names.get(option, option)])
        for option, kind in OPERATORS[op].options.items() if names.get(option, option) in given
    }  # fmt: skip


# What a call or a module may ask for beside the options of its operator: nothing but these.
_ONLY: dict[str, tuple[Any, ...]] = {
    "return_indices": (False,), "divisor_override": (None,), "recompute_scale_factor": (None, False),
    "antialias": (False,), "dtype": (None,), "alpha": (1,), "rounding_mode": (None,), "max_norm": (None,),
    "scale_grad_by_freq": (False,), "sparse": (False,),
}  # fmt: skip
_SIGNATURES = {
    **dict.fromkeys(("exp", "log", "sqrt", "rsqrt", "neg", "abs"), ""),
    **dict.fromkeys(("relu", "relu6", "selu", "silu", "mish", "sigmoid", "tanh", "softsign"), "inplace"),
    **dict.fromkeys(("hardsigmoid", "hardswish"), "inplace"),
    "leaky_relu": "negative_slope inplace", "elu": "alpha inplace", "celu": "alpha inplace", "gelu": "approximate",
    "softplus": "beta threshold", "hardtanh": "min_val max_val inplace", "pow": "exponent", "clamp": "min max",
    "clamp_min": "min", "clamp_max": "max",
    "softmax": "dim _stacklevel dtype", "log_softmax": "dim _stacklevel dtype",
    **{f"max_pool{n}d": "kernel_size stride padding dilation ceil_mode return_indices" for n in (1, 2, 3)},
    **{f"avg_pool{n}d": "kernel_size stride padding ceil_mode count_include_pad divisor_override" for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": "output_size return_indices" for n in (1, 2, 3) for kind in ("avg", "max")},
    "pixel_shuffle": "upscale_factor", "pad": "pad mode value", "transpose": "dim0 dim1", "unsqueeze": "dim",
    "select": "dim index", "clone": "",
}  # fmt: skip
_OPERATOR = {"clone": "identity", "clamp_min": "clamp", "clamp_max": "clamp"}
_OTHER_NAMES = {
    "absolute": "abs", "negative": "neg", "subtract": "sub", "multiply": "mul", "truediv": "div", "divide": "div",
    "true_divide": "div", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "swapdims": "transpose",
    "clip": "clamp", "mm": "matmul", "bmm": "matmul", "upsample": "interpolate",
}  # fmt: skip
_LAYERS = {
    "linear": "x weight bias", "prelu": "x weight", "layer_norm": "x normalized_shape weight bias eps",
    "group_norm": "x num_groups weight bias eps",
    "embedding": "x weight padding_idx max_norm norm_type scale_grad_by_freq sparse",
    **{f"conv{n}d": "x weight bias stride padding dilation groups" for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": "x weight bias stride padding output_padding groups dilation" for n in (1, 2, 3)},
}


def _bound(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by name; the last name takes all that are left if it begins with a star."""
    kwargs = {_KEYWORDS.get(name, name): value for name, value in kwargs.items()}
    if names[-1].startswith("*"):
        place = len(names) - 1
        rest = args[place] if len(args) == place + 1 and isinstance(args[place], Sequence) else args[place:]
        args = [*args[:place], tuple(rest)] if len(args) > place else args
        names = [*names[:-1], names[-1][1:]]
    given = dict(zip(names, args, strict=False)) | kwargs
    if wrong := [name for name in kwargs if name not in names and name not in _ONLY] or list(args[len(names):]):
        raise GraphError(f"called with {_said(wrong[0])}, which the file format does not know")
    return given


_KEYWORDS = {
    "input": "x", "self": "x", "other": "y", "mat2": "y", "axis": "dim", "keepdims": "keepdim", "shape": "sizes",
    "split_size_or_sections": "split_size",
}


def _coerced(name: str, option: Option, value: Any) -> Any:
    """Return a value in the kind of its option."""
    several = option.kind in ("ints", "floats")
    each = value if isinstance(value, list | tuple) else [value]
    each = [-1 if one is None and several and not option.optional else one for one in each]
    if any(isinstance(one, Varies) for one in each):
        raise GraphError(f"{name} depends on the number of samples")
    if value is None and not option.required:
        return None if option.optional else option.default
    kinds: Mapping[str, Any] = {"bool": bool, "int": int, "ints": int, "text": str}
    wanted = kinds.get(option.kind, int | float)
    if (not several and len(each) != 1) or not all(isinstance(one, wanted) for one in each):
        raise GraphError(f"{name}={_said(value)}, wanted {option}")
    if several:
        return tuple(each) * (option.length if len(each) == 1 and option.length else 1)
    return each[0]


def _said(value: Any) -> str:
    if isinstance(value, Varies):
        return "not the same for every number of samples"
    return "a tensor" if isinstance(value, Value | Held | Tensor) else repr(value)


def _layer(steps: Steps, name: str, given: dict[str, Any], out: Any) -> Value:
    """Write a layer called as a function, under the module whose weight and bias are all that it holds."""
    x, weight, bias = (given.pop(part, None) for part in ("x", "weight", "bias"))
    parts = {part: tensor for part, tensor in (("weight", weight), ("bias", bias)) if tensor is not None}
    above = steps.above(parts, name)
    if not above:
        if name != "linear":
            raise GraphError("its tensors are not the weight and the bias of a module with nothing else in it")
        turned = steps.add("transpose", [weight], dim0=0, dim1=1)
        product = steps.add("matmul", [x, turned])
        return Value(product if bias is None else steps.add("add", [product, bias]), out)
    given.pop("normalized_shape", None)  # the weight tells
    if given.get("padding") in ("same", "valid"):
        given |= {"same": given["padding"] == "same", "padding": 0}
    return Value(steps.add(name, [x], above, **options_of(name, given)), out)


def _arithmetic(steps: Steps, name: str, given: dict[str, Any], out: Any) -> Value:
    x, y = given["x"], given.get("y")
    options_of("identity", given)
    if isinstance(x, Value | Held) and isinstance(y, Value | Held):
        return Value(steps.add(name, [x, y]), out)
    flipped = isinstance(y, Value | Held)
    number = x if flipped else y
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise GraphError(f"a number that is {_said(number)}")
    tensor, turned = steps.read(y if flipped else x), flipped and name in ("sub", "div")
    return Value(steps.add(name, [tensor], number=number, flipped=turned), out)


def _reversed_sub(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    return _arithmetic(steps, "sub", {**given, "x": given["y"], "y": given["x"]}, out)


def _square(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    return Value(steps.add("pow", [steps.read(given["x"])], exponent=2), out)


def _matmul(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    return Value(steps.add("matmul", [steps.read(given["x"]), steps.read(given["y"])]), out)


def _reduced(steps: Steps, name: str, given: dict[str, Any], out: Any) -> Value:
    x = steps.read(given.pop("x"))
    dim = given.pop("dim", None)
    dims = range(len(x.shape)) if dim is None or dim == () else dim if isinstance(dim, Sequence) else [dim]
    options_of("identity", given)
    keepdim = bool(given.get("keepdim", False))
    return Value(steps.add(name, [x], dims=tuple(x.axis(each) for each in dims), keepdim=keepdim), out)


def _dropped(steps: Steps, name: str, given: dict[str, Any], out: Any) -> Value:
    x, training = steps.read(given["x"]), given.get("training", name != "alpha_dropout")
    if training is False:
        return x
    if training is not ASKS:
        raise GraphError("it drops in eval mode too; pass self.training, or use a module")
    return Value(steps.add(name, [x], **options_of(name, {"p": given.get("p", 0.5)})), out)


def _reshaped(steps: Steps, name: str, given: dict[str, Any], out: Any) -> Value:
    x, sizes = steps.read(given["x"]), given.get("sizes", ())
    if out.dtype != x.form.dtype:
        raise GraphError("it shows the bits of numbers as those of another kind")
    asked = next((place for place, size in enumerate(sizes) if size == -1), None) if name != "unflatten" else None
    return Value(steps.add("reshape", [x], sizes=_sizes(x.shape, out.shape, asked)), out)


def _sizes(before: Sizes, after: Sizes, asked: int | None) -> tuple[int, ...]:
    """Return the sizes of `reshape`: 0 where the axes in front stay as they are, -1 once for a size that follows."""
    same = next((n for n, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))
    same = min(same, len(after))
    rest = range(same, len(after))
    varying = [place for place in rest if isinstance(after[place], Varies)]
    if len(varying) > 1 or 0 in after[same:]:
        raise GraphError(f"sizes {after} that the file format cannot say")
    free = varying[0] if varying else rest[0] if len(rest) == 1 else asked if asked in rest else None
    return tuple(0 if place < same else -1 if place == free else _fixed(size) for place, size in enumerate(after))


def _fixed(size: Size) -> int:
    if isinstance(size, Varies):
        raise GraphError("a size depends on the number of samples")
    return size


def _flattened(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    x = steps.read(given.pop("x"))
    return Value(steps.add("flatten", [x], **options_of("flatten", {"start_dim": 0, **given})), out)


def _permuted(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    x = steps.read(given.pop("x"))
    return Value(steps.add("permute", [x], dims=tuple(x.axis(dim) for dim in given.get("dims", ()))), out)


def _turned(steps: Steps, name: str, given: dict[str, Any], out: Any) -> Value:
    x = steps.read(given["x"])
    if len(x.shape) < 2:
        return x
    first = len(x.shape) - 2 if name == "mT" else 0
    return Value(steps.add("transpose", [x], dim0=first, dim1=first + 1), out)


def _squeezed(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    x, dim = steps.read(given["x"]), given.get("dim")
    dims = range(len(x.shape)) if dim is None else dim if isinstance(dim, Sequence) else [dim]
    dims = [x.axis(each) for each in dims]
    gone = tuple(each for each in dims if x.shape[each] == 1)
    return Value(steps.add("squeeze", [x], dims=gone), out) if gone else x


def _joined(steps: Steps, name: str, given: dict[str, Any], out: Any) -> Value:
    values = [steps.read(each) for each in given["tensors"]]
    return Value(steps.add(name, values, **options_of(name, {"dim": given.get("dim", 0)})), out)


def _pieces(steps: Steps, name: str, given: dict[str, Any], out: Any) -> tuple[Value, ...]:
    """Write chunk and split as slices; sizes come from the result."""
    x = steps.read(given["x"])
    dim, start, found = x.axis(given.get("dim", 0)), 0, []
    for place, form in enumerate(out):
        if name == "unbind":
            found.append(Value(steps.add("select", [x], dim=dim, index=place), form))
            continue
        if isinstance(x.shape[dim], Varies):
            raise GraphError("it cuts along the samples")
        stop = start + _fixed(form.shape[dim])
        found.append(Value(steps.add("slice", [x], dim=dim, start=start, stop=stop), form))
        start = stop
    return tuple(found)


def _narrowed(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    x, start = steps.read(given["x"]), given["start"]
    if not isinstance(start, int) or not isinstance(given["length"], int) or start < 0:
        raise GraphError("a start or length that is no plain number")
    return Value(steps.add("slice", [x], dim=x.axis(given["dim"]), start=start, stop=start + given["length"]), out)


def _picked(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Any:
    x, index = given["x"], given["index"]
    if isinstance(x, tuple | list):
        return x[index]
    x = steps.read(x)
    number, dim = x.number, 0
    for item in _without_ellipsis(index if isinstance(index, tuple) else (index,), len(x.shape)):
        if isinstance(item, slice):
            number = _cut(steps, number, dim, item)
        elif item is None:
            number = steps.add("unsqueeze", [number], dim=dim)
        elif isinstance(item, int) and not isinstance(item, bool):
            number = steps.add("select", [number], dim=dim, index=item)
        else:
            raise GraphError(f"an index of {_said(item)}")
        dim += item is None or isinstance(item, slice)
    return Value(number, out)


def _cut(steps: Steps, number: int, dim: int, part: slice) -> int:
    if part in (slice(None), slice(None, None, 1), slice(0, None)):
        return number
    ends = (part.start, part.stop, part.step)
    if not all(end is None or (isinstance(end, int) and not isinstance(end, bool)) for end in ends):
        raise GraphError("an index of a slice whose ends are no plain numbers")
    return steps.add("slice", [number], dim=dim, start=part.start or 0, stop=part.stop, step=part.step or 1)


def _without_ellipsis(items: Sequence[Any], axes: int) -> Iterator[Any]:
    used = sum(item is not None and item is not Ellipsis for item in items)
    for item in items:
        yield from [slice(None)] * (axes - used) if item is Ellipsis else [item]


def _same(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    x = steps.read(given["x"])
    if out != x.form:
        raise GraphError("it changes the kind of the numbers")
    return x


def _resized(steps: Steps, _: str, given: dict[str, Any], out: Any) -> Value:
    x = steps.read(given.pop("x"))
    return Value(steps.add("upsample", [x], **options_of("upsample", spread(given, len(x.shape) - 2))), out)


def spread(given: Mapping[str, Any], axes: int) -> dict[str, Any]:
    """Return size and scale of an interpolation with a number for each axis."""
    plain = (int, float)
    return {key: (value,) * axes if isinstance(value, plain) and key in ("size", "scale_factor") else value
            for key, value in given.items()}  # fmt: skip


ASKS = "self.training"
"""What stands for a `training` that is the mode of the model."""
_Handler = Callable[[Steps, str, dict[str, Any], Any], Any]
_HANDLERS: dict[str, tuple[str, _Handler]] = {
    **dict.fromkeys(("add", "sub"), ("x y alpha", _arithmetic)), "mul": ("x y", _arithmetic),
    "div": ("x y rounding_mode", _arithmetic), "rsub": ("x y alpha", _reversed_sub), "square": ("x", _square),
    "matmul": ("x y", _matmul), **dict.fromkeys(("mean", "sum", "amax", "amin"), ("x dim keepdim dtype", _reduced)),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
                    ("x p training inplace", _dropped)),
    **dict.fromkeys(("view", "reshape"), ("x *sizes", _reshaped)), "unflatten": ("x dim *sizes", _reshaped),
    **dict.fromkeys(("view_as", "reshape_as"), ("x y", _reshaped)), "flatten": ("x start_dim end_dim", _flattened),
    "permute": ("x *dims", _permuted), **dict.fromkeys(("t", "T", "mT"), ("x", _turned)),
    "squeeze": ("x dim", _squeezed),
    **dict.fromkeys(("cat", "stack"), ("tensors dim", _joined)), "chunk": ("x chunks dim", _pieces),
    "split": ("x split_size dim", _pieces), "tensor_split": ("x indices_or_sections dim", _pieces),
    "unbind": ("x dim", _pieces), "narrow": ("x dim start length", _narrowed), "getitem": ("x index", _picked),
    "contiguous": ("x memory_format", _same), "to": ("x dtype device non_blocking copy", _same),
    "type_as": ("x y", _same), **dict.fromkeys(("float", "half", "double", "bfloat16"), ("x", _same)),
    "interpolate": ("x size scale_factor mode align_corners recompute_scale_factor antialias", _resized),
}  # fmt: skip
_PLACES = (torch, F, operator)
_NAMES = (*_SIGNATURES, *_OTHER_NAMES, *_LAYERS, *_HANDLERS)
_FUNCTIONS = {
    getattr(place, name): name
    for known in _NAMES for name in (known, f"{known}_") for place in _PLACES if hasattr(place, name)
}  # fmt: skip
