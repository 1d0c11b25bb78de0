"""The commands `explain` and `bench` with the engine itself."""

import json
from pathlib import Path

import commands
import pytest
import torch
from commands import call, shows
from torch import nn

from synaptree.artifact.syn import save
from synaptree.core.oneshot import prune
from synaptree.methods import build
from synaptree.train import zoo

pytest.importorskip("synaptree.runtime._native")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "SYNAPTREE_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = zoo.build("mlp", inputs=64, hidden=(32,), seed=0)
    prune(model, build("magnitude", density=0.1))
    save(model, tmp_path / "m.syn", example_input=torch.rand(2, 1, 8, 8))
    return tmp_path / "m.syn"


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A network with an operator that the engine has not got."""
    save(nn.Sequential(nn.Linear(4, 4), nn.GELU()), tmp_path / "gelu.syn", example_input=torch.rand(2, 4))
    return tmp_path / "gelu.syn"


def fails(*words: object) -> str:
    """Return the one sentence in which a command ends, which has written nothing else."""
    said = commands.fails(*words)
    assert said.count("\n") == 1
    assert not call(*words).stdout
    return said


BENCH = ("--against", "torch", "--batch", "1", "--seconds", "0.001")


def test_explain_shows_the_kernel_of_every_layer(file: Path) -> None:
    head, names, *rows = shows("explain", file).splitlines()
    assert head.startswith("batch 1 in 1 block of 1, ")
    assert names.split()[:4] == ["layer", "op", "density", "kernel"]
    assert "dense us" in names
    layers = {row.split()[0]: row for row in rows}
    assert layers.keys() >= {"fc1", "fc2"}
    assert "linear" in layers["fc1"]
    assert "%" in layers["fc1"]


def test_explain_takes_the_samples_and_the_threads_of_a_call(file: Path) -> None:
    assert shows("explain", file, "--batch", 40, "--threads", 2, "--no-dense").startswith("batch 40 in ")


def test_explain_as_json_says_the_same_in_numbers(file: Path) -> None:
    said = json.loads(shows("explain", file, "--json", "--batch", 3))
    assert said["batch"] == 3
    rows = {row["name"]: row for row in said["rows"]}
    assert rows["fc1"]["shape"] == [32]
    assert 0 < rows["fc1"]["density"] < 0.5
    assert rows["fc1"]["microseconds"] > 0
    assert rows["fc1"]["dense_microseconds"] > 0
    said = json.loads(shows("explain", file, "--json", "--no-dense"))
    assert all(row["dense_microseconds"] is None for row in said["rows"])


def test_bench_shows_the_engine_beside_torch(file: Path) -> None:
    said = shows("bench", file, *BENCH)
    assert "m.syn, fp32" in said
    for name in ("engine.run", "engine(x)", "torch"):
        assert f" {name} " in said


def test_bench_writes_its_numbers_as_json(file: Path) -> None:
    shows("bench", file, *BENCH[:-3], "1,3", *BENCH[-2:], "--json", "out/b.json")
    said = json.loads(Path("out/b.json").read_text())
    assert {(row["batch"], row["name"]) for row in said["rows"]} == {
        (batch, name) for batch in (1, 3) for name in ("engine.run", "engine(x)", "torch")
    }
    assert all(row["seconds"] > 0 for row in said["rows"])


def test_bench_takes_a_file_of_eight_bits(tmp_path: Path) -> None:
    save(zoo.build("mlp", inputs=64, hidden=(32,)), "i.syn", values="int8", example_input=torch.rand(2, 64))
    assert "torch int8" in shows("bench", tmp_path / "i.syn", *BENCH)


@pytest.mark.parametrize("command", [("explain",), ("bench", *BENCH)])
@pytest.mark.parametrize("content", [None, b"", b"no such file", "folder"])
def test_what_is_no_syn_file_ends_in_one_sentence(command: tuple[str, ...], content: bytes | str | None) -> None:
    if isinstance(content, bytes):
        Path("bad.syn").write_bytes(content)
    elif content is not None:
        Path("bad.syn").mkdir()
    assert "bad.syn" in fails(command[0], "bad.syn", *command[1:])


@pytest.mark.parametrize("command", [("explain",), ("bench", *BENCH)])
def test_an_operator_the_engine_has_not_got_is_named_with_what_to_do(command: tuple[str, ...], unknown: Path) -> None:
    said = fails(command[0], unknown, *command[1:])
    assert "gelu" in said
    assert "synaptree.sparsify(model)" in said


@pytest.mark.parametrize("command", [("explain",), ("bench", *BENCH)])
def test_a_file_that_does_not_say_what_it_computes_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    save(nn.Linear(2, 2), tmp_path / "bare.syn")
    fails(command[0], "bare.syn", *command[1:])


@pytest.mark.parametrize("command", [("explain",), ("bench", *BENCH)])
def test_an_instruction_set_that_is_not_there_is_refused(
    command: tuple[str, ...], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNAPTREE_ISA", "abacus")
    assert "abacus" in fails(command[0], file, *command[1:])


@pytest.mark.parametrize("option", ["--batch", "--threads"])
@pytest.mark.parametrize("number", ["0", "-3", "few"])
def test_fewer_than_one_sample_or_thread_is_refused(option: str, number: str, file: Path) -> None:
    result = call("explain", file, option, number)
    assert result.exit_code == 2
    assert option in result.stderr
    said = fails("bench", file, "--against", "torch", option, number)
    assert f"{option} {number}: wanted whole numbers above 0" in said


def test_no_time_to_measure_and_unknown_runtimes_are_refused(file: Path) -> None:
    assert "above 0" in fails("bench", file, "--seconds", 0)
    assert "unknown contender in fp32 'tensorflow'" in fails("bench", file, "--against", "tensorflow")
