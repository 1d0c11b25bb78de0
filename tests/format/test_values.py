import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from synaptree.format.errors import FormatError
from synaptree.format.values import PART, VALUE_CODINGS, decode_values, encode_values, quantize, value_coding
from synaptree.format.wire import seal, unseal

SIZES = st.integers(0, 300)
ANY = arrays.arrays(np.uint32, SIZES).map(lambda bits: bits.view(np.float32))
FINITE = arrays.arrays(np.float32, SIZES, elements=st.floats(-100, 100, width=32))


def laplace(size, seed=0):
    return (np.random.default_rng(seed).laplace(size=size) * 0.03).astype(np.float32)


def entropy(integers):
    counts = np.unique(integers, return_counts=True)[1]
    return float((counts * np.log2(integers.size / counts)).sum())


@given(ANY)
def test_fp32_gives_every_bit_back(values):
    found = decode_values(encode_values(values, "fp32"), values.size)
    assert (found.view(np.uint32) == values.view(np.uint32)).all()


@given(FINITE)
def test_fp16_gives_the_rounded_values_back(values):
    found = decode_values(encode_values(values, "fp16"), values.size)
    wanted = values.astype(np.float16).astype(np.float32)
    assert (found.view(np.uint32) == wanted.view(np.uint32)).all()


@given(FINITE, st.integers(1, 5), st.integers(0, 99))
def test_int8_gives_integer_times_scale_back_and_reports_the_largest_difference(values, number, seed):
    channels = np.random.default_rng(seed).integers(0, number, values.size)
    made = quantize(values, channels, number)
    found = decode_values(encode_values(values, "int8", channels, number), values.size, channels, number)
    assert (found == made.integers * made.scales.astype(np.float32)[channels]).all()
    assert np.abs(found.astype(np.float64) - values).max(initial=0) == made.error
    assert made.error <= 0.5 * made.scales.max() * (1 + 1e-9)


def test_int8_by_hand():
    # largest 127 and 254: scales 1 and 2; 2.5 / 1 rounds to the even 2, 3 / 2 = 1.5 to the even 2; off by 0.5 and 1
    values, channels = np.array([127, 2.5, -254, 3], np.float32), np.array([0, 0, 1, 1])
    made = quantize(values, channels, 2)
    assert made.integers.tolist() == [127, 2, -127, 2]
    assert made.scales.tolist() == [1, 2]
    assert made.error == 1
    # fp16 1 = 0x3c00, 2 = 0x4000; then a raw plane of 128 + integer
    assert unseal(encode_values(values, "int8", channels, 2)) == bytes([2, 0, 0x3C, 0, 0x40, 0, 255, 130, 1, 130])


@pytest.mark.parametrize("order", [np.sort, lambda channels: channels])
def test_int8_of_more_values_than_are_worked_on_at_a_time(order):
    values, channels = laplace(PART + 10), order(np.random.default_rng(1).integers(0, 4, PART + 10))
    made = quantize(values, channels, 5)
    for channel in range(4):
        own = values[channels == channel].astype(np.float64)
        step = float(made.scales[channel])
        assert step * 127 >= np.abs(own).max() > float(np.nextafter(made.scales[channel], np.float16(0))) * 127
        assert (made.integers[channels == channel] == np.rint(own / step)).all()
    assert made.scales[4] == 0


def test_fp32_by_hand():
    # -1 = 0xbf800000; the sign moves to the lowest bit: 0x7f000001; four planes of one repeated byte
    values = np.full(8, -1, np.float32)
    assert unseal(encode_values(values, "fp32")) == bytes([0, 2, 1, 2, 0, 2, 0, 2, 0x7F])


@pytest.mark.parametrize("size", [20_000, 100_000])
def test_int8_takes_the_entropy_of_its_integers(size):
    values = laplace(size)
    made = quantize(values, np.zeros(size, np.int64), 1)
    assert 8 * len(encode_values(values, "int8")) <= 1.03 * entropy(made.integers)


def test_fp32_takes_24_bits_for_sign_and_mantissa_and_the_entropy_of_its_exponents():
    values = laplace(20_000)
    exponents = values.view(np.uint32) >> 23 & 255
    assert 8 * len(encode_values(values, "fp32")) <= 24 * 20_000 + 1.03 * entropy(exponents)


def test_a_plane_that_entropy_coding_would_shorten_by_less_than_a_hundredth_stays_raw():
    # the third plane, behind the coding's byte and two raw ones, holds the upper bits of the mantissa
    # Laplace values nearly fill it; from 1 to 1.5 its first bit is 0: an eighth less
    near = np.copysign(np.random.default_rng(0).uniform(1, 1.5, 20_000), laplace(20_000)).astype(np.float32)
    for values, way in ((laplace(20_000), 0), (near, 1)):
        body = unseal(encode_values(values, "fp32"))
        assert [body[1], body[2 + 20_000], body[3 + 2 * 20_000]] == [0, 0, way]


def test_fp16_takes_less_than_its_16_bits():
    assert 8 * len(encode_values(laplace(20_000), "fp16")) <= 14 * 20_000


@pytest.mark.parametrize("coding", VALUE_CODINGS)
def test_the_same_values_give_the_same_bytes_and_the_coding_is_named(coding):
    section = encode_values(laplace(1000), coding)
    assert section == encode_values(laplace(2000)[:1000].copy(), coding) or coding == "int8"
    assert section == encode_values(laplace(1000), coding)
    assert value_coding(section) == coding


@given(FINITE, st.sampled_from(VALUE_CODINGS), st.data())
def test_cut_or_changed_bytes_are_refused(values, coding, data):
    section = encode_values(values, coding)
    damaged = bytearray(section)
    place = data.draw(st.integers(0, len(section) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(damaged), section[:place], section + b"\0"):
        with pytest.raises(FormatError):
            decode_values(bad, values.size)


@given(st.integers(0, 2), st.integers(0, 400), st.sampled_from(VALUE_CODINGS), st.data())
def test_bytes_made_up_under_a_right_checksum_give_values_or_one_error(seed, size, coding, data):
    body = bytearray(unseal(encode_values(laplace(300, seed), coding)))
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, min(len(body) - 1, 60)))] = data.draw(st.integers(0, 255))
    made = seal(bytes(body[: data.draw(st.integers(1, len(body)))]))
    try:
        assert decode_values(made, size).shape == (size,)
    except FormatError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize(("body", "message"), [
    ([7], "unknown value coding 7"),
    ([0, 3], "unknown way to write a plane 3"),
    ([0, 0, 1], "wanted 4 more bytes, 1 are left"),
    ([0, 1, 250, 6, 0], "bytes from 250 to 256"),
    ([0, 1, 5, 0, 0], "bytes from 5 to 5"),
    ([0, 1, 5, 1, 6], "groups of 2\\*\\*6 bytes, wanted at most 2\\*\\*5"),
    ([0, 1, 5, 1, 0, 0, 0], "all counts are 0"),
    ([0, 1, 5, 1, 0, 1, 1, 2, 0, 0, 0, 0], "wanted a number up to 1, got 2"),
    ([1, 2, 0, 2, 0xF8], "a value is not finite"),
    ([2, 0, 0x80, 2, 128], "a scale is negative"),
    ([2, 0, 0x7C, 2, 128], "a scale is negative or not finite"),
    ([2, 0, 0x3C, 2, 0], "an integer of -128"),
    ([2, 0, 0x3C, 2, 128, 1], "wanted the end"),
])
def test_what_the_format_forbids_is_refused_by_name(body, message):
    with pytest.raises(FormatError, match=message):
        decode_values(seal(bytes(body)), 4)


@pytest.mark.parametrize(("value", "coding", "message"), [
    (np.inf, "fp16", "1 of 2 values are not finite or above 65504"), (1e5, "fp16", "above 65504"),
    (np.nan, "int8", "1 of 2 values are not finite"), (1e9, "int8", "wanted at most 65504"),
    (1, "int4", "unknown value coding 'int4'"),
])
def test_values_that_do_not_fit_the_coding_are_refused(value, coding, message):
    with pytest.raises(FormatError, match=message):
        encode_values(np.array([value, 0.5], np.float32), coding)


@pytest.mark.parametrize("channels", [np.array([0, 2]), np.array([-1, 0]), np.array([0])])
def test_channels_that_do_not_fit_are_refused(channels):
    with pytest.raises(FormatError, match="int8: channels"):
        encode_values(np.ones(2, np.float32), "int8", channels, 2)
