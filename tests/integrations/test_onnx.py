"""Needs the extra `onnx`: `make test-integrations`."""

import pytest
import torch
from torch import nn

from synaptree import build, prune
from synaptree.core.errors import NumericError, SynaptreeError
from synaptree.surgery.compact import compact
from synaptree.train import zoo

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from synaptree.artifact import onnx as exporter  # noqa: E402
from synaptree.artifact.onnx import export_onnx  # noqa: E402

pytestmark = pytest.mark.slow


def outputs(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def test_a_compacted_network_gives_the_same_outputs_in_onnx_runtime_for_any_number_of_samples(tmp_path):
    model, x = zoo.build("mlp", inputs=64, hidden=(100, 50), seed=0), torch.rand(5, 64)
    topology = prune(model, build("magnitude", density=0.02))
    small = compact(model, x, topology=topology).model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    error = export_onnx(small, tmp_path / "m.onnx", x)
    assert 0 <= error < 1e-5
    for samples in (1, 3):
        batch = torch.rand(samples, 64)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(outputs(tmp_path / "m.onnx", batch)[0]), model.eval()(batch))


def test_convolutions_batch_norms_and_two_outputs_are_exported_in_eval_mode(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.norm(self.conv(x)).relu()
            return self.head(y.mean((2, 3))), y

    torch.manual_seed(0)
    model, x = Two().train(), torch.rand(2, 1, 6, 6)
    model(x)
    assert export_onnx(model, tmp_path / "m.onnx", x) < 1e-5
    assert model.training
    with torch.no_grad():
        wanted = model.eval()(x)
    for got, one in zip(outputs(tmp_path / "m.onnx", x), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), one)


def test_what_onnx_cannot_express_is_named_and_the_old_file_stays(tmp_path):
    class Decides(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(SynaptreeError, match="Decides cannot be expressed in ONNX"):
        export_onnx(Decides(), tmp_path / "m.onnx", torch.rand(2, 3))
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("m.onnx", b"old")]


def test_a_file_with_other_outputs_is_not_written(tmp_path, monkeypatch):
    torch.manual_seed(0)
    other = nn.Linear(3, 2)
    export = exporter._export
    monkeypatch.setattr(exporter, "_export", lambda _model, path, x: export(other, path, x))
    with pytest.raises(NumericError, match="differ by up to"):
        export_onnx(nn.Linear(3, 2), tmp_path / "m.onnx", torch.rand(2, 3))
    assert not list(tmp_path.iterdir())


def test_one_sample_is_no_example(tmp_path):
    with pytest.raises(SynaptreeError, match="two samples"):
        export_onnx(nn.Linear(3, 2), tmp_path / "m.onnx", torch.rand(1, 3))


def test_the_command_exports_a_small_file(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from synaptree.artifact.syn import save
    from synaptree.cli.commands import app

    monkeypatch.chdir(tmp_path)
    model = zoo.build("mlp", inputs=64, hidden=(40,), seed=0)
    topology = prune(model, build("magnitude", density=0.03))
    save(model, "m.syn", example_input=torch.rand(2, 1, 8, 8), topology=topology)
    result = CliRunner().invoke(app, ["export", "m.syn", "--onnx", "m.onnx"])
    assert result.exit_code == 0, result.output
    assert "compacted" in result.stdout
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs(tmp_path / "m.onnx", x)[0]), model.eval()(x))


class Squares(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x[:, :, None] * x[:, None]).real


def test_what_is_missing_in_onnx_is_said_without_next_steps(tmp_path):
    with pytest.raises(SynaptreeError, match=r"Squares cannot be expressed in ONNX: .*No ONNX function found for"):
        export_onnx(Squares(), tmp_path / "m.onnx", torch.rand(2, 2))


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"too long: '.*/aaa"):
        export_onnx(nn.Linear(3, 2), tmp_path / ("a" * 300), torch.rand(2, 3))


def test_a_file_that_onnx_runtime_does_not_take_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "_export", lambda _model, path, _x: path.write_bytes(b"no onnx"))
    with pytest.raises(SynaptreeError, match=r"ONNX Runtime does not run Linear: InvalidProtobuf.*nothing was written"):
        export_onnx(nn.Linear(3, 2), tmp_path / "m.onnx", torch.rand(2, 3))
    assert not list(tmp_path.iterdir())
