from itertools import pairwise

import numpy as np
import pytest

_native = pytest.importorskip("synaptree.runtime._native")

from synaptree.runtime import lookup  # noqa: E402
from synaptree.runtime.integers import plan_integers  # noqa: E402
from synaptree.runtime.ir import Net, Node  # noqa: E402
from synaptree.runtime.quads import linear_quads, offered, sums_bytes  # noqa: E402
from synaptree.runtime.quantise import Bytes, bytes_place, floats_place  # noqa: E402

WIDE = "avx512"
wide = pytest.mark.skipif(WIDE not in _native.isas(), reason="bytes are multiplied side by side nowhere else")
GUARD = 201


def sparse(rng: np.random.Generator, rows: int, columns: int, density: float) -> np.ndarray:
    integers = rng.integers(-127, 128, (rows, columns)) * (rng.random((rows, columns)) < density)
    return integers.astype(np.int8)


def run(integers, values, most=None, looked_up=False, output_scale=None, scale=1.0, scales=None, bias=None, **options):
    """Run a layer that takes up to `most` samples on those given; what lies around the outputs must stay as it was."""
    (rows, columns), samples = integers.shape, len(values)
    x = bytes_place(columns, most or samples, at=64)
    y = bytes_place(rows, x.samples, at=x.end) if output_scale else floats_place(rows, x.samples, at=x.end)
    arena = _native.Arena(y.end + 64 + sums_bytes(rows, x.samples))
    flat = arena.floats.view(np.uint8)
    flat[:] = GUARD
    arena.floats[0] = scale
    flat[x.at :][: samples * x.pitch].reshape(samples, -1)[:, :columns] = values
    before = flat[: y.end + 64].copy()
    given = {"scale": scale} if rows % 2 else {"scale_at": 0}
    scales = np.ones(rows, np.float32) if scales is None else scales
    linear, how = linear_quads, {"sums": y.end + 64}
    if looked_up:
        linear, how = lookup.linear_int8, {"variant": lookup.Variant(0)}
    step = linear(WIDE, integers, scales, bias, x, y, **given, output_scale=output_scale, **how, **options)
    step.run(arena, x=np.zeros((samples, 1), np.float32))
    size = 1 if isinstance(y, Bytes) else 4
    target = flat[y.at :][: samples * y.pitch * size].reshape(samples, -1)
    result = target[:, : rows * size].copy()
    target[:, : rows * size] = GUARD
    assert np.array_equal(flat[: y.end + 64], before)
    return result if output_scale else result.view(np.float32)


@wide
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize(("rows", "columns", "samples"), [(1, 1, 9), (10, 70, 15), (33, 300, 20), (75, 129, 64)])
def test_sums_are_exact(density, rows, columns, samples):
    rng = np.random.default_rng(rows)
    integers, x = sparse(rng, rows, columns, density), rng.integers(0, 256, (samples, columns))
    assert np.array_equal(run(integers, x), (x - 128) @ integers.astype(int).T)


@wide
@pytest.mark.parametrize("samples", [1, 16, 17, 32, 33, 48, 50, 64])
@pytest.mark.parametrize("columns", [512, 2052, 3000])
def test_inputs_of_several_blocks_add_up(samples, columns):
    rng = np.random.default_rng(samples)
    integers, x = sparse(rng, 18, columns, 0.1), rng.integers(0, 256, (samples, columns))
    assert np.array_equal(run(integers, x), (x - 128) @ integers.astype(int).T)


@wide
@pytest.mark.parametrize("output_scale", [None, 300.0])
@pytest.mark.parametrize("rows", [16, 43])
def test_outputs_are_those_of_compressed_rows_bit_for_bit(output_scale, rows):
    rng = np.random.default_rng(rows)
    integers, x = sparse(rng, rows, 700, 0.2), rng.integers(0, 256, (40, 700))
    numbers = {"scales": rng.uniform(0.1, 1, rows).astype(np.float32), "bias": rng.normal(size=rows).astype(np.float32)}
    options = numbers | {"scale": np.float32(0.02), "output_scale": output_scale, "low": -400.0, "high": 300.0}
    assert np.array_equal(run(integers, x, **options), run(integers, x, looked_up=True, **options))


@wide
def test_a_run_of_fewer_samples_than_planned_computes_those_alone():
    rng = np.random.default_rng(7)
    integers, x = sparse(rng, 20, 600, 0.2), rng.integers(0, 256, (37, 600))
    for samples in (1, 16, 37):
        got = run(integers, x[:samples], most=64)
        assert np.array_equal(got, (x[:samples] - 128) @ integers.astype(int).T)


@wide
def test_bytes_for_the_next_layer_are_rounded_to_even_and_saturated():
    integers = np.eye(20, dtype=np.int8)
    x = np.full((2, 20), 128)
    x[0, :9] = 0, 127, 128, 129, 130, 131, 132, 133, 255
    x[1, 19] = 135
    got = run(integers, x, output_scale=2.0)
    assert got[0, :9].tolist() == [64, 128, 128, 128, 129, 130, 130, 130, 192]  # halves to even
    assert got[1].tolist() == [128] * 19 + [132]
    assert run(integers, x, output_scale=0.5)[0, :9].tolist() == [0, 126, 128, 130, 132, 134, 136, 138, 255]
    assert run(integers, x, output_scale=1.0, low=0)[0, 0] == 128


def int8_net(rng: np.random.Generator, *sizes: int) -> Net:
    nodes = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        integers, scales = sparse(rng, outputs, inputs, 0.2), rng.uniform(0.001, 0.01, outputs).astype(np.float32)
        given = {"weight": integers * scales[:, None], "integers": integers, "scales": scales}
        ranges = (4.0 if number < 2 else 0.0, 0.0)  # the last takes its scale from its inputs
        nodes.append(Node("linear", f"layer {number}", (number,), (outputs,), ranges=ranges, **given))
    return Net((sizes[0],), tuple(nodes), len(nodes))


@wide
@pytest.mark.parametrize("threads", [1, 2])
def test_networks_compute_the_same_either_way(threads):
    rng = np.random.default_rng(5)
    net, x = int8_net(rng, 130, 70, 530, 33), rng.normal(size=(30, 130)).astype(np.float32)
    outputs = []
    for kernels in (["int8 quads"] * 3, ["int8 compressed"] * 3, ["int8 compressed", "int8 quads", "int8 compressed"]):
        plan = plan_integers(net, 30, WIDE, budget=0.1, kernels=["enter", *kernels, "leave"])
        assert plan.kernels[1:4] == kernels
        network = _native.Network(
            steps=plan.steps, shared=[True] * len(plan.steps), arena=plan.arena, lanes=30, x_shape=[130], y_shape=[33],
            threads=threads, batch=30, quick=False, other=None,
        )  # fmt: skip
        outputs.append(network(x))
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])


def test_other_instruction_sets_and_few_samples_are_offered_nothing():
    assert not offered("generic", 64)
    assert not offered("avx2", 64)
    assert not offered(WIDE, 1)
    assert offered(WIDE, 64)


def test_instruction_sets_that_do_not_multiply_bytes_refuse():
    x, y = bytes_place(4, 16), floats_place(3, 16, at=1024 * 4)
    with pytest.raises(ValueError, match="no such kernel"):
        linear_quads("generic", np.ones((3, 4), np.int8), np.ones(3, np.float32), None, x, y, sums=1 << 14, scale=1.0)


def test_what_does_not_fit_is_refused():
    integers, scales = np.ones((3, 4), np.int8), np.ones(3, np.float32)
    x, y = bytes_place(4, 16), floats_place(3, 16, at=1024 * 4)
    with pytest.raises(ValueError, match="do not lead"):
        linear_quads(WIDE, integers.T, scales, None, x, y, sums=0, scale=1.0)
    with pytest.raises(ValueError, match="int8 integers"):
        linear_quads(WIDE, integers, scales[:2], None, x, y, sums=0, scale=1.0)
    with pytest.raises(ValueError, match="scale or scale_at"):
        linear_quads(WIDE, integers, scales, None, x, y, sums=0)
    with pytest.raises(ValueError, match="scale or scale_at"):
        linear_quads(WIDE, integers, scales, None, x, y, sums=0, scale=1.0, output_scale=1.0)


@pytest.fixture
def layer() -> dict:
    """Return what makes a layer of two rows on twenty inputs, in blocks of four quads and of one, to be spoilt."""
    zeros = np.zeros(16, np.float32)
    return {
        "x": 0, "x_pitch": 64, "sums": 4096, "y": 8192, "y_pitch": 2, "to_bytes": False, "rows": 2, "inputs": 20,
        "samples": 20, "vectors": 2, "scale": 1.0, "scale_at": -1, "inverse": 1.0, "low": 0.0, "high": 1.0,
        "bias": zeros, "scales": zeros, "excess": zeros.astype(np.int32), "block_quads": 4,
        "starts": np.array([0, 2, 2, 2, 4]), "offsets": np.array([0, 384, 0, 0], np.uint16),
        "weights": np.ones(4, np.int32),
    }  # fmt: skip


@wide
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", -1), ("x_pitch", -1), ("sums", -64), ("sums", 4), ("y", -4), ("y", 2), ("y_pitch", 1), ("rows", 0),
        ("rows", 3), ("rows", 17), ("inputs", 0), ("inputs", 16), ("inputs", 12), ("samples", 0), ("samples", 33),
        ("vectors", 0), ("vectors", 1), ("vectors", 5), ("scale_at", 2), ("bias", np.zeros(15, np.float32)),
        ("scales", np.zeros(17, np.float32)), ("excess", np.zeros(2, np.int32)), ("block_quads", 0),
        ("block_quads", 8), ("block_quads", 6), ("block_quads", 1 << 10), ("starts", np.array([0, 2, 2, 4])),
        ("starts", np.array([0, 2, 0, 2, 4])), ("starts", np.array([0, 1, 2, 2, 4])),
        ("starts", np.array([2, 2, 2, 2, 4])),
        ("starts", np.array([0, 2, 2, 2, 2])), ("starts", np.array([0, 2, 2, 2, 6])),
        ("offsets", np.array([0, 512, 0, 0], np.uint16)), ("offsets", np.array([0, 64, 0, 0], np.uint16)),
        ("offsets", np.array([0, 0, 128, 0], np.uint16)), ("offsets", np.zeros(3, np.uint16)),
        ("weights", np.ones(3, np.int32)),
    ],
)  # fmt: skip
def test_a_layer_that_would_leave_its_arrays_is_refused(layer, name, value):
    _native.quads(WIDE, **layer)
    with pytest.raises(ValueError):  # noqa: PT011
        _native.quads(WIDE, **layer | {name: value})


@wide
@pytest.mark.parametrize(
    ("name", "value", "end"),
    [
        ("y", 8192, 8192 + 20 * 2 * 4), ("x", 9000, 9000 + 19 * 64 + 32), ("sums", 8192, 8192 + 16 * 128),
        ("scale_at", 16000, 16004),
    ],
)  # fmt: skip
def test_a_layer_counts_all_it_touches(layer, name, value, end):
    layer = layer | {"y": 7000} | {name: value}
    x = np.zeros((20, 1), np.float32)
    _native.quads(WIDE, **layer).run(_native.Arena(-(-end // 64) * 64), x=x)
    with pytest.raises(ValueError, match=f"touches {end} bytes"):
        _native.quads(WIDE, **layer).run(_native.Arena(end - 64), x=x)
