from functools import partial
from io import BytesIO
from itertools import pairwise

import pytest
import torch
from torch import nn

from synaptree.core.attach import attach
from synaptree.core.errors import AttachError, OptionError
from synaptree.core.oneshot import prune
from synaptree.core.topology import Topology
from synaptree.methods import build
from synaptree.signals.gradients import mean_gradients

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
ADAM = partial(torch.optim.Adam, lr=0.01, weight_decay=0.1)
STILL = partial(torch.optim.SGD, lr=0.0)

synthesis = partial(build, "strategic_synthesis", every=1)


def network(sizes=(20, 10, 8, 3), seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [module for n, m in pairwise(sizes) for module in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def train(model, optimizer, updates=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        optimizer.zero_grad()
        inputs = next(model.parameters()).shape[1]
        (model(torch.randn(8, inputs, generator=rng)) - 1).square().mean().backward()
        optimizer.step()


def growing(model, make=STILL, **options):
    """Attach the method with `options` to a model; return what keeps the topology, and the optimizer."""
    optimizer = make(model.parameters())
    return attach(model, optimizer, synthesis(**options)), optimizer


def counts(topology):
    return {name: int(mask.sum()) for name, mask in topology.masks.items()}


# --- the seed


def test_attached_to_a_plain_network_it_leaves_a_sparse_seed_and_a_dense_output():
    model = network()
    attached, _ = growing(model, seed_density=0.15, capacity=0.5)
    # 0.15 * (200 + 80) = 42: 30 of 200 and 12 of 80; the output of 24 is whole
    assert counts(attached.topology) == {"0.weight": 30, "2.weight": 12, "4.weight": 24}
    assert attached.topology.masks["0.weight"].any(1).all()
    assert all(torch.equal(p != 0, attached.topology.masks[name]) for name, p in attached.topology.parameters(model))


def test_the_output_is_seeded_too_where_it_is_to_grow():
    model = network()
    attached, _ = growing(model, seed_density=0.125, capacity=0.5, grow_output=True)
    # 0.125 * 304 = 38: 25, 10, 3
    assert counts(attached.topology) == {"0.weight": 25, "2.weight": 10, "4.weight": 3}


def test_weights_of_the_seed_are_drawn_by_the_inputs_left_and_biases_are_0():
    model = network((2000, 50, 2))
    attach(model, STILL(model.parameters()), synthesis(seed_density=0.05))
    alive = model[0].weight.detach()[model[0].weight != 0]
    # 100 inputs for each unit on average: standard deviation about sqrt(2 / 100); 50 inputs of the output: sqrt(2 / 50)
    assert len(alive) == 5000
    assert float(alive.std()) == pytest.approx(0.141, rel=0.05)
    assert float(model[2].weight.detach().std()) == pytest.approx(0.2, rel=0.3)
    assert not model[0].bias.any()
    assert not model[2].bias.any()


def test_given_weights_stay_where_a_connection_stays():
    model, before = network(), network()
    attached, _ = growing(model, seed_density=0.1, seed_weight="given")
    for (name, p), old in zip(model.named_parameters(), before.parameters(), strict=True):
        kept = attached.topology.expanded(name) if name in attached.topology.masks else torch.ones_like(old).bool()
        assert torch.equal(p, old * kept)


def test_one_seed_is_one_network():
    models = [network(seed=0) for _ in range(3)]
    digests = [
        attach(m, STILL(m.parameters()), synthesis(seed_density=0.1), seed=s).topology.digest()
        for m, s in zip(models, (1, 1, 2), strict=True)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_a_network_that_has_a_topology_is_not_seeded():
    model, topology = network(), Topology()
    topology.add("0.weight", (10, 20))
    topology.edit({"0.weight": torch.arange(200).view(10, 20) % 5 == 0})
    attached = attach(model, STILL(model.parameters()), synthesis(), topology=topology)
    assert counts(attached.topology) == {"0.weight": 40, "2.weight": 80, "4.weight": 24}


def test_the_output_is_the_models_last_layer_not_the_last_that_may_be_touched():
    model = network()
    attached = attach(model, STILL(model.parameters()), synthesis(seed_density=0.125), exclude=["4"])
    assert counts(attached.topology) == {"0.weight": 25, "2.weight": 10}


def test_a_seed_that_needs_more_than_the_capacity_is_refused_and_nothing_is_attached():
    model, before = network((5, 30, 2)), network((5, 30, 2))
    optimizer = STILL(model.parameters())
    # 30 units need 30 of 150 connections
    with pytest.raises(OptionError, match=r"takes 30 of the 150 places of 0\.weight.* = 0\.1: raise capacity to 0\.2"):
        attach(model, optimizer, synthesis(capacity=0.1))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before.parameters(), strict=True))
    assert attach(model, optimizer, synthesis(capacity=0.2)).topology.density("0.weight") == 0.2


def test_a_network_that_is_all_output_is_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(AttachError, match="is the output and stays dense; set grow_output=True"):
        attach(model, STILL(model.parameters()), synthesis())


@pytest.mark.parametrize("options", [{"seed_density": 0.3}, {"capacity": 0.01}, {"seed_density": 0.0}])
def test_a_seed_beyond_the_capacity_or_none_is_refused_when_the_method_is_built(options):
    with pytest.raises(OptionError, match="wanted a seed above 0 and at most the capacity"):
        synthesis(**options)


# --- growth


def test_from_5_to_20_per_cent_by_a_tenth_takes_fifteen_events():
    # 0.05 * 1.1^14 = 0.19, 0.05 * 1.1^15 = 0.209
    model = network((100, 50, 20, 4))
    attached, optimizer = growing(model, new_weight="gauss")
    grown, sizes = ("0.weight", "2.weight"), [300]
    assert sum(counts(attached.topology)[name] for name in grown) == 300
    for _ in range(15):
        train(model, optimizer)
        sizes.append(sum(counts(attached.topology)[name] for name in grown))
        assert sizes[-1] == min(1200, sizes[-2] + round(0.1 * sizes[-2]))
    assert sizes[-2] < sizes[-1] == 1200  # 0.2 * (5000 + 1000)
    train(model, optimizer)
    assert sum(counts(attached.topology)[name] for name in grown) == 1200
    assert attached.topology.notes == ["no connection added: capacity = 0.2 is reached"]
    assert attached.topology.density("4.weight") == 1.0


@pytest.mark.parametrize("rule", ["strategic", "random", "gradient"])
def test_an_event_changes_no_output_and_no_weight(rule):
    model, x = network(), torch.randn(16, 20)
    attached, optimizer = growing(model, seed_density=0.125, rule=rule)
    before, weights = model(x), [p.detach().clone() for p in model.parameters()]
    train(model, optimizer)
    assert attached.topology.born == 4  # 0.1 * 35, rounded
    assert torch.equal(model(x), before)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), weights, strict=True))


def test_all_rules_add_the_same_number_per_layer():
    found = []
    for rule in ("strategic", "random", "gradient"):
        model = network()
        attached, optimizer = growing(model, rule=rule, grow_fraction=0.5, seed_density=0.125)
        train(model, optimizer, 2)
        found.append(counts(attached.topology))
    assert found[0] == found[1] == found[2]
    assert found[0]["0.weight"] > 25


@pytest.mark.parametrize("make", [SGD, ADAM])
def test_dead_weights_stay_0_and_newborns_start_without_momentum(make):
    model = network()
    attached, optimizer = growing(model, make, seed_density=0.1, every=3)
    newborn = 0
    for _ in range(9):
        train(model, optimizer)
        for name, p in attached.topology.parameters(model):
            assert not p[~attached.topology.masks[name]].any()
        if attached.topology.step % 3 == 0:
            for name, born in attached.last.born.items():
                state = optimizer.state[dict(attached.topology.parameters(model))[name]]
                moments = [value for value in state.values() if torch.is_tensor(value) and value.shape == born.shape]
                assert moments
                assert not any(value[born].any() for value in moments)
                newborn += int(born.sum())
    assert newborn == attached.topology.born == 3 + 3 + 3  # 0.1 * 28, 31 and 34, rounded


def test_resumed_in_the_middle_of_growth_it_makes_the_same_network():
    options = {"seed_density": 0.1, "every": 2, "new_weight": "gauss"}
    model, other = network(), network()
    straight, optimizer = growing(model, SGD, **options)
    train(model, optimizer, 3)
    file = BytesIO()
    torch.save([straight.state_dict(), model.state_dict(), optimizer.state_dict()], file)
    train(model, optimizer, 5, seed=1)
    resumed, second = growing(other, SGD, **options)
    topology, weights, momentum = torch.load(BytesIO(file.getvalue()))
    other.load_state_dict(weights)
    second.load_state_dict(momentum)
    resumed.load_state_dict(topology)
    train(other, second, 5, seed=1)
    assert resumed.topology.born == straight.topology.born == 3 + 3 + 3 + 4  # of 28, 31, 34, 37
    assert resumed.topology.digest() == straight.topology.digest()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_newborn_weights_may_be_drawn_with_the_layers_own_spread():
    model = network((200, 100, 2))
    attached, optimizer = growing(model, grow_fraction=1.0, new_weight="gauss")
    old = model[0].weight.detach()[attached.topology.masks["0.weight"]].clone()
    train(model, optimizer)
    born = attached.last.born["0.weight"]
    new = model[0].weight.detach()[born]
    assert len(new) == 1000
    assert float(new.std()) == pytest.approx(float(old.std()), rel=0.1)
    assert torch.equal(model[0].weight.detach()[attached.topology.masks["0.weight"] & ~born], old)


def test_few_new_connections_of_lenet_300_100_are_drawn_uniformly():
    model = network((784, 300, 100, 10))
    attached, optimizer = growing(model, SGD)
    drawn = {"0.weight": [0, 0], "2.weight": [0, 0]}
    for _ in range(15):
        train(model, optimizer)
        for name, (few, new) in attached.method.rule.fallback.items():
            drawn[name][0] += few
            drawn[name][1] += new
    assert drawn["0.weight"][1] == 47_040 - 11_760 - (drawn["2.weight"][1] - 4_500)  # 5 % to 20 % of 265,200 in all
    assert all(few <= 0.05 * new for few, new in drawn.values())


def test_uniform_draws_stand_in_the_notes():
    # two connections of equal size in one row of two: all that could be proposed exists
    model, topology = network((2, 2, 1)), Topology(seed=0)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    topology.add("0.weight", (2, 2))
    topology.edit({"0.weight": torch.tensor([[True, True], [False, False]])})
    prune(model, synthesis(capacity=1.0, grow_fraction=1.0), topology=topology)
    assert topology.notes == ["0.weight: 2 of 2 new connections drawn uniformly"]


# --- one event without training


@pytest.mark.parametrize("rule", ["strategic", "random"])
def test_one_event_can_be_had_without_training(rule):
    model, x = network(), torch.randn(4, 20)
    topology = growing(model, seed_density=0.125)[0].finish()
    before = model(x)
    assert prune(model, synthesis(rule=rule, grow_fraction=0.2), topology=topology) is topology
    assert topology.born == 7  # 0.2 * 35
    assert topology.step == 0
    assert torch.equal(model(x), before)


def test_growth_by_gradient_without_training_needs_the_gradient():
    model = network()
    topology = growing(model, seed_density=0.125)[0].finish()
    method = synthesis(rule="gradient", grow_fraction=0.2)
    with pytest.raises(AttachError, match="needs gradients of the training loss"):
        prune(model, method, topology=topology)
    gradients = mean_gradients(model, [(torch.randn(8, 20), torch.randn(8, 3))], nn.functional.mse_loss)
    prune(model, method, topology=topology, gradients=gradients)
    assert topology.born == 7


def test_an_event_beside_training_starts_newborns_without_momentum():
    model = network()
    attached, optimizer = growing(model, SGD, seed_density=0.125, every=100)
    train(model, optimizer, 3)
    before = attached.topology.masks["0.weight"]
    prune(model, synthesis(grow_fraction=1.0), topology=attached.topology)
    born = attached.topology.masks["0.weight"] & ~before
    assert born.any()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    momentum[born] = 7.0  # what an update of a weight not masked may leave
    train(model, optimizer)
    assert (momentum[born].abs() < 1.0).all()


def test_a_dense_network_is_at_its_capacity():
    topology = prune(network(), synthesis())
    assert topology.density() == 1.0
    assert topology.notes == ["no connection added: capacity = 0.2 is reached"]


# --- convolutions, which are beyond the paper


def convolutional():
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 2))


def test_convolutions_are_left_alone_unless_kernels_are_to_grow():
    model = convolutional()
    attached, _ = growing(model, seed_density=0.125)
    assert counts(attached.topology) == {"3.weight": 24, "5.weight": 12}


def test_kernels_grow_beside_weights():
    model = convolutional()
    attached, optimizer = growing(model, seed_density=0.25, capacity=0.5, conv="kernel")
    # 8 of 32 kernels, 48 of 192 weights; 0.1 * 56 = 6 born: 6 * 8 / 56 = 0.86, 5.14
    assert counts(attached.topology) == {"0.weight": 8, "3.weight": 48, "5.weight": 12}
    model(torch.randn(2, 4, 4, 4)).sum().backward()
    optimizer.step()
    assert counts(attached.topology) == {"0.weight": 9, "3.weight": 53, "5.weight": 12}
