"""Counting the connections, kernels and multiplications of a network, all and alive."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from synaptree.core.errors import ShapeError
from synaptree.core.layer import modules_of, parameters_of

__all__ = ["Count", "HasMasks", "LayerCount", "count"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_MULTIPLYING = (nn.Linear, *_CONVS)
# The private base is the only name that batch and instance norm of all dimensions share.
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class HasMasks(Protocol):
    """Whatever knows which connections exist, a `Topology` first of all."""

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Return parameter name -> bool mask, True where it exists, broadcasting to the parameter."""


@dataclass(frozen=True)
class LayerCount:
    """The counts of one layer.

    Args:
        name: of the module, without the prefixes that DDP and `torch.compile` add.
        kind: its class, such as "Conv2d".
        weights: numbers in its weights.
        weights_alive: those that exist.
        biases: numbers in its biases.
        biases_alive: those that exist.
        kernels: (input map, output map) pairs of a convolution; 0 for other layers.
        kernels_alive: those with at least one weight alive.
        macs: multiplications for one sample; None where they were not or cannot be observed.
        macs_alive: those by weights alive.
    """

    name: str
    kind: str
    weights: int
    weights_alive: int
    biases: int = 0
    biases_alive: int = 0
    kernels: int = 0
    kernels_alive: int = 0
    macs: int | None = None
    macs_alive: int | None = None


@dataclass(frozen=True)
class Count:
    """The counts of a network.

    Args:
        layers: in the order of `model.named_modules()`, norm layers left out.
        norm: scales and shifts of all norm layers.
        norm_alive: those that exist.
        what: "density" when a topology said what exists, "nonzero" when being non-zero had to do.
    """

    layers: tuple[LayerCount, ...]
    norm: int
    norm_alive: int
    what: Literal["density", "nonzero"]

    def parameters(self, biases: bool = True, norm: bool = False) -> int:
        """Return the number of weights, and of biases and norm parameters if wanted."""
        return sum(x.weights + biases * x.biases for x in self.layers) + norm * self.norm

    def parameters_alive(self, biases: bool = True, norm: bool = False) -> int:
        """Return how many of `parameters(...)` exist."""
        return sum(x.weights_alive + biases * x.biases_alive for x in self.layers) + norm * self.norm_alive

    @property
    def density(self) -> float:
        """Share of the weights that exist, in [0, 1]; 1 for a network without weights."""
        weights = self.parameters(biases=False)
        return self.parameters_alive(biases=False) / weights if weights else 1.0

    @property
    def macs(self) -> int | None:
        """Multiplications for one sample over the layers where they are known; None if none is."""
        return _total(x.macs for x in self.layers)

    @property
    def macs_alive(self) -> int | None:
        """Multiplications by weights alive for one sample, over the same layers as `macs`."""
        return _total(x.macs_alive for x in self.layers)


def count(model: nn.Module, topology: HasMasks | None = None, example: Tensor | None = None) -> Count:
    """Count what a network has and how much of it exists.

    A parameter without a mask exists wholly. Without a topology, what is not zero exists, and the
    result says `what == "nonzero"`. A parameter shared by several layers counts at the first one.
    Fixed parameters (without gradient) count in linear, convolution and norm layers only, so that the
    scale of a shortcut is no weight.

    Multiplications are those of linear and (transposed) convolution layers: weights times the positions
    each is used at, padding included, as observed while the model runs once in eval mode.

    Args:
        model: any module.
        topology: what exists.
        example: a batch the model takes, `(batch, ...)`; without it `macs` is None.

    Raises:
        ShapeError: a mask does not broadcast to its parameter, the model lacks that parameter, or the
            example is not a batch.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> _ = nn.init.eye_(layer.weight)
        >>> counted = count(layer, example=torch.ones(1, 3))
        >>> counted.what, counted.parameters(), round(counted.density, 2)
        ('nonzero', 8, 0.33)
        >>> counted.macs, counted.macs_alive
        (6, 2)
    """
    exists = _existing(model, topology)
    uses = Counter[nn.Module]() if example is None else _uses(model, example)
    samples = 1 if example is None else len(example)
    layers: list[LayerCount] = []
    norm: list[Tensor] = []
    seen: set[Tensor] = set()
    names: dict[nn.Module, str] = {}
    for name, module in modules_of(model):
        names.setdefault(module, name)
    for module, name in names.items():
        frozen_too = isinstance(module, (*_MULTIPLYING, *_NORMS))
        own = {k: p for k, p in module.named_parameters(recurse=False) if frozen_too or p.requires_grad}
        new = {k: exists[p] for k, p in own.items() if p not in seen}
        seen.update(own.values())
        if isinstance(module, _NORMS):
            norm += new.values()
        elif own:
            # a parametrized layer runs, but its weight is not its own
            observed = module in uses and "weight" in own
            macs = _macs(exists[own["weight"]], uses[module], samples) if observed else (None, None)
            layers.append(_layer(name, module, new, macs))
    what: Literal["density", "nonzero"] = "nonzero" if topology is None else "density"
    return Count(tuple(layers), *_size(norm), what)


def _existing(model: nn.Module, topology: HasMasks | None) -> dict[Tensor, Tensor]:
    """Return parameter -> bool of its shape, True where it exists."""
    named = parameters_of(model)
    if topology is None:
        return {p: p.detach() != 0 for p in named.values()}
    wholly = torch.ones((), dtype=torch.bool)
    exists: dict[Tensor, Tensor] = {p: wholly.expand(p.shape) for p in named.values()}
    for name, mask in topology.masks.items():
        if name not in named:
            raise ShapeError(
                f"the topology masks {name!r}, a parameter this {type(model).__name__} does not have; "
                "count the model that the topology was made for"
            )
        try:
            exists[named[name]] = mask.bool().expand(named[name].shape)
        except RuntimeError:
            raise ShapeError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, which does not broadcast to the "
                f"parameter's {tuple(named[name].shape)}; give each axis its full length or 1"
            ) from None
    return exists


def _uses(model: nn.Module, example: Tensor) -> Counter[nn.Module]:
    """Return layer -> positions at which its weights are used, summed over the batch and all calls."""
    if not example.dim() or not len(example):
        raise ShapeError(
            f"the example must be a batch of at least one sample, got shape {tuple(example.shape)}"
        )
    uses: Counter[nn.Module] = Counter()

    def observe(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A transposed convolution spreads each input position, the others gather each output position.
        shape = (inputs[0] if isinstance(module, _TRANSPOSED) else output).shape
        channel_axis = len(shape) - (len(module.kernel_size) if isinstance(module, _CONVS) else 0) - 1
        uses[module] += math.prod(shape[:channel_axis]) * math.prod(shape[channel_axis + 1 :])

    training = [(module, module.training) for module in model.modules()]
    hooks = [m.register_forward_hook(observe) for m in model.modules() if isinstance(m, _MULTIPLYING)]
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training:
            module.training = was
    return uses


def _layer(
    name: str, module: nn.Module, new: Mapping[str, Tensor], macs: tuple[int | None, int | None]
) -> LayerCount:
    weights = [exists for key, exists in new.items() if "bias" not in key]
    biases = [exists for key, exists in new.items() if "bias" in key]
    kernels = [exists.flatten(2).any(2) for exists in weights] if isinstance(module, _CONVS) else []
    return LayerCount(
        name, type(module).__name__, *_size(weights), *_size(biases), *_size(kernels), *macs
    )


def _size(exists: Iterable[Tensor]) -> tuple[int, int]:
    """Return how many entries there are, and how many of them exist."""
    sizes = [(e.numel(), int(e.count_nonzero())) for e in exists]
    return sum(n for n, _ in sizes), sum(alive for _, alive in sizes)


def _macs(weight: Tensor, uses: int, samples: int) -> tuple[int, int]:
    total, alive = _size([weight])
    return total * uses // samples, alive * uses // samples


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
