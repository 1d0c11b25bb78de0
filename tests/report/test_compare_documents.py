import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import call
from recorded import a_result, a_round

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "tables.py"))


@pytest.mark.parametrize(("text", "found"), [
    ("| a | b |\n| :-- | --: |\n| x | 97.88 |\n| y | 97.76 |\n", ["| a | b |"]),
    ("| a | b |\n| :-- | --: |\n| x | 9,372 |\n| y | **-0.10 [-0.30, +0.10]** |\n", ["| a | b |"]),
    ("| key | default |\n| :-- | :-- |\n| every | 100 |\n| batch | 32 |\n", []),
    ("<!-- one: written by tools/tables.py -->\n| a |\n| 1.5 |\n| 2.5 |\n<!-- end of one -->\n", []),
    ("<!-- engine:begin -->\n| a |\n| 1.5 |\n| 2.5 |\n<!-- engine:end -->\n", []),
])  # fmt: skip
def test_tables_of_figures_that_somebody_typed_are_found(tool: dict[str, Any], text: str, found: list[str]) -> None:
    assert list(tool["typed"](f"Some words.\n\n{text}\nMore words.\n")) == found


def test_a_table_is_written_between_its_markers_and_twice_is_the_same(tool: dict[str, Any]) -> None:
    marked = tool["markers"]("one")
    text = f"before\n{marked[0]}old{marked[1]}\nafter\n"
    once = tool["written"](text, "new", *marked)
    assert once == "before\n<!-- one: written by tools/tables.py -->\n\nnew\n<!-- end of one -->\nafter\n"
    assert tool["written"](once, "new", *marked) == once


def test_figures_of_growth_are_those_of_its_results(tool: dict[str, Any]) -> None:
    rounds = [a_round(), a_round(1, [1]), a_round(2, [1, 2])]
    groups = {name: [a_result(seed, rounds=rounds) for seed in range(2)] for name in tool["GROWTH"].values()}
    lines = tool["growth"](groups).splitlines()
    assert lines[2:] == [
        "| grown, test accuracy % | 99.90 | 99.90 | 99.90 |",
        "| pruned, test accuracy % | 99.80 | 99.80 | 99.80 |",
        "| pruned, weights | 250 | 250 | 250 |",
    ]


def test_figures_of_similarity_are_means_over_seeds(tool: dict[str, Any], tmp_path: Path) -> None:
    measures = ("overlap", "overlap_chance", "seed_floor", "seed_chance", "nnstd", "nnstd_chance")
    rows = [
        {"seed": seed, "round": 1, "a": f"strategic_synthesis-s{seed}-0", "b": f"random_growth-s{seed}-0"}
        | dict.fromkeys(measures, seed / 10) for seed in (1, 2)
    ]  # fmt: skip
    file = tmp_path / "similarity.json"
    file.write_text(tool["json"].dumps({"rows": rows}))
    assert tool["similarity"](file).splitlines()[2:] == ["| strategic, random | grown |" + " 0.150 |" * 6]


def test_no_table_of_figures_in_the_documents_is_typed_by_hand(tool: dict[str, Any]) -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert not [path.name for path in documents for _ in tool["typed"](path.read_text(encoding="utf-8"))]


def test_the_commands_in_the_document_take_the_options_it_names() -> None:
    (code,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line, comments=True) for line in code.splitlines()]
    assert len(commands) > 5
    for program, *words in commands:
        assert program == "synaptree"
        assert call(*words, "--help").exit_code == 0
    assert call("compare", "--no-such-option", "--help").exit_code == 2
