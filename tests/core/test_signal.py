import pytest
import torch
from torch import nn, tensor

from synaptree.core.layer import layers_of
from synaptree.core.signal import View, at_granularity, gradient, magnitude, noise
from synaptree.signals.average import ema

(LAYER,) = layers_of(nn.Linear(2, 2))
WEIGHT = tensor([[1.0, -2.0], [0.0, 3.0]])


def view(weight=WEIGHT, grad=None, mask=None, seed=0):
    mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    return View(LAYER, "weight", weight, grad, mask, 0, torch.Generator().manual_seed(seed), {})


@pytest.mark.parametrize(("mask", "norm"), [
    ((2, 1, 1, 2), [[[[3.0, 4.0]]], [[[0.0, 5.0]]]]),
    ((2, 1, 1, 1), [[[[5.0]]], [[[5.0]]]]),
    ((1, 1, 1, 1), [[[[50.0**0.5]]]]),
])  # fmt: skip
def test_an_entry_stands_for_the_norm_of_its_weights(mask, norm):
    values = tensor([3.0, -4.0, 0.0, 5.0]).view(2, 1, 1, 2)
    assert torch.equal(at_granularity(values, torch.ones(mask, dtype=torch.bool)), tensor(norm))


def test_magnitude_and_gradient_are_absolute_values():
    assert torch.equal(magnitude.read({}, view()), WEIGHT.abs())
    assert torch.equal(gradient.read({}, view(grad=-WEIGHT)), WEIGHT.abs())
    assert gradient.needs == {"gradient"}


def test_without_a_gradient_its_signal_is_zero():
    assert torch.equal(gradient.read({}, view(mask=torch.ones(2, 1).bool())), torch.zeros(2, 1))


def test_noise_comes_from_the_topologys_generator_alone():
    before = torch.get_rng_state()
    first, same, other = (noise.read({}, view(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_moving_average_starts_at_zero_and_forgets_by_its_decay():
    signal = ema(magnitude, 0.75)
    state = signal.init(view())
    assert torch.equal(signal.read(state, view()), torch.zeros(2, 2))
    for weight, mean in ((4.0, 1.0), (8.0, 2.75), (0.0, 2.0625)):
        state = signal.update(state, view(torch.full((2, 2), weight)))
        assert torch.equal(signal.read(state, view()), torch.full((2, 2), mean))


def test_a_moving_average_does_not_change_the_state_it_was_given():
    signal = ema(gradient, 0.5)
    state = signal.init(view())
    signal.update(state, view(grad=WEIGHT))
    assert not state["mean"].any()
    assert signal.needs == {"gradient"}
