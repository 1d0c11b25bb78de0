import re
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from toy_networks import X, chain, conv, grouped, resnet

from synaptree.core.errors import AttachError, OptionError
from synaptree.soft.kernel_strength import KernelStrengthConv2d
from synaptree.soft.penalty import parameter_groups, penalise
from synaptree.soft.synaptic_strength import convert, fold

SGD = partial(torch.optim.SGD, lr=0.5)


def two_kernels():
    """A layer of strengths 5 and -2 in one row: directions (3, 4) and (0, 1)."""
    layer = nn.Conv2d(2, 1, (1, 2), bias=False)
    layer.weight.data = torch.tensor([[[[3.0, 4.0]], [[0.0, 1.0]]]])
    model = nn.Sequential(KernelStrengthConv2d.from_conv(layer))
    model[0].strength.data[0, 1] = -2.0
    return model


def flat(model):
    """Give every parameter a gradient of 0."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def test_the_subgradient_of_a_strength_is_its_sign():
    """s = (5, -2) - 0.5 * 0.1 * (1, -1)"""
    model = two_kernels()
    optimizer = SGD(model.parameters())
    penalty = penalise(model, optimizer, 0.1)
    assert penalty.value().item() == pytest.approx(0.7)  # 0.1 * (5 + 2)
    flat(model)
    optimizer.step()
    torch.testing.assert_close(model[0].strength.data, torch.tensor([[4.95, -1.95]]))
    assert model[0].direction.tolist() == [[[[3.0, 4.0]], [[0.0, 1.0]]]]


def test_the_proximal_step_shrinks_by_rate_times_weight_and_stops_at_zero():
    """lr weight = 0.5 * 6 = 3: 5 -> 2, -2 -> 0."""
    model = two_kernels()
    optimizer = SGD(model.parameters())
    penalise(model, optimizer, 6.0, "proximal")
    flat(model)
    optimizer.step()
    assert model[0].strength.tolist() == [[2.0, 0.0]]
    flat(model)
    optimizer.param_groups[0]["lr"] = 0.25  # a schedule: 0.25 * 6 = 1.5
    optimizer.step()
    assert model[0].strength.tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize(("step", "wanted"), [
    # norms 5 and 0, lr weight = 1: both steps take 1/5 of (3, 4); a kernel of 0 stays
    ("subgradient", [[[3 - 0.6, 4 - 0.8]], [[0.0, 0.0]]]),
    ("proximal", [[[3 * 0.8, 4 * 0.8]], [[0.0, 0.0]]]),
])  # fmt: skip
def test_group_lasso_shrinks_whole_kernels(step, wanted):
    model = nn.Conv2d(2, 1, (1, 2), bias=False)
    model.weight.data = torch.tensor([[[[3.0, 4.0]], [[0.0, 0.0]]]])
    optimizer = SGD(model.parameters())
    penalty = penalise(model, optimizer, 2.0, step, "group_lasso")
    assert penalty.value().item() == 10.0
    flat(model)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, torch.tensor([wanted]))


def test_slimming_acts_on_scales_alone():
    """gamma = (0.25, -1) - 0.5 * 0.5 * (1, -1)"""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[1].weight.data = torch.tensor([0.25, -1.0])
    optimizer = SGD(model.parameters())
    penalise(model, optimizer, 0.5, kind="gamma")
    flat(model)
    before = model[0].weight.clone()
    optimizer.step()
    assert model[1].weight.tolist() == [0.0, -0.75]
    assert torch.equal(model[0].weight, before)
    assert not model[1].bias.any()


def test_the_penalty_is_the_group_lasso_of_the_folded_network():
    model = chain()
    convert(model, X, include_first=True)
    by_strength = penalise(model, SGD(model.parameters()), 1.0).value()
    fold(model)
    by_norm = penalise(model, SGD(model.parameters()), 1.0, kind="group_lasso").value()
    norms = sum(m.weight.flatten(2).norm(dim=2).sum() for m in model if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(by_strength, by_norm)
    torch.testing.assert_close(by_norm.float(), norms.detach())


@pytest.mark.parametrize("kind", ["group_lasso", "gamma"])
@pytest.mark.parametrize("step", ["subgradient", "proximal"])
def test_a_weight_of_zero_changes_nothing(kind, step):
    model = chain()
    optimizer = SGD(model.parameters())
    penalise(model, optimizer, 0.0, step, kind)
    before = {name: p.clone() for name, p in model.named_parameters()}
    flat(model)
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("step", ["subgradient", "proximal"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_scaled_losses_give_the_same_weights_and_overflow_gives_none(make, step, fused, unscale_first):
    models = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(conv(2, 2), conv(2, 2))
        convert(model, X)
        optimizer = make(model.parameters(), lr=0.125, fused=fused)
        penalise(model, optimizer, 0.25, step)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for factor in (1.0, torch.inf, 1.0) if scaled else (1.0, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(X[:, :, :2, :2]).mean() * factor).backward()
            if unscale_first:
                scaler.unscale_(optimizer)
            before = model[1].strength.clone()
            scaler.step(optimizer)
            assert torch.equal(model[1].strength, before) is (factor == torch.inf)
            scaler.update()
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)


def test_a_closure_that_clears_the_gradients_does_not_clear_the_penalty():
    results = []
    for how in ("plain", "argument", "keyword"):
        model = two_kernels()
        optimizer = SGD(model.parameters())
        penalise(model, optimizer, 0.5)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(torch.ones(1, 2, 1, 2)).sum()
            loss.backward()
            return loss

        if how == "plain":
            closure()
            loss = optimizer.step()
        else:
            loss = optimizer.step(closure) if how == "argument" else optimizer.step(closure=closure)
        assert (loss is None) is (how == "plain")
        results.append(model[0].strength.detach())
    # <G, u> = (3 + 4) / 5 = 1.4 and 1; s = (5, -2) - 0.5 * ((1.4, 1) + 0.5 * (1, -1))
    torch.testing.assert_close(results, [torch.tensor([[4.05, -2.25]])] * 3)


def test_pieces_of_a_batch_count_once():
    """Two backward passes, one update: s = 5 - 0.5 * 0.5 * 1 for a loss of 0."""
    model = two_kernels()
    optimizer = SGD(model.parameters())
    penalise(model, optimizer, 0.5)
    for _ in range(2):
        (0.0 * model(torch.ones(1, 2, 1, 2)).sum()).backward()
    optimizer.step()
    assert model[0].strength.tolist() == [[4.75, -1.75]]


def test_removed_it_leaves_plain_steps_and_its_weight_can_change_on_the_way():
    model = two_kernels()
    optimizer = SGD(model.parameters())
    penalty = penalise(model, optimizer, 1.0)
    penalty.weight = 2.0
    flat(model)
    optimizer.step()
    assert model[0].strength.tolist() == [[4.0, -1.0]]
    penalty.remove()
    flat(model)
    optimizer.step()
    assert model[0].strength.tolist() == [[4.0, -1.0]]
    assert not optimizer._optimizer_step_pre_hooks


def test_kernels_that_do_not_exist_and_parameters_without_gradient_are_left_out():
    model = two_kernels()
    model[0].mask[0, 0] = False
    optimizer = SGD(model.parameters())
    penalty = penalise(model, optimizer, 1.0)
    assert penalty.value().item() == 2.0
    optimizer.step()
    assert model[0].strength.tolist() == [[5.0, -2.0]]
    flat(model)
    optimizer.step()
    assert model[0].strength.tolist() == [[5.0, -1.5]]


def test_patterns_choose_and_accelerates_optimizer_is_seen_through():
    model = nn.Sequential(conv(2, 2), conv(2, 2))
    prepared, optimizer = Accelerator(cpu=True).prepare(model, SGD(model.parameters()))
    penalise(prepared, optimizer, 1.0, kind="group_lasso", exclude=["0"])
    before = [layer.weight.clone() for layer in model]
    flat(model)
    optimizer.step()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[1].weight, before[1])


def test_decay_reaches_weights_and_directions_only():
    model = resnet()
    convert(model, X)
    decayed, strengths, rest = parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [group["weight_decay"] for group in (decayed, strengths, rest)] == [0.1, 0.0, 0.0]
    assert {names[id(p)].rpartition(".")[2] for p in strengths["params"]} == {"strength"}
    assert {names[id(p)] for p in decayed["params"]} == {
        "0.weight", "3.conv1.direction", "3.conv2.direction", "4.conv1.direction", "4.conv2.direction", "7.weight",
    }
    count = sum(len(group["params"]) for group in (decayed, strengths, rest))
    assert count == sum(p.requires_grad for p in model.parameters())
    assert not any(p is model[3].bn1.weight for p in rest["params"])  # fixed by convert


@pytest.mark.parametrize(("given", "error", "message"), [
    ({"weight": -1.0}, OptionError, "weight = -1.0: wanted a finite number of at least 0"),
    ({"weight": float("nan")}, OptionError, "weight = nan"),
    ({"step": "prox"}, OptionError, "unknown step 'prox'; did you mean 'proximal'"),
    ({"kind": "lasso"}, OptionError, "unknown kind of penalty 'lasso'; did you mean 'group_lasso'"),
    ({"kind": "strength"}, AttachError, "has no KernelStrengthConv2d for kind 'strength'"),
    ({"exclude": ["9*"], "kind": "gamma"}, OptionError, "unknown layer '9*'"),
    ({"exclude": ["*"]}, AttachError, "every Conv2d.weight is excluded or frozen"),
])  # fmt: skip
def test_what_cannot_be_penalised_is_refused(given, error, message):
    model = grouped()
    optimizer = SGD(model.parameters())
    with pytest.raises(error, match=re.escape(message)):
        penalise(model, optimizer, **{"kind": "group_lasso", **given})
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(OptionError, match=r"weight_decay = -0\.1"):
        parameter_groups(model, -0.1)


def test_an_optimizer_from_before_the_conversion_and_lbfgs_are_refused():
    model = chain()
    early = SGD(model.parameters())
    convert(model, X)
    with pytest.raises(AttachError, match="holds none of the 2 penalised parameters; make it after convert"):
        penalise(model, early)
    with pytest.raises(AttachError, match="LBFGS evaluates the loss many times"):
        penalise(model, torch.optim.LBFGS(model.parameters()))
