"""Runs that meet something in their way: another process, a reader that has gone, a folder that cannot be."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import call, fails, shows

from synaptree.cli import commands
from synaptree.core.errors import OptionError
from synaptree.experiment import Run, runs
from synaptree.recipe import load_recipe
from synaptree.train import zoo
from synaptree.train.alone import LOCK, alone_in

RECIPE = """
model = "mlp"
data = "digits"
threads = 1
method = "nnrelief"
[model_options]
inputs = 64
hidden = [16]
[dense]
epochs = 1
batch = 64
[rounds]
rounds = 1
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
def busy(recipe: Path) -> Iterator[Run]:
    """A run at whose folder another process is at work."""
    (run,) = runs(load_recipe(recipe), Path("out"))
    run.folder.mkdir(parents=True)
    code = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'ab')\nfcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(run.folder / LOCK)]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield run
        process.kill()


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_second_process_is_told_and_writes_nothing(busy: Run, recipe: Path, fresh: list[str]) -> None:
    (busy.folder / "checkpoint.safetensors").write_bytes(b"of the other process")
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    error = fails("run", recipe, "--out", "out", *fresh)
    assert error == f"error: another process is at work in {busy.folder}; wait for it or give another --out\n"
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


def test_another_seed_or_folder_is_free(busy: Run, recipe: Path) -> None:
    assert busy.seed == 0
    assert "results: 1 in out" in shows("run", recipe, "--out", "out", "--seed", 1)


def test_the_lock_of_a_process_that_was_killed_holds_nobody_up(recipe: Path) -> None:
    (run,) = runs(load_recipe(recipe), Path("out"))
    run.folder.mkdir(parents=True)
    (run.folder / LOCK).touch()
    shows("run", recipe, "--out", "out")
    assert not (run.folder / LOCK).exists()


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), alone_in(tmp_path):
        raise RuntimeError
    with alone_in(tmp_path), pytest.raises(OptionError, match="another process"), alone_in(tmp_path):
        pytest.fail("two were let in")
    assert not [*tmp_path.iterdir()]


def test_a_file_that_lost_its_name_while_it_was_waited_for_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, before = fcntl.flock, []

    def late(file: object, how: int) -> None:
        if not before:  # the process before ends between opening and locking
            before.append(file)
            (tmp_path / LOCK).unlink()
        lock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with alone_in(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert before


@pytest.mark.slow
def test_a_reader_that_has_gone_stops_a_run_at_a_checkpoint(recipe: Path) -> None:
    read, write = os.pipe()
    words = [sys.executable, "-m", "synaptree", "run", str(recipe), "--out", "out", "--set", "rounds.rounds=9"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=write, stderr=-1, text=True, env=environment) as process:
        os.close(write)
        assert os.read(read, 1)
        os.close(read)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 141
    assert "stopped; what was reached is kept in out. To go on:\n  synaptree run" in errors
    (file,) = Path("out").glob("*/*.json")
    assert json.loads(file.read_text())["status"] == "interrupted"
    assert "goes on from update" in shows("run", recipe, "--out", "out", "--set", "rounds.rounds=9")


def test_an_error_that_nobody_foresaw_is_recorded_with_its_type(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("synaptree.train.programme.Measure.run", broken)
    assert isinstance(call("run", recipe, "--out", "out").exception, KeyError)
    (file,) = Path("out").glob("*/*.json")
    result = json.loads(file.read_text())
    assert (result["status"], result["reason"]) == ("failed", "KeyError: 'lost'")
    shown = shows("results", "out")
    assert "tiny: nnrelief, seed 0: failed: KeyError: 'lost'" in shown
    assert "round" not in shown
    assert "- tiny: nnrelief, seed 0: failed: KeyError: 'lost'" in shows("results", "out", "--markdown")


def test_a_run_that_is_left_is_interrupted(recipe: Path) -> None:
    (run,) = runs(load_recipe(recipe), Path("out"))
    stages = run.run(None)
    next(stages)
    stages.close()  # type: ignore[attr-defined]
    (file,) = Path("out").glob("*/*.json")
    result = json.loads(file.read_text())
    assert (result["status"], result["reason"]) == ("interrupted", "left before its end")


def test_copies_need_a_folder_before_anything_is_trained(recipe: Path) -> None:
    Path("taken").write_text("a file")
    for place in ("taken", "taken/deep"):
        assert f"--record {place}: wanted a folder" in fails("run", recipe, "--out", "out", "--record", place)
    assert not Path("out").exists()


def test_a_seed_that_is_too_large_is_refused_and_the_largest_is_not(recipe: Path) -> None:
    assert commands.LARGEST_SEED == zoo.LARGEST_SEED
    result = call("run", recipe, "--seed", zoo.LARGEST_SEED + 1)
    assert result.exit_code == 2
    assert str(zoo.LARGEST_SEED) in result.stderr
    assert "results: 1 in" in shows("run", recipe, "--seed", zoo.LARGEST_SEED)


def test_what_is_no_recipe_file_is_told_from_an_unknown_name(tmp_path: Path) -> None:
    assert f"{tmp_path} is not a recipe file" in fails("run", tmp_path)
    assert "/dev/null is not a recipe file" in fails("run", "/dev/null")
    assert "Known: demo; other recipes come with a checkout" in fails("run", "nosuch")
    Path("recipes").mkdir()
    assert "other recipes" not in fails("run", "nosuch")
