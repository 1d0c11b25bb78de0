from pathlib import Path

import pytest
from recorded import a_result, a_round

from synaptree.report.group import entrants, gather, group_name, remarks, tasks
from synaptree.results import Epoch, Result, config_hash, write


def ran(seed: int = 0, control: str | None = None, *, config: dict | None = None, **changes: object) -> Result:
    """A result on LeNet-5 and MNIST; `config` changes its configuration."""
    full = {"model": "lenet5", "model_options": {}, "data": "mnist", "validation": None, "dense": {"epochs": 1}}
    full |= (config or {}) | {"seed": seed, "control": control, "at": "all" if control else None}
    return a_result(seed, control, recipe="lenet5-short", config=full, config_hash=config_hash(full), **changes)


def test_other_models_data_and_test_sets_are_kept_apart() -> None:
    results = [
        ran(), ran(config={"data": "fashion_mnist"}), ran(config={"model_options": {"width": 2}}),
        ran(config={"validation": 100}), ran(test_from="somewhere else"),
    ]  # fmt: skip
    found = tasks(results)
    assert [len(group) for group in found.values()] == [1] * 5
    assert {task.group for task in found} == {"lenet5-mnist", "lenet5-fashion_mnist", "lenet5-width2-mnist"}


def test_test_sets_of_other_sizes_are_kept_apart_and_runs_without_one_join() -> None:
    small = ran(1, rounds=[a_round(0, [1], test_items=500)])
    found = tasks([ran(0), small, ran(2, rounds=[], status="failed")])
    assert {task.test: len(group) for task, group in found.items()} == {
        "the published test set, 1000 images": 1, "the published test set, 500 images": 2,
    }  # fmt: skip


@pytest.mark.parametrize(("data", "test"), [
    ("mnist", "the published test set"), ("cifar10", "a test set that is not recorded"),
    ("folder:photos", "a test set that is not recorded"), ("nobody_knows", "a test set that is not recorded"),
])  # fmt: skip
def test_where_the_test_set_is_from_is_taken_for_granted_only_where_there_is_one(data: str, test: str) -> None:
    (task,) = tasks([ran(config={"data": data})])
    assert task.test == test
    assert task.title == f"{group_name('lenet5', {}, data)}, tested on {test}"


def test_the_number_of_images_for_validation_is_said_where_it_was_chosen() -> None:
    (task,) = tasks([ran(config={"validation": 100})])
    assert task.title.endswith(", 100 images for validation")


def test_a_file_that_cannot_be_read_leaves_the_others_alone(tmp_path: Path) -> None:
    write(ran(), tmp_path)
    good = next(tmp_path.glob("*.json")).read_text()
    (tmp_path / "nan.json").write_text(good.replace('"validation_accuracy": 0.9', '"validation_accuracy": NaN'))
    (tmp_path / "half.json").write_text(good[: len(good) // 2])
    found = gather([tmp_path])
    assert len(found.results) == 1
    assert [note.partition(" is not")[0] for note in found.notes] == [
        f"left out: {tmp_path / 'half.json'}", f"left out: {tmp_path / 'nan.json'}"
    ]  # fmt: skip


def test_of_the_same_run_the_fullest_result_is_taken(tmp_path: Path) -> None:
    whole = a_result(rounds=[a_round(0), a_round(1)])
    for place, result in (("a", a_result(status="failed")), ("b", whole), ("c", a_result(status="interrupted"))):
        write(result, tmp_path / place)
    assert gather([tmp_path]).results == (whole,)
    assert gather([tmp_path / "a", tmp_path / "b"]).notes == ()


def test_a_failed_run_and_a_loss_that_is_no_number_are_told() -> None:
    epochs = [
        Epoch(stage="dense", round=0, epoch=index, step=index, loss=loss, validation_accuracy=0.1, density=1, seconds=1)
        for index, loss in enumerate((0.5, float("nan"), float("inf")))
    ]
    first, second = remarks([ran(status="failed", reason="no space left"), ran(1, epochs=epochs), ran(2)])
    assert first == "lenet5-short, nnrelief, seed 0: failed (no space left); shown: 1 finished round"
    assert second.startswith("lenet5-short, nnrelief, seed 1: from epoch 2 of round 0 on the training loss")


def test_methods_come_before_their_controls_and_are_their_parents() -> None:
    own, control = entrants([ran(0, "random"), ran(1), ran(0)])
    assert (own.name, own.control, len(own.results)) == ("nnrelief", None, 2)
    assert (control.name, control.control, control.parent) == ("nnrelief: random", "random", own)
    assert list(own.dense) == [0, 1]
    assert control.dense == own.dense
    assert entrants([ran(0, "random")])[0].dense == {}


def test_two_configurations_of_a_recipe_never_mix() -> None:
    first, second = entrants([ran(0), ran(1, config={"dense": {"epochs": 3}})])
    assert (first.name, second.name) == ("nnrelief (lenet5-short)", "nnrelief (dense.epochs=3)")
    assert [len(one.results) for one in (first, second)] == [1, 1]


def test_a_network_that_began_sparse_has_no_dense_one_beside_it() -> None:
    (one,) = entrants([ran(rounds=[a_round(0, density=0.05)])])
    assert one.dense == {}
