"""Units that die with their connections: by hand, and the same outputs before and after."""

import gc
import logging
import weakref
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, tensor

from synaptree.core.layer import layers_of
from synaptree.core.oneshot import Calibration
from synaptree.core.ranks import Ranks
from synaptree.core.topology import Topology
from synaptree.graph.cascade import cascade, constant, edit_with_dead_units, graph_of
from synaptree.graph.node import GraphError
from synaptree.graph.read import read
from synaptree.graph.shortcut import Shortcut
from synaptree.methods import build

SCALED = ("weight", "bias", "running_mean", "running_var")


def site(model, shape, granularity="weight", include=("*",)):
    """Return where an edit of `model` takes place; it stays in the mode it is in."""
    layers = layers_of(model, include=include)
    method = build("magnitude", conv=granularity)
    topology = Topology.of(layers, method.granularity, biases=True)
    return Calibration(model, method, topology, layers, [torch.randn(3, *shape)], {}, Ranks(model))


@torch.no_grad()
def outputs(model, shape):
    """Return what the model gives in eval mode for the same ten samples each time."""
    copy = deepcopy(model).eval()
    return copy(torch.randn(10, *shape, generator=torch.Generator().manual_seed(1)))


def cut(on, **rows):
    """Return masks without the units named: `fc1=[0, 2]`."""
    masks = {}
    for name, units in rows.items():
        mask = on.topology.masks[f"{name}.weight"].clone()
        mask[units] = False
        masks[f"{name}.weight"] = mask
    return masks


def check_exact(on, masks, shape):
    """Make the edit and then the cascade; the outputs must be those of the edit alone."""
    on.edit(masks)
    before = outputs(on.model, shape)
    assert edit_with_dead_units(on, masks) == []
    torch.testing.assert_close(outputs(on.model, shape), before, rtol=0, atol=1e-5)


def indices(mask):
    return mask.nonzero().squeeze(1).tolist()


class Named(nn.Sequential):
    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def perceptron(*, bias=True):
    return Named(
        fc1=nn.Linear(4, 3), r1=nn.ReLU(), fc2=nn.Linear(3, 5, bias=bias), r2=nn.Sigmoid(),
        fc3=nn.Linear(5, 2, bias=bias),
    )  # fmt: skip


def lenet(padding=0):
    return Named(
        conv1=nn.Conv2d(1, 3, 3), t1=nn.Tanh(), p1=nn.MaxPool2d(2), conv2=nn.Conv2d(3, 4, 3, padding=padding),
        t2=nn.Tanh(), flatten=nn.Flatten(), fc1=nn.Linear(4 * (5 + padding * 2 - 2) ** 2, 6), t3=nn.Tanh(),
        fc2=nn.Linear(6, 2),
    )  # fmt: skip


# --- units that nothing reads


def test_a_unit_that_nothing_reads_loses_its_inputs_and_its_bias():
    on = site(perceptron(), (4,))
    mask = torch.ones(5, 3).bool()
    mask[:, 1] = False
    check_exact(on, {"fc2.weight": mask}, (4,))
    assert indices(~on.topology.masks["fc1.bias"]) == [1]
    assert on.topology.masks["fc1.weight"].any(1).tolist() == [True, False, True]
    assert on.model.fc1.bias[1] == 0
    assert not on.model.fc1.weight[1].any()


def test_death_goes_back_through_all_layers():
    # fc3 reads unit 0 of fc2 alone, which reads unit 2 of fc1 alone: all others die
    on = site(perceptron(), (4,))
    last, middle = torch.zeros(2, 5).bool(), torch.ones(5, 3).bool()
    last[:, 0], middle[0] = True, tensor([False, False, True])
    check_exact(on, {"fc3.weight": last, "fc2.weight": middle}, (4,))
    assert indices(on.topology.masks["fc2.bias"]) == [0]
    assert indices(on.topology.masks["fc1.bias"]) == [2]
    assert int(on.topology.masks["fc2.weight"].sum()) == 1


def test_an_unread_filter_takes_its_batch_norm_with_it():
    model = Named(conv=nn.Conv2d(1, 2, 1), norm=nn.BatchNorm2d(2), flatten=nn.Flatten(), fc=nn.Linear(8, 1))
    nn.init.normal_(model.norm.running_mean)
    on = site(model, (1, 2, 2))
    check_exact(on, {"fc.weight": tensor([[False] * 4 + [True] * 4])}, (1, 2, 2))
    assert indices(~on.topology.masks["conv.bias"]) == [0]
    assert indices(~on.topology.masks["norm.weight"]) == [0]
    assert [getattr(model.norm, name)[0].item() for name in SCALED] == [0, 0, 0, 1]


# --- units without inputs


def test_a_unit_without_inputs_is_folded_into_the_biases_of_those_that_read_it():
    # unit 0 of fc1 is relu(2) = 2 for any input: fc2 takes 2 * (3, -1) into its bias (1, 0)
    model = Named(fc1=nn.Linear(2, 2), r=nn.ReLU(), fc2=nn.Linear(2, 2))
    model.fc1.bias.data, model.fc2.bias.data = tensor([2.0, 1.0]), tensor([1.0, 0.0])
    model.fc2.weight.data = tensor([[3.0, 5.0], [-1.0, 5.0]])
    on = site(model, (2,))
    check_exact(on, cut(on, fc1=[0]), (2,))
    assert model.fc2.bias.tolist() == [7.0, -2.0]
    assert model.fc2.weight.tolist() == [[0.0, 5.0], [0.0, 5.0]]
    assert on.topology.masks["fc2.weight"].tolist() == [[False, True], [False, True]]
    assert model.fc1.bias.tolist() == [0.0, 1.0]
    assert on.topology.masks["fc1.bias"].tolist() == [False, True]


def test_what_is_constant_makes_others_constant_until_nothing_changes():
    # unit 4 of fc2 reads unit 1 of fc1 alone; when that is a constant, so is the other
    on = site(perceptron(), (4,))
    middle = torch.ones(5, 3).bool()
    middle[4] = tensor([False, True, False])
    check_exact(on, {**cut(on, fc1=[1]), "fc2.weight": middle}, (4,))
    assert indices(~on.topology.masks["fc1.bias"]) == [1]
    assert indices(~on.topology.masks["fc2.bias"]) == [4]
    assert indices(~on.topology.masks["fc3.weight"].any(0)) == [4]


def test_a_constant_that_no_bias_can_take_stays():
    # sigmoid(b) is never 0, and the last layer has no bias
    on = site(perceptron(bias=False), (4,))
    check_exact(on, cut(on, fc2=[1]), (4,))
    assert on.topology.masks["fc3.weight"].all()


def test_a_constant_zero_needs_no_bias():
    # relu(-1) = 0
    on = site(perceptron(bias=False), (4,))
    on.model.fc1.bias.data[1] = -1.0
    check_exact(on, cut(on, fc1=[1]), (4,))
    assert indices(~on.topology.masks["fc2.weight"].any(0)) == [1]
    assert indices(~on.topology.masks["fc1.bias"]) == [1]


def test_a_bias_that_is_dead_takes_nothing():
    on = site(perceptron(), (4,))
    on.edit({"fc3.bias": tensor([True, False])})
    check_exact(on, cut(on, fc2=[1]), (4,))
    assert on.topology.masks["fc3.weight"].all()
    assert on.model.fc3.bias[1] == 0


def test_the_columns_of_a_dead_filter_die_behind_a_flatten():
    # conv2 gives 4 maps of 3 x 3: filter 2 is columns 18 to 26 of fc1
    on = site(lenet(), (1, 12, 12))
    check_exact(on, cut(on, conv2=[2]), (1, 12, 12))
    assert indices(~on.topology.masks["fc1.weight"].any(0)) == [*range(18, 27)]
    assert indices(~on.topology.masks["conv2.bias"]) == [2]
    assert on.model.conv2.bias[2] == 0


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
def test_a_dead_filter_is_folded_into_a_convolution_that_does_not_pad(granularity):
    on = site(lenet(), (1, 12, 12), granularity)
    check_exact(on, cut(on, conv1=[0]), (1, 12, 12))
    assert indices(~on.topology.masks["conv2.weight"].flatten(2).any(2).any(0)) == [0]
    assert indices(~on.topology.masks["conv1.bias"]) == [0]


@pytest.mark.parametrize(("mode", "folded"), [("zeros", False), ("replicate", True)])
def test_padding_with_zeros_leaves_a_constant_where_it_is(mode, folded):
    model = lenet(padding=1)
    model.conv2.padding_mode, model.conv2._reversed_padding_repeated_twice = mode, [1, 1, 1, 1]
    on = site(model, (1, 12, 12))
    check_exact(on, cut(on, conv1=[0]), (1, 12, 12))
    assert bool(on.topology.masks["conv2.weight"].all()) is not folded
    assert bool(on.topology.masks["conv1.bias"].all()) is not folded


def test_padding_does_not_matter_to_a_filter_that_gives_zeros():
    on = site(lenet(padding=1), (1, 12, 12))
    on.model.conv1.bias.data[0] = 0.0
    check_exact(on, cut(on, conv1=[0]), (1, 12, 12))
    assert indices(~on.topology.masks["conv2.weight"].flatten(2).any(2).any(0)) == [0]


def test_a_constant_behind_a_batch_norm_stays():
    model = Named(fc1=nn.Linear(3, 2), norm=nn.BatchNorm1d(2), r=nn.ReLU(), fc2=nn.Linear(2, 2))
    model.norm.bias.data.fill_(0.5)
    on = site(model, (3,))
    check_exact(on, cut(on, fc1=[0]), (3,))
    assert on.topology.masks["fc2.weight"].all()
    assert on.topology.masks["fc1.bias"].all()


def test_a_filter_that_dies_as_one_connection_takes_bias_and_batch_norm_with_it():
    # its outputs are 0 then: the columns of fc die, and the next convolution, masked by filters, stays as it is
    model = Named(
        conv1=nn.Conv2d(1, 2, 1), norm=nn.BatchNorm2d(2), conv2=nn.Conv2d(2, 2, 1), flatten=nn.Flatten(),
        fc=nn.Linear(8, 2),
    )  # fmt: skip
    on = site(model, (1, 2, 2), "unit")
    edit_with_dead_units(on, cut(on, conv1=[0], conv2=[1]))
    assert indices(~on.topology.masks["conv1.bias"]) == [0]
    assert indices(~on.topology.masks["norm.weight"]) == [0]
    assert indices(~on.topology.masks["conv2.bias"]) == [1]
    assert on.topology.masks["conv2.weight"].flatten().tolist() == [True, False]
    assert indices(~on.topology.masks["fc.weight"].any(0)) == [4, 5, 6, 7]


class Branches(nn.Module):
    """Two layers added, one of them joined to it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x):
        a = self.a(x)
        return self.c(torch.cat([a + self.b(x), a], 1))


def test_a_sum_is_constant_if_both_sides_are_and_a_joined_channel_if_its_origin_is():
    # channel 0 of the sum has a live side; channel 2 of what c reads is unit 0 of a alone
    on = site(Branches(), (3,))
    check_exact(on, cut(on, a=[0]), (3,))
    assert indices(~on.topology.masks["c.weight"].any(0)) == [2]
    assert on.topology.masks["a.bias"].all()
    check_exact(on, cut(on, a=[0], b=[0]), (3,))
    assert indices(~on.topology.masks["c.weight"].any(0)) == [0, 2]
    assert indices(~on.topology.masks["a.bias"]) == [0]
    assert indices(~on.topology.masks["b.bias"]) == [0]


class Placed(nn.Module):
    """What a unit gives differs from place to place, also where it is constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)
        self.places = nn.Parameter(torch.randn(3, 1))

    def forward(self, x):
        return self.b(self.a(x) + self.places)


def test_a_constant_that_differs_from_place_to_place_stays():
    on = site(Placed(), (3, 2))
    check_exact(on, cut(on, a=[0]), (3, 2))
    assert on.topology.masks["b.weight"].all()


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.b(self.b(self.a(x)))


def test_a_layer_that_is_called_twice_takes_no_constant():
    on = site(Twice(), (2,))
    check_exact(on, cut(on, a=[0]), (2,))
    assert on.topology.masks["b.weight"].all()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.shortcut, self.b = nn.Conv2d(2, 2, 1), Shortcut(2), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.b(self.a(x) + self.shortcut(x))


def test_a_residual_sum_is_not_constant_where_the_shortcut_lives():
    on = site(Block(), (2, 2, 2))
    check_exact(on, cut(on, a=[0]), (2, 2, 2))
    assert on.topology.masks["b.weight"].all()


def test_layers_that_may_not_be_touched_are_not():
    on = site(perceptron(), (4,), include=["fc2"])
    before = {name: value.clone() for name, value in on.model.state_dict().items() if not name.startswith("fc2")}
    check_exact(on, cut(on, fc2=[0, 1, 2, 3]), (4,))
    assert {*on.topology.masks} == {"fc2.weight", "fc2.bias"}
    for name, value in before.items():
        assert torch.equal(on.model.state_dict()[name], value), name


widths = st.lists(st.integers(1, 5), min_size=3, max_size=5)


@settings(max_examples=30)
@given(widths, st.floats(0, 1), st.integers(0, 1000), st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid]))
def test_outputs_stay_and_a_second_cascade_finds_nothing(widths, density, seed, activation):
    torch.manual_seed(seed)
    pairs = [(nn.Linear(a, b), activation()) for a, b in pairwise(widths)]
    model = nn.Sequential(*(module for pair in pairs for module in pair))
    on = site(model, (widths[0],))
    masks = {name: torch.rand(mask.shape) < density for name, mask in on.topology.masks.items() if mask.dim() > 1}
    check_exact(on, masks, (widths[0],))
    digest = on.topology.digest()
    edit_with_dead_units(on, {name: on.topology.masks[name] for name in masks})
    assert on.topology.digest() == digest
    for layer, reader in pairwise(on.layers):
        rows = on.topology.masks[layer.weight].any(1)
        columns = on.topology.masks[reader.weight].any(0)
        # a unit that is read has inputs, and one that has any is read
        assert torch.equal(rows, columns)


# --- constant


def test_a_channel_is_constant_where_every_way_to_it_begins_without_connections():
    graph = read(lenet(), torch.zeros(1, 1, 12, 12))
    masks = {"conv2.weight": torch.ones(4, 3, 3, 3).bool()}
    masks["conv2.weight"][1] = False
    found = constant(graph, masks)
    assert indices(found["flatten"]) == [*range(9, 18)]
    assert not found["fc1"].any()
    assert not found["p1"].any()


def test_a_batch_norm_whose_scale_and_shift_are_dead_is_constant():
    graph = read(Named(fc=nn.Linear(2, 3), norm=nn.BatchNorm1d(3)), torch.zeros(2, 2))
    dead = {"norm.weight": tensor([0, 0, 1]).bool(), "norm.bias": tensor([0, 1, 0]).bool()}
    assert constant(graph, dead)["norm"].tolist() == [True, False, False]


# --- reading the model


def test_reading_leaves_modes_statistics_and_random_state_alone():
    model = Named(
        conv=nn.Conv2d(1, 2, 1), norm=nn.BatchNorm2d(2), drop=nn.Dropout(), r=nn.ReLU(), flatten=nn.Flatten(),
        fc=nn.Linear(8, 3), t=nn.Tanh(), out=nn.Linear(3, 2),
    )  # fmt: skip
    model.train()
    model.norm.eval()
    before, modes = deepcopy(model.norm.state_dict()), [module.training for module in model.modules()]
    on, state = site(model, (1, 2, 2)), torch.get_rng_state()
    edit_with_dead_units(on, cut(on, fc=[0]))
    assert indices(~on.topology.masks["out.weight"].any(0)) == [0]
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.norm.state_dict().items())


def test_a_model_is_read_as_it_is_now():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    on = site(model, (2,))
    edit_with_dead_units(on, {"2.weight": tensor([[True, True]])})
    model[1] = nn.Sigmoid()
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[2].bias)
    nn.init.constant_(model[2].weight, 4.0)
    # a unit without inputs gives sigmoid(0) = 0.5 now, where it gave relu(0) = 0
    edit_with_dead_units(on, {"0.weight": tensor([[True, True], [False, False]])})
    assert model[2].bias.item() == 2.0
    assert on.topology.masks["2.weight"].tolist() == [[True, False]]


def test_a_wrong_example_is_not_remembered():
    model = perceptron()
    with pytest.raises(GraphError):
        graph_of(model, [torch.zeros(1, 7)])
    assert graph_of(model, [torch.zeros(1, 4)]) is not None


def test_a_single_layer_has_no_units_to_lose():
    model = nn.Linear(2, 2)
    assert graph_of(model, [torch.zeros(1, 2)]) is None
    on = site(model, (2,))
    assert edit_with_dead_units(on, {"weight": tensor([[True, False], [False, False]])}) == []
    assert on.topology.masks["weight"].tolist() == [[True, False], [False, False]]
    assert on.topology.masks["bias"].all()


class Deciding(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_a_model_that_cannot_be_read_is_edited_alone_and_the_log_says_so_once(caplog):
    on = site(Deciding(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), (2,))
    masks = {"2.weight": tensor([[True, False]])}
    with caplog.at_level(logging.WARNING, logger="synaptree"):
        on.topology.notes = edit_with_dead_units(on, masks)
        on.topology.notes = edit_with_dead_units(on, masks)
    assert on.topology.notes == caplog.messages
    assert on.topology.notes[0].startswith("units that nothing reads any more stay: cannot trace Deciding.forward")
    assert on.topology.masks["0.weight"].all()
    assert on.topology.masks["2.weight"].tolist() == [[True, False]]


def test_a_model_that_cannot_be_read_can_be_forgotten_too():
    model = Deciding(nn.Linear(2, 2))
    with pytest.raises(GraphError):
        graph_of(model, [torch.zeros(1, 2)])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_without_an_input_there_is_no_graph():
    with pytest.raises(GraphError, match="Named was not called with a tensor"):
        graph_of(perceptron(), [])


def test_the_edit_of_a_graph_is_that_of_its_model():
    on = site(perceptron(), (4,))
    graph = graph_of(on.model, on.inputs)
    assert cascade(graph, on, cut(on, fc1=[2])) is None
    assert indices(~on.topology.masks["fc2.weight"].any(0)) == [2]
