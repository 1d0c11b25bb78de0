import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scored import group, kept, masked
from torch import tensor

from synaptree.core.errors import OptionError
from synaptree.rules.share import Share, carrying

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
