"""What a method may do beyond a rule: watch what flows, edit by itself, start sparse."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn, tensor

from synaptree.core.attach import attach, one_pass
from synaptree.core.method import Method, Site
from synaptree.core.oneshot import prune
from synaptree.core.probe import mean_abs_input
from synaptree.core.schedule import Every
from synaptree.core.signal import Signal, magnitude
from synaptree.core.topology import Topology
from synaptree.rules.allocate import Present, Room
from synaptree.rules.density import Density


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def watching(**options):
    """Return a method whose signal adds up what flows into each layer."""
    signal = Signal(
        lambda state, view: view.weight.abs() + 0 * state["seen"].sum(),
        lambda view: {"seen": torch.zeros(view.weight.shape[1], dtype=torch.float64)},
        lambda state, view: {"seen": state["seen"] + view.stats["x"]} if view.stats else state,
        watch={"x": mean_abs_input},
    )
    return Method(Density(0.5), {"keep": signal}, Every(3), **options)


def update(model, optimizer, x):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()


class TestWatching:
    def test_a_signal_sees_what_flowed_since_the_last_update(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attached = attach(model, optimizer, watching())
        update(model, optimizer, tensor([[1.0, -2.0, 0.0, 3.0], [1.0, 0.0, 0.0, -1.0]]))
        assert attached.topology.state["keep/0.weight"]["seen"].tolist() == [2.0, 2.0, 0.0, 4.0]
        update(model, optimizer, tensor([[0.0, 1.0, 0.0, 0.0]]))
        assert attached.topology.state["keep/0.weight"]["seen"].tolist() == [2.0, 3.0, 0.0, 4.0]

    def test_what_flows_in_eval_mode_or_without_gradients_is_not_seen(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attached = attach(model, optimizer, watching())
        with torch.no_grad():
            model(torch.ones(5, 4))
        model.eval()(torch.ones(5, 4))
        model.train()
        update(model, optimizer, torch.ones(1, 4))
        assert attached.topology.state["keep/0.weight"]["seen"].tolist() == [1.0] * 4

    def test_copies_and_pickles_are_not_watched_and_nothing_is_left_behind(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attached = attach(model, optimizer, watching(edit=one_pass))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            twin(torch.ones(1, 4)).sum().backward()
        assert attached.inputs == []
        assert attached._probe.take() == {"0": {}, "2": {}}
        attached.finish()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_whoever_lets_go_of_the_optimizer_lets_go_of_the_hooks(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attach(model, optimizer, watching())
        assert model[0]._forward_hooks
        del optimizer
        gc.collect()
        assert not model[0]._forward_hooks

    def test_outside_training_it_sees_means_over_the_calibration_batches(self):
        seen = {}

        def read(_, view):
            seen[view.layer.name] = view.stats["x"].tolist()
            return view.weight.abs()

        method = Method(Density(0.5), {"keep": Signal(read, watch={"x": mean_abs_input})})
        prune(network(), method, tensor([[1.0, -2.0, 0.0, 3.0], [1.0, 0.0, 0.0, -1.0]]))
        assert seen["0"] == [1.0, 1.0, 0.0, 2.0]


class TestEditing:
    def test_an_edit_takes_the_place_of_the_rule_in_training_too(self):
        sites = []

        def edit(on):
            sites.append((on.topology.step, on.inputs[0].tolist()))
            masks = on.masks()
            on.edit({"0.weight": masks["0.weight"]})

        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, Method(Density(0.5), {"keep": magnitude}, Every(2), edit=edit))
        assert isinstance(attached, Site)
        for n in range(4):
            update(model, optimizer, torch.full((3, 4), float(n)))
        assert sites == [(2, [[1.0] * 4]), (4, [[3.0] * 4])]
        assert attached.topology.density("0.weight") == 0.5
        assert attached.topology.density("2.weight") == 1.0

    def test_newborns_of_another_partys_edit_start_with_a_clean_optimizer_state(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
        topology = Topology()
        topology.add("0.weight", (3, 4))
        topology.edit({"0.weight": tensor([[0, 1, 1, 1]] * 3).bool()})
        attach(model, optimizer, topology=topology)
        for _ in range(3):  # momentum builds up, on dead weights too
            update(model, optimizer, torch.ones(1, 4))
        topology.edit({"0.weight": torch.ones(3, 4, dtype=torch.bool)})
        before = optimizer.state[model[0].weight]["momentum_buffer"].clone()
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        gradient = model[0].weight.grad.clone()
        optimizer.step()
        after = optimizer.state[model[0].weight]["momentum_buffer"]
        assert torch.equal(after[:, 0], gradient[:, 0])
        assert torch.equal(after[:, 1:], 0.5 * before[:, 1:] + gradient[:, 1:])

    def test_gradients_for_an_edit_outside_training_are_given(self):
        grown = Method(
            Density(0.25, grow="grow"),
            {"keep": magnitude, "grow": Signal(lambda _, view: view.grad.abs(), needs=frozenset({"gradient"}))},
        )
        model, topology = nn.Linear(4, 1, bias=False), Topology()
        topology.add("weight", (1, 4))
        topology.edit({"weight": torch.zeros(1, 4, dtype=torch.bool)})
        gradients = {"weight": tensor([[1.0, -5.0, 2.0, 0.0]])}
        prune(model, grown, topology=topology, gradients=gradients)
        assert topology.masks["weight"].tolist() == [[False, True, False, False]]


class TestStarting:
    def sparse(self, start):
        return Method(Density(1.0), {"keep": magnitude}, Every(100), start=start)

    def test_a_method_may_start_sparse(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        half = self.sparse(lambda on: on.edit({"0.weight": tensor([[1, 0, 1, 0]] * 3).bool()}))
        attached = attach(model, optimizer, half)
        assert attached.topology.density("0.weight") == 0.5
        assert not model[0].weight[:, 1::2].any()

    def test_what_has_a_topology_is_not_started_again(self):
        model, topology = network(), Topology()
        topology.add("0.weight", (3, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        started = []
        attach(model, optimizer, self.sparse(started.append), topology=topology)
        assert started == []

    def test_after_an_error_nothing_is_attached(self):
        def start(on):
            on.edit({"0.weight": torch.zeros(3, 4, dtype=torch.bool)})
            raise ValueError("no seed")

        model, topology = network(), Topology()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="no seed"):
            attach(model, optimizer, self.sparse(start), topology=topology)
        assert not topology.masks
        assert not optimizer._optimizer_step_post_hooks
        assert attach(model, optimizer, self.sparse(lambda _: None)).topology.density() == 1.0


class TestCounting:
    def test_births_and_deaths_add_up(self):
        topology = Topology()
        topology.add("w", (1, 4))
        for mask in ([1, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]):
            topology.edit({"w": tensor([mask]).bool()})
        assert (topology.born, topology.died) == (2, 3)
        again = Topology()
        again.load_state_dict(topology.state_dict())
        assert (again.born, again.died) == (2, 3)

    def test_ages_survive_counting_from_another_step(self):
        topology = Topology()
        topology.add("w", (1, 2))
        topology.step = 4
        topology.edit({"w": tensor([[True, False]])})
        topology.step = 10
        topology.edit({"w": tensor([[True, True]])})
        topology.step = 12
        topology.count_from(0)
        topology.step = 3
        # 12 updates and 3 more; born at 10, 2 updates before the count began anew, and 3 after
        assert topology.age("w").tolist() == [[15, 5]]

    def test_each_layer_keeps_its_share_of_what_it_has(self):
        full, half = torch.zeros(8), torch.tensor([0.0] * 4 + [-torch.inf] * 4)
        parts = [Room("a", (8, 1), 8, full), Room("b", (8, 1), 8, half)]
        # 12 of 16 exist; a half of them is 6: 4 of the 8 and 2 of the 4
        assert Present()(6 / 16, parts) == [4, 2]
        assert Present()(12 / 16, parts) == [8, 4]

    def test_births_of_one_step_share_an_entry_and_deaths_need_none(self):
        topology = Topology()
        topology.add("w", (1, 4))
        for step in (1, 2, 2, 3):
            topology.step = step
            topology.edit({"w": ~topology.masks["w"] if step == 2 else topology.masks["w"]})
        # all die at step 2, and come back at step 2
        topology.step = 5
        assert topology.age("w").tolist() == [[3] * 4]
        assert topology.state_dict()["edits"] == [0, 2]


def test_frozen_layers_are_left_alone_in_training():
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    attached = attach(model, optimizer, Method(Density(0.5), {"keep": magnitude}, Every(1)))
    update(model, optimizer, torch.ones(2, 4))
    assert (attached.topology.density("0.weight"), attached.topology.density("2.weight")) == (1.0, 0.5)
