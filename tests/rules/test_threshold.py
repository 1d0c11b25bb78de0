import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scored import group, kept

from synaptree.core.errors import OptionError
from synaptree.rules.threshold import Threshold

ONE_THIRD = 1 / 3


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

    @pytest.mark.parametrize("options", [{}, {"value": 1.0, "cut": 0.5}, {"sigma": 1.0, "cut": 0.5}])
    def test_it_takes_a_value_or_a_cut(self, options):
        with pytest.raises(OptionError, match="takes either value or cut or sigma"):
            Threshold(**options)

    @pytest.mark.parametrize("options", [{"cut": 1.5}, {"value": 1.0, "floor": -1.0}])
    def test_cut_and_floor_are_shares(self, options):
        with pytest.raises(OptionError, match="wanted a number from 0"):
            Threshold(**options)

    def test_deviations_are_at_least_0(self):
        with pytest.raises(OptionError, match=r"sigma = -1\.0"):
            Threshold(sigma=-1.0)

    def test_deviations_are_those_of_what_exists(self):
        # sqrt((9 + 1) / 2) = 2.24; the dead 100 does not count
        assert kept(Threshold(sigma=1.0), group([[3.0, 1.0, 100.0]], [[1, 1, 0]])) == {"fc": [0]}
        assert kept(Threshold(sigma=1.0), group([[3.0, 1.0]], [[0, 0]])) == {"fc": []}

    def test_a_strict_cut_takes_the_next_and_its_equals(self):
        # a quarter of four is one, the 1; the next is 2
        assert kept(Threshold(cut=0.25, strict=True), group([[1.0, 2.0, 2.0, 5.0]])) == {"fc": [3]}
        assert kept(Threshold(cut=1.0, strict=True), group([[1.0, 2.0]])) == {"fc": []}
