import pickle
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synaptree.core.errors import NumericError
from synaptree.soft.kernel_strength import KernelStrengthConv2d

FORMS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "no bias": {"kernel_size": (1, 3), "bias": False},
    "1x1": {"kernel_size": 1},
    "strided, dilated": {"kernel_size": 2, "stride": 2, "dilation": 2},
    "grouped": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4},
    "reflecting": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "circular, same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    "same": {"kernel_size": 4, "padding": "same"},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@every_form
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_the_layer_is_the_convolution_bit_for_bit_and_so_is_the_way_back(form):
    conv, x = nn.Conv2d(4, 8, **form), torch.randn(2, 4, 9, 9)
    layer = KernelStrengthConv2d.from_conv(conv)
    assert torch.equal(layer.weight(), conv.weight)
    assert torch.equal(layer(x), conv(x))
    back = layer.to_conv()
    assert type(back) is nn.Conv2d
    assert repr(back) == repr(conv)
    assert torch.equal(back.weight, conv.weight)
    assert torch.equal(back(x), conv(x))
    assert back.weight.data_ptr() not in {p.data_ptr() for p in (*conv.parameters(), *layer.parameters())}


@given(st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_weights_of_any_size_come_back_bit_for_bit(seed, size):
    conv = nn.Conv2d(3, 4, 3)
    conv.weight.data = size * torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(KernelStrengthConv2d.from_conv(conv).weight(), conv.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_keep_their_type_and_nearly_their_weights(dtype):
    conv = nn.Conv2d(2, 2, 3).to(dtype)
    layer = KernelStrengthConv2d.from_conv(conv)
    assert layer.weight().dtype == dtype
    torch.testing.assert_close(layer.weight(), conv.weight)
    assert layer(torch.ones(1, 2, 4, 4, dtype=dtype)).dtype == dtype


def test_strengths_are_norms_and_a_1x1_kernel_is_its_strength():
    conv = nn.Conv2d(1, 2, (1, 2))
    conv.weight.data = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    layer = KernelStrengthConv2d.from_conv(conv)
    assert layer.strength.tolist() == [[5.0], [0.0]]
    assert layer.direction[1].tolist() == [[[1.0, 1.0]]]
    pointwise = KernelStrengthConv2d.from_conv(nn.Conv2d(3, 2, 1))
    assert pointwise.direction is None
    assert sorted(pointwise.state_dict()) == ["bias", "mask", "strength"]


def test_a_kernel_too_small_for_a_norm_counts_as_zero():
    conv = nn.Conv2d(1, 1, 3)
    conv.weight.data.fill_(1e-20)
    layer = KernelStrengthConv2d.from_conv(conv)
    assert layer.strength.item() == 0
    assert not layer.weight().any()


def test_gradients_are_those_of_the_equations():
    """ds = <G, u>, dv = (s / |v|) (G - <G, u> u), and dv is orthogonal to v."""
    conv = nn.Conv2d(2, 3, 3, bias=False).double()
    layer = KernelStrengthConv2d.from_conv(conv)
    with torch.no_grad():
        layer.strength.mul_(torch.tensor([[1.0, -2.0]], dtype=torch.float64))  # strengths may be negative
        layer.direction.mul_(3.0)  # and the length of a direction is free
    G = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    (layer.weight() * G).sum().backward()
    s, v = layer.strength.detach(), layer.direction.detach()
    length = v.flatten(2).norm(dim=2)
    u = v / length[:, :, None, None]
    along = (G * u).sum((2, 3))
    torch.testing.assert_close(layer.strength.grad, along)
    wanted = (s / length)[:, :, None, None] * (G - along[:, :, None, None] * u)
    torch.testing.assert_close(layer.direction.grad, wanted)
    assert (layer.direction.grad * v).sum((2, 3)).abs().max() < 1e-12


def test_a_kernel_that_does_not_exist_is_zero_and_gets_no_gradient():
    layer = KernelStrengthConv2d.from_conv(nn.Conv2d(2, 2, 3))
    layer.mask[0, 1] = False
    layer(torch.randn(1, 2, 4, 4)).sum().backward()
    assert not layer.weight()[0, 1].any()
    assert not layer.strength.grad[0, 1].any()
    assert not layer.direction.grad[0, 1].any()
    assert layer.strength.grad[1, 1].any()
    assert not layer.to_conv().weight[0, 1].any()


def test_scaling_a_row_leaves_convolution_and_batch_norm_as_they_are():
    layer, norm, x = KernelStrengthConv2d.from_conv(nn.Conv2d(3, 2, 3)), nn.BatchNorm2d(2, eps=1e-12), torch.randn(
        4, 3, 6, 6)  # fmt: skip
    before = norm(layer(x))
    with torch.no_grad():
        layer.strength[0] *= 7.0
    torch.testing.assert_close(norm(layer(x)), before)


def test_copies_pickles_and_state_dicts_hold_all_of_it():
    layer, other = (KernelStrengthConv2d.from_conv(nn.Conv2d(2, 3, 3)) for _ in range(2))
    layer.mask[1, 0] = False
    other.load_state_dict(layer.state_dict())
    for copy in (deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(copy.weight(), layer.weight())
        assert torch.equal(copy.mask, layer.mask)


def test_frozen_stays_frozen_and_modes_go_along():
    conv = nn.Conv2d(1, 1, 3).eval()
    conv.weight.requires_grad_(False)
    layer = KernelStrengthConv2d.from_conv(conv)
    assert [p.requires_grad for p in (layer.strength, layer.direction, layer.bias)] == [False, False, True]
    assert not layer.training
    assert not layer.to_conv().weight.requires_grad
    assert not layer.to_conv().training


def test_weights_that_are_not_finite_are_refused():
    conv = nn.Conv2d(1, 1, 3)
    conv.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(NumericError, match="is not finite"):
        KernelStrengthConv2d.from_conv(conv)


def test_autocast_computes_the_kernels_in_single_precision():
    conv, x = nn.Conv2d(2, 2, 3), torch.randn(1, 2, 4, 4)
    layer = KernelStrengthConv2d.from_conv(conv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight().dtype == torch.float32
        assert torch.equal(layer(x), conv(x))
