import re
from copy import deepcopy

import pytest
import torch
from torch import nn
from toy_networks import (
    NETWORKS,
    Block,
    Inception,
    X,
    chain,
    conv,
    densenet,
    functional,
    grouped,
    jumbled,
    preactivation,
    resnet,
    smooth,
)

from synaptree.core.errors import AttachError, NumericError, OptionError, ShapeError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.graph.node import GraphError
from synaptree.soft.convert import convert
from synaptree.soft.kernel_strength import KernelStrengthConv2d

every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def norms(model, fixed=True):
    return {n: m for n, m in model.named_modules()
            if isinstance(m, nn.BatchNorm2d) and m.weight.requires_grad is not fixed}


def unchanged(model, before):
    assert not any(isinstance(module, KernelStrengthConv2d) for module in model.modules())
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@every_network
@pytest.mark.parametrize("include_all", [False, True])
@pytest.mark.parametrize("drop_gamma", ["absorbable", "none"])
def test_outputs_stay_the_same_whatever_the_signs_of_the_scales(make, include_all, drop_gamma):
    model = jumbled(make())
    before = model(X)
    found = convert(model, X, drop_gamma=drop_gamma, include_first=include_all, include_depthwise=include_all)
    assert (model(X) - before).abs().max() < 1e-5
    assert found.max_error < 1e-5
    assert found.layers
    assert all(isinstance(model.get_submodule(name), KernelStrengthConv2d) for name in found.layers)
    assert set(norms(model)) == set(found.absorbed)
    assert set(norms(model, fixed=False)) == set(found.kept)
    for name in found.absorbed:
        assert set(norms(model)[name].weight.tolist()) <= {1.0, -1.0}
    assert (drop_gamma == "none") is not bool(found.absorbed)


@every_network
def test_training_goes_on_as_it_would_have_up_to_the_scales(make):
    """In training mode too, as statistics of the batch change sign with what they are of."""
    model = jumbled(make()).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = deepcopy(model)
    convert(model, X)
    assert model.training
    torch.testing.assert_close(model(X), plain(X), rtol=1e-4, atol=1e-4)


@every_network
def test_names_stay_and_nothing_else_is_replaced(make):
    model = jumbled(make())
    before = {name: type(module) for name, module in model.named_modules()}
    found = convert(model, X)
    after = {name: type(module) for name, module in model.named_modules()}
    assert after == {n: KernelStrengthConv2d if n in found.layers else kind for n, kind in before.items()}


def test_scales_and_signs_end_up_where_the_equations_say():
    """gamma = (2, -4), beta = (6, 8): beta / |gamma| = (3, 2); the sign of map 1 goes into filter 1, its
    bias and the running mean; weights that read map 0 double, those that read map 1 take 4 times."""
    model = nn.Sequential(conv(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), conv(2, 1, 1)).eval()
    first, norm, last = model[0], model[1], model[3]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -4.0]]).view(2, 2, 1, 1))
        first.bias.copy_(torch.tensor([5.0, 6.0]))
        norm.weight.copy_(torch.tensor([2.0, -4.0]))
        norm.bias.copy_(torch.tensor([6.0, 8.0]))
        norm.running_mean.copy_(torch.tensor([1.0, 3.0]))
        last.weight.copy_(torch.tensor([[0.5, 0.25]]).view(1, 2, 1, 1))
    convert(model, X)
    assert norm.weight.tolist() == [1.0, 1.0]
    assert norm.bias.tolist() == [3.0, 2.0]
    assert norm.running_mean.tolist() == [1.0, -3.0]
    assert first.weight.flatten(1).tolist() == [[1.0, 2.0], [-3.0, 4.0]]
    assert first.bias.tolist() == [5.0, -6.0]
    assert model[3].strength.tolist() == [[1.0, 1.0]]


def test_a_norm_before_a_sum_keeps_its_scale_and_the_report_says_so():
    model = jumbled(resnet())
    found = convert(model, X)
    assert found.absorbed == ("3.bn1", "4.bn1")
    assert found.kept == {
        "1": "it goes into a sum", "3.bn2": "it goes into a sum", "4.bn2": "it goes into a sum",
        "4.down.1": "it goes into a sum",
    }  # fmt: skip
    assert found.plain == {"0": "it is the first"}
    assert "3.bn2 keeps its scale: it goes into a sum" in str(found)


def test_a_scale_that_goes_through_silu_stays():
    found = convert(jumbled(smooth()), X)
    assert found.kept == {"1": "it goes through SiLU"}
    assert found.absorbed == ("4",)


def test_signs_stay_where_no_filter_is_the_norms_alone():
    """The stem also feeds the sum, and the first norm of a dense block reads what others read."""
    for model, shared in ((jumbled(preactivation()), "1.bn1"), (jumbled(densenet()), "2.bn")):
        negative = (model.get_submodule(shared).weight < 0).nonzero().flatten().tolist()
        found = convert(model, X)
        assert found.signs[shared] == tuple(negative)
        assert model.get_submodule(shared).weight[negative].tolist() == [-1.0] * len(negative)
    assert f"{shared}: {len(negative)} channels keep their sign" in str(found)


def test_what_goes_to_the_output_through_sums_of_channels_or_other_norms_stays():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.after = conv(2, 2), nn.BatchNorm2d(2), conv(2, 2)
            self.again, self.twice = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.again(self.bn(self.conv(x)))
            return self.twice(self.after(y)) + self.twice(y).mean(1, keepdim=True)

    found = convert(jumbled(Reads()), X)
    assert found.kept == {
        "bn": "it goes into again, a norm", "again": "it goes into twice, a norm", "twice": "it is used several times",
    }
    outputs = nn.Sequential(conv(2, 2), conv(2, 2), nn.BatchNorm2d(2))
    assert convert(jumbled(outputs), X).kept == {"2": "it goes to the output"}
    folded = nn.Sequential(conv(2, 2), conv(2, 2), nn.BatchNorm2d(2), nn.Flatten(2), nn.Linear(64, 1))
    assert "does not read its channels one by one" in convert(jumbled(folded), X).kept["2"]


def test_functions_count_like_modules():
    assert convert(jumbled(functional()), X).absorbed == ("bn1", "bn2")


def test_each_path_of_a_concatenation_gets_the_scales_of_its_own_norm():
    model = jumbled(Inception())
    found = convert(model, X, include_first=True)
    assert found.absorbed == ("bn_left", "bn_right")
    channels = {name: index.tolist() for name, index in model.join.norms.items()}
    assert channels == {"bn_left": [0, 1, 2, -1, -1], "bn_right": [-1, -1, -1, 0, 1]}


def test_a_dead_channel_keeps_its_scale_and_is_listed():
    model = jumbled(chain())
    model[1].weight.data[2], model[1].weight.data[4] = 0.0, -1e-9
    before = model(X)
    found = convert(model, X)
    assert found.dead == {"1": (2, 4)}
    assert model[1].weight[[2, 4]].tolist() == [0.0, pytest.approx(-1e-9)]
    assert (model(X) - before).abs().max() < 1e-5


def test_all_fixes_every_scale_and_leaves_a_new_network_as_it_was():
    model = resnet().eval()
    before = model(X)
    found = convert(model, X, drop_gamma="all")
    assert set(norms(model)) == {*found.absorbed, *found.reset}
    assert set(found.reset) == {"1", "3.bn2", "4.bn2", "4.down.1"}
    assert torch.equal(model(X), before)
    assert "3.bn2 lost its scale: it goes into a sum" in str(found)
    trained = jumbled(resnet())
    convert(trained, X, drop_gamma="all")
    assert all(set(norm.weight.tolist()) <= {1.0, -1.0} for norm in norms(trained).values())


def test_a_constant_start_gives_every_kernel_one_strength_and_1x1_kernels_their_sign():
    model = nn.Sequential(conv(2, 3), conv(3, 4), conv(4, 2, 1))
    signs = model[2].weight.detach().flatten(1).sign()
    convert(model, X, init=0.5)
    assert set(model[1].strength.flatten().tolist()) == {0.5}
    assert torch.equal(model[2].strength, 0.5 * signs)
    norm = torch.linalg.vector_norm(model[1].weight(), dim=(2, 3))
    torch.testing.assert_close(norm, torch.full((4, 3), 0.5))


def test_switches_choose_the_convolutions_and_the_report_names_the_others():
    found = convert(jumbled(grouped()), X)
    assert found.layers == ("3", "9")
    assert found.plain == {"0": "it is the first", "6": "it is depthwise"}
    everything = convert(jumbled(grouped()), X, include_first=True, include_depthwise=True, pointwise=False)
    assert everything.layers == ("0", "3", "6")
    assert everything.plain == {"9": "it is 1x1"}
    chosen = convert(jumbled(grouped()), X, include=["3", "9"], exclude=["9"])
    assert chosen.layers == ("3",)
    assert chosen.plain["9"] == "it is excluded"


def test_a_shared_convolution_and_one_with_hooks_stay_plain():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.twice, self.hooked, self.last = conv(2, 3), conv(3, 3), conv(3, 3), conv(3, 3)
            self.unused = conv(1, 1)

        def forward(self, x):
            return self.last(self.hooked(self.twice(self.twice(self.stem(x)))))

    model = Twice()
    model.hooked.register_forward_hook(lambda *_: None)
    found = convert(model, X)
    assert found.layers == ("last",)
    assert found.plain == {
        "stem": "it is the first", "twice": "its weight is used several times",
        "hooked": "it is no plain nn.Conv2d, or has hooks", "unused": "the output does not depend on it",
    }  # fmt: skip


def test_kernels_that_do_not_exist_stay_away():
    model = jumbled(chain())
    topology = Topology.of(layers_of(model, ["conv"]), {"conv": "kernel"})
    masks = {"4.weight": torch.rand(4, 6, 1, 1) < 0.5}
    topology.edit(masks)
    topology.apply(model)
    before = model(X)
    convert(model, X, topology=topology)
    assert torch.equal(model[4].mask, masks["4.weight"].flatten(1))
    assert (model(X) - before).abs().max() < 1e-5
    plain = jumbled(chain())
    weights = Topology.of(layers_of(plain, ["conv"]), {"conv": "weight"})
    with pytest.raises(ShapeError, match=r"4\.weight has a mask of shape \(4, 6, 3, 3\), wanted one per kernel"):
        convert(plain, X, topology=weights)


@pytest.mark.parametrize(("model", "options", "error", "message"), [
    (nn.Sequential(nn.Flatten(), nn.Linear(128, 2)), {}, AttachError, "penalty on a model with no convolution"),
    (nn.Sequential(conv(2, 3)), {}, AttachError, "none to convert: 0: it is the first"),
    (conv(2, 3), {"include_first": True}, AttachError, "put it in nn.Sequential"),
    (nn.DataParallel(chain()), {}, AttachError, "before DataParallel goes around it"),
    (chain(), {"drop_gamma": "absorable"}, OptionError, "unknown drop_gamma 'absorable'; did you mean 'absorbable'"),
    (chain(), {"init": 0.0}, OptionError, 'init = 0.0: wanted "exact" or a finite number above 0'),
    (chain(), {"include": ["99"]}, OptionError, "unknown layer '99'"),
    (nn.Sequential(conv(3, 3), conv(3, 3)), {}, GraphError, "does not run on an example"),
])  # fmt: skip
def test_what_cannot_be_converted_is_refused_and_left_as_it_was(model, options, error, message):
    before = deepcopy(model)
    with pytest.raises(error, match=re.escape(message)):
        convert(model, X, **options)
    unchanged(model, before)


@pytest.mark.parametrize("where", ["weight", "norm"])
def test_after_an_error_half_way_the_model_is_as_it_was(where):
    model = jumbled(chain())
    if where == "weight":
        model[9].weight.data[0, 0, 0, 0] = torch.inf
    else:
        model[10].running_mean[0] = torch.nan
    before = deepcopy(model)
    with pytest.raises((NumericError, GraphError)):
        convert(model, X)
    assert not any(isinstance(module, KernelStrengthConv2d) for module in model.modules())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before.state_dict()[name], rtol=0, atol=0, equal_nan=True)
    assert all(p.requires_grad for p in model.parameters())
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in before.modules()]


def test_outputs_that_would_change_are_an_error_and_undone():
    """A hook adds 1 to what the norm gives, and 1 does not scale."""
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3), nn.ReLU(), conv(3, 2)).eval()
    nn.init.constant_(model[1].weight, 3.0)
    model[1].register_forward_hook(lambda _, __, y: y + 1)
    before = deepcopy(model)
    with pytest.raises(NumericError, match=r"would change by"):
        convert(model, X)
    unchanged(model, before)


def test_a_norm_whose_scale_is_read_elsewhere_too_keeps_it():
    class Peeks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3), nn.ReLU(), conv(3, 2))

        def forward(self, x):
            return self.body(x) + self.body[1].weight.sum()

    assert convert(jumbled(Peeks()), X).kept == {"body.1": "it is used several times"}


def test_a_block_used_as_a_whole_can_be_converted_twice_over():
    """The second call takes what the first one left out."""
    model = jumbled(nn.Sequential(Block(2, 4), Block(4, 4)))
    before = model(X)
    first = convert(model, X, include=["0.*"])
    second = convert(model, X, include=["1.*"], include_first=True)
    assert set(first.layers) | set(second.layers) == {
        "0.conv2", "0.down.0", "1.conv1", "1.conv2"}
    assert (model(X) - before).abs().max() < 1e-5
