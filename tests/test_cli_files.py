import json
from pathlib import Path

import pytest
import torch
from commands import call, fails, shows
from safetensors.torch import load_file
from torch import nn

from synaptree.artifact.interchange import load_into, save_dense, save_sparse
from synaptree.artifact.syn import load, load_topology, save
from synaptree.core.oneshot import prune
from synaptree.methods import build
from synaptree.train import zoo

RECIPE = """
about = "digits"
model = "mlp"
data = "digits"
threads = 1
method = "magnitude"
[model_options]
inputs = 64
hidden = [32]
[dense]
epochs = 2
batch = 64
[rounds]
rounds = 2
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "SYNAPTREE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two rounds."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "r.toml").write_text(RECIPE)
    result = call("run", folder / "r.toml", "--out", folder / "out", "--seed", 0)
    assert result.exit_code == 0, result.output
    (found,) = (folder / "out").glob("magnitude-s0-*")
    return found


def sparse_mlp(seed: int = 0, density: float = 0.1) -> nn.Module:
    model = zoo.build("mlp", inputs=64, hidden=(16,), seed=seed)
    prune(model, build("magnitude", density=density))
    return model


def test_a_run_is_packed_with_its_topology_and_measured_on_its_data(run_folder: Path) -> None:
    said = shows("pack", run_folder, "m.syn", "--values", "int8")
    assert "units removed; outputs equal to within" in said
    assert "test accuracy on digits: " in said
    network, topology = load("m.syn"), load_topology("m.syn")
    assert topology is not None
    assert topology.density() < 0.5  # twice 0.5, of what compaction left
    model = zoo.build("mlp", inputs=64, hidden=(32,))
    load_into(model, run_folder / "round_02.safetensors")
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model.eval()(x), atol=0.05, rtol=0.05)


def test_a_round_before_the_last_may_be_packed(run_folder: Path) -> None:
    shows("pack", run_folder, "whole.syn", "--round", 0, "--no-compact")
    shows("pack", run_folder, "last.syn", "--no-compact")
    assert Path("last.syn").stat().st_size < Path("whole.syn").stat().st_size


def test_inspect_says_where_the_bytes_go(run_folder: Path) -> None:
    shows("pack", run_folder, "m.syn", "--values", "int8")
    said = shows("inspect", "m.syn")
    assert "model: mlp inputs=64 hidden=[32]" in said
    assert "run: r/magnitude-s0/round_02" in said
    assert "ranges of values, by number: 0: " in said
    assert "data: digits" in said
    assert "topology: 2 masks" in said
    assert "steps from x (samples, " in said or "steps from input (samples, " in said
    assert "fc1.weight" in said
    report = json.loads(shows("inspect", "m.syn", "--json"))
    assert report["total"] == Path("m.syn").stat().st_size
    assert report["dense"] > report["total"]
    assert {row["name"] for row in report["rows"]} >= {"fc1.weight", "fc1.bias", "fc2.weight"}


def test_unpack_gives_back_the_weights_bit_for_bit(run_folder: Path) -> None:
    shows("pack", run_folder, "m.syn", "--no-compact")
    assert "4 tensors" in shows("unpack", "m.syn", "m.safetensors")
    tensors = load_file("m.safetensors")
    model = zoo.build("mlp", inputs=64, hidden=(32,))
    load_into(model, run_folder / "round_02.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(tensors[name], value)


def test_unpack_sparse_keeps_the_topology(run_folder: Path) -> None:
    shows("pack", run_folder, "m.syn", "--no-compact")
    shows("unpack", "m.syn", "s.safetensors", "--sparse")
    model = zoo.build("mlp", inputs=64, hidden=(32,))
    topology = load_into(model, "s.safetensors")
    stored = load_topology("m.syn")
    assert stored is not None
    assert topology.digest() == stored.digest()


def test_a_file_that_no_run_wrote_wants_a_model(run_folder: Path) -> None:
    save_dense(sparse_mlp(), "plain.safetensors")
    assert "--model" in fails("pack", "plain.safetensors", "m.syn")
    said = shows(
        "pack", "plain.safetensors", "m.syn", "--model", "mlp", "--option", "inputs=64", "--option", "hidden=[16]"
    )
    assert "nothing says which data it is for; name it with --on" in said
    said = shows(
        "pack", "plain.safetensors", "m.syn", "--model", "mlp", "--option", "inputs=64", "--option", "hidden=[16]",
        "--on", "digits",
    )  # fmt: skip
    assert "test accuracy on digits" in said
    assert "--option goes with --model" in fails("pack", run_folder, "m.syn", "--option", "inputs=64")


def test_what_cannot_be_packed_leaves_the_old_file(run_folder: Path) -> None:
    Path("m.syn").write_bytes(b"old")
    save_dense(nn.Linear(2, 2), "other.safetensors")
    fails("pack", "other.safetensors", "m.syn", "--model", "mlp")
    fails("pack", run_folder, "m.syn", "--round", 7)
    fails("pack", run_folder, "m.syn", "--on", "mnist")  # not laid out here
    fails("pack", run_folder, "m.syn", "--no-compact", "--fold-norms")
    fails("pack", "missing.safetensors", "m.syn", "--model", "mlp")
    assert "--round 1 is for the folder of a run" in fails("pack", "other.safetensors", "m.syn", "--round", 1)
    assert Path("m.syn").read_bytes() == b"old"


@pytest.mark.parametrize("command", [("inspect",), ("unpack", "out.safetensors"), ("export", "--onnx", "out.onnx")])
@pytest.mark.parametrize("content", [None, b"", b"no such file", "folder"])
def test_what_is_no_syn_file_ends_in_one_sentence(command: tuple[str, ...], content: bytes | str | None) -> None:
    if isinstance(content, bytes):
        Path("bad.syn").write_bytes(content)
    elif content is not None:
        Path("bad.syn").mkdir()
    assert "bad.syn" in fails(command[0], "bad.syn", *command[1:])
    assert not Path("out.safetensors").exists()
    assert not Path("out.onnx").exists()


def test_a_file_without_a_program_is_unpacked_and_inspected_but_not_exported() -> None:
    model = sparse_mlp()
    save(model, "m.syn")
    assert "the file does not say" in shows("inspect", "m.syn")
    shows("unpack", "m.syn", "m.safetensors")
    assert load_file("m.safetensors").keys() == model.state_dict().keys()
    assert "load_into" in fails("export", "m.syn", "--onnx", "m.onnx")
    assert "holds no topology" in fails("unpack", "m.syn", "s.safetensors", "--sparse")


def test_batch_norms_are_folded_on_request() -> None:
    model = zoo.build("vgg_small", width=2, seed=0)
    topology = prune(model, build("kernel_norm", cut=0.5))
    save_sparse(model, "m.safetensors", topology)
    words = ["pack", "m.safetensors", "m.syn", "--model", "vgg_small", "--option", "width=2"]
    shows(*words)
    assert any(isinstance(m, nn.BatchNorm2d) for m in load("m.syn").modules())
    shows(*words, "--fold-norms")
    folded = load("m.syn")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model.eval()(x), atol=1e-4, rtol=1e-4)


def test_no_command_overwrites_what_it_reads(run_folder: Path) -> None:
    shows("pack", run_folder, "m.syn")
    before = Path("m.syn").read_bytes()
    for words in (("pack", "m.syn", "m.syn"), ("unpack", "m.syn", "./m.syn"), ("export", "m.syn", "--onnx", "m.syn")):
        assert "m.syn is what is read" in fails(*words)
    assert Path("m.syn").read_bytes() == before


def test_a_file_that_says_what_it_computes_is_packed_again(run_folder: Path) -> None:
    shows("pack", run_folder, "fp32.syn")
    said = shows("pack", "fp32.syn", "int8.syn", "--values", "int8")
    assert "test accuracy on digits" in said  # the file says which data it is for
    assert Path("int8.syn").stat().st_size < Path("fp32.syn").stat().st_size
    assert "data: digits" in shows("inspect", "int8.syn")


def test_data_to_measure_on_is_not_what_it_was_trained_on(run_folder: Path) -> None:
    fails("pack", run_folder, "m.syn", "--on", "fashion_mnist")  # not laid out here
    shows("pack", run_folder, "m.syn", "--on", "digits")
    assert "data: digits" in shows("inspect", "m.syn")


def test_other_json_beside_a_run_does_not_matter(run_folder: Path) -> None:
    (run_folder / "aaa.json").write_text("{}")
    try:
        shows("pack", run_folder, "m.syn")
    finally:
        (run_folder / "aaa.json").unlink()


def test_texts_of_strangers_are_no_commands_to_the_terminal() -> None:
    save(sparse_mlp(), "m.syn", about={"note": "red\x1b[31m\nmodel: forged"})
    said = shows("inspect", "m.syn")
    assert r"note: red\x1b[31m\nmodel: forged" in said
    assert "\x1b" not in said
    assert "\nmodel: forged" not in said


def test_without_compaction_nothing_is_said_of_it(run_folder: Path) -> None:
    assert "compacted" not in shows("pack", run_folder, "m.syn", "--no-compact")
