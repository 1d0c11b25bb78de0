import pytest
from hypothesis import given
from hypothesis import strategies as st

from synaptree.core.errors import OptionError
from synaptree.core.schedule import Cosine, Cubic, Every, Never, as_schedule

steps = st.integers(0, 1000)


def test_a_number_serves_as_a_schedule_and_a_schedule_as_itself():
    cubic = Cubic(1.0, 0.5, 0, 4)
    assert as_schedule(0.25)(7) == 0.25
    assert as_schedule(cubic) is cubic


@given(step=steps, first=steps, last=steps)
def test_a_cubic_starts_at_first_and_has_ended_at_last(step, first, last):
    value = Cubic(1.0, 0.25, first, last)(step)
    assert 0.25 <= value <= 1.0
    if step >= last:
        assert value == 0.25
    elif step <= first:
        assert value == 1.0


def test_a_cubic_of_no_length_jumps():
    assert [Cubic(1.0, 0.0, 3, 3)(step) for step in (2, 3)] == [1.0, 0.0]


@given(st.lists(steps, min_size=2, max_size=2).map(sorted))
def test_a_cosine_never_rises(pair):
    early, late = (Cosine(0.3, 500)(step) for step in pair)
    assert early >= late >= 0.0


def test_every_has_an_end_or_none():
    assert [step for step in range(10) if Every(3)(step)] == [3, 6, 9]
    assert [step for step in range(10) if Every(3, first=0, last=6)(step)] == [0, 3, 6]


def test_an_interval_is_at_least_one_step():
    with pytest.raises(OptionError, match="interval = 0: wanted at least 1"):
        Every(0)


def test_never_is_never():
    assert not any(map(Never(), range(10)))
