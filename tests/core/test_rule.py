import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn, tensor

from synaptree.core.allocate import Global, Table
from synaptree.core.errors import NumericError, OptionError
from synaptree.core.layer import layers_of
from synaptree.core.rule import Density, Group, Part, Share, Threshold, carrying
from synaptree.core.structure import Blocks

ONE_THIRD = 1 / 3


def part(name, score, mask=None, **more):
    score = tensor(score)
    mask = torch.ones_like(score, dtype=torch.bool) if mask is None else tensor(mask).bool()
    signals = {"keep": score, "contribution": score, **{key: tensor(value) for key, value in more.items()}}
    return Part(name, mask, signals)


def group(score, mask=None, bias=None, name="fc", **more):
    """Return the group of a linear layer with these scores, and with a bias if it has scores."""
    model = nn.Module()
    model.add_module(name, nn.Linear(len(score[0]), len(score)))
    (layer,) = layers_of(model)
    return Group(layer, part(layer.weight, score, mask, **more), None if bias is None else part(layer.bias, bias))


def kept(rule, *groups, step=0):
    """Return the indices each mask keeps, by layer."""
    masks = rule(groups, step)
    return {name.removesuffix(".weight"): mask.flatten().nonzero().flatten().tolist() for name, mask in masks.items()}


# scores with many ties, on rows of one to five connections
rows = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=width, max_size=width), min_size=1, max_size=4
    )
)
masks_of = lambda score: st.lists(  # noqa: E731
    st.lists(st.booleans(), min_size=len(score[0]), max_size=len(score[0])), min_size=len(score), max_size=len(score)
)
masked = rows.flatmap(lambda score: st.tuples(st.just(score), masks_of(score)))


class TestDensity:
    @given(masked, st.floats(0, 1))
    def test_pruning_meets_the_count_or_keeps_what_is_left_and_never_revives(self, scored, density):
        score, mask = scored
        (new,) = Density(density)([group(score, mask)], 0).values()
        mask = tensor(mask).bool()
        assert not (new & ~mask).any()
        assert int(new.sum()) == min(round(density * mask.numel()), int(mask.sum()))

    @given(masked, st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
    def test_a_lower_density_keeps_a_part_of_what_a_higher_one_keeps(self, scored, densities):
        low, high = (Density(density)([group(*scored)], 0)["fc.weight"] for density in densities)
        assert not (low & ~high).any()

    @given(masked)
    def test_density_one_changes_nothing_and_density_zero_leaves_nothing(self, scored):
        mask = tensor(scored[1]).bool()
        assert torch.equal(Density(1.0)([group(*scored)], 0)["fc.weight"], mask)
        assert not Density(0.0)([group(*scored)], 0)["fc.weight"].any()

    def test_equal_scores_go_to_the_first(self):
        assert kept(Density(0.5), group([[1.0, 1.0], [1.0, 1.0]])) == {"fc": [0, 1]}

    def test_one_row_and_one_connection(self):
        assert kept(Density(0.4), group([[1.0, 3.0, 2.0]])) == {"fc": [1]}
        assert kept(Density(0.4), group([[1.0]])) == {"fc": []}

    def test_the_target_follows_its_schedule(self):
        rule = Density(lambda step: 1 - step / 4)
        assert kept(rule, group([[4.0, 3.0, 2.0, 1.0]]), step=1) == {"fc": [0, 1, 2]}
        with pytest.raises(OptionError, match=r"density = -0.25"):
            rule([group([[1.0]])], 5)

    def test_layers_share_the_density_by_the_allocation(self):
        layers = group([[9.0, 8.0]], name="a"), group([[1.0, 7.0]], name="b")
        assert kept(Density(0.75, Global()), *layers) == {"a": [0, 1], "b": [1]}
        assert kept(Density(0.0, Table({"a": 0.5, "b": 1.0})), *layers) == {"a": [0], "b": [0, 1]}

    def test_a_global_density_counts_dead_connections_as_connections(self):
        layers = group([[9.0, 8.0]], [[1, 0]], name="a"), group([[1.0, 7.0]], name="b")
        assert kept(Density(0.5, Global()), *layers) == {"a": [0], "b": [1]}

    def test_a_structure_shapes_what_is_kept(self):
        assert kept(Density(0.5, structure=Blocks(1, 2)), group([[0.0, 3.0], [2.0, 2.0]])) == {"fc": [2, 3]}

    def test_of_what_remains_the_cut_is_rounded_up(self):
        rule = Density(0.8, of_remaining=True)
        score = [[float(i) for i in range(10)]]
        assert kept(rule, group(score)) == {"fc": list(range(2, 10))}
        # 8 remain: ceil(0.2 * 8) = 2 go
        assert kept(rule, group(score, [[0, 0] + [1] * 8])) == {"fc": list(range(4, 10))}
        assert kept(rule, group(score, [[0] * 10])) == {"fc": []}

    @given(st.integers(0, 40), st.integers(1, 99))
    def test_of_what_remains_exactly_the_stated_share_goes(self, alive, percent):
        mask = [[i < alive for i in range(40)]]
        new = Density(1 - percent / 100, of_remaining=True)([group([[1.0] * 40], mask)], 0)["fc.weight"]
        assert alive - int(new.sum()) == -(-alive * percent // 100)

    def test_growth_drops_the_weakest_and_grows_where_the_signal_is_largest(self):
        scored = group(
            [[4.0, 1.0, 3.0, 2.0, 0.0, 0.0]], [[1, 1, 1, 1, 0, 0]], grow=[[9.0, 0.0, 9.0, 0.5, 1.0, 2.0]]
        )
        assert kept(Density(4 / 6, grow="grow", turnover=0.5), scored) == {"fc": [0, 2, 4, 5]}

    def test_a_rising_density_drops_its_share_all_the_same(self):
        scored = group([[2.0, 1.0, 0.0, 0.0, 0.0]], [[1, 1, 0, 0, 0]], grow=[[0.0, 0.0, 1.0, 2.0, 3.0]])
        assert kept(Density(0.8, grow="grow", turnover=0.5), scored) == {"fc": [0, 2, 3, 4]}

    def test_what_was_just_dropped_may_return(self):
        scored = group([[2.0, 1.0, 0.0]], [[1, 1, 0]], grow=[[0.0, 5.0, 1.0]])
        assert kept(Density(2 / 3, grow="grow", turnover=0.5), scored) == {"fc": [0, 1]}

    def test_without_turnover_growth_only_fills_up_to_the_target(self):
        scored = group([[1.0, 0.0, 0.0, 0.0]], [[1, 0, 0, 0]], grow=[[0.0, 1.0, 3.0, 3.0]])
        assert kept(Density(0.5, grow="grow"), scored) == {"fc": [0, 2]}

    @given(masked, st.floats(0, 1), st.floats(0, 1))
    def test_growth_meets_the_count_exactly_and_spares_the_strongest(self, scored, density, turnover):
        score, mask = scored
        new = Density(density, grow="grow", turnover=turnover)([group(score, mask, grow=score)], 0)["fc.weight"]
        assert int(new.sum()) == round(density * new.numel())
        ranked = tensor(score).masked_fill(~tensor(mask).bool(), -math.inf)
        alive = min(int(new.sum()), int(tensor(mask).sum()))
        spared = alive - round(turnover * alive)
        order = sorted(range(new.numel()), key=lambda i: (-ranked.flatten()[i].item(), i))
        assert new.flatten()[order[:spared]].all()

    def test_a_turnover_that_ends_ends_growth(self):
        rule = Density(0.5, grow="grow", turnover=lambda step: 1.0 if step < 5 else 0.0)
        scored = group([[2.0, 0.0]], [[1, 0]], grow=[[0.0, 1.0]])
        assert kept(rule, scored, step=4) == {"fc": [1]}
        assert kept(rule, scored, step=5) == {"fc": [0]}

    @pytest.mark.parametrize("options", [{"target": 1.5}, {"target": 0.5, "turnover": -0.1}])
    def test_shares_outside_zero_to_one_are_refused_at_once(self, options):
        with pytest.raises(OptionError, match="wanted a number from 0"):
            Density(**options)

    def test_a_signal_that_is_nan_or_missing_is_named_with_its_parameter(self):
        with pytest.raises(NumericError, match=r"fc.weight: signal 'keep' holds NaN"):
            Density(0.5)([group([[1.0, math.nan]])], 0)
        with pytest.raises(OptionError, match="unknown signal 'magnitude'"):
            Density(0.5, keep="magnitude")([group([[1.0]])], 0)


# multiples of 1/8: their sums are exact
eighths = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 40).map(lambda n: n / 8), min_size=width, max_size=width), min_size=1, max_size=4
    )
)


class TestCarrying:
    @given(eighths, st.sampled_from([0.125, 0.5, 0.75, 0.9375, 1.0]))
    def test_what_is_kept_carries_alpha_and_without_its_smallest_it_would_not(self, contribution, alpha):
        contribution = tensor(contribution)
        keep = carrying(contribution, alpha)
        for row, mask in zip(contribution, keep, strict=True):
            wanted = alpha * row.sum()
            assert row[mask].sum() >= wanted
            if row.sum() > 0:
                assert row[mask].sum() - row[mask].min() < wanted
            else:
                assert not mask.any()

    @given(eighths, st.sampled_from([0.125, 0.5, 0.75, 0.9375]), st.sampled_from(["paper", "released"]))
    def test_nothing_dropped_is_larger_than_anything_kept(self, contribution, alpha, keep_rule):
        contribution = tensor(contribution)
        keep = carrying(contribution, alpha, keep_rule)
        smallest_kept = contribution.masked_fill(~keep, math.inf).amin(1)
        largest_dropped = contribution.masked_fill(keep, -math.inf).amax(1)
        assert (smallest_kept >= largest_dropped).all()

    @pytest.mark.parametrize(("contribution", "paper", "released"), [
        ([0.5, 0.3, 0.2], [0, 1, 2], [0, 1]),
        ([0.4, 0.3, 0.3], [0, 1, 2], [0]),
        ([1.0, 1.0, 1.0], [0, 1, 2], []),
    ])  # fmt: skip
    def test_the_two_rules_differ_where_all_are_needed(self, contribution, paper, released):
        for rule, wanted in (("paper", paper), ("released", released)):
            assert carrying(tensor([contribution]), 0.95, rule)[0].nonzero().flatten().tolist() == wanted

    def test_the_published_code_drops_what_is_tied_with_the_first_to_go(self):
        row = tensor([[4.0, 1.0, 2.0, 2.0, 2.0]])
        assert carrying(row, 0.5).tolist() == [[True, False, True, False, False]]
        assert carrying(row, 0.5, "released").tolist() == [[True, False, False, False, False]]

    @pytest.mark.parametrize("keep_rule", ["paper", "released"])
    @pytest.mark.parametrize("alpha", [0.5, 1.0])
    def test_a_row_of_zeros_keeps_nothing(self, keep_rule, alpha):
        assert not carrying(torch.zeros(2, 3), alpha, keep_rule).any()

    def test_alpha_one_keeps_all_that_is_not_zero(self):
        for keep_rule in ("paper", "released"):
            assert carrying(tensor([[1e-30, 0.0, 1e30]]), 1.0, keep_rule).tolist() == [[True, False, True]]

    def test_many_small_contributions_add_up_beside_a_large_one(self):
        # in float32 2 ** 24 + 1 is 2 ** 24
        row = tensor([[2.0**24] + [1.0] * 8])
        assert int(carrying(row, (2**24 + 3.5) / (2**24 + 8)).sum()) == 5

    def test_equal_contributions_go_to_the_first(self):
        assert carrying(torch.ones(1, 4), 0.5).tolist() == [[True, True, False, False]]


class TestShare:
    def test_the_bias_is_one_of_the_contributors(self):
        masks = Share({"linear": 0.75})([group([[1.0, 5.0], [1.0, 1.0]], bias=[2.0, 6.0])], 0)
        assert masks["fc.weight"].tolist() == [[False, True], [False, False]]
        assert masks["fc.bias"].tolist() == [True, True]

    def test_what_does_not_exist_carries_nothing(self):
        masks = Share({"linear": 1.0})([group([[1.0, 5.0]], [[1, 0]])], 0)
        assert masks["fc.weight"].tolist() == [[True, False]]

    def test_each_unit_is_judged_by_itself(self):
        assert kept(Share({"linear": 0.5}), group([[100.0, 1.0], [0.1, 0.2]])) == {"fc": [0, 3]}

    def test_a_unit_with_one_contributor_keeps_it(self):
        for keep_rule in ("paper", "released"):
            assert kept(Share({"linear": 0.5}, keep_rule), group([[3.0], [0.0]])) == {"fc": [0, 1]}
        assert kept(Share({"linear": 0.5}), group([[3.0], [2.0]], [[0], [1]])) == {"fc": [1]}

    def test_kinds_without_an_alpha_are_left_alone(self):
        assert Share({"conv": 0.5})([group([[1.0, 2.0]])], 0) == {}

    @given(masked, st.sampled_from([0.5, 0.95, 1.0]), st.sampled_from(["paper", "released"]))
    def test_nothing_is_revived(self, scored, alpha, keep_rule):
        new = Share({"linear": alpha}, keep_rule)([group(*scored)], 0)["fc.weight"]
        assert not (new & ~tensor(scored[1]).bool()).any()

    @pytest.mark.parametrize("alpha", [0.0, 1.01])
    def test_alpha_is_a_share(self, alpha):
        with pytest.raises(OptionError, match=f"alpha of conv layers = {alpha}"):
            Share({"conv": alpha})

    def test_an_unknown_keep_rule_is_named(self):
        with pytest.raises(OptionError, match="unknown keep_rule 'release'; did you mean 'released'"):
            Share({"conv": 0.5}, "release")


class TestThreshold:
    def test_a_value_keeps_what_lies_above_it(self):
        assert kept(Threshold(value=1.0), group([[1.0, 1.5], [0.5, 2.0]], [[1, 1], [1, 0]])) == {"fc": [1]}

    def test_the_lowest_value_of_all_still_keeps_the_dead_dead(self):
        assert kept(Threshold(value=-math.inf), group([[-5.0, 1.0]], [[1, 0]])) == {"fc": [0]}

    def test_a_cut_takes_the_weakest_of_the_whole_network_last_of_equals_first(self):
        layers = group([[5.0, 1.0]], name="a"), group([[1.0, 4.0]], name="b")
        assert kept(Threshold(cut=0.25), *layers) == {"a": [0, 1], "b": [1]}
        assert kept(Threshold(cut=0.5), *layers) == {"a": [0], "b": [1]}

    @given(st.integers(0, 100), st.integers(1, 100))
    @example(29, 100)  # 0.29 * 100 is a little below 29
    def test_a_cut_is_a_share_of_what_exists_rounded_down(self, percent, alive):
        mask = [[i < alive for i in range(100)]]
        new = Threshold(cut=percent / 100)([group([[1.0] * 100], mask)], 0)["fc.weight"]
        assert alive - int(new.sum()) == alive * percent // 100

    def test_a_floor_keeps_the_best_of_each_layer(self):
        layers = group([[5.0, 4.0]], name="a"), group([[1.0, 2.0, 1.0]], name="b")
        assert kept(Threshold(value=3.0, floor=ONE_THIRD), *layers) == {"a": [0, 1], "b": [1]}
        assert kept(Threshold(cut=1.0, floor=ONE_THIRD), *layers) == {"a": [0], "b": [1]}

    def test_a_floor_does_not_revive(self):
        assert kept(Threshold(value=9.0, floor=1.0), group([[5.0, 4.0]], [[0, 1]])) == {"fc": [1]}

    @pytest.mark.parametrize("options", [{}, {"value": 1.0, "cut": 0.5}])
    def test_it_takes_a_value_or_a_cut(self, options):
        with pytest.raises(OptionError, match="takes either value or cut"):
            Threshold(**options)

    @pytest.mark.parametrize("options", [{"cut": 1.5}, {"value": 1.0, "floor": -1.0}])
    def test_cut_and_floor_are_shares(self, options):
        with pytest.raises(OptionError, match="wanted a number from 0"):
            Threshold(**options)
