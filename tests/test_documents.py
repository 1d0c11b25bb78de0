"""The code in the documents runs, and the commands in them exist with the options that are shown."""

import re
import shlex
from pathlib import Path

import pytest
from commands import call

from synaptree.cli.commands import app
from synaptree.core.method import METHODS

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
ELSEWHERE = {
    "README.md": "tests/test_readme.py", "small.md": "tests/test_readme.py", "fast.md": "tests/test_readme.py",
    "loops.md": "tests/integrations/test_loops_document.py", "processes.md": "tests/integrate/test_sharded.py",
    "compress.md": "tests/test_compress_page.py", "models.md": "tests/models/test_models_page.py",
    "resume.md": "tests/faults/test_resume_page.py", "sweeps.md": "tests/integrations/test_documentation.py",
    "tracking.md": "tests/integrations/test_documentation.py",
}  # fmt: skip
"""Page -> the test that runs its Python, where it needs more than the rest."""


def blocks(text, *languages):
    return [code for kind, code in re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL) if kind in languages]


WITH_PYTHON = [name for name, text in PAGES.items() if blocks(text, "python") and name not in ELSEWHERE]


@pytest.fixture
def _registry_as_before():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_registry_as_before")
@pytest.mark.parametrize("name", WITH_PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("recipes", "results"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for folder in sorted(set(re.findall(r'Path\("(runs/\w+)"\)', PAGES[name]))):
        made = call("run", "demo", "--seed", 0, "--set", "dense.epochs=1", "--set", "rounds.rounds=1", "--out", folder)
        assert made.exit_code == 0, made.output
    scope: dict[str, object] = {"__name__": "page"}
    for code in blocks(PAGES[name], "python"):
        capsys.readouterr()
        exec(compile(code, name, "exec"), scope)  # our own text
        printed = capsys.readouterr().out
        for promised in re.findall(r"print\(.*#(.*)\.\.\.", code):
            for part in promised.split("..."):
                assert part.strip() in printed


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_page_whose_python_runs_elsewhere_is_read_there(name):
    assert name in (ROOT / ELSEWHERE[name]).read_text()


def commands():
    for name, text in PAGES.items():
        for code in blocks(text, "bash", "sh"):
            lines = code.replace("\\\n", " ").splitlines()
            lines = [line for line in lines if line.startswith("synaptree ")]
            yield from (pytest.param(line, id=f"{name}: {line[:60]}") for line in lines)


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_in_the_documents_exists_with_its_options(line):
    words = shlex.split(line, comments=True)[1:]
    while words[0].startswith("--"):  # options of the program itself stand before the command
        words = words[2:]
    name, *rest = words
    group = app
    shown = call(name, "--help")
    assert shown.exit_code == 0, f"no command {name}"
    if "COMMAND" in shown.output.split("\n")[1] or "Commands" in shown.output:
        group, name, rest = group, rest[0], rest[1:]
        shown = call(words[0], name, "--help")
        assert shown.exit_code == 0
    for option in (word.split("=")[0] for word in rest if word.startswith("--")):
        assert option in shown.output, f"{name} has no option {option}"
