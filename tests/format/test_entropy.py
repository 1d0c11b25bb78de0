import numpy as np
import pytest
from format.reference import Decoder as Plain
from format.reference import encode as plain_encode
from format.reference import frequencies as plain_frequencies
from hypothesis import given
from hypothesis import strategies as st

from synaptree.format.entropy import CHUNK, TOTAL, Decoder, Encoder, frequencies, model, models
from synaptree.format.errors import FormatError

COUNTS = st.lists(st.integers(0, 1 << 38), min_size=2, max_size=256).filter(any)


def words_of(encoder):
    return np.frombuffer(encoder.words(), "<u4").astype(np.uint32)


def test_half_and_half_is_half_of_the_range():
    # free = 2**24 - 2; 1 + 5 free / 10 = 2**23 each
    assert frequencies([5, 5]).tolist() == [1 << 23, 1 << 23]


@given(COUNTS)
def test_frequencies_sum_to_the_whole_leave_none_out_and_are_exact(counts):
    found = frequencies(counts)
    assert found.sum() == TOTAL
    assert found.min() >= 1
    assert found.tolist() == plain_frequencies(counts)


def test_frequencies_of_several_rows_are_those_of_each():
    # 2**24 - 2 = 16777214 to share: 1 + 3/4 of it is 12582911, 1 + 1/4 is 4194304; the missing one goes to the largest
    assert frequencies([[3, 1], [1, 3], [0, 7]]).tolist() == [frequencies(c).tolist() for c in ([3, 1], [1, 3], [0, 7])]
    assert frequencies([[3, 1], [1, 3]]).tolist() == [[12582912, 4194304], [4194304, 12582912]]
    assert len(models([[3, 1], [1, 3], [0, 7]])) == 3


def test_a_message_longer_than_the_library_gets_at_a_time_is_one_message():
    symbols = np.random.default_rng(0).integers(0, 3, CHUNK + 5).astype(np.uint8)
    whole, parts, by = Encoder(), Encoder(), model((1, 1, 1))
    whole.write(symbols, by)
    for part in (symbols[:7], symbols[7:]):
        parts.write(part, by)
    assert whole.words() == parts.words()
    decoder = Decoder(words_of(whole))
    assert (decoder.read(symbols.size, by) == symbols).all()
    decoder.end()


@given(COUNTS, st.randoms(use_true_random=False), st.integers(0, 60))
def test_a_coder_without_the_library_writes_and_reads_the_same_words(counts, random, size):
    # rare symbols as often as others: every frequency has to agree to the last unit, or all that follows is wrong
    symbols = [random.randrange(len(counts)) for _ in range(size)]
    encoder = Encoder()
    encoder.write(np.array(symbols, np.uint8), model(counts))
    plain = Plain([int(w) for w in words_of(encoder)])
    assert plain_encode(symbols, counts) == words_of(encoder).tolist()
    assert [plain.read(counts) for _ in symbols] == symbols
    assert plain.ended()
    decoder = Decoder(words_of(encoder))
    assert decoder.read(size, model(counts)).tolist() == symbols
    decoder.end()


def test_the_words_of_a_short_message_are_the_same_for_ever():
    encoder = Encoder()
    encoder.write(np.array([1, 0, 0, 1]), model((1, 1)))
    # quarters of quarters: 1001 of sixteen is the interval from 0x90..; the word chosen ends it rounded up
    assert words_of(encoder).tolist()[0] >> 28 == 0b1001


def test_words_nobody_wrote_are_refused():
    with pytest.raises(FormatError, match="no message has these words"):
        Decoder(np.full(4, 0xFFFFFFFF, np.uint32)).read(100, model((1, 1)))


def test_words_behind_the_message_are_refused():
    encoder = Encoder()
    encoder.write(np.array([1, 0]), model((1, 1)))
    decoder = Decoder(np.concatenate([words_of(encoder), np.array([1, 2, 3], np.uint32)]))
    decoder.read(2, model((1, 1)))
    plain = Plain([*words_of(encoder).tolist(), 1, 2, 3])
    assert [plain.read([1, 1]), plain.read([1, 1])] == [1, 0]
    assert not plain.ended()
    with pytest.raises(FormatError, match="more words than the message needs"):
        decoder.end()


def test_words_without_a_message_are_refused():
    with pytest.raises(FormatError, match="more words than the message needs"):
        Decoder(np.zeros(1, np.uint32)).end()
