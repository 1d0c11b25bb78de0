import json
import re
import runpy
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from synaptree.recipe import load_recipe

ROOT = Path(__file__).parents[1]
TEXTS = [(ROOT / name).read_text() for name in ("README.md", "docs/small.md", "docs/fast.md")]
BLOCKS = [block for text in TEXTS for block in re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)]


PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line.partition("#")[0] for language, code in BLOCKS if language == "bash" for line in code.splitlines()]


NAMES = [
    "quick", "fast", "one-call", "any-model", "in-training", "strength", "small", "engine", "calls", "sparsify", "int8",
]  # fmt: skip


@pytest.mark.parametrize("code", PYTHON, ids=NAMES)
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
        if words[0] == "torchrun":
            words = words[words.index("synaptree") :]
        assert words[0] == "synaptree"
        assert CliRunner().invoke(app, [words[1], "--help"]).exit_code == 0
        if words[1] == "run" and words[2] != "demo":
            overrides = [value for flag, value in pairwise(words) if flag == "--set"]
            assert load_recipe(ROOT / words[2], overrides).method == Path(words[2]).parent.name


def test_the_table_of_the_engine_hides_no_loss(tmp_path):
    ran = {"name": "net", "density": 0.05, "batch": 64, "ours": 2e-6, "best": "torch", "theirs": 1e-6, "times": 0.5}
    loaded = {"name": "net load", "density": 0.05, "batch": 1, "ours": 0.5, "best": "", "goal": 2.0, "call": "Engine"}
    calls = [{"call": "engine.run", "goal": 3.0}, {"call": "engine(x)", "goal": None}, {"call": "engine(x)", "goal": 2}]
    path = tmp_path / "engine.json"
    hardware, versions = {"cpu": "a processor", "cores": 2}, {"python": "3", "torch": "2"}
    rows = [*(ran | call for call in calls), loaded]
    path.write_text(json.dumps({"hardware": hardware, "versions": versions, "rows": rows}))
    tables = runpy.run_path(str(ROOT / "tools" / "tables.py"))
    assert tables["engine"](path).splitlines()[2:] == [
        "| net | 0.05 | 64 | 2.0 | torch | 1.0 | 0.5 | 3 |",
        "| net, `engine(x)` | 0.05 | 64 | 2.0 | torch | 1.0 | 0.5 | 2 |",
        "| net load | 0.05 | 1 | 0.50 s |  |  |  | 2.00 s |",
        "",
        "a processor, 2 cores; torch 2.",
    ]
    assert tables["engine"](tmp_path / "none.json") == ""


@pytest.mark.slow
def test_the_tables_in_the_documents_are_those_of_the_recorded_results():
    assert subprocess.run([sys.executable, ROOT / "tools" / "tables.py", "--check"], check=False).returncode == 0
