"""What docs/loops.md shows is run: every piece goes on from the first."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PIECES = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "loops.md").read_text(), flags=re.DOTALL
)
NAMES = ["loop", "resume", "precision", "average", "compile", "groups", "accelerate", "lightning", "transformers"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is deprecated", "ignore:.*weights-only")
@pytest.mark.parametrize(("name", "code"), [*zip(NAMES, PIECES[1:], strict=True)], ids=NAMES)
def test_a_piece_of_the_document_runs_and_prints_what_it_says(name, code, tmp_path, monkeypatch, capsys):
    if name in ("accelerate", "lightning", "transformers") and find_spec(name) is None:
        pytest.skip(f"needs {name}")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(PIECES[0] + code, "docs/loops.md", "exec"), scope)  # our own text
    printed = capsys.readouterr().out
    promises = re.findall(r"^print\(.*  # (.*)$", code, flags=re.MULTILINE)
    assert promises or name == "resume"
    for promise in promises:
        assert promise in printed
    if name == "resume":
        assert (tmp_path / "checkpoint.pt").exists()
