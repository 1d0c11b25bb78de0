"""Mixed precision: updates that overflow did not happen, and gradients are those of the loss."""

from functools import partial

import pytest
import torch
from torch import nn

from synaptree.core.attach import attach
from synaptree.core.method import Method
from synaptree.core.schedule import Every
from synaptree.core.signal import gradient, magnitude, stateless
from synaptree.rules.density import Density

SCALE = 1024.0
OPTIMIZERS = [
    partial(optimizer, lr=0.25, fused=fused)
    for optimizer in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    for fused in (True, False)
]
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: f"{make.func.__name__}, {make.keywords}")
clipped = pytest.mark.parametrize("unscale_first", [False, True])


def watching(seen):
    """Return a method that edits at every update and notes the gradient it sees."""

    def look(view):
        seen.append(view.grad.clone())
        return gradient.read({}, view)

    rule = Density(0.5, grow="grow", turnover=0.5)
    return Method(rule, {"keep": magnitude, "grow": stateless(look, "gradient")}, Every(1))


def update(model, optimizer, scaler, x, unscale_first):
    optimizer.zero_grad()
    scaler.scale(model(x).sum()).backward()
    if unscale_first:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@every_optimizer
@clipped
def test_an_update_that_overflows_neither_counts_nor_edits(make, unscale_first):
    model, seen = nn.Linear(4, 2), []
    optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=SCALE)
    attached = attach(model, optimizer, watching(seen))
    fine, overflowing = torch.ones(1, 4), torch.full((1, 4), torch.inf)
    steps = []
    for x in (fine, overflowing, fine, overflowing, overflowing, fine):
        before = model.weight.clone(), attached.topology.digest(), attached.last
        update(model, optimizer, scaler, x, unscale_first)
        steps.append(attached.topology.step)
        if x is overflowing:
            assert torch.equal(model.weight, before[0])
            assert (attached.topology.digest(), attached.last) == before[1:]
        assert torch.equal(model.weight * ~attached.topology.masks["weight"], torch.zeros(2, 4))
    assert steps == [1, 1, 2, 2, 2, 3]
    assert len(seen) == 3
    assert scaler.get_scale() == SCALE / 8


@every_optimizer
@clipped
def test_signals_see_the_gradient_of_the_loss_itself(make, unscale_first):
    model, seen = nn.Linear(4, 2), []
    optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=SCALE)
    attach(model, optimizer, watching(seen))
    x = torch.tensor([[1.0, -2.0, 0.5, 0.0]])
    update(model, optimizer, scaler, x, unscale_first)
    assert torch.equal(seen[0], x.expand(2, 4))


@pytest.mark.parametrize("fused", [True, False])
def test_a_scaler_changes_no_mask(fused):
    digests = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.25, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=scaled)
        attached = attach(model, optimizer, watching([]))
        for _ in range(4):
            update(model, optimizer, scaler, torch.randn(1, 4), unscale_first=False)
        digests.append(attached.topology.digest())
    assert digests[0] == digests[1]
