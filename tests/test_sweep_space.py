"""Spaces, trials and choices; what needs Ray is in tests/integrations/test_sweep.py."""

import sys
from pathlib import Path

import pytest
from commands import fails
from recorded import a_result, a_round

from synaptree.cli.sweep import command_with_controls
from synaptree.core.errors import OptionError
from synaptree.recipe import find_recipe, load_recipe
from synaptree.sweep import Candidate, Trial, best, candidates, front, load_space, recipe_text, sweep, trials

ROOT = Path(__file__).parents[1]
RECIPE = """
model = "mlp"
data = "digits"
threads = 1
method = "nnrelief"
[model_options]
inputs = 64
hidden = [16]
[dense]
epochs = 1
[method_options]
alpha_fc = 0.9
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def space(tmp_path: Path):
    def write(text: str):
        path = tmp_path / "space.toml"
        path.write_text(text)
        return load_space(path).with_samples(None)

    return write


def test_a_grid_is_every_combination_however_its_keys_are_written(space):
    wanted = [{"dense.lr": lr, "rounds.rounds": n} for lr in (0.1, 0.2) for n in (1, 2, 3)]
    quoted = '"dense.lr" = { grid = [0.1, 0.2] }\n"rounds.rounds" = { grid = [1, 2, 3] }'
    dotted = "dense.lr = { grid = [0.1, 0.2] }\nrounds.rounds = { grid = [1, 2, 3] }"
    tables = "[dense]\nlr = { grid = [0.1, 0.2] }\n[rounds.rounds]\ngrid = [1, 2, 3]"
    for text in (quoted, dotted, tables):
        assert space(text).points() == wanted


def test_drawn_points_lie_in_their_ranges_and_more_of_them_begin_with_the_same(space):
    found = space("""
        dense.lr = { loguniform = [1e-4, 1e-1] }
        dense.momentum = { uniform = [0.5, 0.9] }
        dense.batch = { randint = [7, 9] }
        dense.optimizer = { choice = ["adam", "sgd"] }
        search = { kind = "random", samples = 200, seed = 3 }
    """)
    points = found.points()
    assert len(points) == 200
    assert all(1e-4 <= point["dense.lr"] <= 1e-1 and 0.5 <= point["dense.momentum"] <= 0.9 for point in points)
    assert {point["dense.batch"] for point in points} == {7, 8, 9}
    assert {point["dense.optimizer"] for point in points} == {"adam", "sgd"}
    # equally many below and above the middle of the exponents
    assert 70 < sum(point["dense.lr"] < 10**-2.5 for point in points) < 130
    assert all(len(f"{point['dense.lr']:.15g}".replace("0", "").replace(".", "")) <= 10 for point in points)
    assert found.with_samples(20).points() == points[:20]


def test_every_drawn_point_meets_every_combination_of_the_grids(space):
    points = space("""
        dense.lr = { uniform = [0.1, 0.2] }
        rounds.rounds = { grid = [1, 2] }
        search = { kind = "pareto", samples = 3 }
    """).points()
    assert [point["rounds.rounds"] for point in points] == [1, 2] * 3
    assert [points[k]["dense.lr"] == points[k + 1]["dense.lr"] for k in range(5)] == [True, False, True, False, True]
    assert list(points[0]) == ["dense.lr", "rounds.rounds"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dense.lr = ", r"space\.toml: cannot be read as a space"),
        ("", r"space\.toml: wanted keys of a recipe"),
        ("dense.lr = 0.1", r"space\.toml: dense\.lr = 0\.1 is no choice; write dense\.lr = \{ grid = \[\.\.\.\] \}"),
        ("dense.lr = { gird = [0.1] }", r"dense\.lr: unknown way to choose 'gird'; did you mean 'grid'"),
        ("dense.lr = { grid = [1], choice = [2] }", r"dense\.lr: wanted one way to choose, got grid, choice"),
        ("dense.lr = {}", r"dense\.lr = \{\} is no choice"),
        ("dense = 3", r"dense = 3 is no choice"),
        ("dense.lr = { grid = [] }", r"dense\.lr: wanted grid = a list of values, one at least, got \[\]"),
        ("dense.lr = { choice = 3 }", r"dense\.lr: wanted choice = a list of values"),
        ("dense.lr = { uniform = [2, 1] }", r"dense\.lr: wanted uniform = \[smallest, largest\]"),
        ("dense.lr = { uniform = [1, 2, 3] }", r"dense\.lr: wanted uniform = \[smallest, largest\]"),
        ("dense.lr = { uniform = [0, inf] }", r"dense\.lr: wanted uniform = \[smallest, largest\]"),
        ("dense.lr = { loguniform = [0, 1] }", r"dense\.lr: wanted loguniform = .* both above 0"),
        ("dense.batch = { randint = [1, 2.5] }", r"dense\.batch: wanted randint = .* whole numbers"),
        ("dense.lr = { grid = [1] }\nsearch.kinds = 'grid'", r"unknown key 'search\.kinds'; did you mean 'search\.kin"),
        ("dense.lr = { grid = [1] }\nsearch.kind = 'bayes'", r"search\.kind: Input should be 'grid'"),
        ("dense.lr = { grid = [1] }\nsearch.samples = 0", r"search\.samples: .* got 0"),
        ("dense.lr = { uniform = [1, 2] }", r"dense\.lr = \{ uniform = \.\.\. \} is drawn, and search\.kind is 'grid'"),
        ("dense.lr = { uniform = [1, 2] }\nsearch.kind = 'random'", r"Set search\.samples, or give --samples"),
        ("dense.lr = { grid = [1, 2] }\nsearch.kind = 'random'", r"every key is a grid, of which nothing is drawn"),
        ("dense.lr = { grid = [1, 2] }\nsearch.samples = 3", r"samples = 3, but every key is a grid"),
    ],
)
def test_what_is_no_space_is_refused_by_file_and_key(space, text, message):
    with pytest.raises(OptionError, match=message):
        space(text)


def test_a_space_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"none\.toml: cannot be read as a space .*No such file"):
        load_space(tmp_path / "none.toml")


def test_a_trial_is_the_recipe_with_its_values_and_named_by_them(recipe, space):
    found = trials(recipe, space("method_options.alpha_fc = { grid = [0.8, 0.95] }\ndense.lr = { grid = [0.01] }"))
    assert [trial.name for trial in found] == ["tiny-alpha_fc=0.8-lr=0.01", "tiny-alpha_fc=0.95-lr=0.01"]
    assert [trial.recipe.method_options["alpha_fc"] for trial in found] == [0.8, 0.95]
    assert {trial.recipe.dense.lr for trial in found} == {0.01}


def test_equal_points_count_once_and_equal_names_are_told_apart(recipe, space):
    twice = trials(recipe, space("dense.batch = { choice = [64, 32] }\nsearch = { kind = 'random', samples = 20 }"))
    assert sorted(trial.values["dense.batch"] for trial in twice) == [32, 64]
    alike = trials(recipe, space("rounds.exclude = { grid = [['a?'], ['a*']] }"))
    assert len({trial.name for trial in alike}) == 2
    same_end = trials(recipe, space("dense.lr = { grid = [0.1] }\nretrain.lr = { grid = [0.2] }"))
    assert [trial.name for trial in same_end] == ["tiny-dense.lr=0.1-retrain.lr=0.2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dense.lrr = { grid = [0.1] }", r"space\.toml: .*dense\.lrr = 0\.1.*did you mean 'dense\.lr'"),
        ("denes.lr = { grid = [0.1] }", r"space\.toml: .*unknown key 'denes'; did you mean 'dense'"),
        ("method_options.alpha_fcc = { grid = [0.1] }", r"space\.toml: .*alpha_fcc = 0\.1.*did you mean 'alpha_fc'"),
        ("dense.epochs = { grid = [3, 'many'] }", r"space\.toml: .*dense\.epochs = \"many\".*valid integer"),
        ("dense.epochs = { uniform = [1, 2] }\nsearch = { kind = 'random', samples = 2 }", r"toml: .*dense\.epochs"),
        ("model = { grid = ['mlp', 'mpl'] }", r"space\.toml: .*unknown model 'mpl'"),
        ("seeds = { grid = [[0], [1]] }", r"space\.toml: seeds changes nothing in what a run does"),
        ("programme.0.options.lr = { grid = [0.1] }", r"space\.toml: .*programme\.0\.options\.lr"),
    ],
)
def test_a_space_that_fits_no_recipe_is_refused_by_file_and_key(recipe, space, text, message):
    with pytest.raises(OptionError, match=message):
        trials(recipe, space(text))


@pytest.mark.parametrize("name", ["demo", *(p.stem for p in sorted((ROOT / "recipes" / "develop").glob("*.toml")))])
def test_a_recipe_as_text_is_the_same_recipe(name, tmp_path):
    path = find_recipe("demo") if name == "demo" else ROOT / "recipes" / "develop" / f"{name}.toml"
    recipe = load_recipe(path)
    (tmp_path / path.name).write_text(recipe_text(recipe))
    assert load_recipe(tmp_path / path.name) == recipe


def test_text_with_quotes_and_odd_keys_survives(recipe, tmp_path):
    odd = load_recipe(recipe, ['about="a \\"b\\" \\\\ ü"', "dense.lr=1e-5", 'rounds.exclude=["fc?.\\"x\\""]'])
    (tmp_path / "tiny.toml").write_text(recipe_text(odd))
    assert load_recipe(tmp_path / "tiny.toml") == odd


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "spaces").glob("*.toml")), ids=lambda path: path.stem)
def test_every_space_that_ships_fits_the_recipe_it_names(path):
    recipe = path.read_text().partition("synaptree sweep ")[2].split()[0]
    space = load_space(path).with_samples(None)
    assert len(trials(find_recipe(recipe), space)) > 1


def test_the_space_in_the_documentation_fits_a_recipe(space):
    block = (ROOT / "docs" / "sweeps.md").read_text().split("```toml\n")[1].partition("```")[0]
    assert len(trials(find_recipe("demo"), space(block))) == 20


def candidate(trial: Trial, validation: float, density: float, last: bool = True) -> Candidate:
    return Candidate(trial, 1, last, validation, density, None, 1.0, 1)


@pytest.fixture
def trial(recipe, space) -> Trial:
    return trials(recipe, space("dense.lr = { grid = [0.1] }"))[0]


def test_a_trial_leaves_its_rounds_after_the_dense_one_as_means_over_seeds(trial):
    rounds = [[a_round(n, [1] * 0, validation_accuracy=base - n / 10) for n in range(3)] for base in (0.9, 0.8)]
    found = candidates(trial, [a_result(seed, rounds=parts) for seed, parts in enumerate(rounds)])
    assert [(c.round, c.last, c.seeds) for c in found] == [(1, False, 2), (2, True, 2)]
    assert [c.validation for c in found] == pytest.approx([0.75, 0.65])
    assert [c.density for c in found] == [0.5, 0.25]
    (dense,) = candidates(trial, [a_result(0, rounds=rounds[0][:1])])
    assert (dense.round, dense.last) == (0, True)


def test_best_is_by_validation_among_last_networks_or_all_that_are_sparse_enough(trial):
    among = [
        candidate(trial, 0.95, 0.5, last=False), candidate(trial, 0.90, 0.2), candidate(trial, 0.90, 0.1),
        candidate(trial, 0.85, 0.05),
    ]  # fmt: skip
    assert best(among) is among[2]
    assert best(among, 0.5) is among[0]
    assert best(among, 0.07) is among[3]
    assert best(among, 0.01) is None


def test_the_front_holds_what_no_other_network_beats(trial):
    points = [(0.90, 0.10), (0.92, 0.20), (0.91, 0.30), (0.92, 0.20), (0.80, 0.05), (0.89, 0.10), (0.95, 0.60)]
    among = [candidate(trial, validation, density) for validation, density in points]
    assert front(among) == [among[4], among[0], among[1], among[6]]
    assert front(among, 0.5) == [among[4], among[0], among[1]]
    for one in among:
        as_good = [other for other in among if other.validation >= one.validation and other.density <= one.density]
        beaten = any((other.validation, other.density) != (one.validation, one.density) for other in as_good)
        assert beaten != (one in front(among))


def test_without_ray_the_extra_is_named_and_nothing_is_left(recipe, space, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"pip install 'synaptree\[sweep\]'"):
        sweep(trials(recipe, space("dense.lr = { grid = [0.1] }")), tmp_path / "out")
    assert not list(tmp_path.glob("out/*/*.json"))


def test_the_command_refuses_what_fits_no_recipe_in_a_sentence(recipe, tmp_path):
    (tmp_path / "space.toml").write_text("dense.lrr = { grid = [0.1] }")
    said = fails("sweep", recipe, "--space", tmp_path / "space.toml", "--out", tmp_path / "out")
    assert "did you mean 'dense.lr'" in said
    assert not (tmp_path / "out").exists()


def test_the_command_for_the_controls_has_the_seeds_the_data_and_the_imports_of_the_sweep(recipe: Path) -> None:
    trial = Trial({}, load_recipe(recipe))
    assert command_with_controls(trial, Path("out")) == "synaptree run out/trials/tiny.toml --out out"
    given = command_with_controls(trial, Path("out"), seeds=[7, 8], data=Path("my data"), imports=[Path("mine.py")])
    assert given == (
        "synaptree --import mine.py run out/trials/tiny.toml --out out --seed 7 --seed 8 --data 'my data'"
    )
