"""Needs the extra `sweep`: `make test-integrations`. A real cluster of two nodes on this machine, one CPU each."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from commands import fails, shows

from synaptree.core.errors import CheckpointError, OptionError
from synaptree.experiment import Run, start
from synaptree.results import read
from synaptree.sweep import load_space, sweep, trials
from synaptree.sweep.trials import write_recipe
from synaptree.train.checkpoint import read_checkpoint
from synaptree.train.loop import Interrupted

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.slow

RECIPE = """
model = "mlp"
data = "digits"
threads = 1
method = "nnrelief"
[model_options]
inputs = 64
hidden = [16]
[dense]
epochs = 2
batch = 64
[rounds]
rounds = 2
restart = "rewind"
"""

MINE = """
from synaptree import build
from synaptree.core.method import method

@method
def mine(density: float = 0.5):
    return build("magnitude", density=density)
"""


@pytest.fixture(scope="module")
def address():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(key, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture(scope="module")
def connected(address):
    """Keep one connection to the cluster, so that its workers need not begin anew for every sweep."""
    ray.init(address=address, log_to_driver=False, logging_level="error")
    yield address
    ray.shutdown()


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def space(tmp_path):
    def write(text):
        path = tmp_path / "space.toml"
        path.write_text(text)
        return path

    return write


def workers():
    """Return the processes that carry out trials on the nodes of this test."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            name = " ".join(process.cmdline())
            if name.startswith("ray::") and "IDLE" not in name and "Agent" not in name:
                found.append(process.pid)
    return found


def networks(folder):
    return {file.name: file.read_bytes() for file in folder.glob("round_*.safetensors")}


def numbers(result):
    """Return what a run found out, without the times it took."""
    epochs = [epoch.model_dump(exclude={"seconds"}) for epoch in result.epochs]
    return epochs, [part.model_dump() for part in result.rounds]


def test_a_cluster_that_cannot_be_reached_or_is_too_small_is_refused_in_a_sentence(
    address, recipe, space, tmp_path, monkeypatch
):
    words = ("sweep", recipe, "--out", tmp_path / "out", "--space", space("dense.lr = { grid = [1e-3] }"), "--address")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        assert f"--address {nobody}: no Ray cluster answers there (" in fails(*words, nobody)
        free.listen()  # somebody does, who never answers
        monkeypatch.setattr("synaptree.sweep.cluster.REACHED_WITHIN", 0.5)
        assert f"--address {nobody}: no Ray cluster answers there (timed out)" in fails(*words, nobody)
    for wrong in ("nowhere", "ray://localhost:10001", "localhost:many"):
        assert f"--address '{wrong}': wanted HOST:PORT" in fails(*words, wrong)
    words = (*words[:5], space("threads = { grid = [2] }"), "--address", address)
    assert "a trial wants 2 CPUs of one node (threads), the largest has 1" in fails(*words)
    assert not list(tmp_path.glob("out/nnrelief-*"))


def test_drawn_points_are_kept_when_more_are_drawn_and_the_front_is_shown(address, recipe, space, tmp_path):
    file = space("method_options.alpha_fc = { uniform = [0.6, 0.99] }\nsearch = { kind = 'pareto', samples = 2 }")
    words = ("sweep", recipe, "--space", file, "--out", tmp_path / "out", "--address", address)
    first = shows(*words, "--parallel", 1)
    assert "2 of 2  tiny-alpha_fc=" in first
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/nnrelief-*/*")}
    more = shows(*words, "--parallel", 1, "--samples", 3, "--seed", 0, "--record", tmp_path / "kept")
    assert "2 of 3 runs are done already" in more
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((tmp_path / "kept").iterdir())) == 3
    front = more.partition("Front:")[2].partition("best by validation")[0]
    rows = [line.split() for line in front.splitlines() if re.match(r"0\.\d+ ", line)]
    densities, accuracies = ([float(row[column]) for row in rows] for column in (3, 2))
    assert rows
    assert densities == sorted(densities)
    assert accuracies == sorted(accuracies)
    chosen = re.search(r"best by validation: (\S+),", more)
    assert chosen
    path = tmp_path / "out" / "trials" / f"{chosen[1]}.toml"
    assert path.read_text() in more
    assert f"  synaptree run {path} --out {tmp_path / 'out'} --seed 0\n" in more
    assert "1 of 1 runs are done already" in shows("run", path, "--out", tmp_path / "out")


def test_a_grid_runs_on_both_nodes_as_without_a_cluster_and_what_fails_is_told(
    connected, recipe, space, tmp_path, monkeypatch
):
    def write(trial, folder):  # the second recipe where no worker looks, as if its node did not share the folder
        path = write_recipe(trial, folder)
        return path if trial is not tried[1] else path.rename(tmp_path / "elsewhere.toml") and path

    monkeypatch.setattr("synaptree.sweep.cluster.write_recipe", write)
    tried = trials(recipe, load_space(space("dense.lr = { grid = [1e-3, 2e-3, 1e30] }")))
    lines, met = [], tmp_path / "met"
    met.mkdir()

    def meet():  # no run begins before runs are on two nodes
        (met / ray.get_runtime_context().get_node_id()).touch()
        tries = iter(range(6000))
        while len(list(met.iterdir())) < 2:
            if next(tries, None) is None:
                raise OptionError("the other node never came")
            time.sleep(0.01)

    outcome = sweep(
        tried, tmp_path / "out", address=connected, record=tmp_path / "kept", say=lines.append, prepare=meet
    )  # fmt: skip
    assert len(list(met.iterdir())) == 2
    good, unseen, diverging = tried
    assert list(outcome.failed) == [unseen.name, diverging.name]
    assert "--out must be a folder that all nodes share" in outcome.failed[unseen.name]
    assert "the loss is" in outcome.failed[diverging.name]
    assert sum("failed: " in line for line in lines) == 2
    assert list(outcome.results) == [good.name]
    assert [result.recipe for result in read([tmp_path / "kept"])] == [good.name]
    (alone,) = start(good.recipe, tmp_path / "alone")
    assert numbers(alone) == numbers(outcome.results[good.name][0])
    run = Run(good.recipe, 0, None, tmp_path / "out")
    assert networks(run.folder) == networks(tmp_path / "alone" / run.folder.name)
    assert len(networks(run.folder)) == 3


def test_a_run_whose_worker_is_killed_goes_on_from_its_checkpoint_to_the_same_end(connected, recipe, space, tmp_path):
    (trial,) = trials(recipe, load_space(space("dense.epochs = { grid = [30] }")))
    (whole,) = start(trial.recipe, tmp_path / "alone")
    run, lines, killed = Run(trial.recipe, 0, None, tmp_path / "out"), [], []
    epochs = []

    def kill():
        while len(epochs) < 2:
            over.wait(0.02)
            with suppress(CheckpointError):  # none yet, or just being replaced
                epochs[:] = read_checkpoint(run.checkpoint).content["log"]["epochs"]
        killed.extend(workers())
        for worker in killed:
            os.kill(worker, signal.SIGKILL)

    over = threading.Event()
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    outcome = sweep([trial], tmp_path / "out", address=connected, every=0.1, say=lines.append)
    killer.join(10)
    assert len(killed) == 1
    assert any("its worker died; it goes on" in line for line in lines)
    (went_on,) = (int(found[1]) for line in lines if (found := re.search(r"goes on from update (\d+)", line)))
    (result,) = outcome.results[trial.name]
    assert went_on >= epochs[-1]["step"]
    assert [epoch.seconds for epoch in result.epochs[: len(epochs)]] == [epoch["seconds"] for epoch in epochs]
    assert numbers(result) == numbers(whole)
    assert networks(run.folder) == networks(tmp_path / "alone" / run.folder.name)


def test_a_stopped_sweep_keeps_what_is_done_and_the_same_call_does_the_rest(connected, recipe, space, tmp_path):
    tried, lines = trials(recipe, load_space(space("dense.lr = { grid = [1e-3, 2e-3, 3e-3] }"))), []

    def done():
        return [trial for trial in tried if Run(trial.recipe, 0, None, tmp_path / "out").done()]

    with pytest.raises(Interrupted):
        sweep(tried, tmp_path / "out", address=connected, stop=lambda: bool(lines), say=lines.append, parallel=1)
    finished = done()
    assert 1 <= len(finished) < 3
    lines.clear()
    outcome = sweep(tried, tmp_path / "out", address=connected, say=lines.append, parallel=1)
    assert lines[0] == f"{len(finished)} of 3 runs are done already"
    assert len(outcome.results) == len(done()) == 3


def test_ctrl_c_stops_a_sweep_of_a_method_of_ones_own_on_this_machine_and_says_how_to_go_on(recipe, space, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    recipe.write_text(RECIPE.replace("nnrelief", "mine"))
    file = space("dense.lr = { grid = [1e-3, 2e-3] }\ndense.epochs = { grid = [4000] }")
    words = ["sweep", str(recipe), "--space", str(file), "--out", str(tmp_path / "out"), "--parallel", "1"]
    command = [sys.executable, "-m", "synaptree", "--import", str(tmp_path / "mine.py"), *words]
    with subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(tmp_path.glob("out/*/checkpoint.safetensors")):
            assert process.poll() is None, process.communicate()
            threading.Event().wait(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "2 trials of tiny" in out
    assert "To go on:\n  synaptree --import" in err
    assert "Traceback" not in err
    assert list(tmp_path.glob("out/*/checkpoint.safetensors"))
