from copy import deepcopy

import pytest
import torch
from torch import nn

from synaptree.core.errors import OptionError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.surgery.compact import compact

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def network():
    """Five hidden units of which 1 and 3 are read by nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "kernel"})
    mask = topology.masks["2.weight"].clone()
    mask[:, [1, 3]] = False
    topology.edit({"2.weight": mask})
    topology.apply(model)
    return model, topology


def train(model, optimizer, topology, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
        topology.apply(model)


@pytest.mark.parametrize("make", [
    lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
])  # fmt: skip
def test_training_goes_on_as_it_would_have(make):
    model, topology = network()
    optimizer = make(model.parameters())
    train(model, optimizer, topology, 3)
    small = compact(model, X, topology=topology, optimizer=optimizer)
    assert type(small.optimizer) is type(optimizer)
    assert small.model[0].out_features == 3
    train(model, optimizer, topology, 3)
    train(small.model, small.optimizer, small.topology, 3)
    left = [0, 2, 4]
    torch.testing.assert_close(small.model[0].weight, model[0].weight[left])
    torch.testing.assert_close(small.model[0].bias, model[0].bias[left])
    torch.testing.assert_close(small.model[2].weight, model[2].weight[:, left])


def test_model_topology_and_optimizer_are_left_as_they_are():
    model, topology = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, topology, 1)
    before, digest, state = deepcopy(model.state_dict()), topology.digest(), deepcopy(optimizer.state_dict())
    compact(model, X, topology=topology, optimizer=optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert topology.digest() == digest
    buffers = [s["momentum_buffer"] for s in optimizer.state_dict()["state"].values()]
    assert all(torch.equal(b, state["state"][i]["momentum_buffer"]) for i, b in enumerate(buffers))


def test_groups_keep_their_options():
    model, topology = network()
    groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": [model[2].weight], "weight_decay": 0.5}]
    small = compact(model, X, topology=topology, optimizer=torch.optim.SGD(groups, lr=0.1))
    assert [(g["lr"], g["weight_decay"]) for g in small.optimizer.param_groups] == [(0.3, 0), (0.1, 0.5)]
    assert small.optimizer.param_groups[1]["params"][0] is small.model[2].weight


def test_an_optimizer_of_another_model_is_refused():
    model, topology = network()
    with pytest.raises(OptionError, match="none of Sequential's"):
        compact(model, X, topology=topology, optimizer=torch.optim.SGD(network()[0].parameters(), lr=0.1))


def test_state_of_another_shape_is_refused():
    model, topology = network()
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, topology, 1)
    with pytest.raises(OptionError, match=r"'row_var' of 0\.weight is of shape \(5, 1\)"):
        compact(model, X, topology=topology, optimizer=optimizer)


class Alias(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
        self.listed = nn.ModuleList([self.first])

    def forward(self, x):
        return self.last(self.first(x))


def test_a_layer_under_two_names_is_carried_over():
    model = Alias()
    model.last.weight.data[:, [1, 3]] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    model.last.weight.data[:, [1, 3]] = 0.0
    small = compact(model, X, optimizer=optimizer)
    momentum = small.optimizer.state[small.model.first.weight]["momentum_buffer"]
    torch.testing.assert_close(momentum, optimizer.state[model.first.weight]["momentum_buffer"][[0, 2, 4]])
    assert small.model.listed[0] is small.model.first


def test_ages_step_and_what_signals_remember_are_narrowed():
    model, topology = network()
    topology.step = 7
    mask = topology.masks["2.weight"].clone()
    mask[1, 0] = False
    topology.edit({"2.weight": mask})
    mask[1, 0] = True
    topology.edit({"2.weight": mask})  # connection (1, 0) is born at step 7
    topology.step = 9
    topology.state["average/2.weight"] = {"mean": torch.arange(10.0).view(2, 5), "seen": torch.tensor(4)}
    topology.state["maps/0.weight"] = {"odd": torch.zeros(7)}
    topology.apply(model)
    small = compact(model, X, topology=topology).topology
    assert small.step == 9
    assert small.age("2.weight").tolist() == [[9, 9, 9], [2, 9, 9]]
    assert small.state["average/2.weight"]["mean"].tolist() == [[0, 2, 4], [5, 7, 9]]
    assert small.state["average/2.weight"]["seen"] == 4
    assert small.state["maps/0.weight"] == {}
    assert small.notes == ["maps/0.weight was not carried over to the narrower 0.weight: odd"]


def test_a_folded_connection_dies_in_the_topology():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "kernel"})
    topology.edit({"0.weight": torch.tensor([[True] * 3, [False] * 3])})
    topology.apply(model)
    small = compact(model, X, topology=topology).topology
    assert small.masks["2.weight"].shape == (2, 1)
    assert small.died == 3 + 2  # three connections into unit 1, and the two that read it


def test_a_group_that_is_added_later_gets_the_options_of_the_old_optimizer():
    model, topology = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    small = compact(model, X, topology=topology, optimizer=optimizer)
    small.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert (small.optimizer.param_groups[1]["lr"], small.optimizer.param_groups[1]["momentum"]) == (0.05, 0.9)
    assert small.optimizer.defaults is not optimizer.defaults


@pytest.mark.parametrize("example", [[X], {"x": X}, (X,), None])
def test_an_example_of_another_kind_is_named(example):
    with pytest.raises(OptionError, match=r"example_input is a .*: wanted one tensor"):
        compact(network()[0], example)
