"""Read a model: who feeds whom, channel by channel."""

from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from synaptree.graph.node import Graph, GraphError, Node
from synaptree.graph.operations import kind, overwrites, reads_values
from synaptree.graph.trace import outputs, reason, require_equal, trace, undisturbed

__all__ = ["Graph", "GraphError", "Node", "read", "run", "used_by_functions"]

_OTHER = ("other", None)


def read(model: nn.Module, example: Tensor) -> Graph:
    """Return the graph of a model that torch.fx can trace.

    The model is traced and run on the first two samples of `example` in eval mode without gradient,
    next to the model itself, whose outputs the traced one must repeat. Training flags and torch's
    random state are put back; forward hooks of the model see the two runs. What an unknown operation
    does is not guessed: it is `other`, and so is a layer whose weight is also used elsewhere.

    Args:
        model: any module with one input; on the device of `example`.
        example: `(samples, ...)`, a batch the model accepts.

    Raises:
        GraphError: the model cannot be traced or run, or decides by what the trace cannot see.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
        >>> for node in read(model, torch.zeros(1, 1, 4, 4)).nodes:
        ...     print(node.op, node.module, node.channels)
        input None 1
        conv 0 2
        pointwise 1 2
        move 2 8
        linear 3 3
        output None 1
    """
    with undisturbed(model, example):
        traced = trace(model)
    reader = _Reader(traced)
    try:
        with undisturbed(model, example):
            got = reader.run(example[:2].clone())
        wanted = outputs(model, example)
    except Exception as error:
        raise GraphError(
            f"the model does not run on an example of shape {tuple(example.shape)}{reader.at}: {reason(error)}"
        ) from error
    require_equal(got, wanted, (
        f"the traced {type(model).__name__} does not repeat the model's outputs; its forward decides by "
        f"something the trace cannot see, or overwrites a tensor it still uses"
    ))
    return Graph(_reachable(list(reader.nodes.values())), traced)


def run(graph: Graph, x: Tensor, watch: Mapping[str, Callable[[Tensor], None]] | None = None) -> Any:
    """Run the graph on a batch and hand single values over as they appear.

    Modules run in the mode they are in; put the model into eval mode first, as functions that ask for
    the mode were traced in it. Forward hooks on the model's modules fire.

    Args:
        graph: of the model to run.
        x: `(samples, ...)`.
        watch: names of nodes to what is called with their value, at once: a later operation may
            overwrite it in place.

    Returns:
        The model's output.

    Raises:
        OptionError: `watch` names no node.

    Example:
        >>> graph = read(nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), torch.zeros(1, 2))
        >>> run(graph, torch.tensor([[-1.0, 2.0]]), {"_0": print})
        tensor([[-1.,  2.]])
        tensor([[0., 2.]])
    """
    watch = watch or {}
    for name in watch:
        graph[name]
    return _Watcher(graph.traced, watch).run(x)


class _Watcher(fx.Interpreter):
    def __init__(self, traced: fx.GraphModule, watch: Mapping[str, Callable[[Tensor], None]]) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.watch = watch

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.watch:
            self.watch[n.name](value)
        return value


class _Reader(fx.Interpreter):
    """Runs a traced model and notes a Node for each value that depends on the input.

    Operations that only move values are run a second time on the numbers of their channels, which
    shows where each channel went. A number stands for one channel of one node, 0 for none.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.at = ""
        self.nodes: dict[fx.Node, Node] = {}
        self.latest: dict[fx.Node, fx.Node] = {}  # an overwritten value to the one that overwrote it
        self.first: dict[fx.Node, int] = {}  # a node to the number of its first channel
        self.next = 1
        self.moved: dict[fx.Node, Any] = {}  # a moved value to its numbers, in the same structure
        self.shared = _shared_parameters(traced)

    def run_node(self, n: fx.Node) -> Any:
        self.at = f", at module {n.target!r}" if n.op == "call_module" else f", at operation {n.name!r}"
        value = super().run_node(n)
        sources = [a for a in dict.fromkeys(map(self._now, n.all_input_nodes)) if a in self.nodes]
        carries = isinstance(value, Tensor) if n.op == "placeholder" else bool(sources) and reads_values(n)
        if carries or n.op == "output":
            self.nodes[n] = self._node(n, value, sources)
        if carries and overwrites(n, self._module(n)):
            self.latest[self._now(n.all_input_nodes[0])] = n
        return value

    def _now(self, n: fx.Node) -> fx.Node:
        while n in self.latest:
            n = self.latest[n]
        return n

    def _module(self, n: fx.Node) -> nn.Module | None:
        return self.submodules[n.target] if n.op == "call_module" and isinstance(n.target, str) else None

    def _node(self, n: fx.Node, value: Any, sources: list[fx.Node]) -> Node:
        module = self._module(n)
        op, name = kind(n, module), None if module is None else str(n.target)
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        inputs = [self.nodes[a] for a in sources]
        if op == "move" and self._can_be_numbered(n, sources):
            numbers = self._move(n)
            if shape and value.numel():
                axis, names, links = self._origins(numbers)
                return Node(n.name, op, names, name, shape, axis, links)
        if op == "add" and len(inputs) == 1:
            op = "pointwise"  # the other operand is a constant or a parameter
        if module is not None and any(id(p) in self.shared for p in module.parameters()):
            op = "other"
        op, axis = _channel_axis(op, n, module, inputs, shape)
        return Node(n.name, op, tuple(a.name for a in inputs), name, shape, axis)

    def _can_be_numbered(self, n: fx.Node, sources: list[fx.Node]) -> bool:
        """Whether some channels are told apart, and no activation could be an index."""
        unmoved = self.nodes.keys() - self.moved.keys()
        fresh = [self.env[a] for a in n.all_input_nodes if self._now(a) in unmoved]
        told_apart = any(a in self.moved or self.nodes[a].axis is not None for a in sources)
        return told_apart and all(isinstance(v, Tensor) and v.is_floating_point() for v in fresh)

    def _numbers(self, n: fx.Node) -> Any:
        value, n = self.env[n], self._now(n)
        if n in self.moved:
            return self.moved[n]
        if n not in self.nodes:
            constant = isinstance(value, Tensor) and value.is_floating_point()
            return torch.zeros_like(value, dtype=torch.float32) if constant else value
        node = self.nodes[n]
        if n not in self.first:
            self.first[n], self.next = self.next, self.next + node.channels
        along = [1] * len(node.shape)
        if node.axis is not None:
            along[node.axis] = node.channels
        numbers = torch.arange(node.channels, dtype=torch.float32, device=value.device) + self.first[n]
        return numbers.view(along).expand(node.shape).contiguous()

    def _move(self, n: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), self._numbers)
        module = self._module(n)
        # a module's forward and not its call, so that no hook of the user's sees numbers
        numbers = module.forward(*args, **kwargs) if module else getattr(self, n.op)(n.target, args, kwargs)
        if any(kind(user, self._module(user)) == "move" for user in n.users):
            self.moved[n] = numbers
        return numbers

    def _origins(self, numbers: Tensor) -> tuple[int | None, tuple[str, ...], tuple[Tensor, ...]]:
        """Return the axis along which each index holds one number, and per input the linked channels."""
        axis, channel, number = _one_number_per_channel(numbers)
        inputs, links = [], []
        for n, first in self.first.items():
            node = self.nodes[n]
            here = (number >= first) & (number < first + node.channels)
            if here.any():
                inputs.append(node.name)
                links.append(torch.stack([channel[here], number[here] - first]))
        return axis, tuple(inputs), tuple(links)


def _one_number_per_channel(numbers: Tensor) -> tuple[int | None, Tensor, Tensor]:
    for axis in range(1, numbers.dim()):
        rows = numbers.movedim(axis, 0).flatten(1)
        high = rows.amax(1)
        if torch.where(rows > 0, rows, high[:, None]).amin(1).equal(high):
            return axis, torch.arange(len(high)), high.long().cpu()
    number = numbers[numbers > 0].unique().long().cpu()
    return None, torch.zeros_like(number), number


def _channel_axis(
    op: str, n: fx.Node, module: nn.Module | None, inputs: list[Node], shape: tuple[int, ...]
) -> tuple[str, int | None]:
    """Return the operation with its channel axis, or `other` if it does not keep channels apart."""
    match op:
        case "input" | "output":
            return op, None
        case "linear" if len(shape) > 1:
            return op, len(shape) - 1
        case "conv" if isinstance(module, _ConvNd) and len(shape) == len(module.kernel_size) + 2:
            return op, 1
        case "shortcut":
            return op, 1
        case "norm" | "pool" if shape and inputs[0].axis in (None, 1):
            return op, inputs[0].axis
        case "pointwise" | "add" if shape:
            return _broadcast_axis(op, inputs, shape)
        case "reduce" if shape:
            return _axis_after_reduction(n, inputs[0], shape)
    return _OTHER


def _broadcast_axis(op: str, inputs: list[Node], shape: tuple[int, ...]) -> tuple[str, int | None]:
    from_right = {a.axis - len(a.shape) for a in inputs if a.axis is not None}
    if not from_right:
        return op, None
    axis = len(shape) + from_right.pop()
    fits = not from_right and all(a.channels in (1, shape[axis]) for a in inputs)
    return (op, axis) if fits else _OTHER


def _axis_after_reduction(n: fx.Node, source: Node, shape: tuple[int, ...]) -> tuple[str, int | None]:
    dim = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else None)
    dims = [dim] if isinstance(dim, int) else dim
    if source.axis is None or not isinstance(dims, list | tuple):
        return _OTHER
    gone = {d % len(source.shape) for d in dims if isinstance(d, int)}
    if source.axis in gone or len(gone) < len(dims):
        return _OTHER
    kept = len(shape) == len(source.shape)
    return "pool", source.axis if kept else source.axis - sum(d < source.axis for d in gone)


def _shared_parameters(traced: fx.GraphModule) -> set[int]:
    """Return the ids of the parameters that more than one module, or a function, uses."""
    targets = {str(n.target): n.op for n in traced.graph.nodes if n.op in ("call_module", "get_attr")}
    used = [attrgetter(target)(traced) for target in targets]
    owners = Counter(id(p) for m in used if isinstance(m, nn.Module) for p in m.parameters())
    owners.update(id(p) for p in used if isinstance(p, Tensor))
    return {p for p, count in owners.items() if count > 1}


def used_by_functions(graph: Graph) -> list[nn.Parameter]:
    """Return the parameters that are read outside the call of the module they belong to."""
    found = []
    for n in graph.traced.graph.nodes:
        around = [path for path, _ in n.meta.get("nn_module_stack", {}).values()]
        if n.op == "get_attr" and str(n.target).rpartition(".")[0] not in around:
            found.append(attrgetter(str(n.target))(graph.traced))
    return [parameter for parameter in found if isinstance(parameter, nn.Parameter)]


def _reachable(nodes: list[Node]) -> tuple[Node, ...]:
    """Return the nodes the output depends on."""
    kept: list[Node] = []
    wanted = {nodes[-1].name}
    for node in reversed(nodes):
        if node.name in wanted:
            kept.append(node)
            wanted.update(node.inputs)
    return tuple(reversed(kept))
