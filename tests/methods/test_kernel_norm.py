import pytest
import torch
from torch import nn

from synaptree.core.errors import AttachError, OptionError
from synaptree.core.oneshot import prune
from synaptree.graph.node import GraphError
from synaptree.methods import build
from synaptree.train.zoo import build as network

X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def scaled():
    """Kernels of norm 4, 3, 2, 1 that read maps of scales 1 and -5: 4, 15, 2, 5."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    model[1].weight.data = torch.tensor([1.0, -5.0])
    model[3].weight.data = torch.tensor([4.0, -3.0, 2.0, -1.0]).view(2, 2, 1, 1)
    return model


@pytest.mark.parametrize(("gamma", "wanted"), [(False, [[1, 1], [0, 0]]), (True, [[0, 1], [0, 1]])])
def test_gamma_weighs_a_kernel_by_what_it_reads(gamma, wanted):
    model = scaled()
    topology = prune(model, build("kernel_norm", cut=0.5, floor=0.0, gamma=gamma), X, exclude=["0"])
    assert topology.masks["3.weight"].flatten(1).int().tolist() == wanted
    assert model[3].weight.ne(0).flatten(1).int().tolist() == wanted


def test_a_grouped_convolution_is_weighed_group_by_group():
    """Filter 0 reads map 0 of scale 1, filter 1 map 1 of scale 3: 2 * 1 < 1 * 3."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1, groups=2))
    model[1].weight.data = torch.tensor([1.0, 3.0])
    model[2].weight.data = torch.tensor([2.0, 1.0]).view(2, 1, 1, 1)
    topology = prune(model, build("kernel_norm", cut=0.5, floor=0.0, gamma=True), X, exclude=["0"])
    assert topology.masks["2.weight"].flatten().tolist() == [False, True]


@pytest.mark.parametrize("gamma", [False, True])
def test_the_share_of_the_zoos_networks_is_exact_but_for_the_floor(gamma):
    model, x = network("resnet20"), torch.randn(1, 3, 32, 32)
    topology = prune(model, build("kernel_norm", cut=0.75, floor=0.0, gamma=gamma), x)
    total = sum(mask.numel() for mask in topology.masks.values())
    assert sum(int(mask.sum()) for mask in topology.masks.values()) == total - int(0.75 * total)


def test_a_single_layer_and_batches_in_pairs_will_do():
    conv = nn.Conv2d(1, 4, 1)
    assert prune(conv, build("kernel_norm", cut=0.5, gamma=True), [(X, torch.zeros(2))]).density() == 0.5


def test_gamma_wants_data_and_a_network_that_can_be_traced():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(AttachError, match="needs data to calibrate on"):
        prune(scaled(), build("kernel_norm", gamma=True))
    model = Decides()
    before = model.conv.weight.clone()
    with pytest.raises(GraphError, match=r"cannot trace Decides\.forward"):
        prune(model, build("kernel_norm", gamma=True), X)
    assert torch.equal(model.conv.weight, before)
    assert prune(model, build("kernel_norm", cut=0.0)).density() == 1.0


@pytest.mark.parametrize(("option", "value"), [("cut", 1.5), ("floor", -0.1)])
def test_a_share_out_of_range_is_refused(option, value):
    with pytest.raises(OptionError, match=f"{option} = {value}"):
        build("kernel_norm", **{option: value})
