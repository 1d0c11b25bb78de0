"""Small files whose every number follows from a formula, and two of them as they were written in version 1.

A golden file was written by `write_file(path, convolutional())` or `write_file(path, compressed())` and is never
written again: what was read once is read for ever.
"""

from pathlib import Path

import numpy as np

from synaptree.format import Entry, File, Input, Program, Step

GOLDEN = Path(__file__).parent / "golden"


def numbers(*shape, modulus=23):
    """Return multiples of 1/16 from -11/16 to 11/16 (for modulus 23) in no simple order, fp32."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 7 % modulus - modulus // 2) / 16).astype(np.float32).reshape(shape)


def ones(*shape, every=3):
    """Return a mask with one entry True in so many."""
    return (np.arange(int(np.prod(shape))) * 5 % every == 0).reshape(shape)


def entries(*made):
    return {entry.name: entry for entry in made}


def convolutional():
    """Return a file with all there is: a program of two inputs, masks of kernels, tied tensors, a topology."""
    tensors = entries(
        Entry.of("conv.weight", numbers(4, 2, 3, 3), ones(4, 2, 1, 1)),
        Entry.of("conv.bias", numbers(4), values="fp16"),
        Entry.of("norm.weight", numbers(4) + 1),
        Entry.of("norm.bias", numbers(4)),
        Entry.of("norm.running_mean", numbers(4)),
        Entry.of("norm.running_var", numbers(4) ** 2 + 1),
        Entry.of("norm.num_batches_tracked", np.array(7)),
        Entry.of("head.weight", numbers(30, 4), numbers(30, 4) > 0.6),
        Entry.of("shift", numbers(30), dtype="bfloat16"),
    )
    steps = (
        Step("conv2d", "conv", (0,), {"padding": (1, 1), "padding_mode": "circular"}),
        Step("batch_norm2d", "norm", (2,), {"momentum": None}),
        Step("relu", "", (3,)),
        Step("adaptive_avg_pool2d", "pool", (4,), {"output_size": (1, 1)}),
        Step("flatten", "", (5,)),
        Step("linear", "head", (6,)),
        Step("constant", "shift", (), {"trained": True}),
        Step("add", "", (7, 8)),
        Step("mul", "", (1,), {"number": 2, "flipped": True}),
        Step("linear", "twin", (6,)),
    )
    inputs = (Input("image", (2, 8, 8)), Input("index", (), "int64"))
    program = Program(inputs, steps, (9, 10, 11), "dict", ("a", "b", "c"))
    topology = {
        "step": 12, "edits": [0, 4, -1], "rate": 0.25, "frozen": False, "none": None, "notes": ["größer"],
        "births": {"conv.weight": np.arange(8, dtype=np.int32).reshape(4, 2, 1, 1)},
        "state": {"score/conv.weight": {"mean": numbers(4, 2, 1, 1), "seen": np.array(True)}},
    }
    about = {"recipe": "none", "note": "größer"}
    return File(program, tensors, {"twin.weight": "head.weight"}, {0: 2.5, 7: 1.25}, topology, about)


def compressed():
    """Return a file without program in which every coding of masks and values occurs."""
    stairs = np.arange(40) < np.arange(32)[:, None] // 4
    return File(entries=entries(
        Entry.of("few.weight", numbers(20, 30), np.arange(600).reshape(20, 30) % 290 == 7, values="int8"),
        Entry.of("half.weight", numbers(5, 6), ones(5, 6, every=2), values="fp16"),
        Entry.of("rows.weight", numbers(32, 40, modulus=251), stairs, values="int8"),
        Entry.of("long", numbers(400, modulus=11), values="int8"),
        Entry.of("double", numbers(3).astype(np.float64) / 3),
        Entry.of("flags", ones(10)),
        Entry.of("none", np.zeros((0, 3), np.float32)),
        Entry.of("all.weight", numbers(3, 2), np.ones((3, 1), np.bool_)),
    ))
