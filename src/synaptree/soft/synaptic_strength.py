"""Synaptic strength: every kernel learns one number that says how much it carries; the weak ones go.

Rule: kernel `k[i, j]`, from input map `j` to output map `i`, becomes `strength[i, j] direction[i, j] /
||direction[i, j]||_F`, and the batch-norm scales before it become 1, so that `|strength[i, j]|` is the
product of the kernel's norm and the scale of its input. Training adds `weight sum |strength|` to the loss;
then the share `ratio` of all kernels with the smallest `|strength|` goes, and the plain network is
finetuned. The chain, each link usable in any training loop:

    convert(model, example)                                              # outputs stay the same
    optimizer = SGD(parameter_groups(model, 1e-4), lr=0.1, momentum=0.9)
    penalty = penalise(model, optimizer, weight=1e-5)
    ...                                                                  # train
    penalty.remove()
    prune_strengths(model, ratio=0.9)
    recalibrate(model, batches)
    topology = fold(model)                                               # plain modules again
    ...                                    # new optimizer; attach(model, optimizer, topology=topology); finetune

Args:
    weight: lambda of the penalty, by default 1e-5; depends on learning rate and epochs (see below).
    step: "subgradient", or "proximal" for exact zeros.
    drop_gamma: which batch-norm scales go: "absorbable", "all" or "none".
    init: "exact", or one strength for all, for training from scratch.
    ratio: share in [0, 1] of all kernels that go; or `threshold`, the size they must exceed.
    floor: share in [0, 1] of each layer's kernels that stay in any case.
    norm: "none" ranks strengths as they are, "row" those of each output map relative to each other.

When to use it: convolutions of 3x3 and more with batch norm, trained from scratch or long enough for the
penalty to sort kernels: `weight` times the sum of learning rates over all updates, over `1 - momentum`,
should be a few times the strengths at the start, `sqrt(2 / in)`. When not: without training, where
`kernel_norm` ranks just as well; networks of 1x1 convolutions, where a kernel is a single weight (reports count
them apart); for speed by whole filters. A batch norm right after a convolution makes the loss blind to
the length of a row of strengths, so that rows shrink together and `weight`, learning rate and epochs act jointly.
Paper: Lin, Zhong, Wu and Yan, Synaptic Strength For Convolutional Neural Network, NeurIPS 2018, arXiv
1811.02454.
Differs: the form of the strength, the scales that go, the penalty's weight, the threshold and the training
recipe are our reading, as far as the paper's own are not known to us and there is no public code; none of
its tables is reproduced here. As a function of the kernels the penalty is exactly a group lasso,
`sum |strength| = sum ||k||_F`; what differs is how it is parameterised, and the scale of the input in the
score. Directions begin un-normalised, which keeps the speed at which kernels turn.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from synaptree.core.errors import AttachError, OptionError, ShapeError, unknown
from synaptree.core.layer import modules_of
from synaptree.core.topology import Topology
from synaptree.graph.scale import input_scale
from synaptree.rules.structure import counts_of_largest, largest
from synaptree.soft.absorb import free_scales
from synaptree.soft.convert import Converted, convert, put
from synaptree.soft.kernel_strength import KernelStrengthConv2d
from synaptree.soft.penalty import parameter_groups, penalise
from synaptree.soft.recalibrate import recalibrate

__all__ = [
    "Converted", "KernelCount", "KernelStrengthConv2d", "convert", "count_kernels", "fold", "parameter_groups",
    "penalise", "prune_strengths", "recalibrate", "strength_layers", "strength_scores",
]  # fmt: skip

Norm = Literal["none", "row"]


@dataclass(frozen=True)
class KernelCount:
    """The kernels of layers with strengths.

    Attributes:
        layers: name -> kernels that exist, and all.
        spatial: names of the layers whose kernels are larger than 1x1.
    """

    layers: Mapping[str, tuple[int, int]]
    spatial: frozenset[str]

    @property
    def kernels(self) -> int:
        """All kernels; those of 1x1 convolutions are single weights."""
        return sum(total for _, total in self.layers.values())

    @property
    def kernels_left(self) -> int:
        """Those that exist."""
        return sum(left for left, _ in self.layers.values())

    @property
    def spatial_kernels(self) -> int:
        """All kernels larger than 1x1."""
        return sum(self.layers[name][1] for name in self.spatial)

    @property
    def spatial_kernels_left(self) -> int:
        """Those larger than 1x1 that exist."""
        return sum(self.layers[name][0] for name in self.spatial)

    def __str__(self) -> str:
        return (
            f"{self.kernels_left:,} of {self.kernels:,} kernels left, "
            f"of those larger than 1x1 {self.spatial_kernels_left:,} of {self.spatial_kernels:,}"
        )


def strength_layers(model: nn.Module) -> dict[str, KernelStrengthConv2d]:
    """Return the layers of `model` that have strengths, each under its first name.

    Raises:
        AttachError: there is none.
    """
    found: dict[KernelStrengthConv2d, str] = {}
    for name, module in modules_of(model):
        if isinstance(module, KernelStrengthConv2d):
            found.setdefault(module, name)
    if not found:
        raise AttachError(f"{type(model).__name__} has no layer with strengths: call convert(model, example) first")
    return {name: module for module, name in found.items()}


def count_kernels(model: nn.Module) -> KernelCount:
    """Return how many kernels of the layers with strengths exist.

    Raises:
        AttachError: there is no such layer.
    """
    layers = strength_layers(model)
    counts = {name: (int(layer.mask.sum()), layer.mask.numel()) for name, layer in layers.items()}
    return KernelCount(counts, frozenset(name for name, layer in layers.items() if layer.direction is not None))


@torch.no_grad()
def strength_scores(model: nn.Module, norm: Norm = "none") -> dict[str, Tensor]:
    """Return what each kernel carries: `score[i, j] = |gamma[j] strength[i, j]|`.

    `gamma[j]` is the scale of the batch norm that input map `j` comes from: 1 where `convert` has moved
    it away, or where the map comes from no batch norm.

    Args:
        model: converted.
        norm: "row" divides by the Euclidean norm of the row, `||score[i]||`; our reading.

    Returns:
        Name of each layer with strengths -> `(out, in / groups)`, at least 0; 0 where no kernel exists.

    Raises:
        AttachError: there is no such layer.
        OptionError: `norm` is unknown.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 2, 1))
        >>> _ = model[1].weight.data.copy_(torch.tensor([-3.0, 2.0]).view(2, 1, 1, 1))
        >>> _ = convert(model, torch.zeros(1, 1, 2, 2))
        >>> strength_scores(model)
        {'1': tensor([[3.],
                [2.]])}

    Paper: Lin, Zhong, Wu and Yan 2018 (1811.02454): norm of the kernel times norm of the input.
    """
    if norm not in ("none", "row"):
        raise unknown("norm", norm, ("none", "row"))
    scores = {}
    for name, layer in strength_layers(model).items():
        score = layer.strength.detach().abs() * layer.mask
        score = score * input_scale(layer, layer.norms, layer.norm_modules)
        if norm == "row":
            score = score / torch.linalg.vector_norm(score, dim=1, keepdim=True).clamp_min(1e-12)
        scores[name] = score
    return scores


@torch.no_grad()
def prune_strengths(
    model: nn.Module, ratio: float | None = None, *, threshold: float | None = None, floor: float = 0.01,
    norm: Norm = "none", keep_row: bool = False,
) -> KernelCount:  # fmt: skip
    """Remove the weakest kernels of all layers with strengths together; after an error nothing is changed.

    The kernels that stay are those above one threshold of the whole network: the given one, or the one
    that removes exactly `floor(ratio n)` of `n` kernels, ties to the lowest index of the first layer.
    Kernels removed before stay away, and count among those removed.

    Args:
        model: converted; masks and strengths change in place.
        ratio: share in [0, 1] of all kernels that do not exist afterwards; or None.
        threshold: the score that kernels must exceed; or None.
        floor: share in [0, 1] of its kernels that each layer keeps in any case, its best, and one at least.
        norm: see `strength_scores`.
        keep_row: whether the strongest kernel of every output map stays too.

    Returns:
        What is left, 1x1 kernels counted apart.

    Raises:
        AttachError: there is no layer with strengths.
        NumericError: a strength is NaN.
        OptionError: not just one of `ratio` and `threshold` is given, or one is out of range.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 4, 3))
        >>> _ = convert(model, torch.zeros(1, 1, 4, 4))
        >>> print(prune_strengths(model, 0.75))
        1 of 4 kernels left, of those larger than 1x1 1 of 4

    Paper: Lin, Zhong, Wu and Yan 2018 (1811.02454) use some threshold; one for the network, and the
    floor, are ours.
    """
    _check(ratio, threshold, floor)
    layers = strength_layers(model)
    scores = {
        name: score.masked_fill(~layers[name].mask, -math.inf) for name, score in strength_scores(model, norm).items()
    }
    masks = {}
    for (name, score), above in zip(scores.items(), _above(list(scores.values()), ratio, threshold), strict=True):
        keep = largest(score, max(above, 1, math.ceil(floor * score.numel() - 1e-9)))
        if keep_row:
            best = torch.zeros_like(keep).scatter_(1, score.argmax(1, keepdim=True), True)
            keep |= best & layers[name].mask
        masks[name] = keep
    for name, layer in layers.items():
        layer.mask.copy_(masks[name])
        layer.strength.masked_fill_(~layer.mask, 0.0)
    return count_kernels(model)


@torch.no_grad()
def fold(model: nn.Module, topology: Topology | None = None) -> Topology:
    """Put plain convolutions back in the place of layers with strengths, and return which kernels exist.

    Outputs stay the same bit for bit, names are those of the plain model again, and batch-norm scales
    that `convert` fixed can be trained again. Make a new optimizer: weights are new parameters.
    `attach(model, optimizer, topology=topology)` keeps removed kernels at 0 while finetuning.

    Args:
        model: converted; changed in place.
        topology: takes the masks of the layers up, next to what else it masks; a new one by default.

    Raises:
        AttachError: there is no layer with strengths; then nothing is changed.
        ShapeError: `topology` has a mask of another granularity for one of them; then nothing is changed.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 4, 3))
        >>> _ = convert(model, torch.zeros(1, 1, 4, 4))
        >>> _ = prune_strengths(model, 0.75)
        >>> topology = fold(model)
        >>> model[1]
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
        >>> topology.density("1.weight")
        0.25
    """
    layers = strength_layers(model)
    plain = {name: layer.to_conv() for name, layer in layers.items()}
    topology = Topology() if topology is None else topology
    with topology.restored_on_error():
        for name, conv in plain.items():
            _take_up(topology, _weight(name), conv.weight, layers[name].mask[:, :, None, None])
    for name, layer in layers.items():
        put(model, layer, plain[name])
        plain[name].weight.masked_fill_(~topology.masks[_weight(name)], 0.0)
    free_scales(model)
    return topology


def _above(scores: list[Tensor], ratio: float | None, threshold: float | None) -> list[int]:
    """Return how many kernels of each layer stay by one threshold of the network."""
    if threshold is not None:
        return [int((score > threshold).sum()) for score in scores]
    total = sum(score.numel() for score in scores)
    # 1e-9: a share such as 0.7 is a little below or above its decimal value
    return counts_of_largest(scores, total - int((ratio or 0.0) * total + 1e-9))


def _check(ratio: float | None, threshold: float | None, floor: float) -> None:
    if (ratio is None) == (threshold is None):
        raise OptionError(f"give either ratio or threshold, got ratio={ratio!r} and threshold={threshold!r}")
    for name, share in (("ratio", 0.0 if ratio is None else ratio), ("floor", floor)):
        if not 0 <= share <= 1:
            raise OptionError(f"{name} = {share!r}: wanted a share from 0 to 1")
    if threshold is not None and not threshold >= 0:
        raise OptionError(f"threshold = {threshold!r}: wanted a number of at least 0")


def _take_up(topology: Topology, name: str, weight: Tensor, mask: Tensor) -> None:
    if name not in topology.masks:
        topology.add(name, tuple(weight.shape), "kernel", device=weight.device)
    elif topology.masks[name].shape != mask.shape:
        raise ShapeError(
            f"{name} of shape {tuple(weight.shape)} has a mask of shape {tuple(topology.masks[name].shape)} already, "
            f"wanted one per kernel, {tuple(mask.shape)}: use the granularity \"kernel\""
        )
    topology.edit({name: mask & topology.masks[name]})


def _weight(name: str) -> str:
    return f"{name}.weight" if name else "weight"
