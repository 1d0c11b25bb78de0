import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, fails

from synaptree import check_method
from synaptree.cli.new_method import write_method
from synaptree.core.method import METHODS

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _registry_as_before():
    before = dict(METHODS)
    yield
    sys.modules.pop("my_rule", None)
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.slow
def test_a_new_method_in_a_folder_of_ones_own_passes_its_test_and_runs(tmp_path):
    call("new-method", "my_rule", "--in", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my_rule.golden.toml", "my_rule.py", "my_rule.toml", "test_my_rule.py",
    ]  # fmt: skip
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_rule.py"], cwd=tmp_path,
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout
    run = ["run", "my_rule.toml", "--seed", "0", "--set", "dense.epochs=1", "--out", "out"]
    command = [sys.executable, "-m", "synaptree", "--import", "my_rule.py", *run]
    ran = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "my_rule" in ran.stdout


def test_in_a_checkout_the_files_go_where_methods_golden_edits_and_recipes_lie(tmp_path):
    (tmp_path / "src/synaptree/methods").mkdir(parents=True)
    written = [str(path.relative_to(tmp_path)) for path in write_method("my_rule", tmp_path)]
    assert written == [
        "src/synaptree/methods/my_rule.py", "src/synaptree/testing/golden_edits/my_rule.toml",
        "recipes/my_rule/mlp-short.toml",
    ]  # fmt: skip


def test_the_golden_edit_of_a_new_method_comes_out(tmp_path, monkeypatch):
    write_method("my_rule", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rule", raising=False)
    __import__("my_rule")
    checks = ["golden_edits_come_out", "card_is_complete"]
    assert check_method("my_rule", golden=tmp_path / "my_rule.golden.toml", checks=checks) == {}


@pytest.mark.parametrize(("name", "complaint"), [
    ("rigl", "a method is called 'rigl' already"), ("My-Rule", "cannot be the name"),
    ("lambda", "it is a word of Python itself"),
    ("ünï", "letters from a to z"), ("torch", "a Python module is called so"), ("json", "a Python module is called so"),
    ("__main__", "a Python module is called so"),
])  # fmt: skip
def test_a_name_that_will_not_do_is_refused(tmp_path, name, complaint):
    assert complaint in fails("new-method", name, "--in", tmp_path)
    assert not [*tmp_path.iterdir()]


def test_files_that_are_there_are_left_alone(tmp_path):
    (tmp_path / "my_rule.toml").write_text("mine")
    assert "my_rule.toml is there already" in fails("new-method", "my_rule", "--in", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["my_rule.toml"]


def test_a_file_to_import_that_is_not_there_is_named():
    assert "--import missing.py: wanted a Python file" in fails("--import", "missing.py", "methods")


@pytest.mark.parametrize(("text", "said"), [
    ("x = 1\nraise RuntimeError('boom')\n", "line 2: RuntimeError: boom"),
    ("x = (\n", "SyntaxError: '(' was never closed"),
    ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
])  # fmt: skip
def test_a_file_to_import_that_raises_is_told_in_one_sentence(tmp_path, text, said):
    (tmp_path / "boom_rule.py").write_text(text)
    error = fails("--import", tmp_path / "boom_rule.py", "methods")
    assert error.startswith(f"error: --import {tmp_path / 'boom_rule.py'}: {said}")
    assert len(error.splitlines()) == 1
    assert "boom_rule" not in sys.modules


def test_methods_of_installed_plug_ins_are_registered(tmp_path):
    write_method("my_rule", tmp_path)
    metadata = tmp_path / "plugin-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[synaptree.methods]\nmine = my_rule\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = "from synaptree import METHODS; print('my_rule' in METHODS)"
    said = subprocess.run(
        [sys.executable, "-c", code], env={**ENVIRONMENT, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=60, cwd=Path(tmp_path),
    )  # fmt: skip
    assert said.stdout == "True\n", said.stderr
