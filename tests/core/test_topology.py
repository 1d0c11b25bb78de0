import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, tensor

from synaptree.core.errors import CheckpointError, OptionError, ShapeError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology

WEIGHTS = {"linear": "weight", "conv": "weight"}
KERNELS = {"linear": "weight", "conv": "kernel"}


def row(*values):
    return tensor([values]).bool()


@pytest.fixture
def topology():
    """One row of four connections, the first two alive, born at steps 0 and 10."""
    topology = Topology()
    topology.add("weight", (1, 4))
    topology.edit({"weight": row(1, 0, 0, 0)})
    topology.step = 10
    topology.edit({"weight": row(1, 1, 0, 0)})
    return topology


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    tensors = {"rng", "masks", "births", "state"}
    torch.testing.assert_close([a[k] for k in tensors], [b[k] for k in tensors], rtol=0, atol=0)
    assert {k: v for k, v in a.items() if k not in tensors} == {k: v for k, v in b.items() if k not in tensors}
    return True


def test_a_model_starts_dense_at_the_granularity_of_each_kind():
    model = nn.Sequential(nn.Conv2d(3, 4, 5, groups=1), nn.Linear(4, 2))
    topology = Topology.of(layers_of(model), KERNELS, biases=True)
    shapes = {name: tuple(mask.shape) for name, mask in topology.masks.items()}
    assert shapes == {"0.weight": (4, 3, 1, 1), "0.bias": (4,), "1.weight": (2, 4), "1.bias": (2,)}
    assert all(bool(mask.all()) and mask.dtype == torch.bool for mask in topology.masks.values())
    assert topology.density() == 1.0


def test_an_edit_says_what_was_born_and_what_died(topology):
    delta = topology.edit({"weight": row(0, 1, 1, 1)})
    assert delta.born["weight"].tolist() == row(0, 0, 1, 1).tolist()
    assert delta.died["weight"].tolist() == row(1, 0, 0, 0).tolist()
    assert str(delta) == "2 born, 1 died"


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), max_size=5))
def test_the_present_mask_is_the_first_and_all_that_was_born_without_all_that_died(masks):
    topology = Topology()
    topology.add("w", (2, 3))
    alive = torch.ones(2, 3, dtype=torch.int)
    for mask in masks:
        delta = topology.edit({"w": tensor(mask).view(2, 3)})
        alive += delta.born["w"].int() - delta.died["w"].int()
        assert torch.equal(alive.bool(), topology.masks["w"])
        assert set(alive.unique().tolist()) <= {0, 1}


def test_ages_count_updates_since_birth(topology):
    topology.step = 13
    assert topology.age("weight").tolist() == [[13, 3, 0, 0]]
    topology.edit({"weight": row(1, 0, 0, 0)})
    topology.step = 20
    topology.edit({"weight": row(1, 1, 0, 1)})
    topology.step = 21
    assert topology.age("weight").tolist() == [[21, 1, 0, 1]]


def test_an_edit_copies_the_mask_it_is_given(topology):
    mask = row(1, 1, 1, 0)
    topology.edit({"weight": mask})
    mask.zero_()
    assert topology.weights_alive("weight") == 3


@pytest.mark.parametrize(("mask", "message"), [
    (torch.ones(4, 1).bool(), r"weight: wanted a bool mask of shape \(1, 4\).*got torch.bool of shape \(4, 1\)"),
    (torch.ones(1, 4), r"weight: wanted a bool mask of shape \(1, 4\).*got torch.float32 of shape \(1, 4\)"),
])  # fmt: skip
def test_a_mask_that_does_not_fit_changes_nothing(topology, mask, message):
    topology.add("bias", (1,))
    before = copy.deepcopy(topology)
    with pytest.raises(ShapeError, match=message):
        topology.edit({"bias": tensor([False]), "weight": mask})
    assert same(topology, before)


@pytest.mark.parametrize("ask", ["age", "weights", "weights_alive", "expanded", "density", "edit"])
def test_an_unknown_name_is_answered_with_the_known_ones(topology, ask):
    with pytest.raises(OptionError, match="unknown masked parameter 'wieght'; did you mean 'weight'"):
        getattr(topology, ask)({"wieght": row(1)} if ask == "edit" else "wieght")


def test_a_kernel_counts_as_its_weights_and_biases_count_only_when_named():
    topology = Topology()
    topology.add("conv.weight", (2, 2, 3, 3), "kernel")
    topology.add("conv.bias", (2,))
    topology.add("fc.weight", (1, 4))
    topology.edit({"conv.weight": tensor([[1, 0], [0, 0]]).bool().view(2, 2, 1, 1), "conv.bias": tensor([True, False])})
    assert (topology.weights("conv.weight"), topology.weights_alive("conv.weight")) == (36, 9)
    assert topology.density() == (9 + 4) / (36 + 4)
    assert topology.density("conv.bias") == 0.5
    assert topology.expanded("conv.weight").sum() == 9


def test_the_density_of_no_weights_is_one():
    topology = Topology()
    assert topology.density() == 1.0
    topology.add("w", (0, 3))
    assert topology.density() == 1.0


def test_apply_writes_plus_zero_and_leaves_the_rest():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = tensor([[-0.5, -2.0, float("nan"), -0.0]])
    topology = Topology.of(layers_of(model), WEIGHTS)
    topology.edit({"weight": row(1, 0, 0, 0)})
    topology.apply(model)
    assert model.weight.tolist() == [[-0.5, 0.0, 0.0, 0.0]]
    assert not model.weight[0, 1:].signbit().any()


def test_masks_fit_the_model_under_the_prefixes_of_ddp_and_compile(topology):
    model = nn.Linear(4, 1, bias=False)
    topology.apply(nn.DataParallel(torch.compile(model, backend="eager")))
    assert (model.weight == 0).tolist() == [[False, False, True, True]]


def test_a_model_that_does_not_fit_is_left_as_it_is():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    topology = Topology.of(layers_of(model), WEIGHTS)
    topology.edit({"0.weight": torch.zeros(2, 2).bool()})
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 1))
    with pytest.raises(ShapeError, match=r"1.weight: .* shape \(1, 2\), Sequential has it in shape \(1, 3\); use"):
        topology.apply(other)
    assert other[0].weight.all()
    with pytest.raises(ShapeError, match=r"Linear has no such parameter"):
        topology.apply(nn.Linear(2, 2))


def test_covering_again_keeps_masks_and_adds_what_is_new():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    first, second = layers_of(model)
    topology = Topology.of([first], WEIGHTS)
    topology.edit({"0.weight": row(0, 1)})
    topology.cover([first, second], WEIGHTS, biases=True)
    assert {name: mask.tolist() for name, mask in topology.masks.items()} == {
        "0.weight": [[False, True]], "0.bias": [True], "1.weight": [[True]], "1.bias": [True],
    }  # fmt: skip


def test_covering_at_another_granularity_is_refused_and_changes_nothing():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    first, second = layers_of(model)
    topology = Topology.of([second], KERNELS)
    with pytest.raises(ShapeError, match=r"1.weight of shape .* mask of shape \(2, 2, 1, 1\) already.*'weight'"):
        topology.cover([first, second], WEIGHTS)
    assert list(topology.masks) == ["1.weight"]


def test_the_digest_is_equal_exactly_where_the_masks_are(topology):
    other = Topology()
    other.add("weight", (1, 4))
    assert other.digest() != topology.digest()
    other.edit({"weight": row(1, 1, 0, 0)})
    assert other.digest() == topology.digest()
    other.add("bias", (1,))
    assert other.digest() != topology.digest()


def test_the_digest_does_not_depend_on_the_order_of_parameters():
    first, second = Topology(), Topology()
    for topology, names in ((first, "ab"), (second, "ba")):
        for name in names:
            topology.add(name, (1, 2))
    assert first.digest() == second.digest()


def test_a_state_comes_back_whole(topology):
    torch.rand(3, generator=topology.rng)
    topology.state["keep/weight"] = {"mean": tensor([[1.0, 2.0, 3.0, 4.0]])}
    topology.notes = ["one thing could not be done"]
    state = topology.state_dict()
    for fresh in (Topology(seed=5), copy.deepcopy(topology), pickle.loads(pickle.dumps(topology))):
        fresh.load_state_dict(state)
        assert same(fresh, topology)
        assert fresh.age("weight").tolist() == topology.age("weight").tolist()


def test_a_state_is_a_copy(topology):
    topology.state["keep/weight"] = {"mean": torch.zeros(1)}
    state, before = topology.state_dict(), copy.deepcopy(topology)
    for mapping in (state["masks"], state["births"], state["state"]["keep/weight"]):
        next(iter(mapping.values())).fill_(1)
    state["edits"].append(99)
    state["notes"].append("late")
    assert same(topology, before)


@pytest.mark.parametrize(("change", "message"), [
    ({"masks": {}}, "holds no masks: it was not written by a synaptree topology"),
    ({"shapes": {"fc": [1, 4]}, "masks": {"fc": row(1, 1, 1, 1)}, "births": {}}, ": weight differ"),
    ({"shapes": {"weight": [1, 2]}, "masks": {"weight": row(1, 1)}, "births": {}}, "weight differ"),
    ({"masks": {"weight": row(1)}, "births": {}}, "weight differ"),
    ({"edits": None}, "damaged"),
    ({"shapes": None}, "damaged"),
    ({"rng": tensor([1, 2, 3], dtype=torch.uint8)}, "damaged"),
    ({"births": {"bias": row(1)}}, "damaged"),
])  # fmt: skip
def test_a_state_that_does_not_belong_here_changes_nothing(topology, change, message):
    before = copy.deepcopy(topology)
    state = {key: value for key, value in {**topology.state_dict(), **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        topology.load_state_dict(state)
    assert same(topology, before)


def test_masks_that_a_method_added_later_are_taken_over_too(topology):
    grown = copy.deepcopy(topology)
    grown.add("bias", (1,))
    grown.edit({"bias": tensor([False])})
    topology.load_state_dict(grown.state_dict())
    assert same(topology, grown)
    with pytest.raises(CheckpointError, match=": bias differ"):
        topology.load_state_dict({**grown.state_dict(), "shapes": {"weight": [1, 4]}})


def test_after_an_error_a_topology_and_what_goes_with_it_are_as_before(topology):
    before, weight = copy.deepcopy(topology), tensor([1.0, 2.0])
    with pytest.raises(KeyboardInterrupt), topology.restored_on_error(weight):  # noqa: PT012 - breaks half-way
        topology.add("bias", (1,))
        topology.edit({"weight": row(0, 0, 1, 1)})
        torch.rand(1, generator=topology.rng)
        topology.notes.append("new")
        weight.zero_()
        raise KeyboardInterrupt
    assert same(topology, before)
    assert topology.version > before.version  # masks derived in between are stale
    assert weight.tolist() == [1.0, 2.0]


def test_a_topology_describes_itself(topology):
    assert repr(topology) == "Topology(1 masks, density 0.5000, step 10)"
