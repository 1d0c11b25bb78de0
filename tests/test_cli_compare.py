import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from commands import call, fails, shows

from synaptree.cli import compare, latency
from synaptree.cli.groups import listed
from synaptree.measure.bench import bench
from synaptree.report.latency import read_latencies
from synaptree.results import read

RECIPE = """
model = "mlp"
data = "{data}"
threads = 1
seconds_per_epoch = "30 (a slow machine)"
seeds = [0, 1]
method = "{method}"
[model_options]
inputs = {inputs}
hidden = [16]
[method_options]
{options}
[dense]
epochs = 2
batch = 64
lr = 1e-2
[rounds]
rounds = 1
[controls]
{controls}
"""
GROUP = "mlp-hidden16-digits"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two recipes of one group, and one on other data; none of them has been run."""
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "SYNAPTREE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)
    recipe("nnrelief/tiny", "nnrelief", "alpha_fc = 0.7", "random = [1]")
    recipe("magnitude/tiny", "magnitude", "density = 0.1")
    recipe("magnitude/tiny-full", "magnitude", "density = 0.1")
    recipe("magnitude/letters", "magnitude", "density = 0.1", data="letter", inputs=16)


def recipe(name: str, method: str, options: str, controls: str = "", data: str = "digits", inputs: int = 64) -> None:
    path = Path("recipes", f"{name}.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RECIPE.format(method=method, options=options, controls=controls, data=data, inputs=inputs))


def run_all(*words: str) -> str:
    return shows("compare", GROUP, "--run", *words)


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_without_results_it_says_what_is_missing_and_how_to_run_it() -> None:
    result = call("compare", GROUP)
    assert result.exit_code == 2
    assert f"no result files in results or runs for {GROUP}; --run makes them" in result.stderr
    said = lines(result.stdout)
    assert "magnitude/tiny: missing 2 of 2 runs, 8 epochs, about 4 min by its own figure" in said
    assert "nnrelief/tiny: missing 4 of 4 runs, 12 epochs, about 6 min by its own figure" in said
    assert not any("tiny-full" in line for line in said)
    assert f"synaptree compare {GROUP} --run # about 10 min in all" in said


def test_nothing_is_run_that_was_not_named() -> None:
    assert "--run needs to know what" in fails("compare", "--run")
    assert "did you mean 'digits'" in fails("compare", "digit", "--run")
    assert not Path("runs").exists()


@pytest.mark.slow
def test_what_is_missing_is_run_once_recorded_and_compared() -> None:
    text = run_all()
    assert "nnrelief tiny*" in text
    assert "  random*" in text
    assert "magnitude tiny*" in text
    assert f"picture: runs/compare/{GROUP}.png" in text
    assert "runs without a result" not in text
    files = {path.name: path.stat().st_mtime_ns for path in Path("results").glob("*.json")}
    assert len(files) == 6
    again = run_all()
    assert {path.name: path.stat().st_mtime_ns for path in Path("results").glob("*.json")} == files
    assert "epochs, about" not in again
    assert "synaptree compare" not in again
    assert "tiny-full: missing 1 of 1 runs" in shows("compare", GROUP, "--full", "--seed", 5)


@pytest.mark.slow
def test_networks_that_are_there_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "bench", partial(bench, against=["numpy"]))  # the quickest to set up
    monkeypatch.setattr(latency, "SECONDS", 0.01)
    run_all("--seed", "0")
    text = shows("compare", GROUP, "--measure", "--seed", "0")
    assert "not measured" not in text
    found = read_latencies(Path("results"))
    assert {(one.round, one.batch) for one in found} == {(0, 1), (0, 32), (1, 1), (1, 32)}
    assert all(one.times > 0 for one in found)
    assert "nothing to measure" in call("compare", GROUP, "--measure", "--seed", "0").stderr


def test_a_run_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    develop = compare.develop_runs

    def full_disk(left: list, *others: object) -> None:
        if left[0].title == "magnitude, seed 0":
            raise OSError("No space left on device")
        develop(left, *others)

    monkeypatch.setattr(compare, "develop_runs", full_disk)
    result = call("compare", "magnitude/tiny", "--run")
    assert result.exit_code == 1
    assert "failed: magnitude/tiny, magnitude, seed 0: No space left on device" in result.stderr
    assert "about 10 %" in result.stdout
    assert {one.seed for one in read([Path("results")]) if one.method == "magnitude"} == {1}


def test_data_that_is_not_there_fails_once_for_a_recipe() -> None:
    Path("mine.toml").write_text('recipes = ["magnitude/letters", "magnitude/tiny"]\n')
    result = call("compare", "mine.toml", "--run", "--seed", "0")
    assert result.exit_code == 1
    assert result.stderr.count("failed: magnitude/letters") == 1
    assert "about 10 %" in result.stdout
    assert "magnitude/letters: missing 2 of 2 runs" not in result.stdout
    assert "magnitude/letters: missing 1 of 1 runs" in result.stdout


def test_a_signal_stops_it_and_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    develop = compare.develop_runs

    def stopped(left: list, *others: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        develop(left, *others)

    monkeypatch.setattr(compare, "develop_runs", stopped)
    result = call("compare", "magnitude/tiny", "--run", "--seed", "0")
    assert result.exit_code == 143
    assert "stopped; what was reached is kept in runs. To go on:" in result.stderr
    assert not Path("results").exists()
    monkeypatch.setattr(compare, "develop_runs", develop)
    assert "magnitude tiny*" in shows("compare", "magnitude/tiny", "--run", "--seed", "0")


@pytest.fixture
def _ran() -> None:
    assert call("run", "magnitude/tiny", "--record", "results").exit_code == 0


@pytest.mark.usefixtures("_ran")
def test_the_same_is_printed_as_markdown_json_and_answers() -> None:
    assert "| about 10 % | magnitude* | tiny | 9.97 |" in shows("compare", GROUP, "--markdown")
    (dense, sparse) = json.loads(shows("compare", "mlp", "--json"))
    assert (dense["density"], sparse["density"], sparse["rows"][0]["seeds"]) == (1.0, 0.1, 2)
    assert sparse["rows"][0]["epochs"] == 4
    text = shows("compare", "digits", "--which")
    assert "| about 10 % | magnitude tiny* at 9.97 % (" in text
    assert "Not run, or not all of it: nnrelief/tiny." in text
    assert "- mlp-hidden300x100-digits: demo" in text
    assert "ask for one of them" in fails("compare", "--json", "--which")
    assert "page.html: " in shows("compare", GROUP, "--html", "page.html")
    assert "magnitude" in Path("page.html").read_text()


@pytest.mark.usefixtures("_ran")
def test_pictures_are_drawn_where_they_are_asked_for_and_it_is_said_where() -> None:
    assert "picture" not in shows("compare", GROUP, "--out", "networks")
    assert not Path("networks").exists()
    assert f"picture: networks/compare/{GROUP}.png" in shows("compare", GROUP, "--out", "networks", "--picture")
    assert Path("networks", "compare", f"{GROUP}.png").is_file()


@pytest.mark.usefixtures("_ran")
def test_without_a_group_all_that_have_results_are_shown() -> None:
    text = shows("compare")
    assert f"{GROUP}, tested on" in text
    assert "letter" not in text
    assert "about 7 %" in shows("compare", "--at", "7")
    assert "levels are densities" in fails("compare", "--at", "0")


@pytest.mark.usefixtures("_ran")
def test_what_cannot_be_read_is_told_and_the_rest_is_shown() -> None:
    Path("results", "half.json").write_text("{")
    Path("recipes", "broken.toml").write_text('model = "mlp"\ndata = "digits"\nmethod = "no_such_method"\n')
    result = call("compare", GROUP)
    assert result.exit_code == 0
    assert "about 10 %" in result.stdout
    assert "left out: results/half.json is not a result" in result.stderr
    assert "left out: recipes/broken.toml" in result.stderr


@pytest.mark.usefixtures("_ran")
def test_a_file_names_the_recipes_of_a_group() -> None:
    group = Path("mine.toml")
    group.write_text('recipes = ["nnrelief/tiny"]\n')
    assert "no result files in results or runs for mine" in call("compare", group).stderr
    group.write_text('recipes = ["nnrelief/tiny", "recipes/magnitude/tiny.toml"]\n')
    assert "about 10 %" in shows("compare", group)
    for text, said in (("recipes = []", "wanted recipes"), ("recipes = [", "cannot be read as a list"),
                       ('recipes = ["nnrelief/tony"]', "did you mean 'nnrelief/tiny'")):  # fmt: skip
        group.write_text(text)
        assert said in fails("compare", group)
    assert "cannot be read as a list of recipes" in fails("compare", "none.toml")


@pytest.mark.usefixtures("_ran")
def test_a_control_whose_networks_are_gone_has_them_made_again_and_the_record_stays() -> None:
    shows("compare", "nnrelief/tiny", "--run", "--seed", "0")
    kept = {path.name: path.read_bytes() for path in Path("results").glob("*-nnrelief-s0-*.json")}
    (random,) = Path("results").glob("*-random-s0-*.json")
    random.unlink()
    Path("runs").rename("elsewhere")
    text = shows("compare", "nnrelief/tiny", "--run", "--seed", "0")
    assert "nnrelief, seed 0: recorded, but its networks are not in runs; done again" in text
    assert random.exists()
    assert {path.name: path.read_bytes() for path in Path("results").glob("*-nnrelief-s0-*.json")} == kept


def test_bases_and_files_of_another_kind_are_no_recipes() -> None:
    Path("recipes", "spaces").mkdir()
    Path("recipes", "spaces", "alpha.toml").write_text("[search]\nkind = 'grid'\n")
    Path("recipes", "tiny-base.toml").write_text('model = "mlp"\n')
    found, notes = listed()
    assert {one.name for one in found} == {
        "demo", "magnitude/letters", "magnitude/tiny", "magnitude/tiny-full", "nnrelief/tiny"
    }  # fmt: skip
    assert notes == []
