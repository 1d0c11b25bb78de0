"""Move the scales of batch norms into the weights that read what they scale."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from synaptree.graph.node import Graph, Node
from synaptree.graph.residual import norm_of
from synaptree.graph.scale import gathered, input_norms, per_kernel

__all__ = ["Absorption", "DropGamma", "free_scales"]

DropGamma = Literal["absorbable", "all", "none"]

_DEAD = 1e-8
"""A batch norm's channel with a smaller scale is left as it is."""

_NAMES = """
    Identity ReLU relu relu_ LeakyReLU leaky_relu leaky_relu_ PReLU prelu Dropout Dropout1d Dropout2d Dropout3d
    dropout dropout2d AvgPool2d avg_pool2d MaxPool2d max_pool2d AdaptiveAvgPool2d adaptive_avg_pool2d
    AdaptiveMaxPool2d adaptive_max_pool2d mean sum amax Flatten flatten view reshape squeeze contiguous clone
    cat concat chunk split getitem ZeroPad2d ReflectionPad2d ReplicationPad2d"""
_HOMOGENEOUS = frozenset(_NAMES.split())
"""Operations with `f(g x) = g f(x)` for every `g > 0`, by the name of module or function."""


class Absorption:
    """The scales of a model's batch norms, moved into the weights that read them where that is exact."""

    def __init__(self, graph: Graph, drop_gamma: DropGamma) -> None:
        self.graph, self.sources = graph, input_norms(graph)
        self.names = {n.name: n for n in graph.traced.graph.nodes}
        self.producer = {norm: layer for layer, norm in norm_of(graph).items()}
        self.absorbed: list[str] = []
        self.kept: dict[str, str] = {}
        self.signs: dict[str, tuple[int, ...]] = {}
        self.dead: dict[str, tuple[int, ...]] = {}
        for node in graph.nodes:
            norm = graph.module(node.module) if node.module else None
            if isinstance(norm, nn.BatchNorm2d) and norm.affine:
                if why := "scales were to stay" if drop_gamma == "none" else self._obstacle(node):
                    self.kept[str(node.module)] = why
                else:
                    self._absorb(str(node.module), norm)

    def reset(self) -> tuple[str, ...]:
        """Set the scales that were kept to 1 and fix them."""
        for name in self.kept:
            _fix(self.graph.module(name)).fill_(1.0)
        return tuple(self.kept)

    def _obstacle(self, norm: Node) -> str | None:
        """Return why the scale of a norm cannot move, or None."""
        if norm.op != "norm" or self.graph.calls[str(norm.module)] > 1:
            return "it is used several times"
        todo = [norm]
        while todo:
            for reader in self.graph.consumers[todo.pop().name]:
                if reader.op in ("conv", "linear"):
                    module = self.graph.module(str(reader.module))
                    if type(module) not in (nn.Conv2d, nn.Linear):
                        return f"{reader.module} reads it, a {type(module).__name__}"
                    if str(norm.module) not in self.sources.get(str(reader.module), {}):
                        return f"{reader.module} is called several times or does not read its channels one by one"
                elif reader.op in ("pointwise", "pool", "move") and self._label(reader) in _HOMOGENEOUS:
                    todo.append(reader)
                else:
                    return self._why(reader)
        return None

    def _why(self, reader: Node) -> str:
        match reader.op:
            case "output":
                return "it goes to the output"
            case "add":
                return "it goes into a sum"
            case "norm":
                return f"it goes into {reader.module}, a norm"
        return f"it goes through {self._label(reader)}"

    def _label(self, node: Node) -> str:
        """Return the name of a node's module class or function."""
        if node.module is not None:
            return type(self.graph.module(node.module)).__name__
        target = self.names[node.name].target
        return target if isinstance(target, str) else target.__name__

    def _absorb(self, name: str, norm: nn.BatchNorm2d) -> None:
        gamma = norm.weight.detach().clone()
        dead = gamma.abs() < _DEAD
        size = gamma.abs().masked_fill(dead, 1.0)
        negative = (gamma < 0) & ~dead
        if negative.any() and self._flip(name, norm, negative):
            negative = torch.zeros_like(negative)
        self.absorbed.append(name)
        if negative.any():
            self.signs[name] = tuple(negative.nonzero().flatten().tolist())
        if dead.any():
            self.dead[name] = tuple(dead.nonzero().flatten().tolist())
        _fix(norm).copy_(torch.where(dead, gamma, torch.where(negative, -1.0, 1.0)))
        norm.bias.div_(size)
        for reader, sources in self.sources.items():
            if name in sources:
                layer: Any = self.graph.module(reader)
                factors = per_kernel(gathered(size, sources[name]), layer)
                layer.weight.mul_(factors.view(*factors.shape, *(1,) * (layer.weight.dim() - 2)))

    def _flip(self, name: str, norm: nn.BatchNorm2d, negative: Tensor) -> bool:
        """Change the sign of channels in the layer that produces them; return whether there is one."""
        layer: Any = self.graph.module(self.producer[name]) if name in self.producer else None
        if type(layer) not in (nn.Conv2d, nn.Linear):
            return False
        for values in (layer.weight, layer.bias, norm.running_mean):
            if values is not None:
                values[negative] = -values[negative]
        return True


def _fix(norm: nn.Module) -> Tensor:
    """Fix the scale of a batch norm, with a mark by which `free_scales` knows it; return the scale."""
    scale = norm.get_parameter("weight")
    if scale.requires_grad:
        cast(Any, norm).scale_is_fixed = True
    return scale.requires_grad_(False)


def free_scales(model: nn.Module) -> None:
    """Let the batch-norm scales that were fixed here be trained again."""
    for module in model.modules():
        if module.__dict__.pop("scale_is_fixed", False):
            module.get_parameter("weight").requires_grad_(True)
