import json
import sys
from dataclasses import asdict
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synaptree.core.errors import OptionError, ShapeError, SynaptreeError
from synaptree.core.topology import Topology
from synaptree.measure.similarity import (
    agree,
    agree_chance,
    check_same_network,
    compare,
    dice,
    jaccard,
    kappa,
    neuron,
    nnstd,
    nnstd_chance,
    overlap,
    overlap_chance,
    seed_chance,
    seed_floor,
)


def bits(*rows):
    return torch.tensor([[entry == "1" for entry in row] for row in rows])


# fc1: 12 places, connections (unit, input) 3 and 5, (0, 0) in common; fc2: 6 places, 3 and 3, (1, 1) in common
A = {"fc1.weight": bits("1100", "0000", "0010"), "fc2.weight": bits("100", "011")}
B = {"fc1.weight": bits("1011", "1100", "0000"), "fc2.weight": bits("010", "110")}
SEED = {"fc1.weight": bits("1100", "1000", "0000"), "fc2.weight": bits("000", "010")}


def random_mask(shape, density, rng, within=None):
    """A mask of exactly this density, which has all connections of `within`."""
    score = torch.rand(shape, generator=rng)
    score = score if within is None else score + within
    return score >= score.flatten().topk(round(density * score.numel())).values.min()


def random_network(density, rng, within=None):
    shapes = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
    return {
        name: random_mask(shape, density, rng, None if within is None else within[name])
        for name, shape in shapes.items()
    }


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize(
    ("measure", "wanted"),
    [
        (overlap, 2 / 6),  # 1 + 1 of the 6 connections of a; b has 8
        (overlap_chance, (3 * 5 / 12 + 3 * 3 / 6) / 6),
        (jaccard, 2 / 12),  # 6 + 8 - 2
        (dice, 4 / 14),
        (agree, 8 / 18),  # 2 common, 18 - 12 in neither
        (agree_chance, ((3 * 5 + 9 * 7) / 12 + (3 * 3 + 3 * 3) / 6) / 18),
        (kappa, -3 / 17),  # (16/36 - 19/36) / (1 - 19/36)
        (neuron, 3 / 4),  # unit 0 of fc1, both of fc2; each network has 2 + 2
    ],
)
def test_a_measure_is_what_one_counts_by_hand(measure, wanted):
    assert measure(A, B) == pytest.approx(wanted, abs=1e-12)
    assert measure(B, A) == pytest.approx(wanted, abs=1e-12)


def test_what_comes_from_the_seed_is_counted_by_hand():
    assert seed_floor(A, B, SEED) == pytest.approx(2 / 6)  # both common connections are the seed's
    # outside the seed fc1 has 1 and 3 connections on 9 places, fc2 2 and 2 on 5
    assert seed_chance(A, B, SEED) == pytest.approx((2 + 1 * 3 / 9 + 2 * 2 / 5) / 6)


def test_units_are_matched_layer_by_layer():
    # fc1: units 0, 1, 2 of a are nearest to 1 (equal), 2 (both without inputs) and 0 ({2} and {0, 2, 3}: 2/3).
    # fc2 of b reads these as 100 and 101 where it was 010 and 110: class 0 as in a, class 1 {1, 2} and {0, 2}: 2/3.
    assert nnstd(A, B) == pytest.approx({"fc1.weight": (0 + 0 + 2 / 3) / 3, "fc2.weight": (0 + 2 / 3) / 2})


def test_classes_keep_their_places_unless_the_last_layer_is_a_hidden_one():
    a = {"fc": bits("110", "001")}
    assert nnstd(a, {"fc": a["fc"].flip(0)}) == {"fc": 1.0}
    assert nnstd(a, {"fc": a["fc"].flip(0)}, classes=False) == {"fc": 0.0}


def test_all_measures_come_together_by_layer_and_in_total():
    found = compare(A, B, SEED)
    assert (found.total.size, found.total.a, found.total.b, found.total.both) == (18, 6, 8, 2)
    for measure in (overlap, overlap_chance, jaccard, dice, agree, agree_chance, kappa, neuron):
        assert getattr(found.total, measure.__name__) == measure(A, B)
        for name, layer in found.layers.items():
            assert getattr(layer, measure.__name__) == measure({name: A[name]}, {name: B[name]})
    assert found.total.seed_floor == seed_floor(A, B, SEED)
    assert found.total.seed_chance == seed_chance(A, B, SEED)
    assert found.layers["fc1.weight"].nnstd == pytest.approx(7 / 9)
    assert found.total.nnstd == pytest.approx((7 / 9 + 2 / 3) / 2)
    chance = nnstd_chance(A, B)
    assert found.total.nnstd_chance == pytest.approx(1 - sum(chance.values()) / 2)
    assert json.loads(json.dumps(asdict(found)))["total"] == asdict(found.total)


@pytest.mark.parametrize(("density", "wanted"), [(0.02, 0.961), (0.05, 0.905), (0.1, 0.820)])
def test_independent_masks_agree_by_what_they_lack_and_kappa_sees_through_it(density, wanted, rng):
    a, b = random_network(density, rng), random_network(density, rng)
    assert agree(a, b) == pytest.approx(wanted, abs=0.005)
    assert agree_chance(a, b) == pytest.approx(wanted, abs=0.005)
    assert kappa(a, b) == pytest.approx(0, abs=0.01)
    assert not compare(a, b, draws=1).clear


@pytest.mark.parametrize(("density", "wanted"), [(0.2, 0.56), (0.11, 0.91)])
def test_networks_that_grow_by_chance_from_one_seed_overlap_by_it(density, wanted, rng):
    seed = random_network(0.1, rng)
    a, b = random_network(density, rng, seed), random_network(density, rng, seed)
    assert overlap(a, b) == pytest.approx(wanted, abs=0.006)
    assert seed_floor(a, b, seed) == pytest.approx(0.1 / density, abs=0.001)
    assert seed_chance(a, b, seed) == pytest.approx(overlap(a, b), abs=0.005)
    found = compare(a, b, seed, draws=1)
    assert found.verdict.startswith("not clearly above what the common seed leads to: overlap 0.")
    assert compare(a, b, draws=1).verdict.startswith("above chance, no seed given: overlap 0.")


def test_networks_that_grow_alike_are_above_chance_and_seed(rng):
    seed = random_network(0.05, rng)
    grown = random_network(0.15, rng, seed)
    a, b = random_network(0.2, rng, grown), random_network(0.2, rng, grown)
    found = compare(a, b, seed, draws=1)
    assert found.clear
    assert found.verdict.startswith("above chance and seed floor: overlap 0.7")


def test_a_verdict_names_the_higher_level_with_all_numbers():
    # the seed is kept by b only; of the 7 other places a has 3 and b 3: 3 * 3 / 7 of 3, by chance 3 * 4 / 8 of 3
    a, b, seed = ({"fc1": bits(row)} for row in ("01110000", "10001110", "10000000"))
    assert compare(a, b, seed).verdict == (
        "not clearly above chance: overlap 0.000, chance 0.500, seed floor 0.000 (0.429 with independent growth)"
    )
    # all three are the seed's; nothing else is left
    a, b, seed = ({"fc1": bits(row)} for row in ("11100", "11100", "11100"))
    assert compare(a, b, seed).verdict == (
        "not clearly above what the common seed leads to: overlap 1.000, chance 0.600, "
        "seed floor 1.000 (1.000 with independent growth)"
    )


@pytest.mark.parametrize(("common", "clear"), [(11, False), (12, True)])
def test_an_overlap_is_clear_from_a_twentieth_above_chance_on(common, clear):
    # 32 of 100 places each: chance 32 * 32 / 100 of 32 is 0.32; 11 / 32 is 0.02 above it, 12 / 32 is 0.055
    a, b = torch.zeros(10, 10, dtype=torch.bool), torch.zeros(10, 10, dtype=torch.bool)
    a.view(-1)[:32] = b.view(-1)[32 - common : 64 - common] = True
    assert compare({"fc": a}, {"fc": b}).clear is clear


def test_a_network_is_wholly_like_itself(rng):
    a = random_network(0.1, rng)
    total = compare(a, a, a, draws=1).total
    shares = ("overlap", "seed_floor", "jaccard", "dice", "agree", "kappa", "neuron", "nnstd")
    assert {name: getattr(total, name) for name in shares} == dict.fromkeys(shares, 1.0)


def test_a_network_with_hidden_units_in_another_order_is_at_no_distance_though_its_edges_differ(rng):
    a = random_network(0.1, rng)
    first, second = torch.randperm(300, generator=rng), torch.randperm(100, generator=rng)
    b = {
        "fc1.weight": a["fc1.weight"][first],
        "fc2.weight": a["fc2.weight"][second][:, first],
        "fc3.weight": a["fc3.weight"][:, second],
    }
    assert nnstd(a, b) == dict.fromkeys(a, 0.0)
    assert overlap(a, b) == pytest.approx(overlap_chance(a, b), abs=0.01)


def test_units_stay_in_place_where_several_matches_are_the_best():
    # each of a's units is at 1 from the first of b and at 1/2 from the second, in place or crossed
    a, b = {"fc1": bits("001", "001"), "fc2": bits("10")}, {"fc1": bits("000", "011"), "fc2": bits("10")}
    assert nnstd(a, b) == {"fc1": 0.75, "fc2": 0.0}
    same = {"fc1": torch.ones(5, 3, dtype=torch.bool), "fc2": bits("10110", "01000")}
    assert nnstd(same, same) == {"fc1": 0.0, "fc2": 0.0}


masks = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda entries: torch.tensor(entries).view(3, 4))


networks = st.fixed_dictionaries({"x": masks, "y": masks})


@given(networks, networks, networks)
def test_measures_are_symmetric_and_keep_their_order(a, b, seed):
    assert jaccard(a, b) <= dice(a, b) <= overlap(a, b) <= 1
    for measure in (overlap, overlap_chance, jaccard, dice, agree, agree_chance, kappa, neuron):
        assert measure(a, b) == measure(b, a)
        assert (-1 if measure is kappa else 0) <= measure(a, b) <= 1
    assert seed_floor(a, b, a) == overlap(a, b)
    assert seed_floor(a, b, seed) <= seed_chance(a, b, seed) <= 1 + 1e-12


@given(masks, masks)
def test_the_match_of_units_is_the_best_there_is(a, b):
    def difference(p, q):
        p, q = set(p.nonzero().flatten().tolist()), set(q.nonzero().flatten().tolist())
        return len(p ^ q) / len(p | q) if p | q else 0.0

    best = min(sum(difference(a[i], b[j]) for i, j in enumerate(order)) / 3 for order in permutations(range(3)))
    assert nnstd({"fc": a}, {"fc": b}, classes=False)["fc"] == pytest.approx(best, abs=1e-8)


def test_chance_of_matching_is_what_shuffling_leads_to(rng):
    a, b = random_network(0.1, rng), random_network(0.1, rng)
    assert nnstd_chance(a, b, draws=2) == pytest.approx(nnstd(a, b), abs=0.01)
    # one input each of four: the same with a chance of 1/4
    a, b = {"fc": bits("1000")}, {"fc": bits("1000")}
    assert nnstd_chance(a, b, draws=1000)["fc"] == pytest.approx(3 / 4, abs=0.05)


def test_shuffles_follow_from_their_seed():
    assert nnstd_chance(A, B) == nnstd_chance(A, B)
    assert nnstd_chance(A, B) != nnstd_chance(A, B, shuffle_seed=1)


def test_shares_of_nothing_are_whole_where_both_have_nothing():
    nothing, something, full = ({"fc": bits(row)} for row in ("000", "010", "111"))
    empty = compare(nothing, nothing).total
    assert (empty.overlap, empty.jaccard, empty.dice, empty.agree, empty.neuron, empty.nnstd) == (1, 1, 1, 1, 1, 1)
    assert (empty.overlap_chance, empty.kappa) == (1, 0)
    assert not compare(nothing, nothing).clear
    one = compare(nothing, something).total
    assert (one.overlap, one.overlap_chance, one.jaccard, one.dice, one.neuron, one.nnstd) == (0, 0, 0, 0, 0, 0)
    assert (compare(full, full).total.kappa, kappa(something, something)) == (0, 1)


def test_a_dense_output_layer_is_named_and_can_be_left_out_but_fixes_the_classes():
    dense = torch.ones(2, 3, dtype=torch.bool)
    a, b = A | {"fc2.weight": dense}, B | {"fc2.weight": dense}
    found = compare(a, b)
    assert found.dense == ("fc2.weight",)
    assert found.notes == ("dense in both and yet part of the total: fc2.weight",)
    assert found.total.both == 1 + 6
    for pattern in ("fc2", "fc2.weight", "*2"):
        grown = compare(a, b, exclude=[pattern])
        assert (grown.excluded, grown.notes) == (("fc2.weight",), ())
        assert grown.total == grown.layers["fc1.weight"] == compare(a, b, layers=["fc1"]).total
        assert grown.total.nnstd == pytest.approx(7 / 9)
        assert grown.layers["fc2.weight"].nnstd == 1


def test_convolutions_are_compared_but_their_units_not_matched():
    a, b = torch.zeros(2, 2, 1, 2, dtype=torch.bool), torch.zeros(2, 2, 1, 2, dtype=torch.bool)
    a[0, 0, 0], b[0, 0, 0, 0], b[1, 0, 0, 0] = True, True, True
    found = compare({"conv.weight": a}, {"conv.weight": b})
    assert (found.total.both, found.total.overlap, found.total.neuron) == (1, 0.5, 1)
    assert (found.total.nnstd, found.total.nnstd_chance, found.layers["conv.weight"].nnstd) == (None, None, None)
    assert found.notes == (
        "units are not matched: conv.weight has shape (2, 2, 1, 2), wanted (units, inputs); "
        "only chains of linear layers are supported, without convolutions",
    )
    for function in (nnstd, nnstd_chance):
        with pytest.raises(ShapeError, match=r"conv.weight has shape .* only chains of linear layers"):
            function({"conv.weight": a}, {"conv.weight": b})


def test_layers_that_do_not_follow_on_each_other_are_no_chain():
    a = {"one": torch.ones(3, 4).bool(), "two": torch.ones(2, 6).bool()}
    with pytest.raises(ShapeError, match="two has 6 inputs, one before it has 3 units"):
        nnstd(a, a)
    assert compare(a, a).total.nnstd is None


def test_a_kernel_of_a_topology_counts_as_its_weights():
    a, b = Topology(), Topology()
    for topology, granularity in ((a, "kernel"), (b, "weight")):
        topology.add("conv.weight", (2, 1, 2, 2), granularity)
        topology.add("conv.bias", (2,))
    a.edit({"conv.weight": bits("1", "0")[:, :, None, None]})
    weights = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    weights[0, 0, 0] = weights[1, 0, 0] = True
    b.edit({"conv.weight": weights})
    total = compare(a, b).total
    assert (total.size, total.a, total.b, total.both) == (8, 4, 4, 2)  # biases are left out
    assert overlap(a.masks, a.masks) == 1
    assert compare(a.masks, a.masks).total.size == 2


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ({"fc1.weight": A["fc1.weight"]}, "different weights: fc2.weight only in the first topology; wanted"),
        (A | {"fc3.weight": A["fc2.weight"]}, "fc3.weight only in the second"),
        (A | {"fc2.weight": bits("1000", "0110")}, r"the second: fc2.weight has shape \(2, 4\), in the first topology "
         r"it has \(2, 3\)"),
        (A | {"fc2.weight": torch.ones(2, 3)}, r"fc2.weight of shape \(2, 3\) is torch.float32; wanted a bool"),
        ({"fc1.bias": torch.ones(3).bool()}, "the second: wanted masks of weights, .* got 1 of fewer"),
    ],
)  # fmt: skip
def test_topologies_of_different_networks_are_refused(b, message):
    for function in (compare, overlap, nnstd):
        with pytest.raises(ShapeError, match=message):
            function(A, b)
    with pytest.raises(ShapeError, match=r"^y: |^y and x"):
        check_same_network({"x": A, "y": b})


def test_a_seed_of_another_network_is_refused():
    with pytest.raises(ShapeError, match="the seed and the first topology have different weights"):
        compare(A, B, {"fc1.weight": A["fc1.weight"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ["fc3"]}, "unknown layer 'fc3'.* Known: fc1.weight, fc2.weight"),
        ({"layers": ["conv*"]}, "unknown layer"),
        ({"exclude": ["fc*"]}, "no layer is left to compare"),
        ({"draws": 0}, "draws = 0: wanted at least 1"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(OptionError, match=message):
        compare(A, B, **options)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(SynaptreeError, match=r"needs scipy: pip install 'synaptree\[train\]'"):
        nnstd(A, B)
    assert overlap(A, B) == pytest.approx(1 / 3)
