import re
import resource
import shutil
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, fails
from torch import nn

from synaptree import attach, build
from synaptree.cli.run import Stop
from synaptree.core.errors import OptionError
from synaptree.core.topology import Topology
from synaptree.integrate.mlflow import MLflow
from synaptree.integrate.tensorboard import TensorBoard
from synaptree.train.events import Unfailing, track

pytest.importorskip("tensorboard")
pytest.importorskip("mlflow")

# of MLflow's own calls
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

ROOT = Path(__file__).parents[2]
RECIPE = """
model = "mlp"
data = "digits"
threads = 1
method = "nnrelief"
model_options = { inputs = 64, hidden = [16] }
dense = { epochs = 2, batch = 64 }
rounds = { rounds = 1 }
"""  # 19 updates an epoch

Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables; to make them takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    found.Reload()
    return found


def shown(folder: Path) -> Points:
    """The scalars TensorBoard shows of a run."""
    found = events(folder)
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def mlflow_runs(store: str, experiment: str = "tiny") -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    known = client.get_experiment_by_name(experiment)
    return client.search_runs([known.experiment_id], order_by=["attributes.start_time ASC"])


def kept(store: str, run: Any) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    return {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics}  # fmt: skip


def without_seconds(points: Points) -> Points:
    return {name: values for name, values in points.items() if name != "seconds"}


def steps(points: Points, name: str) -> list[int]:
    return [step for step, _ in points[name]]


class After(Stop):
    """In place of signals: after so many updates `act` says, once, whether to stop."""

    def __init__(self, updates: int, act: Callable[[], bool]) -> None:
        super().__init__()
        self.left, self.act = updates, act

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == -1 and self.act()


@contextmanager
def doing_after(updates: int, act: Callable[[], bool]) -> Iterator[Stop]:
    yield After(updates, act)


def a_topology() -> Topology:
    topology = Topology()
    topology.add("fc.weight", (2, 4))
    topology.edit({"fc.weight": torch.tensor([[1, 0, 0, 1], [0, 0, 1, 1]]).bool()})
    topology.step = 10
    topology.edit({"fc.weight": torch.tensor([[1, 1, 0, 1], [0, 0, 1, 1]]).bool()})
    topology.step = 30
    return topology


class TestTensorBoard:
    def test_densities_births_deaths_ages_and_figures_of_ones_own_are_read_back(self):
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        attached = attach(model, optimizer, build("set", density=0.5))
        tracker = TensorBoard("events")
        track(tracker, attached, 3, loss=1.5)
        track(tracker, a_topology())
        tracker.close()
        found = shown(Path("events"))
        assert found["loss"] == [(3, 1.5)]
        assert found["lr"] == [(3, 0.5)]
        assert found["density"] == [(3, 0.5), (30, 0.625)]
        assert found["density_of/weight"] == [(3, 0.5)]
        assert found["density_of/fc"] == [(30, 0.625)]
        assert (found["births"][1], found["deaths"][1]) == ((30, 1.0), (30, 4.0))
        (ages,) = events(Path("events")).Histograms("age/fc")
        value = ages.histogram_value
        assert (ages.step, value.num, value.min, value.max, value.sum) == (30, 5, 20, 30, 4 * 30 + 20)

    def test_opened_again_it_goes_on_without_second_points(self):
        for moments in ([10, 20, 30], [20, 30, 40]):
            tracker = TensorBoard("events")
            tracker.parameters({"lr": 0.1})
            for moment in moments:
                tracker.scalars({"loss": moment / 10}, moment)
                tracker.histogram("age/fc", torch.ones(3), moment)
            tracker.close()
        assert len(list(Path("events").iterdir())) == 2
        assert shown(Path("events"))["loss"] == [(10, 1), (20, 2), (30, 3), (40, 4)]
        assert [event.step for event in events(Path("events")).Histograms("age/fc")] == [10, 20, 30, 40]

    def test_begun_anew_it_shows_nothing_of_before(self):
        for fresh, value in ((False, 1.0), (True, 2.0), (False, 3.0)):
            tracker = TensorBoard("events", fresh=fresh)
            tracker.scalars({"loss": value}, 0)
            tracker.close()
        assert shown(Path("events"))["loss"] == [(0, 2.0)]

    def test_hyperparameters_are_those_the_run_was_begun_with(self):
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        for lr in (0.1, 0.2):
            tracker = TensorBoard("events")
            tracker.parameters({"lr": lr, "method": "set", "milestones": "[3]"})
            tracker.close()
        content = events(Path("events")).summary_metadata["_hparams_/session_start_info"].plugin_data.content
        started = HParamsPluginData.FromString(content).session_start_info.hparams
        assert (started["lr"].number_value, started["method"].string_value) == (0.1, "set")

    # TensorBoard's thread dies of it; its traceback is TensorBoard's own
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_full_disk_is_said_once_and_stops_nothing(self):
        said, threads = list[str](), threading.enumerate()
        tracker = Unfailing(TensorBoard("events"), said.append)
        values = torch.randn(10_000)
        tracker.scalars({"loss": 1.0}, 0)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))  # no file may grow beyond
        try:
            for step in range(30):
                tracker.histogram("values", values, step)
                tracker.scalars({"loss": 1.0}, step)
            tracker.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            for thread in set(threading.enumerate()) - set(threads):
                thread.join(timeout=10)
        assert len(said) == 1
        assert said[0].startswith("TensorBoard failed and gets nothing more; the training goes on (OSError")


class TestMLflow:
    def test_figures_parameters_and_quantiles_are_read_back(self, store):
        tracker = MLflow("tiny", "it's first", store)
        tracker.parameters({"lr": 0.1, "long": "x" * 9000})
        track(tracker, a_topology(), loss=1.5)
        tracker.close()
        (run,) = mlflow_runs(store)
        found = kept(store, run)
        assert (run.info.run_name, run.info.status) == ("it's first", "FINISHED")
        assert (run.data.params["lr"], len(run.data.params["long"])) == ("0.1", 6000)
        assert found["loss"] == [(30, 1.5)]
        assert found["density_of/fc"] == [(30, 0.625)]
        assert [found[f"age/fc/{part}"][0][1] for part in ("least", "lower_quartile", "median", "most")] == [
            20, 30, 30, 30,
        ]  # fmt: skip

    def test_opened_again_it_goes_on_in_the_same_run_without_second_points(self, store):
        for status, moments in (("interrupted", [10, 20]), ("done", [20, 30])):
            tracker = MLflow("tiny", "first", store)
            tracker.parameters({"lr": moments[0]})
            assert mlflow_runs(store)[0].info.status == "RUNNING"
            for moment in moments:
                tracker.scalars({"loss": moment / 10}, moment)
            tracker.close(status)
            assert mlflow_runs(store)[0].info.status == {"interrupted": "KILLED", "done": "FINISHED"}[status]
        (run,) = mlflow_runs(store)
        assert kept(store, run)["loss"] == [(10, 1), (20, 2), (30, 3)]
        assert run.data.params == {"lr": "10"}

    def test_begun_anew_it_is_another_run_and_the_newest_goes_on(self, store):
        for fresh, value in ((False, 1.0), (True, 2.0), (False, 3.0)):
            MLflow("tiny", "first", store, fresh=fresh).scalars({"loss": value}, int(value))
        assert [kept(store, run)["loss"] for run in mlflow_runs(store)] == [[(1, 1)], [(2, 2), (3, 3)]]

    def test_a_server_that_does_not_answer_is_named(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(OptionError, match=f"MLflow at http://127.0.0.1:{port} cannot be used"):
            MLflow("tiny", "first", f"http://127.0.0.1:{port}")


class TestRuns:
    def test_a_run_stopped_and_thrown_back_leaves_the_points_of_one_that_was_not(self, recipe, store, monkeypatch):
        words = ("run", recipe, "--track", f"mlflow:{store}", "--track")
        assert call(*words, "tensorboard", "--out", "whole").exit_code == 0
        saved: list[bytes] = []
        for updates in (8, 25):  # within the first epoch, after the second
            with monkeypatch.context() as patch:
                patch.setattr("synaptree.cli.run.stoppable", partial(doing_after, updates, lambda: True))
                assert call(*words, "tensorboard:events", "--out", "parts", "--seed", 0).exit_code == 130
            (checkpoint,) = Path("parts").glob("*/checkpoint.safetensors")
            saved.append(checkpoint.read_bytes())
        assert mlflow_runs(store)[-1].info.status == "KILLED"
        checkpoint.write_bytes(saved[0])  # as if the machine had gone down before the second was written
        assert "goes on from update 8" in call(*words, "tensorboard:events", "--out", "parts").stdout

        (whole,), (parts,) = Path("whole/tensorboard").iterdir(), Path("events").iterdir()
        assert without_seconds(shown(parts)) == without_seconds(shown(whole))
        found = shown(parts)
        assert steps(found, "loss") == steps(found, "density") == steps(found, "lr") == [19, 38, 57, 76]
        assert steps(found, "density_of/fc1") == [57, 76]
        assert steps(found, "round/density") == steps(found, "round/test_accuracy") == [0, 1]
        assert [event.step for event in events(parts).Histograms("age/fc1")] == [57, 76]
        (run,) = mlflow_runs(store)  # both commands are the same run of the same recipe
        assert run.info.status == "FINISHED"
        assert steps(kept(store, run), "loss") == [19, 38, 57, 76]
        assert run.data.params["dense.epochs"] == "2"
        assert kept(store, run)["test_accuracy"] == [(76, pytest.approx(found["test_accuracy"][0][1]))]

    def test_a_tracker_that_is_gone_in_the_middle_is_said_once_and_the_run_ends(self, recipe, store, monkeypatch):
        def gone() -> bool:
            with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
                database.execute("DROP TABLE metrics")
            return False

        monkeypatch.setattr("synaptree.cli.run.stoppable", partial(doing_after, 25, gone))
        result = call("run", recipe, "--track", f"mlflow:{store}", "--track", "tensorboard:events")
        assert result.exit_code == 0, result.output
        assert result.stdout.count("MLflow failed and gets nothing more; the training goes on") == 1
        (other,) = Path("events").iterdir()
        assert steps(shown(other), "loss") == [19, 38, 57, 76]

    def test_runs_begun_anew_begin_anew_in_their_trackers(self, recipe, store):
        for words in ((), ("--fresh",)):
            options = ("--track", "tensorboard:events", "--track", f"mlflow:{store}", *words)
            assert call("run", recipe, "--set", "rounds.rounds=0", *options).exit_code == 0
        (folder,) = Path("events").iterdir()
        assert len(list(folder.iterdir())) == 2
        assert steps(shown(folder), "loss") == [19, 38]
        assert [steps(kept(store, run), "loss") for run in mlflow_runs(store)] == [[19, 38], [19, 38]]

    @pytest.mark.parametrize(
        ("tracker", "module"), [("mlflow:sqlite:///m.db", "mlflow"), ("tensorboard", "torch.utils.tensorboard")]
    )
    def test_a_tracker_that_is_not_installed_ends_the_command_before_the_run(
        self, tracker, module, recipe, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, module, None)
        assert "pip install 'synaptree[track]'" in fails("run", recipe, "--track", tracker)
        assert not list(Path("runs").rglob("*.safetensors"))

    def test_an_unknown_tracker_is_named(self, recipe):
        assert "unknown tracker 'tensorbord'; did you mean 'tensorboard'?" in fails(
            "run", recipe, "--track", "tensorbord:here"
        )


def code_in(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("code", code_in("tracking.md"), ids=["check", "loop", "own-tracker"])
def test_the_code_in_the_page_on_tracking_runs(code):
    torch.manual_seed(0)
    exec(compile(code, "tracking.md", "exec"), {})  # our own text
    if "TensorBoard(" in code:
        assert steps(shown(Path("events/first")), "loss") == [10, 20, 30, 40, 50]
