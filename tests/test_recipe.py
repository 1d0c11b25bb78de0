import re
from pathlib import Path

import pytest
import torch

from synaptree.artifact.interchange import load_into, read_tensors
from synaptree.core.errors import OptionError
from synaptree.experiment import runs, start
from synaptree.recipe import load_recipe
from synaptree.train.programme import Train

TINY = """
model = "mlp"
data = "digits"
method = "nnrelief"
threads = 1
[model_options]
inputs = 64
hidden = [12]
[dense]
epochs = 2
batch = 300
lr = 1e-2
[rounds]
rounds = 2
restart = "rewind"
samples = 100
"""
CONTROLS = """
[controls]
magnitude = "all"
magnitude_global = "all"
magnitude_erdos_renyi = [2]
random = [1, 2]
shuffled = [2]
reinitialised = [2]
"""
FILES = Path(__file__).parents[1].joinpath("recipes").rglob("*.toml")
RECIPES = sorted(path for path in FILES if path.parent.name != "spaces")


def write(folder: Path, text: str, name: str = "tiny.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", [p for p in RECIPES if not p.stem.endswith("base")], ids=lambda p: p.stem)
def test_every_recipe_that_ships_is_valid_and_states_its_cost(path):
    recipe = load_recipe(path)
    assert recipe.about
    assert re.search(r"\d.* \(.* thread", recipe.seconds_per_epoch)


def test_every_method_has_a_short_and_a_full_recipe():
    from synaptree.methods import METHODS

    for name in METHODS:
        forms = {path.stem.rpartition("-")[2] for path in RECIPES if path.parent.name == name}
        assert forms == {"short", "full"}, name


def test_a_recipe_and_its_controls_run_and_are_never_run_twice(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY + CONTROLS))
    results = start(recipe, tmp_path / "out")
    by_control = {result.control: result for result in results}
    assert list(by_control) == [None, *recipe.controls]
    own = {part.round: part for part in by_control[None].rounds}
    for control, result in by_control.items():
        assert result.status == "done"
        assert all(part.test_accuracy is not None for part in result.rounds)
        for part in result.rounds:
            assert part.density == pytest.approx(own[part.round].density, abs=2e-3), control
            if control in ("magnitude", "random", "shuffled", "reinitialised"):
                assert part.layers == pytest.approx(own[part.round].layers, abs=2e-3)
    assert [part.round for part in by_control["random"].rounds] == [1, 2]
    assert [part.round for part in by_control["magnitude"].rounds] == [1, 2]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = start(recipe, tmp_path / "out")
    assert again == results
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_the_reinitialised_control_has_the_methods_masks(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY + "[controls]\nreinitialised = [2]\n"))
    start(recipe, tmp_path / "out")
    method, control = runs(recipe, tmp_path / "out")
    masks = []
    for run in (method, control):
        topology = load_into(run._fresh(0), run.folder / "round_02.safetensors")
        masks.append(topology.masks["fc1.weight"])
    assert torch.equal(*masks)


def test_seeds_share_nothing_and_the_same_seed_gives_the_same_numbers(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY))
    first, second = start(recipe, tmp_path / "a", seeds=[0, 1])
    (again,) = start(recipe, tmp_path / "b", seeds=[0])
    assert [e.loss for e in first.epochs] == [e.loss for e in again.epochs]
    assert [e.loss for e in first.epochs] != [e.loss for e in second.epochs]
    assert first.rounds == again.rounds


def test_a_method_that_acts_in_training_is_measured_beside_its_dense_network(tmp_path):
    text = TINY.replace("nnrelief", "gradual_magnitude") + "[method_options]\ndensity = 0.25\nlast = 6\nevery = 2\n"
    (result,) = start(load_recipe(write(tmp_path, text)), tmp_path / "out")
    assert [(part.round, round(part.density, 2)) for part in result.rounds] == [(0, 1.0), (1, 0.25)]


def test_a_base_recipe_gives_what_is_left_out(tmp_path):
    write(tmp_path, TINY, "parent.toml")
    recipe = load_recipe(write(tmp_path, 'base = "parent.toml"\n[dense]\nepochs = 5\n'))
    assert (recipe.dense.epochs, recipe.dense.batch, recipe.method) == (5, 300, "nnrelief")


def test_overrides_win_and_do_not_rename_what_they_leave_alone(tmp_path):
    path = write(tmp_path, TINY)
    plain, same, other = (
        runs(load_recipe(path, overrides), tmp_path)[0].hash
        for overrides in ([], ["dense.epochs=2"], ["dense.epochs=3"])
    )
    assert plain == same != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["modle=1"], r"unknown key 'modle'; did you mean 'model'"),
        (["dense.epoch=1"], r"unknown key 'dense.epoch'; did you mean 'dense.epochs'"),
        (['model="lenet"'], r"unknown model 'lenet'; did you mean .*'lenet5'"),
        (['method="nnreleif"'], r"unknown method 'nnreleif'; did you mean 'nnrelief'"),
        (['data="mnst"'], r"unknown data set 'mnst'; did you mean .*'mnist'"),
        (['controls.magnitud="all"'], r"unknown control 'magnitud'; did you mean 'magnitude'"),
        (["method_options.alpha=0.5"], r"unknown option of nnrelief 'alpha'; did you mean"),
        (["method_options.alpha_fc=1.5"], r"alpha of linear layers = 1.5: wanted a share above 0 and at most 1"),
        (["dense.lr=-1"], r"dense.lr: .*greater than 0"),
        (["retrain.lr=-1"], r"lr: .*greater than 0"),
        (["dense.batch"], r"wanted key=value"),
        (["seeds=[-1]"], r"seeds.0: .*greater than or equal to 0, got -1"),
        (["seeds=[9223372036854775808]"], r"seeds.0: "),
    ],
)
def test_what_a_recipe_gets_wrong_is_named(tmp_path, change, message):
    with pytest.raises(OptionError, match=message):
        load_recipe(write(tmp_path, TINY), change)


def test_a_missing_recipe_lists_its_neighbours(tmp_path):
    write(tmp_path, TINY)
    with pytest.raises(OptionError, match=r"tiny\.toml"):
        load_recipe(tmp_path / "tinny.toml")


def test_a_file_that_is_no_toml_is_a_clear_error(tmp_path):
    with pytest.raises(OptionError, match="cannot be read as a recipe"):
        load_recipe(write(tmp_path, "model = "))


@pytest.mark.parametrize("restart", ["rewind", "continue"])
@pytest.mark.parametrize("rewind_step", [0, 3])
@pytest.mark.parametrize("control", ["random", "magnitude", "magnitude_global", "shuffled", "reinitialised"])
def test_a_control_trains_the_weights_it_says_under_whole_masks(tmp_path, control, restart, rewind_step):
    """Before each retraining every surviving weight is the dense, the rewound or the new one; none is zero."""
    text = TINY.replace('restart = "rewind"', f'restart = "{restart}"\nrewind_step = {rewind_step}')
    recipe = load_recipe(write(tmp_path, text + f"[controls]\n{control} = [1, 2]\n"))
    method, run = runs(recipe, tmp_path / "out")
    list(method.run(None))
    dense = read_tensors(method.folder / "round_00.safetensors")[0]["fc1.weight"]
    seen = []
    for stage in run.run(None):
        if isinstance(stage, Train):
            weight = run.network.model.state_dict()["fc1.weight"].clone()
            seen.append((weight, run.network.topology.masks["fc1.weight"].clone()))
    source = dense
    if restart == "rewind":
        source = read_tensors(method.folder / f"kept_{rewind_step}.safetensors")[0]["fc1.weight"]
    assert len(seen) == 2
    for weight, mask in seen:
        assert (weight[~mask] == 0).all()
        assert (weight[mask] != 0).all()
        if control == "reinitialised":
            assert (weight[mask] != source[mask]).all()
        else:
            assert torch.equal(weight, source * mask)


def test_controls_meet_the_data_in_the_order_the_method_met_it(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY + '[controls]\nmagnitude = "all"\nrandom = [2]\n'))
    results = {result.control: result for result in start(recipe, tmp_path / "out")}
    own = {(e.round, e.epoch): e.step for e in results[None].epochs}
    for control in ("magnitude", "random"):
        assert all(own[e.round, e.epoch] == e.step for e in results[control].epochs)


def test_a_control_leaves_excluded_layers_alone_and_still_has_the_methods_density(tmp_path):
    text = TINY.replace("samples = 100", 'samples = 100\nexclude = ["fc2"]') + "[controls]\nmagnitude_global = [2]\n"
    results = {result.control: result for result in start(load_recipe(write(tmp_path, text)), tmp_path / "out")}
    (control,) = results["magnitude_global"].rounds
    assert control.layers["fc2"] == 1.0
    assert control.density == pytest.approx(results[None].rounds[2].density, abs=2e-3)


def test_rewinding_beyond_the_dense_training_is_named(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY), ["rounds.rewind_step=99"])
    with pytest.raises(OptionError, match="rewind_step = 99: the dense training ended at update 8"):
        start(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["controls.random=[3]"], r"controls.random asks for round 3; there are rounds 1 to 2"),
        (["controls.random=[0]"], r"controls.random asks for round 0"),
        (["validation=0"], r"validation: .*greater than or equal to 1"),
    ],
)
def test_what_would_fail_after_hours_fails_at_once(tmp_path, change, message):
    with pytest.raises(OptionError, match=message):
        load_recipe(write(tmp_path, TINY), change)


def test_a_model_that_cannot_take_the_data_is_named_before_training(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY.replace("inputs = 64\nhidden = [12]", "")), ['model="lenet_300_100"'])
    with pytest.raises(OptionError, match=r"'lenet_300_100' takes images of shape \(1, 28, 28\), .* has \(1, 8, 8\)"):
        start(recipe, tmp_path / "out")


def test_more_samples_than_images_are_refused_before_training(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY), ["rounds.samples=5000"])
    with pytest.raises(OptionError, match=r"samples = 5000: data set 'digits' has 1197 training images"):
        start(recipe, tmp_path / "out")


def test_a_seed_given_twice_runs_once(tmp_path):
    assert len(runs(load_recipe(write(tmp_path, TINY)), tmp_path, [0, 0])) == 1
