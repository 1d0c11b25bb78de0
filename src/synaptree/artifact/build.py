"""A network made of what a file says: torch's own modules at their old names, run step by step."""

import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synaptree.core.errors import CheckpointError, ShapeError
from synaptree.format.dtypes import DTYPES
from synaptree.format.errors import FormatError
from synaptree.format.operators import OPERATORS
from synaptree.format.options import Options
from synaptree.format.program import Program, check, filled
from synaptree.graph.shortcut import Shortcut

if TYPE_CHECKING:
    import synaptree.format.file  # which needs the coder, and nothing here does

__all__ = ["CLASSES", "TORCH_NAMES", "UNSAVED", "Network", "build", "dense", "network", "program_of", "values_of"]

Shape = tuple[int, ...]
Value = Any  # a tensor, or what stands for one while torch.fx traces
_DIMS = (1, 2, 3)
_BY_DIMS: Mapping[str, str] = {
    "conv": "Conv", "conv_transpose": "ConvTranspose", "batch_norm": "BatchNorm", "instance_norm": "InstanceNorm",
    "max_pool": "MaxPool", "avg_pool": "AvgPool", "adaptive_avg_pool": "AdaptiveAvgPool",
    "adaptive_max_pool": "AdaptiveMaxPool", "dropout": "Dropout",
}  # fmt: skip
CLASSES: Mapping[str, type[nn.Module]] = MappingProxyType({
    "linear": nn.Linear, "layer_norm": nn.LayerNorm, "group_norm": nn.GroupNorm, "prelu": nn.PReLU,
    "embedding": nn.Embedding, "shortcut": Shortcut, "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU, "selu": nn.SELU, "celu": nn.CELU, "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish,
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "softplus": nn.Softplus, "softsign": nn.Softsign, "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid, "hardswish": nn.Hardswish, "softmax": nn.Softmax, "log_softmax": nn.LogSoftmax,
    "dropout": nn.Dropout, "alpha_dropout": nn.AlphaDropout, "identity": nn.Identity, "flatten": nn.Flatten,
    "upsample": nn.Upsample, "pixel_shuffle": nn.PixelShuffle,
    **{f"{op}{dims}d": getattr(nn, f"{name}{dims}d") for op, name in _BY_DIMS.items() for dims in _DIMS},
})  # fmt: skip
"""Operator -> the class of torch's that does it."""
_CHANNELS = {"channels": "num_features"}
TORCH_NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "group_norm": {"groups": "num_groups", "channels": "num_channels"}, "layer_norm": {"shape": "normalized_shape"},
    "upsample": {"sizes": "size", "scales": "scale_factor"}, "pixel_shuffle": {"factor": "upscale_factor"},
    "pad": {"pads": "pad"},
    **{f"{norm}_norm{dims}d": _CHANNELS for norm in ("batch", "instance") for dims in _DIMS},
})  # fmt: skip
"""Operator -> option -> its name in torch, where that is another."""
UNSAVED = "-"
"""How the last part of a constant's name begins if it is not in `state_dict`; no attribute can be named so."""


class Network(nn.Module):
    """Runs the steps of a program of one input on torch's modules.

    Modules, parameters and buffers stand under the names they had in the network that was saved, in the tables in
    which torch keeps them, and are found there: a name is never looked up as an attribute. What it computes is said
    by `program_of`, and the values on the way by `values_of`; as methods they would take names that children have.

    Args:
        program: checked.
        made: the modules of its named steps, by name.
    """

    def __init__(self, program: Program, made: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._syn_program = program
        self._syn_calls = tuple(
            _Call(
                step.op, _way(step.name, step.name in made or step.op == "constant"), step.inputs,
                _renamed(step.op, filled(step)), done,
            )
            for step, done in zip(program.steps, _done(program), strict=True)
        )

    def forward(self, x: Value) -> Any:
        """Return what the program returns."""
        return _returned(self, _values(self, x, ()))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules; also where one below is called "training"."""
        for module in self.modules():
            vars(module)["training"] = mode
        return self


class _ManyInputs(Network):
    """A network of several inputs."""

    def forward(self, x: Value, *more: Value) -> Any:
        """Return what the program returns for its inputs, in order."""
        wanted = self._syn_program.inputs
        if isinstance(more, tuple) and len(more) + 1 != len(wanted):
            names = ", ".join(given.name for given in wanted)
            raise ShapeError(f"wanted {len(wanted)} inputs, {names}, got {len(more) + 1}")
        return _returned(self, _values(self, x, more))


def program_of(network: Network) -> Program:
    """Return what a network computes, as it was made; what was done to it since is not in it."""
    return network._syn_program


def values_of(network: Network, *inputs: Value) -> list[Value]:
    """Return every value of a network's program for its inputs, in the order of their numbers.

    >>> from synaptree.format import Input, Step
    >>> program = Program((Input("x", (1,)),), (Step("relu", "", (0,)),), (1,))
    >>> values_of(network(program, {}), torch.tensor([[-2.0]]))
    [tensor([[-2.]]), tensor([[0.]])]
    """
    return _values(network, inputs[0], inputs[1:], keep=True)


def _values(network: Network, x: Value, more: Value, keep: bool = False) -> list[Value]:
    """Return the values, None for those that nothing needs any more unless they are to be kept."""
    # one by one: where torch.fx traces, `more` is no tuple
    values = [x, *(more[place] for place in range(len(network._syn_program.inputs) - 1))]
    for call in network._syn_calls:
        inputs = [values[number] for number in call.inputs]
        if call.op == "constant":
            # torch's own look-up among parameters and buffers, which torch.fx sees
            values.append(nn.Module.__getattr__(_below(network, call.way[:-1]), call.way[-1]))
        elif call.way:
            values.append(_below(network, call.way)(*inputs))
        elif call.op in _RANDOM:
            values.append(_RANDOM[call.op](*inputs, training=network.training, **call.kwargs))
        else:
            values.append(_FUNCTIONS[call.op](*inputs, **call.kwargs))
        for number in () if keep else call.done:
            values[number] = None
    return values


def _returned(network: Network, values: list[Value]) -> Any:
    program = network._syn_program
    found = [values[number] for number in program.outputs]
    match program.returns:
        case "value":
            return found[0]
        case "dict":
            return dict(zip(program.keys, found, strict=True))
        case "tuple":
            return tuple(found)
    return found


class _Call(NamedTuple):
    """A step as it is run.

    Attributes:
        op: its operator.
        way: names from the network down to its module or tensor; empty for a function.
        inputs: numbers of the values it reads.
        kwargs: arguments of the function.
        done: numbers of the values that nothing reads after it.
    """

    op: str
    way: tuple[str, ...]
    inputs: tuple[int, ...]
    kwargs: dict[str, Any]
    done: tuple[int, ...]


def build(file: "synaptree.format.file.File") -> Network:
    """Return the network of a file, in eval mode, on the CPU.

    It is made of torch's own modules under the names, and with the `state_dict`, of the network that was saved.
    Parameters take gradients, also those that were frozen; only the scale of a `Shortcut` does not. It takes any
    number of samples and can be trained, copied, pickled, traced and compiled as any other module. Nothing of the
    file is run as code, and no name in it is looked up as an attribute.

    Args:
        file: with a program.

    Raises:
        CheckpointError: the file has no program, or one that cannot be run with its tensors.

    Example:
        >>> import numpy as np
        >>> from synaptree.format import Entry, File, Input, Step
        >>> program = Program((Input("x", (2,)),), (Step("linear", "fc", (0,)), Step("relu", "", (1,))), (2,))
        >>> weight = Entry.of("fc.weight", np.array([[1, -2]], np.float32))
        >>> net = build(File(program, {"fc.weight": weight}))
        >>> net.fc, net(torch.tensor([[3.0, 1.0]])).item()
        (Linear(in_features=2, out_features=1, bias=False), 1.0)
    """
    if file.program is None:
        raise CheckpointError(
            "the file says nothing about what the network computes: load it into a network of the same class with "
            "load_into, or save it with an example_input"
        )
    tensors = {name: dense(file, name) for name in file.entries}
    return network(file.program, tensors, file.aliases).eval()


def network(program: Program, tensors: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> Network:
    """Return the network that runs a program on these tensors, which it holds and does not copy.

    Args:
        program: of any origin.
        tensors: by name, in the order `state_dict` and `parameters` shall have.
        aliases: further name of a tensor -> its name.

    Raises:
        CheckpointError: the program cannot be run with these tensors.
    """
    aliases = aliases or {}
    named = {**tensors, **{name: tensors[stored] for name, stored in aliases.items()}}
    try:
        check(
            program, {name: tuple(tensor.shape) for name, tensor in named.items()},
            {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in named.items()},
        )  # fmt: skip
        if not program.inputs:
            raise FormatError("it has no input")
        _check_unsaved(program, named)
        made = _with_shared(_modules(program, named), named, aliases)
    except FormatError as error:
        raise CheckpointError(f"the program cannot be run: {error}") from error
    root = Network(program, made) if len(program.inputs) == 1 else _ManyInputs(program, made)
    _fill(program, named, _placed(root, program, named, made), made)
    return root


def _check_unsaved(program: Program, tensors: Iterable[str]) -> None:
    """Refuse names that would fall together with others once the mark of what is not in `state_dict` is gone."""
    constants, names = {step.name for step in program.steps if step.op == "constant"}, set(tensors)
    for name in sorted({step.name for step in program.steps if step.name} | names):
        above, _, leaf = name.rpartition(".")
        bare = f"{above}." * bool(above) + leaf.removeprefix(UNSAVED)
        if bare != name and (name not in constants or bare in names or not leaf.removeprefix(UNSAVED)):
            raise FormatError(f"name {name!r}: only a constant's own may begin with {UNSAVED!r}")


def dense(file: "synaptree.format.file.File", name: str) -> Tensor:
    """Return a tensor of a file in the kind of number it had."""
    entry = file.entry(name)
    return torch.from_numpy(entry.tensor()).to(_KINDS[entry.dtype])


_KINDS = {name: getattr(torch, name) for name in DTYPES}


def _modules(program: Program, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Return a module for each name of a step that torch has a class for."""
    made: dict[str, nn.Module] = {}
    # weights are put in later: none are drawn, and no memory is taken for them
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in program.steps:
            if step.name and step.op in CLASSES and step.name not in made:
                parts = {part.name: tensors.get(part.under(step.name)) for part in OPERATORS[step.op].parts}
                shapes = {part: tuple(tensor.shape) for part, tensor in parts.items() if tensor is not None}
                try:
                    made[step.name] = _module(step.op, filled(step), shapes)
                except Exception as error:  # torch's classes refuse options in many ways
                    raise FormatError(f"{step.op} {step.name!r}: {error}") from error
    return made


def _with_shared(
    made: Mapping[str, nn.Module], names: Iterable[str], aliases: Mapping[str, str]
) -> dict[str, nn.Module]:
    """Add further names of modules: those under which the same tensors, and nothing else, stand once more."""
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        above, _, leaf = name.rpartition(".")
        parts.setdefault(above, {})[leaf] = aliases.get(name, name)
    for name in [*parts, *made]:
        while name := name.rpartition(".")[0]:
            parts.pop(name, None)
    modules = {frozenset(parts[name].items()): module for name, module in made.items() if name in parts}
    again = {above: frozenset(own.items()) for above, own in parts.items() if above}
    return {above: modules[own] for above, own in again.items() if own in modules} | dict(made)


def _module(op: str, options: Options, shapes: Mapping[str, Shape]) -> nn.Module:
    """Return a module of torch's whose parts have these shapes; their values are still to come."""
    weight, bias = shapes.get("weight", ()), "bias" in shapes
    kwargs: dict[str, Any] = _renamed(op, options)
    args: Sequence[Any] = ()
    if op == "linear":
        args, kwargs = (weight[1], weight[0]), {"bias": bias}
    elif op.startswith("conv_transpose"):
        args, kwargs = (weight[0], weight[1] * kwargs["groups"], weight[2:]), kwargs | {"bias": bias}
    elif op.startswith("conv"):
        padding = "same" if kwargs.pop("same") else kwargs["padding"]
        args = (weight[1] * kwargs["groups"], weight[0], weight[2:])
        kwargs |= {"bias": bias, "padding": padding}
    elif op == "layer_norm":
        shape = next(iter(shapes.values()), options["shape"])
        kwargs |= {"normalized_shape": shape, "elementwise_affine": bool(shapes)}
    elif "_norm" in op:
        channels = next((shape[0] for shape in shapes.values() if shape), options["channels"])
        kwargs |= {TORCH_NAMES[op]["channels"]: channels, "affine": bias or bool(weight)}
        kwargs |= {} if op == "group_norm" else {"track_running_stats": "running_mean" in shapes}
    elif op in ("prelu", "embedding"):
        args = weight
    elif op == "shortcut":
        out = shapes["scale"][0]
        args, kwargs = (options["in_channels"] or out, out, options["stride"]), {}
    module: nn.Module = cast(Any, CLASSES[op])(*args, **kwargs)
    return module


def _placed(
    root: nn.Module, program: Program, tensors: Iterable[str], made: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Put modules and plain ones above them into the tree; return where each tensor and each module stands.

    Modules follow the order of the tensors. Those without any stand where the program calls them, if what they
    stand in is there already.
    """
    before: dict[str, list[str]] = {}
    without: list[str] = []
    for step in program.steps:
        own = [part.under(step.name) for part in OPERATORS[step.op].parts]
        first = next((name for name in own if name in tensors), None)
        if first is not None:
            before.setdefault(first, []).extend(without)
            without = []
        elif step.name in made:
            without.append(step.name)
    holders = {}
    for tensor in tensors:
        for name in before.get(tensor, ()):
            if _stands(root, name.split(".")[:-1]):
                _hold(root, name, made)
        holders[tensor] = _hold(root, tensor, made)
    return holders | {name: _hold(root, name, made) for name in made}


def _hold(root: nn.Module, name: str, made: Mapping[str, nn.Module]) -> nn.Module:
    """Return the module under which a name stands, made if need be, with what stands above it."""
    module, parts = root, name.split(".")
    for end in range(1, len(parts) + (name in made)):
        if parts[end - 1] not in module._modules:
            module._modules[parts[end - 1]] = made.get(".".join(parts[:end])) or nn.Module()
        module = _below(module, parts[end - 1 : end])
    return module


def _fill(
    program: Program, tensors: Mapping[str, Tensor], holders: Mapping[str, nn.Module], made: Mapping[str, nn.Module]
) -> None:
    """Put every tensor where it belongs; one of several names is one parameter."""
    parts = {part.under(step.name) for step in program.steps for part in OPERATORS[step.op].parts if part.name}
    for module in made.values():
        for table in (module._parameters, module._buffers):
            table.update(dict.fromkeys(table))  # those the file does not have stay None
    parameters = {step.name for step in program.steps if filled(step).get("trained")}
    parameters |= {name for name in parts & tensors.keys() if _leaf(name) in holders[name]._parameters}
    single = {id(tensors[name]): _parameter(tensors[name], holders[name]) for name in tensors if name in parameters}
    for name, tensor in tensors.items():
        holder, leaf = holders[name], _leaf(name)
        kept = leaf.removeprefix(UNSAVED)
        if id(tensor) in single:
            holder._parameters[leaf] = single[id(tensor)]
            continue
        holder._buffers[kept] = tensor
        if kept != leaf:
            holder._non_persistent_buffers_set.add(kept)


def _parameter(tensor: Tensor, holder: nn.Module) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point() and not isinstance(holder, Shortcut))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _stands(root: nn.Module, way: Iterable[str]) -> bool:
    module: Any = root
    for part in way:
        if part not in module._modules:
            return False
        module = module._modules[part]
    return True


def _below(module: nn.Module, way: Iterable[str]) -> Any:
    found: Any = module
    for part in way:
        found = found._modules[part]
    return found


def _way(name: str, stands: bool) -> tuple[str, ...]:
    above, _, leaf = name.rpartition(".")
    return (*(above.split(".") if above else ()), leaf.removeprefix(UNSAVED)) if stands else ()


def _done(program: Program) -> list[tuple[int, ...]]:
    """Return for each step the numbers of the values that are read for the last time."""
    last = {number: place for place, step in enumerate(program.steps) for number in step.inputs}
    found: list[tuple[int, ...]] = [()] * len(program.steps)
    outputs = set(program.outputs)
    for number, place in last.items():
        if number not in outputs:
            found[place] += (number,)
    return found


def _renamed(op: str, options: Options) -> dict[str, Any]:
    """Return options as torch's functions and classes name them, -1 of adaptive pools as the None it stands for."""
    names = TORCH_NAMES.get(op, {})
    kwargs: dict[str, Any] = {names.get(name, name): value for name, value in options.items()}
    if op.startswith("adaptive"):
        kwargs["output_size"] = tuple(None if size == -1 else size for size in kwargs["output_size"])
    return kwargs


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(x: Value, y: Value = None, *, number: float | None, flipped: bool) -> Any:
        if y is not None:
            return function(x, y)
        return function(number, x) if flipped else function(x, number)

    return apply


def _reshape(x: Value, sizes: Shape) -> Value:
    return x.reshape([x.shape[place] if size == 0 else size for place, size in enumerate(sizes)])


def _slice(x: Value, dim: int, start: int, stop: int | None, step: int) -> Value:
    part, whole = slice(start, stop, step), slice(None)
    return x[(*(whole,) * dim, part)] if dim >= 0 else x[(..., part, *(whole,) * (-1 - dim))]


_RANDOM: Mapping[str, Callable[..., Any]] = {
    "dropout": F.dropout, "dropout1d": F.dropout1d, "dropout2d": F.dropout2d, "dropout3d": F.dropout3d,
    "alpha_dropout": F.alpha_dropout,
}  # fmt: skip
_IN_TORCH = "sigmoid tanh exp log sqrt rsqrt neg abs pow clamp flatten"
_IN_FUNCTIONAL = """
    relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid hardswish softmax
    log_softmax pixel_shuffle pad max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d
"""
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(F, name) for name in _IN_FUNCTIONAL.split()},
    **{name: getattr(torch, name) for name in _IN_TORCH.split()},
    **{name: _arithmetic(getattr(operator, name)) for name in ("add", "sub", "mul")},
    "div": _arithmetic(operator.truediv),
    "matmul": torch.matmul,
    "identity": lambda x: x,
    "mean": lambda x, dims, keepdim: x.mean(dims, keepdim),
    "sum": lambda x, dims, keepdim: x.sum(dims, keepdim),
    "amax": lambda x, dims, keepdim: x.amax(dims, keepdim),
    "amin": lambda x, dims, keepdim: x.amin(dims, keepdim),
    "reshape": _reshape,
    "permute": lambda x, dims: x.permute(dims),
    "transpose": torch.transpose,
    "squeeze": lambda x, dims: x.squeeze(dims),
    "unsqueeze": torch.unsqueeze,
    "cat": lambda *values, dim: torch.cat(values, dim),
    "stack": lambda *values, dim: torch.stack(values, dim),
    "slice": _slice,
    "select": lambda x, dim, index: x.select(dim, index),
    "upsample": F.interpolate,
}
