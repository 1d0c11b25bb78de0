"""Give the kernels of a network strengths of their own, and move batch-norm scales into them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from synaptree.core.errors import AttachError, NumericError, OptionError, ShapeError, unknown
from synaptree.core.layer import layers_of, unwrapped
from synaptree.core.topology import Topology
from synaptree.graph.node import Graph
from synaptree.graph.read import read
from synaptree.graph.scale import Sources
from synaptree.graph.trace import outputs
from synaptree.soft.absorb import Absorption, DropGamma
from synaptree.soft.kernel_strength import KernelStrengthConv2d

__all__ = ["Converted", "convert", "put"]

@dataclass(frozen=True)
class Converted:
    """What `convert` did.

    Attributes:
        layers: names of the convolutions whose kernels have strengths now.
        plain: names of the other 2-d convolutions -> why they stay as they are.
        absorbed: names of the batch norms whose scales moved into the weights that read them.
        kept: names of the other batch norms -> why their scales stay.
        signs: absorbed batch norm -> channels whose scale is -1 now, not 1, as no filter can take the sign.
        dead: absorbed batch norm -> channels whose scale is below 1e-8 and stays.
        reset: names of the batch norms of `kept` whose scale was set to 1, whatever it was.
        max_error: largest difference between the outputs before and after, with `init` and `reset` left out.
    """

    layers: tuple[str, ...]
    plain: Mapping[str, str]
    absorbed: tuple[str, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    signs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dead: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reset: tuple[str, ...] = ()
    max_error: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{len(self.layers)} convolutions with strengths, {len(self.absorbed)} batch-norm scales absorbed, "
            f"outputs equal within {self.max_error:.1e}"
        ]
        lines += [f"{name} stays a plain convolution: {why}" for name, why in self.plain.items()]
        lines += [f"{name} keeps its scale: {why}" for name, why in self.kept.items() if name not in self.reset]
        lines += [f"{name} lost its scale: {self.kept[name]}, but all were to go" for name in self.reset]
        lines += [f"{name}: {len(found)} channels keep their sign" for name, found in self.signs.items()]
        lines += [f"{name}: {len(found)} channels are dead, with a scale near 0" for name, found in self.dead.items()]
        return "\n".join(lines)


def convert(
    model: nn.Module, example: Tensor, *, drop_gamma: DropGamma = "absorbable", include_first: bool = False,
    include_depthwise: bool = False, pointwise: bool = True, init: float | Literal["exact"] = "exact",
    include: Iterable[str] = ("*",), exclude: Iterable[str] = (), topology: Topology | None = None,
) -> Converted:  # fmt: skip
    """Replace the convolutions of `model` by `KernelStrengthConv2d` in place; its outputs stay the same.

    Where a batch norm's scale `gamma[j]` reaches only convolutions and linear layers, through operations
    with `f(g x) = g f(x)` for `g > 0`, it moves: `|gamma[j]|` multiplies every weight that reads map `j`
    and divides the batch norm's shift; its sign goes into the filter that produces the map, that filter's
    bias and the running mean. The scale is then 1 and fixed, and `|strength|` measures what a kernel
    carries: the product of its norm and the scale of its input. After an error the model is as before.

    Make optimizer and `DistributedDataParallel` afterwards: weights are new parameters.

    Args:
        model: changed in place; module names stay. Any module with one input that torch.fx can trace.
        example: `(samples, ...)`, a batch the model accepts, on its device.
        drop_gamma: "absorbable" moves scales where that is exact; the others, before residual sums and
            nonlinearities such as SiLU, stay. "all" also sets the others to 1 and fixes them, which is
            meant for networks that are still to be trained. "none" moves nothing.
        include_first: whether the first convolution gets strengths.
        include_depthwise: whether convolutions with one input map per group do.
        pointwise: whether 1x1 convolutions do; there each weight is a kernel.
        init: "exact", or the size above 0 that every strength starts with, for training from scratch.
        include: shell patterns of the names of the convolutions.
        exclude: likewise; wins over `include`.
        topology: kernels that do not exist in it stay away; its masks must be of granularity "kernel".

    Raises:
        AttachError: no 2-d convolution is left to convert, the model itself is one, or something such as
            `torch.compile` stands around it.
        GraphError: the model cannot be traced.
        NumericError: a weight or output is not finite, or the outputs do not stay the same.
        OptionError: `drop_gamma` or a pattern is unknown, or `init` is not above 0.
        ShapeError: a mask of `topology` has another granularity.

    Example:
        >>> model = nn.Sequential(
        ...     nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.SiLU())
        >>> print(convert(model.eval(), torch.randn(1, 1, 8, 8)))
        1 convolutions with strengths, 1 batch-norm scales absorbed, outputs equal within 0.0e+00
        0 stays a plain convolution: it is the first
        4 keeps its scale: it goes through SiLU

    Paper: Lin, Zhong, Wu and Yan 2018 (1811.02454) drop the scales of batch norm; where, is our reading.
    """
    _check(model, drop_gamma, init)
    chosen = _chosen(model, include, exclude)
    graph = read(model, example)
    plain = _plain(graph, chosen, include_first, include_depthwise, pointwise)
    layers = tuple(name for name in chosen if name not in plain)
    if not layers:
        raise AttachError(
            f"{type(model).__name__} has {len(plain)} 2-d convolutions and none to convert: "
            f"{'; '.join(f'{name}: {why}' for name, why in plain.items())}"
        )
    masks = _masks(graph, layers, topology)
    before = outputs(model, example)
    with _as_before_on_error(model), torch.no_grad():
        scales = Absorption(graph, drop_gamma)
        for name in layers:
            _replace(model, graph.module(name), scales.sources[name], masks.get(name))
        error = _largest_difference(outputs(model, example), before)
        _start(model, layers, init)
        reset = scales.reset() if drop_gamma == "all" else ()
    return Converted(layers, plain, tuple(scales.absorbed), scales.kept, scales.signs, scales.dead, reset, error)


def _check(model: nn.Module, drop_gamma: str, init: object) -> None:
    if drop_gamma not in ("absorbable", "all", "none"):
        raise unknown("drop_gamma", drop_gamma, ("absorbable", "all", "none"))
    if init != "exact" and not (isinstance(init, (int, float)) and 0 < init < float("inf")):
        raise OptionError(f'init = {init!r}: wanted "exact" or a finite number above 0')
    if unwrapped(model) is not model:
        raise AttachError(f"convert the network itself, before {type(model).__name__} goes around it")
    if isinstance(model, nn.Conv2d):
        raise AttachError("the model is one convolution, which cannot be replaced in place: put it in nn.Sequential")


def _chosen(model: nn.Module, include: Iterable[str], exclude: Iterable[str]) -> dict[str, bool]:
    """Return every 2-d convolution by name, and whether the patterns want it."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        raise AttachError(
            f"penalty on a model with no convolution: {type(model).__name__} has no nn.Conv2d whose kernels could get "
            "a strength; for linear layers use a method such as magnitude"
        )
    include, exclude = tuple(include), tuple(exclude)
    layers_of(model, ["conv"], include, exclude)  # a pattern that fits nothing is an error there
    return {name: any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)
            for name in names}


def _plain(
    graph: Graph, chosen: Mapping[str, bool], include_first: bool, include_depthwise: bool, pointwise: bool
) -> dict[str, str]:
    """Return why convolutions are left as they are."""
    read_once = {str(n.module): n.op for n in graph.nodes if n.module}
    first = next((str(n.module) for n in graph.nodes if n.op == "conv"), None)
    reasons: dict[str, str] = {}
    for name, wanted in chosen.items():
        conv: Any = graph.traced.get_submodule(name) if name in read_once else None
        if not wanted:
            reasons[name] = "it is excluded"
        elif conv is None:
            reasons[name] = "the output does not depend on it"
        elif read_once[name] != "conv" or graph.calls[name] > 1:
            reasons[name] = "its weight is used several times"
        elif type(conv) is not nn.Conv2d or conv._forward_hooks or conv._forward_pre_hooks:
            reasons[name] = "it is no plain nn.Conv2d, or has hooks"
        elif name == first and not include_first:
            reasons[name] = "it is the first"
        elif conv.groups == conv.in_channels > 1 and not include_depthwise:
            reasons[name] = "it is depthwise"
        elif conv.kernel_size == (1, 1) and not pointwise:
            reasons[name] = "it is 1x1"
    return reasons


def _masks(graph: Graph, layers: Iterable[str], topology: Topology | None) -> dict[str, Tensor]:
    """Return the masks a topology has of layers, `(out, in / groups)` each."""
    masks: dict[str, Tensor] = {}
    for name in layers:
        mask = topology.masks.get(f"{name}.weight") if topology else None
        if mask is not None:
            wanted = (*cast(nn.Conv2d, graph.module(name)).weight.shape[:2], 1, 1)
            if mask.shape != wanted:
                raise ShapeError(
                    f"{name}.weight has a mask of shape {tuple(mask.shape)}, wanted one per kernel, {wanted}: "
                    'use the granularity "kernel", or leave the layer out with exclude'
                )
            masks[name] = mask.flatten(1)
    return masks


def _replace(model: nn.Module, conv: nn.Module, sources: Sources, mask: Tensor | None) -> None:
    layer = KernelStrengthConv2d.from_conv(cast(nn.Conv2d, conv))
    layer.norms, layer.norm_modules = dict(sources), {name: model.get_submodule(name) for name in sources}
    if mask is not None:
        layer.mask.copy_(mask)
    put(model, conv, layer)


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of `old` wherever `model` has it."""
    for parent in model.modules():
        for child, module in parent._modules.items():
            if module is old:
                parent._modules[child] = new


def _start(model: nn.Module, layers: Iterable[str], init: float | Literal["exact"]) -> None:
    for name in layers if init != "exact" else ():
        strength = cast(KernelStrengthConv2d, model.get_submodule(name)).strength
        # a 1x1 kernel has its sign here, others in their direction
        strength.copy_(torch.where(strength < 0, -float(init), float(init)))


def _largest_difference(after: Any, before: Any) -> float:
    """Return the largest difference between two outputs.

    Raises:
        NumericError: it exceeds 1000 units in the last place of the largest output, or an output is not finite.
    """
    worst = 0.0
    for new, old in zip(_tensors(after), _tensors(before), strict=True):
        if old.numel() and old.is_floating_point():
            difference, largest = float((new - old).abs().max()), float(old.abs().max())
            if not difference <= 1000 * torch.finfo(old.dtype).eps * max(1.0, largest):
                raise NumericError(
                    f"outputs of shape {tuple(old.shape)}, up to {largest:.3g}, would change by {difference:.3g} with "
                    'scales and strengths in place: look for NaN, infinity or scales near 0, or use drop_gamma="none"'
                )
            worst = max(worst, difference)
    return worst


def _tensors(outcome: Any) -> list[Tensor]:
    found: list[Tensor] = []
    fx.node.map_aggregate(outcome, lambda value: found.append(value) if isinstance(value, Tensor) else None)
    return found


@contextmanager
def _as_before_on_error(model: nn.Module) -> Iterator[None]:
    """Put submodules, values and marks of `model` back as they were where the block fails."""
    inside = [(module, dict(module.__dict__), dict(module._modules)) for module in model.modules()]
    values = [(t, t.detach().clone(), t.requires_grad) for t in (*model.parameters(), *model.buffers())]
    try:
        yield
    except BaseException:
        for module, attributes, children in inside:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._modules.clear()
            module._modules.update(children)
        with torch.no_grad():
            for value, copy, trained in values:
                value.copy_(copy)
                value.requires_grad_(trained)
        raise
