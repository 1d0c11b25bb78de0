"""What eight bits cost on real images."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from synaptree import Engine, build, prune, save
from synaptree.artifact.build import network as runnable
from synaptree.artifact.describe import described
from synaptree.artifact.ranges import activation_ranges
from synaptree.format.file import read_file
from synaptree.runtime import engine as module
from synaptree.runtime.integers import LEVELS, computable
from synaptree.runtime.lower import lower
from synaptree.train import zoo
from synaptree.train.data import load, sample, verify
from synaptree.train.loop import TrainOptions, train
from synaptree.train.network import Network

pytest.importorskip("synaptree.runtime._native")
pytestmark = [pytest.mark.needs_data, pytest.mark.slow]

TRAINED, TESTED = 8000, 2000  # images
HALF_BIAS = 2.0**-11  # of the largest: what fp16 is off by at most


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return a tenth of LeNet-300-100, its file of eight bits, test images, and their labels."""
    root = Path(os.environ.get("SYNAPTREE_DATA", "data"))
    if any(one.state != "ok" for one in verify("mnist", root)):
        pytest.skip(f"mnist is not laid out under {root} (set SYNAPTREE_DATA)")
    data = load("mnist", root)
    data = replace(data, train=sample(data.train, TRAINED, seed=0), validation=sample(data.validation, 100, seed=0))
    network, options = Network(zoo.build("lenet_300_100", seed=0)), TrainOptions(epochs=2, batch=50)
    list(train(network, data, options, seed=0))
    prune(network.model, build("magnitude", density=0.1), topology=network.topology)
    list(train(network, data, options, seed=0))
    model, file = network.model.eval(), tmp_path_factory.mktemp("packed") / "net.syn"
    seen = data.normalise(sample(data.train, 512, seed=0).x)
    ranges = activation_ranges(runnable(*described(model, seen[:4])).eval(), seen.split(64))
    save(model, file, values="int8", example_input=seen[:4], topology=network.topology, ranges=ranges)
    test = sample(data.test, TESTED, seed=0)
    x = data.normalise(test.x)
    return model.requires_grad_(False), file, x.numpy(), test.y.numpy()


def accuracy(y, labels):
    return 100 * (y.argmax(1) == labels).mean()


@pytest.fixture
def whole(packed, monkeypatch):
    """Return what makes an engine that computes in whole numbers, whether that is the fastest or not."""

    def make(batch):
        monkeypatch.setattr(module, "_PLANS", {})
        monkeypatch.setattr(module, "_ways", lambda batch, _: [f"int8 {min(batch, 64)}"])
        return Engine(packed[1], batch=batch)

    return make


def in_whole_numbers(file, x):
    """Return the outputs by the arithmetic of the file: bytes in, whole numbers within, one scale for each unit."""
    net, h = lower(read_file(file)), x.reshape(len(x), -1)
    assert computable(net)
    for node in net.nodes:
        if node.op == "linear":
            step = np.float32(node.ranges[0] / LEVELS)
            codes = np.clip(np.rint(h * (1 / step)), -128, 127)
            sums = codes.astype(np.int64) @ node.integers.T.astype(np.int64)
            h = np.clip(node.scales * step * sums + node.bias, node.low, node.high).astype(np.float32)
    return h


def most_off(model, net, x):
    """Return how far outputs of eight bits may be off, from how far weights and values may."""
    ranges = iter(node.ranges[0] for node in net.nodes if node.op == "linear")
    h, off = x.reshape(len(x), -1), np.zeros(1)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        weight, bias, limit = layer.weight.numpy(), layer.bias.numpy(), next(ranges)
        half = np.abs(weight).max(1, keepdims=True) / LEVELS / 2 * (weight != 0)
        beyond = np.maximum(np.abs(h) + off - limit, 0)  # which is cut off
        into = off + limit / LEVELS / 2 + beyond
        off = into @ (np.abs(weight) + half).T + np.abs(h) @ half.T + HALF_BIAS * np.abs(bias).max()
        h = h @ weight.T + bias
        h = h if layer is layers[-1] else np.maximum(h, 0)
    return off


@pytest.mark.parametrize("batch", [1, 50])
def test_accuracy_stays_within_half_a_point(packed, batch, whole):
    model, file, x, labels = packed
    wanted = accuracy(model(torch.from_numpy(x)).numpy(), labels)
    assert wanted > 85  # else there is nothing to lose
    for engine in (Engine(file, batch=batch), whole(batch)):
        y = np.concatenate([engine(part) for part in np.split(x, TESTED // batch)])
        assert abs(accuracy(y, labels) - wanted) <= 0.5


@pytest.mark.parametrize("batch", [1, 50])
def test_outputs_are_off_by_no_more_than_weights_and_values_may_be(packed, whole, batch):
    model, file, x, _ = packed
    engine = whole(batch)
    assert all(kernel.startswith("int8") for kernel in engine.plans[batch].kernels[1:-1])
    y = np.concatenate([engine(part) for part in np.split(x, TESTED // batch)])
    wanted = model(torch.from_numpy(x)).numpy()
    off = np.abs(y - wanted)
    assert (off <= most_off(model, lower(read_file(file)), x)).all()
    assert np.quantile(off, 0.99) < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("batch", [1, 50])
def test_outputs_are_those_of_the_files_own_arithmetic(packed, whole, batch):
    _, file, x, _ = packed
    y, wanted = whole(batch)(x[:batch]), in_whole_numbers(file, x[:batch])
    np.testing.assert_allclose(y, wanted, atol=5e-3 * np.abs(wanted).max())  # a half may round either way
