"""Write the hostile files of this folder, most of them an honest one with one change, and the table of them.

Checksums are right wherever a wrong one is not the attack itself: what is refused is refused for what it says. Run
again, it writes the same bytes.
    python attacks/make.py
"""

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synaptree.format import Entry, File, Input, Program, Step, encode
from synaptree.format.file import MAGIC, START, VERSION, split
from synaptree.format.header import Header, Line, write_header
from synaptree.format.tree import text
from synaptree.format.wire import CHECKSUM_BYTES, seal, varint

FOLDER = Path(__file__).parent
CODE = '__import__("os").system("echo owned")'
BOMB = f"c__builtin__\neval\n(S'{CODE}'\ntR.".encode()  # a pickle that runs it
MOST = (1 << 63) - 1  # a reader that adds to it in 64 bits gets a negative number


class Attack(NamedTuple):
    """A hostile file.

    Attributes:
        what: it is.
        refused: what `load` says of it, or a part of that; "" if it loads, and what it says stays data.
        data: its bytes.
    """

    what: str
    refused: str
    data: bytes


def honest() -> File:
    """Return the file that all others are made of."""
    weight = np.array([[1, 0, -0.5], [0, 2, 0], [0.25, 0, 0], [0, 0, 3]], np.float32)
    bias = np.array([0.5, 0, 0, -1], np.float32)
    made = (Entry.of("fc.weight", weight, weight != 0, values="int8"), Entry.of("fc.bias", bias, values="fp16"))
    steps = (Step("linear", "fc", (0,)), Step("gelu", "act", (1,), {"approximate": "tanh"}))
    program = Program((Input("x", (3,)),), steps, (2,))
    aliases = {"twin.weight": "fc.weight"}
    topology = {"step": 7, "notes": ["as it was"]}
    return File(program, {entry.name: entry for entry in made}, aliases, {2: 1.5}, topology, {"note": "all is well"})


HONEST = encode(honest())
HEADER, SECTIONS = split(HONEST)
HEAD = write_header(HEADER)
PROGRAM, LINEAR, GELU = HEADER.program, *HEADER.program.steps
WEIGHT, BIAS = HEADER.tensors
STEPS = b"\2\1\0\2fc"  # two steps, the first of operator 1, its name
LIST = b"\7\1\6\x09as it was"


def joined(
    head: bytes = HEAD, sections: Sequence[bytes] = SECTIONS, filler: bytes = b"", version: int = VERSION
) -> bytes:
    """Return a file of these parts with right checksums."""
    joint = zlib.crc32(b"".join(section[-CHECKSUM_BYTES:] for section in sections))
    return b"".join([seal(START.pack(MAGIC, version, len(head), joint) + head), *sections, filler])


def saying(*, sections: Sequence[bytes] = SECTIONS, **parts: Any) -> bytes:
    """Return the file with other parts of the header."""
    return joined(write_header(HEADER._replace(**parts)), sections)


def spelling(old: bytes, new: bytes) -> bytes:
    """Return the file with bytes of the header replaced that stand there once."""
    assert HEAD.count(old) == 1, old
    return joined(HEAD.replace(old, new))


def with_weight(**parts: Any) -> bytes:
    """Return the file with another line for fc.weight."""
    return saying(tensors=(WEIGHT._replace(**parts), BIAS))


def with_body(place: int, body: bytes) -> bytes:
    """Return the file with another body of a section: 0 and 1 are mask and values of fc.weight, 2 is fc.bias."""
    sections = [*SECTIONS]
    sections[place] = seal(body)
    mask, values, bias = map(len, sections)
    return saying(tensors=(WEIGHT._replace(sizes=(mask, values)), BIAS._replace(sizes=(0, bias))), sections=sections)


def with_step(step: Step, place: int = 1) -> bytes:
    """Return the file with another step."""
    steps = [LINEAR, GELU]
    steps[place] = step
    return saying(program=replace(PROGRAM, steps=tuple(steps)))


def computing(step: Step, **tensors: tuple[int, ...]) -> bytes:
    """Return a file of one step and its tensors, all of them 0, which the reader checks before it reads them."""
    lines = tuple(
        Line(f"{step.name}.{name}", shape, "float32", "fp32", None, (0, len(ZEROS))) for name, shape in tensors.items()
    )
    program = Program((Input("x", (4, 8, 8)),), (step,), (1,))
    return joined(write_header(Header(program, lines, {}, {}, None, (), {})), [ZEROS] * len(lines))


def renamed(old: str, new: str) -> bytes:
    """Return the file with another name for a module and its tensors."""
    steps = tuple(replace(step, name=new if step.name == old else step.name) for step in PROGRAM.steps)
    tensors = tuple(line._replace(name=line.name.replace(old, new)) for line in HEADER.tensors)
    aliases = {name: stored.replace(old, new) for name, stored in HEADER.aliases.items()}
    return saying(program=replace(PROGRAM, steps=steps), tensors=tensors, aliases=aliases)


def zipped() -> bytes:
    """Return a zip as torch.save writes it, whose pickle runs code."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), BOMB)
    return stream.getvalue()


def safetensors() -> bytes:
    """Return a safetensors file of one number."""
    head = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(head)) + head + bytes(4)


def changed(place: int) -> bytes:
    """Return the file with one bit changed."""
    data = bytearray(HONEST)
    data[place] ^= 1
    return bytes(data)


def cut_elsewhere() -> bytes:
    """Return the file with a mask one byte longer, and values one byte shorter, than they are."""
    whole, first = b"".join(SECTIONS), len(SECTIONS[0]) + 1
    second = first + len(SECTIONS[1]) - 1
    sizes = (first, second - first)
    tensors = (WEIGHT._replace(sizes=sizes), BIAS)
    return saying(tensors=tensors, sections=[whole[:first], whole[first:second], whole[second:]])


def with_scale(half: int) -> bytes:
    """Return the file with these 16 bits as the first scale of fc.weight."""
    return with_body(1, VALUES[:1] + struct.pack("<H", half) + VALUES[3:])


def of_zeros(*lines: Line, ending: Callable[[int], bytes] = bytes) -> bytes:
    """Return a file of tensors of zeros, with what `ending` makes of the number of bytes that fill it up."""
    header = Header(None, lines, {}, {}, None, (), {})
    return joined(write_header(header), [ZEROS] * len(lines), ending(header.filler_bytes))


def exchanged() -> bytes:
    """Return a file in which the sections of two tensors, alike in all but their values, have changed places."""
    data = encode(File(entries={name: Entry.of(name, np.array([value], np.float32)) for name, value in A_AND_B}))
    first, second = split(data)[1]
    return data.removesuffix(first + second) + second + first


ZEROS = seal(bytes([0, 2, 0, 2, 0, 2, 0, 2, 0]))  # any number of fp32 zeros: four planes of one repeated byte
TWICE = bytes([0, 2, *(0, 1, *b"w", 0, 0, 0, 13), *(1, 0, 0, 0, 0, 13), 0, 0])  # two tensors "w", no program
A_AND_B = (("a", 1.5), ("b", -1.5))
MASK, VALUES, OF_BIAS = (section[:-CHECKSUM_BYTES] for section in SECTIONS)
FAR = (1 << 20, 1 << 20)
ATTACKS: Mapping[str, Attack] = {
    "honest": Attack("the file of which most others are made", "", HONEST),
    # more is claimed than is there
    "huge-shape": Attack(
        "a mask of 2^40 entries in three bytes", "wanted 41 bytes of sections and 16777160 of filler behind the header",
        with_weight(shape=FAR, mask_shape=FAR),
    ),
    "huge-axes": Attack(
        "an axis of 0 between two of 2^36: no entries, but rows and columns that no memory holds",
        "wanted 34 bytes of sections and 72057594037927887 of filler behind the header",
        with_weight(shape=(1 << 36, 0, 1 << 36), mask_shape=None),
    ),
    "above-the-limit": Attack(
        "2^30 + 1 numbers of 8 bytes, with all the filler they need", "wanted at most 8589934592; raise the limit",
        of_zeros(Line("w", ((1 << 30) + 1,), "int64", "raw", None, (0, len(ZEROS)))),
    ),
    "many-tensors": Attack(
        "a table of 2^63 - 1 tensors", f"wanted a number up to 109, got {MOST}",
        spelling(b"\2\0\x09fc.w", varint(MOST) + b"\0\x09fc.w"),
    ),
    "long-list": Attack(
        "a list of 2^40 values", f"wanted a number up to 35, got {1 << 40}",
        spelling(LIST, b"\7" + varint(1 << 40) + LIST[2:]),
    ),
    "long-text": Attack(
        "a text of 2^40 bytes", f"wanted a number up to 33, got {1 << 40}",
        spelling(b"\6\x09as", b"\6" + varint(1 << 40) + b"as"),
    ),
    "long-header": Attack(
        "a header of 2^32 - 1 bytes", "header of 4294967295 bytes, wanted at most 4194304",
        START.pack(MAGIC, VERSION, (1 << 32) - 1, 0) + HEAD,
    ),
    "long-section": Attack(
        "a section of 2^47 bytes", "wanted 140737488355350 bytes of sections",
        with_weight(sizes=(len(SECTIONS[0]), 1 << 47)),
    ),
    "deep": Attack(
        "lists, one in another, 1,000 deep", "a tree of more than 32 lists and dicts",
        spelling(LIST, b"\7\1" * 999 + LIST),
    ),
    "more-ones": Attack(
        "a mask with more ones than there are values", "wanted 12 more bytes", with_body(0, bytes([0, 255, 15]))
    ),
    "far-gap": Attack(
        "a one behind the mask's end", "gaps: entry 100 of a mask with 12", with_body(0, bytes([1, 100]))
    ),
    "dense-range": Attack(
        "entropy-coded ones without a word that says where", "cannot hold the ones they claim",
        with_body(0, bytes([2, 0, 5])),
    ),
    # what is there is not what was written
    "cut": Attack(
        "the last byte is missing", "wanted 41 bytes of sections and 0 of filler behind the header, got 40", HONEST[:-1]
    ),
    "trailing": Attack(
        "a byte behind the end", "wanted 41 bytes of sections and 0 of filler behind the header, got 42", HONEST + b"\0"
    ),
    "hidden": Attack(
        "a text where zeros fill the file up", "the bytes behind the last section are not zero",
        of_zeros(
            Line("w", (1 << 21,), "float32", "fp32", None, (0, len(ZEROS))),
            ending=lambda size: b"!".rjust(size, b"\0"),
        ),
    ),
    "changed-header": Attack(
        "a bit of the header", "section of 158 bytes: the checksum differs", changed(START.size + 20),
    ),
    "changed-value": Attack("a bit of a value", "fc.bias: section of 15 bytes: the checksum differs", changed(-8)),
    "cut-elsewhere": Attack(
        "lengths that cut the sections one byte later", "fc.weight: section of 8 bytes: the checksum differs",
        cut_elsewhere(),
    ),
    "exchanged": Attack(
        "two sections in each other's place", "the sections are not those that the header was written for", exchanged()
    ),
    # numbers out of the ordinary
    "overlong": Attack(
        "a number of ten bytes", "wanted a number of at most 9 bytes", spelling(STEPS, b"\xff" * 9 + b"\1" + STEPS[1:])
    ),
    "padded": Attack("a 2 in two bytes", "with more bytes than it needs", spelling(STEPS, b"\x82\0" + STEPS[1:])),
    "own-value": Attack(
        "a step that reads its own result", "step 1, gelu 'act': reads value 2, wanted one below its own, 2",
        with_step(replace(GELU, inputs=(2,))),
    ),
    "later-value": Attack(
        "a step that reads the value 2^63 - 1 before its own", f"step 1: byte 23: wanted a number up to 2, got {MOST}",
        spelling(b"act\1\1", b"act\1" + varint(MOST)),
    ),
    "nan-scale": Attack("NaN as scale of int8", "a scale is negative or not finite", with_scale(0x7E00)),
    "infinite-scale": Attack("infinity as scale of int8", "a scale is negative or not finite", with_scale(0x7C00)),
    "infinite-value": Attack(
        "infinity as fp16", "fc.bias: fp16: a value is not finite", with_body(2, bytes([1, 2, 0, 2, 0xF8]))
    ),
    "nan-range": Attack(
        "NaN as the size of a value", "range nan of value 2: wanted a finite one", saying(ranges={2: np.nan})
    ),
    # numbers that nobody knows
    "version-2": Attack("version 2", "unknown version 2", joined(version=2)),
    "unknown-part": Attack(
        "a header of parts that nobody knows", "unknown parts of the header 7", joined(b"\7" + HEAD[1:])
    ),
    "unknown-dtype": Attack(
        "a kind of number nobody knows", "unknown dtype 15", spelling(b"weight\x20", b"weight\x2f")
    ),
    "unknown-coding": Attack(
        "a coding of values nobody knows", "fc.weight: unknown coding of values 14",
        spelling(b"weight\x20", b"weight\xe0"),
    ),
    "other-coding": Attack(
        "fp16 values where the table says int8", "fc.weight: values of coding fp16, wanted int8",
        with_body(1, bytes([1, 2, 0, 2, 0])),
    ),
    "unknown-mask": Attack("a coding of masks nobody knows", "unknown mask coding 3", with_body(0, b"\3" + MASK[1:])),
    "unknown-operator": Attack(
        "an operator nobody knows", "step 1: unknown operator 31", spelling(b"\x26\0\3act", b"\x1f\0\3act")
    ),
    "unknown-option": Attack(
        "an option nobody knows", "gelu: unknown option 9", spelling(b"\1\0\6\4tanh", b"\1\x09\6\4tanh")
    ),
    # a program that does not fit
    "groups": Attack(
        "a convolution whose groups do not divide its channels", "wanted an axis 0 that 3 groups divide",
        computing(Step("conv2d", "m", (0,), {"groups": 3}), weight=(4, 3, 1, 1)),
    ),
    "other-bias": Attack(
        "a bias of fewer entries than units", "its bias has shape (3,), wanted (4,)",
        saying(tensors=(WEIGHT, BIAS._replace(shape=(3,)))),
    ),
    "no-weight": Attack("a layer without weight", "its weight is missing", with_step(replace(LINEAR, name="gone"), 0)),
    "at-odds": Attack(
        "a lower bound above the upper one: torch makes no such module", "the program cannot be run",
        computing(Step("hardtanh", "m", (0,), {"min_val": 2.0})),
    ),
    # names
    "same-name": Attack("two tensors of one name", "names or keys that stand twice", joined(TWICE, [ZEROS] * 2)),
    "same-key": Attack(
        "two values under one key", "key 'step' stands in a dict twice", spelling(b"\5notes", b"\4step")
    ),
    "alias-itself": Attack(
        "a tied tensor that is tied to itself", "alias 'fc.weight' of 'fc.weight': wanted a name of its own",
        saying(aliases={"fc.weight": "fc.weight"}),
    ),
    "alias-beyond": Attack(
        "a tied tensor that is tied to none", "wanted a number up to 1, got 2",
        spelling(b"twin.weight\0", b"twin.weight\2"),
    ),
    "below": Attack(
        "a tensor below a tensor", "is a name below 'fc.weight', which is no container",
        saying(aliases={"fc.weight.x": "fc.bias"}),
    ),
    "path": Attack(
        "a module named as a path", "name '../../etc/passwd.weight': wanted parts", renamed("fc", "../../etc/passwd"),
    ),
    "two-dots": Attack("a name with an empty part", "name 'fc..weight': wanted parts", renamed("fc", "fc.")),
    "code-name": Attack("a module named as code", f"name '{CODE}.weight': wanted parts", renamed("fc", CODE)),
    "no-text": Attack("a text that is no UTF-8", "is no UTF-8", spelling(b"all is", b"all \xff\xff")),
    # code
    "code-option": Attack(
        "code as option", "option 'approximate': wanted one of none, tanh", spelling(text("tanh"), text(CODE))
    ),
    "pickle": Attack("a pickle that runs code", "no .syn file", BOMB),
    "pickle-behind": Attack("the same behind the first bytes of a .syn file", "unknown version", MAGIC + BOMB),
    "zip": Attack("a file as torch.save writes it, with the same pickle", "no .syn file", zipped()),
    "safetensors": Attack("a safetensors file", "no .syn file", safetensors()),
    # what looks dangerous and is data
    "code-about": Attack("code as a text for people", "", saying(about={"note": CODE, CODE: "note"})),
    "code-topology": Attack("code as a text of the topology", "", spelling(text("as it was"), text(CODE))),
    "class-name": Attack("a module named `__class__`", "", renamed("fc", "__class__")),
    "forward-name": Attack("a module named forward", "", renamed("fc", "forward")),
    "training-name": Attack("a module named training", "", renamed("fc", "training")),
}
ABOUT = """# Files that a reader has to stand

Small `.syn` files that are damaged, lie or look dangerous. Checksums are right where a wrong one is not the point.
`make.py` writes them and this table; tests/format/test_attacks.py checks that `load` says of each what stands here, and
that nothing is run. What they would run only prints a word.
"""


def table() -> str:
    """Return README.md."""
    rows = [f"| {name}.syn | {each.what} | {each.refused or 'loads'} |" for name, each in ATTACKS.items()]
    return "\n".join([ABOUT, "| file | what it is | what `load` says, or a part of it |", "|---|---|---|", *rows, ""])


def main() -> int:
    """Write the files and the table."""
    for name, attack in ATTACKS.items():
        (FOLDER / f"{name}.syn").write_bytes(attack.data)
    (FOLDER / "README.md").write_text(table(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
