"""The operators a program may use: a closed table. What is not in it cannot be said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from synaptree.format.errors import FormatError
from synaptree.format.options import Option, Options

__all__ = ["MANY", "OPERATORS", "Operator", "Part"]

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
MANY = 255  # values a step reads at most


@dataclass(frozen=True)
class Part:
    """A tensor of a step.

    Attributes:
        name: the tensor stands under the step's name, a dot and this; under the step's name alone if "".
        axes: how many it has; any number if None.
        optional: it may be missing, and its absence says that the module has none.
        numbers: "float", "int" (int64) or "any".
    """

    name: str
    axes: int | None
    optional: bool = False
    numbers: str = "float"

    def under(self, step: str) -> str:
        """Return the tensor's name in the file."""
        return f"{step}.{self.name}" if self.name else step


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Attributes:
        name: torch's.
        number: in a file; never given to another operator.
        values: fewest and most values it reads.
        options: by name, torch's names and defaults; the place is the option's number in a file.
        parts: its tensors.
        sizes: from shapes of parts and options to the shapes that parts must have.
        rule: from number of values and options to what is wrong with them, None if nothing.
    """

    name: str
    number: int
    values: tuple[int, int] = (1, 1)
    options: Mapping[str, Option] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    sizes: Callable[[Shapes, Options], Shapes] | None = None
    rule: Callable[[int, Options], str | None] | None = None

    def check(self, values: int, options: Options, shapes: Shapes) -> None:
        """Check options against one another and the shapes of parts.

        Args:
            values: how many it reads.
            options: all of them, each of its kind.
            shapes: of the parts that are there.

        Raises:
            FormatError: they do not fit.
        """
        wrong = self.rule(values, options) if self.rule else None
        if wrong:
            raise FormatError(wrong)
        for part in self.parts:
            said = part.name or "tensor"
            if part.name not in shapes and not part.optional:
                raise FormatError(f"its {said} is missing")
            if part.name in shapes and part.axes not in (None, len(shapes[part.name])):
                raise FormatError(f"its {said} has shape {shapes[part.name]}, wanted {part.axes} axes")
        for name, wanted in (self.sizes(shapes, options) if self.sizes else {}).items():
            if name in shapes and shapes[name] != wanted:
                raise FormatError(f"its {name} has shape {shapes[name]}, wanted {wanted}")


def _ints(default: int, dims: int, least: int | None = None) -> Option:
    return Option("ints", (default,) * dims, least=least, length=dims)


_DIM = Option("int", required=True)
_DIMS = Option("ints", required=True)
_NO = Option("bool", False)
_YES = Option("bool", True)
_NUMBER = Option("number", optional=True)
_LIMIT = Option("float", optional=True)
_SHARE = Option("float", 0.5, least=0, most=1)
_EPS = Option("float", 1e-5, least=0)
_MOMENTUM = Option("float", 0.1, optional=True)
_CHANNELS = Option("int", 0, least=0)  # needed where no part tells
_WEIGHT, _BIAS = Part("weight", 1, optional=True), Part("bias", 1, optional=True)
_STATISTICS = (
    Part("running_mean", 1, optional=True), Part("running_var", 1, optional=True),
    Part("num_batches_tracked", 0, optional=True, numbers="int"),
)


def _linear_sizes(shapes: Shapes, _: Options) -> Shapes:
    return {"bias": shapes["weight"][:1]}


def _conv_sizes(shapes: Shapes, options: Options) -> Shapes:
    out, groups = shapes["weight"][0], _int(options["groups"])
    if out % groups:
        raise FormatError(f"its weight has shape {shapes['weight']}, wanted an axis 0 that {groups} groups divide")
    return {"bias": (out,)}


def _transposed_sizes(shapes: Shapes, options: Options) -> Shapes:
    (into, out, *_), groups = shapes["weight"], _int(options["groups"])
    if into % groups:
        raise FormatError(f"its weight has shape {shapes['weight']}, wanted an axis 0 that {groups} groups divide")
    return {"bias": (out * groups,)}


def _norm_sizes(shapes: Shapes, options: Options) -> Shapes:
    told = [shape[0] for shape in shapes.values() if shape]
    channels = told[0] if told else _int(options["channels"])
    if channels == 0 or options["channels"] not in (0, channels):
        raise FormatError(f"{options['channels']} channels, wanted what its parts have ({told}), or more than none")
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))


def _group_sizes(shapes: Shapes, options: Options) -> Shapes:
    wanted = _norm_sizes(shapes, options)
    if wanted["weight"][0] % _int(options["groups"]):
        raise FormatError(f"{wanted['weight'][0]} channels, wanted a number that {options['groups']} groups divide")
    return wanted


def _layer_sizes(shapes: Shapes, options: Options) -> Shapes:
    told = [*shapes.values(), *([options["shape"]] if options["shape"] is not None else [])]
    if not told or not told[0]:
        raise FormatError("shape is missing, and neither weight nor bias tells it")
    for shape in told:
        if shape != told[0]:
            raise FormatError(f"its shapes are {told}, wanted them equal")
    return {}


def _embedding_sizes(shapes: Shapes, options: Options) -> Shapes:
    rows, padding = shapes["weight"][0], options["padding_idx"]
    if padding is not None and not -rows <= _int(padding) < rows:
        raise FormatError(f"padding_idx {padding}, wanted one of {rows} rows")
    return {}


def _shortcut_sizes(shapes: Shapes, options: Options) -> Shapes:
    channels = options["in_channels"]
    if channels is not None and _int(channels) > shapes["scale"][0]:
        raise FormatError(f"{channels} channels come in, wanted at most the {shapes['scale'][0]} that go out")
    return {}


def _int(value: object) -> int:
    assert isinstance(value, int)  # its option's kind
    return value


def _conv_rule(_: int, options: Options) -> str | None:
    stride, padding = options["stride"], options["padding"]
    apart = isinstance(stride, tuple) and isinstance(padding, tuple) and (any(padding) or set(stride) != {1})
    if options["same"] and apart:
        return "padding 'same' goes with a stride of 1 and no padding of its own"
    return None


def _number_rule(values: int, options: Options) -> str | None:
    if (values == 1) == (options["number"] is None):
        return "wanted two values, or one and a number"
    return "flipped without a number" if options["flipped"] and values == 2 else None


def _clamp_rule(_: int, options: Options) -> str | None:
    return "wanted min or max" if options["min"] is None and options["max"] is None else None


def _pad_rule(_: int, options: Options) -> str | None:
    pads = options["pads"]
    return "wanted an even number of pads" if isinstance(pads, tuple) and len(pads) % 2 else None


def _upsample_rule(_: int, options: Options) -> str | None:
    return "wanted sizes or scales, one of them" if (options["sizes"] is None) == (options["scales"] is None) else None


def _conv(dims: int) -> Operator:
    options = {
        "stride": _ints(1, dims, 1), "padding": _ints(0, dims, 0), "same": _NO, "dilation": _ints(1, dims, 1),
        "groups": Option("int", 1, least=1),
        "padding_mode": Option("text", "zeros", choices=("zeros", "reflect", "replicate", "circular")),
    }
    parts = (Part("weight", dims + 2), _BIAS)
    return Operator(f"conv{dims}d", 1 + dims, options=options, parts=parts, sizes=_conv_sizes, rule=_conv_rule)


def _conv_transpose(dims: int) -> Operator:
    options = {
        "stride": _ints(1, dims, 1), "padding": _ints(0, dims, 0), "output_padding": _ints(0, dims, 0),
        "dilation": _ints(1, dims, 1), "groups": Option("int", 1, least=1),
    }
    parts = (Part("weight", dims + 2), _BIAS)
    return Operator(f"conv_transpose{dims}d", 4 + dims, options=options, parts=parts, sizes=_transposed_sizes)


def _norm(name: str, number: int) -> Operator:
    options = {"eps": _EPS, "momentum": _MOMENTUM, "channels": _CHANNELS}
    return Operator(name, number, options=options, parts=(_WEIGHT, _BIAS, *_STATISTICS), sizes=_norm_sizes)


def _pool(dims: int) -> tuple[Operator, ...]:
    kernel = {
        "kernel_size": Option("ints", required=True, least=1, length=dims),
        "stride": Option("ints", optional=True, least=1, length=dims), "padding": _ints(0, dims, 0),
    }
    adaptive = {"output_size": Option("ints", required=True, least=-1, length=dims)}
    return (
        Operator(f"max_pool{dims}d", 75 + dims, options=kernel | {"dilation": _ints(1, dims, 1), "ceil_mode": _NO}),
        Operator(f"avg_pool{dims}d", 78 + dims, options=kernel | {"ceil_mode": _NO, "count_include_pad": _YES}),
        Operator(f"adaptive_avg_pool{dims}d", 81 + dims, options=adaptive),
        Operator(f"adaptive_max_pool{dims}d", 84 + dims, options=adaptive),
    )


_ALPHA = {"alpha": Option("float", 1.0)}
_LAYERS = (
    Operator("linear", 1, parts=(Part("weight", 2), _BIAS), sizes=_linear_sizes),
    *(_conv(dims) for dims in (1, 2, 3)),
    *(_conv_transpose(dims) for dims in (1, 2, 3)),
    *(_norm(f"batch_norm{dims}d", 7 + dims) for dims in (1, 2, 3)),
    *(_norm(f"instance_norm{dims}d", 10 + dims) for dims in (1, 2, 3)),
    Operator(
        "layer_norm", 14, options={"shape": Option("ints", optional=True, least=1), "eps": _EPS},
        parts=(Part("weight", None, optional=True), Part("bias", None, optional=True)), sizes=_layer_sizes,
    ),
    Operator(
        "group_norm", 15, parts=(_WEIGHT, _BIAS), sizes=_group_sizes,
        options={"groups": Option("int", required=True, least=1), "channels": _CHANNELS, "eps": _EPS},
    ),
    Operator("prelu", 16, parts=(Part("weight", 1),)),
    Operator(
        "embedding", 17, options={"padding_idx": Option("int", optional=True)}, parts=(Part("weight", 2),),
        sizes=_embedding_sizes,
    ),
    Operator(
        "shortcut", 18, parts=(Part("scale", 1),), sizes=_shortcut_sizes,
        options={"in_channels": Option("int", optional=True, least=1), "stride": Option("int", 1, least=1)},
    ),
    Operator("constant", 19, (0, 0), {"trained": _NO}, (Part("", None, numbers="any"),)),
)
_ACTIVATIONS = (
    Operator("relu", 32),
    Operator("relu6", 33),
    Operator("leaky_relu", 34, options={"negative_slope": Option("float", 0.01)}),
    Operator("elu", 35, options=_ALPHA),
    Operator("selu", 36),
    Operator("celu", 37, options=_ALPHA),
    Operator("gelu", 38, options={"approximate": Option("text", "none", choices=("none", "tanh"))}),
    Operator("silu", 39),
    Operator("mish", 40),
    Operator("sigmoid", 41),
    Operator("tanh", 42),
    Operator("softplus", 43, options={"beta": Option("float", 1.0), "threshold": Option("float", 20.0)}),
    Operator("softsign", 44),
    Operator("hardtanh", 45, options={"min_val": Option("float", -1.0), "max_val": Option("float", 1.0)}),
    Operator("hardsigmoid", 46),
    Operator("hardswish", 47),
    Operator("softmax", 48, options={"dim": _DIM}),
    Operator("log_softmax", 49, options={"dim": _DIM}),
    Operator("dropout", 50, options={"p": _SHARE}),
    *(Operator(f"dropout{dims}d", 50 + dims, options={"p": _SHARE}) for dims in (1, 2, 3)),
    Operator("alpha_dropout", 54, options={"p": _SHARE}),
    Operator("identity", 55),
    Operator("exp", 56),
    Operator("log", 57),
    Operator("sqrt", 58),
    Operator("rsqrt", 59),
    Operator("neg", 60),
    Operator("abs", 61),
    Operator("pow", 62, options={"exponent": Option("number", required=True)}),
    Operator("clamp", 63, options={"min": _LIMIT, "max": _LIMIT}, rule=_clamp_rule),
)
_SUMS = (
    *(
        Operator(name, number, (1, 2), {"number": _NUMBER, "flipped": _NO}, rule=_number_rule)
        for number, name in enumerate(("add", "sub", "mul", "div"), 64)
    ),
    Operator("matmul", 68, (2, 2)),
    *(
        Operator(name, number, options={"dims": _DIMS, "keepdim": _NO})
        for number, name in enumerate(("mean", "sum", "amax", "amin"), 72)
    ),
    *(pool for dims in (1, 2, 3) for pool in _pool(dims)),
)
_MOVES = (
    Operator("flatten", 96, options={"start_dim": Option("int", 1), "end_dim": Option("int", -1)}),
    Operator("reshape", 97, options={"sizes": Option("ints", required=True, least=-1)}),
    Operator("permute", 98, options={"dims": _DIMS}),
    Operator("transpose", 99, options={"dim0": _DIM, "dim1": _DIM}),
    Operator("squeeze", 100, options={"dims": _DIMS}),
    Operator("unsqueeze", 101, options={"dim": _DIM}),
    Operator("cat", 102, (1, MANY), {"dim": Option("int", 0)}),
    Operator("stack", 103, (1, MANY), {"dim": Option("int", 0)}),
    Operator("slice", 104, options={
        "dim": _DIM, "start": Option("int", 0), "stop": Option("int", optional=True), "step": Option("int", 1, least=1),
    }),
    Operator("select", 105, options={"dim": _DIM, "index": Option("int", required=True)}),
    Operator("pad", 106, rule=_pad_rule, options={
        "pads": Option("ints", required=True),
        "mode": Option("text", "constant", choices=("constant", "reflect", "replicate", "circular")),
        "value": Option("float", 0.0),
    }),
    Operator("upsample", 107, rule=_upsample_rule, options={
        "sizes": Option("ints", optional=True, least=1), "scales": Option("floats", optional=True, least=0),
        "mode": Option("text", "nearest", choices=(
            "nearest", "linear", "bilinear", "bicubic", "trilinear", "nearest-exact", "area",
        )),
        "align_corners": Option("bool", None, optional=True),
    }),
    Operator("pixel_shuffle", 108, options={"factor": Option("int", required=True, least=1)}),
)
OPERATORS: Mapping[str, Operator] = {
    row.name: row for row in sorted((*_LAYERS, *_ACTIVATIONS, *_SUMS, *_MOVES), key=lambda row: row.number)
}
"""Operator by name, in order of their numbers."""
