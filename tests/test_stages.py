from pathlib import Path

import pytest

from synaptree.core.errors import OptionError
from synaptree.experiment import runs, start
from synaptree.recipe import load_recipe
from synaptree.results import read
from synaptree.stages import programme_stages
from synaptree.train.programme import Measure, Renew, Train

ROOT = Path(__file__).parents[1]

TINY = """
model = "mlp"
data = "digits"
method = "strategic_synthesis"
threads = 1
[model_options]
inputs = 64
hidden = [12]
[dense]
epochs = 2
batch = 300
lr = 1e-2
"""

DEVELOP = """
[controls]
random = [3]
rewound = [3]
[[programme]]
stage = "train"
name = "dense"
[[programme]]
stage = "renew"
[[programme]]
stage = "seed"
method = "strategic_synthesis"
method_options = { seed_density = 0.1, capacity = 0.3 }
[[programme]]
stage = "grow"
method = "strategic_synthesis"
method_options = { seed_density = 0.1, capacity = 0.3, grow_fraction = 0.5 }
options = { epochs = 3 }
[[programme]]
stage = "repeat"
times = 2
[[programme.programme]]
stage = "prune"
name = "relieve"
method = "nnrelief"
samples = 100
[[programme]]
stage = "rewind"
[[programme]]
stage = "prune_until"
method = "iterative_magnitude"
method_options = { cut = 0.3, allocate = "present" }
fails = 1
"""

SWEEP = """
[sweep]
alpha = [0.25, 0.5]
[controls]
random = [2]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def test_a_programme_of_every_kind_runs_and_each_stage_says_what_was_born_and_died(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY + DEVELOP))
    own, random, rewound = start(recipe, tmp_path / "out")
    assert [part.stage for part in own.rounds] == ["dense", "seed", "grow", "relieve", "relieve", "prune_until"]
    assert [part.round for part in own.rounds] == [0, 1, 2, 3, 4, 5]
    # the hidden layer has 64 x 12 = 768 places: 77 of them at first, the output layer's 120 stay
    assert [part.weights_alive for part in own.rounds[:2]] == [888, 77 + 120]
    grown = own.rounds[2]
    assert (grown.born, grown.died) == (grown.weights_alive - 197, 0)
    for before, after in zip(own.rounds[2:], own.rounds[3:], strict=False):
        assert after.born == 0
        assert after.weights_alive <= before.weights_alive
    assert {epoch.stage for epoch in own.epochs} == {"dense", "grow", "relieve", "prune_until"}
    assert all(part.test_accuracy is not None for part in own.rounds)
    for control in (random, rewound):
        assert control.rounds[-1].layers == pytest.approx(own.rounds[3].layers)


def test_tables_that_leave_nothing_to_measure_end_no_round(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY + DEVELOP))
    stages = programme_stages(recipe.programme, recipe.dense)
    assert sum(isinstance(stage, Measure) for stage in stages) == 6 == recipe.count + 1
    assert isinstance(stages[2], Renew)
    assert [stage.options.epochs for stage in stages if isinstance(stage, Train)] == [2, 2, 2]


@pytest.mark.slow
def test_a_sweep_trains_once_for_each_value_from_the_initial_weights(tmp_path):
    text = TINY.replace("strategic_synthesis", "dynamic_synaptic") + SWEEP
    text += "[method_options]\nevery = 2\nfirst = 1\npatience = 1\n"
    recipe = load_recipe(write(tmp_path, text))
    own, random = start(recipe, tmp_path / "out")
    assert [part.round for part in own.rounds] == [0, 1, 2]
    assert 1 > own.rounds[1].density > own.rounds[2].density
    assert random.rounds[0].layers == pytest.approx(own.rounds[2].layers)


@pytest.mark.parametrize(("text", "message"), [
    ("[[programme]]\nstage = 'teach'\n", "programme.*'teach'"),
    ("[[programme]]\nstage = 'train'\nepochs = 3\n", "epochs"),
    ("[[programme]]\nstage = 'train'\noptions = { epoks = 3 }\n", "epoks"),
    ("[[programme]]\nstage = 'prune'\nmethod = 'magnitud'\n", "unknown method 'magnitud'; did you mean 'magnitude'"),
    ("[sweep]\ncapacity = []\n", "sweep.capacity: wanted values of one option"),
    ("[sweep]\ncapacity = [0.3]\nevery = [2]\n", "wanted values of one option"),
    ("[sweep]\ncapacity = [0.3]\n[[programme]]\nstage = 'train'\n", "a programme or sweep, not both"),
    ("[sweep]\ncapacity = [0.01]\n", "at most the capacity"),
    ("programme = []\n", "programme"),
    ("[controls]\nrandom = [1]\n[[programme]]\nstage = 'seed'\nmethod = 'set'\n", "controls start from the dense"),
    ("[[programme]]\nstage = 'prune'\nmethod = 'rigl'\n", "stage 'prune': rigl acts in training"),
    ("[[programme]]\nstage = 'seed'\nmethod = 'magnitude'\n", "magnitude does not start sparse"),
    ("[[programme]]\nstage = 'grow'\nmethod = 'rigl'\n", "stage 'grow': rigl acts in training"),
    ("[controls]\nrandom = [1, 1]\n", "controls.random asks for a round twice"),
    ("[method_options]\ncapacity = 0.3\n[[programme]]\nstage = 'train'\n", "a programme or method_options, not both"),
])  # fmt: skip
def test_what_cannot_be_run_is_refused_when_the_recipe_is_read(tmp_path, text, message):
    with pytest.raises(OptionError, match=message):
        load_recipe(write(tmp_path, TINY + text))


@pytest.mark.parametrize("name", ["lenet_300_100-short", "lenet5-short", "lenet_300_100-epochs30-short"])
def test_recorded_results_are_those_of_the_recipes_as_they_are(name, tmp_path):
    recorded = [result for result in read([ROOT / "results"]) if result.recipe == name and result.method == "nnrelief"]
    recipe = load_recipe(ROOT / "recipes" / "nnrelief" / f"{name}.toml")
    assert recorded
    assert {result.config_hash for result in recorded if result.control is None} <= {
        run.hash for run in runs(recipe, tmp_path) if run.control is None
    }


def test_the_recipes_in_the_documents_are_valid(tmp_path):
    blocks = (ROOT / "docs" / "recipes.md").read_text().split("```toml\n")[1:]
    first, rounds, in_training, programme, controls = (block.partition("```")[0] for block in blocks)
    for form in (rounds + controls, in_training, programme):
        top, tables = form.partition("[[")[::2]
        text = top + first + (f"\n[[{tables}" if tables else "")
        assert load_recipe(write(tmp_path, text)).count >= 1


def test_a_value_of_a_stage_can_be_set_from_the_command_line(tmp_path):
    path = write(tmp_path, TINY + DEVELOP)
    recipe = load_recipe(path, ["programme.3.options.epochs=7", "programme.4.times=1"])
    assert recipe.programme[3].options == {"epochs": 7}
    assert recipe.count == 4
    for wrong in ("programme.99.options.epochs=1", "programme.x=1", "programme.0=1"):
        with pytest.raises(OptionError, match="--set"):
            load_recipe(path, [wrong])


def test_a_control_of_a_sweep_starts_anew_at_every_point(tmp_path):
    text = TINY.replace("strategic_synthesis", "rigl") + "[method_options]\nevery = 2\nlast = 4\n"
    text += "[sweep]\ndensity = [0.1, 0.5]\n[controls]\nmagnitude = 'all'\n"
    recipe = load_recipe(write(tmp_path, text))
    own, magnitude = start(recipe, tmp_path / "out")
    assert [part.density for part in own.rounds[1:]] == pytest.approx([0.1, 0.5], abs=0.01)
    assert [part.density for part in magnitude.rounds] == pytest.approx([0.1, 0.5], abs=0.01)
