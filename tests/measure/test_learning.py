import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synaptree.core.errors import OptionError
from synaptree.measure.learning import WINDOW, area_under, first_epoch_at

curves = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_the_last_epoch_of_the_window_counts() -> None:
    # means over three epochs: (0.5 + 0.75 + 0.75) / 3 = 0.667 after epoch 3, (0.75 + 0.75 + 1) / 3 = 0.833 after 4
    curve = [0.5, 0.75, 0.75, 1.0]
    assert first_epoch_at(curve, 0.66) == 3
    assert first_epoch_at(curve, 0.67) == 4
    assert first_epoch_at(curve, 0.84) is None


def test_one_lucky_epoch_reaches_nothing() -> None:
    # the 1.0 lifts the mean to 2.0 / 3 = 0.667 at most
    curve = [0.5, 1.0, 0.5, 0.5, 0.5]
    assert first_epoch_at(curve, 0.75) is None
    assert first_epoch_at(curve, 0.75, window=1) == 2


def test_the_first_of_many_epochs_counts_even_if_the_curve_falls_again() -> None:
    assert first_epoch_at([0.9, 0.9, 0.9, 0.1, 0.1, 0.9, 0.9, 0.9], 0.9) == 3


def test_fewer_epochs_than_the_window_reach_nothing() -> None:
    assert WINDOW == 3
    assert first_epoch_at([1.0, 1.0], 0.5) is None
    assert first_epoch_at([], 0.0) is None


def test_rounding_does_not_miss_a_target_that_is_met_exactly() -> None:
    # (0.01 + 0.01 + 0.13) / 3 = 0.05, but 0.049999999999999996 in floating point
    assert first_epoch_at([0.01, 0.01, 0.13], 0.05) == 3
    assert first_epoch_at([0.01, 0.01, 0.13], 0.05 + 1e-6) is None


@given(curves, st.floats(0, 1), st.integers(1, 5))
def test_the_mean_at_the_first_epoch_reaches_the_target_and_none_before_does(
    curve: list[float], target: float, window: int
) -> None:
    means = {end: math.fsum(curve[end - window : end]) / window for end in range(window, len(curve) + 1)}
    reached = [end for end, mean in means.items() if mean >= target - 1e-9]
    assert first_epoch_at(curve, target, window) == (reached[0] if reached else None)


def test_the_area_is_that_of_the_trapezoids_over_their_width() -> None:
    # 0 to 0.5 to 1 to 1: trapezoids of 0.25, 0.75 and 1 over three epochs
    assert area_under([0.0, 0.5, 1.0, 1.0]) == pytest.approx(2 / 3)
    assert area_under([0.0, 1.0]) == 0.5
    assert area_under([0.25]) == 0.25


@given(curves)
def test_an_area_lies_within_its_curve_and_is_the_same_backwards(curve: list[float]) -> None:
    assert min(curve) - 1e-12 <= area_under(curve) <= max(curve) + 1e-12
    assert area_under(curve[::-1]) == pytest.approx(area_under(curve))


@given(curves, st.integers(1, 4))
def test_whoever_rises_sooner_has_the_larger_area(curve: list[float], epochs: int) -> None:
    rising = sorted(curve)
    late = [rising[0]] * epochs + rising
    soon = rising + [rising[-1]] * epochs
    assert area_under(soon) >= area_under(late) - 1e-12


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: first_epoch_at([0.5, 98.4], 0.9), r"got \[98.4\]; divide percentages by 100"),
        (lambda: first_epoch_at([0.5], 90.0), r"got \[90.0\]"),
        (lambda: first_epoch_at([0.5], math.nan), r"got \[nan\]"),
        (lambda: first_epoch_at([0.5], 0.5, window=0), "window is a number of epochs from 1 on, got 0"),
        (lambda: area_under([]), "at least one epoch, got none"),
        (lambda: area_under([-0.1]), r"got \[-0.1\]"),
    ],
)
def test_what_is_no_accuracy_is_refused(call: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        call()
