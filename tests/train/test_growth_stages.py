from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from synaptree.core.errors import OptionError
from synaptree.core.method import Method
from synaptree.core.signal import magnitude
from synaptree.core.topology import Topology
from synaptree.methods import build
from synaptree.rules.density import Density
from synaptree.train import zoo
from synaptree.train.data import load
from synaptree.train.growth import Grow, PruneUntil, Seed
from synaptree.train.loop import Interrupted, TrainOptions, evaluate, macro_auc
from synaptree.train.network import Network
from synaptree.train.programme import Measure, Prune, Renew, Surroundings, Train, develop

SHORT = TrainOptions(epochs=2, batch=300, lr=1e-2)
STRATEGIC = build("strategic_synthesis", seed_density=0.1, capacity=0.3, grow_fraction=0.5)
CUT = build("iterative_magnitude", cut=0.3, allocate="present")


def fresh(seed: int) -> torch.nn.Module:
    return zoo.build("mlp", seed=seed, inputs=64, hidden=(12,))


@pytest.fixture
def around(tmp_path) -> Surroundings:
    return Surroundings(load("digits"), 7, tmp_path, fresh)


def run(stages, around, **options) -> Network:
    network = Network(fresh(around.seed), Topology(around.seed))
    for _ in develop(network, stages, around, identity="me", **options):
        pass
    return network


def harm(on):
    """Bring every connection to life and make the network guess."""
    on.edit({name: torch.ones_like(mask) for name, mask in on.topology.masks.items()})
    for parameter in on.model.parameters():
        parameter.mul_(0).add_(torch.rand(parameter.shape, generator=on.topology.rng))


HARMFUL = Method(Density(1.0), {"keep": magnitude}, edit=harm)


def test_a_seed_is_sparse_and_untrained(around):
    network = run([Seed(STRATEGIC), Measure("seed")], around)
    # one tenth of the 64 x 12 places of the hidden layer; the output layer stays dense
    assert int(network.topology.masks["fc1.weight"].sum()) == 77
    assert network.topology.masks["fc2.weight"].all()
    assert network.step == 0
    assert around.log["rounds"][0]["stage"] == "seed"


@pytest.mark.parametrize(("stages", "why"), [
    ([Seed(build("magnitude"))], "it starts dense"),
    ([Seed(STRATEGIC), Seed(STRATEGIC)], "has a topology already; renew it first"),
])
def test_a_seed_that_cannot_be_made_is_refused(around, stages, why):
    with pytest.raises(OptionError, match=why):
        run(stages, around)


def test_growth_adds_connections_after_each_epoch_up_to_the_capacity(around):
    four = SHORT.model_copy(update={"epochs": 4})
    network = run([Seed(STRATEGIC), Measure("seed"), Grow(four, STRATEGIC), Measure("grow")], around)
    # 77, then a half more each: 115 (38 rounded), 172 or 173, and no more than floor(0.3 * 768) = 230
    seed, grown = around.log["rounds"]
    assert int(network.topology.masks["fc1.weight"].sum()) == 230
    assert (seed["born"], seed["died"]) == (0, 768 - 77)
    assert (grown["born"], grown["died"]) == (230 - 77, 0)
    assert "3 growth events, 0 of them undone" in grown["notes"]


def test_an_event_that_lowers_accuracy_and_auc_is_undone_exactly(around):
    network, seen = Network(fresh(7)), {}

    def look(stage, log):
        if log is not None and log.epoch == 0 and stage.name == "gated":
            seen["before"] = deepcopy(network.trial["before"])
            assert network.topology.density() == 1.0

    around.watch = look
    trained = Train(SHORT.model_copy(update={"epochs": 8}))
    stages = [Seed(STRATEGIC), trained, Grow(SHORT, HARMFUL, gate=True, limit=1, name="gated")]
    for _ in develop(network, stages, around, identity="me"):
        pass
    before, after = seen["before"], network.snapshot()
    for name, value in before["model"].items():
        assert torch.equal(value, after["model"][name])
    for name, value in before["topology"]["masks"].items():
        assert torch.equal(value, after["topology"]["masks"][name])
    assert "1 growth events, 1 of them undone" in network.topology.notes


def test_undoing_brings_back_the_optimizer_state(around):
    network = run([Seed(STRATEGIC)], around)
    optimizer = torch.optim.Adam(network.model.parameters(), lr=0.1)
    network.optimizer = optimizer
    x, y = around.data.normalise(around.data.train.x[:50]), around.data.train.y[:50]

    def update():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network.model(x), y).backward()
        optimizer.step()

    update()
    before = network.snapshot()
    kept = deepcopy(before)
    update()
    network.topology.edit({"fc1.weight": torch.ones(12, 64, dtype=torch.bool)})
    network.restore(before)
    now = network.snapshot()
    for index, values in kept["optimizer"]["state"].items():
        for key, value in values.items():
            assert torch.equal(value, now["optimizer"]["state"][index][key])
    assert torch.equal(now["topology"]["masks"]["fc1.weight"], kept["topology"]["masks"]["fc1.weight"])
    assert torch.equal(now["model"]["fc1.weight"], kept["model"]["fc1.weight"])


def test_without_a_gate_nothing_is_undone(around):
    network = run([Seed(STRATEGIC), Grow(SHORT, HARMFUL)], around)
    assert network.topology.density() == 1.0
    assert "1 growth events, 0 of them undone" in network.topology.notes


def test_pruning_stops_where_the_network_suffers_and_keeps_the_last_that_did_not(around):
    trained = SHORT.model_copy(update={"epochs": 8})
    stage = PruneUntil(SHORT, CUT, tolerance=0.02, fails=2)
    network = run([Train(trained), Measure(), stage, Measure()], around)
    dense = [entry["validation_accuracy"] for entry in around.log["epochs"] if entry["round"] == 0]
    wanted = sum(dense[-3:]) / 3 - 0.02
    (note,) = network.topology.notes
    cuts, kept = (int(word) for word in note.split() if word.isdigit())
    assert cuts == kept + 2
    assert evaluate(network.model, around.data, around.data.validation) >= wanted
    for n in range(kept):
        assert network.topology.density() <= 0.7**n
    logged = [entry for entry in around.log["epochs"] if entry["round"] == 1]
    assert len(logged) == 2 * cuts


def test_pruning_stops_at_the_least_density(around):
    stage = PruneUntil(SHORT, CUT, tolerance=1.0, min_density=0.5, unused_paths=False)
    network = run([Train(SHORT), stage], around)
    # 0.7 * 0.7 = 0.49 is the first below a half
    assert network.topology.density() == pytest.approx(0.49, abs=0.005)


def test_a_tolerance_wants_an_accuracy_to_count_from(around):
    with pytest.raises(OptionError, match="nothing was trained before pruning"):
        run([PruneUntil(SHORT, CUT)], around)


@pytest.mark.parametrize("moment", [3, 6, 9])
def test_growth_and_pruning_go_on_exactly_where_they_were_interrupted(around, tmp_path, moment):
    stages = [Seed(STRATEGIC), Grow(SHORT, STRATEGIC, gate=True), PruneUntil(SHORT, CUT, tolerance=0.1, fails=1)]
    straight = run(stages, around)
    folder = tmp_path / "again"
    folder.mkdir()
    updates = iter(range(1, 1000))
    parted = replace(around, folder=folder, log={"epochs": [], "rounds": []}, stop=lambda: next(updates) == moment)
    with pytest.raises(Interrupted):
        run(stages, parted)
    resumed = run(stages, replace(parted, stop=lambda: False, log={"epochs": [], "rounds": []}), resume=True)
    assert resumed.topology.digest() == straight.topology.digest()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_a_renewed_network_is_dense_with_its_initial_weights(around):
    network = run([Train(SHORT), Seed(STRATEGIC), Renew()], around)
    assert not network.topology.masks
    for name, value in fresh(7).state_dict().items():
        assert torch.equal(network.model.state_dict()[name], value)


def test_macro_auc_is_that_of_each_class_against_the_rest(around):
    model = run([Train(SHORT)], around).model
    data, part = around.data, around.data.validation
    with torch.no_grad():
        scores = model.eval()(data.normalise(part.x)).softmax(1)
    areas = []
    for label in range(10):
        own, other = scores[part.y == label, label], scores[part.y != label, label]
        # the share of pairs that are in the right order
        areas.append((own[:, None] > other).double().mean().item())
    assert macro_auc(model, data, part) == pytest.approx(sum(areas) / 10, abs=1e-6)


class TestWhatIsPutBack:
    def test_a_network_that_was_never_pruned_comes_back_dense_where_no_cut_passes(self, around):
        trained = Train(SHORT.model_copy(update={"epochs": 8}))
        hard = build("iterative_magnitude", cut=0.97, allocate="present")
        network = run([trained, PruneUntil(SHORT, hard, tolerance=0.0, fails=1), Measure()], around)
        assert around.log["rounds"][0]["density"] == 1.0
        assert network.topology.notes == ["1 cuts, the first 0 of them kept"]

    def test_masks_that_only_a_failed_cut_added_go_again(self, around):
        def add_a_mask(on):
            on.edit(on.masks())
            on.topology.add("fc1.bias", (12,))

        adding = replace(build("iterative_magnitude", cut=0.97, allocate="present"), edit=add_a_mask)
        trained = Train(SHORT.model_copy(update={"epochs": 8}))
        stage = PruneUntil(SHORT, adding, tolerance=0.0, fails=1, unused_paths=False)
        network = run([Seed(STRATEGIC), trained, stage], around)
        assert "fc1.bias" not in network.topology.masks

    def test_a_gate_that_ended_growth_leaves_a_state_that_can_be_saved_and_resumed(self, around):
        trained = Train(SHORT.model_copy(update={"epochs": 8}))
        four = SHORT.model_copy(update={"epochs": 4})
        stages = [Seed(STRATEGIC), trained, Grow(four, HARMFUL, gate=True, limit=1)]
        network = Network(fresh(around.seed))
        for _ in develop(network, stages, around, identity="me", every=0.0):  # a checkpoint after every epoch
            pass
        assert "1 growth events, 1 of them undone" in network.topology.notes

    def test_events_undone_count_neither_births_nor_accuracies(self, around):
        trained = Train(SHORT.model_copy(update={"epochs": 8}))
        gated = Grow(SHORT, HARMFUL, gate=True, limit=1)
        network = run([Seed(STRATEGIC), trained, Measure(), gated, Measure()], around)
        before, after = around.log["rounds"]
        assert (after["born"], after["died"], after["density"]) == (0, 0, before["density"])
        # the epoch before the event passed; the one after it did not
        logged = [entry["validation_accuracy"] for entry in around.log["epochs"]]
        assert network.recent == [*logged[-4:-2], logged[-2]]

    def test_the_best_weights_of_an_undone_event_are_not_chosen(self, around):
        trained = Train(SHORT.model_copy(update={"epochs": 8}))
        choosing = SHORT.model_copy(update={"selection": "best_validation"})
        network = run([Seed(STRATEGIC), trained, Grow(choosing, HARMFUL, gate=True, limit=1)], around)
        assert evaluate(network.model, around.data, around.data.validation) == pytest.approx(max(network.recent[-1:]))

    def test_newborns_of_an_event_have_no_history_when_a_checkpoint_is_written(self, around):
        seen = []

        def look(stage, log):
            if log is not None and stage.name == "grow" and network.optimizer is not None:
                state = network.optimizer.state[network.model.fc1.weight]
                newborn = (network.model.fc1.weight == 0) & network.topology.masks["fc1.weight"]
                seen.append((int(newborn.sum()), state["exp_avg"][newborn].abs().max().item()))

        around.watch = look
        network = Network(fresh(7))
        three = SHORT.model_copy(update={"epochs": 3})
        for _ in develop(network, [Seed(STRATEGIC), Grow(three, STRATEGIC)], around, identity="me"):
            pass
        assert seen[0][0] >= 38  # born at the first event
        assert seen[0][1] == 0.0


def test_growth_of_a_network_without_masks_keeps_dead_weights_dead(around):
    network = run([Grow(SHORT, build("magnitude", density=0.1)), Measure()], around)
    for name, parameter in network.topology.parameters(network.model):
        assert not parameter[~network.topology.expanded(name)].any()


def test_what_one_methods_signals_remembered_is_no_memory_of_another(around):
    leaky = {"every": 2, "first": 0, "patience_rule": "leaky", "survival_start": 100.0}
    stages = [
        Train(SHORT, "a", build("dynamic_synaptic", every=2, first=0, patience=1, alpha=0.0)), Measure(),
        Train(SHORT, "b", build("dynamic_synaptic", **leaky)), Measure(),
    ]  # fmt: skip
    run(stages, around)
    # blank pixels lose their connections; a score that begins at 100 is not used up in four windows, but the counts
    # of the first method, read as scores, would be
    first, second = around.log["rounds"]
    assert first["died"] > 0
    assert second["died"] == 0


def test_an_interrupted_dense_network_goes_on_with_its_own_random_state(around, tmp_path):
    stages = [Train(SHORT), Prune(build("random", density=0.5))]
    straight = run(stages, around)
    folder = tmp_path / "again"
    folder.mkdir()
    updates = iter(range(1, 100))
    parted = replace(around, folder=folder, log={"epochs": [], "rounds": []}, stop=lambda: next(updates) == 3)
    with pytest.raises(Interrupted):
        run(stages, parted)
    resumed = run(stages, replace(parted, stop=lambda: False, log={"epochs": [], "rounds": []}), resume=True)
    assert resumed.topology.digest() == straight.topology.digest()
