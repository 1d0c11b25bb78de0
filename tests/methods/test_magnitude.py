import pytest

from synaptree.core.errors import OptionError
from synaptree.methods import build


@pytest.mark.parametrize("name", ["magnitude", "gradual_magnitude", "random"])
@pytest.mark.parametrize("density", [2, -0.1, float("nan")])
def test_a_density_out_of_range_is_refused_when_the_method_is_built(name, density):
    with pytest.raises(OptionError, match=f"density = {density}: wanted a number from 0"):
        build(name, density=density)


@pytest.mark.parametrize("name", ["magnitude", "gradual_magnitude", "iterative_magnitude", "random"])
def test_an_unknown_granularity_is_refused_when_the_method_is_built(name):
    with pytest.raises(OptionError, match="unknown granularity 'kernal'; did you mean 'kernel'"):
        build(name, conv="kernal")


@pytest.mark.parametrize(("name", "option", "value"), [
    ("magnitude", "density", "high"), ("magnitude", "allocate", 3), ("gradual_magnitude", "every", 2.5),
    ("nnrelief", "alpha_fc", "abc"), ("nnrelief", "backward_sweep", "no"),
])
def test_an_option_of_the_wrong_type_is_refused_when_the_method_is_built(name, option, value):
    with pytest.raises(OptionError, match=f"{name}: wanted {option} of type .*, got {option} = {value!r} of type"):
        build(name, **{option: value})
