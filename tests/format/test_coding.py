import tracemalloc

import numpy as np
import pytest
from format.reference import encode
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from synaptree.format.coding import MASK_CODINGS, decode_mask, encode_mask, mask_coding, mask_entropy
from synaptree.format.errors import FormatError
from synaptree.format.wire import seal, unseal, varint

SHAPES = st.tuples(st.integers(0, 40), st.integers(0, 40))
MASKS = SHAPES.flatmap(lambda shape: st.one_of(
    arrays.arrays(np.bool_, shape),
    arrays.arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(False)),
    st.sampled_from([False, True]).map(lambda value: np.full(shape, value)),
    st.tuples(st.integers(0, 1000), st.floats(0, 1)).map(lambda made: skewed(shape, made[1], made[0])),
))


def uniform(shape, density, seed=0):
    return np.random.default_rng(seed).random(shape) < density


def skewed(shape, density, seed=0):
    rng = np.random.default_rng(seed)
    rows, columns = rng.lognormal(size=(shape[0], 1)), rng.lognormal(size=(1, shape[1]))
    return rng.random(shape) < density * rows * columns


def written(mask):
    """Return the mask in each coding that takes it."""
    for coding in MASK_CODINGS:
        try:
            yield coding, encode_mask(mask, coding)
        except FormatError as error:
            assert "needs more bytes than 'bitmap'" in str(error)  # noqa: PT017


@given(MASKS)
def test_every_coding_gives_the_mask_back(mask):
    for coding, section in written(mask):
        assert mask_coding(section) == coding
        found = decode_mask(section, mask.shape)
        assert found.dtype == np.bool_
        assert found.shape == mask.shape
        assert (found == mask).all()


@given(MASKS)
def test_the_smallest_coding_is_written_and_the_same_mask_gives_the_same_bytes(mask):
    section = encode_mask(mask)
    assert len(section) == min(len(each) for _, each in written(mask))
    assert encode_mask(np.asfortranarray(mask)) == section


@pytest.mark.parametrize("density", [0, 0.0003, 0.001, 0.004, 0.01, 0.125, 0.45, 0.49, 0.5, 0.9999, 1])
@pytest.mark.parametrize("made", [uniform, skewed])
def test_a_coding_left_out_before_it_is_written_would_not_have_been_the_smallest(made, density):
    mask = made((200, 170), density)
    assert len(encode_mask(mask)) == min(len(section) for _, section in written(mask))


@pytest.mark.parametrize(("shape", "axes"), [
    ((8, 40_000), [1]), ((40_000, 8), [0]), ((700, 500), [0, 1]), ((1, 600_000), []), ((600_000, 1), []),
])
def test_masks_of_more_entries_than_are_read_at_a_time_come_back(shape, axes):
    mask = uniform(shape, 0.95)
    for axis in axes:  # every third row or column has few ones
        third = mask[::3] if axis == 0 else mask[:, ::3]
        third &= uniform(third.shape, 0.05, seed=1 + axis)
    section = encode_mask(mask, "range")
    assert [axis for axis, classes in enumerate(divmod(unseal(section)[1], 16)) if classes] == axes
    assert (decode_mask(section, shape) == mask).all()


def test_a_bitmap_by_hand():
    # 1 0 1 0 0 0 0 0 | 1, lowest bit first: 0b00000101, 0b00000001
    mask = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 1]], bool)
    assert unseal(encode_mask(mask, "bitmap")) == bytes([0, 0b101, 0b1])


def test_gaps_by_hand():
    # ones at 2 and 303 of 600 * 30 entries: 2 before the first, 300 between; 300 = 44 + 2 * 128
    mask = np.zeros((600, 30), bool)
    mask.ravel()[[2, 303]] = True
    assert unseal(encode_mask(mask, "gaps")) == bytes([1, 2, 44 | 128, 2])


@pytest.mark.parametrize(("mask", "body"), [
    (np.zeros((3, 5), bool), bytes([2, 0x00, 0])), (np.ones((3, 5), bool), bytes([2, 0x00, 15])),
    (np.zeros((0, 5), bool), bytes([2, 0x00])),
])
def test_a_block_of_equals_needs_no_words_in_the_range_coding(mask, body):
    assert unseal(encode_mask(mask, "range")) == body


def test_rows_that_differ_are_sorted_into_classes_by_hand():
    # rows 0, 2, 4.. full, the others empty: two classes of 32 rows, 0 and 32 * 16 = 512 ones, 64 bits for the classes
    mask = np.zeros((64, 16), bool)
    mask[::2] = True
    body = unseal(encode_mask(mask, "range"))
    assert body[:6] == bytes([2, 0x10, 32, 32, 0]) + varint(512)[:1]
    assert len(body) == 5 + 2 + 12  # head, 512 takes two bytes, 64 bits and the coder's last word


def test_a_uniform_mask_is_its_ones_and_one_message():
    mask = uniform((20, 30), 0.1)
    ones = int(mask.sum())
    words = encode(mask.ravel().astype(int).tolist(), [600 - ones, ones])
    assert ones < 128
    assert unseal(encode_mask(mask, "range")) == bytes([2, 0, ones]) + np.array(words, "<u4").tobytes()


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_uniform_masks_take_their_layerwise_entropy(density):
    mask = uniform((300, 784), density)
    assert 8 * len(encode_mask(mask)) <= 1.02 * mask_entropy(mask)


@pytest.mark.parametrize(("density", "share"), [(0.1, 0.85), (0.02, 0.85)])
def test_masks_with_unequal_rows_and_columns_take_less_than_their_layerwise_entropy(density, share):
    mask = skewed((300, 784), density)
    assert 8 * len(encode_mask(mask)) <= share * mask_entropy(mask)
    assert mask_coding(encode_mask(mask)) == "range"


@given(MASKS, st.data())
def test_cut_or_changed_bytes_are_refused(mask, data):
    for _, section in written(mask):
        damaged = bytearray(section)
        place = data.draw(st.integers(0, len(section) - 1))
        damaged[place] ^= data.draw(st.integers(1, 255))
        for bad in (bytes(damaged), section[:place], section + b"\0"):
            with pytest.raises(FormatError):
                decode_mask(bad, mask.shape)


@given(MASKS, SHAPES, st.data())
def test_bytes_made_up_under_a_right_checksum_give_a_mask_of_the_shape_or_one_error(mask, shape, data):
    for _, section in written(mask):
        body = bytearray(unseal(section))
        for _ in range(data.draw(st.integers(0, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        made = seal(bytes(body[: data.draw(st.integers(1, len(body)))]))
        for wanted in (mask.shape, shape):
            try:
                assert decode_mask(made, wanted).shape == wanted
            except FormatError:
                continue


@given(st.sampled_from(range(3)), st.binary(max_size=60), SHAPES)
def test_any_bytes_give_a_mask_of_the_shape_or_one_error(coding, body, shape):
    try:
        assert decode_mask(seal(bytes([coding]) + body), shape).shape == shape
    except FormatError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize(("body", "shape", "message"), [
    (bytes([9]), (1, 1), "unknown mask coding 9"),
    (bytes([0, 0]), (3, 3), "wanted 2 more bytes, 1 are left"),
    (bytes([0, 0, 2]), (3, 3), "bits behind the last entry"),
    (bytes([0, 0, 0, 0]), (3, 3), "wanted the end"),
    (bytes([1, 0x80]), (8, 8), "the last number is cut"),
    (bytes([1, 0x80, 0]), (8, 8), "more bytes than it needs"),
    (bytes([1, 64]), (8, 8), "entry 64 of a mask with 64"),
    (bytes([1, *[0] * 9]), (8, 8), "9 bytes, more than the bitmap's 8"),
    (bytes([1, 128, 128, 128, 128, 128, 1]), (8, 8), "a number of more than 5 bytes"),
    (bytes([2, 0, 65, 0]), (8, 8), "wanted a number up to 64, got 65"),
    (bytes([2, 0, 32]), (8, 8), "0 bytes cannot hold the ones they claim, 32 bits at least"),
    (bytes([2, 0, 1, 7]), (8, 8), "wanted words of 4 bytes, got 1"),
    (bytes([2, 0x10, 4, 5]), (8, 8), "wanted 8 and none empty"),
    (bytes([2, 0x10, 8, 0]), (8, 8), "wanted 8 and none empty"),
    (bytes([2, 0x10, 4, 4]), (8, 7), "wanted at least 8 entries"),
    (bytes([2, 0x10, 4, 4, 0, 0, 0, 0, 0, 0]), (8, 8), "do not have the sizes"),
])
def test_what_the_format_forbids_is_refused_by_name(body, shape, message):
    with pytest.raises(FormatError, match=message):
        decode_mask(seal(body), shape)


def test_a_shape_above_the_limit_is_refused_before_memory_is_taken():
    with pytest.raises(FormatError, match="wanted at most 2147483648 entries, got 1000000000000"):
        decode_mask(seal(bytes([2, 0, 0])), (1_000_000, 1_000_000))


@pytest.mark.parametrize("shape", [(2000, 2000), (4_000_000, 1), (1, 4_000_000), (500_000, 8)])
@pytest.mark.parametrize("claim", [0, 1, 3, 4_000_000])
def test_a_few_bytes_take_no_more_memory_than_the_mask_they_name(shape, claim):
    body = bytes([2, 0]) + varint(claim) + bytes(8)
    tracemalloc.start()
    try:
        decode_mask(seal(body), shape)
    except FormatError as error:
        assert str(error)  # noqa: PT017
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 4_000_000 + 3 * (1 << 20)  # the mask, one byte an entry, and the symbols read at a time


@pytest.mark.parametrize("shape", [(8, 300_000), (300_000, 8)])
def test_sorted_rows_and_columns_take_ten_bytes_each_beside_the_mask(shape):
    # every second column (or row) is full: two classes, told apart by one bit each
    mask = np.zeros(shape, bool)
    (mask if shape[1] == 8 else mask.T)[::2] = True
    section = encode_mask(mask, "range")
    tracemalloc.start()
    found = decode_mask(section, shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found == mask).all()
    assert 300_000 / 8 < len(section) < 1.01 * 300_000 / 8
    assert peak <= mask.size + len(section) + 10 * 300_000 + 2 * (1 << 20)


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros(4, bool)])
def test_an_array_that_is_no_mask_is_refused(mask):
    with pytest.raises(FormatError, match="wanted bool of two dimensions"):
        encode_mask(mask)


def test_a_coding_nobody_knows_is_refused():
    with pytest.raises(FormatError, match="unknown mask coding 'zip'"):
        encode_mask(np.zeros((1, 1), bool), "zip")
