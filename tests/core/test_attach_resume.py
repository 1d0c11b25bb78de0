"""A run that was interrupted goes on to the same network, bit by bit."""

import copy
import io
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from synaptree.core.attach import attach
from synaptree.core.errors import CheckpointError, ShapeError
from synaptree.core.method import Method
from synaptree.core.schedule import Cosine, Cubic, Every
from synaptree.core.signal import gradient, magnitude, noise
from synaptree.rules.density import Density
from synaptree.signals.average import ema

UPDATES = 8
MAKE = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.1, foreach=True),
}
METHODS = {
    "exchange by a moving average": Method(
        Density(0.5, grow="grow", turnover=Cosine(0.5, UPDATES)),
        {"keep": magnitude, "grow": ema(gradient, 0.75)}, Every(3),
    ),
    "prune": Method(Density(Cubic(1.0, 0.2, 0, UPDATES)), {"keep": ema(magnitude, 0.5)}, Every(1)),
    "random growth": Method(
        Density(0.5, grow="grow", turnover=0.5), {"keep": magnitude, "grow": noise}, Every(2), biases=True
    ),
}  # fmt: skip


def begin(make, method):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = make(model.parameters())
    return model, optimizer, attach(model, optimizer, method, seed=3)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().sum().backward()
        optimizer.step()


def equal(one, other):
    """Assert that two states hold the same, whatever they are made of."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            equal(*pair)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def through_a_file(state):
    """Return what comes back of `state` where only tensors, numbers, texts and their containers pass."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("interrupted", [1, 3, 5])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(make, method, interrupted):
    model, optimizer, attached = begin(make, method)
    train(model, optimizer, range(interrupted))
    saved = through_a_file([part.state_dict() for part in (model, optimizer, attached)])
    train(model, optimizer, range(interrupted, UPDATES))

    resumed = begin(make, method)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    train(*resumed[:2], range(interrupted, UPDATES))

    for one, other in zip((model, optimizer, attached), resumed, strict=True):
        equal(other.state_dict(), one.state_dict())
    assert resumed[2].topology.digest() == attached.topology.digest()
    assert attached.topology.step == UPDATES


def test_a_state_is_loaded_with_its_zeros():
    model, optimizer, attached = begin(MAKE["sgd"], METHODS["prune"])
    train(model, optimizer, range(4))
    state = attached.state_dict()
    other, _, fresh = begin(MAKE["sgd"], METHODS["prune"])
    assert other[0].weight.all()
    fresh.load_state_dict(state)
    assert torch.equal(other[0].weight != 0, attached.topology.masks["0.weight"])


def test_a_state_without_a_signals_memory_lets_it_start_anew():
    model, optimizer, attached = begin(MAKE["sgd"], METHODS["random growth"])
    train(model, optimizer, range(2))
    remembering = Method(METHODS["prune"].rule, {"keep": ema(magnitude, 0.5)}, Every(1), biases=True)
    other, sgd, fresh = begin(MAKE["sgd"], remembering)
    fresh.load_state_dict(attached.state_dict())
    train(other, sgd, range(2, 4))
    assert fresh.topology.step == 4
    assert fresh.topology.state["keep/0.weight"]["mean"].any()


@pytest.mark.parametrize("state", [{}, {"topology": {}}, {"topology": {"masks": {}}, "method": ""}])
def test_a_state_without_masks_is_refused_and_changes_nothing(state):
    model, optimizer, attached = begin(MAKE["sgd"], METHODS["prune"])
    train(model, optimizer, range(2))
    before = copy.deepcopy(attached.topology.state_dict())
    with pytest.raises(CheckpointError, match="holds no masks"):
        attached.load_state_dict(state)
    equal(attached.topology.state_dict(), before)


def test_a_state_written_under_another_method_is_refused_and_changes_nothing():
    model, optimizer, attached = begin(MAKE["sgd"], METHODS["prune"])
    train(model, optimizer, range(2))
    theirs = replace(METHODS["prune"], name="prune", options={"density": 0.2})
    _, _, other = begin(MAKE["sgd"], replace(theirs, options={"density": 0.1}))
    state = attached.state_dict() | {"method": repr(theirs)}
    with pytest.raises(CheckpointError, match=r"method prune\(density=0.2\), attached is prune\(density=0.1\)"):
        other.load_state_dict(state)
    assert other.topology.step == 0
    other.load_state_dict({"topology": state["topology"]})
    assert other.topology.step == 2


def test_a_state_may_be_loaded_with_a_method_or_without():
    model, optimizer, attached = begin(MAKE["sgd"], replace(METHODS["prune"], name="prune"))
    train(model, optimizer, range(2))
    attached.finish()
    bare = attach(model, optimizer, topology=attached.topology)
    bare.load_state_dict(attached.state_dict())
    fresh = begin(MAKE["sgd"], METHODS["prune"])[2]
    fresh.load_state_dict(bare.state_dict())
    assert fresh.topology.digest() == attached.topology.digest()


def test_masks_of_parameters_the_model_lacks_are_refused_and_change_nothing():
    model, optimizer, attached = begin(MAKE["sgd"], METHODS["prune"])
    before, weight = copy.deepcopy(attached.topology.state_dict()), model[0].weight.clone()
    other = copy.deepcopy(attached.topology)
    other.edit({"0.weight": torch.zeros(3, 4).bool()})
    other.add("9.weight", (2, 2))
    with pytest.raises(ShapeError, match="Sequential has no such parameter"):
        attached.load_state_dict({"topology": other.state_dict()})
    equal(attached.topology.state_dict(), before)
    assert torch.equal(model[0].weight, weight)
    train(model, optimizer, range(1))
    assert attached.topology.step == 1
