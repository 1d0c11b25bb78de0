import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synaptree.core.errors import NumericError, OptionError
from synaptree.core.layer import Layer
from synaptree.core.rule import Group, Part
from synaptree.rules.growth import Growth, shared_out
from synaptree.rules.propose import strongest


def group(name, weights, mask=None, gradients=None, seed=0):
    """Return the group of a layer; without a mask, what is not 0 exists."""
    weights = torch.as_tensor(weights).float()
    mask = weights != 0 if mask is None else torch.as_tensor(mask).bool()
    scores = {"weight": weights, "gradient": torch.ones(mask.shape) if gradients is None else torch.tensor(gradients)}
    layer = Layer(name, "linear", nn.Linear(1, 1), f"{name}.weight", None)
    return Group(layer, Part(f"{name}.weight", mask, scores), rng=torch.Generator().manual_seed(seed))


def sparse(name, shape, active, seed=0):
    """Return a group with `active` random connections."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=rng)[:active]] = True
    return group(name, torch.randn(shape, generator=rng) * mask.view(shape), mask.view(shape), seed=seed)


def born(growth, groups):
    masks = growth(groups, 1)
    for g in groups:
        assert (masks[g.weight.name] & g.weight.mask).equal(g.weight.mask)  # nothing dies
    return {g.weight.name: int((masks[g.weight.name] & ~g.weight.mask).sum()) for g in groups}


# --- how many


def test_an_event_adds_a_share_of_what_exists_until_the_room_is_used_up():
    # 3 + 1 = 4 of 24 places; room = floor(0.5 * 24) - 4 = 8
    def one(fraction, capacity=0.5):
        return sum(born(Growth(capacity, fraction), [sparse("a", (4, 4), 3), sparse("b", (2, 4), 1)]).values())

    assert one(0.5) == 2
    assert one(0.1) == 1  # 0.4 is rounded to 0, but an event adds something
    assert one(1.0) == 4
    assert one(1.0, capacity=0.25) == 2  # 6 - 4
    assert one(1.0, capacity=0.29) == 2  # floor(6.96) - 4
    assert one(1.0, capacity=4 / 24) == 0
    assert one(1.0, capacity=0.1) == 0


def test_a_capacity_that_is_not_exact_in_binary_is_met():
    # 0.29 * 100 = 28.999999999999996 in floating point
    assert born(Growth(0.29, 1.0), [sparse("a", (10, 10), 27)]) == {"a.weight": 2}


def test_layers_share_by_what_they_have_and_surplus_goes_where_there_is_room():
    # n = round(0.5 * 12) = 6; shares 6 * 3 / 12 = 1.5, 6 * 8 / 12 = 4, 6 * 1 / 12 = 0.5: largest remainder to a
    groups = [sparse("a", (4, 4), 3), sparse("b", (4, 4), 8), sparse("c", (4, 4), 1)]
    assert born(Growth(1.0, 0.5), groups) == {"a.weight": 2, "b.weight": 4, "c.weight": 0}
    # n = round(0.5 * 10) = 5; a full layer of 8 hands its 4 on
    groups = [sparse("a", (2, 4), 8), sparse("b", (4, 4), 2)]
    assert born(Growth(1.0, 0.5), groups) == {"a.weight": 0, "b.weight": 5}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_all_kinds_of_growth_add_the_same_number_to_each_layer(scope):
    groups = [sparse("a", (9, 7), 20, seed=1), sparse("b", (5, 9), 12, seed=2)]
    counts = [born(Growth(0.9, 0.5, grow, target_scope=scope), groups) for grow in ("strategic", "random", "gradient")]
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0].values()) == 16


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=3), density=st.floats(0, 1),
    capacity=st.floats(0, 1), fraction=st.floats(0.01, 1), grow=st.sampled_from(["strategic", "random", "gradient"]),
    scope=st.sampled_from(["layer", "global"]), origin=st.sampled_from(["source", "end_next_layer", "node_strength"]),
)  # fmt: skip
def test_an_event_adds_exactly_its_count_whatever_the_options(
    shapes, density, capacity, fraction, grow, scope, origin
):
    groups = [sparse(str(i), shape, round(density * math.prod(shape)), i) for i, shape in enumerate(shapes)]
    places = sum(math.prod(shape) for shape in shapes)
    active = sum(int(g.weight.mask.sum()) for g in groups)
    room = math.floor(capacity * places + 1e-9) - active
    count = sum(born(Growth(capacity, fraction, grow, 0.3, scope, origin), groups).values())
    assert count == max(0, min(room, max(1, round(fraction * active))))


@given(
    count=st.integers(0, 40),
    parts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5),
)
def test_shares_are_proportional_as_far_as_there_is_room(count, parts):
    weights, rooms = [w for w, _ in parts], [r for _, r in parts]
    given_out = shared_out(count, weights, rooms)
    assert sum(given_out) == min(count, sum(rooms))
    assert all(0 <= n <= room for n, room in zip(given_out, rooms, strict=True))
    if all(n < room for n, room in zip(given_out, rooms, strict=True)) and sum(weights):
        assert all(abs(n - count * w / sum(weights)) < 1 for n, w in zip(given_out, weights, strict=True))


def test_equal_remainders_go_to_the_first_and_layers_without_weight_share_by_room():
    assert shared_out(1, [1, 1], [5, 5]) == [1, 0]
    assert shared_out(3, [0, 0], [2, 4]) == [1, 2]
    assert shared_out(4, [1, 0, 0], [1, 1, 2]) == [1, 1, 2]


# --- which


def test_layers_grow_from_what_was_there_before_whatever_their_order():
    a, b = group("a", [[8, 0, 0], [0, -9, 1]]), group("b", [[5, 1, 0], [0, 0, -6]])
    growth = Growth(1.0, 0.6, target_fraction=0.4, endpoint="tail_ordered", k_sigma=0.1)
    one, other = growth([a, b], 1), growth([b, a], 1)
    # a: columns 1, 0 and rows 0, 1; b: columns 2, 0 and rows 0, 1
    assert one["a.weight"].int().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert one["b.weight"].int().tolist() == [[1, 1, 1], [1, 0, 1]]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_origins_are_the_sources_of_the_strongest_connections_of_each_layer():
    groups = [sparse("a", (60, 40), 200, seed=1), sparse("b", (50, 60), 200, seed=2)]
    growth = Growth(1.0, 0.1)
    masks = growth(groups, 1)
    assert growth.fallback == {"a.weight": (0, 20), "b.weight": (0, 20)}
    for g in groups:
        columns = g.weight.mask.shape[1]
        index = g.weight.mask.flatten().nonzero().squeeze(1)
        sources = index[strongest(g.weight.scores["weight"].flatten()[index], 20)] % columns
        new = (masks[g.weight.name] & ~g.weight.mask).flatten().nonzero().squeeze(1)
        assert torch.isin(new % columns, sources).all()


def test_a_global_ranking_gives_to_layers_by_their_targets():
    # targets: ceil(0.5 * 6) = 3 of all: 9, 8 and 7, two of them in b; n = 3: a 1, b 2
    a, b = group("a", [[9, 1, 1, 0, 0]]), group("b", [[8, 7, 1, 0, 0]])
    growth = Growth(1.0, 0.5, target_fraction=0.5, target_scope="global")
    assert born(growth, [a, b]) == {"a.weight": 1, "b.weight": 2}
    assert born(Growth(1.0, 0.5, target_fraction=0.5), [a, b]) == {"a.weight": 2, "b.weight": 1}


def test_new_connections_may_start_where_targets_of_the_layer_before_end():
    # the target of a ends in unit 2: new connections of b start in column 2
    a = group("a", [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 9], [0, 1, 0, 0]])
    b = group("b", [[9, 1, 0, 0]] + [[0, 0, 0, 0]] * 3)
    growth = Growth(1.0, 0.5, target_fraction=0.25, origin="end_next_layer", endpoint="uniform")
    masks = growth([a, b], 1)
    new = (masks["b.weight"] & ~b.weight.mask).nonzero()
    assert new[:, 1].tolist() == [2]
    # a has no layer before it, so its target's own source counts: column 3
    assert (masks["a.weight"] & ~a.weight.mask).nonzero()[:, 1].tolist() == [3, 3]


def test_layers_whose_sizes_do_not_meet_start_from_their_own_targets():
    a, b = group("a", [[1, 9]]), group("b", [[9, 1, 0, 0]] + [[0, 0, 0, 0]] * 3)
    growth = Growth(1.0, 0.5, target_fraction=0.25, origin="end_next_layer", endpoint="uniform")
    new = (growth([a, b], 1)["b.weight"] & ~b.weight.mask).nonzero()
    assert new[:, 1].unique().tolist() == [0]


def test_new_connections_may_start_in_the_strongest_columns():
    # sums of |w| by column: 4, 5, 0, 1; ceil(0.25 * 4) = 1 column: 1, though 4 is the strongest single weight
    a = group("a", [[4, 0, 0, 0], [0, 3, 0, 1], [0, -2, 0, 0], [0, 0, 0, 0]])
    growth = Growth(1.0, 0.5, target_fraction=0.25, origin="node_strength", endpoint="uniform")
    new = (growth([a], 1)["a.weight"] & ~a.weight.mask).nonzero()
    assert new[:, 1].tolist() == [1, 1]


def test_gradient_growth_takes_the_largest_at_free_places_first_of_equals():
    a = group("a", [[1, 0, 0], [0, 1, 0]], gradients=[[9.0, 2.0, 3.0], [2.0, 9.0, 1.0]])
    assert Growth(1.0, 1.0, "gradient")([a], 1)["a.weight"].int().tolist() == [[1, 1, 1], [0, 1, 0]]


def test_kernels_are_connections_too():
    mask = torch.tensor([[1, 0], [0, 1]]).bool()[..., None, None]
    a = group("a", mask * 2.0, mask)
    masks = Growth(1.0, 1.0)([a], 1)
    assert masks["a.weight"].shape == (2, 2, 1, 1)
    assert masks["a.weight"].all()


def test_without_any_connection_places_are_drawn_uniformly():
    a = group("a", torch.zeros(3, 3))
    growth = Growth(0.5, 0.5)
    assert born(growth, [a]) == {"a.weight": 1}
    assert growth.fallback == {"a.weight": (1, 1)}


def test_half_precision_weights_are_taken():
    g = sparse("a", (6, 6), 9)
    half = Group(g.layer, Part(g.weight.name, g.weight.mask, {"weight": g.weight.scores["weight"].bfloat16()}))
    assert born(Growth(1.0, 0.5), [half]) == {"a.weight": 4}


# --- what is said


def test_uniform_draws_are_logged_and_kept(caplog):
    # both weights lie in row 0, which is full
    a = group("a", [[1, -1], [0, 0]])
    growth = Growth(1.0, 1.0)
    with caplog.at_level(logging.INFO, "synaptree"):
        growth([a], 7)
    assert caplog.messages == ["step 7, a.weight: 2 of 2 new connections drawn uniformly"]
    assert growth.fallback == {"a.weight": (2, 2)}


def test_a_later_event_forgets_the_draws_of_an_earlier_one():
    growth = Growth(1.0, 1.0)
    growth([group("a", [[1, -1], [0, 0]])], 1)
    growth([group("b", [[1.0, 1.0]])], 2)
    assert growth.fallback == {}
    assert growth == Growth(1.0, 1.0)


# --- bad input


@pytest.mark.parametrize(("options", "message"), [
    ({"capacity": 1.5}, "capacity = 1.5: wanted a number from 0"),
    ({"capacity": 0.5, "fraction": 0.0}, "grow_fraction = 0.0: wanted a share above 0"),
    ({"capacity": 0.5, "target_fraction": -1.0}, "target_fraction = -1.0"),
    ({"capacity": 0.5, "grow": "strategc"}, "unknown grow 'strategc'; did you mean 'strategic'"),
    ({"capacity": 0.5, "target_scope": "net"}, "unknown target_scope 'net'"),
    ({"capacity": 0.5, "origin": "sources"}, "unknown origin 'sources'; did you mean 'source'"),
    ({"capacity": 0.5, "endpoint": "gauss"}, "unknown endpoint 'gauss'"),
    ({"capacity": 0.5, "k_sigma": -0.5}, "k_sigma = -0.5"),
])  # fmt: skip
def test_an_option_out_of_range_is_refused_when_the_rule_is_made(options, message):
    with pytest.raises(OptionError, match=message):
        Growth(**options)


def test_weights_that_are_no_numbers_are_named():
    with pytest.raises(NumericError, match=r"a\.weight: signal 'weight' holds NaN"):
        Growth(1.0)([group("a", [[math.nan, 0.0]])], 1)
