"""Masks through training: whatever the optimizer does, what is dead stays 0 and what is born starts at 0."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import torch
from lion_pytorch import Lion
from torch import nn, tensor

from synaptree.core.attach import attach
from synaptree.core.errors import AttachError, OptionError, ShapeError
from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.rule import Density
from synaptree.core.schedule import At, Every, Linear
from synaptree.core.signal import gradient, magnitude, stateless
from synaptree.core.topology import Topology

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
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


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def half(model):
    """Return a topology of every second weight."""
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "weight"})
    topology.edit({name: torch.arange(mask.numel()).view(mask.shape) % 2 == 0 for name, mask in topology.masks.items()})
    return topology


def train(model, optimizer, updates=1, parts=1):
    dtype = model[0].weight.dtype
    for _ in range(updates):
        optimizer.zero_grad()
        for _ in range(parts):
            (model(torch.randn(8, 4).to(dtype)) - torch.randn(8, 2).to(dtype)).square().sum().backward()
        optimizer.step()


def exchange(when, grow=gradient):
    """Return a method at density 0.5 that drops and grows half of the connections."""
    return Method(Density(0.5, grow="grow", turnover=0.5), {"keep": magnitude, "grow": grow}, when)


def dead(model, topology):
    return torch.cat([parameter[~topology.expanded(name)] for name, parameter in topology.parameters(model)])


def alive(model, topology):
    return torch.cat([parameter[topology.expanded(name)] for name, parameter in topology.parameters(model)])


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
    attached = attach(model, optimizer, exchange(At((3,)), elsewhere), topology=half(model))
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

    assert optimizer.step(closure).item() == pytest.approx(model(torch.ones(1, 4)).sum().item(), abs=9.0)
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
    attached = attach(model, optimizer, Method(Density(Linear(1.0, 0.0, 0, 6)), {"keep": magnitude}, Every(2)))
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
    attached.topology.edit({"0.bias": tensor([True, False, True])})
    train(model, optimizer, 2)
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


@pytest.mark.parametrize("leave", ["detach", "finish"])
def test_afterwards_model_and_optimizer_are_as_plain_as_before(leave):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    keys = list(model.state_dict())
    attached = attach(model, optimizer, exchange(Every(1)))
    train(model, optimizer, 2)
    getattr(attached, leave)()
    for copied in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        net, adam = copied(model), copied(optimizer)
        assert list(net.state_dict()) == keys
        assert [type(module) for module in net.modules()] == [type(module) for module in network().modules()]
        assert not any(hooks for module in net.modules() for key, hooks in vars(module).items() if "hooks" in key)
        assert not any(parameter._backward_hooks for parameter in net.parameters())
        assert type(adam) is torch.optim.Adam
    assert not any(hooks for key, hooks in vars(optimizer).items() if "hooks" in key)
    train(model, optimizer)
    assert attached.topology.step == 2
    assert dead(model, attached.topology).any()


def test_finishing_writes_plus_zero_and_returns_the_topology():
    model = network()
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, topology=half(model))
    train(model, optimizer, 2)
    assert dead(model, attached.topology).signbit().any()
    topology = attached.finish()
    assert topology is attached.topology
    assert not dead(model, topology).signbit().any()


def test_a_parameter_is_attached_once_until_it_is_let_go():
    model = network()
    optimizer = SGD(model.parameters())
    first = attach(model, optimizer, topology=half(model), exclude=[])
    with pytest.raises(AttachError, match=r"0.weight of shape \(3, 4\) is attached already; call finish\(\)"):
        attach(model, optimizer, topology=half(model))
    first.detach()
    attach(model, optimizer, topology=half(model)).finish()
    attach(model, optimizer, exchange(Every(1)), include=["0"])
    attach(model, optimizer, exchange(Every(1)), include=["2"])


def test_a_failed_attachment_leaves_nothing_behind():
    model = network()
    with pytest.raises(AttachError, match="holds none") as error:
        attach(model, SGD([nn.Parameter(torch.zeros(1))]), topology=half(model))
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, topology=half(model))
    with pytest.raises(AttachError):
        attach(model, optimizer, topology=half(model))
    assert len(optimizer._optimizer_step_post_hooks) == 1
    assert error.value is not None
    attached.finish()


def test_what_nobody_holds_any_more_is_let_go():
    model = network()
    optimizer = SGD(model.parameters())
    attach(model, optimizer, topology=half(model))
    gone = weakref.ref(model)
    del optimizer
    gc.collect()
    attach(model, SGD(model.parameters()), topology=half(model))
    del model
    gc.collect()
    assert gone() is None


def test_an_optimizer_out_of_reach_is_refused():
    model = network()
    with pytest.raises(AttachError, match="LBFGS changes weights many times within one step"):
        attach(model, torch.optim.LBFGS(model.parameters()), topology=half(model))
    with pytest.raises(AttachError, match=r"holds none of the masked parameters \(0.weight, 2.weight"):
        attach(model, SGD(network().parameters()), topology=half(model))
    with pytest.raises(AttachError, match=r"list is no torch\.optim\.Optimizer"):
        attach(model, [], topology=half(model))


def test_a_model_that_cannot_be_pruned_is_refused():
    model, method = network(), exchange(Every(1))
    optimizer = SGD(model.parameters())
    with pytest.raises(AttachError, match="ReLU has nothing to prune"):
        attach(nn.ReLU(), optimizer, method)
    with pytest.raises(OptionError, match=r"unknown layer 'fc'\. Known: 0, 2"):
        attach(model, optimizer, method, include=["fc"])
    with pytest.raises(AttachError, match="wants a method, a topology whose masks to keep, or both; got neither"):
        attach(model, optimizer)
    with pytest.raises(ShapeError, match=r"0.weight: .* Linear has no such parameter"):
        attach(nn.Linear(4, 3), optimizer, topology=half(model))
    assert not optimizer._optimizer_step_post_hooks
