from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest

from synaptree.core import method as registry
from synaptree.core.errors import OptionError
from synaptree.core.method import Method, build, method
from synaptree.core.schedule import Every
from synaptree.core.signal import gradient, magnitude, stateless
from synaptree.rules.density import Density
from synaptree.signals.average import ema


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


@pytest.fixture
def choosy(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {})

    @method
    def choosy(
        share: float = 0.5, rounds: int = 1, sweep: bool = True, rule: Literal["paper", "released"] = "paper",  # noqa: ARG001
        table: str | Mapping[str, float] | None = None, anything: Any = None, loose=None,  # noqa: ARG001
    ) -> Method:  # fmt: skip
        return Method(Density(1.0), {"keep": magnitude})

    return choosy


@pytest.mark.parametrize(("option", "value", "wanted"), [
    ("share", "high", "wanted share of type float, got share = 'high' of type str"),
    ("share", True, "wanted share of type float, got share = True of type bool"),
    ("rounds", 2.0, "wanted rounds of type int, got rounds = 2.0 of type float"),
    ("rounds", False, "wanted rounds of type int, got rounds = False of type bool"),
    ("sweep", "no", "wanted sweep of type bool, got sweep = 'no' of type str"),
    ("sweep", 1, "wanted sweep of type bool, got sweep = 1 of type int"),
    ("rule", "releasd", "unknown rule of choosy 'releasd'; did you mean 'released'"),
    ("table", ["a"], r"wanted table of type str \| .*Mapping\[str, float\] \| None, got table = \['a'\] of type list"),
    ("table", {"a": "b"}, r"wanted table of type .*, got table = {'a': 'b'} of type dict"),
])  # fmt: skip
def test_an_option_of_the_wrong_type_is_named_with_what_was_wanted_and_got(choosy, option, value, wanted):
    with pytest.raises(OptionError, match=wanted):
        choosy(**{option: value})


@pytest.mark.parametrize("options", [
    {"share": 1}, {"rounds": 3}, {"sweep": False}, {"rule": "released"}, {"table": "all"}, {"table": {"a": 1}},
    {"table": None}, {"anything": object()}, {"loose": object()},
])  # fmt: skip
def test_an_option_may_have_any_value_of_its_type(choosy, options):
    assert choosy(**options).options.items() >= options.items()


def test_an_unknown_granularity_is_named_when_the_method_is_made():
    with pytest.raises(OptionError, match="unknown granularity 'kernal'; did you mean 'kernel'"):
        Method(Density(0.5), {"keep": magnitude}, granularity={"linear": "weight", "conv": "kernal"})


def test_a_method_with_a_schedule_acts_in_training():
    built = Method(Density(0.5), {"keep": magnitude})
    assert not built.acts_in_training
    assert replace(built, when=Every(2)).acts_in_training
