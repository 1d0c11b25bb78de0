import pytest
import torch
from sparse_network import lived_in, size, sparse
from torch import nn

from synaptree.core.errors import NumericError, OptionError, ShapeError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.graph.node import GraphError
from synaptree.graph.shortcut import Shortcut
from synaptree.surgery.compact import compact
from synaptree.train.zoo import build


def test_few_units_of_a_very_sparse_network_stay():
    model = lived_in(build("lenet_300_100"))
    small = compact(model, torch.randn(2, 784), topology=sparse(model, 0.005))
    # a unit of fc2 has 300 weights and is without any with probability 0.995^300 = 0.22
    assert small.model.fc2.out_features < 90
    assert size(small.model) < 0.8 * size(model)


def test_the_constant_of_an_unfed_unit_goes_into_the_bias_of_its_reader():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    for part, value in ((model[0].weight, [[1.0, 1.0], [0.0, 0.0]]), (model[0].bias, [0.0, 3.0])):
        part.data = torch.tensor(value)
    model[2].weight.data, model[2].bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([1.0])
    small = compact(model, torch.zeros(1, 2))
    assert small.model[2].bias.item() == 7.0  # 1 + 2 relu(3)
    assert small.model[0].out_features == 1
    assert small.plan.removed[0].units == (1,)
    assert "nothing feeds" in small.plan.removed[0].reason


def test_a_constant_behind_a_padded_convolution_is_kept_and_reported():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 3, padding=1))
    model[0].weight.data[1] = 0.0
    model[0].bias.data[1] = 3.0
    small = compact(model, torch.randn(1, 1, 4, 4))
    assert small.plan.removed == ()
    (kept,) = small.plan.kept
    assert (kept.layer, kept.units) == ("0", (1,))
    assert "border" in kept.reason


class Pooled(nn.Module):
    """Map 1 of two is 3 at every place."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(1, 2, 1), pool, nn.Linear(2, 1)
        self.conv.weight.data[1] = 0.0
        self.conv.bias.data[1] = 3.0

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)))


@pytest.mark.parametrize(("pool", "reason"), [
    (lambda y: y.sum((2, 3)), "what reads them cannot take their constants"),
    (lambda y: y.mean((2, 3)) * y.shape[2], "'mul' joins it with a constant or a size"),
    (lambda y: nn.functional.pad(y, (1, 1)).mean((2, 3)), "'fc' reads it, and its value differs by place or size"),
])  # fmt: skip
def test_a_constant_that_is_another_for_inputs_of_another_size_is_kept_and_reported(pool, reason):
    model = Pooled(pool)
    small = compact(model, torch.randn(2, 1, 4, 4))
    assert [(units.layer, units.units, units.reason) for units in small.plan.kept] == [("conv", (1,), reason)]
    x = torch.randn(2, 1, 7, 7)
    torch.testing.assert_close(small.model(x), model(x))


def test_a_constant_that_is_the_same_for_inputs_of_any_size_is_folded():
    model = Pooled(lambda y: y.relu().amax((2, 3)))
    small = compact(model, torch.randn(2, 1, 4, 4)).model
    assert small.conv.out_channels == 1
    x = torch.randn(2, 1, 7, 7)
    torch.testing.assert_close(small(x), model(x))


def test_a_constant_before_a_batch_norm_is_taken_from_its_mean():
    model = lived_in(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, bias=False), nn.BatchNorm2d(2)))
    model[0].weight.data[1] = 0.0
    model[0].bias.data[1] = 3.0
    small = compact(model, torch.randn(2, 1, 4, 4))
    assert small.model[0].out_channels == 1
    wanted = model[2].running_mean - 3.0 * model[1].weight[:, 1].sum((1, 2))
    torch.testing.assert_close(small.model[2].running_mean, wanted)


def test_a_chain_of_units_that_feed_only_each_other_goes_whole():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[2].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    model[4].weight.data = torch.tensor([[1.0, 0.0]])
    small = compact(model, torch.zeros(1, 2)).model
    assert [small[i].out_features for i in (0, 2, 4)] == [1, 1, 1]


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

    def forward(self, x):
        return self.fc(self.conv(x).relu().view(-1, 16))


def test_fixed_sizes_in_a_forward_are_patched_in_a_traced_module():
    model = Sized().train()
    model.fc.weight.data[:, 4:8] = 0.0  # the four places of map 1
    x = torch.randn(2, 1, 4, 4)
    small = compact(model, x)
    assert isinstance(small.model, torch.fx.GraphModule)
    assert small.model.training
    assert small.model.fc.in_features == 12
    assert "view(-1, 12)" in small.model.code
    torch.testing.assert_close(small.model(x), model(x))


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_a_model_that_cannot_be_traced_comes_back_whole_with_the_reason():
    model = Undecided()
    small = compact(model, torch.ones(1, 2))
    assert small.model is not model
    assert small.model.fc.weight.equal(model.fc.weight)
    (note,) = small.plan.notes
    assert "Undecided.forward" in note


def test_an_example_the_model_does_not_take_is_refused():
    with pytest.raises(GraphError, match=r"example of shape \(1, 5\)"):
        compact(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 5))


def test_dead_weights_that_are_not_zero_are_refused_with_their_count():
    model = build("lenet_300_100")
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "kernel"})
    mask = topology.masks["fc3.weight"].clone()
    mask[0, :7] = False
    topology.edit({"fc3.weight": mask})
    with pytest.raises(NumericError, match=r"7 weights .* fc3.weight \(7\)"):
        compact(model, torch.zeros(1, 784), topology=topology)


def test_a_topology_of_another_model_is_refused():
    model = build("lenet_300_100")
    with pytest.raises(ShapeError, match=r"conv1\.weight"):
        compact(model, torch.zeros(1, 784), topology=sparse(build("lenet5"), 0.5))


def test_a_batch_norm_is_multiplied_into_its_layer_on_request():
    model = lived_in(nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 1)))
    x = torch.randn(2, 1, 4, 4)
    small = compact(model, x, fold_norms=True)
    assert isinstance(small.model[1], nn.Identity)
    torch.testing.assert_close(small.model.eval()(x), model.eval()(x))
    with pytest.raises(OptionError, match="ends training"):
        compact(model, x, fold_norms=True, topology=sparse(model, 0.9))


def test_a_connection_of_the_topology_that_happens_to_be_zero_stays():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "kernel"})
    model[2].weight.data = torch.tensor([[1.0, 0.0]])
    assert compact(model, torch.zeros(1, 2), topology=topology).model[0].out_features == 2
    assert compact(model, torch.zeros(1, 2)).model[0].out_features == 1


def test_a_constant_does_not_go_into_a_bias_the_topology_cut():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "kernel"}, biases=True)
    cut = torch.tensor([[True, True], [False, False]])
    topology.edit({"0.weight": cut, "1.bias": torch.tensor([False])})
    topology.apply(model)
    small = compact(model, torch.zeros(1, 2), topology=topology)
    assert small.model[1].bias.item() == 0.0
    assert [(units.layer, units.units) for units in small.plan.kept] == [("0", (1,))]
    assert "bias is cut" in small.plan.kept[0].reason


def test_a_shortcut_that_pads_stays_in_the_middle_of_what_is_left():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.past = nn.Conv2d(1, 2, 1), Shortcut(2, 6, stride=2)
            self.branch, self.fc = nn.Conv2d(2, 6, 1, 2), nn.Linear(6, 1)

        def forward(self, x):
            x = self.first(x)
            return self.fc((self.past(x) + self.branch(x)).mean((2, 3)))

    model = Net()
    model.fc.weight.data[0, [0, 1, 2]] = 0.0  # both channels padded in front, and the first that is carried
    model.branch.weight.data[:, 0] = 0.0
    small = compact(model, torch.randn(2, 1, 4, 4)).model
    assert (small.past.in_channels, small.past.offset, small.past.out_channels) == (1, 0, 3)
    assert (small.first.out_channels, small.branch.out_channels, small.fc.in_features) == (1, 3, 3)


def test_a_reparametrised_layer_is_left_whole():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    nn.utils.parametrizations.weight_norm(model[2])
    model[4].weight.data = torch.tensor([[1.0, 0.0, 2.0]])
    model[0].weight.data[1] = 0.0
    x = torch.randn(2, 2)
    small = compact(model, x)
    assert small.model[2].weight.shape == (3, 3)
    torch.testing.assert_close(small.model(x), model(x))


def test_channels_padded_by_a_function_stay_and_those_joined_with_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch, self.fc = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 4, 1), nn.Linear(4, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.fc((self.branch(x) + nn.functional.pad(x, (0, 0, 0, 0, 1, 1))).mean((2, 3)))

    model = Net()
    model.fc.weight.data[0, 0] = 0.0
    plan = compact(model, torch.randn(2, 2, 3, 3)).plan
    assert [(units.layer, units.units, units.reason) for units in plan.kept] == [
        ("branch", (0,), "'pad' picks channels by number")
    ]


def test_what_is_added_to_the_input_itself_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.past, self.fc = nn.Conv2d(3, 3, 1), Shortcut(3), nn.Linear(3, 1)

        def forward(self, x):
            return self.fc((self.branch(x) + x + self.past(x)).mean((2, 3)))

    model = Net()
    model.fc.weight.data[0, 0] = 0.0
    small = compact(model, torch.randn(2, 3, 4, 4))
    assert small.model.branch.out_channels == 3
    assert [(units.layer, units.units) for units in small.plan.kept] == [("branch", (0,)), ("past", (0,))]


def test_modes_and_frozen_parameters_stay_as_they_were():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[2].weight.data = torch.tensor([[1.0, 0.0, 2.0]])
    small = compact(model, torch.randn(4, 2)).model
    assert [small.training, small[1].training, small[2].training] == [True, False, True]
    assert [p.requires_grad for p in small[0].parameters()] == [False, True]
    assert small[1].running_mean.shape == (2,)
