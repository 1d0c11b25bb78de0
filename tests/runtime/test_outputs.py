import numpy as np
import pytest

pytest.importorskip("synaptree.runtime._native")

from synaptree.runtime import _native
from synaptree.runtime.outputs import Variant, conv, linear, variants
from synaptree.runtime.place import Place, place


def window(arena: _native.Arena, p: Place) -> np.ndarray:
    """The elements of a place with one lane, as a view that can be written to."""
    first = arena.floats[p.at // 4 + p.first :]
    shape, strides = (p.channels, p.height, p.width), (4 * p.plane, 4 * p.pitch, 4)
    return np.lib.stride_tricks.as_strided(first, shape, strides)


def plain(weight, bias, x, stride, padding, dilation):
    """One multiplication after the other."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding[0],) * 2, (padding[1],) * 2))
    sizes = zip(padded.shape[1:], dilation, weight.shape[2:], stride, strict=True)
    height, width = ((size - d * (k - 1) - 1) // s + 1 for size, d, k, s in sizes)
    y = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for k in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            rows = slice(k * dilation[0], k * dilation[0] + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (width - 1) * stride[1] + 1, stride[1])
            y += np.einsum("oc,cij->oij", weight[:, :, k, j].astype(np.float64), padded[:, rows, columns])
    return y


def check(isa, shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1), density=1.0, every=()):
    outputs, channels, height, width, kernel = shape
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((outputs, channels, *kernel)) * (rng.random((outputs, channels, *kernel)) < density)
    weight, bias = weight.astype(np.float32), rng.standard_normal(outputs).astype(np.float32)
    values = rng.standard_normal((channels, height, width)).astype(np.float32)
    wanted = plain(weight, bias, values, stride, padding, dilation)
    tolerance = 1e-5 * (plain(abs(weight), abs(bias), abs(values), stride, padding, dilation) + 3)
    x = place((channels, height, width), 1, *padding)
    residual = place(wanted.shape, 1, at=x.end)
    y = place(wanted.shape, 1, 1, 1, at=residual.end)
    arena = _native.Arena(y.end)
    window(arena, x)[:] = values
    window(arena, residual)[:] = added = rng.standard_normal(wanted.shape)
    before = arena.floats.copy()
    for variant in every or variants(weight, x, y):
        for place_added, sum_added in ((None, 0.0), (residual, added)):
            window(arena, y)[:] = 7
            options = {"stride": stride, "padding": padding, "dilation": dilation, "residual": place_added}
            conv(isa, weight, bias, x, y, low=-0.5, high=1.5, variant=variant, **options).run(arena)
            error = abs(window(arena, y) - np.clip(wanted + sum_added, -0.5, 1.5))
            assert (error <= tolerance).all(), (variant, error.max())
            window(arena, y)[:] = 0
            np.testing.assert_array_equal(arena.floats, before)


EVERY = [Variant(p, v) for p, v in ((1, 1), (1, 3), (1, 8), (4, 1), (4, 4), (6, 2), (6, 4), (8, 3))]


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((20, 3, 8, 8, (3, 3)), {"padding": (1, 1)}),
        ((70, 5, 9, 7, (3, 3)), {"padding": (1, 1), "stride": (2, 2)}),
        ((16, 2, 11, 13, (5, 3)), {"padding": (2, 1), "stride": (3, 1), "dilation": (1, 2)}),
        ((33, 7, 5, 5, (1, 1)), {}),
        ((33, 7, 6, 6, (1, 1)), {"stride": (2, 2), "density": 0.02}),
        ((1, 1, 4, 5, (2, 2)), {"stride": (1, 2)}),
        ((130, 4, 2, 2, (3, 3)), {"padding": (1, 1)}),
        ((40, 3, 4, 4, (3, 3)), {"padding": (1, 1), "density": 0.0}),
    ],
)
def test_convolutions_of_every_kind(isa, shape, options):
    check(isa, shape, **options)
    check(isa, shape, **options, every=EVERY)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("shape", [(1, 1), (10, 100), (100, 300), (300, 37), (129, 5), (16, 64)])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_linear_layers(isa, shape, density):
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)
    bias, values = (rng.standard_normal(size).astype(np.float32) for size in shape)
    x, y = place((shape[1], 1, 1), 1), place((shape[0], 1, 1), 1, at=8192)
    arena = _native.Arena(y.end)
    window(arena, x)[:, 0, 0] = values
    wanted = weight.astype(np.float64) @ values + bias
    tolerance = 1e-5 * (abs(weight) @ abs(values) + abs(bias))
    for variant in [Variant(1, vectors) for vectors in range(1, 9)]:
        linear(isa, weight, bias, x, y, low=0.0, variant=variant).run(arena)
        assert (abs(window(arena, y)[:, 0, 0] - np.maximum(wanted, 0)) <= tolerance).all()
    assert not arena.floats[y.at // 4 + y.channels :].any()


def test_a_linear_layer_reads_planes_in_their_order():
    x, y = place((2, 2, 3), 1, 1, 1), place((1, 1, 1), 1, at=4096)
    arena = _native.Arena(y.end)
    window(arena, x)[:] = np.arange(12).reshape(2, 2, 3)
    weight = 10.0 ** -np.arange(12, dtype=np.float32)[None]
    linear("generic", weight, None, x, y, variant=Variant(1, 1)).run(arena)
    assert window(arena, y).item() == pytest.approx(0.12345679011, rel=1e-6)


def test_numbers_by_hand():
    x, y = place((1, 2, 4), 1), place((2, 1, 2), 1, at=4096)
    arena = _native.Arena(y.end)
    window(arena, x)[:] = [[[1, 2, 3, 4], [5, 6, 7, 8]]]
    weight = np.array([[[[1, 0], [0, 1]]], [[[0, 0], [10, 0]]]], np.float32)
    bias = np.array([0, 1], np.float32)
    for variant in variants(weight, x, y):
        conv("generic", weight, bias, x, y, stride=(2, 2), high=60.0, variant=variant).run(arena)
        assert window(arena, y).tolist() == [[[7, 11]], [[51, 60]]]


@pytest.mark.parametrize("isa", _native.isas())
def test_what_is_not_a_number_stays_so_and_tiny_numbers_are_numbers(isa):
    x, y = place((2, 1, 1), 1), place((2, 1, 1), 1, at=4096)
    arena = _native.Arena(y.end)
    window(arena, x)[:] = 1e-40
    weight = np.ones((2, 2), np.float32)
    linear(isa, weight, np.array([0, np.nan], np.float32), x, y, low=0.0, high=1.0, variant=Variant(1, 8)).run(arena)
    assert window(arena, y)[0, 0, 0] == pytest.approx(2e-40, rel=1e-4)
    assert np.isnan(window(arena, y)[1, 0, 0])


def test_shapes_that_do_not_fit_are_refused():
    weight = np.ones((4, 3, 3, 3), np.float32)
    x, y = place((3, 8, 8), 1, 1, 1), place((4, 8, 8), 1, at=8192)
    variant = Variant(6, 1)
    conv("generic", weight, None, x, y, padding=(1, 1), variant=variant)
    with pytest.raises(ValueError, match="weight is"):
        conv("generic", weight[:2], None, x, y, padding=(1, 1), variant=variant)
    with pytest.raises(ValueError, match="border"):
        conv("generic", weight, None, place((3, 8, 8), 1), y, padding=(1, 1), variant=variant)
    with pytest.raises(ValueError, match="output is 6 x 6"):
        conv("generic", weight, None, x, y, variant=variant)
    with pytest.raises(ValueError, match="1 lane"):
        conv("generic", weight, None, place((3, 8, 8), 16, 1, 1), y, padding=(1, 1), variant=variant)
    with pytest.raises(ValueError, match="tiles of"):
        conv("generic", weight, None, x, y, padding=(1, 1), variant=Variant(5, 1))
    with pytest.raises(ValueError, match="weight is"):
        linear("generic", weight[0, 0], None, x, y, variant=variant)


def raw(**changes):
    given = {
        "isa": "generic", "x": {"at": 0, "channels": 3, "plane": 1}, "y": {"at": 64, "channels": 20, "plane": 1},
        "registers": np.array([0, 1, 2], np.int32), "start": np.array([0, 1, 3], np.int32),
        "offset": np.array([0, 1, 2], np.int32),
        "weight": np.ones((3, 16), np.float32), "bias": np.ones(32, np.float32), "low": 0.0, "high": 1.0, "pixels": 1,
    }  # fmt: skip
    given |= changes
    return _native.outputs(**{name: _native.Place(**v) if isinstance(v, dict) else v for name, v in given.items()})


@pytest.mark.parametrize(
    "changes",
    [
        {"registers": np.array([0, 2], np.int32)},
        {"registers": np.array([0, 0, 2], np.int32)},
        {"registers": np.array([0, 1, 3], np.int32)},
        {"start": np.array([0, 4, 3], np.int32)},
        {"start": np.array([0, 1, 2], np.int32)},
        {"offset": np.array([-1, 1, 2], np.int32)},
        {"weight": np.ones((3, 15), np.float32)},
        {"bias": np.ones(20, np.float32)},
        {"stride_down": 0},
        {"pixels": 0},
        {"y": {"at": -4, "channels": 20, "plane": 1}},
        {"residual": {"at": 0, "channels": 19, "plane": 1}},
    ],
)
def test_arrays_and_places_that_do_not_fit_are_refused(changes):
    raw()
    with pytest.raises(ValueError, match=r"."):
        raw(**changes)


def test_reads_beyond_the_arena_are_refused():
    with pytest.raises(ValueError, match="bytes"):
        raw(offset=np.array([0, 1, 1 << 20], np.int32)).run(_native.Arena(4096))
