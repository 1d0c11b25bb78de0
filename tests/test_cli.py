import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import synaptree
from synaptree.artifact.files import replacing
from synaptree.cli.commands import app
from synaptree.cli.run import Stop, stoppable
from synaptree.train.download import SETS, File, Source

RECIPE = """
about = "digits"
model = "mlp"
data = "digits"
threads = 1
method = "{method}"
[model_options]
inputs = 64
hidden = [16]
[dense]
epochs = {epochs}
batch = 64
[rounds]
rounds = 2
restart = "rewind"
[controls]
{controls}
"""

Recipe = Callable[..., Path]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "SYNAPTREE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    def write(method: str = "nnrelief", controls: str = "", epochs: int = 1) -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(RECIPE.format(method=method, controls=controls, epochs=epochs))
        return path

    return write


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def fails(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    return result.stderr


def kept(out: Path) -> dict[str, Any]:
    """All that runs left behind, but for the times they took and the state of the checkout."""
    times = ("started", "seconds", "seconds_per_epoch", "commit")
    files: dict[str, Any] = {}
    for path in sorted(out.rglob("*.safetensors")):
        files[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(out.rglob("*.json")):
        result = {key: value for key, value in json.loads(path.read_text()).items() if key not in times}
        for epoch in result["epochs"]:
            del epoch["seconds"]
        files[str(path.relative_to(out))] = result
    return files


def test_a_recipe_leaves_table_picture_and_results(recipe: Recipe, tmp_path: Path) -> None:
    result = call("run", recipe(controls="random = [2]"), "--record", "kept")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == 3 * ["[1/2] nnrelief, seed 0"] + ["[2/2] random, seed 0"]
    assert "\x1b" not in result.stdout
    table = [line for line in lines if line.startswith(("network", "dense ", "nnrelief ", "random "))]
    assert [line.split()[:2] for line in table] == [
        ["network", "round"], ["dense", "0"], ["nnrelief", "2"], ["random", "2"],
    ]  # fmt: skip
    assert max(map(len, table)) <= 80
    assert Path("runs/nnrelief/tiny/picture.png").read_bytes().startswith(b"\x89PNG")
    assert "picture: runs/nnrelief/tiny/picture.png" in lines
    left = {path.name for path in tmp_path.glob("runs/nnrelief/tiny/*/*.json")}
    assert {path.name for path in Path("kept").iterdir()} == left


def test_what_is_done_is_not_done_again_unless_it_must_be_fresh(recipe: Recipe) -> None:
    path = recipe()
    call("run", path)
    (done,) = Path("runs/nnrelief/tiny").glob("*/*.json")
    before = done.stat().st_mtime_ns
    again = call("run", path)
    assert again.stdout.startswith("1 of 1 runs are done already")
    assert done.stat().st_mtime_ns == before
    assert call("run", path, "--fresh").exit_code == 0
    assert done.stat().st_mtime_ns > before


def test_configurations_do_not_share_networks(recipe: Recipe) -> None:
    path = recipe(controls="shuffled = [1]")
    call("run", path)
    before = kept(Path("runs/nnrelief/tiny"))
    assert call("run", path, "--set", "dense.epochs=2", "--set", "controls={}").exit_code == 0
    after = kept(Path("runs/nnrelief/tiny"))
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_seeds_and_values_on_the_command_line_win(recipe: Recipe) -> None:
    result = call("run", recipe(), "--seed", 3, "--seed", 4, "--set", "rounds.rounds=1", "--out", "o", "--all-rounds")
    assert result.exit_code == 0, result.output
    found = [json.loads(path.read_text()) for path in sorted(Path("o").glob("*/*.json"))]
    assert [entry["seed"] for entry in found] == [3, 4]
    assert [len(entry["rounds"]) for entry in found] == [2, 2]


class StopAfter(Stop):
    def __init__(self, updates: int) -> None:
        super().__init__()
        self.left = updates  # it is asked before the run as well, so the last update is answered with yes

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@contextmanager
def stopping_after(updates: int) -> Iterator[Stop]:
    yield StopAfter(updates)


@pytest.mark.parametrize("method", ["nnrelief", "gradual_magnitude"])
def test_a_run_stopped_again_and_again_equals_one_that_was_not(
    method: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--set", "method_options={last=30,every=3}"] if method == "gradual_magnitude" else []
    words = ("run", recipe(method, "random = [2]" if method == "nnrelief" else "", epochs=2), *options)
    assert call(*words, "--out", "whole").exit_code == 0
    # stopped before anything, within an epoch of 19 updates, at its end, at once again, in the next epoch
    for updates in (0, 6, 13, 0, 8):
        with monkeypatch.context() as patch:
            patch.setattr("synaptree.cli.run.stoppable", partial(stopping_after, updates))
            patch.setattr("sys.argv", ["synaptree", *map(str, words), "--out", "parts", "--fresh"])
            stopped = call(*words, "--out", "parts")
        assert stopped.exit_code == 130, stopped.output
        assert stopped.stderr.splitlines()[-1].strip().endswith("--out parts")
    finished = call(*words, "--out", "parts")
    assert finished.exit_code == 0, finished.output
    assert f"{method}, seed 0: goes on from update 27" in finished.stdout
    assert kept(Path("parts")) == kept(Path("whole"))


def test_a_second_signal_acts_as_ever() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stoppable() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failed_start_over_forgets_nothing(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe()
    call("run", path)
    before = kept(Path("runs"))

    def gone(*_: object, **__: object) -> None:
        raise OSError("no such disk")

    monkeypatch.setattr("synaptree.cli.run.load", gone)
    assert "no such disk" in fails("run", path, "--fresh")
    assert kept(Path("runs")) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("dense.epoch=3", "did you mean 'dense.epochs'"),
        ("retrain.lrr=3", "did you mean 'retrain.lr'"),
        ("retrain.lr=-1", "retrain.lr: Input should be greater than 0, got -1"),
        ("model=lenet", "did you mean 'lenet5'"),
        ("method=nnreleif", "did you mean 'nnrelief'"),
        ("method_options.alpha=1", "did you mean 'alpha_fc'"),
        ("rounds", "wanted key=value"),
        ("model.depth=3", "'model' is no part of a recipe"),
    ],
)
def test_a_wrong_value_is_named(change: str, words: str, recipe: Recipe) -> None:
    assert words in fails("run", recipe(), "--set", change)
    assert not Path("runs").exists()


def test_recipes_are_found_by_name_here(recipe: Recipe) -> None:
    Path("recipes/deep").mkdir(parents=True)
    recipe().rename("recipes/deep/tiny.toml")
    assert "did you mean 'deep/tiny'" in fails("run", "deep/tinny")
    assert call("run", "deep/tiny", "--set", "rounds.rounds=0").exit_code == 0
    assert Path("runs/nnrelief/tiny/picture.png").exists()


def test_a_missing_recipe_file_is_named() -> None:
    assert "nowhere.toml" in fails("run", "nowhere.toml")


def test_missing_data_are_named(recipe: Recipe) -> None:
    error = fails("run", recipe(), "--set", "data=mnist", "--set", "model_options.inputs=784", "--data", "d")
    assert "synaptree data download mnist" in error


def test_methods_are_listed_and_shown() -> None:
    assert "nnrelief" in call("methods").stdout
    card = call("methods", "magnitude").stdout
    assert card.splitlines()[:3] == ["magnitude", "", "Keep the connections with the largest weights, all at once."]
    (option,) = [line.split() for line in card.splitlines() if line.startswith("density ")]
    assert option[:5] == ["density", "0.1", "share", "in", "[0,"]
    assert "Han et al. 2015" in card
    assert "did you mean 'nnrelief'" in fails("methods", "nnreleif")


def test_models_are_listed_with_input_and_parameters() -> None:
    (line,) = [line for line in call("models").stdout.splitlines() if line.startswith("lenet_300_100")]
    assert line.split()[1:7] == ["1", "x", "28", "x", "28", "266,610"]


@pytest.fixture
def tiny_set(monkeypatch: pytest.MonkeyPatch) -> Source:
    """A data set of two small files, the second of which one can do without."""
    files = tuple(File(name, 5, hashlib.sha256(name.encode()).hexdigest()) for name in ("a.bin", "b.bin"))
    source = Source(format="records", shape=(1, 1, 1), classes=2, validation=1, licence="", files=files, spare=1)
    monkeypatch.setitem(SETS, "tiny", source)
    return source


def test_the_list_of_data_sets_says_what_is_there(tiny_set: Source) -> None:
    Path("d/tiny").mkdir(parents=True)
    Path("d/tiny/a.bin").write_bytes(b"a.bin")
    Path("d/tiny/b.bin").write_bytes(b"b")
    lines = call("data", "--data", "d").stdout.splitlines()
    state = {line.split()[0]: line.partition("classes")[2].strip() for line in lines}
    assert state["tiny"] == f"1 of {len(tiny_set.files)} files in d/tiny"
    assert state["digits"] == "part of scikit-learn"
    assert call("data", "list", "digits").stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("a", "b", "code", "states"),
    [
        (b"a.bin", b"b.bin", 0, ["ok", "ok"]),
        (b"a.bin", None, 0, ["ok", "missing (one can do without it)"]),
        (None, b"b.bin", 2, ["missing", "ok"]),
        (b"a.b", b"b.bin", 2, ["truncated", "ok"]),
        (b"a.bin", b"x.bin", 2, ["ok", "checksum differs"]),
    ],
)
def test_verifying_names_the_state_of_each_file(
    a: bytes | None, b: bytes | None, code: int, states: list[str], tiny_set: Source
) -> None:
    Path("d/tiny").mkdir(parents=True)
    for file, content in zip(tiny_set.files, (a, b), strict=True):
        if content is not None:
            Path("d/tiny", file.name).write_bytes(content)
    result = call("data", "verify", "tiny", "--data", "d")
    assert result.exit_code == code
    assert [line.split(": ")[1] for line in result.stdout.splitlines()] == states
    assert ("1 file(s) damaged or missing" in result.stderr) == (code == 2)


def test_a_set_that_nobody_asked_for_may_be_missing(tiny_set: Source) -> None:
    assert tiny_set.files
    result = call("data", "verify", "--data", "d")
    assert result.exit_code == 0
    assert "tiny: not there (d/tiny)" in result.stdout
    assert "missing" in fails("data", "verify", "tiny", "--data", "d")


def test_a_truncated_data_file_ends_a_run_in_one_sentence(recipe: Recipe) -> None:
    folder = Path("d/mnist/MNIST/raw")
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"too short")
    error = fails("run", recipe(), "--set", "data=mnist", "--set", "model_options.inputs=784", "--data", "d")
    assert "got 9 bytes" in error
    assert error.count("\n") == 1


def test_data_are_downloaded_from_a_mirror(tiny_set: Source) -> None:
    Path("mirror").mkdir()
    for file in tiny_set.files:
        Path("mirror", file.name).write_text(file.name)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory="mirror")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        result = call("data", "download", "tiny", "--data", "d", "--mirror", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert result.exit_code == 0, result.output
    assert result.stdout == "tiny: complete (d/tiny)\n"
    assert Path("d/tiny/b.bin").read_text() == "b.bin"


def test_data_commands_name_what_is_wrong() -> None:
    assert "name the data set to download: mnist" in fails("data", "download")
    assert "did you mean 'mnist'" in fails("data", "verify", "mnis")
    assert "--mirror is for `data download`" in fails("data", "verify", "--mirror", "http://127.0.0.1")
    assert call("data", "delete").exit_code == 2


def test_results_are_shown_as_table_markdown_and_json(recipe: Recipe) -> None:
    call("run", recipe(), "--record", "results")
    assert "tiny: nnrelief" in call("results").stdout
    assert len(json.loads(call("results", "--json").stdout)) == 3
    lines = call("results", "runs", "--markdown").stdout.strip().splitlines()
    assert lines[0].startswith("| recipe | method | round |")
    assert {line.count("|") for line in lines} == {11}
    assert call("results", "--all-rounds").stdout.count("\nnnrelief") == 2


def test_results_that_are_not_there_are_named(tmp_path: Path) -> None:
    assert "no result files in results" in fails("results")
    with replacing(tmp_path / "bad.json") as partial_file:
        partial_file.write_text("{}")
    assert "bad.json is not a result" in fails("results", "bad.json")


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    main = f"import os, sys\n{code}\nfrom synaptree.cli import main\ntry: main()\nfinally: print({{}})"
    check = main.format("os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules, 'numpy' in sys.modules")
    return subprocess.run([sys.executable, "-c", check, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["run", "--help"]])
def test_help_and_version_do_not_wait_for_torch(words: list[str]) -> None:
    result = python("os.environ.pop('OMP_WAIT_POLICY', None)", *words)
    assert result.returncode == 0
    assert result.stdout.endswith("passive False False\n")
    assert words != ["--version"] or result.stdout.startswith(f"synaptree {synaptree.__version__}\n")


@pytest.mark.parametrize(("package", "words"), [("typer", ["--help"]), ("pydantic", ["results"])])
def test_a_missing_extra_is_named(package: str, words: list[str]) -> None:
    result = python(f"sys.modules[{package!r}] = None", *words)
    assert result.returncode == 2
    assert result.stderr == f"error: this needs {package}: pip install 'synaptree[train,report]'\n"


@pytest.mark.slow
def test_real_signals_stop_a_real_run_that_goes_on_to_the_same_end(recipe: Recipe) -> None:
    main = "from synaptree.cli import main; main()"
    words = [sys.executable, "-c", main, "run", str(recipe(controls="magnitude = 'all'", epochs=15)), "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    stops = ((signal.SIGINT, "round 0", 130), (signal.SIGTERM, "magnitude, seed 0: round 1", 143))
    for number, mark, status in stops:
        with subprocess.Popen([*words, "parts"], stdout=-1, stderr=-1, text=True, env=environment) as process:
            assert process.stdout is not None
            assert any(mark in line for line in process.stdout)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == status
        assert "To go on:\n  synaptree run" in errors
        assert "Traceback" not in errors
    finished, whole = (
        subprocess.run([*words, out], capture_output=True, text=True, env=environment, timeout=60)
        for out in ("parts", "whole")
    )
    assert (finished.returncode, whole.returncode) == (0, 0)
    assert "magnitude, seed 0: goes on from update" in finished.stdout
    assert "\x1b" not in whole.stdout
    assert kept(Path("parts")) == kept(Path("whole"))
