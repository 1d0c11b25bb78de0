import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from synaptree.core.attach import attach
from synaptree.core.errors import OptionError
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.topology import Topology
from synaptree.graph.read import read
from synaptree.methods import build
from synaptree.recipe import Recipe
from synaptree.results import Result
from synaptree.train import zoo
from synaptree.train.data import load
from synaptree.train.health import Guard, Limits, check
from synaptree.train.loop import Interrupted, TrainOptions
from synaptree.train.network import Network
from synaptree.train.programme import Adopt, Measure, Prune, Rewind, Shuffle, Surroundings, Train, develop

SHORT = TrainOptions(epochs=2, batch=300, lr=1e-2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def a_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def masked(model: nn.Module, **masks: list[list[int]]) -> Topology:
    """The topology with the masks given, applied; `w0` is that of `0.weight`."""
    topology = Topology()
    for short, rows in masks.items():
        name, mask = f"{short[1:]}.weight", torch.tensor(rows).bool()
        topology.add(name, tuple(model.get_parameter(name).shape))
        topology.edit({name: mask.view(topology.masks[name].shape)})
    topology.apply(model)
    return topology


def kinds(*arguments, **options) -> list[tuple[str, str]]:
    return [(finding.kind, finding.where) for finding in check(*arguments, **options)]


class TestLayers:
    def test_a_layer_without_connections_is_named_with_its_shape(self):
        model = a_network()
        topology = masked(model, w2=[[0, 0, 0]] * 4)
        topology.step = 12
        (finding,) = check(model, topology)
        assert (finding.kind, finding.where, finding.shape, finding.step) == ("collapse", "2", (4, 3), 12)
        assert str(finding).startswith("step 12: 2 of shape (4, 3) has lost all 12 connections")

    def test_a_convolution_without_a_live_filter_has_collapsed(self):
        model = nn.Sequential(nn.Conv2d(2, 3, 3))
        topology = Topology()
        topology.add("0.weight", (3, 2, 3, 3), "kernel")
        topology.edit({"0.weight": torch.zeros(3, 2, 1, 1).bool()})
        topology.apply(model)
        (finding,) = check(model, topology)
        assert finding.kind == "collapse"
        assert "no one of its 3 filters is live" in finding.text

    @pytest.mark.parametrize(("limit", "found"), [(0.5, True), (0.75, False), (1.0, False)])
    def test_units_without_inputs_are_said_above_the_limit_only(self, limit, found):
        model = a_network()
        topology = masked(model, w2=[[0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]])
        findings = check(model, topology, limits=Limits(dead_units=limit))
        assert [(f.kind, f.numbers["dead"], f.numbers["units"]) for f in findings] == [("dead_units", 3, 4)] * found

    def test_where_a_connection_is_a_unit_dead_units_are_the_density_that_was_asked_for(self):
        model = nn.Sequential(nn.Conv2d(1, 8, 3))
        topology = prune(model, build("magnitude", density=0.25, conv="unit"))
        assert not check(model, topology, limits=Limits(dead_units=0.5))

    @pytest.mark.parametrize("share", [-0.1, 1.1])
    def test_a_limit_is_a_share(self, share):
        with pytest.raises(OptionError, match="dead_units = "):
            Limits(dead_units=share)


class TestFlow:
    def test_a_network_through_which_nothing_flows_is_found_though_every_layer_has_connections(self):
        model = a_network()
        # unit 0 of layer 2 has connections and is not read, unit 3 is read and has none
        topology = masked(model, w2=[[1, 1, 1], [0] * 3, [0] * 3, [0] * 3], w4=[[0, 0, 0, 1]] * 2)
        graph = read(model, torch.zeros(1, 4))
        assert kinds(model, topology, limits=Limits(dead_units=1)) == []
        (finding,) = check(model, topology, graph=graph, limits=Limits(dead_units=1))
        assert (finding.kind, finding.where, finding.shape) == ("blocked", "2", (4, 3))
        assert finding.numbers == {"alive": 3, "read": 1}
        before = model(torch.zeros(1, 4))
        assert torch.equal(model(torch.randn(1, 4)), before)

    def test_one_way_through_is_enough(self):
        model = a_network()
        topology = masked(model, w2=[[1, 0, 0], [0] * 3, [0] * 3, [0] * 3], w4=[[1, 0, 0, 0], [0] * 4])
        assert kinds(model, topology, graph=read(model, torch.zeros(1, 4))) == []

    def test_a_layer_that_has_lost_everything_is_not_said_twice(self):
        model = a_network()
        topology = masked(model, w2=[[0] * 3] * 4)
        assert kinds(model, topology, graph=read(model, torch.zeros(1, 4))) == [("collapse", "2")]

    def test_a_shortcut_carries_past_a_block_without_connections(self):
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.inner, self.last = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.first(x)
                return self.last(x + self.inner(x).relu())

        model = Residual()
        topology = Topology()
        topology.add("inner.weight", (3, 3))
        topology.edit({"inner.weight": torch.zeros(3, 3).bool()})
        topology.apply(model)
        assert kinds(model, topology, graph=read(model, torch.zeros(1, 2))) == [("collapse", "inner")]


class TestDensity:
    def test_a_network_at_the_density_asked_for_is_well(self):
        for name in ("magnitude", "random"):
            model, method = a_network(), build(name, density=0.5)
            assert kinds(model, prune(model, method), method=method) == []

    def test_another_density_is_named_beside_the_one_asked_for(self):
        model, method = a_network(), build("magnitude", density=0.5)
        topology = prune(model, build("magnitude", density=0.25))
        (finding,) = check(model, topology, method=method)
        assert (finding.kind, finding.where, finding.numbers["density"], finding.numbers["asked"]) == (
            "density", "network", 0.25, 0.5,
        )  # fmt: skip
        assert "0.2500 of the 32 connections" in finding.text
        assert "0.5000" in finding.text
        assert kinds(model, topology, method=method, limits=Limits(density=0.5)) == []

    def test_between_two_edits_the_density_is_that_of_the_last(self):
        model, method = a_network(), build("gradual_magnitude", density=0.1, first=10, last=50, every=10)
        topology = prune(model, build("magnitude", density=1.0))
        topology.count_from(29)
        rule = method.rule
        topology.edit(prune(a_network(), build("magnitude", density=rule.target(20))).masks)
        topology.apply(model)
        assert kinds(model, topology, method=method) == []
        topology.step = 30  # now it ought to have been edited again
        assert kinds(model, topology, method=method) == [("density", "network")]

    def test_before_the_first_edit_no_density_is_asked_for(self):
        model, method = a_network(), build("rigl", density=0.5, every=100)
        topology = prune(model, build("magnitude", density=0.25))
        topology.count_from(99)
        assert kinds(model, topology, method=method) == []
        topology.count_from(100)
        assert kinds(model, topology, method=method) == [("density", "network")]

    def test_a_table_of_densities_is_what_is_asked_for(self):
        model = a_network()
        method = build("magnitude", density=0.9, allocate={"0": 0.5, "2": 1.0, "4": 0.25})
        assert kinds(model, prune(model, method), method=method) == []

    def test_a_method_that_replaces_keeps_the_density_of_its_start(self):
        model, method = a_network(), build("deep_r", density=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, method)
        for _ in range(3):
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
        assert kinds(model, attached.topology, method=method, optimizer=optimizer) == []
        other = replace(method, options={**method.options, "density": 0.25})
        assert kinds(model, attached.topology, method=other) == [("density", "network")]

    @pytest.mark.parametrize("name", ["iterative_magnitude", "dynamic_synaptic", "nest"])
    def test_methods_without_a_density_of_their_own_are_left_alone(self, name):
        model = a_network()
        topology = prune(model, build("magnitude", density=0.5))
        topology.count_from(10_000)
        assert kinds(model, topology, method=build(name)) == []


class TestWeights:
    def test_dead_weights_that_somebody_wrote_are_counted(self):
        model = a_network()
        topology = masked(model, w0=[[1, 0, 0, 1]] * 3)
        assert kinds(model, topology) == []
        with torch.no_grad():
            model[0].weight[0, 1], model[0].weight[2, 2] = 1.0, float("nan")
        findings = {finding.kind: finding for finding in check(model, topology)}
        assert findings["not_zero"].where == "0.weight"
        assert findings["not_zero"].numbers == {"not_zero": 2, "dead": 6}
        assert findings["not_finite"].numbers == {"not_finite": 1, "weights": 12}

    def test_large_weights_are_finite_though_their_sum_is_not(self):
        model = nn.Linear(2, 1)
        with torch.no_grad():
            model.weight.fill_(3e38)
        assert kinds(model, Topology()) == []

    def test_connections_that_no_optimizer_holds_are_found_and_frozen_ones_are_not(self):
        model = a_network()
        topology = masked(model, w0=[[1, 0, 0, 1]] * 3, w2=[[1, 0, 1]] * 4)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        assert kinds(model, topology, optimizer=optimizer) == [("untrained", "0.weight")]
        model[0].requires_grad_(False)
        assert kinds(model, topology, optimizer=optimizer) == []

    def test_what_an_optimizer_remembers_of_dead_weights_is_no_finding(self):
        model = nn.Sequential(nn.Linear(4, 3))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        topology = masked(model, w0=[[0, 0, 1, 1]] * 3)
        assert optimizer.state[model[0].weight]["exp_avg"][:, :2].any()
        assert kinds(model, topology, optimizer=optimizer) == []


def fresh(seed: int) -> nn.Module:
    return zoo.build("mlp", seed=seed, inputs=64, hidden=(12,))


@pytest.fixture
def around(tmp_path) -> Surroundings:
    return Surroundings(load("digits"), 7, tmp_path, fresh)


def run(stages, around, **options) -> Network:
    network = Network(fresh(around.seed))
    for _ in develop(network, stages, around, identity="me", **options):
        pass
    return network


LETHAL = build("magnitude", allocate={"fc1": 0.5, "fc2": 0.0})


class TestRuns:
    def test_a_run_says_once_what_lasts_and_when_it_came(self, around):
        run([Train(SHORT), Measure(), Prune(LETHAL), Train(SHORT), Measure()], around)
        (entry,) = around.log["health"]
        assert (entry["kind"], entry["where"], entry["round"], entry["stage"]) == ("collapse", "fc2", 1, "prune")
        assert (entry["step"], entry["epoch"], entry["until"]) == (around.log["epochs"][1]["step"], 2, None)

    def test_what_is_over_has_an_end(self, around):
        run([Train(SHORT), Prune(LETHAL), Train(SHORT), Adopt(around.folder, 0), Rewind(0)], around_with_round(around))
        (entry,) = around.log["health"]
        assert entry["until"] == around.log["epochs"][-1]["step"]

    def test_a_healthy_run_says_nothing(self, around):
        methods: list[Method] = [build("set", density=0.5, every=5), build("gradual_magnitude", last=12, every=3)]
        for method in methods:
            run([Train(SHORT, method=method), Measure(), Prune(build("nnrelief")), Train(SHORT)], around)
        assert around.log["health"] == []

    def test_masks_that_the_next_stage_applies_are_no_finding(self, around):
        run([Train(SHORT), Prune(build("magnitude", density=0.5)), Measure()], around)
        run([Train(SHORT), Adopt(around.folder, 1), Shuffle(), Train(SHORT)], around)
        assert around.log["health"] == []

    def test_an_edit_within_an_epoch_is_looked_at_at_once(self, around):
        lethal = build("gradual_magnitude", density=0.0, first=109, last=110, every=110)
        run([Train(SHORT.model_copy(update={"batch": 10, "epochs": 1}), method=lethal)], around)
        assert around.log["epochs"][0]["step"] > 110
        assert {(entry["where"], entry["step"]) for entry in around.log["health"]} == {("fc1", 110), ("fc2", 110)}

    def test_guards_can_be_left_out(self, around):
        unguarded = replace(around, guard=Guard(None))
        run([Train(SHORT), Prune(LETHAL)], unguarded)
        assert unguarded.log["health"] == []

    def test_an_interrupted_run_says_the_same_as_one_that_was_not(self, around, tmp_path):
        stages = [Train(SHORT), Prune(LETHAL), Train(SHORT, method=build("set", density=0.5, every=2))]
        run(stages, around)
        folder = tmp_path / "again"
        folder.mkdir()
        updates = iter(range(1, 1000))
        parted = replace(around, folder=folder, log={"epochs": [], "rounds": []}, stop=lambda: next(updates) == 13)
        with pytest.raises(Interrupted):
            run(stages, parted)
        again = replace(parted, log={"epochs": [], "rounds": []}, stop=lambda: False)
        run(stages, again, resume=True)
        assert again.log["health"] == around.log["health"] != []

    def test_a_model_that_cannot_be_read_is_looked_at_layer_by_layer(self, around):
        class Undecided(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = fresh(0)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.net(x) if x.sum() > -1e9 else x

        network = Network(Undecided(), Topology())
        network.topology = prune(network.model, build("magnitude", allocate={"net.fc1": 0.5, "net.fc2": 0.0}))
        around.guard.look(network, around, "alone")
        assert [entry["where"] for entry in around.log["health"]] == ["net.fc2"]


def around_with_round(around: Surroundings) -> Surroundings:
    """Surroundings in whose folder a dense round 0 lies."""
    run([Measure()], replace(around, log={"epochs": [], "rounds": [], "health": []}))
    return around


def test_guards_are_set_in_the_recipe_and_are_no_part_of_what_a_run_is():
    plain = {"model": "lenet5", "data": "mnist", "method": "nnrelief"}
    changed = Recipe.model_validate({**plain, "health": {"dead_units": 0.5}})
    assert changed.health.limits == Limits(dead_units=0.5)
    assert changed.config() == Recipe.model_validate(plain).config()
    assert Recipe.model_validate({**plain, "health": {"guards": False}}).health.limits is None


def test_results_recorded_before_there_were_guards_still_read(around):
    run([Train(SHORT), Prune(LETHAL)], around)
    old = {
        "recipe": "a", "method": "magnitude", "seed": 0, "config": {}, "config_hash": "0", "versions": {},
        "hardware": {}, "threads": 1, "status": "done", "started": "2025-01-01T00:00:00+00:00", "seconds": 1,
    }  # fmt: skip
    assert Result.model_validate_json(json.dumps(old)).health == []
    new = Result.model_validate_json(json.dumps(old | {"health": around.log["health"]}))
    assert new.health[0].where == "fc2"
    assert Result.model_validate_json(new.model_dump_json()) == new


def test_statistics_of_a_batch_norm_that_are_not_finite_are_found():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].running_var.fill_(torch.nan)
    (finding,) = check(model, prune(model, build("magnitude", density=0.5)))
    assert (finding.kind, finding.where) == ("not_finite", "1.running_var")
