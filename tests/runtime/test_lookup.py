import numpy as np
import pytest

_native = pytest.importorskip("synaptree.runtime._native")

from synaptree.runtime.lookup import Variant, linear, linear_int8, order, variants, variants_int8  # noqa: E402
from synaptree.runtime.place import Place, place  # noqa: E402
from synaptree.runtime.quantise import bytes_place, floats_place  # noqa: E402

ISAS = _native.isas()
WIDE = [Variant(width, kept, groups) for width in (32, 64, 128) for kept in (False, True) for groups in (1, 3)]
FLOAT32 = [(isa, v) for isa in ISAS for v in ([*WIDE, Variant(0)] if isa == "avx512" else [Variant(0)])]
INT8 = [(isa, v) for isa in ISAS for v in ([Variant(w, groups=2) for w in (64, 128, 256)] if isa == "avx512" else [])]
INT8 += [(isa, Variant(0)) for isa in ISAS]
each_variant = pytest.mark.parametrize(("isa", "variant"), FLOAT32, ids=str)
each_int8 = pytest.mark.parametrize(("isa", "variant"), INT8, ids=str)
GUARD = 77.0


def sparse(rng: np.random.Generator, rows: int, columns: int, density: float) -> np.ndarray:
    weight = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    return weight.astype(np.float32)


def run(isa, weight, bias, values, variant, x=None, y=None, **options) -> np.ndarray:
    """Run a layer between two values; whatever lies behind and before the output must stay as it was."""
    rows, columns = weight.shape
    x = x or place((columns, 1, 1), 1)
    y = (y or place((rows, 1, 1), 1)).moved(x.end + 64)
    arena = _native.Arena(y.end + 64)
    floats = arena.floats
    floats[:] = GUARD
    spots_x = x.at // 4 + x.first + spots(x)
    floats[spots_x] = values
    before = floats.copy()
    linear(isa, weight, bias, x, y, variant=variant, **options).run(arena)
    spots_y = y.at // 4 + y.first + spots(y)
    result = floats[spots_y].copy()
    floats[spots_y] = before[spots_y]
    assert np.array_equal(floats, before, equal_nan=True)
    return result


def spots(value: Place) -> np.ndarray:
    c, h, w = np.indices((value.channels, value.height, value.width))
    return (c * value.plane + h * value.pitch + w).ravel()


def assert_close(got: np.ndarray, weight, bias, x) -> None:
    size = np.abs(weight).astype(float) @ np.abs(x).astype(float) + np.abs(bias)
    want = weight.astype(float) @ x.astype(float) + bias
    assert np.all(np.abs(got - want) <= 1e-5 * size + 1e-30)


@each_variant
@pytest.mark.parametrize("density", [0.0, 0.03, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (10, 100), (16, 33), (53, 1), (70, 257)])
def test_a_layer_is_the_product_that_numpy_gives(isa, variant, density, rows, columns):
    rng = np.random.default_rng(rows + columns)
    weight, bias = sparse(rng, rows, columns, density), rng.normal(size=rows).astype(np.float32)
    x = rng.normal(size=columns).astype(np.float32)
    assert_close(run(isa, weight, bias, x, variant), weight, bias, x)


@each_variant
def test_a_layer_worked_out_by_hand(isa, variant):
    weight = np.zeros((2, 40), np.float32)
    weight[0, [0, 39]] = 2, 3
    weight[1, 33] = -1
    x = np.arange(40, dtype=np.float32)
    bias = np.array([1, 2], np.float32)
    assert run(isa, weight, bias, x, variant).tolist() == [118, -31]
    assert run(isa, weight, None, x, variant, low=0, high=100).tolist() == [100, 0]


@each_variant
def test_uneven_rows_and_empty_rows_come_out_in_their_own_places(isa, variant):
    rng = np.random.default_rng(3)
    weight = sparse(rng, 90, 200, 1.0) * (rng.random((90, 200)) < rng.random((90, 1)) ** 3)
    weight[::7] = 0
    x = rng.normal(size=200).astype(np.float32)
    bias = np.arange(90, dtype=np.float32)
    assert_close(run(isa, weight, bias, x, variant), weight, bias, x)
    assert_close(run(isa, weight, bias, x, variant, sorted=True), weight, bias, x)


@each_variant
def test_images_are_read_and_written_between_their_borders(isa, variant):
    rng = np.random.default_rng(4)
    weight = sparse(rng, 18, 3 * 5 * 7, 0.3)
    x = rng.normal(size=105).astype(np.float32)
    got = run(isa, weight, None, x, variant, place((3, 5, 7), 1, 1, 2), place((2, 3, 3), 1, 1, 1))
    assert_close(got, weight, 0, x)


@each_variant
def test_tiny_weights_and_inputs_are_not_flushed(isa, variant):
    weight = np.zeros((3, 5), np.float32)
    weight[1, 2] = 1e-40
    x = np.full(5, 2, np.float32)
    assert run(isa, weight, None, x, variant)[1] == np.float32(2) * np.float32(1e-40)
    weight[1, 2], x[2] = 2, 1e-40
    assert run(isa, weight, None, x, variant)[1] == np.float32(2) * np.float32(1e-40)


@each_variant
def test_an_input_that_is_no_number_reaches_the_rows_connected_to_it(isa, variant):
    weight = np.zeros((40, 300), np.float32)
    weight[5, 0] = weight[6, 299] = 1
    x = np.ones(300, np.float32)
    x[0] = np.nan
    got = run(isa, weight, None, x, variant, low=-10, high=10)
    assert np.isnan(got[5])
    if not variant.width or variant.kept:
        assert np.isnan(got).sum() == 1
        x[0] = np.inf
        assert np.isfinite(run(isa, weight, None, x, variant)[np.arange(40) != 5]).all()


def test_order_puts_rows_with_few_connections_first():
    assert order(np.array([[1, 1], [0, 0], [0, 3]])).tolist() == [1, 2, 0]


@pytest.mark.parametrize("isa", ISAS)
def test_every_variant_that_is_offered_can_be_made(isa):
    weight = np.ones((300, 20), np.float32)
    for variant in variants(isa, weight, threads=2):
        assert run(isa, weight, None, np.ones(20, np.float32), variant).tolist() == [20] * 300
    for variant in variants_int8(isa, weight.astype(np.int8), 3, threads=2):
        assert np.all(run_int8(isa, weight.astype(np.int8), np.ones(300), None, np.full((3, 20), 129), variant) == 20)


@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_write_apart(threads):
    if "avx512" not in ISAS:
        pytest.skip("compressed rows have chunks of a fixed size")
    x, y = place((8, 1, 1), 1), place((320, 1, 1), 1)
    weight = np.ones((320, 8), np.float32)
    step = linear("avx512", weight, None, x, y.moved(x.end), variant=variants("avx512", weight, threads)[0])
    assert step.chunks == threads


def run_int8(isa, integers, scales, bias, values, variant, scale=1.0, output_scale=None, **options) -> np.ndarray:
    samples, (rows, columns) = len(values), integers.shape
    x = bytes_place(columns, samples, at=64)
    y = bytes_place(rows, samples, at=x.end) if output_scale else floats_place(rows, samples, at=x.end)
    arena = _native.Arena(y.end + 64)
    flat = arena.floats.view(np.uint8)
    flat[:] = 201
    arena.floats[0] = scale
    source = flat[x.at : x.at + samples * x.pitch].reshape(samples, x.pitch)
    source[:, :columns] = values
    before = flat.copy()
    given = {"scale": scale} if rows % 2 else {"scale_at": 0}
    scales = np.asarray(scales, np.float32)
    step = linear_int8(
        isa, integers, scales, bias, x, y, **given, output_scale=output_scale, variant=variant, **options
    )
    step.run(arena, x=np.zeros((samples, 1), np.float32))
    size = 1 if output_scale else 4
    target = flat[y.at : y.at + samples * y.pitch * size].reshape(samples, -1)
    result = target[:, : rows * size].copy()
    target[:, : rows * size] = 201
    assert np.array_equal(flat, before)
    return result if output_scale else result.view(np.float32)


@each_int8
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize(("rows", "columns", "samples"), [(1, 1, 1), (10, 70, 15), (33, 300, 8), (75, 129, 3)])
def test_a_layer_of_bytes_is_the_product_that_numpy_gives(isa, variant, density, rows, columns, samples):
    rng = np.random.default_rng(rows)
    integers = (rng.integers(-127, 128, (rows, columns)) * (rng.random((rows, columns)) < density)).astype(np.int8)
    scales = rng.uniform(0.1, 1, rows).astype(np.float32)
    bias = rng.normal(size=rows).astype(np.float32)
    x = rng.integers(0, 256, (samples, columns))
    whole = (x - 128) @ integers.astype(int).T
    want = np.clip(bias + whole * scales.astype(float) * np.float32(0.02), 0, 1e4)
    got = run_int8(isa, integers, scales, bias, x, variant, np.float32(0.02), low=0, high=1e4)
    assert np.all(np.abs(got - want) <= 1e-6 * (np.abs(want) + np.abs(bias) + 1e-3))


@each_int8
@pytest.mark.parametrize("samples", range(1, 10))
def test_sums_of_bytes_are_exact_whatever_the_number_of_samples(isa, variant, samples):
    rng = np.random.default_rng(samples)
    integers = (rng.integers(-127, 128, (20, 200)) * (rng.random((20, 200)) < 0.3)).astype(np.int8)
    x = rng.integers(0, 256, (samples, 200))
    got = run_int8(isa, integers, np.ones(20), None, x, variant)
    assert np.array_equal(got, (x - 128) @ integers.astype(int).T)


@each_int8
def test_bytes_for_the_next_layer_are_rounded_to_even_and_saturated(isa, variant):
    integers = np.eye(20, dtype=np.int8)
    x = np.full((2, 20), 128)
    x[0, :9] = 0, 127, 128, 129, 130, 131, 132, 133, 255
    x[1, 19] = 135
    got = run_int8(isa, integers, np.ones(20), None, x, variant, scale=1.0, output_scale=2.0)
    assert got[0, :9].tolist() == [64, 128, 128, 128, 129, 130, 130, 130, 192]  # halves to even
    assert got[1].tolist() == [128] * 19 + [132]
    saturated = run_int8(isa, integers, np.ones(20), None, x, variant, output_scale=0.5)
    assert saturated[0, :9].tolist() == [0, 126, 128, 130, 132, 134, 136, 138, 255]
    assert run_int8(isa, integers, np.ones(20), None, x, variant, output_scale=1.0, low=0)[0, 0] == 128


@each_int8
def test_a_layer_of_bytes_keeps_its_rows_where_they_are_if_they_are_sorted(isa, variant):
    integers = np.tril(np.ones((40, 40), np.int8))
    x = np.full((5, 40), 129)
    got = run_int8(isa, integers, np.ones(40), None, x, variant, sorted=True)
    assert np.array_equal(got, np.tile(np.arange(1, 41), (5, 1)))


@pytest.mark.parametrize("isa", ISAS)
def test_what_does_not_fit_is_refused(isa):
    weight, x = np.ones((3, 4), np.float32), place((4, 1, 1), 1)
    y = place((3, 1, 1), 1, at=x.end)
    rows = Variant(0)
    with pytest.raises(ValueError, match="does not lead"):
        linear(isa, weight.T.copy(), None, x, y, variant=rows)
    with pytest.raises(ValueError, match="bias of shape"):
        linear(isa, weight, np.ones(4, np.float32), x, y, variant=rows)
    with pytest.raises(ValueError, match="one sample"):
        linear(isa, weight, None, place((4, 1, 1), 16), y, variant=rows)
    with pytest.raises(ValueError, match="the arena has"):
        linear(isa, weight, None, x, y, variant=rows).run(_native.Arena(64))
    integers, scales = weight.astype(np.int8), np.ones(3, np.float32)
    a, b = bytes_place(4, 2), floats_place(3, 2, at=1024)
    with pytest.raises(ValueError, match="scale or scale_at"):
        linear_int8(isa, integers, scales, None, a, b, variant=rows)
    with pytest.raises(ValueError, match="scale or scale_at"):
        linear_int8(isa, integers, scales, None, a, b, scale=1, output_scale=1, variant=rows)
    with pytest.raises(ValueError, match="int8 integers"):
        linear_int8(isa, weight, scales, None, a, b, scale=1, variant=rows)
    with pytest.raises(ValueError, match="do not lead"):
        linear_int8(isa, integers, scales, None, a, floats_place(3, 1), scale=1, variant=rows)


def test_instruction_sets_without_wide_tables_refuse_to_look_up():
    x = place((4, 1, 1), 1)
    with pytest.raises(ValueError, match="registers look up"):
        linear("generic", np.ones((4, 4), np.float32), None, x, x.moved(x.end), variant=Variant(32))


@pytest.fixture
def packed_lookup() -> dict:
    """Return what makes one look of sixteen rows at one tile, to be spoilt."""
    return {
        "x": 0, "y": 4096, "width": 32, "rows": 16, "tiles": 1, "groups": 1, "low": 0.0, "high": 1.0,
        "bias": np.zeros(16, np.float32), "order": None, "fours": np.array([0, 0, 0, 1]),
        "sums": np.array([0, 16, 16, 16], np.uint16), "index": np.full(64, 128, np.uint8),
        "values": np.zeros(64, np.float32), "kept": np.array([0]),
    }  # fmt: skip


@pytest.mark.skipif("avx512" not in ISAS, reason="looks up nowhere else")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", -4), ("x", 2), ("y", -64), ("width", 16), ("rows", 0), ("rows", 17), ("tiles", 2), ("groups", 65),
        ("bias", np.zeros(15, np.float32)), ("order", np.zeros(16, np.int32)),
        ("order", np.arange(16, dtype=np.int32) - 1),
        ("order", np.arange(15, dtype=np.int32)), ("fours", np.array([0, 2, 1, 1])), ("fours", np.array([0, 0, 0, 2])),
        ("fours", np.array([-1, 0, 0, 1])), ("fours", np.array([0, 1])), ("sums", np.array([0, 16, 16, 32], np.uint16)),
        ("sums", np.array([1, 16, 16, 16], np.uint16)), ("sums", np.zeros(3, np.uint16)),
        ("index", np.zeros(63, np.uint8)), ("values", np.zeros(63, np.float32)), ("kept", np.array([1])),
        ("kept", np.array([-1])), ("kept", np.array([0, 0])),
    ],
)  # fmt: skip
def test_a_look_that_would_leave_its_arrays_is_refused(packed_lookup, name, value):
    _native.lookup("avx512", **packed_lookup)
    with pytest.raises(ValueError):  # noqa: PT011
        _native.lookup("avx512", **packed_lookup | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("columns", np.array([5], np.int32)), ("columns", np.array([-1], np.int32)), ("starts", np.array([0, 2])),
        ("starts", np.array([1, 1])), ("starts", np.array([0])), ("bias", np.zeros(2, np.float32)), ("rows", 0),
    ],
)  # fmt: skip
def test_rows_that_would_leave_their_arrays_are_refused(name, value):
    good = {
        "x": 0, "y": 64, "rows": 1, "width": 5, "low": 0.0, "high": 1.0, "bias": np.zeros(1, np.float32), "order": None,
        "starts": np.array([0, 1]), "columns": np.array([4], np.int32), "values": np.ones(1, np.float32),
    }  # fmt: skip
    _native.compressed("generic", **good)
    with pytest.raises(ValueError):  # noqa: PT011
        _native.compressed("generic", **good | {name: value})


@pytest.fixture
def layer_of_bytes() -> dict:
    """Return what a layer of three rows on two samples has, to be spoilt."""
    return {
        "x": 0, "x_pitch": 64, "y": 512, "y_pitch": 3, "to_bytes": False, "rows": 3, "samples": 2, "scale": 1.0,
        "scale_at": -1, "inverse": 1.0, "low": 0.0, "high": 1.0, "bias": np.zeros(16, np.float32),
        "scales": np.zeros(16, np.float32), "excess": np.zeros(16, np.int32), "order": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", -1), ("y", -4), ("y", 2), ("x_pitch", -1), ("y_pitch", 2), ("rows", 0), ("samples", 0), ("scale_at", 6),
        ("bias", np.zeros(3, np.float32)), ("excess", np.zeros(3, np.int32)), ("order", np.arange(2, dtype=np.int32)),
        ("order", np.array([0, 0, 1], np.int32)), ("order", np.array([0, 1, 3], np.int32)),
    ],
)  # fmt: skip
def test_a_layer_of_bytes_that_would_leave_its_arrays_is_refused(layer_of_bytes, name, value):
    _native.LayerInt8(**layer_of_bytes)
    with pytest.raises(ValueError):  # noqa: PT011
        _native.LayerInt8(**layer_of_bytes | {name: value})


def test_a_layer_of_bytes_counts_all_it_touches(layer_of_bytes):
    columns, values = np.zeros(0, np.int32), np.zeros(0, np.int8)
    layer = _native.LayerInt8(**layer_of_bytes)
    rows = _native.compressed_int8("generic", layer, width=3, starts=np.zeros(4, int), columns=columns, values=values)
    rows.run(_native.Arena(512 + 2 * 3 * 4))
    with pytest.raises(ValueError, match="the arena has"):
        rows.run(_native.Arena(512))
    with pytest.raises(ValueError, match="a column lies within"):
        _native.compressed_int8(
            "generic",
            layer,
            width=3,
            starts=np.array([0, 0, 0, 1]),
            columns=np.array([3], np.int32),
            values=np.ones(1, np.int8),
        )
