import re
import shlex
from pathlib import Path

import pytest
from commands import call

PAGE = (Path(__file__).parents[2] / "docs/resume.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_python_on_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for code in PYTHON:  # each goes on from the one before
        exec(compile(code, "resume.md", "exec"), scope)
        (promised,) = re.findall(r"print\(.*  # (.*)", code)
        assert capsys.readouterr().out == promised + "\n"


def test_the_options_on_the_page_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    known = call("run", "--help").stdout
    lines = [line.partition("#")[0] for line in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0].splitlines()]
    asked = {word for line in lines for word in shlex.split(line) if word.startswith("--")}
    assert asked == {"--resume", "--fresh", "--checkpoint-every"}
    assert all(option in known for option in asked)
