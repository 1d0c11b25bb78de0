"""What a network computes, as a program of the file format's operators."""

from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from synaptree.artifact.build import CLASSES, UNSAVED, network
from synaptree.artifact.calls import ASKS, Form, Held, Steps, Value, Varies, call, name_of, options_of, spread
from synaptree.core.errors import CheckpointError, OptionError, ShapeError
from synaptree.core.layer import modules_of, require_weights, unwrapped
from synaptree.format.operators import OPERATORS
from synaptree.format.program import Input, Program, Step
from synaptree.graph.node import GraphError
from synaptree.graph.operations import overwrites, reads_values
from synaptree.graph.shortcut import Shortcut
from synaptree.graph.trace import Tracer, reason, require_equal, undisturbed, untraceable
from synaptree.surgery.proof import require_own_names

__all__ = ["Described", "describe", "described", "examples_of", "state_of"]

Examples = Tensor | tuple[Tensor, ...]


class Described(NamedTuple):
    """A program and the tensors it belongs to.

    Attributes:
        program: what the network computes.
        tensors: by name: those of `state_dict`, under one name each, then those it holds beside them.
        aliases: further name of a tensor -> its name.
    """

    program: Program
    tensors: dict[str, Tensor]
    aliases: dict[str, str]


def describe(model: nn.Module, example_input: Examples) -> Program:
    """Return what a model computes as a program of the file format's operators.

    The model is traced in train and in eval mode and run on two and on three samples, so that the program takes any
    number of them; a size that is not theirs is fixed. Then the program is run beside the model, on the example and on
    random numbers of its shape if the model takes them, and must give what the model gives. Modules, training flags
    and torch's random state are left as they were.

    Args:
        model: any module that torch.fx can trace, of tensors in, and one tensor or a tuple, list or dict of them out.
        example_input: `(samples, ...)`, or a tuple of such tensors for a model with several inputs; on its device.

    Raises:
        GraphError: names the module, or the function and the module that calls it, for which there is no operator;
            or the model does not run on the example, decides by what the trace cannot see, or reads a tensor of
            which it has overwritten a part, or which it has overwritten in another form.
        OptionError: the example is no tensor and no tuple of tensors.
        ShapeError: the example has no samples, or not the same number in each tensor.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.1))
        >>> for step in describe(model, torch.randn(2, 4)).steps:
        ...     print(step.op, step.name, step.inputs, step.options)
        linear 0 (0,) {}
        leaky_relu 1 (1,) {'negative_slope': 0.1}
    """
    return described(model, example_input).program


def described(model: nn.Module, example_input: Examples) -> Described:
    """Return what `describe` returns, with the tensors the program belongs to."""
    model, examples = unwrapped(model), examples_of(example_input)
    require_own_names(model)
    if not examples or any(x.dim() == 0 or len(x) == 0 or len(x) != len(examples[0]) for x in examples):
        shapes = ", ".join(str(tuple(x.shape)) for x in examples)
        raise ShapeError(f"example_input of shape {shapes}: wanted at least one sample, as many in each tensor")
    describer = _Describer(model, examples)
    try:
        with undisturbed(model, examples[0]):
            return describer.run()
    finally:
        describer.tidy()


def examples_of(example_input: object) -> tuple[Tensor, ...]:
    """Return the tensors of an example.

    Raises:
        OptionError: it is no tensor and no tuple of tensors.

    >>> len(examples_of((torch.zeros(1, 2), torch.zeros(1, 3))))
    2
    """
    examples = example_input if isinstance(example_input, tuple) else (example_input,)
    if all(isinstance(x, Tensor) for x in examples):
        return examples
    got = type(example_input).__name__
    got += f" of {', '.join(type(x).__name__ for x in examples)}" if isinstance(example_input, tuple) else ""
    raise OptionError(f"example_input is a {got}: wanted a tensor, or a tuple of tensors for a model of several inputs")


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of `state_dict` under their first name, and further name -> first name.

    Raises:
        AttachError: a lazy module has no tensors yet.
        CheckpointError: a module keeps something else than tensors there.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> model[1].weight = model[0].weight
    >>> state_of(model)[1]
    {'1.weight': '0.weight'}
    """
    require_weights(model)
    state: dict[str, Any] = {}
    for name, module in modules_of(model):
        module._save_to_state_dict(state, f"{name}." if name else "", keep_vars=True)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or name.rpartition(".")[2].startswith(UNSAVED):
            raise CheckpointError(
                f"{name} of the model's state is a {type(value).__name__}: wanted a tensor whose name begins with no "
                f"{UNSAVED!r}; save the model before such state is added, as by quantising it"
            )
        if id(value) in first:
            aliases[name] = first[id(value)]
        else:
            first[id(value)], tensors[name] = name, value
    return tensors, aliases


class _Recorder(Tracer):
    """Also records what is done to buffers alone, which a trace would otherwise work out once and for all."""

    proxy_buffer_attributes = True
    whole = (Shortcut,)  # what else layers of people's own compute can be said step by step


def _traced(model: nn.Module) -> fx.Graph:
    recorder = _Recorder()
    try:
        return recorder.trace(model)
    except Exception as error:
        raise untraceable(model, recorder.failed, error, "save without example_input") from error


class _Forms(fx.Interpreter):
    """Runs a traced model and notes the form of every value, or what it is if it is no tensor.

    Attributes:
        written: node that overwrites memory -> the nodes before it whose values lie there.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        # no value is let go: the memory of one would be that of another, which is not overwritten with it
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False
        self.at = ""
        self.seen: dict[fx.Node, Any] = {}
        self.written: dict[fx.Node, set[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.at = f", at module {n.target!r}" if n.op == "call_module" else f", at operation {n.name!r}"
        given = [(x, x._version) for node in n.all_input_nodes for x in _tensors(self.env[node])]
        value = super().run_node(n)
        if n.op == "output":
            return value
        self.seen[n] = _form(value)
        changed = [x for x, version in given if x._version != version]
        if overwrites(n, self.submodules.get(str(n.target)) if n.op == "call_module" else None):
            changed += [x for x, _ in given[:1]]  # dropout changes nothing in eval mode
        self.written[n] = {
            node for node, old in self.env.items() if any(_overlap(x, one) for x in _tensors(old) for one in changed)
        }
        return value


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have a number in common."""
    if torch.strided not in (one.layout, other.layout) or one.layout != other.layout or not one.numel():
        return False
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    if one.element_size() != other.element_size():
        return True
    places = torch.zeros(one.untyped_storage().nbytes() // one.element_size(), dtype=torch.bool)
    spots = [torch.arange(len(places)).as_strided(x.shape, x.stride(), x.storage_offset()) for x in (one, other)]
    places[spots[0].flatten()] = True
    return bool(places[spots[1].flatten()].any())


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Form(tuple(value.shape), value.dtype)
    return tuple(map(_form, value)) if isinstance(value, list | tuple) else value


def _merged(one: Any, other: Any) -> Any:
    """Return what two runs have in common, sizes that differ as `Varies`."""
    if isinstance(one, Form) and isinstance(other, Form) and len(one.shape) == len(other.shape):
        return Form(_merged(one.shape, other.shape), one.dtype)
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(_merged(*pair) for pair in zip(one, other, strict=True))
    return one if type(one) is type(other) and one == other else Varies(one, other)


class _Describer:
    """Turns a traced model into steps. What has no operator is an error only where the output depends on it."""

    def __init__(self, model: nn.Module, examples: tuple[Tensor, ...]) -> None:
        self.model, self.examples = model, examples
        self.state, self.aliases = state_of(model)
        self.names = {id(tensor): name for name, tensor in self.state.items()}
        ops = {name: _OPS[type(module)] for name, module in model.named_modules() if type(module) in _OPS}
        self.steps = Steps(len(examples), frozenset((*self.state, *self.aliases)), ops)
        self.own = frozenset(vars(model))
        self.known: dict[fx.Node, Any] = {}  # what stands for the value of a node, or the error it is
        self.seen: dict[fx.Node, Any] = {}
        self.written: dict[fx.Node, set[fx.Node]] = {}
        self.changed: dict[str, GraphError] = {}  # tensors the model holds, and what changes them

    def run(self) -> Described:
        graph, asking = self._graph()
        self._check_arguments(graph)
        with torch.no_grad():
            self.seen = self._forms(graph)
        inputs = self._inputs(graph)
        for node in graph.nodes:
            if node.op == "output":
                found = self._described(inputs, fx.node.map_arg(node.args[0], self._resolved))
            elif node.op != "placeholder":
                self._note(node, node in asking)
        self._prove(found)
        return found

    def tidy(self) -> None:
        """Remove the constants that torch.fx leaves in the model."""
        for name in set(vars(self.model)) - self.own:
            delattr(self.model, name)

    def _graph(self) -> tuple[fx.Graph, set[fx.Node]]:
        """Return the graph in eval mode, and the nodes whose `training` is the mode of the model."""
        graphs = []
        for mode in (True, False):
            for module in self.model.modules():
                module.training = mode
            self.tidy()  # or the second trace names its constants differently
            graphs.append(_traced(self.model))
        spelled = [[_spelled(node) for node in graph.nodes] for graph in graphs]
        if spelled[0] != spelled[1]:
            raise GraphError(
                f"{type(self.model).__name__} asks for self.training in its forward, and computes something else in "
                f"each mode; leave that to modules, or save without example_input"
            )
        pairs = zip(*(graph.nodes for graph in graphs), strict=True)
        return graphs[1], {node for other, node in pairs if other.kwargs.get("training") != node.kwargs.get("training")}

    def _forms(self, graph: fx.Graph) -> dict[fx.Node, Any]:
        runs = []
        for samples in (2, 3):
            forms = _Forms(self.model, graph)
            repeated = [x[:1].expand(samples, *x.shape[1:]).clone() for x in self.examples]
            try:
                forms.run(*repeated)
            except Exception as error:
                shapes = ", ".join(str(tuple(x.shape)) for x in repeated)
                raise GraphError(
                    f"the model does not run on inputs of shape {shapes}{forms.at}: {reason(error)}"
                ) from error
            runs.append(forms.seen)
            for node, others in forms.written.items():
                self.written[node] = self.written.get(node, set()) | others
        return {node: _merged(form, runs[1][node]) for node, form in runs[0].items()}

    def _check_arguments(self, graph: fx.Graph) -> None:
        """Raise `GraphError` unless there is an example for each argument that is used."""
        arguments = [node for node in graph.nodes if node.op == "placeholder"]
        single = [node for node in arguments if not str(node.target).startswith("*")]
        missing = [node for node in single[len(self.examples) :] if node.users]
        if missing or (len(single) == len(arguments) < len(self.examples)):
            names = ", ".join(str(node.target) for node in arguments if node.users)
            raise GraphError(
                f"{type(self.model).__name__}.forward uses {names or 'no argument'}, and example_input has "
                f"{len(self.examples)} tensors: wanted one for each"
            )

    def _inputs(self, graph: fx.Graph) -> tuple[Input, ...]:
        """Number the inputs, and return them."""
        found: list[Input] = []
        for node in graph.nodes:
            if node.op != "placeholder":
                continue
            form, name, count = self.seen[node], str(node.target), len(found)
            if name.startswith("*") and isinstance(form, tuple):
                self.known[node] = tuple(Value(count + place, each) for place, each in enumerate(form))
                found += [self._input(f"{name.strip('*')}{place}", count + place) for place in range(len(form))]
            elif count < len(self.examples):
                self.known[node] = Value(count, form)
                found.append(self._input(name, count))
        return tuple(found)

    def _input(self, name: str, place: int) -> Input:
        x = self.examples[place]
        return Input(name, tuple(x.shape[1:]), str(x.dtype).removeprefix("torch."))

    def _resolved(self, node: fx.Node) -> Any:
        known = self.known[node]
        if isinstance(known, GraphError):
            raise known
        return known

    def _note(self, node: fx.Node, asks: bool) -> None:
        """Put down what stands for the value of a node."""
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        form = self.seen[node]
        try:
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._resolved)
        except GraphError as error:
            self.known[node] = error
        else:
            kwargs = {**kwargs, "training": ASKS} if asks else kwargs
            try:
                self.known[node] = self._written(node, module, args, kwargs, form)
            except GraphError as error:
                where = self._where(node, module)
                self.known[node] = GraphError(f"{where}: {error}. Replace it, or save without example_input")
        if self.written[node]:
            self._overwrite(node, self._where(node, module))

    def _overwrite(self, node: fx.Node, where: str) -> None:
        """Let the result stand for what was its first operand, and nothing for what else lies in that memory."""
        old = self.known[node.all_input_nodes[0]]
        others = [other for other in self.written[node] if other in self.known]
        for held in [self.known[other] for other in others if isinstance(self.known[other], Held)]:
            self.changed[held.name] = GraphError(f"{where}: it changes {held.name}, which the model holds")
            self.known[node] = self.changed[held.name]
        stale = GraphError(
            f"{where}: it overwrites a tensor, or part of one, that is read later in another form. Replace it, or save "
            f"without example_input"
        )
        for other in others:
            self.known[other] = self.known[node] if self.known[other] is old else stale

    def _written(self, node: fx.Node, module: nn.Module | None, args: Any, kwargs: dict[str, Any], form: Any) -> Any:
        if node.op == "get_attr":
            return self._held(str(node.target))
        if not _is_tensor(form):
            if reads_values(node) and any(_is_tensor(self.seen[other]) for other in node.all_input_nodes):
                raise GraphError("it makes a number of the values of a tensor")
            return form
        if module is not None:
            if type(module) not in _KNOWN:
                raise GraphError("the file format has no operator for it")
            given = (*args, *kwargs.values())
            if len(given) != 1:
                raise GraphError(f"it is called with {len(given)} arguments, wanted one tensor")
            return Value(self._module(str(node.target), module, self.steps.read(given[0]), form), form)
        if node.target is getattr:
            return call(self.steps, args[1], args[:1], {}, form)
        return call(self.steps, name_of(node.target) or "", args, kwargs, form)

    def _held(self, target: str) -> Held:
        tensor = attrgetter(target)(self.model)
        above, dot, leaf = target.rpartition(".")
        name = self.names.get(id(tensor), f"{above}{dot}{UNSAVED}{leaf}")
        if name in self.changed:
            raise self.changed[name]
        return Held(name, tensor)

    def _module(self, name: str, module: nn.Module, x: Value, form: Any) -> int:
        """Write the call of a module, and return the number of its value."""
        given = vars(module)
        if isinstance(module, nn.Softmax2d):
            return self.steps.add("softmax", [x], dim=-3)
        if isinstance(module, nn.Unflatten):
            unflattened: Value = call(self.steps, "unflatten", (x,), {}, form)
            return unflattened.number
        if type(module) in _PADS:
            mode, value = _PADS[type(module)], float(given.get("value", 0.0))
            return self.steps.add("pad", [x], pads=given["padding"], mode=mode, value=value)
        op, tensors = _OPS[type(module)], (*module._parameters.items(), *module._buffers.items())
        own = {part for part, tensor in tensors if tensor is not None}
        parts = {part.name for part in OPERATORS[op].parts}
        if own - parts:
            raise GraphError(f"it holds {', '.join(sorted(own - parts))}, which the file format does not know")
        if isinstance(module, Shortcut):
            return self._shortcut(name, module, x)
        if own:  # they tell how many channels there are
            given = {key: value for key, value in given.items() if key not in _TOLD}
        if op.startswith("conv") and isinstance(given["padding"], str):
            given = {**given, "same": given["padding"] == "same", "padding": 0}
        if op == "upsample":
            given = spread(given, len(x.shape) - 2)
        return self.steps.add(op, [x], name, **options_of(op, given))

    def _shortcut(self, name: str, module: Shortcut, x: Value) -> int:
        before, into, out, number = module.offset, module.in_channels, module.out_channels, x.number
        if before != (out - into) // 2:  # no longer in the middle, once some channels are gone
            pads = (0, 0) * (len(x.shape) - 2) + (before, out - into - before)
            into, number = out, self.steps.add("pad", [x], pads=pads)
        channels = into if into < out else None
        return self.steps.add("shortcut", [number], name, in_channels=channels, stride=module.stride)

    def _described(self, inputs: tuple[Input, ...], result: Any) -> Described:
        """Return the program of what the model returns."""
        kind = next((name for cls, name in _RETURNS if isinstance(result, cls) and not hasattr(result, "_fields")), "")
        values = [result] if kind == "value" else list(result.values() if kind == "dict" else result) if kind else []
        if not values or not all(isinstance(value, Value | Held) for value in values):
            raise GraphError(
                f"{type(self.model).__name__} returns {type(result).__name__}: wanted a tensor, or a tuple, list or "
                f"dict of tensors and nothing else"
            )
        outputs = tuple(self.steps.number(value) for value in values)
        steps, outputs = _needed(self.steps.steps, outputs, len(inputs))
        keys = tuple(result) if kind == "dict" else ()
        if not all(isinstance(key, str) for key in keys):
            raise GraphError(f"{type(self.model).__name__} returns a dict with keys {keys}, wanted text")
        read = {part.under(step.name) for step in steps for part in OPERATORS[step.op].parts}
        self._check_constants(steps)
        read = {self.aliases.get(name, name) for name in read}
        unread = [
            Step("constant", name, options={"trained": True} if isinstance(tensor, nn.Parameter) else {})
            for name, tensor in self.state.items() if name not in read
        ]  # fmt: skip
        beside = {name: tensor for name, tensor in self.steps.held.items() if name in read and name not in self.state}
        program = Program(inputs, (*steps, *unread), outputs, kind, keys)
        return Described(program, self.state | beside, self.aliases)

    def _check_constants(self, steps: list[Step]) -> None:
        modules = {step.name for step in steps if step.name and step.op != "constant"}
        for step in steps:
            if step.op == "constant" and step.name.rpartition(".")[0] in modules:
                raise GraphError(
                    f"{type(self.model).__name__} reads {step.name} beside the module it belongs to, which the file "
                    f"format cannot say. Tie the parameters of two modules, or save without example_input"
                )

    def _prove(self, found: Described) -> None:
        """Raise `GraphError` unless the program repeats the model's outputs."""
        self._compare(found, [example[:2] for example in self.examples])
        rng = torch.Generator().manual_seed(0)
        random = [_random(example, rng) for example in self.examples]
        try:
            with torch.no_grad():
                self.model(*(part.clone() for part in random))
        except Exception:
            return  # a model may take no more than what it was made for
        self._compare(found, random)

    def _compare(self, found: Described, x: list[Tensor]) -> None:
        with torch.no_grad():
            try:
                repeated = network(*found).eval()(*(part.clone() for part in x))
            except (CheckpointError, RuntimeError) as error:
                raise GraphError(f"the program of {type(self.model).__name__} does not run: {reason(error)}") from error
            wanted = self.model(*(part.clone() for part in x))
        require_equal(repeated, wanted, (
            f"the program of {type(self.model).__name__} does not repeat the model's outputs; its forward decides by "
            f"something the trace cannot see, has hooks, or overwrites a tensor it still uses"
        ))

    def _where(self, node: fx.Node, module: nn.Module | None) -> str:
        if module is not None:
            return f"module {str(node.target)!r} ({type(module).__name__})"
        name = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
        stack = list(node.meta.get("nn_module_stack", {}).values())
        inside = f"module {stack[-1][0]!r} ({stack[-1][1].__name__})" if stack else type(self.model).__name__
        return f"{name} in {inside}"


def _random(example: Tensor, rng: torch.Generator) -> Tensor:
    """Return three samples of the shape and kind of an example: random numbers, or its own where it has integers."""
    repeated = example[torch.arange(3, device=example.device) % len(example)]
    if not example.is_floating_point():
        return repeated
    return torch.randn(repeated.shape, generator=rng).to(example.device, example.dtype)


def _spelled(node: fx.Node) -> tuple[str, ...]:
    kwargs = {name: value for name, value in node.kwargs.items() if name != "training"}
    return node.op, str(node.target), str(node.args), str(kwargs)


def _is_tensor(form: Any) -> bool:
    return isinstance(form, Form) or (isinstance(form, tuple) and any(map(_is_tensor, form)))


def _needed(steps: list[Step], outputs: tuple[int, ...], first: int) -> tuple[list[Step], tuple[int, ...]]:
    """Return the steps that the outputs need, numbered anew."""
    needed = set(outputs)
    for number in reversed(range(len(steps))):
        needed.update(steps[number].inputs if number + first in needed else ())
    numbers = {number: number for number in range(first)}
    for number in range(first, first + len(steps)):
        if number in needed:
            numbers[number] = len(numbers)
    kept = [step for number, step in enumerate(steps, first) if number in needed]
    return (
        [replace(step, inputs=tuple(numbers[number] for number in step.inputs)) for step in kept],
        tuple(numbers[number] for number in outputs),
    )


_OPS = {cls: op for op, cls in CLASSES.items()} | {
    nn.UpsamplingNearest2d: "upsample", nn.UpsamplingBilinear2d: "upsample"
}
_PAD_MODES = {
    "ZeroPad": "constant", "ConstantPad": "constant", "ReflectionPad": "reflect", "ReplicationPad": "replicate",
    "CircularPad": "circular",
}  # fmt: skip
_PADS = {getattr(nn, f"{name}{dims}d"): mode for name, mode in _PAD_MODES.items() for dims in (1, 2, 3)}
_KNOWN = {*_OPS, *_PADS, nn.Softmax2d, nn.Unflatten}
_TOLD = ("num_features", "num_channels", "normalized_shape")
_RETURNS = (((Value, Held), "value"), (tuple, "tuple"), (list, "list"), (dict, "dict"))
