"""Needs the extra `bench`: `make test-integrations`."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from synaptree.artifact.syn import load, save
from synaptree.core.errors import SynaptreeError
from synaptree.core.oneshot import prune
from synaptree.measure import memory
from synaptree.measure.bench import OURS, bench
from synaptree.measure.contenders import Model, contenders
from synaptree.methods import build
from synaptree.train import zoo

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def images():
    """Return a network of convolutions, its ONNX file made once."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    )
    model(torch.rand(20, *SHAPE))
    return Model(model, SHAPE)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return the file of a sparse network of linear layers."""
    model = zoo.build("mlp", inputs=64, hidden=(40, 30), seed=0)
    topology = prune(model, build("magnitude", density=0.1))
    path = tmp_path_factory.mktemp("digits") / "m.syn"
    save(model, path, example_input=torch.rand(2, 1, 8, 8), topology=topology)
    return path


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_runtime_computes_what_the_network_does_and_reads_its_input_anew(images, samples, threads):
    x = images.inputs(samples)
    [one] = contenders(images, x, threads, ["onnxruntime"])
    np.testing.assert_allclose(one.call(), images.outputs(x), atol=1e-5)
    x += 1
    np.testing.assert_allclose(one.call(), images.outputs(x), atol=1e-5)
    torch.set_num_threads(1)


@pytest.mark.parametrize("samples", [1, 5])
def test_openvino_computes_what_the_network_does_and_reads_its_input_anew(images, samples):
    pytest.importorskip("openvino")
    x = images.inputs(samples)
    [one] = contenders(images, x, 1, ["openvino"])
    np.testing.assert_allclose(one.call(), images.outputs(x), atol=1e-5)
    x += 1
    np.testing.assert_allclose(one.call(), images.outputs(x), atol=1e-5)


def test_onnx_runtime_rounds_linear_layers_to_eight_bits(digits):
    model = Model(digits)
    x = model.inputs(6)
    [one] = contenders(model, x, 1, ["onnxruntime"], "int8")
    off = np.abs(one.call() - model.outputs(x)).max()
    assert one.name == "onnxruntime int8"
    assert 1e-6 < off < 0.1 * np.abs(one.call()).max()


def test_convolutions_stay_as_they_are_in_eight_bits(images):
    x = images.inputs(3)
    [one] = contenders(images, x, 1, ["onnxruntime"], "int8")
    assert np.abs(one.call() - images.outputs(x)).max() < 0.1 * np.abs(one.call()).max()


def test_the_onnx_file_goes_with_its_network():
    model = Model(nn.Sequential(nn.Linear(3, 2)), (3,))
    path = model.onnx()
    assert path.exists()
    assert model.onnx() == path
    del model
    assert not path.parent.exists()


def test_a_library_that_is_not_there_is_named_with_the_extra(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SynaptreeError, match=r"onnxruntime needs onnxruntime: pip install 'synaptree\[bench\]'"):
        contenders(images, images.inputs(1), 1, ["onnxruntime"])


class StandIn:
    """An engine in torch."""

    def __init__(self, file, **_how):
        self.network = load(file)

    def __call__(self, x):
        with torch.inference_mode():
            return self.network(torch.from_numpy(x)).numpy()

    def run(self, x, out):
        out[:] = self(x)


def test_a_benchmark_of_a_sparse_file_has_all_usual_rows(digits):
    pytest.importorskip("openvino")
    found = bench(digits, batches=(1, 4), engine=StandIn, seconds=0.05)
    assert [row.name for row in found.rows] == [*OURS, "onnxruntime", "openvino", "torch"] * 2
    assert all(0 < row.low <= row.seconds <= row.high and row.times > 0 for row in found.rows)
    assert found.best(4).times == 1
    assert {"onnxruntime", "openvino"} <= found.versions.keys()


def test_memory_is_measured_of_runtimes_that_read_onnx(digits):
    model = Model(digits)
    for precision in ("fp32", "int8"):
        assert 1e5 < memory.peak_memory("onnxruntime", digits, model, precision=precision) < 500e6
