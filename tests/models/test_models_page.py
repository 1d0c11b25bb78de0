"""docs/models.md says what the tests check, and its code runs."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_table_is_what_the_tests_declare():
    assert runpy.run_path(str(ROOT / "tools" / "models.py"))["page"](PAGE) == PAGE


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_of_code_prints_what_it_says(code, capsys):
    exec(compile(code, "models.md", "exec"), {})  # our own text
    assert capsys.readouterr().out.split() == re.findall(r"\)  # (\S+)\n", code)
