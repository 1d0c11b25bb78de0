"""Contributions: the mean absolute signal that each connection carries to its receiving unit.

The input of a layer is `x`, `<.>` a mean over samples, `*` the layer's own convolution:

- linear: `c[o, i] = |w[o, i]| <|x[i]|>` and `c[bias o] = |b[o]|`;
- convolution, one number per kernel `K[o, i]`, `|.|` entry by entry, `L` output positions:
  - "norm_of_mean": `c[o, i] = || |K[o, i]| * <|x[i]|> ||_2`,     `c[bias o] = |b[o]| sqrt(L)`;
  - "mean_of_norm": `c[o, i] = < || |K[o, i]| * |x[i]| ||_2 >`,   `c[bias o] = |b[o]| sqrt(L)`;
  - "l1":           `c[o, i] = || |K[o, i]| * <|x[i]|> ||_1`,     `c[bias o] = |b[o]| L`.

No convolution with `out * in` outputs is ever formed. With `P` the patches of one input map, a
matrix `(kernel area, L)`, and `v = vec |K|`, the squared norm is `v' (P P') v`: the cost is that of
one small Gram matrix per input map, whatever the number of output units.

Paper: Dekhovich et al. 2024 (2109.10795), section 3. The Gram form is ours.
"""

from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synaptree.core.errors import AttachError, unknown
from synaptree.core.layer import Layer
from synaptree.core.probe import Reduction, mean_abs_input
from synaptree.core.signal import Signal, View, stateless

__all__ = ["AGGREGATES", "Aggregate", "contribution", "kernel_norms", "reductions"]

Aggregate = Literal["norm_of_mean", "mean_of_norm", "l1"]
AGGREGATES = ("norm_of_mean", "mean_of_norm", "l1")
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CHUNK = 1 << 24  # numbers held at once while going sample by sample, 64 MB


def contribution(aggregate: Aggregate = "norm_of_mean") -> Signal:
    """Return the signal of mean absolute contributions; needs the statistics of `reductions(aggregate)`.

    Args:
        aggregate: how a convolution's map becomes one number, see above.
    """
    if aggregate not in AGGREGATES:
        raise unknown("conv_aggregate", aggregate, AGGREGATES)
    return stateless(partial(_read, aggregate=aggregate), "data")


def reductions(aggregate: Aggregate) -> dict[str, Reduction]:
    """Return what a probe must collect for `contribution(aggregate)`."""
    collect: dict[str, Reduction] = {"mean_abs": mean_abs_input}
    if aggregate == "mean_of_norm":
        collect["norm"] = _sum_of_norms
    return collect


def kernel_norms(layer: Layer, maps: Tensor, aggregate: Aggregate = "norm_of_mean") -> Tensor:
    """Return `|| |K[o, i]| * maps[i] ||` for every kernel of a convolution.

    Args:
        layer: a convolution with weight `(out, in / groups, *kernel)`.
        maps: shape `(in, *map)`, not negative.
        aggregate: "l1" for the 1-norm, else the 2-norm.

    Returns:
        Shape `(out, in / groups)`.
    """
    kernels = _kernels(layer).to(maps.dtype)
    patches = _patches(layer, maps)
    if aggregate == "l1":
        area = patches.sum(-1).view(kernels.shape[0], kernels.shape[1], -1, 1)
        return _by_output(kernels @ area)
    return _by_output(_quadratic(kernels, patches @ patches.mT).clamp(min=0).sqrt())


def _read(view: View, aggregate: Aggregate) -> Tensor:
    if not view.stats:
        raise AttachError(
            f"layer {view.layer.name!r}: nothing is known of what flows into it; contributions want a method "
            "whose `edit` observes `reductions(...)` first"
        )
    maps = view.stats["mean_abs"]
    if view.layer.kind == "linear":
        return view.weight.abs() * maps if view.role == "weight" else view.weight.abs()
    if view.role == "bias":
        positions = _patches(view.layer, maps[:1]).shape[-1]
        return view.weight.abs() * (positions if aggregate == "l1" else positions**0.5)
    norms = view.stats["norm"] if aggregate == "mean_of_norm" else kernel_norms(view.layer, maps, aggregate)
    return norms.view(view.mask.shape)


def _sum_of_norms(layer: Layer, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    """Return the sum over samples of the 2-norm of each kernel's map: `(out, in / groups)`, or 0 for a linear layer."""
    if layer.kind == "linear":
        return x.new_zeros(())
    x = x.abs().to(torch.promote_types(x.dtype, torch.float32))
    kernels = _kernels(layer).to(x.dtype)
    per_sample = kernels.numel() + _patches(layer, x[0]).numel()
    total = x.new_zeros(kernels.shape[0] * kernels.shape[2], kernels.shape[1])
    for chunk in x.split(max(1, _CHUNK // per_sample)):
        patches = _patches(layer, chunk.flatten(0, 1))
        grams = (patches @ patches.mT).view(len(chunk), x.shape[1], *patches.shape[1:2] * 2)
        for gram in grams:
            total += _by_output(_quadratic(kernels, gram).clamp(min=0).sqrt())
    return total


def _kernels(layer: Layer) -> Tensor:
    """Return `|K|` as `(groups, in / groups, out / groups, kernel area)`."""
    module = cast(nn.Conv2d, layer.module)
    weight, groups = module.weight.detach().abs(), module.groups
    per_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return per_group.transpose(1, 2)


def _patches(layer: Layer, maps: Tensor) -> Tensor:
    """Return the patches that the layer's kernels meet on each map: `(maps, kernel area, L)`."""
    module, shape = cast(nn.Conv2d, layer.module), layer.module.weight.shape[2:]
    x, padding = maps.unsqueeze(1), module.padding
    if module.padding_mode != "zeros":
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, module.padding_mode), (0,) * len(shape)
    area = shape.numel()
    one_hot = torch.eye(area, dtype=maps.dtype, device=maps.device).view(area, 1, *shape)
    convolve = _CONVOLUTIONS[len(shape)]
    return convolve(x, one_hot, None, module.stride, padding, module.dilation).flatten(2)


def _quadratic(kernels: Tensor, gram: Tensor) -> Tensor:
    """Return `v' G v` for every kernel: `(groups, in / groups, out / groups)` and a last axis of 1."""
    gram = gram.reshape(*kernels.shape[:2], *gram.shape[-2:])
    return ((kernels @ gram) * kernels).sum(-1, keepdim=True)


def _by_output(values: Tensor) -> Tensor:
    """Turn `(groups, in / groups, out / groups, 1)` into `(out, in / groups)`."""
    return values.squeeze(-1).transpose(1, 2).flatten(0, 1)
