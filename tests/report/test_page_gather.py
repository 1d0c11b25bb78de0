import os
import shutil
from pathlib import Path

import pytest
from recorded import a_result

from synaptree.core.errors import DataError
from synaptree.report.page.experiments import by_data, experiments
from synaptree.report.page.gather import Found, gather
from synaptree.results import PROGRESS, write, write_progress


def found(**changes) -> Found:
    return Found(a_result(**changes), Path("r.json"), 0.0)


def test_a_run_found_twice_counts_once_and_with_its_networks(tmp_path):
    file = write(a_result(), tmp_path / "runs" / "a")
    (file.parent / "round_00.safetensors").write_bytes(b"")
    copy = tmp_path / "copies" / file.name
    copy.parent.mkdir()
    shutil.copy(file, copy)
    os.utime(copy, (2e9, 2e9))
    (run,) = gather([tmp_path]).runs
    assert run.round_file(0) == file.parent / "round_00.safetensors"
    assert run.round_file(1) is None
    assert gather([file, copy, tmp_path / "runs"]).runs == [run]


def test_what_is_no_result_is_left_out_of_a_folder_in_words_and_refused_by_name(tmp_path):
    write(a_result(), tmp_path)
    foreign, damaged = tmp_path / "package.json", tmp_path / "cut.json"
    foreign.write_text('{"name": "left-pad"}')
    damaged.write_text('{"schema_version": 1, "recipe"')
    gathered = gather([tmp_path])
    assert len(gathered.runs) == 1
    assert [sentence.partition(" is not a result")[0] for sentence in gathered.left_out] == [str(damaged), str(foreign)]
    with pytest.raises(DataError, match=r"package\.json is not a result of schema version 1"):
        gather([foreign])


def test_a_folder_without_results_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"no runs in .*neither a result .* nor the sign of a run at work"):
        gather([tmp_path])
    with pytest.raises(DataError, match=r"nowhere.json cannot be read: No such file"):
        gather([tmp_path / "nowhere.json"])


def test_the_later_of_a_sign_of_work_and_a_result_counts(tmp_path):
    old = write(a_result(status="interrupted", reason="asked to stop"), tmp_path)
    sign = write_progress(a_result(status="running", reason=None), tmp_path)
    os.utime(old, (1000, 1000))
    assert [run.result.status for run in gather([tmp_path]).runs] == ["running"]
    os.utime(sign, (500, 500))
    assert [run.result.status for run in gather([tmp_path]).runs] == ["interrupted"]
    assert (tmp_path / PROGRESS).exists()


def test_a_method_and_its_controls_belong_together_and_other_configurations_apart():
    runs = [
        found(
            config={"data": "mnist", "dense": {"lr": lr}, "seed": seed, "control": control}, control=control, seed=seed
        )
        for lr in (0.1, 0.2) for control in (None, "random") for seed in (0, 1)
    ]  # fmt: skip
    first, second = experiments(runs)
    assert (first.title, second.title) == (
        "lenet5: nnrelief (dense.lr = 0.1)", "lenet5: nnrelief (dense.lr = 0.2)"
    )  # fmt: skip
    assert [len(one.runs) for one in (first, second)] == [4, 4]
    assert (first.detailed.result.control, first.detailed.result.seed) == (None, 0)


def test_runs_of_different_data_sets_are_kept_apart():
    runs = [found(config={"data": "mnist"}), found(config={"data": "digits"}), found(config={})]
    assert list(by_data(runs)) == ["mnist", "digits", "no data set named"]


def test_a_control_that_was_asked_for_otherwise_before_stands_apart():
    runs = [
        Found(a_result(config={"at": at}, control=control, seed=seed), Path("r.json"), written)
        for control, at, seed, written in (
            (None, None, 0, 1.0), ("random", [1], 0, 1.0), ("random", "all", 0, 3.0), ("random", "all", 1, 2.0),
        )
    ]  # fmt: skip
    now, before = experiments(runs)
    assert [run.result.config["at"] for run in now.runs] == [None, "all", "all"]
    assert (before.title, len(before.runs)) == ("lenet5: nnrelief (at = [1])", 1)
    assert len(now.rows) == 2
