import pytest

pytest.importorskip("synaptree.runtime._native")

import dataclasses
import functools

import numpy as np

from synaptree.runtime import _native, rows
from synaptree.runtime.place import place
from synaptree.runtime.rows import Variant

ISAS = _native.isas()


class Layer:
    """A convolution in an arena full of marks, beside an obvious loop in float64."""

    def __init__(
        self,
        shape,
        outputs,
        kernel,
        lanes,
        density,
        *,
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
        border=None,
        far=None,
        residual=None,
        seed=0,
        scale=1.0,
    ):
        rng = np.random.default_rng(seed)
        channels, height, width = shape
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        weight = rng.standard_normal((outputs, channels // groups, *kernel)) * scale
        self.weight = np.where(rng.random(weight.shape) < density, weight, 0).astype("f")
        self.bias = (rng.standard_normal(outputs) * scale).astype("f")
        self.samples = rng.standard_normal((lanes, *shape)).astype("f")
        top, left = border or padding
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip((height, width), kernel, stride, padding, dilation, strict=True)
        ]
        self.x = place(shape, lanes, top, left)
        self.y = place((outputs, *size), lanes, *(far or (0, 0)), at=self.x.end)
        self.end = self.y.end
        self.residual = None
        if residual is not None:
            self.residual = place((outputs, *size), lanes, *residual, at=self.y.end)
            self.end = self.residual.end
            self.added = rng.standard_normal((lanes, outputs, *size)).astype("f")

    def view(self, arena, where):
        """Samples x channels x height x width of a value."""
        start = where.at // 4 + where.first
        strides = np.array([1, where.plane, where.pitch, where.lanes]) * 4
        shape = (where.lanes, where.channels, where.height, where.width)
        return np.lib.stride_tricks.as_strided(arena[start:], shape, strides)

    @functools.cached_property
    def wanted(self):
        """The loop: sums, and sums of magnitudes."""
        geometry = self.geometry
        (down, right), (top, left) = geometry["stride"], geometry["padding"]
        padded = np.pad(self.samples.astype(float), ((0, 0), (0, 0), (top, top), (left, left)))
        shape = (self.y.lanes, self.y.channels, self.y.height, self.y.width)
        sums = np.broadcast_to(self.bias[None, :, None, None], shape).astype(float)
        if self.residual:
            sums = sums + self.added
        sizes = np.abs(sums)
        per, fan = self.weight.shape[0] // geometry["groups"], self.weight.shape[1]
        for o, c, i, j in zip(*np.nonzero(self.weight), strict=True):
            row, column = i * geometry["dilation"][0], j * geometry["dilation"][1]
            plane = padded[:, o // per * fan + c, row:, column:][:, ::down, ::right][:, : shape[2], : shape[3]]
            sums[:, o] += self.weight[o, c, i, j] * plane
            sizes[:, o] += np.abs(self.weight[o, c, i, j] * plane)
        return sums, sizes

    def filled(self, mark=0.0):
        """An arena with x, residual, and a mark wherever nothing may be written."""
        arena = _native.Arena(self.end)
        arena.floats[:] = mark
        arena.floats[: self.x.end // 4] = 0
        self.view(arena.floats, self.x)[:] = self.samples
        if self.residual:
            self.view(arena.floats, self.residual)[:] = self.added
        return arena

    def check(self, isa, variant, low=-np.inf, high=np.inf):
        step = rows.conv(
            isa,
            self.weight,
            self.bias,
            self.x,
            self.y,
            **self.geometry,
            low=low,
            high=high,
            residual=self.residual,
            variant=variant,
        )
        arena = self.filled(mark=7.0)
        outside = arena.floats.copy()
        step.run(arena)
        sums, sizes = self.wanted
        got = self.view(arena.floats, self.y)
        assert (np.abs(got - np.clip(sums, low, high)) <= 1e-5 * sizes + 1e-30).all()
        self.view(outside, self.y)[:] = got
        np.testing.assert_array_equal(arena.floats, outside)


def linear(inputs, outputs, lanes, density, **more):
    return Layer((inputs, 1, 1), outputs, (1, 1), lanes, density, **more)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", rows.ROWS)
@pytest.mark.parametrize("lanes", [16, 32, 64])
def test_linear_layers_of_every_group_size_match_the_loop(isa, count, lanes):
    for seed, density in enumerate([0.0, 0.03, 0.3, 1.0]):
        layer = linear(37, 29, lanes, density, seed=seed)
        for vectors, unroll, part in [(4, 1, 0), (2, 4, 9), (1, 2, 1)]:
            layer.check(isa, Variant(count, vectors, unroll, part))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", rows.ROWS)
@pytest.mark.parametrize("lanes", [1, 16, 32])
def test_convolutions_of_every_group_size_match_the_loop(isa, count, lanes):
    layer = Layer((5, 6, 7), 9, (3, 3), lanes, 0.3, padding=(1, 1), far=(1, 1))
    for vectors, unroll, part in [(8, 1, 0), (3, 2, 2), (5, 4, 1)]:
        layer.check(isa, Variant(count, vectors, unroll, part), low=0.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vectors", range(1, 9))
def test_every_number_of_vectors_and_entries_in_flight_matches_the_loop(isa, vectors):
    for count in rows.ROWS:
        for unroll in (1, 2, 4):
            layer = Layer((3, 2, 9), 5, (2, 3), 16, 0.6, padding=(0, 1), seed=vectors)
            layer.check(isa, Variant(count, vectors, unroll, 2), high=1.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [16, 48])
@pytest.mark.parametrize("stride", [(2, 2), (1, 3), (2, 1)])
def test_strides_and_dilations_match_the_loop(isa, lanes, stride):
    more = {"stride": stride, "padding": (2, 1), "dilation": (2, 1), "border": (3, 2), "far": (1, 0)}
    layer = Layer((4, 9, 8), 6, (3, 2), lanes, 0.4, **more)
    for variant in (Variant(1, 4, 2, 0), Variant(4, 3, 1, 3)):
        layer.check(isa, variant, 0.0, 2.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 16])
def test_groups_of_channels_meet_only_each_other(isa, lanes):
    for groups, outputs in [(2, 6), (6, 6), (3, 15)]:
        layer = Layer((6, 5, 5), outputs, (3, 3), lanes, 0.7, padding=(1, 1), groups=groups, far=(1, 1))
        for count in rows.ROWS:
            layer.check(isa, Variant(count, 4, 2, 2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 1), (4, 4), (17, 16), (6, 33)])
def test_single_samples_of_any_width_keep_their_borders(isa, shape):
    for far in [(1, 1), (0, 0), (1, 3)]:  # rows of y as long as those of x, and others
        layer = Layer((3, *shape), 4, (3, 3), 1, 0.5, padding=(1, 1), far=far)
        for variant in (Variant(1, 8, 1, 1), Variant(4, 5, 1, 0)):
            layer.check(isa, variant, low=0.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", [1, 16, 32])
def test_a_residual_with_its_own_borders_is_added_before_the_bounds(isa, lanes):
    for border in [(1, 1), (0, 2)]:
        layer = Layer((4, 5, 6), 3, (3, 3), lanes, 0.5, padding=(1, 1), far=(1, 1), residual=border)
        for variant in (Variant(1, 4, 2, 1), Variant(2, 3, 1, 0)):
            layer.check(isa, variant, low=0.0, high=3.0)


@pytest.mark.parametrize("isa", ISAS)
def test_the_residual_may_be_the_output_itself(isa):
    layer = Layer((4, 5, 6), 3, (3, 3), 16, 0.5, padding=(1, 1), residual=(0, 0))
    step = rows.conv(
        isa, layer.weight, layer.bias, layer.x, layer.y, padding=(1, 1), residual=layer.y, variant=Variant(2, 4, 1, 1)
    )
    arena = layer.filled()
    layer.view(arena.floats, layer.y)[:] = layer.added
    step.run(arena)
    np.testing.assert_allclose(layer.view(arena.floats, layer.y), layer.wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_a_linear_layer_reads_an_image_in_its_order(isa):
    layer = Layer((3, 4, 5), 7, (4, 5), 16, 0.4, border=(1, 2))
    step = rows.linear(isa, layer.weight.reshape(7, 60), layer.bias, layer.x, layer.y, variant=Variant(2, 1, 2, 2))
    arena = layer.filled()
    step.run(arena)
    np.testing.assert_allclose(layer.view(arena.floats, layer.y), layer.wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_one_column_and_one_output_suffice(isa):
    for count in rows.ROWS:
        linear(1, 1, 16, 1.0).check(isa, Variant(count, 4, 4, 0))
        linear(1, 5, 32, 1.0).check(isa, Variant(count, 4, 4, 1))
        linear(5, 1, 64, 1.0).check(isa, Variant(count, 4, 4, 2))


@pytest.mark.parametrize("isa", ISAS)
def test_numbers_too_small_to_be_normal_are_kept(isa):
    linear(20, 10, 16, 0.5, scale=1e-39).check(isa, Variant(1, 1, 4, 0))


@pytest.mark.parametrize("isa", ISAS)
def test_two_inputs_and_two_outputs_by_hand(isa):
    x, y = place((2, 1, 1), 16), place((2, 1, 1), 16, at=4096)
    weight, bias = np.array([[2, -1], [0, 3]], "f"), np.array([0.5, -4], "f")
    arena = _native.Arena(y.end)
    arena.floats[:16], arena.floats[16:32] = 1, np.arange(16)
    rows.linear(isa, weight, bias, x, y, low=0.0, variant=Variant(1)).run(arena)
    assert arena.floats[1024:1040].tolist() == [2.5, 1.5, 0.5] + [0.0] * 13
    assert arena.floats[1040:1056].tolist() == [0.0, 0.0, 2.0, 5.0] + [3.0 * n - 4 for n in range(4, 16)]


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_a_number_stays_so_and_in_its_lane(isa):
    layer = linear(4, 3, 16, 1.0)
    step = rows.linear(isa, layer.weight.reshape(3, 4), layer.bias, layer.x, layer.y, low=0.0, high=6.0)
    arena = layer.filled()
    layer.view(arena.floats, layer.x)[5, 2] = np.nan
    step.run(arena)
    bad = np.isnan(layer.view(arena.floats, layer.y)[:, :, 0, 0])
    assert bad[5].all()
    assert bad.sum() == 3


def test_a_wide_layer_of_one_tile_offers_chunks_to_threads():
    layer = linear(30, 700, 16, 0.2)
    assert rows.conv("generic", layer.weight, layer.bias, layer.x, layer.y).chunks >= 8
    layer.check("generic", Variant(4, 2, 1, 7))


@pytest.mark.parametrize("lanes", [1, 16, 64])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_the_variants_offered_are_few_and_right(lanes, density):
    for layer in (
        Layer((6, 8, 8), 12, (3, 3), lanes, density, padding=(1, 1), far=(1, 1)),
        linear(200, 30, max(lanes, 16), density),
    ):
        for offered in (rows.variants, rows.dense_variants):
            found = offered(ISAS[-1], layer.weight, layer.x, layer.y)
            assert 1 <= len(found) == len({*found}) <= 5
            for variant in found:
                layer.check(ISAS[-1], variant)


def test_rows_that_share_their_columns_are_offered_together():
    x, y = place((200, 1, 1), 64), place((60, 1, 1), 64, at=2**18)
    rng = np.random.default_rng(0)
    apart = (rng.random((60, 200)) < 0.1).astype("f")
    shared = np.repeat(rng.random((15, 200)) < 0.1, 4, axis=0).astype("f")
    assert rows.variants(ISAS[-1], apart, x, y)[0].rows == 1
    assert rows.variants(ISAS[-1], shared, x, y)[0].rows in (2, 4)


LAYER = Layer((4, 6, 6), 4, (3, 3), 16, 0.5, padding=(1, 1))


@pytest.mark.parametrize(
    ("complaint", "changes"),
    [
        ("does not fit", {"weight": LAYER.weight[:3], "bias": LAYER.bias[:3]}),
        ("does not fit", {"groups": 2}),
        ("float32", {"weight": LAYER.weight.astype(float)}),
        ("one bias", {"bias": LAYER.bias[:3]}),
        ("gives", {"stride": (2, 2)}),
        ("gives", {"padding": (2, 2)}),
        ("at least", {"stride": (0, 1)}),
        ("borders", {"x": place((4, 6, 6), 16, 0, 1)}),
        ("overlaps", {"y": LAYER.y.moved(0)}),
        ("overlaps", {"residual": LAYER.y.moved(LAYER.y.at + 64)}),
        ("GiB", {"x": dataclasses.replace(LAYER.x, plane=2**28)}),
        ("lanes", {"y": place((4, 6, 6), 32, at=LAYER.y.at)}),
        ("residual", {"residual": place((4, 6, 5), 16, at=LAYER.y.end)}),
        ("variant", {"variant": Variant(rows=3)}),
        ("variant", {"variant": Variant(vectors=0)}),
        ("variant", {"variant": Variant(unroll=0)}),
        ("variant", {"variant": Variant(part=-1)}),
        ("instruction set", {"isa": "no such thing"}),
    ],
)
def test_what_does_not_fit_is_refused(complaint, changes):
    right = {"isa": "generic", "weight": LAYER.weight, "bias": LAYER.bias, "x": LAYER.x, "y": LAYER.y, **LAYER.geometry}
    with pytest.raises(ValueError, match=complaint):
        rows.conv(**{**right, **changes})


def test_single_samples_with_a_stride_are_refused():
    layer = Layer((2, 6, 6), 2, (2, 2), 1, 0.5, stride=(2, 2))
    with pytest.raises(ValueError, match="stride of 1"):
        rows.conv("generic", layer.weight, layer.bias, layer.x, layer.y, **layer.geometry)


def test_a_linear_layer_of_another_width_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        rows.linear("generic", np.ones((2, 3), "f"), np.ones(2, "f"), LAYER.x, LAYER.y)


def native(**changes):
    """A layer of one input and one output, as the extension takes it."""
    right = {
        "values": np.ones((1, 1), "f"), "offsets": np.zeros(1, "i"), "visits": np.array([[0, 1, 1]], "i"),
        "blocks": np.array([[0, 0], [1, 1]]), "tiles": np.array([[0, 0, 0, 1, 0]]),
        "masks": np.full(1, 0xFFFF, np.uint16), "bias": np.zeros(1, "f"), "x": 0, "y": 64, "residual": -1, "x_step": 16,
        "y_step": 16, "residual_step": 16, "y_plane": 16, "residual_plane": 16, "unroll": 1, "parts": 1, "low": 0.0,
        "high": 1.0,
    }  # fmt: skip
    return _native.rows("generic", **{**right, **changes})


def test_a_step_that_reaches_further_than_the_arena_does_not_run():
    native().run(_native.Arena(128))
    for further in ({"offsets": np.array([128], "i")}, {"residual": 128}, {"y": 128}, {"x": 128}):
        with pytest.raises(ValueError, match="arena"):
            native(**further).run(_native.Arena(128))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("offsets", np.array([-4], "i")), ("x", -4), ("y", 2), ("x", 2**62), ("parts", 2), ("parts", 0), ("y_step", -1),
        ("visits", np.array([[1, 1, 1]], "i")), ("visits", np.array([[0, 2, 1]], "i")),
        ("visits", np.array([[0, 1, 2]], "i")), ("visits", np.array([[-1, 1, 1]], "i")),
        ("visits", np.array([[0, 1, -1]], "i")), ("visits", np.ones((1, 2), "i")),
        ("blocks", np.array([[0, 0], [2, 1]])), ("blocks", np.array([[0, 0], [1, 2]])),
        ("blocks", np.array([[0, 1], [1, 1]])), ("blocks", np.array([[0, 0], [2, 1], [1, 1]])),
        ("blocks", np.array([[0, 0]])), ("tiles", np.array([[-16, 0, 0, 1, 0]])),
        ("tiles", np.array([[0, -32, 0, 1, 0]])), ("tiles", np.array([[0, 0, 0, 9, 0]])),
        ("tiles", np.array([[0, 0, 0, 1, 1]])), ("tiles", np.array([[0, 0, 0, 1, -1]])),
        ("tiles", np.array([[2**62, 0, 0, 1, 0]])), ("tiles", np.zeros((0, 5), int)), ("bias", np.zeros(0, "f")),
        ("values", np.ones((1, 3), "f")), ("values", np.ones((2, 1), "f")),
    ],
)  # fmt: skip
def test_the_extension_refuses_what_leaves_its_arrays_or_the_arena(name, wrong):
    with pytest.raises(ValueError, match=r"\w"):
        native(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong"), [("values", np.ones((1, 1))), ("offsets", np.zeros(1, int)), ("masks", np.ones(1, "i"))]
)
def test_the_extension_refuses_arrays_of_another_kind(name, wrong):
    with pytest.raises(TypeError):
        native(**{name: wrong})
