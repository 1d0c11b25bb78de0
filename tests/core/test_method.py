import pytest

from synaptree.core import method as registry
from synaptree.core.errors import OptionError
from synaptree.core.method import Method, build, method
from synaptree.core.rule import Density
from synaptree.core.signal import ema, gradient, magnitude, stateless


@pytest.fixture
def halve(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {})

    @method
    def halve(density: float = 0.5, keep: str = "keep") -> Method:
        """Keep half."""
        return Method(Density(density, keep=keep), {keep: magnitude})

    return halve


def test_a_registered_method_knows_its_name_options_and_card(halve):
    built = halve(density=0.25)
    assert (built.name, built.options) == ("halve", {"density": 0.25, "keep": "keep"})
    assert halve.__doc__ == "Keep half."
    assert {"halve": halve} == registry.METHODS


def test_its_repr_builds_it_again(halve):
    built = halve(0.25)
    assert repr(built) == "halve(density=0.25, keep='keep')"
    assert repr(eval(repr(built))) == repr(built)
    assert repr(build("halve", density=0.25)) == repr(built)


def test_unknown_options_and_methods_are_named(halve):
    with pytest.raises(OptionError, match="unknown option of halve 'densty'; did you mean 'density'"):
        halve(densty=0.1)
    with pytest.raises(OptionError, match="unknown method 'halv'; did you mean 'halve'"):
        build("halv")


def test_too_many_values_are_answered_with_the_signature(halve):
    with pytest.raises(OptionError, match=r"halve\(density: float = 0.5.*got \(1, 2, 3\)"):
        halve(1, 2, 3)


def test_a_name_is_given_once(halve):
    with pytest.raises(OptionError, match="two methods are called 'halve'"):
        method(halve)


def test_a_method_needs_what_its_signals_need_and_acts_only_when_asked():
    signals = {"keep": stateless(lambda view: view.weight, "data"), "grow": ema(gradient, 0.5)}
    built = Method(Density(0.5), signals)
    assert built.needs == {"data", "gradient"}
    assert not any(map(built.when, range(1000)))
    assert repr(built) == "Method()"
