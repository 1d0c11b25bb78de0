import pytest
import torch
from torch import nn
from toy_networks import NETWORKS, X, chain, conv, grouped, jumbled, preactivation, resnet

from synaptree.core.attach import attach
from synaptree.core.errors import AttachError, NumericError, OptionError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.soft.network_slimming import slim, slimming_masks

NORMS = [name for name in NETWORKS if name != "Inception"]


def two_norms(first, second):
    model = nn.Sequential(conv(2, len(first), 1), nn.BatchNorm2d(len(first)), nn.ReLU(),
                          conv(len(first), len(second), 1, bias=False), nn.BatchNorm2d(len(second)))  # fmt: skip
    model[1].weight.data, model[4].weight.data = torch.tensor(first), torch.tensor(second)
    return model


def test_the_smallest_scales_of_all_norms_go_whatever_their_sign():
    """6 channels by |gamma|: .9 .8 .7 | .3 .2 .1; half go, with filter and bias."""
    masks = slimming_masks(two_norms([0.9, -0.1, 0.2], [0.3, -0.8, 0.7]), X, 0.5)
    assert {name: mask.flatten().tolist() for name, mask in masks.items()} == {
        "0.weight": [True, False, False], "0.bias": [True, False, False],
        "1.weight": [True, False, False], "1.bias": [True, False, False],
        "3.weight": [False, True, True], "4.weight": [False, True, True], "4.bias": [False, True, True],
    }  # fmt: skip
    assert masks["0.weight"].shape == (3, 1, 1, 1)


def test_of_equal_scales_the_first_stay_and_each_norm_keeps_one():
    """Half of 6 equals: the first three. Nine tenths: 5 go, the best of the second norm stays."""
    model = two_norms([1.0, 1.0, -1.0], [1.0, 1.0, 1.0])
    masks = slimming_masks(model, X, 0.5)
    assert masks["1.weight"].tolist() == [True, True, True]
    assert masks["4.weight"].tolist() == [True, False, False]
    everything = slimming_masks(two_norms([2.0, 3.0], [0.1, 0.2]), X, 1.0)
    assert everything["1.weight"].tolist() == everything["4.weight"].tolist() == [False, True]


@pytest.mark.parametrize("make", [NETWORKS[name] for name in NORMS], ids=NORMS)
def test_channels_without_scale_and_shift_go_without_a_trace(make):
    model = jumbled(make())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[:2] = 0.0
                module.bias[:2] = 0.0
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = model(X)
    topology = slim(model, X, 2 * len(norms) / sum(m.num_features for m in norms.values()))
    assert torch.equal(model(X), before)
    for name in norms:
        assert not topology.masks[f"{name}.weight"][:2].any()
    assert all(int((~mask).sum()) == 2 for mask in topology.masks.values())


def test_a_norm_that_reads_what_others_read_loses_only_its_own_channel():
    masks = slimming_masks(preactivation(), X, 0.5)
    assert set(masks) == {
        "1.bn1.weight", "1.bn1.bias", "1.bn2.weight", "1.bn2.bias", "2.weight", "2.bias",
        "1.conv1.weight", "1.conv1.bias",
    }  # fmt: skip


def test_what_is_gone_stays_gone_while_finetuning():
    model = jumbled(resnet()).train()
    topology = slim(model, X, 0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attached = attach(model, optimizer, topology=topology)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    for name, parameter in attached.finish().parameters(model):
        dead = ~topology.expanded(name)
        assert not parameter[dead].any()
    assert not all(topology.masks["4.bn1.weight"]) or not all(topology.masks["3.bn1.weight"])


def test_masks_of_single_kernels_and_of_channels_go_together():
    model = grouped()
    topology = Topology.of(layers_of(model, ["conv"]), {"conv": "kernel"})
    kernels = torch.rand(6, 2, 1, 1) < 0.5
    topology.edit({"3.weight": kernels})
    nn.init.normal_(model[4].weight)
    slim(model, X, 0.5, topology)
    channels = topology.masks["4.weight"].view(6, 1, 1, 1)
    assert torch.equal(topology.masks["3.weight"], kernels & channels)
    assert not channels.all()


def test_what_cannot_be_slimmed_is_refused_and_left_alone():
    with pytest.raises(AttachError, match=r"has no nn\.BatchNorm2d with a scale"):
        slim(nn.Sequential(conv(2, 2), nn.BatchNorm2d(2, affine=False)), X, 0.5)
    model = chain()
    with pytest.raises(OptionError, match=r"ratio = 1\.5: wanted a share from 0 to 1"):
        slim(model, X, 1.5)
    model[1].weight.data[0] = torch.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NumericError, match="holds NaN"):
        slim(model, X, 0.5)
    assert all(torch.allclose(v, before[name], equal_nan=True) for name, v in model.state_dict().items())
