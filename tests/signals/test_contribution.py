import pytest
import torch
import torch.nn.functional as F
from torch import nn, tensor

from synaptree.core.errors import AttachError, OptionError
from synaptree.core.layer import layers_of, mask_shape
from synaptree.core.probe import Probe
from synaptree.core.signal import View
from synaptree.signals.contribution import AGGREGATES, contribution, kernel_norms, reductions

CONVOLVE = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
GEOMETRIES = [
    (nn.Conv1d, {}), (nn.Conv2d, {}), (nn.Conv3d, {}),
    (nn.Conv2d, {"stride": 2}), (nn.Conv2d, {"padding": 1}), (nn.Conv2d, {"stride": 2, "padding": 1}),
    (nn.Conv2d, {"padding": "same"}), (nn.Conv2d, {"padding": "valid", "dilation": 2}),
    (nn.Conv2d, {"padding": (2, 0), "stride": (1, 2), "dilation": (2, 1)}),
    (nn.Conv2d, {"groups": 2}), (nn.Conv2d, {"groups": 4, "padding": 1}), (nn.Conv1d, {"groups": 4, "padding": "same"}),
    (nn.Conv2d, {"padding": 1, "padding_mode": "circular"}), (nn.Conv3d, {"padding": 1, "padding_mode": "circular"}),
    (nn.Conv1d, {"padding": 2, "padding_mode": "replicate"}),
    (nn.Conv2d, {"padding": "same", "padding_mode": "reflect"}),
]  # fmt: skip


def scores(layer, x, aggregate, role="weight", cut=100):
    """Return what the signal says of a layer after it has seen the samples `x`, in batches of `cut`."""
    with Probe((layer,), reductions(aggregate)) as probe, torch.no_grad():
        for batch in x.split(cut):
            layer.module(batch)
    values = getattr(layer.module, role).detach()
    shape = mask_shape(tuple(values.shape), "kernel") if role == "weight" else values.shape
    mask = torch.ones(shape, dtype=torch.bool)
    view = View(layer, role, values, None, mask, 0, torch.Generator(), probe.means(layer.name))
    return contribution(aggregate).read({}, view)


def literally(module, x, aggregate):
    """Return the contributions of a convolution, each from a convolution of its own."""

    def flow(kernel, maps):
        """Convolve `(samples, *map)` with one kernel."""
        kernel, maps, padding = kernel[None, None], maps[:, None], module.padding
        if module.padding_mode != "zeros":
            maps, padding = F.pad(maps, module._reversed_padding_repeated_twice, module.padding_mode), 0
        return CONVOLVE[type(module)](maps, kernel, None, module.stride, padding, module.dilation).flatten(1)

    x, out = x.abs().double(), torch.zeros(*module.weight.shape[:2], dtype=torch.float64)
    per_group = len(module.weight) // module.groups
    for o, filters in enumerate(module.weight.detach().abs().double()):
        for i, kernel in enumerate(filters):
            maps = x[:, o // per_group * len(filters) + i]
            if aggregate == "mean_of_norm":
                out[o, i] = flow(kernel, maps).norm(dim=1).mean()
            else:
                out[o, i] = flow(kernel, maps.mean(0, keepdim=True)).norm(p=1 if aggregate == "l1" else 2)
    return out.float().view(mask_shape(tuple(module.weight.shape), "kernel"))


def convolution(kind, options, dtype=torch.float32):
    module = kind(4, 8, 3, **options).to(dtype)
    x = torch.randn(5, 4, *(7, 6, 5)[: module.weight.dim() - 2]).to(dtype)
    (layer,) = layers_of(module)
    return layer, x


def test_a_connection_carries_the_mean_of_its_absolute_products():
    layer, x = layers_of(nn.Linear(3, 2))[0], torch.randn(7, 3)
    products = layer.module.weight.detach() * x[:, None, :]
    torch.testing.assert_close(scores(layer, x, "norm_of_mean"), products.abs().mean(0), rtol=1e-6, atol=0)
    assert torch.equal(scores(layer, x, "norm_of_mean", "bias"), layer.module.bias.detach().abs())


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(("kind", "options"), GEOMETRIES, ids=str)
def test_a_kernel_carries_what_its_own_convolution_of_absolute_values_gives(kind, options, aggregate):
    layer, x = convolution(kind, options)
    wanted = literally(layer.module, x, aggregate)
    torch.testing.assert_close(scores(layer, x, aggregate), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}])
def test_the_bias_of_a_convolution_counts_at_every_position(options, aggregate):
    layer, x = convolution(nn.Conv2d, options)
    positions = layer.module(x)[0, 0].numel()
    weight = positions if aggregate == "l1" else positions**0.5
    torch.testing.assert_close(scores(layer, x, aggregate, "bias"), layer.module.bias.detach().abs() * weight)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_contributions_do_not_depend_on_how_samples_were_cut(aggregate):
    layer, x = convolution(nn.Conv2d, {"padding": 1})
    whole, cut = scores(layer, x, aggregate), scores(layer, x, aggregate, cut=2)
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.01), (torch.float64, 1e-6)])
def test_networks_may_have_any_precision(dtype, tolerance, aggregate):
    layer, x = convolution(nn.Conv2d, {}, dtype)
    wanted = literally(layer.module, x, aggregate)
    torch.testing.assert_close(scores(layer, x, aggregate).float(), wanted, rtol=tolerance, atol=0)


def test_by_hand():
    module = nn.Conv2d(1, 1, (1, 2), bias=False)
    module.weight.data = tensor([[[[1.0, -2.0]]]])
    (layer,) = layers_of(module)
    x = tensor([1.0, 0.0, -1.0, 0.0, 2.0, 3.0]).view(2, 1, 1, 3)
    # mean map .5 1 2: its convolution 2.5 5; sample by sample 1 2 and 4 8
    assert kernel_norms(layer, tensor([0.5, 1.0, 2.0]).view(1, 1, 3)).item() == pytest.approx(31.25**0.5)
    assert scores(layer, x, "l1").item() == 7.5
    assert scores(layer, x, "mean_of_norm").item() == pytest.approx((5**0.5 + 80**0.5) / 2)


def test_without_statistics_contributions_are_refused():
    layer = layers_of(nn.Linear(2, 1))[0]
    view = View(layer, "weight", layer.module.weight, None, torch.ones(1, 2).bool(), 0, torch.Generator(), {})
    with pytest.raises(AttachError, match="nothing is known of what flows into"):
        contribution().read({}, view)


def test_an_unknown_aggregate_is_named():
    with pytest.raises(OptionError, match="unknown conv_aggregate 'mean_norm'; did you mean"):
        contribution("mean_norm")
