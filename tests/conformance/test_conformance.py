import os
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from synaptree.core.attach import Attached
from synaptree.core.errors import DataError, OptionError
from synaptree.core.method import METHODS, Method, method
from synaptree.core.schedule import Every
from synaptree.core.signal import gradient, magnitude, stateless
from synaptree.rules.density import Density
from synaptree.testing import CHECKS, ConformanceError, check_method
from synaptree.testing.golden import read_golden
from synaptree.testing.toys import CONVOLUTIONAL, DENSE, STEPS, Toy, Trial


def pairs():
    own = [name for name, build in METHODS.items() if build.__module__.startswith("synaptree.methods.")]
    for name in own:
        for check in CHECKS:
            marks = [pytest.mark.slow] if check.startswith("shards") else []
            yield pytest.param(name, check, id=f"{name}-{check}", marks=marks)


@pytest.mark.parametrize(("name", "check"), list(pairs()))
def test_every_method_passes_every_check(name, check):
    if reason := check_method(name, checks=[check]).get(check):
        pytest.skip(reason)


# --- methods of our own, sound and broken


@pytest.fixture(autouse=True)
def _registry_as_before():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@method
def sound(density: float = 0.5, turnover: float = 0.5) -> Method:
    """Exchange weak connections for such with a large gradient, every second update.

    Rule: of the connections that exist the weakest by `|w|` go, as many come where `|dL/dw|` is largest.

    Args:
        density: share in [0, 1] of connections that stay.
        turnover: share in [0, 1] of them that are exchanged.

    When to use it: in tests. When not: elsewhere.
    Paper: none.
    Differs: from nothing.
    """
    rule = Density(density, grow="grow", turnover=turnover)
    return Method(rule, {"keep": magnitude, "grow": gradient}, when=Every(2))


SOUND = METHODS.pop("sound")


def registered(change, name="broken"):
    """Register the sound method changed by `change(method, options) -> method`."""

    def broken(density: float = 0.5, turnover: float = 0.5) -> Method:
        options = {"density": density, "turnover": turnover}
        return change(SOUND(**options), options)

    broken.__name__, broken.__doc__ = name, SOUND.__doc__
    return method(broken)


def by_pruning(edit, options):
    """The method that acts outside training by `edit`."""
    return Method(Density(options["density"]), {"keep": magnitude}, edit=edit)


GOLDEN = """
[[edit]]
about = "the smaller of two goes, the larger of two that died and lived comes"
options = { density = 0.5, turnover = 0.5 }
step = 2
weights.fc1.weight = [[4, 3, 2, 1]]
gradients.fc1.weight = [[1, 2, 3, 9]]
masks.fc1.weight = [[1, 0, 0, 1]]
"""


def test_a_sound_growing_method_from_outside_passes_all_checks(tmp_path):
    golden = tmp_path / "sound.toml"
    golden.write_text(GOLDEN)
    build = registered(lambda m, _: m, "outside")
    assert check_method(build, golden=golden) == {}
    edits = Trial(build(), DENSE).run().edits
    assert any((edit.after.masks[name] & ~old).any() for edit in edits for name, old in edit.before.masks.items())


def test_an_exempt_check_is_not_made_and_its_reason_is_returned():
    build = registered(lambda m, _: replace(m, signals={}))
    reasons = check_method(build, checks=["counts_are_exact"], exempt={"counts_are_exact": "it is broken on purpose"})
    assert reasons == {"counts_are_exact": "it is broken on purpose"}


def test_unknown_methods_and_checks_are_named():
    with pytest.raises(OptionError, match="unknown method 'magnitud'; did you mean 'magnitude'"):
        check_method("magnitud")
    with pytest.raises(OptionError, match="unknown check 'card'"):
        check_method("magnitude", checks=["card"])
    with pytest.raises(OptionError, match="unknown check 'card'"):
        check_method("magnitude", exempt={"card": "no"})


def leaves_the_weights(on):
    on.topology.edit(on.masks(on.layers))


def masks_units(on):
    for layer in on.layers:
        on.topology.masks[layer.weight] = on.topology.masks[layer.weight][:, :1]


def adds_a_buffer(on):
    on.layers[0].module.register_buffer("mask", torch.ones(1))


def shouts(module, inputs):
    """A hook that pickle can find."""


def leaves_a_hook(on):
    on.layers[0].module.register_forward_pre_hook(shouts)


def masks_by_a_hook(on):
    for layer in on.layers:
        layer.module.register_forward_hook(lambda _, __, y: y * (y > 1))


def uses_plain_names(on):
    on.edit(on.masks([layer for layer in on.layers if layer.name in dict(on.model.named_modules())]))


def counts_batches(on):
    on.edit({name: mask & (len(on.inputs) < 2) for name, mask in on.masks(on.layers).items()})


@dataclass
class Forgetful:
    """Acts at every second update that this object, not the topology, has counted."""

    calls: int = 0

    def __call__(self, _):
        self.calls += 1
        return self.calls % 2 == 0


@dataclass(frozen=True)
class LastOfEquals(Density):
    def __call__(self, groups, step):
        masks = super().__call__(groups, step)
        return {name: mask.flatten().flip(0).view(mask.shape) for name, mask in masks.items()}


@dataclass(frozen=True)
class Resurrecting(Density):
    def __call__(self, groups, step):  # noqa: ARG002
        return {group.weight.name: ~group.weight.mask for group in groups}


@dataclass(frozen=True)
class AtLeastOne(Density):
    def __call__(self, groups, step):
        masks = super().__call__(groups, step)
        for mask in masks.values():
            mask.view(-1)[0] = True
        return masks


def shrinks(view):
    view.weight.mul_(0.5)
    return view.weight.abs()


SIGNALS = {
    "global_noise": stateless(lambda view: torch.rand(view.mask.shape)),
    "shrinking": stateless(shrinks),
    "own_noise": stateless(  # of its own in every process
        lambda view: torch.rand(view.mask.shape, generator=torch.Generator().manual_seed(os.getpid()))
    ),
    "through_numpy": stateless(lambda view: torch.from_numpy(view.weight.abs().numpy())),
}


def with_signal(name):
    return lambda m, _: replace(m, signals={**m.signals, "keep": SIGNALS[name]})


def prunes_by_own_noise(m, options):
    return replace(m, rule=Density(options["density"]), signals={"keep": SIGNALS["own_noise"]})


BROKEN = {
    "dead_weights_are_zero": (lambda _, o: by_pruning(leaves_the_weights, o), "wanted dead weights 0, got"),
    "counts_are_exact": (
        lambda m, o: replace(m, rule=Density(1 - o["density"] / 2, grow="grow")), "density 0.5 wants 9 of 18, got 14",
    ),
    "structure_is_legal": (lambda _, o: by_pruning(masks_units, o), r"wanted a mask of shape \(3, 4\), got \(3, 1\)"),
    "state_dict_is_that_of_the_dense_model": (
        lambda _, o: by_pruning(adds_a_buffer, o), "state_dict: wanted .* got .*mask",
    ),
    "model_stays_plain": (lambda _, o: by_pruning(leaves_a_hook, o), "what the modules hold"),
    "resumes_bitwise": (lambda m, _: replace(m, when=Forgetful()), "stopped after 1 of 6 updates"),
    "same_seed_same_network": (with_signal("global_noise"), "wanted draws from the topology's generator alone"),
    "ties_go_to_the_lowest_index": (
        lambda m, o: replace(m, rule=LastOfEquals(o["density"])), "wanted the first of equal connections",
    ),
    "extremes_are_met": (
        lambda m, o: replace(m, rule=AtLeastOne(o["density"])), r"density 0.0: wanted 0 of 18, got 2",
    ),
    "pieces_of_a_batch_are_the_batch": (lambda _, o: by_pruning(counts_batches, o), "dense: topology, masks"),
    "compiled_model_gets_the_same_masks": (lambda _, o: by_pruning(uses_plain_names, o), "dense: topology, masks"),
    "half_precision_works": (with_signal("through_numpy"), "TypeError: Got unsupported ScalarType BFloat16"),
    "survivors_are_left_alone": (with_signal("shrinking"), "weights of survivors"),
    "golden_edits_come_out": (lambda m, _: m, "wanted edits worked out by hand"),
    "replicas_hold_the_same_masks": (prunes_by_own_noise, "2 processes that train together differ after update"),
    "shards_hold_the_same_masks": (prunes_by_own_noise, "2 processes that train together differ after update"),
}  # fmt: skip


def fails(build, check, message, **given):
    with pytest.raises(ConformanceError, match=rf"(?s){build.__name__} fails {check}: .*{message}"):
        check_method(build, checks=[check], **given)


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_method_is_caught(check):
    change, message = BROKEN[check]
    fails(registered(change), check, message)


def test_a_pruning_rule_that_brings_connections_to_life_is_caught():
    build = registered(lambda m, o: replace(m, rule=Resurrecting(o["density"])))
    fails(build, "survivors_are_left_alone", "wanted a rule without `grow` to prune only, got 12 born")


def test_newborns_with_old_optimizer_state_are_caught(monkeypatch):
    monkeypatch.setattr("synaptree.core.attach.forget", lambda *_: None)
    fails(registered(lambda m, _: m), "newborns_start_at_zero", "wanted exp_avg of newborns 0")


def test_newborns_that_do_not_start_at_0_are_caught(monkeypatch):
    half = lambda _, parameter, born: parameter.masked_fill_(born, 0.5)  # noqa: E731
    monkeypatch.setattr("synaptree.core.attach.forget", half)
    fails(registered(lambda m, _: m), "newborns_start_at_zero", "wanted newborn weights 0")


def test_a_skipped_update_that_counts_is_caught(monkeypatch):
    real = Attached._after_step

    def blind(self, optimizer, args, kwargs):
        if hasattr(optimizer, "found_inf"):
            optimizer.found_inf = torch.zeros(1)
        real(self, optimizer, args, kwargs)

    monkeypatch.setattr(Attached, "_after_step", blind)
    build = registered(lambda m, o: replace(m, rule=Density(o["density"])))
    fails(build, "amp_skips_do_not_count", "dense, fused optimizer, one update skipped")


@pytest.fixture
def engine():
    pytest.importorskip("synaptree.runtime._native")
    return pytest.importorskip("synaptree.runtime.engine")


@pytest.mark.usefixtures("engine")
def test_a_network_that_cannot_become_a_file_is_caught():
    build = registered(lambda _, options: by_pruning(masks_by_a_hook, options))
    fails(build, "engine_gives_the_same_outputs", "GraphError: .* has hooks")


def test_an_engine_that_computes_something_else_is_caught(monkeypatch, engine):
    real = engine.Engine.__call__
    monkeypatch.setattr(engine.Engine, "__call__", lambda self, x: real(self, x) * np.float32(1.001))
    build = registered(lambda m, _: m)
    fails(build, "engine_gives_the_same_outputs", "dense: wanted the outputs .* got tensor")


def test_without_the_engine_its_check_is_not_made_for_a_reason(monkeypatch):
    check = "engine_gives_the_same_outputs"
    engine = pytest.importorskip("synaptree.runtime.engine")
    monkeypatch.setattr(engine, "BUILT", False)
    assert check_method("magnitude", checks=[check])[check] == "the engine was installed without its compiled kernels"
    monkeypatch.setitem(sys.modules, "synaptree.runtime.engine", None)  # as if what it imports were missing
    assert check_method("magnitude", checks=[check])[check].endswith("pip install 'synaptree[pack]'")


def test_an_option_that_repr_cannot_show_is_caught():
    @method
    def odd(density: float = 0.5, by: object = nn.Identity()) -> Method:  # noqa: ARG001
        return Method(Density(density), {"keep": magnitude})

    fails(odd, "repr_builds_it_again", "Identity")


def test_what_a_card_lacks_is_named():
    def bare(density: float = 0.5) -> Method:
        """Cut: the small ones.

        When not: ever.
        """
        return Method(Density(density), {"keep": magnitude})

    fails(method(bare), "card_is_complete", "the card lacks Rule:, When to use it:, Paper:, Differs:, Args: density:$")


def test_a_card_without_a_summary_sentence_is_caught():
    def terse() -> Method:
        return Method(Density(0.5), {"keep": magnitude})

    fails(method(terse), "card_is_complete", "wanted one sentence on the first line, got ''")


def test_a_method_that_never_acts_is_told_to_say_how_it_would():
    build = registered(lambda m, _: replace(m, when=Every(100)))
    fails(build, "dead_weights_are_zero", r"wanted an edit .* within 6 updates.*\[training\]")


def test_a_golden_edit_that_does_not_come_out_is_shown(tmp_path):
    golden = tmp_path / "broken.toml"
    golden.write_text(GOLDEN.replace("[[1, 0, 0, 1]]", "[[1, 1, 0, 0]]"))
    message = "'the smaller of two .*fc1.weight: wanted .*True,  True, False, False.* got .*True, False, False,  True"
    fails(registered(lambda m, _: m), "golden_edits_come_out", message, golden=golden)


def test_a_golden_file_that_cannot_be_read_is_named(tmp_path):
    golden = tmp_path / "none.toml"
    with pytest.raises(DataError, match=r"none\.toml holds no golden edits: .*No such file"):
        read_golden(golden)
    golden.write_text("[[edit]]\nabuot = 'a slip of the pen'")
    with pytest.raises(DataError, match="abuot"):
        read_golden(golden)


@pytest.mark.parametrize("toy", [DENSE, CONVOLUTIONAL], ids=lambda toy: toy.name)
def test_sums_of_a_trial_are_exact_in_single_precision(toy: Toy):
    half = METHODS["gradual_magnitude"](density=0.5, last=4, every=2)
    single = Trial(half, toy).run()
    double = Trial(half, toy, model=toy.model().double()).run()
    assert single.updates == STEPS
    for one, other in zip(single.model.parameters(), double.model.parameters(), strict=True):
        assert torch.equal(one.double(), other)


@pytest.mark.parametrize("toy", [DENSE, CONVOLUTIONAL], ids=lambda toy: toy.name)
def test_training_reaches_every_parameter_of_a_toy(toy: Toy):
    model = toy.model()
    (model(toy.inputs) * toy.targets).sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
