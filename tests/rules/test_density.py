import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scored import group, kept, masked
from torch import tensor

from synaptree.core.errors import NumericError, OptionError
from synaptree.rules.allocate import Global, Table
from synaptree.rules.blocks import Blocks
from synaptree.rules.density import Density


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
