import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from synaptree.recipe import load_recipe

ROOT = Path(__file__).parents[1]
README, SMALL = ((ROOT / name).read_text() for name in ("README.md", "docs/small.md"))
BLOCKS = [block for text in (README, SMALL) for block in re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)]


PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line.partition("#")[0] for language, code in BLOCKS if language == "bash" for line in code.splitlines()]


@pytest.mark.parametrize("code", PYTHON, ids=["quick", "any-model", "in-training", "strength", "small"])
def test_the_python_in_the_readme_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)  # our own text
    printed = capsys.readouterr().out
    for promised in re.findall(r"print\(.*?# (.*)\.\.\.", code):
        for part in promised.split("..."):
            assert part in printed


def test_the_ten_lines_keep_what_they_promise(capsys):
    from synaptree.train import zoo

    scope: dict = {}
    exec(compile(PYTHON[0], "README.md", "exec"), scope)
    model, topology = scope["model"], scope["topology"]
    assert list(model.state_dict()) == list(zoo.build("mlp", inputs=64, hidden=(100,)).state_dict())
    for name, parameter in topology.parameters(model):
        assert (parameter[~topology.expanded(name)] == 0).all()
    accuracy = (model(scope["x"]).argmax(1) == scope["y"]).float().mean()
    assert accuracy > 0.9
    capsys.readouterr()


def test_the_commands_in_the_readme_exist():
    from synaptree.cli.commands import app

    for words in (shlex.split(command) for command in SHELL if command.strip()):
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
            continue
        assert words[0] == "synaptree"
        assert CliRunner().invoke(app, [words[1], "--help"]).exit_code == 0
        if words[1] == "run" and words[2] != "demo":
            overrides = [value for flag, value in pairwise(words) if flag == "--set"]
            assert load_recipe(ROOT / words[2], overrides).method == Path(words[2]).parent.name


@pytest.mark.slow
def test_the_tables_in_the_documents_are_those_of_the_recorded_results():
    assert subprocess.run([sys.executable, ROOT / "tools" / "tables.py", "--check"], check=False).returncode == 0
