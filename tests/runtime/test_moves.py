import itertools

import numpy as np
import pytest

_native = pytest.importorskip("synaptree.runtime._native")

from synaptree.runtime.moves import copy, enter, leave, native, split  # noqa: E402
from synaptree.runtime.place import FLOAT, Place, place  # noqa: E402

ISAS = _native.isas()
SHAPES = [(1, 1, 1), (37, 1, 1), (784, 1, 1), (3, 5, 7), (2, 16, 16), (5, 8, 8), (4, 3, 33), (1, 1, 40), (600, 1, 1)]
BORDERS = [(0, 0), (1, 1), (2, 3), (1, 0), (0, 2)]


def positions(p: Place) -> np.ndarray:
    """Floats from the arena's start to every element, of shape (channels, height, width, lanes)."""
    c, i, j, lane = np.ogrid[: p.channels, : p.height, : p.width, : p.lanes]
    return p.at // FLOAT + p.first + c * p.plane + i * p.pitch + j * p.lanes + lane


def arena_for(*places: Place, fill: float = 0.0) -> "_native.Arena":
    arena = _native.Arena(max(p.end for p in places))
    arena.floats[:] = fill
    return arena


def untouched(arena: "_native.Arena", before: np.ndarray, *written: Place) -> bool:
    """Whether nothing but the elements of these places has changed."""
    after, expected = arena.floats.copy(), before.copy()
    for p in written:
        expected[positions(p)] = after[positions(p)]
    return np.array_equal(after, expected, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 16, 32, 64])
def test_samples_come_in_and_go_out_as_they_were_and_lanes_without_one_are_zero(isa, lanes):
    rng = np.random.default_rng(lanes)
    for shape, (top, left) in itertools.product(SHAPES, BORDERS):
        if shape[0] > 100 and top:
            continue
        p = place(shape, lanes, top, left, at=128)
        arena = arena_for(p, fill=7.0)
        for samples in {lanes, max(1, lanes // 2 - 1)}:
            x = rng.standard_normal((samples, int(np.prod(shape)))).astype(np.float32)
            before = arena.floats.copy()
            enter(isa, p).run(arena, x=x)
            got = arena.floats[positions(p)]
            np.testing.assert_array_equal(got[..., :samples], x.T.reshape(*shape, samples))
            assert not got[..., samples:].any()
            assert untouched(arena, before, p)
            y = np.full_like(x, np.nan)
            before = arena.floats.copy()
            leave(isa, p).run(arena, y=y)
            np.testing.assert_array_equal(y, x)
            np.testing.assert_array_equal(arena.floats, before)


@pytest.mark.parametrize("isa", ISAS)
def test_arrays_of_the_caller_may_begin_at_any_float_and_nothing_beside_them_is_written(isa):
    rng = np.random.default_rng(0)
    for lanes, start, samples in itertools.product([1, 16, 32], [0, 1, 7, 15, 16], [1, 11, 16, 30]):
        if samples > lanes:
            continue
        shape = (3, 10, 11)
        p, size = place(shape, lanes, 1, 1), samples * 330
        arena, memory = arena_for(p), rng.standard_normal(size + 64).astype(np.float32)
        x = memory[start : start + size].reshape(samples, 330)
        enter(isa, p).run(arena, x=x)
        np.testing.assert_array_equal(arena.floats[positions(p)][..., :samples], x.T.reshape(*shape, samples))
        out = np.full(size + 64, 5.0, np.float32)
        leave(isa, p).run(arena, y=out[start : start + size].reshape(samples, 330))
        np.testing.assert_array_equal(out[start : start + size].reshape(samples, 330), x)
        assert (np.delete(out, range(start, start + size)) == 5).all()


@pytest.mark.parametrize("isa", ISAS)
def test_two_samples_of_two_features_lie_feature_by_feature(isa):
    p = place((2, 1, 1), 16)
    arena = arena_for(p)
    enter(isa, p).run(arena, x=np.array([[1, 2], [3, 4]], np.float32))
    np.testing.assert_array_equal(arena.floats[:3], [1, 3, 0])
    np.testing.assert_array_equal(arena.floats[16:19], [2, 4, 0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 16, 32])
def test_a_copy_goes_behind_other_channels_and_changes_borders(isa, lanes):
    rng = np.random.default_rng(1)
    for shape, one, two in itertools.product([(3, 5, 7), (2, 16, 16), (40, 1, 1), (1, 8, 20)], BORDERS, BORDERS):
        x = place(shape, lanes, *one)
        y = place((shape[0] + 3, *shape[1:]), lanes, *two, at=x.end)
        arena = arena_for(x, y)
        values = rng.standard_normal((*shape, lanes)).astype(np.float32)
        arena.floats[positions(x)] = values
        before = arena.floats.copy()
        copy(isa, x, y, 2).run(arena)
        before[positions(y)[2 : 2 + shape[0]]] = values
        np.testing.assert_array_equal(arena.floats, before)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 16, 64])
def test_an_image_becomes_flat_and_flat_becomes_an_image(isa, lanes):
    rng = np.random.default_rng(2)
    for (c, h, w), border in itertools.product([(3, 5, 7), (2, 16, 16), (4, 2, 1)], BORDERS):
        image = place((c, h, w), lanes, *border)
        flat = place((c * h * w + 5, 1, 1), lanes, at=image.end)
        back = place((c + 1, h, w), lanes, 1, 2, at=flat.end)
        part = place((c * h * w, 1, 1), lanes, at=flat.at + 5 * lanes * FLOAT)
        arena = arena_for(image, flat, back)
        values = rng.standard_normal((c, h, w, lanes)).astype(np.float32)
        arena.floats[positions(image)] = values
        before = arena.floats.copy()
        copy(isa, image, flat, 5).run(arena)
        np.testing.assert_array_equal(arena.floats[positions(part)].reshape(c, h, w, lanes), values)
        assert untouched(arena, before, part)
        before = arena.floats.copy()
        copy(isa, part, back, 1).run(arena)
        np.testing.assert_array_equal(arena.floats[positions(back)][1:], values)
        assert not arena.floats[positions(back)][0].any()
        assert untouched(arena, before, back)


def split_by_hand(x, shape, stride, padding):
    y = np.zeros(shape, np.float32)
    channels = len(x)
    for k, i, j in np.ndindex(*shape):
        phase, c = divmod(k, channels)
        row = i * stride[0] + phase // stride[1] - padding[0]
        column = j * stride[1] + phase % stride[1] - padding[1]
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            y[k, i, j] = x[c, row, column]
    return y


@pytest.mark.parametrize("isa", ISAS)
def test_split_gives_every_stride_th_row_and_column_a_plane(isa):
    rng = np.random.default_rng(3)
    sizes = [((2, 9, 37), (5, 19)), ((1, 5, 5), (6, 40)), ((3, 16, 16), (8, 8)), ((1, 70, 70), (18, 36))]
    for (shape, size), stride, padding in itertools.product(
        sizes, [(1, 1), (2, 2), (4, 4), (1, 2), (3, 3)], [(0, 0), (1, 1), (3, 2)]
    ):
        x = place(shape, 1, 1, 1)
        y = place((shape[0] * stride[0] * stride[1], *size), 1, 1, 2, at=x.end)
        arena = arena_for(x, y)
        values = rng.standard_normal(shape).astype(np.float32)
        arena.floats[positions(x)[..., 0]] = values
        before = arena.floats.copy()
        split(isa, x, y, stride, padding).run(arena)
        expected = split_by_hand(values, (y.channels, *size), stride, padding)
        np.testing.assert_array_equal(arena.floats[positions(y)[..., 0]], expected)
        assert untouched(arena, before, y)


def test_a_convolution_of_stride_two_is_one_of_stride_one_after_split():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    rng = np.random.default_rng(4)
    values, weight = rng.standard_normal((3, 9, 12)), rng.standard_normal((4, 3, 3, 3))
    expected = F.conv2d(torch.tensor(values)[None], torch.tensor(weight), stride=2, padding=1)[0].numpy()
    x = place((3, 9, 12), 1)
    y = place((12, expected.shape[1] + 1, expected.shape[2] + 1), 1, 1, 1, at=x.end)
    arena = arena_for(x, y)
    arena.floats[positions(x)[..., 0]] = values
    split(ISAS[-1], x, y, (2, 2), (1, 1)).run(arena)
    thin = np.zeros((4, 12, 2, 2))
    for o, c, ky, kx in np.ndindex(*weight.shape):
        thin[o, (ky % 2 * 2 + kx % 2) * 3 + c, ky // 2, kx // 2] = weight[o, c, ky, kx]
    planes = torch.tensor(arena.floats[positions(y)[..., 0]].astype(np.float64))
    np.testing.assert_allclose(F.conv2d(planes[None], torch.tensor(thin))[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_numbers_are_carried_bit_by_bit(isa):
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, -1e-39], np.float32)
    for lanes in (1, 16):
        x, samples = place((6, 1, 1), lanes), np.tile(values, (lanes, 1))
        y = place((6, 1, 1), lanes, at=x.end)
        arena, out = arena_for(x, y), np.zeros_like(samples)
        enter(isa, x).run(arena, x=samples)
        copy(isa, x, y).run(arena)
        leave(isa, y).run(arena, y=out)
        np.testing.assert_array_equal(out.view(np.uint32), samples.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
def test_long_values_are_carried_in_chunks(isa):
    p = place((600, 1, 1), 16)
    steps = enter(isa, p), leave(isa, p)
    assert all(step.chunks == 3 for step in steps)
    assert enter(isa, place((6000, 1, 1), 1)).chunks == 6


def test_places_and_moves_that_do_not_fit_are_refused():
    isa = ISAS[0]
    with pytest.raises(ValueError, match="channels 3 to the last of 4 x 2 x 2 in 1 lanes to take all of x"):
        copy(isa, place((2, 2, 2), 1), place((4, 2, 2), 1), 3)
    for x, y in [((2, 2, 2), (2, 2, 3)), ((7, 1, 1), (4, 2, 1)), ((2, 2, 2), (7, 1, 1))]:
        with pytest.raises(ValueError, match="copy: wanted"):
            copy(isa, place(x, 1), place(y, 1))
        with pytest.raises(ValueError, match="copy: wanted"):
            _native.copy(isa, native(place(x, 1)), native(place(y, 1)))
    with pytest.raises(ValueError, match="copy: wanted"):
        copy(isa, place((2, 2, 2), 1), place((2, 2, 2), 16))
    with pytest.raises(ValueError, match="split: wanted 8 channels of one lane for stride"):
        split(isa, place((2, 8, 8), 1), place((4, 4, 4), 1), (2, 2))
    for options in [
        {"plane": 3}, {"pitch": 1}, {"channels": 0}, {"lanes": 3}, {"at": -4}, {"at": 2}, {"plane": 2**39},
        {"height": 2**30, "pitch": 2**39},
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="place"):
            _native.Place(**{"at": 0, "channels": 2, "height": 2, "width": 2, "plane": 4, "pitch": 2} | options)
    with pytest.raises(ValueError, match="instruction set"):
        enter("mmx", place((2, 2, 2), 1))
    with pytest.raises(ValueError, match="the arena has"):
        copy(isa, place((2, 2, 2), 1), place((2, 2, 2), 1, at=4096)).run(_native.Arena(64))
