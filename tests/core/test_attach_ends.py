"""What an attachment refuses to begin, and what it leaves behind when it ends."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from small_network import SGD, dead, exchange, half, network, train
from torch import nn

from synaptree.core.attach import attach
from synaptree.core.errors import AttachError, OptionError, ShapeError
from synaptree.core.layer import layers_of
from synaptree.core.oneshot import prune
from synaptree.core.schedule import Every, Never
from synaptree.core.topology import Topology
from synaptree.methods import build


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
    attached.detach()
    train(model, optimizer, 2)
    assert dead(model, attached.topology).any()
    topology = attached.finish()
    assert topology is attached.topology
    assert not dead(model, topology).signbit().any()


def test_editing_after_the_end_does_not_attach_again():
    model = network()
    optimizer = SGD(model.parameters())
    finished = attach(model, optimizer, topology=half(model))
    finished.finish()
    finished.edit({"0.weight": torch.zeros(3, 4).bool()})
    assert not model[0].weight.any()
    attach(model, optimizer, topology=half(model)).finish()
    assert finished.topology.density("0.weight") == 0.0


def test_a_parameter_is_attached_once_until_it_is_let_go():
    model = network()
    optimizer = SGD(model.parameters())
    first = attach(model, optimizer, topology=half(model))
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
    # the first error still holds the half-made attachment, which must not stand in the way
    assert "0.weight" in str(error.value)
    attached.finish()


def test_the_optimizer_alone_keeps_an_attachment_alive():
    model = network()
    optimizer = SGD(model.parameters())
    topology = half(model)
    attach(model, optimizer, topology=topology)
    gc.collect()
    train(model, optimizer, 2)
    assert topology.step == 2
    assert not dead(model, topology).any()


def test_without_its_optimizer_an_attachment_goes_at_once():
    model = network()
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, topology=half(model))
    gone = [weakref.ref(attached), weakref.ref(optimizer)]
    gc.disable()
    try:
        del optimizer
        assert attached.optimizer is None
        attached.edit({"0.weight": torch.ones(3, 4).bool()})
        del attached
        assert [ref() for ref in gone] == [None, None]
        attach(model, SGD(model.parameters()), topology=half(model)).finish()
    finally:
        gc.enable()


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


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, lambda _: SGD(network().parameters()), lambda _: []])
def test_a_topology_is_as_before_where_its_attachment_is_refused(optimizer):
    model, topology = network(), Topology()
    with pytest.raises(AttachError):
        attach(model, optimizer(model.parameters()), exchange(Every(1)), topology=topology)
    assert not topology.masks


def test_a_method_that_acts_through_prune_alone_wants_something_to_keep():
    model, method = network(), exchange(Never())
    for topology in (None, Topology.of(layers_of(model), method.granularity)):
        with pytest.raises(AttachError, match=r"acts only through prune, and nothing is pruned yet: call prune\("):
            attach(model, SGD(model.parameters()), method, topology=topology)
    optimizer = SGD(model.parameters())
    attached = attach(model, optimizer, method, topology=half(model))
    train(model, optimizer, 2)
    assert not dead(model, attached.topology).any()


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


@pytest.mark.parametrize(("model", "method", "complaint"), [
    ("model", build("magnitude"), "wanted a torch module to act on, got str"),
    (nn.Linear(2, 1), "rigl", r"wanted a Method, got 'rigl' of type str: build one"),
])  # fmt: skip
def test_what_is_no_model_or_no_method_is_refused_in_words(model, method, complaint):
    with pytest.raises(AttachError, match=complaint):
        prune(model, method)
    with pytest.raises(AttachError, match=complaint):
        attach(model, None, method)
