"""The layers of a model whose connections can be pruned or grown, by name and kind."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from synaptree.core.errors import AttachError, OptionError, unknown

__all__ = ["KINDS", "Layer", "layers_of", "mask_shape", "modules_of", "parameters_of", "require_weights", "unwrapped"]

KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {"linear": (nn.Linear,), "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d)}

_AROUND = (nn.DataParallel, DistributedDataParallel, AveragedModel)


@dataclass(frozen=True)
class Layer:
    """A linear or convolution layer of a model.

    Attributes:
        name: of the module, as in `modules_of`.
        kind: "linear" or "conv".
        module: the layer itself; weight of shape `(out, in)` or `(out, in / groups, *kernel)`.
        weight: name of the weight parameter.
        bias: name of the bias parameter, or None.
        tied: the other modules that compute with the same weight.
    """

    name: str
    kind: str
    module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d = field(compare=False)
    weight: str
    bias: str | None
    tied: tuple[nn.Module, ...] = field(default=(), compare=False, repr=False)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside what `torch.compile`, data parallelism and weight averaging put around it."""
    if type(model).__name__ == "OptimizedModule":  # of torch.compile; to import it takes seconds
        return unwrapped(model.get_submodule("_orig_mod"))
    return unwrapped(model.get_submodule("module")) if isinstance(model, _AROUND) else model


def modules_of(model: nn.Module, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every module under each of its names, which are the same whatever stands around it or its parents.

    >>> [name for name, _ in modules_of(nn.DataParallel(nn.Sequential(nn.ReLU(), nn.DataParallel(nn.Tanh()))))]
    ['', '0', '1']
    """
    model = unwrapped(model)
    yield name, model
    for child, module in model._modules.items():
        if module is not None:
            yield from modules_of(module, f"{name}.{child}" if name else child)


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of `model` under each of their names; modules are named as in `modules_of`.

    Raises:
        AttachError: a lazy module has none yet.
    """
    require_weights(model)
    parts = (m.named_parameters(name, recurse=False, remove_duplicate=False) for name, m in modules_of(model))
    return {name: parameter for part in parts for name, parameter in part}


def require_weights(model: nn.Module) -> None:
    """Raise `AttachError` for the first lazy module that was not called yet, and so has no weights."""
    for name, module in modules_of(model):
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise AttachError(
                f"module {name!r} ({type(module).__name__}) has no weights before its first call; call the model once "
                "on a batch, then go on"
            )


def layers_of(
    model: nn.Module, kinds: Iterable[str] = tuple(KINDS), include: Iterable[str] = ("*",), exclude: Iterable[str] = ()
) -> tuple[Layer, ...]:
    """Return the layers of `model` of the given kinds, in the order the model names them.

    A weight shared by several layers is listed once, under its first name. Layers whose weight no mask fits are not
    listed: where it is computed anew from other parameters, as by `torch.nn.utils.parametrizations`, or is no float.

    Args:
        model: any module.
        kinds: "linear", "conv".
        include: shell patterns of module names, as in `("features.*",)`.
        exclude: likewise; wins over `include`.

    Raises:
        AttachError: nothing is left, or a lazy module has no weights yet.
        OptionError: a kind or a pattern fits nothing in the model.

    Example:
        >>> [layer.name for layer in layers_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))]
        ['0', '2']
    """
    include, exclude = _patterns(include), _patterns(exclude)
    found: dict[int, Layer] = {}
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of layer", kind, KINDS)
    require_weights(model)
    unfit: dict[str, str] = {}
    for name, module in modules_of(model):
        kind = next((k for k in kinds if isinstance(module, KINDS[k])), "")
        if kind and (why := _unfit(module)):
            unfit[name] = why
        elif kind and (first := found.get(id(module.weight))):
            if module not in (first.module, *first.tied):
                found[id(module.weight)] = replace(first, tied=(*first.tied, module))
        elif kind:
            prefix = f"{name}." if name else ""
            bias = f"{prefix}bias" if module.bias is not None else None
            found[id(module.weight)] = Layer(name, kind, module, f"{prefix}weight", bias)
    layers = tuple(found.values())
    for pattern in (*(p for p in include if p != "*"), *exclude):
        if not any(fnmatchcase(name, pattern) for name in (*(layer.name for layer in layers), *unfit)):
            raise unknown("layer", pattern, [layer.name for layer in layers])
    chosen = tuple(
        layer for layer in layers
        if any(fnmatchcase(layer.name, p) for p in include) and not any(fnmatchcase(layer.name, p) for p in exclude)
    )
    if not chosen:
        raise AttachError(
            f"{type(model).__name__} has nothing to prune: wanted layers of kind {' or '.join(kinds)}, "
            f"found {len(layers)} before `include` and `exclude` and none after{_hint(model, unfit)}"
        )
    return chosen


def _unfit(layer: nn.Module) -> str:
    """Return why no mask fits a layer's weight, "" where one does."""
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters; prune it before that, or remove the parametrization"
    return "" if weight.is_floating_point() else f"its weight is of {weight.dtype}; wanted floats"


def _hint(model: nn.Module, unfit: Mapping[str, str]) -> str:
    """Return what to do about layers that are there and cannot be pruned."""
    classes = [f"{type(module).__module__}.{type(module).__name__}" for _, module in modules_of(model)]
    if any(name.endswith(".FullyShardedDataParallel") for name in classes):
        return "; FullyShardedDataParallel holds the weights in another shape: use torch.distributed.fsdp.fully_shard"
    if unfit:
        return "; " + "; ".join(f"{name or 'the model itself'}: {why}" for name, why in unfit.items())
    made = any(".quantized" in name or name.startswith("torch.jit") for name in classes)
    return "; prune the model before it is quantised or scripted" if made else ""


def mask_shape(weight: tuple[int, ...], granularity: str) -> tuple[int, ...]:
    """Return the shape of the mask of a weight of shape `weight` at a granularity.

    >>> mask_shape((8, 3, 5, 5), "kernel")
    (8, 3, 1, 1)

    Raises:
        OptionError: granularity is none of "weight", "kernel", "unit".
    """
    free = {"weight": len(weight), "kernel": 2, "unit": 1}
    if granularity not in free:
        raise unknown("granularity", granularity, free)
    return tuple(size if axis < free[granularity] else 1 for axis, size in enumerate(weight))


def _patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise OptionError(f"include and exclude take a list of patterns, got {patterns!r}: write [{patterns!r}]")
    return tuple(patterns)
