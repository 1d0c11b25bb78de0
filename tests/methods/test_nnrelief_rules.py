"""NNrelief's residual rule, sweeps, masks in training and complaints, on networks small enough to check by hand."""

import logging
import weakref
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synaptree.core.attach import attach
from synaptree.core.errors import DataError, NumericError, OptionError
from synaptree.core.oneshot import prune
from synaptree.graph.shortcut import Shortcut
from synaptree.methods import nnrelief
from synaptree.surgery.shortcuts import expose_shortcuts


class Sum(nn.Module):
    """A residual sum of a convolution with batch norm and a skip (the input itself by default)."""

    def __init__(self, channels=3, skip=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        if skip is not None:
            self.skip = skip

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)) + (self.skip(x) if hasattr(self, "skip") else x))


class Bottle(nn.Module):
    """A body, the mean over each map, and a linear head."""

    def __init__(self, body, channels=3):
        super().__init__()
        self.body, self.fc = body, nn.Linear(channels, 2)
        nn.init.ones_(self.fc.weight)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def uneven(skip=None):
    """Branch against skip: a thousandth, a thousand times, alike."""
    net = Bottle(Sum(skip=skip))
    with torch.no_grad():
        net.body.conv.weight.copy_(torch.tensor([0.001, 1000.0, 1.0]).diag()[..., None, None])
    return net, torch.rand(8, 3, 4, 4) + 0.5


def alive(topology, name):
    return topology.masks[name].flatten(1).any(1).tolist() if name.endswith("weight") else topology.masks[name].tolist()


def test_of_a_residual_sum_the_outweighed_side_goes():
    net, x = uneven(Shortcut(3))
    topology = prune(net, nnrelief(alpha_fc=1.0), x)
    assert alive(topology, "body.conv.weight") == [False, True, True]
    assert alive(topology, "body.skip.scale") == [True, False, True]
    assert topology.masks["body.bn.weight"].tolist() == [False, True, True]
    assert not topology.notes


@pytest.mark.parametrize(("dead_bn", "variance"), [("zero", 1.0), ("released", 0.0)])
def test_the_batch_norm_of_a_dead_unit_is_zeroed_and_stays_so_unless_as_released(dead_bn, variance):
    net = Bottle(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()))
    nn.init.constant_(net.body[1].running_mean, 0.5)
    net.body[1].bias.data[1] = -100
    topology = prune(net, nnrelief(dead_bn=dead_bn), torch.randn(8, 3, 4, 4))
    assert not topology.masks["body.0.weight"][1].any()
    assert not topology.masks["body.0.bias"][1]
    bn = net.body[1]
    assert [t[1].item() for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)] == [0, 0, 0, variance]
    assert ("body.1.weight" in topology.masks) == (dead_bn == "zero")


def test_without_shortcut_modules_half_of_the_rule_is_off_until_they_are_exposed(caplog):
    net, x = uneven()
    exposed = expose_shortcuts(net, x)
    with caplog.at_level(logging.WARNING, "synaptree"):
        topology = prune(net, nnrelief(alpha_fc=1.0), x)
    assert alive(topology, "body.conv.weight") == [False, True, True]
    assert "cannot be cut" in topology.notes[0]
    assert "expose_shortcuts" in caplog.text
    topology = prune(exposed, nnrelief(alpha_fc=1.0), x)
    (scale,) = [name for name in topology.masks if name.endswith("scale")]
    assert alive(topology, "body.conv.weight") == [False, True, True]
    assert alive(topology, scale) == [True, False, True]
    assert not topology.notes


def test_a_projection_is_pruned_as_a_convolution_only():
    projection = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
    net, x = uneven(projection)
    nn.init.dirac_(projection[0].weight)
    topology = prune(net, nnrelief(alpha_fc=1.0), x)
    assert alive(topology, "body.conv.weight") == [False, True, True]
    assert alive(topology, "body.skip.0.weight") == [True, True, True]
    assert topology.masks["body.bn.bias"].tolist() == [False, True, True]
    assert not topology.notes


def test_a_sum_of_linear_layers_goes_by_the_share_of_linear_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.skip, self.head = nn.Linear(3, 3, bias=False), Shortcut(3), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.fc(x) + self.skip(x))

    net = Block()
    net.fc.weight.data.copy_(torch.tensor([0.1, 10.0, 1.0]).diag())
    net.head.weight.data.copy_(torch.tensor([[10.0, 1.0, 5.0]]))
    x = torch.rand(9, 3) + 0.5
    assert prune(deepcopy(net), nnrelief(0.5, 0.95), x).masks["fc.weight"].any(1).tolist() == [True] * 3
    topology = prune(net, nnrelief(0.95, 0.85), x)
    assert topology.masks["fc.weight"].any(1).tolist() == [False, True, True]
    assert topology.masks["skip.scale"].tolist() == [True, False, True]


def test_the_sweep_runs_from_the_output_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    for module, weight in zip(net[::2], ([[1, 1], [1, 1]], [[1, 0], [1, 1]], [[1, 0]]), strict=True):
        module.weight.data.copy_(torch.tensor(weight))
        module.bias.data.fill_(0.5)
    unswept = prune(deepcopy(net), nnrelief(1.0, 1.0, backward_sweep=False), torch.ones(2, 2))
    assert unswept.masks["0.weight"].all()
    assert unswept.masks["2.weight"].tolist() == [[True, False], [True, True]]
    topology = prune(net, nnrelief(1.0, 1.0), torch.ones(2, 2))
    assert topology.masks["4.weight"].tolist() == [[True, False]]
    assert topology.masks["2.weight"].tolist() == [[True, False], [False, False]]
    assert topology.masks["2.bias"].tolist() == topology.masks["0.bias"].tolist() == [True, False]
    assert topology.masks["0.weight"].tolist() == [[True, True], [False, False]]


def test_the_sweep_reads_a_shortcut_of_option_a_by_its_middle_slice():
    # channels 1 and 2 of the sum carry stem channels 0 and 1; the head reads channels 0 and 2 only
    net = Bottle(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), Shortcut(2, 4)), channels=4)
    with torch.no_grad():
        net.fc.weight.copy_(torch.tensor([[1.0, 0, 1, 0], [1, 0, 1, 0]]))
        net.body[0].bias.fill_(5.0)
    topology = prune(net, nnrelief(1.0, 1.0), torch.rand(4, 2, 3, 3))
    assert topology.masks["body.2.scale"].tolist() == [False, False, True, False]
    assert topology.masks["body.0.weight"].flatten(1).any(1).tolist() == [False, True]


@pytest.mark.parametrize("make", [
    lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4),
], ids=["adam", "sgd"])
def test_nothing_dead_comes_back_in_retraining(make):
    net = Bottle(nn.Sequential(Sum(6, Shortcut(6)), Sum(6, Shortcut(6))), channels=6)
    x, y = torch.randn(32, 6, 4, 4), torch.randint(2, (32,))
    topology, dead = None, {}
    for _ in range(3):
        topology = prune(net, nnrelief(0.8, 0.8), x, topology=topology)
        assert not any((topology.masks[name] & gone).any() for name, gone in dead.items())
        dead = {name: ~mask for name, mask in topology.masks.items()}
        optimizer = make(net.parameters())
        attached = attach(net, optimizer, topology=topology)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            assert all((p[dead[name].expand_as(p)] == 0).all() for name, p in net.named_parameters() if name in dead)
        attached.finish()
    assert topology.density() < 0.7


def test_a_network_that_cannot_be_traced_is_pruned_without_the_rules_that_need_its_graph(caplog):
    class Deciding(Bottle):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    net, x = uneven(Shortcut(3))
    deciding = Deciding(deepcopy(net.body))
    deciding.load_state_dict(net.state_dict())
    topology = prune(net, nnrelief(residual_rule=False, backward_sweep=False), x)
    assert not topology.notes
    with caplog.at_level(logging.WARNING, "synaptree"):
        blind = prune(deciding, nnrelief(), x)
    assert blind.digest() == topology.digest()
    assert "without dead-unit sweeps and without the rule for residual sums" in blind.notes[0]
    assert blind.notes[0] in caplog.text


@pytest.mark.parametrize("exclude", [[], ["stem"]])
def test_the_stem_is_the_convolution_that_runs_first(exclude):
    class NamedLast(Bottle):
        def __init__(self):
            super().__init__(Sum(skip=Shortcut(3)))
            self.stem = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return super().forward(self.stem(x))

    topology = prune(NamedLast(), nnrelief(0.3, prune_stem=False), torch.randn(8, 3, 4, 4), exclude=exclude)
    assert topology.density("body.conv.weight") < 1
    if not exclude:
        assert topology.density("stem.weight") == 1


@pytest.mark.parametrize("around", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_what_stands_around_a_network_changes_nothing(around):
    net, x = uneven(Shortcut(3))
    topology = prune(around(deepcopy(net)), nnrelief(mask_shortcut_in_scoring=False), x)
    assert topology.digest() == prune(net, nnrelief(mask_shortcut_in_scoring=False), x).digest()
    assert "body.skip.scale" in topology.masks
    assert not topology.notes


@pytest.mark.parametrize("options", [
    {"alpha_conv": 0.0}, {"alpha_fc": 1.01}, {"alpha_conv": float("nan")}, {"conv_aggregate": "l2"},
    {"keep_rule": "papers"}, {"dead_bn": "zeros"}, {"alpha": 0.9},
], ids=str)
def test_an_option_out_of_range_is_named(options):
    ((name, value),) = options.items()
    said = name if name == "alpha" else str(value)
    with pytest.raises(OptionError, match=said):
        nnrelief(**options)


@pytest.mark.parametrize("broken", ["data", "body.conv.weight", "fc.weight", "fc.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_and_nothing_changes(broken, value):
    net, x = uneven(Shortcut(3))
    with torch.no_grad():
        (x if broken == "data" else net.get_parameter(broken)).view(-1)[3 if broken != "fc.bias" else 0] = value
    before = deepcopy(net.state_dict())
    named = "body.conv" if broken == "data" else broken.rpartition(".")[0]
    with pytest.raises(NumericError, match=named):
        prune(net, nnrelief(alpha_fc=1.0), x)
    assert all(torch.equal(v.nan_to_num(9), before[name].nan_to_num(9)) for name, v in net.state_dict().items())


@pytest.mark.parametrize("conv_aggregate", ["norm_of_mean", "mean_of_norm"])
def test_calibration_never_holds_the_activations_of_two_batches(conv_aggregate):
    net = Bottle(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), Sum(3, Shortcut(3)), Sum(3, Shortcut(3))))
    first, *others = [module for module in net.modules() if not list(module.children())]
    inputs, held = [], []
    first.register_forward_pre_hook(lambda *_: held.append(sum(ref() is not None for ref in inputs)))
    for module in others:
        module.register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])))
    prune(net, nnrelief(conv_aggregate=conv_aggregate), torch.randn(40, 3, 4, 4).split(10))
    assert len(inputs) > 2 * 4 * len(others)
    assert set(held) == {0}


def test_a_layer_that_nothing_flows_through_is_left_alone_and_named():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    topology = prune(Unused(), nnrelief(alpha_fc=0.5), torch.rand(8, 4))
    assert topology.density("idle.weight") == 1.0
    assert topology.density("fc.weight") < 1.0
    assert topology.notes == ["left alone, since nothing flows through them: idle"]


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(8, 3), (20, 8)), (nn.Conv2d(4, 3, 3), (20, 4, 5, 5))], ids=str)
def test_a_network_of_one_layer_is_pruned_like_any_other(layer, shape, caplog):
    x, inside = torch.rand(shape), nn.Sequential(deepcopy(layer))
    alone = prune(layer, nnrelief(0.5, 0.5), x)
    assert alone.density() < 0.8
    assert torch.equal(alone.masks["weight"], prune(inside, nnrelief(0.5, 0.5), x).masks["0.weight"])
    assert not alone.notes
    assert not caplog.text


def test_dead_units_are_swept_also_in_a_network_that_calls_its_part_module():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

        def forward(self, x):
            return self.module(x)

    net = Named()
    net.module[2].weight.data[:, 0] = 0
    topology = prune(net, nnrelief(alpha_fc=0.9), torch.rand(20, 4))
    assert list(topology.masks) == ["module.0.weight", "module.0.bias", "module.2.weight", "module.2.bias"]
    assert not topology.masks["module.0.weight"][0].any()
    assert topology.masks["module.0.weight"].any()


@pytest.mark.parametrize("x", [torch.rand(5, 3), torch.zeros(5, 4, dtype=torch.uint8)])
def test_data_that_the_network_does_not_take_are_not_blamed_on_its_graph(x, caplog):
    with pytest.raises(DataError, match="batch 0 of the calibration data, of shape"):
        prune(nn.Sequential(nn.Linear(4, 4)), nnrelief(), x)
    assert not caplog.text


def test_layers_called_by_keyword_are_pruned():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(input=x)

    topology = prune(Keyword(), nnrelief(alpha_fc=0.5), torch.rand(4, 4))
    assert topology.density() < 0.8
    assert not topology.notes
