import math

import numpy as np
import pytest
from format.small import compressed, convolutional, entries, numbers

from synaptree.format import Entry, File, FormatError, encode
from synaptree.format.file import split
from synaptree.format.inspect import inspect


def test_a_report_by_hand():
    # 16 x 4 entries, one in each row kept: a mask of 64 bits has 16 ones: 64 H(1/4) = 64 (2 - 3/4 log2 3) bits; values
    # are 1, the exponent always 127: 24 bits each. Dense 64 x 4; CSR 16 x (4 + 4) + 17 x 4, or 16 x (4 + 2) + 17 x 4
    mask = np.arange(4) == np.arange(16)[:, None] % 4
    bias = Entry.of("fc.bias", np.array([1, 1, 2, 2], np.float32))  # 24 bits and one each
    data = encode(File(entries=entries(Entry.of("fc.weight", mask.astype(np.float32), mask), bias)))
    found = inspect(data)
    first, second = found.rows
    assert (first.name, first.shape, first.density, first.value_coding) == ("fc.weight", (16, 4), 0.25, "fp32")
    assert first.mask_coding == "bitmap"
    assert first.mask_bytes == 1 + 8 + 4
    assert first.value_bytes == 1 + 4 * 2 + 4  # four constant planes
    assert first.bound == pytest.approx((64 * (2 - 0.75 * math.log2(3)) + 24 * 16) / 8)
    assert (first.dense, first.csr, first.csr16) == (256, 196, 164)
    assert (second.mask_coding, second.mask_bytes, second.density) == (None, 0, 1)
    assert second.bound == pytest.approx(25 * 4 / 8)
    assert second.dense == second.csr == second.csr16 == 16
    assert (found.dense, found.csr, found.csr16, found.bound) == (272, 212, 180, first.bound + second.bound)
    assert found.total == len(data)


@pytest.mark.parametrize("file", [convolutional(), compressed(), File()])
def test_the_parts_of_a_report_sum_up_to_the_file(file):
    data = encode(file)
    found = inspect(data)
    assert found.total == len(data)
    assert found.header_bytes == len(data) - split(data)[0].section_bytes
    assert [row.name for row in found.rows] == list(file.entries)
    for row, entry in zip(found.rows, file.entries.values(), strict=True):
        assert row.density == (entry.stored / math.prod(entry.shape) if math.prod(entry.shape) else 1)
    assert found.topology_bytes == sum(stored.size for stored in split(data)[0].arrays)


def test_the_bound_of_int8_is_the_entropy_of_its_integers():
    values = np.array([127, 127, -127, 0] * 8, np.float32)  # shares 1/2, 1/4, 1/4: 1.5 bits each
    row = inspect(encode(File(entries=entries(Entry.of("w", values, values=("int8")))))).rows[0]
    assert row.bound == 1.5 * 32 / 8


def test_the_bound_of_a_skewed_layer_is_near_what_it_takes():
    rng = np.random.default_rng(0)
    mask = rng.random((200, 300)) < 0.05
    entry = Entry.of("w", (rng.laplace(size=(200, 300)) * 0.03).astype(np.float32), mask)
    found = inspect(encode(File(entries={"w": entry})))
    assert found.bound < found.total < 1.06 * found.bound


def test_columns_that_16_bits_cannot_count_take_32():
    mask = np.zeros((1, (1 << 16) + 1), np.bool_)
    mask[0, 0] = True
    row = inspect(encode(File(entries=entries(Entry.of("w", mask.astype(np.float32), mask))))).rows[0]
    assert row.csr == row.csr16 == 8 + 8


def test_a_report_prints_every_tensor_and_every_total():
    text = str(inspect(encode(compressed())))
    lines = text.splitlines()
    assert lines[0].split() == ["tensor", "density", "mask", "bytes", "values", "bytes", "entropy"]
    assert [line.split()[0] for line in lines[1:9]] == list(compressed().entries)
    assert f"total: {len(encode(compressed()))}" in lines
    assert any(line.startswith("CSR of 16 bits: ") for line in lines)


def test_bytes_that_are_no_file_are_refused():
    with pytest.raises(FormatError, match="begins with b'hello'"):
        inspect(b"hello")
    with pytest.raises(FormatError, match="wanted at most 100"):
        inspect(encode(File(entries=entries(Entry.of("w", numbers(30))))), limit=100)
