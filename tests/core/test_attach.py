"""Masks through training: whatever the optimizer does, what is dead stays 0 and what is born starts at 0."""

from functools import partial

import pytest
import torch
from lion_pytorch import Lion
from small_network import SGD, alive, dead, exchange, half, network, train
from torch import nn, tensor

from synaptree.core.attach import attach
from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.schedule import Every
from synaptree.core.signal import gradient, magnitude, stateless
from synaptree.core.topology import Topology
from synaptree.rules.density import Density

OPTIMIZERS = {
    "sgd": SGD,
    "nesterov, foreach": partial(SGD, nesterov=True, foreach=True),
    "sgd, fused": partial(SGD, fused=True),
    "adam": partial(torch.optim.Adam, lr=0.1, weight_decay=0.1),
    "adam, foreach": partial(torch.optim.Adam, lr=0.1, amsgrad=True, foreach=True),
    "adam, fused": partial(torch.optim.Adam, lr=0.1, weight_decay=0.1, fused=True),
    "adamw, foreach": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1, foreach=True),
    "adamw, fused": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.9, centered=True),
    "lion": partial(Lion, lr=0.1, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


@every_optimizer
def test_dead_weights_are_zero_after_every_update_and_no_momentum_revives_them(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    attached = attach(model, optimizer, topology=half(model))
    assert not dead(model, attached.topology).any()
    for _ in range(4):
        before = alive(model, attached.topology).clone()
        train(model, optimizer)
        assert not dead(model, attached.topology).any()
        assert (alive(model, attached.topology) != before).all()
    assert attached.topology.step == 4


@every_optimizer
def test_what_is_born_starts_at_zero_with_its_optimizer_state_and_survivors_keep_theirs(make):
    model = network()
    optimizer = make(model.parameters())
    seen = {}

    def look(*_):
        for name, parameter in model.named_parameters():
            state = {k: v.clone() for k, v in optimizer.state[parameter].items() if v.shape == parameter.shape}
            seen[name] = {"weight": parameter.detach().clone(), **state}

    optimizer.register_step_post_hook(look)  # before attach's own, so that it sees what the update left
    elsewhere = stateless(lambda view: (~view.mask).float())
    attached = attach(model, optimizer, exchange(lambda step: step == 3, elsewhere), topology=half(model))
    train(model, optimizer, 3)
    born = attached.last.born
    assert str(attached.last) == "5 born, 5 died"  # 3 of 6 in the first layer; half of 3, rounded to even, is 2
    for name, parameter in attached.topology.parameters(model):
        mask = attached.topology.masks[name]
        state = optimizer.state[parameter]
        assert torch.equal(parameter, torch.where(mask & ~born[name], seen[name].pop("weight"), 0.0))
        assert len(seen[name]) >= 1
        for key, before in seen[name].items():
            assert torch.equal(state[key], before.masked_fill(born[name], 0.0))
    train(model, optimizer)
    assert model[2].weight[born["2.weight"]].all()


def test_a_step_is_an_update_however_many_batches_it_takes():
    model = network()
    optimizer = SGD(model.parameters())
    steps = []
    attached = attach(model, optimizer, Method(Density(1.0), {"keep": magnitude}, lambda step: steps.append(step)))
    train(model, optimizer, updates=3, parts=2)
    assert steps == [1, 2, 3]
    assert attached.topology.step == 3


def test_closures_are_steps_too():
    model = network()
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, topology=half(model))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 4)).sum()
        loss.backward()
        return loss

    before = model(torch.ones(1, 4)).sum().item()
    assert optimizer.step(closure).item() == before
    assert attached.topology.step == 1
    assert not dead(model, attached.topology).any()


def test_every_group_of_parameters_is_masked():
    model = network()
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": 0.5}])
    attached = attach(model, optimizer, topology=half(model))
    train(model, optimizer, 3)
    assert not dead(model, attached.topology).any()


def test_density_follows_the_schedule_and_nothing_returns():
    model = network()
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, Method(Density(lambda step: 1 - step / 6), {"keep": magnitude}, Every(2)))
    masks = [attached.topology.masks]
    for step, density in ((2, 12 / 18), (4, 6 / 18), (6, 0.0)):
        train(model, optimizer, 2)
        assert (attached.topology.step, attached.topology.density()) == (step, density)
        masks.append(dict(attached.topology.masks))
        assert not any((masks[-1][name] & ~masks[-2][name]).any() for name in masks[-1])
    assert str(attached.last) == "0 born, 6 died"
    assert not model[0].weight.any()


def test_only_the_chosen_layers_are_edited():
    model = network()
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, exchange(Every(1)), exclude=["0"])
    train(model, optimizer)
    assert list(attached.topology.masks) == ["2.weight"]
    assert attached.topology.density() == 0.5
    assert model[0].weight.all()


def test_kernels_live_and_die_whole():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten())
    optimizer = SGD(model.parameters())
    method = Method(
        Density(0.5, grow="grow", turnover=0.5), {"keep": magnitude, "grow": gradient}, Every(1),
        granularity={"conv": "kernel"},
    )  # fmt: skip
    attached = attach(model, optimizer, method)
    for _ in range(3):
        model(torch.randn(2, 2, 5, 5)).square().sum().backward()
        optimizer.step()
        assert int((model[0].weight != 0).flatten(2).any(2).sum()) == 4 - int(attached.last.born["0.weight"].sum())
        assert attached.topology.density() == 0.5


@pytest.mark.parametrize("make", [OPTIMIZERS["sgd"], OPTIMIZERS["adam, foreach"]])
def test_half_precision_is_masked_and_exchanged_alike(make):
    model = network().bfloat16()
    optimizer = make(model.parameters())
    attached = attach(model, optimizer, exchange(Every(2)))
    for _ in range(4):
        train(model, optimizer)
        assert not dead(model, attached.topology).any()
    assert attached.topology.density() == 0.5
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_frozen_layers_keep_their_zeros_also_once_they_thaw():
    model = network()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, topology=half(model))
    frozen = model[0].weight.clone()
    train(model, optimizer, 2)
    assert torch.equal(model[0].weight, frozen)
    model[0].requires_grad_(True)
    train(model, optimizer, 2)
    assert (model[0].weight != frozen).any()
    assert not dead(model, attached.topology).any()


def test_a_topology_that_is_pruned_by_other_means_is_followed():
    model = network()
    optimizer = SGD(model.parameters())
    train(model, optimizer, 3)
    attached = attach(model, optimizer, topology=half(model))
    weights_and_biases = Method(Density(1 / 3), {"keep": magnitude}, biases=True)
    prune(model, weights_and_biases, topology=attached.topology)
    train(model, optimizer)
    attached.topology.edit({"0.bias": tensor([True, False, True])})
    train(model, optimizer)
    assert attached.topology.density() == 1 / 3
    assert not dead(model, attached.topology).any()
    assert model[0].bias[1] == 0


def test_the_topology_can_be_edited_at_any_time():
    model = network()
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, topology=half(model))
    train(model, optimizer)
    delta = attached.edit({"0.weight": ~attached.topology.masks["0.weight"]})
    assert str(delta) == "6 born, 6 died"
    assert not model[0].weight.any()
    train(model, optimizer)
    assert (model[0].weight != 0).equal(attached.topology.masks["0.weight"])


def test_newborn_weights_start_at_zero_whatever_was_stored_in_their_place():
    model = network()
    attached = attach(model, SGD(model.parameters()), topology=half(model))
    model[0].weight.data.fill_(1.0)
    attached.edit({"0.weight": torch.ones(3, 4).bool()})
    assert (model[0].weight != 0).equal(half(model).masks["0.weight"])


def test_masks_that_came_later_can_be_edited_at_once():
    model = network()
    attached = attach(model, SGD(model.parameters()), topology=half(model))
    attached.topology.cover(layers_of(model), {"linear": "weight"}, biases=True)
    attached.edit({"0.bias": tensor([True, False, True])})
    attached.edit({"0.bias": tensor([True, True, True])})
    assert model[0].bias[1] == 0


def test_a_new_optimizer_is_followed_and_the_old_one_let_go():
    model = network()
    old = SGD(model.parameters())
    attached = attach(model, old, topology=half(model))
    train(model, old, 2)
    new = torch.optim.Adam(model.parameters(), lr=0.1)
    attached.rebind(new)
    train(model, new, 2)
    assert not dead(model, attached.topology).any()
    assert attached.topology.step == 4
    train(model, old)
    assert attached.topology.step == 4
    assert dead(model, attached.topology).any()


def test_an_optimizer_of_accelerate_is_unwrapped():
    from accelerate import Accelerator

    model = network()
    inner = SGD(model.parameters())
    outer = Accelerator(cpu=True).prepare(inner)
    attached = attach(model, outer, topology=half(model))
    assert attached.optimizer is inner
    train(model, outer, 2)
    assert attached.topology.step == 2
    assert not dead(model, attached.topology).any()


@pytest.mark.slow
def test_a_compiled_model_gets_the_same_masks():
    masks = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = network()
        run = torch.compile(model, backend="eager") if compiled else model
        optimizer = SGD(run.parameters())
        attached = attach(run, optimizer, exchange(Every(1)))
        for _ in range(4):
            optimizer.zero_grad()
            (run(torch.ones(2, 4)) - 1).square().sum().backward()
            optimizer.step()
        masks.append(attached.finish())
    assert masks[0].digest() == masks[1].digest()
    assert list(masks[0].masks) == list(masks[1].masks) == ["0.weight", "2.weight"]


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_dead_weights_are_plus_zero_also_after_an_update_that_is_not_finite(make, dtype, value):
    model = network().to(dtype)
    optimizer = make(model.parameters())
    attached = attach(model, optimizer, topology=half(model))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()
    assert torch.equal(dead(model, attached.topology), torch.zeros(9, dtype=dtype))
    assert not dead(model, attached.topology).signbit().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_masking_leaves_every_bit_of_what_exists(dtype):
    model = nn.Linear(3, 2, bias=False).to(dtype)
    model.weight.data = tensor([[-0.0, -1e-7, float("inf")], [float("nan"), 5.0, -60000.0]], dtype=dtype)
    before = model.weight.detach().clone()
    topology = Topology.of(layers_of(model), {"linear": "weight"})
    topology.edit({"weight": tensor([[True, True, True], [True, False, True]])})
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    attach(model, optimizer, topology=topology)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert torch.equal(model.weight.isnan(), before.isnan())
    before[1, 1] = 0.0
    assert torch.equal(model.weight.nan_to_num(7), before.nan_to_num(7))
    assert torch.equal(model.weight.signbit(), before.signbit())
