import pytest
import torch

from synaptree.artifact.interchange import load_into
from synaptree.core.errors import CheckpointError, OptionError
from synaptree.methods import build
from synaptree.train import zoo
from synaptree.train.data import load
from synaptree.train.loop import Interrupted, TrainOptions
from synaptree.train.network import Network
from synaptree.train.programme import (
    Adopt,
    Load,
    Measure,
    Prune,
    Reinitialise,
    Rewind,
    Shuffle,
    Surroundings,
    Train,
    develop,
    read_test,
)

SHORT = TrainOptions(epochs=2, batch=300, lr=1e-2)
HALF = build("magnitude", density=0.5)


def fresh(seed: int) -> torch.nn.Module:
    return zoo.build("mlp", seed=seed, inputs=64, hidden=(12,))


@pytest.fixture
def around(tmp_path) -> Surroundings:
    return Surroundings(load("digits"), 7, tmp_path, fresh)


def run(stages, around, **options) -> Network:
    network = Network(fresh(around.seed))
    for _ in develop(network, stages, around, identity="me", **options):
        pass
    return network


def test_a_rewound_network_has_its_initial_weights_under_the_new_masks(around):
    network = run([Train(SHORT), Prune(HALF), Rewind(0)], around)
    initial = fresh(around.seed).state_dict()
    for name, mask in network.topology.masks.items():
        assert torch.equal(network.model.state_dict()[name], initial[name] * mask)
    assert torch.equal(network.model.state_dict()["fc1.bias"], initial["fc1.bias"])
    assert network.topology.density() == 0.5
    assert network.round == 1


def test_rewinding_to_a_later_step_brings_back_that_step(around):
    steps = len(range(0, len(around.data.train.y), 300))
    one_epoch = SHORT.model_copy(update={"epochs": 1, "schedule": "steps"})
    after_one = run([Train(one_epoch)], around).model.state_dict()
    network = run([Train(SHORT), Prune(HALF), Rewind(steps)], around)
    for name, mask in network.topology.masks.items():
        assert torch.equal(network.model.state_dict()[name], after_one[name] * mask)


def test_each_round_is_measured_and_left_on_disk_and_the_test_set_is_read_at_the_end(around):
    network = run([Train(SHORT), Measure(), Prune(HALF), Train(SHORT), Measure()], around)
    dense, half = around.log["rounds"]
    assert (dense["round"], dense["density"], half["round"], half["density"]) == (0, 1.0, 1, 0.5)
    assert half["layers"] == {"fc1": 0.5, "fc2": 0.5}
    assert (half["weights"], half["weights_alive"]) == (64 * 12 + 120, (64 * 12 + 120) // 2)
    assert half["bytes"] == around.round_file(1).stat().st_size < dense["bytes"]
    assert "test_accuracy" not in half
    read_test(around)
    assert half["test_accuracy"] == 1 - len(half["test_errors"]) / len(around.data.test.y)
    model = fresh(0)
    load_into(model, around.round_file(1))
    assert torch.equal(model.fc1.weight, network.model.fc1.weight)


def test_epochs_are_logged_with_their_stage_and_round(around):
    run([Train(SHORT, "dense"), Prune(HALF), Train(SHORT, "retrain")], around)
    logged = [(e["stage"], e["round"], e["epoch"], e["density"]) for e in around.log["epochs"]]
    assert logged == [("dense", 0, 0, 1.0), ("dense", 0, 1, 1.0), ("retrain", 1, 0, 0.5), ("retrain", 1, 1, 0.5)]


def test_a_method_that_acts_in_training_begins_a_round(around):
    gradual = build("gradual_magnitude", density=0.25, last=6, every=2)
    network = run([Train(SHORT), Measure(), Rewind(0), Train(SHORT, "train", gradual), Measure()], around)
    assert [entry["round"] for entry in around.log["rounds"]] == [0, 1]
    assert network.topology.density() == pytest.approx(0.25, abs=1e-3)


def test_controls_start_from_the_networks_another_run_left(around, tmp_path):
    parent = run([Train(SHORT), Measure(), Prune(HALF), Train(SHORT), Measure()], around)
    around.folder = tmp_path / "control"
    source = tmp_path
    loaded = run([Load(source)], around)
    assert loaded.topology.density() == 1.0
    adopted = run([Load(source), Adopt(source, 1)], around)
    assert adopted.topology.digest() == parent.topology.digest()
    assert torch.equal(adopted.model.fc1.weight, loaded.model.fc1.weight)  # the next stage applies the masks
    shuffled = run([Adopt(source, 1), Shuffle(), Rewind(0)], around)
    assert shuffled.topology.digest() != parent.topology.digest()
    assert {n: int(m.sum()) for n, m in shuffled.topology.masks.items()} == {
        n: int(m.sum()) for n, m in parent.topology.masks.items()
    }
    initial = fresh(around.seed).state_dict()["fc1.weight"]
    assert torch.equal(shuffled.model.fc1.weight, initial * shuffled.topology.masks["fc1.weight"])
    new = run([Adopt(source, 1), Reinitialise()], around)
    mask = new.topology.masks["fc1.weight"]
    assert (new.model.fc1.weight[mask] != initial[mask]).all()
    assert (new.model.fc1.weight[~mask] == 0).all()


@pytest.mark.parametrize("after", [1, 8, 12, 15])
def test_an_interrupted_programme_goes_on_with_the_same_numbers(around, tmp_path, after):
    stages = [Train(SHORT), Measure(), Prune(HALF), Rewind(0), Train(SHORT, "retrain"), Measure()]
    whole = run(stages, around)
    again = Surroundings(around.data, 7, tmp_path / "b", fresh)
    counter = iter(range(1, 1000))
    again.stop = lambda: next(counter) == after
    with pytest.raises(Interrupted):
        run(stages, again)
    resumed = Surroundings(around.data, 7, tmp_path / "b", fresh)
    network = run(stages, resumed, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, network.model.state_dict()[name])
    wall = {"seconds"}
    assert [{k: v for k, v in e.items() if k not in wall} for e in resumed.log["epochs"]] == [
        {k: v for k, v in e.items() if k not in wall} for e in around.log["epochs"]
    ]
    assert resumed.log["rounds"] == around.log["rounds"]


def test_a_checkpoint_of_another_run_is_refused(around):
    around.stop = lambda: True
    with pytest.raises(Interrupted):
        run([Train(SHORT)], around)
    network = Network(fresh(1))
    before = network.weights()
    with pytest.raises(CheckpointError, match="belongs to another run"):
        list(develop(network, [Train(SHORT)], around, identity="you", resume=True))
    assert torch.equal(network.model.fc1.weight, before["fc1.weight"])


def test_the_pruning_set_is_drawn_once_per_run_and_can_have_a_seed_of_its_own(around):
    relief = build("nnrelief", alpha_fc=0.8)
    digests = [
        run([Prune(relief, samples=50, sample_seed=seed)], around).topology.digest() for seed in (None, 7, 8)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_method_that_would_sleep_through_the_run_is_refused(around):
    # 2 epochs of ceil(1197 / 300) = 4 updates
    for every, first in ((9, 0), (2, 7)):
        method = build("dynamic_synaptic", every=every, first=first)
        with pytest.raises(OptionError, match="never acts in the 8 updates of stage 'train'"):
            run([Train(SHORT, method=method)], around)
