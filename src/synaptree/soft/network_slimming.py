"""Network slimming: L1 on batch-norm scales while training, then the channels with the smallest scales go.

Rule: training adds `weight sum |gamma|` to the loss (`penalise(..., kind="gamma")`); then of all channels
of all batch norms the share `ratio` with the smallest `|gamma|` loses scale and shift, and with them the
filter that produces the channel; the narrow network is finetuned.

When to use it: as the control at the granularity of whole channels; networks in which batch norm follows every
convolution. When not: networks without batch norm; to compare densities with finer methods one to one.
Paper: Liu, Li, Shen, Huang, Yan and Zhang, Learning Efficient Convolutional Networks through Network
Slimming, ICCV 2017, arXiv 1708.06519.
Differs: exactly `floor(ratio n)` of `n` channels go, ties stay by lowest index, and each batch norm keeps
one channel at least; the published code cuts all that is not above the percentile and rebuilds a narrower
network, here the masks of a `Topology` say what is gone. The recommended `weight` is 1e-4 for VGG, 1e-5
for residual and dense networks.
"""

from torch import Tensor, nn

from synaptree.core.errors import AttachError, OptionError
from synaptree.core.layer import unwrapped
from synaptree.core.topology import Topology
from synaptree.graph.read import read
from synaptree.graph.residual import norm_of
from synaptree.rules.structure import counts_of_largest, largest

__all__ = ["slim", "slimming_masks"]


def slimming_masks(model: nn.Module, example: Tensor, ratio: float) -> dict[str, Tensor]:
    """Return the masks without the channels of the smallest batch-norm scales; the model is not changed.

    Args:
        model: any module with one input that torch.fx can trace.
        example: `(samples, ...)`, a batch the model accepts, on its device.
        ratio: share in [0, 1] of all channels of its `nn.BatchNorm2d` that go; each keeps one at least.

    Returns:
        Parameter name -> bool, True where it stays: `(channels,)` for scale and shift of every such batch
        norm, and where one layer feeds it and nothing else, `(out, 1, ...)` for that layer's weight and
        `(out,)` for its bias.

    Raises:
        AttachError: there is no batch norm with a scale.
        GraphError: the model cannot be traced.
        NumericError: a scale is NaN.
        OptionError: `ratio` is out of range.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3))
        >>> _ = model[1].weight.data.copy_(torch.tensor([0.5, -0.1, 0.9]))
        >>> masks = slimming_masks(model, torch.zeros(1, 1, 2, 2), 0.34)
        >>> {name: mask.flatten().tolist() for name, mask in masks.items()}
        {'1.weight': [True, False, True], '1.bias': [True, False, True], '0.weight': [True, False, True]}

    Paper: Liu et al. 2017 (1708.06519), section 3.
    """
    if not 0 <= ratio <= 1:
        raise OptionError(f"ratio = {ratio!r}: wanted a share from 0 to 1")
    model = unwrapped(model)
    graph = read(model, example)
    norms = {str(node.module): graph.module(str(node.module)) for node in graph.nodes if node.op == "norm"}
    affine = {name: norm for name, norm in norms.items() if isinstance(norm, nn.BatchNorm2d) and norm.affine}
    scales = {name: norm.weight.detach().abs() for name, norm in affine.items()}
    if not scales:
        raise AttachError(f"{type(model).__name__} has no nn.BatchNorm2d with a scale, whose channels could go")
    total = sum(scale.numel() for scale in scales.values())
    # 1e-9: a share such as 0.7 is a little below or above its decimal value
    counts = counts_of_largest(list(scales.values()), total - int(ratio * total + 1e-9))
    kept = {name: largest(scale, max(1, n)) for (name, scale), n in zip(scales.items(), counts, strict=True)}
    masks = {f"{name}.{part}": mask for name, mask in kept.items() for part in ("weight", "bias")}
    for layer, after in norm_of(graph).items():
        if after in kept and isinstance(graph.module(layer), nn.Conv2d):
            for part, parameter in graph.module(layer).named_parameters(recurse=False):
                masks[f"{layer}.{part}"] = kept[after].view(-1, *(1,) * (parameter.dim() - 1))
    return masks


def slim(model: nn.Module, example: Tensor, ratio: float, topology: Topology | None = None) -> Topology:
    """Remove the channels of the smallest batch-norm scales, and return what is left.

    Args:
        model: changed in place: what is gone is +0.0.
        example: see `slimming_masks`.
        ratio: see `slimming_masks`.
        topology: the connections so far, dense by default; edited in place.

    Raises:
        As `slimming_masks`; then nothing is changed.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
        >>> topology = slim(model, torch.zeros(1, 1, 2, 2), 0.5)
        >>> model[1].weight.tolist(), topology.density()
        ([1.0, 1.0, 0.0, 0.0], 0.5)

    Paper: Liu et al. 2017 (1708.06519), section 3.
    """
    masks = slimming_masks(model, example, ratio)
    topology = Topology() if topology is None else topology
    with topology.restored_on_error():
        for name, mask in masks.items():
            parameter = unwrapped(model).get_parameter(name)
            if name not in topology.masks:
                topology.add(name, tuple(parameter.shape), "unit", device=parameter.device)
            topology.edit({name: topology.masks[name] & mask})
        topology.apply(model)
    return topology
