import numpy as np
import pytest

_native = pytest.importorskip("synaptree.runtime._native")

from synaptree.runtime.place import place  # noqa: E402
from synaptree.runtime.quantise import bytes_place, floats_place, leave_rows, quantise  # noqa: E402

each_isa = pytest.mark.parametrize("isa", _native.isas())


def bytes_of(arena, value) -> np.ndarray:
    flat = arena.floats.view(np.uint8)
    return flat[value.at : value.at + value.samples * value.pitch].reshape(value.samples, value.pitch)


def reference(x: np.ndarray, scale: np.float32) -> np.ndarray:
    return np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127) + 128


@each_isa
@pytest.mark.parametrize("features", [1, 15, 16, 33, 784])
@pytest.mark.parametrize("samples", [1, 5])
def test_the_callers_samples_become_bytes(isa, features, samples):
    x = np.random.default_rng(features).normal(size=(samples, features)).astype(np.float32)
    y = bytes_place(features, samples, at=64)
    arena = _native.Arena(y.end)
    arena.floats[:] = 1.0
    before = arena.floats.view(np.uint8).copy()
    quantise(isa, features, y, scale=0.02).run(arena, x=x)
    got = bytes_of(arena, y)
    assert np.array_equal(got[:, :features], reference(x, np.float32(0.02)))
    got[:, :features] = before[y.at : y.at + samples * y.pitch].reshape(samples, y.pitch)[:, :features]
    assert np.array_equal(arena.floats.view(np.uint8), before)


@each_isa
def test_halves_go_to_the_even_number_and_far_values_to_the_ends(isa):
    x = np.array(
        [[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127, 128, 1e30, np.inf, -128, -128.5, -129, -np.inf, 0, 1e-40]], np.float32
    )
    y = bytes_place(16, 1)
    arena = _native.Arena(y.end)
    quantise(isa, 16, y, scale=1.0).run(arena, x=x)
    assert bytes_of(arena, y)[0, :16].tolist() == [
        128,
        130,
        130,
        128,
        126,
        254,
        255,
        255,
        255,
        255,
        0,
        0,
        0,
        0,
        128,
        128,
    ]


@each_isa
@pytest.mark.parametrize("features", [3, 16, 50])
def test_a_scale_that_is_not_known_is_that_of_the_largest_input_of_all_samples(isa, features):
    x = np.random.default_rng(1).normal(size=(4, features)).astype(np.float32)
    x[2, features - 1] = -9
    y = bytes_place(features, 6, at=64)
    arena = _native.Arena(y.end)
    quantise(isa, features, y, scale_at=0).run(arena, x=x)
    scale = np.float32(9) / np.float32(127)
    assert arena.floats[0] == scale
    assert np.array_equal(bytes_of(arena, y)[:4, :features], reference(x, scale))
    assert not bytes_of(arena, y)[4:].any()  # samples that this run has not got


@each_isa
def test_nothing_but_zeros_has_a_scale_of_one(isa):
    y = bytes_place(20, 1, at=64)
    arena = _native.Arena(y.end)
    quantise(isa, 20, y, scale_at=0).run(arena, x=np.zeros((1, 20), np.float32))
    assert arena.floats[0] == 1
    assert (bytes_of(arena, y)[0, :20] == 128).all()


@each_isa
def test_values_of_the_arena_become_bytes(isa):
    x = np.arange(-10, 11, dtype=np.float32)
    one = place((21, 1, 1), 1, at=64)
    many = floats_place(21, 3, at=one.end)
    y = bytes_place(21, 1, at=many.end)
    ys = bytes_place(21, 3, at=y.end)
    arena = _native.Arena(ys.end)
    arena.floats[16:37] = x
    rows = arena.floats[many.at // 4 :][: 3 * many.pitch].reshape(3, -1)
    rows[:, :21] = x * np.array([[1], [2], [3]])
    quantise(isa, one, y, scale=1).run(arena)
    assert (bytes_of(arena, y)[0, :21] == x + 128).all()
    quantise(isa, many, ys, scale=1).run(arena, x=np.zeros((3, 1), np.float32))
    assert (bytes_of(arena, ys)[:, :21] == rows[:, :21] + 128).all()


@each_isa
def test_rows_leave_as_the_caller_wants_them(isa):
    value = floats_place(5, 4, at=64)
    arena = _native.Arena(value.end)
    rows = arena.floats[16:][: 4 * value.pitch].reshape(4, -1)
    rows[:] = np.arange(rows.size).reshape(rows.shape)
    y = np.zeros((3, 5), np.float32)
    leave_rows(isa, value).run(arena, y=y)
    assert np.array_equal(y, rows[:3, :5])


@each_isa
def test_what_does_not_fit_is_refused(isa):
    y = bytes_place(20, 2)
    with pytest.raises(ValueError, match="scale or scale_at"):
        quantise(isa, 20, y)
    with pytest.raises(ValueError, match="scale or scale_at"):
        quantise(isa, 20, y, scale=1, scale_at=0)
    with pytest.raises(ValueError, match="positive"):
        quantise(isa, 20, y, scale=0.0)
    with pytest.raises(ValueError, match="does not fit"):
        quantise(isa, 21, y, scale=1)
    with pytest.raises(ValueError, match="does not fit"):
        quantise(isa, place((20, 1, 1), 1), y, scale=1)
    with pytest.raises(ValueError, match="not flat"):
        quantise(isa, place((20, 1, 1), 16), y, scale=1)
    with pytest.raises(ValueError, match="the arena has"):
        quantise(isa, 20, y, scale=1).run(_native.Arena(64), x=np.zeros((2, 20), np.float32))
    with pytest.raises(ValueError, match="a row behind the other"):
        _native.leave_rows(isa, from_=0, from_pitch=4, features=5, samples=2)
