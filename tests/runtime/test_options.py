import numpy as np
import pytest

native = pytest.importorskip("synaptree.runtime._native")

from synaptree.runtime import options as module  # noqa: E402
from synaptree.runtime import reference  # noqa: E402
from synaptree.runtime.engine import Engine  # noqa: E402
from synaptree.runtime.errors import EngineError  # noqa: E402
from synaptree.runtime.ir import Net, Node  # noqa: E402
from synaptree.runtime.layout import layout  # noqa: E402
from synaptree.runtime.options import options  # noqa: E402

PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def conv(shape, out, kernel, inputs=(0,), density=1.0, residual=None, **own):
    """Return a convolution of random weights that reads a value of this shape."""
    own = {**PLAIN, **own}
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((out, shape[0] // own["groups"], *kernel)).astype(np.float32)
    weight *= rng.random(weight.shape) < density
    size = (
        (axis + 2 * padding - dilation * (tap - 1) - 1) // stride + 1
        for axis, tap, padding, dilation, stride in zip(
            shape[1:], kernel, own["padding"], own["dilation"], own["stride"], strict=True
        )
    )
    bias = rng.standard_normal(out).astype(np.float32)
    return Node("conv", "conv", inputs, (out, *size), weight, bias, own, residual=residual, low=-1.0)


def chain(shape, *layers):
    """Return a network of convolutions, each reading the one before."""
    nodes = []
    for number, layer in enumerate(layers):
        nodes.append(conv(nodes[-1].shape if nodes else shape, inputs=(number,), **layer))
    return Net(shape, tuple(nodes), len(nodes))


NO_KERNEL = {  # what is special -> network
    "stride in groups": chain(
        (6, 9, 8), {"out": 12, "kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "groups": 3}
    ),
    "stride of each channel": chain((40, 9, 9), {"out": 40, "kernel": (3, 3), "stride": (2, 1), "groups": 40}),
    "stride and dilation": chain(
        (8, 12, 12), {"out": 7, "kernel": (3, 3), "stride": (2, 2), "dilation": (2, 1), "density": 0.05}
    ),
    "more outputs than inputs": chain((5, 1, 2), {"out": 4, "kernel": (1, 1), "padding": (2, 2)}),
    "more outputs than inputs, in groups": chain(
        (6, 2, 2), {"out": 4, "kernel": (2, 2), "padding": (2, 1), "groups": 2}, {"out": 3, "kernel": (3, 3)}
    ),
    "one pixel with a border": chain(
        (6, 3, 3), {"out": 6, "kernel": (3, 3), "groups": 2}, {"out": 4, "kernel": (3, 3), "padding": (1, 1)}
    ),
}


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("what", NO_KERNEL)
def test_a_convolution_that_no_kernel_is_made_for_is_computed_all_the_same(what, isa, monkeypatch):
    monkeypatch.setenv("SYNAPTREE_ISA", isa)
    net = NO_KERNEL[what]
    x = np.random.default_rng(1).standard_normal((20, *net.shape)).astype(np.float32)
    engine = Engine(net)
    assert any("last resort" in kernel for kernel in engine.plans[1].kernels)
    wanted = reference.run(net, x)
    np.testing.assert_allclose(engine(x[:1]), wanted[:1], atol=1e-4)
    np.testing.assert_allclose(Engine(net, batch=20)(x), wanted, atol=1e-4)


def test_a_sum_is_added_there_too():
    shape = (6, 9, 9)
    layer = {"kernel": (3, 3), "stride": (2, 2), "groups": 3}
    first = conv(shape, 6, **layer)
    net = Net(shape, (first, conv(shape, 6, **layer, residual=1)), 2)
    x = np.random.default_rng(1).standard_normal((1, *shape)).astype(np.float32)
    np.testing.assert_allclose(Engine(net)(x), reference.run(net, x), atol=1e-4)


def test_a_tiny_image_too_large_to_be_written_out_is_copied(monkeypatch):
    monkeypatch.setattr(module, "UNROLLED_SIZE", 10)
    net = chain((5, 2, 2), {"out": 4, "kernel": (3, 3), "padding": (1, 1)}, {"out": 4, "kernel": (2, 2), "groups": 2})
    x = np.random.default_rng(1).standard_normal((1, 5, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(Engine(net)(x), reference.run(net, x), atol=1e-4)


def test_there_is_a_way_or_an_error_and_never_nothing(monkeypatch):
    monkeypatch.setattr(module, "_last_resort", lambda _: ())
    net = NO_KERNEL["stride in groups"]
    with pytest.raises(EngineError, match="conv 'conv': no kernel computes it"):
        options(net, 1, layout(net, 1), "generic")
    assert options(net, 1, layout(net, 1), "generic", dense=True) == []
