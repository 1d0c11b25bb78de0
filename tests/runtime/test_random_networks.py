from math import prod

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from synaptree import Engine, save
from synaptree.format.file import read_file
from synaptree.runtime import moves, reference
from synaptree.runtime.layout import layout
from synaptree.runtime.lower import lower
from synaptree.runtime.options import options
from synaptree.runtime.place import FLOAT

_native = pytest.importorskip("synaptree.runtime._native")

SAMPLES = 17
ACTIVATIONS = {
    "relu": F.relu, "relu6": F.relu6, "leaky": lambda x: F.leaky_relu(x, 0.2), "twice": lambda x: 2 * x - 0.5,
}  # fmt: skip


class Drawn(nn.Module):
    """Random layers on random earlier values, and a linear tail that reads one of the last, or none."""

    def __init__(self, draw, shape):
        super().__init__()
        self.draw, self.shapes, self.steps, self.parts = draw, [shape], [], nn.ModuleList()
        for _ in range(draw(st.integers(1, 6))):
            self.add(draw(st.sampled_from(["conv", "conv", "conv", "pool", "norm", "function", "add", "cat"])))
        self.tail = nn.Sequential(*self.linear_tail()) if draw(st.integers(0, 4)) else nn.Identity()
        del self.draw

    def pick(self, fits=lambda _: True):
        """Return the number of a value that fits, late ones first."""
        found = [number for number, shape in enumerate(self.shapes) if fits(shape)]
        return found[-1 - self.draw(st.integers(0, min(2, len(found) - 1)))] if found else None

    def add(self, kind):
        x = self.pick()
        shape, y = self.shapes[x], x
        if kind in ("conv", "pool", "norm"):
            self.parts.append(getattr(self, kind)(shape))
            how = len(self.parts) - 1
            with torch.no_grad():
                out = tuple(self.parts[how].eval()(torch.zeros(1, *shape)).shape[1:])
        elif kind == "function":
            how, out = self.draw(st.sampled_from(list(ACTIVATIONS))), shape
        elif kind == "add":
            how, out, y = "add", shape, self.pick(lambda other: other == shape)
        else:
            y = self.pick(lambda other: other[1:] == shape[1:])
            how, out = "cat", (shape[0] + self.shapes[y][0], *shape[1:])
        if prod(out) <= 1500:
            self.steps.append((how, x, y))
            self.shapes.append(out)

    def pair(self, low, highs):
        return tuple(self.draw(st.integers(low, high)) for high in highs)

    def conv(self, shape):
        channels, *image = shape
        dilation = self.pair(1, (2, 2))
        padding = self.pair(0, (2, 2))
        most = [(size + 2 * p - 1) // d + 1 for size, p, d in zip(image, padding, dilation, strict=True)]
        kernel = self.draw(st.sampled_from([(3, 3), (1, 1), self.pair(1, (5, 5))]))
        kernel = tuple(min(pair) for pair in zip(kernel, most, strict=True))
        groups = self.draw(st.sampled_from([n for n in (1, 1, 2, 3, channels) if channels % n == 0]))
        outs = groups * self.draw(st.integers(1, max(1, 20 // groups)))
        stride, bias = self.draw(st.sampled_from([(1, 1), self.pair(1, (3, 3))])), self.draw(st.booleans())
        return nn.Conv2d(channels, outs, kernel, stride, padding, dilation, groups, bias)

    def pool(self, shape):
        kernel = tuple(min(pair) for pair in zip(self.pair(1, (3, 3)), shape[1:], strict=True))
        how = {"stride": self.pair(1, (3, 3)), "padding": tuple(k // 2 for k in kernel)}
        kinds = [nn.MaxPool2d(kernel, **how, ceil_mode=self.draw(st.booleans())), nn.AvgPool2d(kernel, **how)]
        return self.draw(st.sampled_from([*kinds, nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveMaxPool2d((2, 1))]))

    def norm(self, shape):
        return nn.BatchNorm2d(shape[0])

    def linear_tail(self):
        yield nn.Flatten()
        width = prod(self.shapes[-1])
        for out in self.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)):
            yield nn.Linear(width, out, bias=self.draw(st.booleans()))
            yield nn.ReLU()
            width = out
        yield nn.Softmax(1)

    def forward(self, x):
        values = [x]
        for how, first, second in self.steps:
            if isinstance(how, int):
                values.append(self.parts[how](values[first]))
            elif how in ACTIVATIONS:
                values.append(ACTIVATIONS[how](values[first]))
            elif how == "add":
                values.append(values[first] + values[second])
            else:
                values.append(torch.cat([values[first], values[second]], 1))
        return self.tail(values[-1])


def thinned(model, draw):
    """Leave some connections, of some outputs, of each layer; give norms statistics of their own."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.data
            by_kernel = (*weight.shape[:2], *(1,) * (weight.dim() - 2))
            shape = draw(st.sampled_from([weight.shape, by_kernel]))
            there = torch.rand(len(weight), *(1,) * (weight.dim() - 1)) < draw(st.sampled_from([0.6, 1.0]))
            weight *= (torch.rand(shape) < draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))) & there
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2.0)
    return model.eval()


@st.composite
def networks(draw):
    """Return a network and the shape of a sample."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    shape = (draw(st.integers(1, 8)), *(draw(st.integers(1, 13)) for _ in range(2)))
    return thinned(Drawn(draw, shape), draw), shape


def close(got, wanted, what=""):
    scale = np.abs(wanted).max() + 1e-6
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got / scale, wanted / scale, atol=2e-5, err_msg=what)


patiently = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)  # fmt: skip


def filed(model, shape, folders):
    path = folders.mktemp("random") / "net.syn"
    save(model, path, example_input=torch.randn(2, *shape))
    return read_file(path)


def put(isa, arena, place, x):
    """Put samples into the arena."""
    moves.enter(isa, place).run(arena, x=x.reshape(len(x), -1))


@patiently
@given(networks())
def test_an_engine_computes_what_a_random_network_does(tmp_path_factory, case):
    model, shape = case
    file, x = filed(model, shape, tmp_path_factory), torch.randn(SAMPLES, *shape)
    with torch.no_grad():
        wanted = model(x).numpy()
    for batch in (1, SAMPLES):
        close(Engine(file, batch=batch, budget=0.05)(x[:batch].numpy()), wanted[:batch], f"at batch {batch}")


@patiently
@given(networks(), st.sampled_from(_native.isas()), st.sampled_from([1, 16, 32]))
def test_every_way_to_compute_a_layer_gives_the_same(tmp_path_factory, case, isa, lanes):
    net = lower(filed(case[0], case[1], tmp_path_factory))
    where = layout(net, lanes)
    ways = [options(net, number, where, isa) for number in range(1, len(net.nodes) + 1)]
    scratch = max((way.scratch for several in ways for way in several), default=0)
    arena = _native.Arena(where.bytes + scratch)
    x = torch.randn(lanes, *net.shape).numpy()
    put(isa, arena, where.places[0], x)
    values = [x]
    for number, (node, several) in enumerate(zip(net.nodes, ways, strict=True), 1):
        y = np.ascontiguousarray(reference.compute(node, *(values[read] for read in node.reads)))
        values.append(y)
        for way in several:
            put(isa, arena, where.places[number], np.full_like(y, np.nan))
            arena.floats[where.bytes // FLOAT :] = 0
            for step in way.make(where.bytes):
                step.run(arena)
            got = np.empty_like(y)
            moves.leave(isa, where.places[number]).run(arena, y=got.reshape(lanes, -1))
            close(got, y, f"{node.op} {node.name} by {way.kernel} on {isa} in {lanes} lanes")
