"""Make the residual shortcuts of a model modules, so that single channels of them can be cut."""

from copy import deepcopy

from torch import Tensor, fx, nn

from synaptree.graph.node import Graph, GraphError
from synaptree.graph.operations import overwrites
from synaptree.graph.read import read
from synaptree.graph.residual import Residual, residual_sums
from synaptree.graph.shortcut import Shortcut
from synaptree.graph.trace import outputs, require_equal, trace, undisturbed

__all__ = ["expose_shortcuts"]


def expose_shortcuts(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a traced copy in which each identity-like residual shortcut is a `Shortcut` module.

    The shortcut of the sum `add_3` becomes the module `shortcut_add_3`. Parameters the model uses keep
    their names and values, those it never uses are left out. Outputs stay equal bit for bit, as each
    channel is multiplied by 1; `example` is run to check it up to rounding. Shortcuts that are
    `Shortcut` modules already, have layers of their own, or whose channels are not on axis 1, stay as
    they are. The model itself is not touched.

    Args:
        model: any module with one input that torch.fx can trace in both modes alike.
        example: `(samples, ...)`, a batch the model accepts.

    Raises:
        GraphError: the model cannot be traced, or its forward asks for `self.training`.

    Example:
        >>> import torch
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return x + self.fc(x)
        >>> expose_shortcuts(Block(), torch.zeros(1, 3))
        Block(
          (fc): Linear(in_features=3, out_features=3, bias=True)
          (shortcut_add): Shortcut(3, 3, stride=1)
        )
    """
    graph = read(model, example)
    exposed = _trace_for_both_modes(deepcopy(model), example)
    for residual in residual_sums(graph):
        if residual.shortcut is None and not residual.projection:
            _insert(exposed, graph, residual, example)
    exposed.recompile()
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in exposed.named_modules():
        module.training = modes.get(name, model.training)
    complaint = f"{type(model).__name__} with its shortcuts exposed gives other outputs"
    require_equal(outputs(exposed, example), outputs(model, example), complaint)
    return exposed


def _trace_for_both_modes(model: nn.Module, example: Tensor) -> fx.GraphModule:
    with undisturbed(model, example):
        by_mode = [trace(model.train(mode)) for mode in (True, False)]
    if by_mode[0].code != by_mode[1].code:
        raise GraphError(
            f"{type(model).__name__} asks for self.training in its forward, which a trace would fix to one mode; "
            f"use modules (nn.Dropout for F.dropout) or write the Shortcut modules into the model"
        )
    return by_mode[1]


def _insert(exposed: fx.GraphModule, graph: Graph, residual: Residual, example: Tensor) -> None:
    node, skip = graph[residual.add], graph[residual.skip]
    add = next(n for n in exposed.graph.nodes if n.name == residual.add)
    operand = add.all_input_nodes[node.inputs.index(skip.name)]
    overwritten = operand is add.args[0] and overwrites(add, None)  # who reads it later wants the sum
    if node.axis != 1 or skip.shape != node.shape or overwritten:
        return
    name = f"shortcut_{residual.add}"
    while hasattr(exposed, name):
        name += "_"
    like = next(exposed.parameters(), example)
    exposed.add_submodule(name, Shortcut(node.channels).to(like.device, like.dtype))
    with exposed.graph.inserting_before(add):
        add.replace_input_with(operand, exposed.graph.call_module(name, (operand,)))
