import resource
import tracemalloc
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from format.small import GOLDEN, compressed, convolutional, entries, numbers, ones
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from synaptree.format import Entry, File, FormatError, Input, Program, Step, decode, encode, read_file, write_file
from synaptree.format.file import HEADER_LIMIT, MAGIC, START, split
from synaptree.format.header import Header, Line, Stored, write_header
from synaptree.format.tree import DEPTH
from synaptree.format.wire import seal

SMALL = {"convolutional": convolutional, "compressed": compressed}
CODED = st.sampled_from(["fp32", "fp16", "int8"])
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def header_of(data):
    """Return the header's bytes."""
    size = START.unpack(data[: START.size])[2]
    return data[START.size : START.size + size]


def assembled(header, sections=(), filler=0, version=1):
    """Return a file with these parts and right checksums of header and sections."""
    joint = zlib.crc32(b"".join(section[-4:] for section in sections))
    start = START.pack(MAGIC, version, len(header), joint) + header
    return b"".join([seal(start), *sections, bytes(filler)])


def repaired(data):
    """Return the bytes with right checksums wherever the unharmed file had them."""
    found, sections = split(data)
    return lambda header, bodies: assembled(header, [seal(body) for body in bodies], found.filler_bytes), [
        header_of(data), *(section[:-4] for section in sections)
    ]


def same(before, after):
    """Compare trees with arrays in them."""
    if isinstance(before, np.ndarray):
        return before.dtype == after.dtype and before.shape == after.shape and before.tobytes() == after.tobytes()
    if isinstance(before, dict):
        return list(before) == list(after) and all(same(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(same, before, after))
    return type(before) is type(after) and before == after


def assert_same(before, after):
    assert list(before.entries) == list(after.entries)
    for name, entry in before.entries.items():
        found = after.entries[name]
        assert (entry.shape, entry.dtype, entry.values) == (found.shape, found.dtype, found.values)
        assert same(entry.mask, found.mask)
        if entry.values == "fp16":
            assert same(entry.tensor().astype(np.float16).astype(np.float32), found.tensor())
        elif entry.values != "int8":
            assert same(entry.tensor(), found.tensor())
    assert (before.aliases, before.ranges, before.about) == (after.aliases, after.ranges, after.about)
    assert same(before.topology, after.topology)
    assert before.program == after.program


@pytest.mark.parametrize("name", SMALL)
def test_a_golden_file_of_version_1_still_holds_the_known_arrays(name):
    data = (GOLDEN / f"{name}.syn").read_bytes()
    found = decode(data)
    assert_same(SMALL[name](), found)
    assert encode(found) == data
    for entry in SMALL[name]().entries.values():
        if entry.values == "int8":  # off by at most half a step
            steps = entry.scales.astype(np.float64)[entry.channels()]
            assert (np.abs(found.entries[entry.name].data.ravel() - entry.data.ravel()) <= steps / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_file_comes_back_and_the_same_file_gives_the_same_bytes(name):
    data = encode(SMALL[name]())
    assert_same(SMALL[name](), decode(data))
    assert encode(SMALL[name]()) == data
    assert encode(decode(data)) == data


@st.composite
def made_entries(draw, name):
    shape = draw(SHAPES)
    if draw(st.integers(0, 3)) == 0:
        dtype = draw(st.sampled_from(["bool", "uint8", "int8", "int16", "int32", "int64", "float64"]))
        tensor, values = draw(arrays.arrays(dtype, shape)), "raw"
    else:
        tensor = draw(arrays.arrays(np.float32, shape, elements=st.floats(-1000, 1000, width=32)))
        dtype, values = draw(st.sampled_from(["float32", "float16", "bfloat16", "float64"])), draw(CODED)
    mask = None
    if shape and draw(st.booleans()):
        mask = draw(arrays.arrays(np.bool_, tuple(axis if draw(st.booleans()) else 1 for axis in shape)))
    return Entry.of(name, tensor, mask, values=values, dtype=dtype)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False), st.text(max_size=5),
    SHAPES.flatmap(lambda shape: arrays.arrays(st.sampled_from([np.bool_, np.int16, np.float32, np.float64]), shape)),
)
KEYS = st.text(max_size=3)
TREES = st.recursive(LEAVES, lambda more: st.lists(more, max_size=3) | st.dictionaries(KEYS, more, max_size=3))


@given(st.data())
def test_any_file_comes_back_exactly(data):
    names = data.draw(st.lists(st.sampled_from(["a", "b.weight", "b.bias", "layer1.0.w", "layer1.1.w"]), unique=True))
    made = entries(*(data.draw(made_entries(name)) for name in names))
    aliases = {"tied": names[0]} if names and data.draw(st.booleans()) else {}
    topology = data.draw(st.none() | st.dictionaries(KEYS, TREES, max_size=3))
    file = File(None, made, aliases, {}, topology, data.draw(st.dictionaries(KEYS, KEYS)))
    written = encode(file)
    found = decode(written)
    assert_same(file, found)
    assert encode(file) == encode(found) == written
    for name, alias in ((names[0], alias) for alias in aliases):
        assert same(found.tensor(alias), found.tensor(name))


@given(made_entries("w"))
def test_a_tensor_of_int8_is_its_integers_times_the_scales_of_its_rows(entry):
    entry = replace(entry, values="int8", dtype="float32", data=np.cos(np.arange(entry.data.size, dtype=np.float32)))
    entry = entry if entry.mask is not None else replace(entry, data=entry.data.reshape(entry.shape))
    found = decode(encode(File(entries={"w": entry}))).entries["w"]
    assert found.scales.tobytes() == entry.scales.tobytes()
    assert found.scales.shape == ((found.shape[0] if len(found.shape) > 1 else 1),)
    step = found.scales.astype(np.float32)[found.channels()]
    where = np.broadcast_to(np.ones(found.shape, bool) if found.mask is None else found.mask, found.shape)
    if len(found.shape) > 1:
        assert (found.channels() == np.nonzero(where)[0]).all()
    integers = np.rint(np.divide(found.data.ravel(), step, out=np.zeros(step.size), where=step > 0))
    assert (np.abs(integers) <= 127).all()
    assert (integers.astype(np.float32) * step == found.data.ravel()).all()


def test_a_tensor_is_zero_where_its_mask_is():
    # kernels (0, 1) and (1, 0) of a (2, 2, 1, 2) weight: their values in order are 2, 3 and 4, 5
    mask = np.array([[False, True], [True, False]]).reshape(2, 2, 1, 1)
    file = File(entries=entries(Entry.of("w", np.arange(8, dtype=np.float32).reshape(2, 2, 1, 2), mask)))
    found = decode(encode(file))
    assert found.entries["w"].data.tolist() == [2, 3, 4, 5]
    assert found.entries["w"].stored == 4
    assert found.tensor("w").ravel().tolist() == [0, 0, 2, 3, 4, 5, 0, 0]
    assert found.mask("w").tolist() == mask.tolist()


def test_a_file_by_hand():
    # header: no program, no topology (0); 1 tensor: name 0 + "w", float32 as fp32 (0), 1 axis of 8, no mask (0),
    # section of 13 bytes; 0 tied; 0 about. Section: fp32 (0), four planes of one byte each (2, byte), checksum
    data = encode(File(entries=entries(Entry.of("w", np.full(8, -1, np.float32)))))
    header = bytes([0, 1, 0, 1, ord("w"), 0, 1, 8, 0, 13, 0, 0])
    section = seal(bytes([0, 2, 1, 2, 0, 2, 0, 2, 0x7F]))
    start = b"\x89SYN\r\n\x1a\n" + bytes([1, 0, 12, 0, 0, 0]) + zlib.crc32(section[-4:]).to_bytes(4, "little") + header
    assert data == start + zlib.crc32(start).to_bytes(4, "little") + section


def test_the_header_of_a_fully_connected_network_takes_at_most_512_bytes():
    sizes, made, steps = (784, 300, 100, 10), [], [Step("flatten", "", (0,))]
    for number, (into, out) in enumerate(pairwise(sizes), 1):
        made += [Entry.of(f"fc{number}.weight", numbers(out, into), ones(out, into, every=50))]
        made += [Entry.of(f"fc{number}.bias", numbers(out))]
        steps += [Step("linear", f"fc{number}", (len(steps),)), Step("relu", f"relu{number}", (len(steps) + 1,))]
    ranges = {value: value / 7 for value in range(7)}
    program = Program((Input("x", (1, 28, 28)),), tuple(steps[:-1]), (6,))
    data = encode(File(program, entries(*made), {}, ranges))
    assert len(data) - split(data)[0].section_bytes <= 300


def test_what_was_read_cannot_be_changed_behind_the_bytes_it_is_written_as():
    found = decode(encode(convolutional()))
    for array in (found.entries["head.weight"].data, found.entries["head.weight"].mask,
                  found.topology["state"]["score/conv.weight"]["mean"]):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    found.tensor("conv.bias")[...] = 0  # new arrays both
    found.mask("conv.weight")[...] = False
    assert_same(convolutional(), found)


def test_what_replaces_something_read_is_written():
    found = decode(encode(convolutional()))
    entry = replace(found.entries["conv.bias"], data=np.full(4, 0.5, np.float32))
    topology = {**found.topology, "births": {"conv.weight": np.zeros((4, 2, 1, 1), np.int32)}}
    changed = decode(encode(replace(found, entries={**found.entries, "conv.bias": entry}, topology=topology)))
    assert changed.tensor("conv.bias").tolist() == [0.5] * 4
    assert not changed.topology["births"]["conv.weight"].any()
    assert same(changed.topology["state"], found.topology["state"])


@pytest.mark.parametrize("name", SMALL)
def test_every_changed_byte_is_refused(name):
    data = encode(SMALL[name]())
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(FormatError):
            decode(bytes(damaged))


def test_every_cut_and_every_byte_behind_the_end_is_refused():
    data = encode(compressed())
    for size in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:size])
    with pytest.raises(FormatError, match="behind the header"):
        decode(data + b"\0")


def test_sections_exchanged_or_taken_from_another_file_are_refused():
    def written(first, second):
        return encode(File(entries=entries(Entry.of("a", first), Entry.of("b", second))))

    ours, theirs = written(numbers(5), -numbers(5)), written(numbers(5) * 2, numbers(5) * 4)
    (_, (a, b)), (_, (c, d)) = split(ours), split(theirs)
    assert len({len(section) for section in (a, b, c, d)}) == 1
    start = ours[: -len(a) - len(b)]
    assert start + a + b == ours
    for first, second in ((b, a), (a, d), (c, b), (c, d)):
        with pytest.raises(FormatError, match="the sections are not those that the header was written for"):
            decode(start + first + second)


def check_strict(made):
    """Check that bytes are refused, or are the only way to write what was read."""
    try:
        found = decode(made)
    except FormatError as error:
        assert str(error)  # noqa: PT017
        return False
    assert encode(found) == made
    return True


def check_again(made):
    """Check also that what was read can be written anew."""
    if not check_strict(made):
        return
    found = decode(made)
    again = replace(found, entries={name: replace(entry) for name, entry in found.entries.items()})
    try:
        assert_same(found, decode(encode(again)))
    except FormatError as error:  # integers of -128 times the scale and such have no other way
        assert "int8" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", SMALL)
def test_every_changed_byte_of_a_header_under_a_right_checksum_is_refused_or_written_back(name):
    join, (header, *bodies) = repaired(encode(SMALL[name]()))
    accepted = 0
    for place in range(len(header)):
        damaged = bytearray(header)
        damaged[place] ^= 1 << place % 3
        accepted += check_strict(join(bytes(damaged), bodies))
    assert accepted  # other names, and numbers of options


@given(st.data(), st.sampled_from(sorted(SMALL)))
def test_bytes_made_up_under_right_checksums_are_refused_or_written_back(data, name):
    join, parts = repaired((GOLDEN / f"{name}.syn").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(parts) - 1))
        part = bytearray(parts[number])
        if part:
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
        parts[number] = bytes(part)
    check_again(join(parts[0], parts[1:]))


@given(st.binary(max_size=60))
def test_any_bytes_as_header_are_refused_or_written_back(body):
    check_strict(assembled(body))


def line(name="w", shape=(2, 3), dtype="float32", values="fp32", mask=None, sizes=(0, 13)):
    return Line(name, shape, dtype, values, mask, sizes)


def header(*tensors, program=None, aliases=None, ranges=None, topology=None, stored=(), about=None):
    return write_header(Header(program, tensors, aliases or {}, ranges or {}, topology, tuple(stored), about or {}))


CONSTANT = seal(bytes([0, 2, 0, 2, 0, 2, 0, 2, 0]))  # any number of +0.0
HUGE = 1 << 36


@pytest.mark.parametrize("made", [
    assembled(header(line(shape=(HUGE,))), [CONSTANT]),
    assembled(header(line(shape=(HUGE, 0, HUGE))), [CONSTANT]),
    assembled(header(line(shape=(1 << 20,) * 2, mask=(1 << 20,) * 2, sizes=(6, 13))), [seal(b"\1\0"), CONSTANT]),
    assembled(header(line(sizes=(0, 1 << 47))), [CONSTANT]),
    assembled(header(topology={"a": np.zeros(1)}, stored=[Stored((HUGE,), "int8", 13)]), [CONSTANT]),
    assembled(bytes([0, 255, 255, 255, 255, 127])),  # 2^35 tensors
    assembled(bytes([2, 7, 255, 255, 255, 255, 127])),  # a list of 2^35
    assembled(bytes([2, 6, 255, 255, 255, 255, 127])),
    assembled(bytes([1, 255, 255, 255, 255, 127])),
    START.pack(MAGIC, 1, (1 << 32) - 1, 0),
    assembled(bytes([2]) + bytes([7, 1]) * 100_000 + bytes([0])),
], ids=["axis", "axes", "mask", "section", "array", "tensors", "list", "text", "inputs", "header", "depth"])
def test_what_small_files_claim_takes_no_memory(made):
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode(made)
        assert tracemalloc.get_traced_memory()[1] < len(made) * 4 + 200_000
    finally:
        tracemalloc.stop()


def test_reading_takes_no_more_memory_than_the_tensors():
    weight = np.zeros((2048, 1024), np.float32)
    weight[::64, ::64] = 1
    data = encode(File(entries=entries(Entry.of("w", weight, weight != 0))))
    tracemalloc.start()
    try:
        decode(data)
        assert tracemalloc.get_traced_memory()[1] < weight.size + (3 << 20)  # the mask has one byte an entry
    finally:
        tracemalloc.stop()


def test_reading_takes_at_most_twice_what_the_tensors_take_in_the_end():
    whole, mask = np.full((512, 2048), 0.5, np.float32), np.ones((512, 2048), np.bool_)
    made = [Entry.of("w", whole, own, values=values) for values in ("fp32", "fp16", "int8") for own in (None, mask)]
    made += [Entry.of("w", whole.ravel(), values="int8"), *(Entry.of("w", whole > 0.5 * k) for k in range(2))]
    made += [Entry.of("w", np.arange(whole.size).reshape(whole.shape).astype(dtype)) for dtype in ("int64", "float64")]
    for entry in made:
        data = encode(File(entries=entries(entry)))
        taken = entry.data.nbytes + (0 if entry.mask is None else entry.mask.nbytes) + len(data)
        tracemalloc.start()
        try:
            decode(data)
            assert tracemalloc.get_traced_memory()[1] < 2 * taken + (1 << 20), entry
        finally:
            tracemalloc.stop()


def test_large_tensors_in_few_bytes_need_zeros_behind_them():
    # 4096 x 1024 entries less 2^20 at 2^16 a byte: 48 bytes; fp32 of no values: 1 + 4 + 4; a range of no ones and
    # a row: 3 + 4
    empty = Entry.of("w", np.zeros((4096, 1024), np.float32), np.zeros((4096, 1), np.bool_))
    data = encode(File(entries={"w": empty}))
    found, sections = split(data)
    size = sum(map(len, sections))
    assert found.filler_bytes == 48 - size > 0
    assert data[-found.filler_bytes :] == bytes(found.filler_bytes)
    assert not decode(data).tensor("w").any()
    for damaged in (data[:-1], data + b"\0"):
        with pytest.raises(FormatError, match=f"bytes of sections and {48 - size} of filler behind the header"):
            decode(damaged)
    with pytest.raises(FormatError, match="behind the last section are not zero"):
        decode(data[:-1] + b"\1")


def test_tensors_above_the_limit_are_refused():
    data = encode(File(entries=entries(Entry.of("a", numbers(10)), Entry.of("b", np.arange(5)))))
    assert decode(data, limit=80).tensor("b").tolist() == [0, 1, 2, 3, 4]  # 10 x 4 + 5 x 8
    with pytest.raises(FormatError, match="tensors of 80 bytes, wanted at most 79; raise the limit"):
        decode(data, limit=79)


@pytest.mark.parametrize(("made", "message"), [
    (b"", "no .syn file"), (b"PK\3\4" * 9, "no .syn file: begins with b'PK"),
    (MAGIC, "wanted 18 more bytes, 8 are left"),
    (assembled(header(), version=2), "unknown version 2. Known: 1"),
    (assembled(bytes([4, 0, 0, 0])), "unknown parts of the header 4. Known: 0 to 3"),
    (assembled(header() + b"\0"), "wanted the end, 1 bytes are left"),
    (assembled(bytes([0, 1, 0, 1, 119, 10, 0, 0, 13, 0, 0]), [CONSTANT]), "unknown dtype 10"),
    (assembled(bytes([0, 1, 0, 1, 119, 64, 0, 0, 13, 0, 0]), [CONSTANT]), "w: unknown coding of values 4"),
    (assembled(header(line(values="raw")), [CONSTANT]), "w: values of float32 coded as raw, wanted fp32, fp16 or"),
    (assembled(header(line(dtype="int8")), [CONSTANT]), "w: values of int8 coded as fp32, wanted raw"),
    (assembled(header(line(values="fp16")), [CONSTANT]), "w: values of coding fp32, wanted fp16"),
    (assembled(header(line(dtype="int8", values="raw", sizes=(0, 9))), [seal(bytes([1, 2, 0, 2, 0]))]), "coding fp16"),
    (assembled(header(line(dtype="bool", values="raw")), [seal(bytes([0] + [2, 4] * 4))]), "w: bytes of bool"),
    (assembled(header(line(dtype="int8", values="raw")), [seal(bytes([0] + [2, 4] * 4))]), "not 0 behind the last"),
    (assembled(header(line(shape=(), mask=(), sizes=(5, 13))), [seal(b"\0"), CONSTANT]), "w: a mask of a single"),
    (assembled(header(line("a b")), [CONSTANT]), "name 'a b': wanted parts"),
    (assembled(header(line("")), [CONSTANT]), "name '': wanted parts"),
    (assembled(header(line("a" * 256)), [CONSTANT]), "wanted at most 255 letters"),
    (assembled(header(line(), aliases={"w": "w"}), [CONSTANT]), "alias 'w' of 'w': wanted a name of its own"),
    (assembled(bytes([0, 0, 1, 0, 1, 97, 0, 0])), "aliases of no tensor"),
    (assembled(bytes([2, 0, 0, 0, 0])), "topology: wanted a dict, got NoneType"),
    (assembled(bytes([2, 0, 0, 8, 2, 0, 0, 0, 0, 0])), "key '' stands in a dict twice"),
    (assembled(bytes([2, 0, 0, 8, 1, 0, 10, 0])), "unknown kind of value 10"),
    (assembled(bytes([2, 0, 0, 8, 1, 0, 9, 2, 0, 13, 0]), [CONSTANT]), "topology: an array of bfloat16"),
    (assembled(bytes([0, 0, 0, 2, 0, 0, 0, 0])), "header: names or keys that stand twice, out of order, or written"),
    (assembled(bytes([0, 2, *(0, 1, 119, 0, 0, 0, 13), *(1, 0, 0, 0, 0, 13), 0, 0]), [CONSTANT] * 2), "stand twice"),
    (assembled(bytes([0, 2, *(0, 1, 97, 0, 0, 0, 13), *(0, 2, 97, 98, 0, 0, 0, 13), 0, 0]), [CONSTANT] * 2), "longer"),
    (assembled(bytes([0, 1, *(0, 1, 119, 0, 1, 1, 2, 6, 13), 0, 0]), [seal(b"\0\0"), CONSTANT]), "written longer than"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_format_forbids_is_refused_by_name(made, message):
    with pytest.raises(FormatError, match=message):
        decode(made)


X = Input("x", (3,))


@pytest.mark.parametrize(("program", "ranges", "message"), [
    (Program((X,), (Step("linear", "fc", (0,)),), (1,)), {}, "step 0, linear 'fc': its weight is missing"),
    (Program((X,), (), (0,)), {1: 1.0}, "range 1.0 of value 1"),
    (Program((X,), (), (0,)), {0: -1.0}, "range -1.0 of value 0: wanted a finite one"),
    (Program((X,), (), (0,)), {0: float("nan")}, "range nan"),
    (Program((X,), (), (0,)), {0: float("inf")}, "range inf"),
])
def test_programs_are_checked_with_the_tensors_by_writer_and_reader(program, ranges, message):
    with pytest.raises(FormatError, match=message):
        encode(File(program, ranges=ranges))
    with pytest.raises(FormatError, match=message):
        decode(assembled(header(program=program, ranges=ranges)))


def test_an_option_at_its_default_is_refused_in_a_file_and_left_out_by_the_writer():
    said = File(Program((X,), (Step("elu", "", (0,), {"alpha": 1}),), (1,)))
    left_out = File(Program((X,), (Step("elu", "", (0,)),), (1,)))
    data = encode(said)
    assert data == encode(left_out)
    body = header_of(data)
    place = body.index(bytes([35, 0, 0, 1, 1, 0])) + 5  # elu, no name, one value one back, no options
    longer = body[:place] + bytes([1, 0, 5]) + np.float64(1).tobytes() + body[place + 1 :]
    with pytest.raises(FormatError, match="header: names or keys that stand twice, out of order, or written longer"):
        decode(assembled(longer))


@pytest.mark.parametrize(("entry", "message"), [
    (Entry.of("a b", numbers(3)), "name 'a b': wanted parts of a-z"),
    (Entry.of("w", numbers(3), values="fp64"), "w: unknown dtype 'float32' or coding of values 'fp64'"),
    (Entry.of("w", numbers(3), dtype="complex64"), "w: unknown dtype 'complex64'"),
    (Entry.of("w", np.arange(3), values="raw", dtype="float32"), "w: values of float32 coded as raw"),
    (replace(Entry.of("w", numbers(3)), shape=(4,)), "w: wanted data of shape \\(4,\\) and float32, got \\(3,\\)"),
    (replace(Entry.of("w", numbers(3)), data=np.zeros(3)), "got \\(3,\\) and float64"),
    (replace(Entry.of("w", numbers(3), ones(3)), mask=ones(1, 3)), "w: wanted a bool mask .*, got bool of shape"),
    (replace(Entry.of("w", numbers(3), ones(3)), mask=np.ones(3)), "got float64 of shape \\(3,\\)"),
    (replace(Entry.of("w", numbers(3), ones(3)), mask=ones(3, every=1)), "w: wanted data of shape \\(3,\\)"),
    (Entry.of("w", np.array([1e6], np.float32), values="fp16"), "w: fp16: 1 of 1 values are not finite or above 65504"),
    (Entry.of("w", np.array([np.nan], np.float32), values="int8"), "w: int8: 1 of 1 values are not finite"),
])
def test_tensors_that_cannot_be_written_are_refused_by_name(entry, message):
    with pytest.raises(FormatError, match=message):
        encode(File(entries={entry.name: entry}))


def deep(depth):
    return {} if depth == 0 else {"a": deep(depth - 1)}


@pytest.mark.parametrize(("file", "message"), [
    (File(entries={"v": Entry.of("w", numbers(3))}), "entry 'w' stands under the name 'v'"),
    (File(entries=entries(Entry.of("w", numbers(3))), aliases={"v": "u"}), "alias 'v' of 'u'"),
    (File(ranges={0: 1.0}), "of one of 0 values"),
    (File(topology={"a": {1: 2}}), "key 1 of a dict: wanted text"),
    (File(topology={"a": {1, 2}}), "set in a tree"),
    (File(topology={"a": 1 << 63}), "wanted at most 63 bits"),
    (File(topology={"a": np.zeros(3, np.complex64)}), "topology: an array of complex64"),
    (File(topology=deep(DEPTH + 1)), f"a tree of more than {DEPTH} lists and dicts"),
    (File(about={"a": "\ud800"}), "is no UTF-8"),
    (File(about={"a": "x" * HEADER_LIMIT}), f"wanted at most {HEADER_LIMIT}"),
])
def test_files_that_cannot_be_written_are_refused(file, message):
    with pytest.raises(FormatError, match=message):
        encode(file)


def test_trees_may_be_as_deep_as_the_limit():
    file = File(topology=deep(DEPTH))
    assert decode(encode(file)).topology == file.topology


def test_arrays_of_every_layout_are_written_by_their_values():
    big = np.arange(6, dtype=">i4").reshape(2, 3)
    file = File(topology={"big": big, "turned": big.T, "every": big[:, ::2], "one": np.array(3.5)})
    found = decode(encode(file)).topology
    for name, array in file.topology.items():
        assert (found[name] == array).all()
        assert found[name].shape == array.shape
        assert found[name].dtype.isnative


def test_an_unknown_tensor_is_refused_and_an_alias_gives_the_stored_one():
    file = convolutional()
    assert file.mask("twin.weight").shape == (30, 4)
    assert file.mask("conv.bias") is None
    with pytest.raises(FormatError, match="no tensor 'conv' in the file"):
        file.tensor("conv")


def test_a_file_is_written_whole_and_read_back(tmp_path):
    path = tmp_path / "new" / "a.syn"
    size = write_file(path, compressed())
    assert path.stat().st_size == size
    assert_same(compressed(), read_file(str(path)))
    assert [found.name for found in path.parent.iterdir()] == ["a.syn"]


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, before):
    path = tmp_path / "a.syn"
    if before:
        path.write_bytes(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(FormatError, match="a\\.syn: cannot be written: File too large"):
            write_file(path, compressed())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == ({"a.syn": before} if before else {})


def test_paths_that_cannot_be_read_or_written_are_named(tmp_path):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(encode(compressed())[:50])
    for name, message in {"none": "cannot be read: No such file", ".": "cannot be read: Is a directory",
                          "text/a": "cannot be read: Not a directory", "text": "no .syn file: begins with b'hello'",
                          "empty": "no .syn file: begins with b''", "cut": "are left"}.items():
        with pytest.raises(FormatError, match=message) as caught:
            read_file(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path))
    for name in ("text/a", "."):
        with pytest.raises(FormatError, match="cannot be written"):
            write_file(tmp_path / name, File())
    assert (tmp_path / "text").read_text() == "hello"
