"""Kernel norm: the weakest kernels of the whole network go; the control of synaptic strength."""

from synaptree.core.layer import KINDS, modules_of, unwrapped
from synaptree.core.method import Method, Site, method
from synaptree.core.signal import magnitude
from synaptree.graph.read import read
from synaptree.graph.scale import Sources, input_norms, input_scale
from synaptree.rules.threshold import Threshold
from synaptree.signals.kernel import scaled_kernel

__all__ = ["kernel_norm"]


@method
def kernel_norm(cut: float = 0.9, floor: float = 0.01, gamma: bool = False) -> Method:
    """Cut the convolution kernels with the smallest norm, of the whole network first the weakest.

    Rule: kernel `k[i, j]` from map `j` to map `i` scores `||k[i, j]||_F`, or `|gamma[j]| ||k[i, j]||_F`
    with the scale `gamma[j]` of the batch norm that map `j` comes from. Of the `n` existing kernels of
    all convolutions `floor(cut n)` with the smallest score go. Biases and linear layers stay.

    Args:
        cut: share in [0, 1] of the existing kernels that goes at each call.
        floor: share in [0, 1] of its kernels that each layer keeps in any case, its best.
        gamma: whether the scale counts; needs calibration data, of which one sample is run to trace the
            network. Maps that come from no batch norm, as after a sum, have the scale 1.

    When to use it: as the control of learnt strengths, best after training with the kernel group lasso
    (`soft.penalty.penalise`, kind "group_lasso"). When not: after training without a penalty, where the
    widest layers, whose kernels are small, are cut away first.
    Paper: Mao et al. 2017 (1705.08922) prune at the granularity of kernels, by the sum of their absolute
    weights; the score with gamma is how Lin, Zhong, Wu and Yan 2018 (1811.02454) define the strength of
    an ordinary network, in our reading.
    Differs: the 2-norm, one threshold for the whole network, and a floor per layer. An exact count is
    met, but for the floor, and ties go to the lowest index.
    """
    rule, granularity = Threshold(cut=cut, floor=floor), {"conv": "kernel"}
    if not gamma:
        return Method(rule, {"keep": magnitude}, granularity=granularity)
    return Method(rule, {"keep": scaled_kernel}, granularity=granularity, edit=_by_scaled_norm)


def _by_scaled_norm(on: Site) -> None:
    modules, norms, stats = dict(modules_of(on.model)), _norms(on), {}
    for layer in on.layers:
        scale = input_scale(layer.module, norms.get(layer.name, {}), modules)
        stats[layer.name] = {"scale": scale.view(on.topology.masks[layer.weight].shape)}
    on.edit(on.masks(on.layers, stats))


def _norms(on: Site) -> dict[str, Sources]:
    model = unwrapped(on.model)
    if isinstance(model, KINDS["conv"]):
        return {}  # a single layer, which reads the input
    return input_norms(read(model, on.inputs[0][:1].to(next(model.parameters()).device)))
