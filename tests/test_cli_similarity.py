import json
from functools import partial
from pathlib import Path

import commands
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from synaptree.artifact.interchange import save_sparse
from synaptree.cli.commands import app
from synaptree.core.topology import Topology

RECIPE = """
about = "digits"
model = "mlp"
data = "digits"
threads = 1
method = "magnitude"
[model_options]
inputs = 64
hidden = [16]
[dense]
epochs = 1
batch = 64
[rounds]
rounds = 2
"""

# four connections of eight each; the first row in common
A, B = (torch.tensor(rows).bool() for rows in ([[1, 1, 1, 1], [0, 0, 0, 0]], [[1, 1, 0, 0], [1, 1, 0, 0]]))
SEED = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]).bool()


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "SYNAPTREE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def save(path: str | Path, mask: torch.Tensor | None, *, output: bool = False, inputs: int = 4) -> str:
    """Write a network of two layers, fc2 before fc10, the first of which has this mask, and the other a dense one."""
    model, topology = nn.Module(), Topology()
    model.fc2, model.fc10 = nn.Linear(inputs, 2), nn.Linear(2, 3)
    if mask is not None:
        topology.add("fc2.weight", (2, inputs))
        topology.edit({"fc2.weight": mask})
    if output:
        topology.add("fc10.weight", (3, 2))
    save_sparse(model, path, topology)
    return str(path)


shows, fails = (partial(command, "similarity") for command in (commands.shows, commands.fails))


def test_two_files_give_a_row_and_a_verdict() -> None:
    lines = shows(save("a.safetensors", A), save("b.safetensors", B)).splitlines()
    assert lines[:2] == ["1: a.safetensors", "2: b.safetensors"]
    (row,) = [line.split() for line in lines if line.startswith("1-2 ")]
    # 2 of 4 in common, chance 4 * 4 / 8 of 4, no seed, 2 / 6, 4 / 8, agreement 4 of 8 as by chance, unit 0 of 1;
    # units {0123}, {} and {01}, {01} match as (1/2 + 1) / 2
    assert row[:-1] == ["1-2", "0.500", "0.500", "-", "0.333", "0.500", "0.000", "1.000", "0.250"]
    assert "1-2: not clearly above chance: overlap 0.500, chance 0.500" in lines
    assert "left out of the totals: fc10.weight" in lines
    assert max(map(len, lines)) <= 80


def test_three_networks_are_compared_each_with_each_against_a_seed_network() -> None:
    save("s.safetensors", SEED)
    words = (save("a", A), save("b", B), save("c", A), "--seed-net", "s.safetensors", "--json", "deep/out.json")
    lines = shows(*words).splitlines()
    rows = {line.split()[0]: line.split()[1:5] for line in lines if line[0:2] in ("1-", "2-") and ": " not in line}
    assert rows == {
        "1-2": ["0.500", "0.500", "0.250", "0.333"],
        "1-3": ["1.000", "0.500", "0.250", "1.000"],
        "2-3": ["0.500", "0.500", "0.250", "0.333"],
    }
    # the seed has 1, outside it both have 3 of 7 places: (1 + 9 / 7) / 4
    seeded = "seed floor 0.250 (0.571 with independent growth)"
    assert f"1-3: above chance and seed floor: overlap 1.000, chance 0.500, {seeded}" in lines
    report = json.loads(Path("deep/out.json").read_text())
    assert (report["networks"], report["seeds"]) == (["a", "b", "c"], 3 * ["s.safetensors"])
    assert [pair["networks"] for pair in report["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    assert [pair["clear"] for pair in report["pairs"]] == [False, True, False]
    assert report["pairs"][0]["layers"]["fc10.weight"]["overlap"] == 1
    assert report["pairs"][0]["total"]["both"] == 2


def test_a_dense_layer_with_a_mask_is_in_the_totals_unless_excluded() -> None:
    files = save("a", A, output=True), save("b", B, output=True)
    assert "0.800" in shows(*files)  # 2 + 6 of 4 + 6
    assert "dense in both and yet part of the total: fc10.weight" in shows(*files)
    without = shows(*files, "--exclude", "fc10")
    assert "0.800" not in without
    assert "left out of the totals: fc10.weight" in without


def test_a_layer_that_one_file_has_no_mask_for_is_dense_there() -> None:
    shows(save("a", A), save("b", B, output=True), "--json", "out.json")
    (pair,) = json.loads(Path("out.json").read_text())["pairs"]
    assert (pair["excluded"], pair["total"]["a"], pair["total"]["both"]) == ([], 10, 8)
    assert list(pair["layers"]) == ["fc2.weight", "fc10.weight"]
    assert pair["total"]["nnstd"] is not None


def test_folders_of_runs_stand_for_a_round() -> None:
    for run, masks in {"x": (SEED, A, B), "y": (SEED, B, B)}.items():
        for index, mask in enumerate(masks):
            save(f"{run}/round_{index:02d}.safetensors", mask)
    last = shows("x", "y", "--seed-net", "round0")
    assert "2: y/round_02.safetensors" in last
    assert "1-2: above chance and seed floor: overlap 1.000, chance 0.500, seed floor 0.250" in last
    assert "overlap 0.500" in shows("x", "y", "--round", 1)
    assert "overlap 0.500" in shows("x", "y", "--round", 1, "--seed-net", "x/round_00.safetensors")
    assert "overlap 0.500" in shows("x/round_01.safetensors", "y", "--seed-net", "round0")
    save("y/round_00.safetensors", ~SEED)  # another start: nothing in common with that of x
    assert "seed floor 0.000" in shows("x", "y", "--seed-net", "round0")


def test_a_hundredth_round_is_the_last() -> None:
    for index, mask in {0: A, 9: A, 99: A, 100: B}.items():
        save(f"x/round_{index:02d}.safetensors", mask)
    assert "1: x/round_100.safetensors" in shows("x", save("b", B))


@pytest.mark.slow
def test_runs_of_a_recipe_can_be_compared() -> None:
    Path("tiny.toml").write_text(RECIPE)
    words = ["run", "tiny.toml", "--seed", "0", "--seed", "1", "--out", "o"]
    assert CliRunner().invoke(app, words).exit_code == 0
    runs = sorted(Path("o").glob("magnitude-*"))
    out = shows(*runs)
    assert f"1: {runs[0]}/round_02.safetensors" in out
    assert "1-2: " in out
    assert "none of these networks has a mask, they are dense" in fails(*runs, "--round", 0)
    assert f"it has runs within: {runs[0]}, {runs[1]}" in fails("o", "o")


def test_a_dense_seed_network_explains_nothing_and_is_refused() -> None:
    a, b = save("a", A), save("b", ~A)
    whole = save("whole", torch.ones(2, 4).bool())
    assert "the seed network whole is dense" in fails(a, b, "--seed-net", whole)


def test_files_of_different_networks_are_named_with_what_differs() -> None:
    a = save("a", A)
    wide = save("wide", torch.ones(2, 5).bool(), inputs=5)
    assert fails(a, wide).startswith("error: wide: fc2.weight has shape (2, 5), in a it has (2, 4); wanted")
    assert "wide: fc2.weight has shape (2, 5), in a it has (2, 4)" in fails(a, a, "--seed-net", wide)
    other, topology = nn.Linear(4, 2), Topology()
    topology.add("weight", (2, 4))
    save_sparse(other, "other", topology)
    message = "other and a have different weights: fc10.weight only in a; fc2.weight only in a; weight only in other"
    assert message in fails(a, "other")


def test_what_cannot_be_compared_is_named() -> None:
    a = save("a", A)
    Path("empty").mkdir()
    Path("x").mkdir()
    save("x/round_03.safetensors", A)
    Path("text").write_text("no network")
    assert "wanted two networks or more to compare, got 1" in fails(a)
    assert "text: cannot be read as a synaptree file" in fails(a, "text")
    assert "missing: cannot be read as a synaptree file" in fails(a, "missing")
    assert "empty is no folder of a run: it holds no file round_NN.safetensors" in fails(a, "empty")
    assert "x has no round 2, but 3" in fails(a, "x", "--round", 2)
    assert "--round 1 is for folders of runs" in fails(a, a, "--round", 1)
    assert ". is no folder of a run" in fails(a, a, "--seed-net", "round0")
    assert "x has no round 0, but 3" in fails("x", "x", "--seed-net", "round0")
    assert "unknown layer 'fc1'" in fails(a, a, "--exclude", "fc1")
    assert "none of these networks has a mask" in fails(save("c", None), "c")
