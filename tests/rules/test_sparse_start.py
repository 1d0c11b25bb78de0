import pytest
import torch
from torch import nn

from synaptree.core.attach import attach
from synaptree.core.errors import OptionError
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.schedule import Every
from synaptree.core.topology import Topology
from synaptree.methods import build
from synaptree.rules.allocate import allocation
from synaptree.rules.density import Density
from synaptree.rules.seed import sparse_start


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10))


def started(model, density=0.25, allocate="uniform", weights="given", conv="weight", **options):
    start = sparse_start(density, allocation(allocate), weights)
    granularity = {"linear": "weight", "conv": conv}
    method = Method(Density(density), {}, Every(9), granularity=granularity, start=start)
    return attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method, **options).topology


@pytest.mark.parametrize("allocate", ["uniform", "erdos_renyi", "global", {"0": 0.5, "3": 0.1}])
def test_the_masks_are_those_that_random_pruning_draws_from_the_same_seed(allocate):
    topology = started(network(), allocate=allocate, seed=3)
    pruned = prune(network(), build("random", density=0.25, allocate=allocate), seed=3)
    assert topology.digest() == pruned.digest()
    assert topology.digest() != started(network(), allocate=allocate, seed=4).digest()


def test_counts_are_exact_and_kernels_come_whole():
    # 8 kernels of 9 weights, 160 weights; half of each
    topology = started(network(), 0.5, conv="kernel")
    assert int(topology.masks["0.weight"].sum()) == 4
    assert topology.weights_alive("0.weight") == 36
    assert topology.weights_alive("3.weight") == 80


def test_given_weights_stay_where_they_exist_and_are_0_elsewhere():
    model = network()
    topology, before = started(model), network().state_dict()
    for name in ("0.weight", "3.weight"):
        assert torch.equal(model.state_dict()[name], before[name] * topology.expanded(name))
    assert torch.equal(model[3].bias, before["3.bias"])


def test_he_draws_weights_whose_variance_is_two_over_the_inputs_of_the_unit():
    model = nn.Sequential(nn.Linear(400, 500))
    topology = started(model, 0.1, weights="he")
    # 20,000 weights; their number of inputs is about 40 in every unit, so the variance is about 0.05
    drawn = model[0].weight[topology.masks["0.weight"]]
    assert drawn.var().item() == pytest.approx(0.05, rel=0.05)
    assert not model[0].bias.any()


def test_layers_left_out_and_networks_with_a_topology_stay_what_they_are():
    topology = started(network(), exclude=["3"])
    assert list(topology.masks) == ["0.weight"]
    mine = Topology()
    mine.add("0.weight", (4, 2, 3, 3))
    mine.add("3.weight", (10, 16))
    assert started(network(), topology=mine).density() == 1.0


def test_a_density_out_of_range_is_refused():
    with pytest.raises(OptionError, match=r"density = 1.5: wanted a number from 0"):
        sparse_start(1.5, allocation("uniform"))
