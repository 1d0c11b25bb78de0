import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from recorded import a_result, a_round

import synaptree.results
from synaptree.artifact.files import replacing
from synaptree.core.errors import DataError, OptionError
from synaptree.results import SCHEMA, Epoch, config_hash, environment, read, write


def an_epoch(loss: float) -> Epoch:
    return Epoch(
        stage="train", round=0, epoch=0, step=10, loss=loss, validation_accuracy=0.5, density=1, seconds=2
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"density": 1.5}, "density"),
        ({"validation_accuracy": 99.2}, "validation_accuracy"),
        ({"weights": -1}, "weights"),
        ({"densty": 0.5}, "densty"),
        ({"test_errors": [1], "test_items": None}, "needs test_items"),
        ({"test_errors": [5, 3], "test_items": 10}, "ascending"),
        ({"test_errors": [3, 3], "test_items": 10}, "distinct"),
        ({"test_errors": [3, 10], "test_items": 10}, "from 0 to 9"),
        ({"test_errors": [-1, 3], "test_items": 10}, "from 0 to 9"),
    ],
)
def test_a_round_refuses_what_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        a_round(**changes)


def test_a_round_takes_a_faultless_test() -> None:
    assert a_round(0, []).test_accuracy == 1.0


def test_the_hash_is_of_the_values_and_the_schema_not_of_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_hash({"a": 1, "b": {"c": 0.1, "d": 2}}) == config_hash({"b": {"d": 2, "c": 0.1}, "a": 1})
    now = config_hash({"a": 1})
    monkeypatch.setattr(synaptree.results, "SCHEMA", SCHEMA + 1)
    assert config_hash({"a": 1}) != now


def test_the_hash_tells_neighbouring_floats_apart() -> None:
    assert config_hash({"lr": 0.1}) != config_hash({"lr": math.nextafter(0.1, 1)})


def test_the_hash_of_a_known_configuration_never_changes() -> None:
    # files are named by it; worked out by `sha256sum` on the text {"lr": 0.1, "schema": 1}
    assert config_hash({"lr": 0.1}) == "a2e98161878a"


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_the_hash_survives_the_result_file(config: dict[str, Any]) -> None:
    hashed = config_hash(config)
    assert len(hashed) == 12
    assert int(hashed, 16) >= 0
    assert config_hash(json.loads(json.dumps(config))) == hashed


@pytest.mark.parametrize("value", [Path("data"), math.nan, {1, 2}])
def test_a_configuration_without_exact_json_is_refused(value: object) -> None:
    with pytest.raises(OptionError, match="plain finite values"):
        config_hash({"value": value})


def test_the_environment_fills_the_fields_of_a_result() -> None:
    here = environment()
    result = a_result(**here)
    assert result.versions.keys() >= {"python", "torch", "numpy", "synaptree"}
    assert result.hardware["cpu"]
    assert result.hardware["cores"] >= 1
    assert result.threads >= 1


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "src" / "synaptree"
    package.mkdir(parents=True)
    (package / "results.py").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(synaptree.results, "__file__", str(package / "results.py"))
    return tmp_path


def test_the_commit_says_when_the_sources_were_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "results").mkdir()
    (checkout / "results" / "new.json").write_text("{}")
    assert environment()["commit"] == commit
    (checkout / "src" / "synaptree" / "results.py").write_text("2\n")
    assert environment()["commit"] == commit + "+changes"


def test_the_commit_of_another_project_is_not_ours(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = checkout / "venv" / "synaptree"
    installed.mkdir(parents=True)
    monkeypatch.setattr(synaptree.results, "__file__", str(installed / "results.py"))
    assert environment()["commit"] is None


def test_no_git_and_no_checkout_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] is None


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    result = a_result(epochs=[an_epoch(0.1 + 0.2)], config={"name": "größe [1]", "none": None, "e": []})
    path = write(result, tmp_path / "new")
    assert path == tmp_path / "new" / "lenet5-nnrelief-s0-0123456789ab.json"
    assert read([path]) == [result]
    assert list(path.parent.iterdir()) == [path]


def test_a_loss_that_is_not_finite_survives(tmp_path: Path) -> None:
    result = a_result(status="failed", reason="loss", epochs=[an_epoch(math.inf), an_epoch(math.nan)])
    path = write(result, tmp_path)
    losses = [epoch.loss for epoch in read([path])[0].epochs]
    np.testing.assert_array_equal(losses, [math.inf, math.nan])
    json.loads(path.read_text(), parse_constant=pytest.fail)  # standard JSON knows no NaN


def test_the_file_names_the_control_and_stays_in_its_folder(tmp_path: Path) -> None:
    path = write(a_result(seed=3, control="../own best"), tmp_path)
    assert path.name == "lenet5-.._own_best-s3-0123456789ab.json"
    assert path.parent == tmp_path


def test_long_lists_and_epochs_stand_on_one_line_each(tmp_path: Path) -> None:
    result = a_result(rounds=[a_round(0, [3, 5, 8])], epochs=[an_epoch(1.0), an_epoch(0.5)])
    lines = [line.strip() for line in write(result, tmp_path).read_text().splitlines()]
    assert '"test_errors": [3, 5, 8],' in lines
    assert '"layers": {"fc1": 1.0, "fc2": 1.0},' in lines
    assert sum(line.startswith('{"stage": "train"') for line in lines) == 2


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fail_halfway() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="full"):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_searched_and_a_file_is_read_once(tmp_path: Path) -> None:
    first = write(a_result(seed=0), tmp_path / "a")
    write(a_result(seed=1), tmp_path / "b" / "c")
    (tmp_path / "notes.txt").write_text("not a result")
    assert [r.seed for r in read([tmp_path, first])] == [0, 1]
    assert read([tmp_path / "b" / "c", first])[0].seed == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda _: "", "Invalid JSON"),
        (lambda _: "[]", "file: "),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "schema_version: .* got 2"),
        (lambda text: text.replace('"recipe"', '"recipee"'), "recipe: Field required"),
        (lambda text: text.replace('"density"', '"densty": 1, "density"'), "rounds.0.densty: Extra inputs"),
        (lambda text: text.replace('"done"', '"fine"'), "status: .* got 'fine'"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(tmp_path: Path, damage: Any, words: str) -> None:
    path = write(a_result(), tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=f"{path.name} is not a result.*{words}"):
        read([tmp_path])


def test_another_schema_version_is_named_before_its_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "later.json"
    path.write_text('{"moods": [], "schema_version": 2}')
    with pytest.raises(DataError, match="schema_version"):
        read([path])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lost\.json cannot be read: No such file"):
        read([tmp_path / "lost.json"])
