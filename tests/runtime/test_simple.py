import itertools
from math import inf

import numpy as np
import pytest

_native = pytest.importorskip("synaptree.runtime._native")
torch = pytest.importorskip("torch")

from synaptree.runtime.place import FLOAT, LANES, Place, place  # noqa: E402
from synaptree.runtime.simple import (  # noqa: E402
    adaptive_avg_pool,
    adaptive_max_pool,
    add,
    affine,
    avg_pool,
    clamp,
    leaky,
    log_softmax,
    max_pool,
    prelu,
    shortcut,
    softmax,
)

F = torch.nn.functional
ISAS = _native.isas()
LANES_TRIED = (1, LANES, 2 * LANES)
SHAPES = [(3, 8, 8), (1, 5, 7), (2, 3, 37), (37, 1, 1), (1100, 1, 1), (1, 1, 1), (2, 16, 16)]


def positions(p: Place) -> np.ndarray:
    """Floats from the arena's start to every element, of shape (lanes, channels, height, width)."""
    lane, c, i, j = np.ogrid[: p.lanes, : p.channels, : p.height, : p.width]
    return p.at // FLOAT + p.first + c * p.plane + i * p.pitch + j * p.lanes + lane


def run(step_of, xs, shape, borders, **options):
    """What a step gives for values of shape (lanes, channels, height, width); nothing else may be written."""
    places, end = [], 64
    for x, border in zip(xs, itertools.cycle(borders[1:])):
        places.append(place(x.shape[1:], len(x), *border, at=end))
        end = places[-1].end
    y = place(shape, len(xs[0]), *borders[0], at=end)
    arena = _native.Arena(y.end)
    for p, x in zip(places, xs, strict=True):
        arena.floats[positions(p)] = x
    before = arena.floats.copy()
    step_of(*places, y, **options).run(arena)
    got = arena.floats[positions(y)]
    after = arena.floats.copy()
    after[positions(y)] = before[positions(y)]
    np.testing.assert_array_equal(after, before)
    return got


def cases(seed, shapes=SHAPES):
    """Every instruction set, number of lanes and shape, with borders and values."""
    rng = np.random.default_rng(seed)
    borders = [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 1), (0, 3)), ((0, 2), (1, 0))]
    for number, (isa, lanes, shape) in enumerate(itertools.product(ISAS, LANES_TRIED, shapes)):
        if np.prod(shape) * lanes > 6000:
            continue
        for border in (borders[0], borders[1 + number % 3]):
            size = (lanes, *shape)
            yield isa, border, shape, lambda size=size: rng.standard_normal(size).astype(np.float32)


def on(step_of, isa):
    return lambda *args, **options: step_of(isa, *args, **options)


def test_clamp_keeps_values_between_two_numbers():
    for isa, borders, shape, values in cases(0):
        x = values()
        for low, high in [(-inf, inf), (0, inf), (-0.5, 0.25), (0.5, 1.0)]:
            got = run(on(clamp, isa), [x], shape, borders, low=low, high=high)
            np.testing.assert_array_equal(got, np.clip(x, np.float32(low), np.float32(high)))


def test_sums_of_one_to_eight_values_are_clamped():
    for isa, borders, shape, values in cases(1):
        for count in (2, 8):
            xs = [values() for _ in range(count)]
            got = run(lambda *places, isa=isa: add(isa, places[:-1], places[-1], -1, 2), xs, shape, borders)
            np.testing.assert_allclose(got, np.clip(sum(x.astype(np.float64) for x in xs), -1, 2), atol=1e-5)


def test_slopes_of_negative_values_are_one_or_one_per_channel():
    rng = np.random.default_rng(2)
    for isa, borders, shape, values in cases(2):
        x, slope = values(), rng.standard_normal(shape[0]).astype(np.float32)
        expected = F.prelu(torch.tensor(x), torch.tensor(slope)).numpy()
        np.testing.assert_array_equal(run(on(prelu, isa), [x], shape, borders, slope=slope), expected)
        expected = F.leaky_relu(torch.tensor(x), 0.125).numpy()
        np.testing.assert_array_equal(run(on(leaky, isa), [x], shape, borders, slope=0.125), expected)
        one = np.full(1, 0.125, np.float32)
        np.testing.assert_array_equal(run(on(prelu, isa), [x], shape, borders, slope=one), expected)


def test_affine_scales_and_shifts_every_channel():
    rng = np.random.default_rng(3)
    for isa, borders, shape, values in cases(3):
        x = values()
        scale, shift = rng.standard_normal((2, shape[0])).astype(np.float32)
        got = run(on(affine, isa), [x], shape, borders, scale=scale, shift=shift, low=0.0, high=1.5)
        wide = x.astype(np.float64) * scale[:, None, None] + shift[:, None, None]
        np.testing.assert_allclose(got, np.clip(wide, 0, 1.5), atol=1e-5)


def test_in_place_gives_the_same():
    for isa, lanes, shape in itertools.product(ISAS, LANES_TRIED, [(3, 5, 7), (40, 1, 1)]):
        p = place(shape, lanes, 1, 1)
        x = np.random.default_rng(4).standard_normal((lanes, *shape)).astype(np.float32)
        ones = np.ones(shape[0], np.float32)
        steps = {
            "clamp": clamp(isa, p, p, 0.0),
            "add": add(isa, [p, p], p),
            "leaky": leaky(isa, p, p, 0.5),
            "affine": affine(isa, p, p, ones, ones),
            "softmax": softmax(isa, p, p),
        }
        expected = {
            "clamp": np.maximum(x, 0),
            "add": x + x,
            "leaky": np.where(x < 0, x / 2, x),
            "affine": x + 1,
            "softmax": torch.softmax(torch.tensor(x), 1).numpy(),
        }
        for name, step in steps.items():
            arena = _native.Arena(p.end)
            arena.floats[positions(p)] = x
            step.run(arena)
            np.testing.assert_allclose(arena.floats[positions(p)], expected[name], rtol=1e-5, err_msg=name)


POOLS = [
    # kernel, stride, padding, dilation, ceil_mode
    ((2, 2), (2, 2), (0, 0), (1, 1), False),
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 3), (2, 2), (0, 0), (1, 1), True),
    ((3, 2), (1, 1), (1, 1), (1, 1), False),
    ((2, 3), (3, 4), (1, 0), (1, 1), True),
    ((3, 3), (1, 2), (1, 1), (2, 2), False),
    ((2, 5), (2, 1), (1, 2), (2, 1), True),
    ((1, 6), (1, 6), (0, 3), (1, 1), True),
    ((5, 5), (1, 1), (2, 2), (1, 1), False),
]
IMAGES = [(3, 8, 8), (1, 5, 7), (2, 5, 37), (1, 16, 16), (1, 9, 70)]


def test_max_pools_are_those_of_torch():
    for isa, borders, _, values in cases(5, IMAGES):
        x = values() - 3  # below the zeros of the borders
        for kernel, stride, padding, dilation, ceil in POOLS:
            pool = torch.nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
            expected = pool(torch.tensor(x)).numpy()
            options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
            got = run(on(max_pool, isa), [x], expected.shape[1:], borders, **options)
            np.testing.assert_array_equal(got, expected)


def test_average_pools_are_those_of_torch():
    for isa, borders, _, values in cases(6, IMAGES):
        x = values()
        for number, (kernel, stride, padding, dilation, ceil) in enumerate(POOLS):
            if dilation != (1, 1):
                continue
            include, divisor = bool(number % 2), 7 if number == 3 else None
            pool = torch.nn.AvgPool2d(kernel, stride, padding, ceil, include, divisor)
            expected = pool(torch.tensor(x, dtype=torch.float64)).numpy()
            options = {"kernel": kernel, "stride": stride, "padding": padding, "divisor": divisor}
            got = run(on(avg_pool, isa), [x], expected.shape[1:], borders, count_include_pad=include, **options)
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_adaptive_pools_are_those_of_torch_for_any_size():
    for isa, borders, shape, values in cases(7, IMAGES):
        x = values() - 1
        for size in [(1, 1), (3, 5), (8, 8), (11, 40)]:
            wide = torch.tensor(x, dtype=torch.float64)
            got = run(on(adaptive_avg_pool, isa), [x], (shape[0], *size), borders)
            np.testing.assert_allclose(got, F.adaptive_avg_pool2d(wide, size).numpy(), atol=1e-5)
            got = run(on(adaptive_max_pool, isa), [x], (shape[0], *size), borders)
            np.testing.assert_array_equal(got, F.adaptive_max_pool2d(torch.tensor(x), size).numpy())


def test_pools_clamp_what_they_give():
    x = np.arange(-8, 8, dtype=np.float32).reshape(1, 1, 4, 4)
    options = {"kernel": (2, 2), "stride": (2, 2), "low": 0.0, "high": 4.0}
    for isa, lanes in itertools.product(ISAS, (1, LANES)):
        xs = [np.repeat(x, lanes, 0)]
        got = run(on(max_pool, isa), xs, (1, 2, 2), [(0, 0), (0, 0)], **options)
        np.testing.assert_array_equal(got[0, 0], [[0, 0], [4, 4]])
        got = run(on(avg_pool, isa), xs, (1, 2, 2), [(0, 0), (0, 0)], **options)
        np.testing.assert_array_equal(got[-1, 0], [[0, 0], [2.5, 4]])


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_a_number_stays_so(isa):
    for lanes, shape in itertools.product((1, LANES), [(2, 5, 40), (2, 6, 6), (70, 1, 1)]):
        x = np.random.default_rng(8).standard_normal((lanes, *shape)).astype(np.float32)
        x[0, 1, 0, 0] = np.nan
        borders = [(1, 1), (1, 1)]
        ones = np.ones(shape[0], np.float32)
        for step_of, options in [
            (clamp, {"low": 0.0, "high": 1.0}),
            (leaky, {"slope": 0.1}),
            (affine, {"scale": ones, "shift": ones, "low": 0.0, "high": 1.0}),
            (shortcut, {"scale": ones, "low": 0.0, "high": 1.0}),
        ]:
            got = run(on(step_of, isa), [x], shape, borders, **options)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(x))
        for step_of in (softmax, log_softmax):
            got = run(on(step_of, isa), [x], shape, borders)
            np.testing.assert_array_equal(np.isnan(got).any(1), np.isnan(x).any(1))
            assert np.isnan(got[0, :, 0, 0]).all()
        if shape[1] > 1:
            got = run(on(max_pool, isa), [x], shape, borders, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
            expected = F.max_pool2d(torch.tensor(x), 3, 1, 1).numpy()
            np.testing.assert_array_equal(got, expected)
            got = run(on(adaptive_max_pool, isa), [x], (2, 1, 1), borders)
            np.testing.assert_array_equal(got, F.adaptive_max_pool2d(torch.tensor(x), 1).numpy())


def test_softmax_and_its_logarithm_run_over_the_channels():
    rng = np.random.default_rng(9)
    for isa, borders, shape, values in cases(9):
        x = values() * np.float32(rng.choice([0.1, 3, 40]))
        wide = torch.tensor(x, dtype=torch.float64)
        got = run(on(softmax, isa), [x], shape, borders)
        np.testing.assert_allclose(got, torch.softmax(wide, 1).numpy(), rtol=1e-5, atol=1e-44)
        got = run(on(log_softmax, isa), [x], shape, borders)
        np.testing.assert_allclose(got, torch.log_softmax(wide, 1).numpy(), rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_the_exponential_is_right_to_the_last_digits_for_all_differences(isa):
    parts = [np.linspace(0, 87, 3000), np.linspace(87, 103.9, 500), [110, 1e4, 3e38, inf]]
    x = -np.concatenate(parts).astype(np.float32)
    for layout in (x.reshape(1, -1, 1, 1), np.repeat(x.reshape(1, -1, 1, 1), LANES, 0)):
        got = run(on(softmax, isa), [layout], (len(x), 1, 1), [(0, 0), (0, 0)])[0, :, 0, 0].astype(np.float64)
        exact = np.exp(x.astype(np.float64)) * got[0]  # the sum's own rounding left out
        normal = exact > 1.2e-38
        assert np.abs(got[normal] / exact[normal] - 1).max() < 3e-7
        assert (np.abs(got - exact)[~normal] <= 3e-45).all()
        assert (got[-4:] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_softmax_by_hand(isa):
    for lanes in (1, LANES):
        x = np.tile(np.log(np.array([1, 2, 5], np.float32)).reshape(1, 3, 1, 1), (lanes, 1, 1, 1))
        got = run(on(softmax, isa), [x], (3, 1, 1), [(0, 0), (0, 0)])
        np.testing.assert_allclose(got[-1, :, 0, 0], [0.125, 0.25, 0.625], rtol=1e-6)
        x = np.tile(np.array([-inf, 1e30, -1e30], np.float32).reshape(1, 3, 1, 1), (lanes, 1, 1, 1))
        got = run(on(softmax, isa), [x], (3, 1, 1), [(0, 0), (0, 0)])
        np.testing.assert_array_equal(got[-1, :, 0, 0], [0, 1, 0])
        got = run(on(log_softmax, isa), [x], (3, 1, 1), [(0, 0), (0, 0)])
        np.testing.assert_array_equal(got[-1, :, 0, 0], np.array([-inf, 0, -2e30], np.float32))


def test_a_shortcut_thins_and_pads_with_channels_and_adds():
    rng = np.random.default_rng(10)
    for isa, borders, shape, values in cases(10):
        x = values()
        for more, stride in [(0, 1), (1, 2), (4, 2), (-1, 1), (4, 3)]:
            channels = shape[0] + more
            if channels < 1:
                continue
            scale = rng.standard_normal(channels).astype(np.float32)
            offset = more // 2
            expected = np.zeros((len(x), channels, *x[:, :, ::stride, ::stride].shape[2:]))
            for c in range(channels):
                if 0 <= c - offset < shape[0]:
                    expected[:, c] = scale[c] * x[:, c - offset, ::stride, ::stride].astype(np.float64)
            out = expected.shape[1:]
            got = run(on(shortcut, isa), [x], out, borders, scale=scale, stride=stride)
            np.testing.assert_allclose(got, expected, atol=1e-6)
            z = rng.standard_normal(expected.shape).astype(np.float32)
            got = run(
                lambda x, z, y, isa=isa, scale=scale, stride=stride: shortcut(isa, x, y, scale, stride, z, 0.0),
                [x, z], out, borders,
            )  # fmt: skip
            np.testing.assert_allclose(got, np.maximum(expected + z, 0), atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_denormals_are_numbers(isa):
    x = np.full((1, 20, 1, 1), 3e-39, np.float32)
    half = np.full(20, 0.5, np.float32)
    got = run(on(affine, isa), [x], (20, 1, 1), [(0, 0), (0, 0)], scale=half, shift=0 * half)
    np.testing.assert_allclose(got, 1.5e-39, rtol=1e-5)


def test_what_does_not_fit_is_refused_by_name():
    isa, one, other = ISAS[0], place((3, 4, 4), 1), place((3, 4, 5), 1)
    ones = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="add: wanted values of one shape, got 3 x 4 x 4 in 1 lanes and 3 x 4 x 5"):
        clamp(isa, one, other)
    with pytest.raises(ValueError, match="one to eight values, got 9"):
        add(isa, [one] * 9, one)
    with pytest.raises(ValueError, match=r"affine: shift: wanted shape \(3,\), got \(2,\)"):
        affine(isa, one, one, ones, ones[:2])
    with pytest.raises(ValueError, match="max_pool: wanted 2 windows over 4 elements, or 2 with ceil_mode, got 4"):
        max_pool(isa, one, one, (2, 2), (2, 2))
    with pytest.raises(ValueError, match="avg_pool: wanted 3 channels in 1 lanes, got 3 x 4 x 4 in 16 lanes"):
        avg_pool(isa, one, place((3, 4, 4), 16), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="shortcut: wanted 2 x 2 in 1 lanes, got 3 x 4 x 4"):
        shortcut(isa, one, one, ones, 2)
    with pytest.raises(ValueError, match="softmax: wanted"):
        softmax(isa, one, other)


def test_the_extension_itself_refuses_what_would_reach_out_of_a_place():
    isa = ISAS[0]
    x, y = (_native.Place(at=at, channels=2, height=2, width=2, plane=4, pitch=2) for at in (0, 64))
    starts, counts, shares = np.array([0, 1], np.int32), np.array([1, 1], np.int32), np.ones(2, np.float32)
    good = (starts, counts, shares)
    _native.pool(isa, "max", x, y, *good, *good, (1, 1), -inf, inf)
    for bad in [
        (starts - 1, counts, shares), (starts + 1, counts, shares), (starts, counts + 1, shares),
        (starts[:1], counts, shares), (starts, counts, shares[:1]), (starts, counts - 2, shares),
    ]:  # fmt: skip
        for windows in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match=r"wanted|window"):
                _native.pool(isa, "max", x, y, *windows[0], *windows[1], (1, 1), -inf, inf)
    for options in [{"stride": 0}, {"stride": 2}, {"offset": 2**30}, {"scale": np.ones(3, np.float32)}]:
        with pytest.raises(ValueError, match=r"wanted|no such"):
            _native.shortcut(**{
                "isa": isa, "x": x, "y": y, "scale": np.ones(2, np.float32), "offset": 0, "stride": 1, "z": None,
                "low": 0.0, "high": 1.0,
            } | options)  # fmt: skip
    with pytest.raises(ValueError, match="wanted"):
        _native.affine(isa, x, y, np.ones(1, np.float32), np.ones(2, np.float32), 0.0, 1.0)
    with pytest.raises(ValueError, match="wanted"):
        _native.sum(isa, [], y, 0.0, 1.0)
