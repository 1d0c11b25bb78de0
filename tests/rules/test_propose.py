import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from synaptree.core.errors import NumericError, OptionError, ShapeError
from synaptree.rules.propose import (
    ENDPOINTS,
    end_points,
    merged,
    propose,
    random_places,
    strongest,
    tail_normal,
)

NONE = torch.empty(0, dtype=torch.int64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(shape, density, seed=0):
    """Return the index and the weights of a random sparse layer."""
    rng = seeded(seed)
    index = random_places(shape, NONE, round(density * math.prod(shape)), rng)
    return index, torch.randn(len(index), generator=rng)


def rows_of(endpoint, shape, index, values, draws=20_000, **options):
    draw = end_points(shape, index, values, strongest(values, len(values)), endpoint, **options)
    return draw(torch.arange(draws), seeded(1))


# --- proposals


@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), density=st.floats(0, 1), count=st.integers(-2, 90),
    endpoint=st.sampled_from(ENDPOINTS), k_sigma=st.sampled_from([0.0, 1.0, 9.0]), fraction=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_proposal_has_exactly_the_places_asked_for_all_new(
    rows, columns, density, count, endpoint, k_sigma, fraction, seed
):
    shape = (rows, columns)
    index, values = layer(shape, density, seed)
    places, fallback = propose(
        shape, index, values, count, seeded(seed), target_fraction=fraction, endpoint=endpoint, k_sigma=k_sigma
    )
    assert len(places) == max(0, min(count, rows * columns - len(index)))
    assert (places[1:] > places[:-1]).all()
    assert not torch.isin(places, index).any()
    assert places.dtype == torch.int64
    assert ((places >= 0) & (places < rows * columns)).all()
    assert 0 <= fallback <= len(places)


@pytest.mark.parametrize("endpoint", ["gauss_edge", "gauss_pos", "strength", "uniform"])
def test_new_connections_start_where_targets_start(endpoint):
    shape = (50, 80)
    index, values = layer(shape, 0.05)
    places, fallback = propose(shape, index, values, 20, seeded(), target_fraction=0.1, endpoint=endpoint)
    # 0.05 * 4000 = 200 connections, 20 targets
    sources = index[strongest(values, 20)] % 80
    assert fallback == 0
    assert torch.isin(places % 80, sources).all()


def test_targets_are_walked_in_order_each_once_before_any_again():
    # targets by |w|: columns 3, 1, 2; all rows but 0 are free, so every draw but those of row 0 is new
    index, values = torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, -8.0, 7.0, 9.0])
    for seed in range(20):
        two = propose((1000, 4), index, values, 2, seeded(seed), target_fraction=0.75, endpoint="uniform").places
        assert sorted((two % 4).tolist()) == [1, 3]


def test_the_walk_goes_round_until_the_count_is_met():
    index, values = torch.tensor([0]), torch.tensor([1.0])
    # one target in column 0: rows 1, 2, 3 of it are all it can lead to
    places, fallback = propose((4, 2), index, values, 3, seeded(), endpoint="uniform")
    assert (places.tolist(), fallback) == ([2, 4, 6], 0)


def test_a_further_round_goes_on_where_the_walk_stopped():
    # columns 0, 1 by size; mean 0.5, 0.5 sigma = 1.75: rows 0, 1. One is wanted, so a round is a step: (0, 0)
    # and (1, 1) exist, then the second walk begins, one row further: (1, 0)
    index, values = torch.tensor([0, 3]), torch.tensor([4.0, -3.0])
    got = propose((2, 2), index, values, 1, seeded(), target_fraction=1.0, endpoint="tail_ordered", k_sigma=0.5)
    assert (got.places.tolist(), got.fallback) == ([2], 0)


def test_explicit_targets_and_origins_take_the_place_of_the_strongest():
    index, values = torch.tensor([0, 5]), torch.tensor([9.0, 1.0])
    weak = propose((3, 3), index, values, 2, seeded(), targets=torch.tensor([1]), endpoint="uniform")
    assert (weak.places.tolist(), weak.fallback) == ([2, 8], 0)
    middle = propose((3, 3), index, values, 3, seeded(), origins=torch.tensor([1]), endpoint="uniform")
    assert (middle.places.tolist(), middle.fallback) == ([1, 4, 7], 0)


def test_proposals_that_are_all_taken_are_drawn_uniformly_and_counted():
    # both weights lie one sigma from their mean, in row 0, which is full; four places are free
    index, values = torch.tensor([0, 1]), torch.tensor([1.0, -1.0])
    places, fallback = propose((3, 2), index, values, 3, seeded(), target_fraction=1.0, k_sigma=1.0)
    assert (len(places), fallback) == (3, 3)
    assert set(places.tolist()) <= {2, 3, 4, 5}


def test_without_connections_or_targets_all_is_drawn_uniformly():
    assert propose((2, 2), NONE, torch.empty(0), 3, seeded()).fallback == 3
    assert propose((2, 2), torch.tensor([0]), torch.ones(1), 2, seeded(), target_fraction=0.0).fallback == 2


def test_the_last_free_places_of_a_layer_are_found():
    index = torch.tensor([place for place in range(10_000) if place not in (17, 4_242, 9_999)])
    places, _ = propose((100, 100), index, torch.randn(len(index)), 3, seeded())
    assert places.tolist() == [17, 4_242, 9_999]


def test_a_layer_too_large_to_be_dense_grows():
    shape = (10**6, 10**6)  # 10^12 places, a terabyte as a mask
    index, values = random_places(shape, NONE, 1000, seeded()), torch.randn(1000)
    places, fallback = propose(shape, index, values, 100, seeded())
    assert (len(places), fallback) == (100, 0)
    assert places[-1] > 2**32


def test_one_seed_gives_one_proposal_and_torchs_own_random_state_is_left_alone():
    index, values = layer((40, 40), 0.1)
    before = torch.get_rng_state()
    first, second = (propose((40, 40), index, values, 9, seeded(3)).places for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_single_and_half_precision_weights_are_taken():
    index, values = layer((20, 20), 0.2)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert len(propose((20, 20), index, values.to(dtype), 8, seeded()).places) == 8


# --- end points


@pytest.mark.parametrize("k", [0.0, 1.0, 2.0, 3.0])
def test_draws_from_the_tails_are_a_truncated_normal_on_both_sides(k):
    z = tail_normal(20_000, k, seeded()).numpy()
    assert (abs(z) >= k).all()
    assert stats.kstest(abs(z), stats.truncnorm(k, math.inf).cdf).pvalue > 0.01
    assert stats.binomtest(int((z > 0).sum()), len(z)).pvalue > 0.01


def test_no_draw_falls_below_a_tail_too_far_out_to_compute():
    assert (tail_normal(1000, 9.0, seeded()).abs() >= 9.0).all()


def test_a_gaussian_end_point_is_the_row_of_the_nearest_weight():
    index, values = layer((30, 30), 0.2)
    got = rows_of("gauss_edge", (30, 30), index, values, draws=500, k_sigma=0.5)
    v = values.double()
    wanted = v.mean() + v.std(correction=0) * tail_normal(500, 0.5, seeded(1))
    nearest = (v[None, :] - wanted[:, None]).abs().argmin(1)
    assert torch.equal(got, index[nearest] // 30)


def test_weights_within_the_tails_are_the_only_ones_that_name_rows():
    # mean 0, sigma = sqrt(200 / 4) = 7.07: beyond it +-10 are nearest, of rows 0 and 3; +-1 never
    index, values = torch.tensor([0, 3, 4, 7]), torch.tensor([10.0, 1.0, -1.0, -10.0])
    assert rows_of("gauss_edge", (4, 2), index, values, k_sigma=1.0).unique().tolist() == [0, 3]
    assert rows_of("gauss_edge", (4, 2), index, values, k_sigma=0.0).unique().tolist() == [0, 1, 2, 3]


def test_with_the_whole_bell_rows_are_drawn_by_their_number_of_inputs():
    shape = (100, 1000)
    index, values = layer(shape, 0.1)
    # clearly unequal rows: row j keeps about (j + 1) of its 100 inputs
    keep = torch.rand(len(index), generator=seeded()) < (index // 1000 + 1) / 100
    index, values = index[keep], values[keep]
    drawn = rows_of("gauss_edge", shape, index, values, 50_000, k_sigma=0.0).bincount(minlength=100)
    degree = (index // 1000).bincount(minlength=100)
    assert stats.pearsonr(drawn.numpy(), degree.numpy()).statistic > 0.95


def test_rows_are_drawn_by_the_sum_of_their_absolute_weights():
    # rows 0 and 1 hold 3 + 2 and 15, row 2 nothing: one draw in four is row 0
    index, values = torch.tensor([0, 1, 2]), torch.tensor([3.0, -2.0, 15.0])
    drawn = rows_of("strength", (3, 2), index, values).bincount(minlength=3)
    assert drawn[2] == 0
    assert stats.binomtest(int(drawn[0]), 20_000, 0.25).pvalue > 0.01


def test_positions_are_normal_around_the_end_of_the_target_modulo_the_rows():
    # one target, in row 0 of 60; spread = max(1, 0.5 * 60 / 6) = 5, and rounding adds a variance of 1 / 12
    index, values = torch.tensor([0]), torch.tensor([1.0])
    rows = rows_of("gauss_pos", (60, 1), index, values, k_sigma=0.5)
    assert ((rows >= 0) & (rows < 60)).all()
    offset = ((rows + 30) % 60 - 30).double()
    assert float(offset.mean()) == pytest.approx(0, abs=0.15)
    assert float(offset.var()) == pytest.approx(25 + 1 / 12, rel=0.05)
    narrow = rows_of("gauss_pos", (60, 1), index, values, k_sigma=0.0)
    assert float(((narrow + 30) % 60 - 30).double().var()) == pytest.approx(1 + 1 / 12, rel=0.05)


def test_any_row_may_be_drawn_uniformly():
    drawn = rows_of("uniform", (5, 1), torch.tensor([0]), torch.ones(1)).bincount(minlength=5)
    assert stats.chisquare(drawn.numpy()).pvalue > 0.01


def test_rows_of_the_tails_come_in_order_one_further_at_each_walk():
    # mean 0, sigma = sqrt((81 + 64 + 49 + 0 + 576) / 5) = 12.4 > 9, 8, 7: only row 4 with k = 1;
    # with k = 0.6 (7.4) rows 0, 1, 4
    index, values = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([9.0, 8.0, 7.0, 0.0, -24.0])
    targets = strongest(values, 2)

    def rows(k):
        return end_points((5, 1), index, values, targets, "tail_ordered", k)(torch.arange(6), seeded()).tolist()

    assert rows(1.0) == [4] * 6
    assert rows(0.6) == [0, 1, 1, 4, 4, 0]
    assert rows(9.0) == []


def test_where_no_weight_is_in_the_tail_all_is_drawn_uniformly():
    got = propose((2, 2), torch.tensor([0]), torch.ones(1), 2, seeded(), endpoint="tail_ordered", k_sigma=5.0)
    assert got.fallback == 2


# --- places


def test_every_set_of_free_places_is_equally_likely():
    rng, taken, drawn = seeded(), torch.tensor([1, 4]), {}
    for _ in range(1800):
        places = tuple(random_places((3, 2), taken, 2, rng).tolist())
        drawn[places] = drawn.get(places, 0) + 1
    assert set(drawn) == {(0, 2), (0, 3), (0, 5), (2, 3), (2, 5), (3, 5)}
    assert stats.chisquare(list(drawn.values())).pvalue > 0.01


def test_a_few_of_many_free_places_are_uniform():
    places = random_places((100, 100), torch.arange(5_000), 1_000, seeded())
    assert len(places.unique()) == 1_000
    assert stats.kstest((places - 5_000).numpy() / 5_000, "uniform").pvalue > 0.01


@given(taken=st.sets(st.integers(0, 19)), count=st.integers(-1, 25))
def test_random_places_are_free_and_as_many_as_there_are(taken, count):
    places = random_places((4, 5), torch.tensor(sorted(taken), dtype=torch.int64), count, seeded()).tolist()
    assert places == sorted(set(places) - taken)
    assert len(places) == max(0, min(count, 20 - len(taken)))


def test_equal_weights_are_ranked_by_position():
    assert strongest(torch.tensor([2.0, -1.0, 1.0, -2.0, 1.0]), 4).tolist() == [0, 3, 1, 2]
    assert strongest(torch.empty(0), 0).tolist() == []


def test_indices_are_merged_in_order():
    assert merged(torch.tensor([0, 7]), torch.tensor([3, 9])).tolist() == [0, 3, 7, 9]


# --- bad input


@pytest.mark.parametrize(("index", "values", "error", "message"), [
    ([3, 1], [1.0, 1.0], ShapeError, r"the index of 2 connections must rise from 0 to below 6 .* shape \(2, 3\)"),
    ([1, 1], [1.0, 1.0], ShapeError, "without repeats; sort it"),
    ([6], [1.0], ShapeError, "below 6"),
    ([-1], [1.0], ShapeError, "rise from 0"),
    ([1], [1.0, 2.0], ShapeError, r"as many values, got \(1,\) and \(2,\)"),
    ([1], [math.nan], NumericError, "a weight is NaN or infinite"),
    ([1], [math.inf], NumericError, "a weight is NaN or infinite"),
])  # fmt: skip
def test_a_layer_that_is_none_is_refused(index, values, error, message):
    rng = seeded()
    with pytest.raises(error, match=message):
        propose((2, 3), torch.tensor(index), torch.tensor(values), 1, rng)
    assert torch.equal(rng.get_state(), seeded().get_state())


@pytest.mark.parametrize(("options", "message"), [
    ({"endpoint": "gaus_edge"}, "unknown endpoint 'gaus_edge'; did you mean 'gauss_edge'"),
    ({"k_sigma": -1.0}, "k_sigma = -1.0: wanted"), ({"k_sigma": math.nan}, "k_sigma = nan"),
    ({"target_fraction": 1.5}, "target_fraction = 1.5: wanted a share"),
])  # fmt: skip
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        propose((2, 3), torch.tensor([0]), torch.ones(1), 1, seeded(), **options)
