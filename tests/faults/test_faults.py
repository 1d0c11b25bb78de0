"""What happens to a run when the disk is full, the folder read-only, the loss not a number, or the process killed."""

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import call, fails, shows

from synaptree.cli.run import Stop
from synaptree.train.checkpoint import BEFORE, CHECKPOINT, read_checkpoint

ROOT = Path(__file__).parents[2]
RECIPE = """
model = "mlp"
data = "digits"
threads = 1
method = "nnrelief"
[model_options]
inputs = 64
hidden = [200]
[dense]
epochs = 2
batch = 64
[rounds]
rounds = 1
restart = "rewind"
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def stopped(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Begin a run in a folder, stop it after 25 updates, and return its checkpoint."""

    class Late(Stop):
        asked = 0

        def __call__(self) -> bool:
            self.asked += 1
            return self.asked > 25

    @contextmanager
    def late() -> Iterator[Stop]:
        yield Late()

    def begin(out: Path) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr("synaptree.cli.run.stoppable", late)
            assert call("run", recipe, "--out", out).exit_code == 130
        (path,) = out.glob(f"*/{CHECKPOINT}")
        assert read_checkpoint(path).step == 25
        return path

    return begin


def ends(out: Path) -> list[object]:
    """Return what a finished run left, without wall times."""
    (file,) = out.glob("*/*.json")
    result = json.loads(file.read_text())
    for key in ("started", "seconds", "seconds_per_epoch", "commit"):
        del result[key]
    for epoch in result["epochs"]:
        del epoch["seconds"]
    files = sorted(path for path in file.parent.iterdir() if path != file)
    return [result, *((path.name, path.read_bytes()) for path in files)]


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount something for a while; skip the test where that is not permitted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        gc.collect()  # what an error still holds of files there
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the disk that a folder lies on."""
    ballast, room = folder / "ballast", os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_bsize)
    yield
    ballast.unlink()


@contextmanager
def small_files(_: Path) -> Iterator[None]:
    """Let no file grow beyond 100 kB, as a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield


def test_a_full_disk_ends_a_run_in_words_and_it_goes_on_once_there_is_room(
    recipe: Path, stopped: Callable[[Path], Path], tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=6m", "tmpfs"):
        _refuses_and_goes_on(recipe, stopped, tmp_path / "disk/out", full, "No space left on device")


def test_a_quota_ends_a_run_in_words_and_it_goes_on_without(
    recipe: Path, stopped: Callable[[Path], Path], tmp_path: Path
) -> None:
    _refuses_and_goes_on(recipe, stopped, tmp_path / "out", small_files, "File too large")


def test_a_read_only_folder_ends_a_run_in_words_and_it_goes_on_elsewhere_writable(
    recipe: Path, stopped: Callable[[Path], Path], tmp_path: Path
) -> None:
    _refuses_and_goes_on(recipe, stopped, tmp_path / "out", read_only, "Read-only file system")


def _refuses_and_goes_on(
    recipe: Path, stopped: Callable[[Path], Path], out: Path, trouble: Callable[[Path], object], words: str
) -> None:
    checkpoint = stopped(out)
    before = checkpoint.read_bytes()
    with trouble(out):  # type: ignore[attr-defined]
        result = call("run", recipe, "--out", out, "--checkpoint-every", 0)
        assert result.exit_code == 2
        assert f"the checkpoint of update 26 cannot be written ({words}); that of update 25 is whole" in result.stderr
        assert f"what was reached is kept in {out}" in result.stderr
        assert checkpoint.read_bytes() == before
    assert "goes on from update 25" in shows("run", recipe, "--out", out, "--resume")
    shows("run", recipe, "--out", out.parent / "whole")
    assert ends(out) == ends(out.parent / "whole")


def test_a_folder_that_cannot_be_made_ends_a_run_before_it_trains(recipe: Path) -> None:
    Path("taken").write_text("a file")
    error = fails("run", recipe, "--out", "taken/out")
    assert "Not a directory" in error
    assert "nothing was trained yet" in error


def test_a_loss_that_is_no_number_fails_at_the_same_place_each_time_and_loses_nothing(recipe: Path) -> None:
    words = ("run", recipe, "--out", "out", "--set", "dense.lr=1e30", "--checkpoint-every", 0)
    error = fails_at_the_loss(*words)
    advice = call(*words).stderr
    assert "a smaller lr, as with --set dense.lr=VALUE, starts anew" in advice
    assert "To go on" not in advice
    (file,) = Path("out").glob("*/*.json")
    result = json.loads(file.read_text())
    assert result["status"] == "failed"
    assert result["reason"] in error
    checkpoint = read_checkpoint(file.parent / CHECKPOINT)
    assert f"the state of update {checkpoint.step} is kept in" in error
    assert fails_at_the_loss(*words) == error
    assert read_checkpoint(file.parent / CHECKPOINT).step == checkpoint.step


def fails_at_the_loss(*words: object) -> str:
    """Return the sentence in which a run ends whose loss is no number."""
    result = call(*words)
    assert result.exit_code == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: the loss is ")]
    assert "(epoch 0, batch " in error
    return error


def test_resuming_wants_something_to_go_on_from(recipe: Path, stopped: Callable[[Path], Path]) -> None:
    error = fails("run", recipe, "--resume", "--out", "out")
    assert "nothing to go on from; no checkpoint and no result lies at out/nnrelief-s0-" in error
    assert not Path("out").exists()
    assert "give one of them" in fails("run", recipe, "--resume", "--fresh")
    stopped(Path("out"))
    assert "goes on from update 25" in shows("run", recipe, "--resume", "--out", "out")
    assert "1 of 1 runs are done already" in shows("run", recipe, "--resume", "--out", "out")


def test_starting_over_takes_nothing_from_the_checkpoint(recipe: Path, stopped: Callable[[Path], Path]) -> None:
    checkpoint = stopped(Path("out"))
    assert "goes on from" not in shows("run", recipe, "--fresh", "--out", "out")
    assert not checkpoint.exists()
    assert not checkpoint.with_name(BEFORE).exists()


def test_damage_is_said_and_the_run_ends_as_if_there_were_none(recipe: Path, stopped: Callable[[Path], Path]) -> None:
    checkpoint = stopped(Path("out"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    shown = shows("run", recipe, "--out", "out")
    assert "nnrelief, seed 0: the last checkpoint is damaged" in shown
    assert "goes on from the one before, of update 0" in shown
    shows("run", recipe, "--out", "whole")
    assert ends(Path("out")) == ends(Path("whole"))


def test_damage_to_both_ends_in_words_and_changes_nothing(recipe: Path, stopped: Callable[[Path], Path]) -> None:
    checkpoint = stopped(Path("out"))
    for path in (checkpoint, checkpoint.with_name(BEFORE)):
        path.write_bytes(b"")
    before = {path: path.read_bytes() for path in checkpoint.parent.iterdir()}
    result = call("run", recipe, "--out", "out")
    assert result.exit_code == 2
    assert "error: the checkpoint is damaged, and no other one is whole" in result.stderr
    assert "--fresh" in result.stderr
    assert "To go on" not in result.stderr
    assert checkpoint.read_bytes() == b""
    assert {path: path.read_bytes() for path in checkpoint.parent.iterdir()} == before


def test_another_number_of_threads_is_noted_in_the_result(recipe: Path, stopped: Callable[[Path], Path]) -> None:
    checkpoint = stopped(Path("out"))
    content = read_checkpoint(checkpoint).content
    assert content["machine"]["threads"] == 1
    assert content["identity"]["recipe"] == "tiny"
    assert (content["identity"]["method"], content["identity"]["model"]) == ("nnrelief", "mlp")
    _claim(checkpoint, threads=3)
    shown = shows("run", recipe, "--out", "out")
    assert "went on from update 25 elsewhere (threads was 3, is 1)" in shown
    (file,) = Path("out").glob("*/*.json")
    (note,) = json.loads(file.read_text())["notes"]
    assert note in shown


def _claim(checkpoint: Path, **machine: object) -> None:
    """Write a checkpoint anew as one from another machine."""
    from synaptree.artifact.interchange import read_tensors, write_tensors
    from synaptree.train.checkpoint import _digest

    tensors, meta = read_tensors(checkpoint)
    meta["content"]["machine"] |= machine
    write_tensors(checkpoint, tensors, meta | {"sha256": _digest(tensors, meta["content"])})


@pytest.mark.slow
def test_killed_runs_end_like_one_that_was_not() -> None:
    command = [sys.executable, str(ROOT / "tools" / "faults.py"), "--kills", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 kills left no trace" in done.stdout
