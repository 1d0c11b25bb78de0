import json
from pathlib import Path
from typing import Any

import pytest
from recorded import a_result, a_round
from typer.testing import CliRunner

from synaptree.cli.commands import app
from synaptree.results import Epoch, write


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two recipes of three seeds under results/; the second, random growth, ends with more weights."""
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        for recipe, alive in (("strategic", 200), ("random", 400)):
            rounds = [a_round(0, [1]), a_round(1, [1], stage="grow", born=alive, died=0, weights_alive=alive)]
            epochs = [epoch(number, index) for number in (0, 1) for index in range(4)]
            write(a_result(seed, recipe=recipe, method="growth", rounds=rounds, epochs=epochs), Path("results"))


def epoch(number: int, index: int) -> Epoch:
    """Dense rises to 0.75 and is there for three epochs; round 1 is there from the first one on."""
    accuracy = 0.75 if index or number else 0.5
    return Epoch(
        stage="train", round=number, epoch=index, step=index, loss=0.1, validation_accuracy=accuracy, density=1.0,
        seconds=1.0,
    )  # fmt: skip


def shows(*words: str) -> str:
    result = CliRunner().invoke(app, ["results", *words])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    return result.stdout


def fails(*words: str) -> str:
    result = CliRunner().invoke(app, ["results", *words])
    assert result.exit_code == 2, result.output
    return result.stderr


def rows(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shows(*words, "--json"))
    return found


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_learning_is_shown_as_table_markdown_and_json() -> None:
    found = lines(shows("--learning"))
    assert [line for line in found if line.endswith(": growth")] == ["random: growth", "strategic: growth"]
    # after epoch 4 dense has (0.75 + 0.75 + 0.75) / 3, round 1 after epoch 3; areas 0.7083 and 0.75
    assert found.count("dense 0 4 4.0 3/3 - 70.83 -") == 2
    assert found.count("growth 1 4 3.0 3/3 -1.0 [-1.0,-1.0] 75.00 +4.17 [+4.17,+4.17]") == 2
    assert shows("--learning", "--markdown").count("| strategic | growth | 1 |") == 1
    (first, *_) = [row for row in rows("--learning") if row["round"] == 1]
    assert (first["name"], first["first"], first["first_difference"]["seeds"]) == ("random", 3.0, 3)


def test_stages_are_shown_as_table_markdown_and_json() -> None:
    assert "growth 1 grow 50 200 0 90.00 99.90" in lines(shows("results", "--stages"))
    assert "| random | growth | 1 | grow | 50 | 400 | 0 | 90.00 | 99.90 | 3 |" in shows("--stages", "--markdown")
    assert [row["born"] for row in rows("--stages")] == [None, 400.0, None, 200.0]


def test_one_recipe_is_shown_against_another() -> None:
    assert "1 grow weights 200 400 -200 [-200, -200]" in lines(shows("--against", "random"))
    assert "| strategic | growth | growth/random | 1 | grow | weights |" in shows("--against", "random", "--markdown")
    assert {row["other"] for row in rows("--against", "growth/random")} == {"growth/random"}
    assert "did you mean 'growth/strategic'" in fails("--against", "growth/strategy")


def test_one_table_is_shown_at_a_time() -> None:
    assert "ask for one of them" in fails("--learning", "--stages")
    assert "ask for one of them" in fails("--stages", "--against", "random")
