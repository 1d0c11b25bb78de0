"""The page about `compress` and its command."""

import json
import re
import shlex
from pathlib import Path

import pytest
from commands import call, fails, shows

from synaptree.cli.compress import brought
from synaptree.compression.ways import steerable
from synaptree.core.errors import OptionError

PAGE = (Path(__file__).parents[1] / "docs" / "compress.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]

MINE = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

def with_data():
    torch.manual_seed(0)
    x = torch.randn(300, 8)
    y = (x[:, 0] > 0).long()
    return network(), (x[:200], y[:200]), (x[200:], y[200:])

def number():
    return 3

def raising():
    return [][0]

def wanting(width):
    return nn.Linear(width, 2)

NETWORK = network()
"""


BROKEN = {
    "broken": "\n1 / 0\n", "ending": "import sys\nsys.exit(1)\n", "crooked": "def network(:\n",
    "needing": "import not_there\n", "lacking": "import os\nos.nothing_such\n",
}  # fmt: skip


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its_module.py").write_text(MINE)
    return "its_module"


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=["digits", "regression"])
def test_the_python_of_the_page_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "compress.md", "exec"), {})  # our own text
    printed = capsys.readouterr().out
    for promised in re.findall(r"print\(.*?# (.*)\.\.\.", code):
        assert all(part in printed for part in promised.split("..."))


def test_the_page_names_the_methods_that_serve_and_the_commands_that_exist():
    listed = PAGE[PAGE.index("Methods serve that") : PAGE.index("`kernel_norm` cuts")]
    assert re.findall(r"`(\w+)`", listed) == steerable()
    asked = call("compress", "--help").stdout
    for line in SHELL:
        assert shlex.split(line)[:2] == ["synaptree", "compress"]
        assert all(word in asked for word in line.split() if word.startswith("--"))


def test_a_model_and_data_of_the_users_are_compressed_and_written(mine):
    words = ("--budget", "60 epochs", "--max-drop", 3, "--batch", 32, "--no-timing")
    said = shows("compress", f"{mine}:with_data", *words, "--out", "small")
    assert "Tries, judged on validation data" in said
    assert "times fewer weights" in said
    assert "network: small/network.syn" in said
    report = json.loads(Path("small/report.json").read_text())
    assert report["after"]["weights"] < report["before"]["weights"] == 320
    assert all(f" {one['weights']:,} " in said for one in report["tries"])


def test_a_network_of_the_zoo_is_judged_once_on_the_test_set_at_the_end(mine):  # noqa: ARG001
    said = shows("compress", "mlp", "--data", "digits", "--budget", "6 epochs", "--no-timing")
    assert re.search(r"test accuracy on digits: \d+\.\d\d before, \d+\.\d\d after, [+-]\d+\.\d\d", said)
    assert Path("runs/compress/mlp/network.syn").exists()


@pytest.mark.parametrize(("words", "said"), [
    (("mlp",), "--data is missing: name the data set for mlp"),
    (("lenet", "--data", "digits"), "unknown model 'lenet'"),
    (("mlp", "--data", "digit"), "unknown data set 'digit'"),
    (("MINE:network",), "--data is missing"),
    (("MINE:with_data", "--data", "digits"), "brings its own data"),
    (("MINE:number",), "returned (int): wanted a model, or (model, train_data, val_data)"),
    (("MINE:nothing",), "its_module has no nothing"),
    (("MINE:raising",), "MINE:raising raised IndexError: list index out of range (its_module.py, line 18)"),
    (("MINE:wanting",), "MINE:wanting is called without arguments: missing a required argument: 'width'"),
    (("MINE:NETWORK",), "MINE:NETWORK is a Sequential and no function: wanted a function that returns the model"),
    (("MINE:MINE",), "MINE has no MINE"),
    (("MINE:__name__",), "MINE:__name__ is a str and no function"),
    (("MINE:",), "MINE:: wanted MODULE:FUNCTION"),
    ((":network",), ":network: wanted MODULE:FUNCTION"),
    (("broken:network",), "broken cannot be imported, ZeroDivisionError: division by zero (broken.py, line 2)"),
    (("ending:network",), "ending:network: ending cannot be imported, SystemExit: 1"),
    (("crooked:network",), "crooked:network: crooked cannot be imported, SyntaxError: "),
    (("needing:network",), "needing cannot be imported, ModuleNotFoundError: No module named 'not_there'"),
    (("lacking:network",), "lacking cannot be imported, AttributeError: "),
    (("no_such_module:network",), "there is no module no_such_module"),
    (("MINE:with_data", "--budget", "soon"), "budget = 'soon'"),
    (("MINE:with_data", "--max-drop", "-1"), "max_drop = -1.0"),
    (("MINE:with_data", "--method", "nest"), "no option that brings a network to a density"),
])  # fmt: skip
def test_what_the_command_cannot_work_with_is_said_in_a_sentence(mine, words, said):
    for name, code in BROKEN.items():
        Path(f"{name}.py").write_text(code)
    written = fails("compress", *(word.replace("MINE", mine, 1) for word in words))
    assert said.replace("MINE", mine, 1) in written
    assert "Traceback" not in written
    assert not Path("runs").exists()


def test_an_error_in_a_function_of_the_users_stays_the_cause_of_what_is_said(mine):
    with pytest.raises(OptionError) as caught:
        brought(f"{mine}:raising")
    assert isinstance(caught.value.__cause__, IndexError)
