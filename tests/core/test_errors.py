import pytest

from synaptree.core import errors
from synaptree.core.errors import OptionError, ShapeError, SynaptreeError, unknown


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_error_can_be_caught_as_one_of_the_library(name):
    assert issubclass(getattr(errors, name), SynaptreeError)


def test_wrong_values_are_value_errors_too():
    assert issubclass(OptionError, ValueError)
    assert issubclass(ShapeError, ValueError)


def test_an_unknown_name_is_answered_with_the_nearest_known_ones():
    message = str(unknown("layer", "fc", ["conv1", "fc1", "fc2"]))
    assert message == "unknown layer 'fc'; did you mean 'fc2' or 'fc1'? Known: conv1, fc1, fc2"


def test_a_name_like_no_other_is_answered_with_all_known_ones():
    assert str(unknown("kind", "zzz", ["b", "a"])) == "unknown kind 'zzz'. Known: a, b"
