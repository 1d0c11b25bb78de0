"""NNrelief against the same method written out unit by unit."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from literal_nnrelief import all_kept, conv_importances, fc_importances, kept, prune_pass
from torch import nn

from synaptree.core.attach import views_of
from synaptree.core.layer import layers_of
from synaptree.core.oneshot import prune
from synaptree.core.probe import Probe
from synaptree.core.topology import Topology
from synaptree.methods import nnrelief
from synaptree.rules.share import carrying
from synaptree.signals.contribution import AGGREGATES, contribution, reductions
from synaptree.train import zoo

RULES = ("paper", "released")
RELEASED = {
    "keep_rule": "released", "prune_stem": False, "mask_shortcut_in_scoring": False, "dead_bn": "released",
}


def zoo_net(name, monkeypatch):
    """A network of the zoo, the deep ones narrowed, in float64, with dead units and uneven residual sums."""
    monkeypatch.setattr(zoo, "_RESNET_WIDTHS", (4, 8, 16))
    monkeypatch.setattr(zoo, "_VGG_WIDTHS", (4, 4, 6, 6, 8))
    net = zoo.build(name, seed=1).double()
    shape = (3, 8, 8) if name == "resnet20" else zoo.MODELS[name].input_shape
    x = torch.randn(6, *shape, dtype=torch.float64)
    x.flatten(1)[:, ::7] = 0  # always black pixels
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
            module.bias.data[0] -= 50.0 * (module.weight.shape[0] > 10)  # never gives anything
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.weight.data[1] *= 0.01  # outweighed, where it is the branch of a sum
            module.bias.data[2] -= 50.0
    return net, x


@torch.no_grad()
def retrained(net, topology):
    """Move every survivor a little, as retraining would."""
    for p in net.parameters():
        if p.requires_grad:
            p.add_(0.1 * torch.randn_like(p))
    topology.apply(net)


def passes_agree(net, x, passes, retrain=False, **options):
    twin, masks, topology = deepcopy(net), all_kept(net), None
    for _ in range(passes):
        topology = prune(net, nnrelief(**options), x.split(4), topology=topology)
        before, masks = masks, prune_pass(twin, masks, x, **options)
        assert any(not torch.equal(masks[name], before[name]) for name in masks)
        for name, mask in masks.items():
            assert torch.equal(topology.masks.get(name, torch.ones_like(mask)), mask), name
            assert not (mask & ~before[name]).any(), name
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, msg=name)
        if retrain:
            retrained(net, topology)
            twin.load_state_dict(net.state_dict())
    return masks


SLOW_RESNET = pytest.param("resnet20", marks=pytest.mark.slow)


@pytest.mark.parametrize("keep_rule", RULES)
@pytest.mark.parametrize("conv_aggregate", AGGREGATES)
@pytest.mark.parametrize("name", ["lenet5", "vgg_like", SLOW_RESNET])
def test_passes_equal_the_literal_ones(name, conv_aggregate, keep_rule, monkeypatch):
    net, x = zoo_net(name, monkeypatch)
    passes_agree(net, x, 2, retrain=True, alpha_conv=0.9, conv_aggregate=conv_aggregate, keep_rule=keep_rule)


@pytest.mark.parametrize("keep_rule", RULES)
def test_fully_connected_passes_equal_the_literal_ones(keep_rule, monkeypatch):
    net, x = zoo_net("lenet_300_100", monkeypatch)
    passes_agree(net, x, 3, keep_rule=keep_rule)


@pytest.mark.parametrize(("name", "passes", "options"), [
    ("lenet5", 3, {"conv_aggregate": "l1"}), ("vgg_like", 2, {}),
    pytest.param("resnet20", 2, {"alpha_conv": 0.8}, marks=pytest.mark.slow),
])
def test_the_released_pass_equals_the_literal_one(name, passes, options, monkeypatch):
    net, x = zoo_net(name, monkeypatch)
    passes_agree(net, x, passes, retrain=name != "lenet5", **RELEASED, **options)


@pytest.mark.slow
@pytest.mark.parametrize("off", [
    {"prune_stem": False}, {"mask_shortcut_in_scoring": False}, {"residual_rule": False}, {"backward_sweep": False},
    {"dead_bn": "released"},
])
def test_each_switch_changes_what_the_literal_one_changes(off, monkeypatch):
    net, x = zoo_net("resnet20", monkeypatch)
    options = {"alpha_conv": 0.7, "alpha_fc": 0.6}
    switched = passes_agree(deepcopy(net), x, 2, retrain=True, **options, **off)
    torch.manual_seed(0)
    whole = passes_agree(net, x, 2, retrain=True, **options)
    assert any(not torch.equal(switched[name], whole[name]) for name in whole)


def contributions(module, x, aggregate="norm_of_mean"):
    (layer,) = layers_of(nn.Sequential(module))
    with Probe((layer,), reductions(aggregate)) as probe, torch.no_grad():
        for part in x.split(3):
            module(part)
    topology = Topology.of((layer,), {"linear": "weight", "conv": "kernel"}, biases=True)
    views = views_of((layer,), topology, stats={layer.name: probe.means(layer.name)})
    weight, bias = (contribution(aggregate).read({}, views[name]) for name in (layer.weight, layer.bias))
    return torch.cat([weight.flatten(1), bias[:, None]], 1)


def test_a_weight_contributes_its_mean_absolute_signal():
    fc, x = nn.Linear(5, 4).double(), torch.randn(7, 5, dtype=torch.float64)
    with torch.no_grad():
        literal = torch.stack([fc_importances(x, fc.weight, fc.bias, unit) for unit in range(4)])
    torch.testing.assert_close(contributions(fc, x), literal)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("options", [
    {}, {"padding": 1}, {"stride": 2}, {"stride": 2, "padding": 1, "dilation": 2}, {"groups": 2}, {"groups": 4},
    {"padding": 2, "padding_mode": "circular"}, {"padding": "same", "padding_mode": "reflect"},
], ids=str)
@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d])
def test_a_kernel_contributes_what_its_own_convolution_gives(conv, options, aggregate):
    module = conv(4, 4, 3, **options).double()
    x = torch.randn(5, 4, *(7,) * (module.weight.dim() - 2), dtype=torch.float64)
    with torch.no_grad():
        literal = torch.stack([conv_importances(x, module, unit, aggregate) for unit in range(4)])
    torch.testing.assert_close(contributions(module, x, aggregate), literal, rtol=1e-6, atol=0)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=7), st.sampled_from([0.25, 0.5, 0.75, 0.95, 1.0]))
def test_a_unit_keeps_the_fewest_inputs_that_carry_alpha(numbers, alpha):
    row = torch.tensor(numbers, dtype=torch.float64)
    paper = carrying(row[None], alpha)[0]
    assert torch.equal(paper, kept(row, alpha))
    assert torch.equal(carrying(row[None], alpha, "released")[0], kept(row, alpha, "released"))
    assert row[paper].sum() >= alpha * row.sum()
    if paper.any():
        assert row[paper].sum() - row[paper].min() < alpha * row.sum()


@pytest.mark.parametrize(("row", "paper", "released"), [
    ([0.5, 0.3, 0.2], 3, 2), ([0.4, 0.3, 0.3], 3, 1), ([1.0, 1.0, 1.0], 3, 0), ([0.0, 0.0, 0.0], 0, 0),
])
def test_the_published_code_drops_one_more(row, paper, released):
    counts = [int(carrying(torch.tensor([row]), 0.95, rule).sum()) for rule in RULES]
    assert counts == [paper, released]


@pytest.mark.parametrize("keep_rule", RULES)
def test_units_with_one_input_are_exempt(keep_rule):
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.Flatten(), nn.Linear(3, 1), nn.Linear(1, 4, bias=False)
    )
    topology = prune(net, nnrelief(0.5, 1.0, keep_rule=keep_rule), torch.randn(5, 3, 3, 3))
    assert topology.masks["0.weight"].all()
    assert topology.masks["3.weight"].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_half_precision_networks_are_scored_in_single_precision(dtype, aggregate):
    net = nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 2)).to(dtype)
    x = (torch.randn(400, 4, 4, 4) * 400).to(dtype)
    method = nnrelief(0.8, 0.8, aggregate)
    single = prune(deepcopy(net).float(), method, x.float()).masks["0.weight"]
    assert torch.equal(prune(net, method, x).masks["0.weight"], single)
    assert net[0].weight.dtype == dtype


class Net(nn.Module):
    """Modules by name, and what a forward pass does with them."""

    def __init__(self, flow, **modules):
        super().__init__()
        self.flow = flow
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.flow(self, x)


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


NETS = {
    "residual": ((6, 2, 5, 5), lambda: Net(
        lambda n, x: n.fc(F.elu((y := F.elu(n.bn1(n.conv1(x)))) + n.bn2(n.conv2(y))).mean((2, 3))),
        conv1=conv(2, 4), bn1=nn.BatchNorm2d(4), conv2=conv(4, 4), bn2=nn.BatchNorm2d(4), fc=nn.Linear(4, 3),
    )),
    "concat": ((6, 2, 5, 5), lambda: Net(
        lambda n, x: n.fc(F.elu(n.conv3(F.elu(torch.cat([n.conv1(x), n.conv2(x)], 1)))).flatten(1)),
        conv1=conv(2, 3), conv2=conv(2, 4, 1), conv3=conv(7, 4), fc=nn.Linear(100, 3),
    )),
    "unet": ((6, 1, 4, 4), lambda: Net(
        lambda n, x: n.head(F.elu(n.up(torch.cat([
            d := F.elu(n.down(x)), F.interpolate(F.elu(n.deep(F.max_pool2d(d, 2))), scale_factor=2)
        ], 1)))),
        down=conv(1, 4), deep=conv(4, 5), up=conv(9, 4), head=conv(4, 2, 1),
    )),
    "separable": ((6, 3, 5, 5), lambda: Net(
        lambda n, x: n.fc(F.elu(n.point(F.elu(n.depth(F.elu(n.stem(x)))))).mean((2, 3))),
        stem=conv(3, 5), depth=conv(5, 5, groups=5, bias=False), point=conv(5, 6, 1), fc=nn.Linear(6, 3),
    )),
    "grouped": ((6, 4, 5, 5), lambda: nn.Sequential(
        conv(4, 6, groups=2), nn.ELU(), conv(6, 4, groups=2), nn.ELU(), nn.Flatten(), nn.Linear(100, 2),
    )),
    "mlp": ((6, 5), lambda: Net(
        lambda n, x: n.fc4((y := F.elu(n.fc1(x))) + n.fc3(F.elu(n.fc2(y)))),
        fc1=nn.Linear(5, 6), fc2=nn.Linear(6, 8), fc3=nn.Linear(8, 6), fc4=nn.Linear(6, 3),
    )),
    "sequence": ((6, 2, 9), lambda: nn.Sequential(
        nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.ELU(inplace=True), nn.Conv1d(5, 4, 3), nn.ELU(inplace=True),
        nn.Flatten(), nn.Linear(20, 3),
    )),
}


@pytest.fixture(params=NETS)
def any_net(request):
    shape, make = NETS[request.param]
    return make().double(), torch.rand(shape, dtype=torch.float64) + 0.1


@torch.no_grad()
def literal_masks(net, x, kind, alpha):
    """What every layer of a kind keeps of what reaches it in `net`."""
    inputs, masks = {}, {}
    net = deepcopy(net).eval()
    for name, module in net.named_modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].clone()}))
    net(x)
    for name, value in inputs.items():
        module = net.get_submodule(name)
        outputs, width, *kernel = module.weight.shape
        keep = torch.stack([
            kept(fc_importances(value, module.weight, module.bias, unit) if kind is nn.Linear
                 else conv_importances(value, module, unit, "norm_of_mean"), alpha)
            for unit in range(outputs)
        ])
        masks[f"{name}.weight"] = keep[:, :width].view(outputs, width, *[1] * len(kernel))
        if module.bias is not None:
            masks[f"{name}.bias"] = keep[:, width]
    return masks


def test_any_network_is_scored_layer_by_layer(any_net):
    net, x = any_net
    whole = deepcopy(net)
    topology = prune(net, nnrelief(0.7, 0.6, residual_rule=False, backward_sweep=False), x)
    masks = literal_masks(whole, x, (nn.Conv1d, nn.Conv2d), 0.7)
    with torch.no_grad():
        for name, mask in masks.items():
            whole.get_parameter(name).mul_(mask)
    masks |= literal_masks(whole, x, nn.Linear, 0.6)
    assert masks.keys() == topology.masks.keys()
    for name, mask in masks.items():
        assert torch.equal(topology.masks[name], mask), name


def test_the_sweep_takes_only_what_nobody_reads(any_net):
    net, x = any_net
    unswept = deepcopy(net)
    left = prune(unswept, nnrelief(0.3, 0.3, backward_sweep=False), x)
    topology = prune(net, nnrelief(0.3, 0.3), x)
    assert topology.density() < left.density()
    assert all(not (mask & ~left.masks[name]).any() for name, mask in topology.masks.items() if name in left.masks)
    other = torch.randn_like(x)
    torch.testing.assert_close(net.eval()(other), unswept.eval()(other))


def test_masks_only_ever_shrink(any_net):
    net, x = any_net
    topology, densities = None, []
    for _ in range(3):
        before = {} if topology is None else dict(topology.masks)
        topology = prune(net, nnrelief(0.8, 0.8), x, topology=topology)
        assert all(not (topology.masks[name] & ~mask).any() for name, mask in before.items())
        densities.append(topology.density())
        retrained(net, topology)
    assert 1 > densities[0] >= densities[1] >= densities[2] > 0
