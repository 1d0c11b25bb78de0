import numpy as np
import pytest

pytest.importorskip("synaptree.runtime._native")

from synaptree.runtime import _native
from synaptree.runtime.place import Place, place
from synaptree.runtime.planes import Variant, conv, variants

SENTINEL = 7.0


def rows_of(arena: _native.Arena, p: Place, c: int, row: int) -> np.ndarray:
    first = p.at // 4 + p.first + c * p.plane + row * p.pitch
    return arena.floats[first : first + p.width * p.lanes].reshape(p.width, p.lanes)


def put(arena: _native.Arena, p: Place, values: np.ndarray) -> None:
    for c in range(p.channels):
        for row in range(p.height):
            rows_of(arena, p, c, row)[:] = values[:, c, row].T


def get(arena: _native.Arena, p: Place) -> np.ndarray:
    values = np.empty((p.lanes, p.channels, p.height, p.width), np.float32)
    for c in range(p.channels):
        for row in range(p.height):
            values[:, c, row] = rows_of(arena, p, c, row).T
    return values


def plain(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((len(x), len(weight), *x.shape[2:])) + bias[:, None, None]
    for k in range(3):
        for j in range(3):
            window = padded[:, :, k : k + x.shape[2], j : j + x.shape[3]]
            y += np.einsum("oc,ncij->noij", weight[:, :, k, j].astype(np.float64), window)
    return y


class Layer:
    """A random layer with everything around it in one arena, borders 0 and a sentinel behind y."""

    def __init__(self, outputs, channels, height, width, lanes, density, seed=0, left=1):
        self.rng = np.random.default_rng(seed)
        kept = self.rng.random((outputs, channels, 1, 1)) < density
        self.weight = (self.rng.standard_normal((outputs, channels, 3, 3)) * kept).astype(np.float32)
        self.bias = self.rng.standard_normal(outputs).astype(np.float32)
        self.x = place((channels, height, width), lanes, 1, left)
        self.residual = place((outputs, height, width), lanes, at=self.x.end)
        self.y = place((outputs, height, width), lanes, 1, 1, at=self.residual.end)
        self.arena = _native.Arena(self.y.end + 64)
        self.values = self.rng.standard_normal((lanes, channels, height, width)).astype(np.float32)
        self.added = self.rng.standard_normal((lanes, outputs, height, width)).astype(np.float32)
        put(self.arena, self.x, self.values)
        put(self.arena, self.residual, self.added)

    def step(self, isa, variant, residual=True, low=-0.5, high=2.0):
        added = self.residual if residual else None
        return conv(isa, self.weight, self.bias, self.x, self.y, low=low, high=high, residual=added, variant=variant)

    def wanted(self, residual=True, low=-0.5, high=2.0):
        return np.clip(plain(self.weight, self.bias, self.values) + (self.added if residual else 0), low, high)

    def tolerance(self):
        return 1e-5 * (plain(abs(self.weight), abs(self.bias), abs(self.values)) + abs(self.added))

    def outside(self):
        """The arena without x, the residual and the elements of y."""
        rest = self.arena.floats.copy()
        for c in range(self.y.channels):
            for row in range(self.y.height):
                first = self.y.at // 4 + self.y.first + c * self.y.plane + row * self.y.pitch
                rest[first : first + self.y.width * self.y.lanes] = 0
        return rest

    def check(self, isa, variant):
        before = self.outside()
        for residual in (True, False):
            put(self.arena, self.y, np.full_like(self.added, SENTINEL))
            self.step(isa, variant, residual).run(self.arena)
            error = abs(get(self.arena, self.y) - self.wanted(residual))
            assert (error <= self.tolerance()).all(), (isa, variant, error.max())
        np.testing.assert_array_equal(self.outside(), before)


SHAPES = [  # outputs, channels, height, width, lanes, kept
    (5, 3, 8, 8, 16, 0.5), (3, 40, 4, 4, 16, 0.2), (4, 9, 2, 2, 32, 0.5), (4, 9, 2, 2, 64, 0.5), (3, 9, 2, 2, 16, 0.5),
    (3, 5, 1, 1, 16, 0.5), (3, 5, 1, 1, 64, 0.5), (2, 3, 1, 9, 16, 1.0), (2, 3, 9, 1, 32, 1.0), (3, 4, 3, 3, 16, 0.7),
    (2, 3, 7, 7, 16, 0.5), (2, 3, 14, 14, 16, 0.5), (2, 3, 5, 11, 48, 0.5), (1, 1, 6, 5, 16, 1.0),
    (3, 2, 4, 4, 16, 0.0),
    (70, 9, 4, 4, 1, 0.3), (140, 4, 8, 8, 1, 0.2), (3, 4, 7, 6, 1, 0.5), (3, 4, 3, 4, 1, 0.5), (9, 13, 2, 2, 1, 0.6),
    (3, 4, 1, 1, 1, 0.5), (3, 4, 16, 16, 1, 0.4), (3, 5, 19, 33, 1, 0.5), (3, 5, 5, 9, 1, 0.5), (2, 3, 1, 40, 1, 0.8),
    (2, 3, 14, 14, 1, 0.8), (2, 2, 20, 3, 1, 0.8), (3, 2, 4, 4, 1, 0.0), (4, 3, 32, 16, 1, 1.0), (1, 1, 2, 17, 1, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_every_variant_gives_the_convolution_and_writes_nothing_else(isa, shape):
    layer = Layer(*shape)
    found = variants(layer.weight, layer.x, layer.y)
    assert 1 <= len(found) <= 5
    for variant in found:
        layer.check(isa, variant)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(
    ("shape", "variant"),
    [
        ((5, 13, 8, 8, 16, 0.5), Variant("tiles", 4, 4, 4)),
        ((5, 13, 8, 8, 16, 0.1), Variant("tiles", 2, 8, 1)),
        ((5, 13, 8, 16, 1, 0.3), Variant("runs", 4, 16, 5)),
        ((5, 13, 4, 9, 1, 0.3), Variant("runs", 2, 16, 6)),
        ((5, 13, 1, 9, 1, 0.3), Variant("runs", 1, 16, 6)),
    ],
)
def test_parts_add_up(isa, shape, variant):
    Layer(*shape).check(isa, variant)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
def test_runs_read_borders_wider_than_one(rows):
    Layer(3, 4, 17, 18, 1, 0.6, left=3).check(_native.isas()[-1], Variant("runs", rows, 16, 4))


@pytest.mark.parametrize("lanes", [1, 16])
def test_numbers_by_hand(lanes):
    # weight[k, l] = 1 for k = 0 (the row above) and 10 at the centre; x = [[1, 2], [3, 4]]
    weight = np.array([[[[1, 1, 1], [0, 10, 0], [0, 0, 0]]]], np.float32)
    x = place((1, 2, 2), lanes, 1, 1)
    y = place((1, 2, 2), lanes, at=x.end)
    arena = _native.Arena(y.end)
    put(arena, x, np.broadcast_to(np.array([[1, 2], [3, 4]], np.float32), (lanes, 1, 2, 2)))
    for variant in variants(weight, x, y):
        conv("generic", weight, np.array([0.5], np.float32), x, y, variant=variant).run(arena)
        assert get(arena, y)[0, 0].tolist() == [[10.5, 20.5], [33.5, 43.5]]


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(("side", "lanes"), [(4, 16), (4, 1), (2, 1), (9, 1)])
def test_what_is_not_a_number_stays_so(isa, side, lanes):
    layer = Layer(3, 2, side, side, lanes, 1.0)
    layer.bias[1] = np.nan
    for variant in variants(layer.weight, layer.x, layer.y):
        layer.step(isa, variant, low=0.0).run(layer.arena)
        y = get(layer.arena, layer.y)
        assert np.isnan(y[:, 1]).all()
        assert np.isfinite(y[:, [0, 2]]).all()


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("lanes", [1, 16])
def test_tiny_numbers_are_numbers(isa, lanes):
    layer = Layer(2, 2, 4, 4, lanes, 1.0)
    layer.weight[:] = 1
    layer.bias[:] = 0
    put(layer.arena, layer.x, np.full_like(layer.values, 1e-40))
    for variant in variants(layer.weight, layer.x, layer.y):
        layer.step(isa, variant, residual=False).run(layer.arena)
        assert get(layer.arena, layer.y)[0, 0, 1, 1] == pytest.approx(18e-40, rel=1e-4)


@pytest.mark.parametrize(("side", "lanes"), [(8, 16), (4, 1), (9, 1), (2, 1)])
def test_there_are_chunks_for_threads(side, lanes):
    layer = Layer(64, 3, side, side, lanes, 0.5)
    for variant in variants(layer.weight, layer.x, layer.y):
        assert layer.step("generic", variant).chunks >= 2


def test_shapes_that_do_not_fit_are_refused():
    layer = Layer(3, 4, 8, 8, 16, 1.0)
    variant = variants(layer.weight, layer.x, layer.y)[0]
    with pytest.raises(ValueError, match="weight is"):
        conv("generic", layer.weight[:, :3], None, layer.x, layer.y, variant=variant)
    with pytest.raises(ValueError, match="differ"):
        conv("generic", layer.weight, None, layer.x, place((3, 8, 4), 16), variant=variant)
    with pytest.raises(ValueError, match="residual is"):
        conv("generic", layer.weight, None, layer.x, layer.y, residual=layer.x, variant=variant)
    with pytest.raises(ValueError, match="bias has"):
        conv("generic", layer.weight, np.zeros(2, np.float32), layer.x, layer.y, variant=variant)
    with pytest.raises(ValueError, match="no instruction set"):
        conv("mmx", layer.weight, None, layer.x, layer.y, variant=variant)


@pytest.mark.parametrize(
    "variant",
    [
        Variant("tiles", 5, 5, 4), Variant("tiles", 0, 17, 4), Variant("tiles", 4, 4, 0), Variant("tiles", 4, 4, 9),
        Variant("runs", 8, 16, 4), Variant("held", 8, 8, 4), Variant("unfolded", 2, 2, 4), Variant("stars", 4, 4, 4),
    ],
)  # fmt: skip
def test_variants_that_do_not_fit_are_refused(variant):
    layer = Layer(3, 4, 8, 8, 16, 1.0)
    with pytest.raises(ValueError, match=r"."):
        layer.step("generic", variant)


def test_parts_of_overlapping_tiles_are_refused():
    layer = Layer(3, 4, 7, 7, 16, 1.0)
    with pytest.raises(ValueError, match="overlap"):
        layer.step("generic", Variant("tiles", 4, 4, 2))


def test_runs_want_a_border():
    layer = Layer(3, 4, 8, 16, 1, 1.0)
    with pytest.raises(ValueError, match="border"):
        conv("generic", layer.weight, None, place((4, 8, 16), 1), layer.y, variant=Variant("runs", 8, 16, 4))


def raw(**changes):
    layer = Layer(2, 3, 4, 4, 1, 1.0)
    x, y = (
        {"at": p.at + 4 * p.first, "channels": p.channels, "height": 4, "width": 4, "plane": p.plane, "pitch": p.pitch}
        for p in (layer.x, layer.y)
    )
    given = {
        "isa": "generic", "way": "held", "x": x, "y": y, "start": np.array([0, 2, 2, 2], np.int32),
        "source": np.array([0, 1], np.int32), "weight": np.ones((2, 9), np.float32), "bias": np.ones(2, np.float32),
        "low": 0.0, "high": 1.0, "rows": 4, "columns": 4,
    }  # fmt: skip
    given |= changes
    return _native.planes(**{name: _native.Place(**v) if isinstance(v, dict) else v for name, v in given.items()})


@pytest.mark.parametrize(
    "changes",
    [
        {"start": np.array([0, 2, 2], np.int32)},
        {"start": np.array([0, 2, 1, 2], np.int32)},
        {"start": np.array([1, 2, 2, 2], np.int32)},
        {"start": np.array([0, 1, 1, 1], np.int32)},
        {"start": np.array([0, 2, 2, 2], np.int64)},
        {"source": np.array([0, 2], np.int32)},
        {"source": np.array([-1, 1], np.int32)},
        {"weight": np.ones((2, 8), np.float32)},
        {"weight": np.ones((2, 9), np.float64)},
        {"weight": np.ones((9, 4), np.float32).T[:2]},
        {"ranges": 0},
        {"ranges": 3},
        {"parts": 2},
        {"rows": 5},
        {"y": {"at": -64, "channels": 2, "height": 4, "width": 4, "plane": 32, "pitch": 5}},
        {"y": {"at": 64, "channels": 2, "height": 4, "width": 4, "plane": -32, "pitch": 5}},
        {"y": {"at": 64, "channels": 2, "height": 4, "width": 4, "plane": 2**60, "pitch": 5}},
        {"way": "runs", "x": {"at": 0, "channels": 3, "height": 4, "width": 4, "plane": 32, "pitch": 5}},
    ],
)
def test_arrays_and_places_that_do_not_fit_are_refused(changes):
    raw()
    with pytest.raises(ValueError, match=r"."):
        raw(**changes)


def test_a_step_too_large_for_the_arena_does_not_run():
    layer = Layer(2, 3, 4, 4, 1, 1.0)
    step = layer.step("generic", variants(layer.weight, layer.x, layer.y)[0])
    with pytest.raises(ValueError, match="bytes"):
        step.run(_native.Arena(256))


def test_indices_cannot_be_changed_afterwards():
    source = np.array([0, 1], np.int32)
    step = raw(source=source)
    source[:] = 1 << 30
    step.run(_native.Arena(1 << 16))
