"""What a run records so that its page can be made: ages, epochs that changed the topology, and signs of life."""

import pytest

from synaptree.experiment import runs
from synaptree.methods import build
from synaptree.recipe import load_recipe
from synaptree.results import PROGRESS, Epoch, Round, read
from synaptree.train import zoo
from synaptree.train.data import load
from synaptree.train.loop import TrainOptions
from synaptree.train.network import Network
from synaptree.train.programme import Measure, Prune, Surroundings, Train, develop

SHORT = TrainOptions(epochs=3, batch=200, lr=1e-2)
TINY = """
model = "mlp"
data = "digits"
method = "magnitude"
threads = 1
[model_options]
inputs = 64
hidden = [8]
[dense]
epochs = 2
batch = 300
lr = 1e-2
"""


@pytest.fixture
def around(tmp_path) -> Surroundings:
    return Surroundings(load("digits"), 7, tmp_path, lambda seed: zoo.build("mlp", seed=seed, inputs=64, hidden=(8,)))


def developed(stages, around) -> Network:
    network = Network(around.fresh(around.seed))
    for _ in develop(network, stages, around, identity="me"):
        pass
    return network


def test_an_epoch_says_what_became_of_the_connections_only_where_something_did(around):
    developed([Train(SHORT), Prune(build("magnitude", density=0.5)), Train(SHORT), Measure()], around)
    said = [Epoch(**epoch).connections for epoch in around.log["epochs"]]
    assert [entry is not None for entry in said] == [False] * 3 + [True, False, False]
    assert (said[3].born, said[3].died, said[3].ages) == (0, 296, None)
    assert sum(said[3].layers.values()) == pytest.approx(
        sum(around.log["rounds"][0]["layers"].values()), abs=1e-6
    )
    assert around.log["rounds"][0]["ages"] is None


def test_a_network_that_grows_says_how_old_its_connections_are(around):
    network = developed([Train(SHORT, method=build("set", density=0.3, every=2)), Measure()], around)
    ages = Round(**around.log["rounds"][0]).ages
    assert ages[0] < ages[4] == network.topology.step
    assert ages == sorted(ages)
    oldest = max(int(network.topology.age(name).max()) for name in network.topology.masks)
    assert ages[4] == oldest
    born = [Epoch(**epoch).connections.born for epoch in around.log["epochs"]]
    assert born == sorted(born)
    assert born[-1] == network.topology.born > 0


def test_a_run_shows_what_it_has_so_far_and_takes_the_sign_away_at_its_end(tmp_path):
    recipe_file = tmp_path / "tiny.toml"
    recipe_file.write_text(TINY)
    (run,) = runs(load_recipe(recipe_file), tmp_path / "out")
    seen = []

    def watch(_stage, log) -> None:
        seen.append((log, read([run.folder / PROGRESS])[0]))

    for _ in run.run(None, watch=watch):
        pass
    log, first = seen[0]
    assert log is not None
    assert (first.status, len(first.epochs), first.config_hash) == ("running", 1, run.hash)
    assert not (run.folder / PROGRESS).exists()
    assert run.done().epochs[0] == first.epochs[0]


def test_a_sign_that_cannot_be_written_stops_no_training(tmp_path):
    recipe_file = tmp_path / "tiny.toml"
    recipe_file.write_text(TINY)
    (run,) = runs(load_recipe(recipe_file), tmp_path / "out")
    run.folder.mkdir(parents=True)
    (run.folder / PROGRESS).mkdir()  # a folder in the file's place
    for _ in run.run(None):
        pass
    assert run.done().status == "done"
