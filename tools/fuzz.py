"""Feed the reader of `.syn` files with damaged ones: each is refused by its one error, or written back as it was.

An input that does anything else, or takes more time or memory than it may, is a finding: it is kept in a folder, and
the exit code is 1. The same seed and number give the same input.
    python tools/fuzz.py [--inputs N] [--seed N] [--keep FOLDER]
"""

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
import tracemalloc
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from synaptree.artifact.build import build
from synaptree.artifact.syn import load_topology, save
from synaptree.core.errors import CheckpointError
from synaptree.core.topology import Topology
from synaptree.format import OPERATORS, Entry, File, FormatError, Input, Program, Step, decode, encode
from synaptree.format.dtypes import DTYPES
from synaptree.format.file import MAGIC, START, VERSION, split
from synaptree.format.header import VALUES, Header, Stored, entries, read_header, write_header
from synaptree.format.inspect import inspect
from synaptree.format.options import Option, Value
from synaptree.format.tree import name_after, text
from synaptree.format.wire import CHECKSUM_BYTES, seal, varint

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "format" / "golden"
LIMIT = 1 << 24  # bytes of all tensors that are accepted: larger ones take longer and show nothing else
FILLER = 64  # bytes of filler put right at most: each lets a file claim 2^16 entries more
SECONDS = 5.0  # of processor time for an input
SHARE, BESIDE = 2, 4 << 20  # memory for an input: so many times what it stands for, and so many bytes
SAMPLE = 50  # memory is traced, and the report read, for one input in so many: that is slow
ROOM = 1 << 29  # bytes of addresses beyond those of the start
EXTREMES = (
    0, 1, 2, 7, 15, 16, 17, 127, 128, 255, 256, (1 << 16) - 1, 1 << 16, 1 << 20, (1 << 22) + 1, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, 1 << 38, (1 << 40) - 1, 1 << 40, 1 << 48, (1 << 62) + 1, (1 << 63) - 1,
)  # fmt: skip
OVERLONG = (b"\x80\x00", b"\x81\x80\x00", b"\x80" * 8 + b"\x00", b"\xff" * 9 + b"\x01", b"\xff" * 12)
NESTED = (b"\x07\x01", b"\x08\x01\x00")  # a list and a dict of one value, which follows
NAMES = (
    "forward", "training", "__class__", "__dict__", "_modules", "_parameters", "state_dict", "self", "import", "-",
    "-w", "0", "a.b.c.d", "x" * 255, ".".join("x" * 128), "x" * 256, "", ".", "a..b", "../../etc/passwd", "größe",
    "a b", "\0",
)  # fmt: skip
UNWRITABLE = (FormatError, IndexError, KeyError, OverflowError, ValueError)


class Parts(NamedTuple):
    """A file and what it is made of.

    Attributes:
        data: all bytes.
        header: as it was read.
        sections: with their checksums.
    """

    data: bytes
    header: Header
    sections: list[bytes]

    @property
    def head(self) -> bytes:
        """The header's bytes."""
        return self.data[START.size : START.size + START.unpack(self.data[: START.size])[2]]


def numbers(*shape: int) -> npt.NDArray[np.float32]:
    """Return multiples of 1/16 from -3/4 to 3/4 in no simple order."""
    return ((np.arange(prod(shape)) * 7 % 25 - 12) / 16).astype(np.float32).reshape(shape)


def codings() -> File:
    """Return a file with each coding of masks and values, each kind of number and each way to write a plane."""
    stairs = np.arange(24) < np.arange(24)[:, None] // 6 * 6
    made = [
        Entry.of("gaps", numbers(30, 20), np.arange(600).reshape(30, 20) % 290 == 7, values="int8"),
        Entry.of("classes", numbers(24, 24), stairs, values="int8"),
        Entry.of("bits", numbers(5, 6), np.arange(30).reshape(5, 6) % 2 == 0, values="fp16"),
        Entry.of("kernels", numbers(3, 2, 2, 2), np.eye(3, 2, dtype=bool)[..., None, None]),
        Entry.of("constant", np.full(40, -1.5, np.float32), values="fp16", dtype="bfloat16"),
        Entry.of("none", np.zeros((0, 3), np.float32), np.zeros((1, 3), bool)),
        *(Entry.of(f"raw.{dtype}", (numbers(3) * 16).astype(dtype), values="raw") for dtype in DTYPES[3:]),
    ]  # fmt: skip
    return File(entries={entry.name: entry for entry in made})


def tied() -> File:
    """Return a file with tied tensors, ranges, two inputs and a tree."""
    linear = (Step("linear", "a", (0,)), Step("linear", "b", (2,)))
    steps = (*linear, Step("add", "", (3, 2)), Step("embedding", "e", (1,)))
    program = Program((Input("x", (3,)), Input("i", (), "int64")), steps, (4, 5), "dict", ("y", "z"))
    weight = Entry.of("a.weight", numbers(3, 3), numbers(3, 3) > 0)
    tree = {"deep": {"list": [None, True, -7, 1 << 40, 0.5, "text", [np.arange(3), {}]]}}
    aliases = {"b.weight": "a.weight", "e.weight": "a.weight"}
    return File(program, {"a.weight": weight}, aliases, {0: 1.5, 4: 0.0}, tree, {"note": "größer"})


def operators(names: Iterable[str]) -> File:
    """Return a file in whose program each of these operators occurs; it can be built but not run."""
    shapes: dict[str, tuple[int, ...]] = {}
    steps = []
    for number, name in enumerate(names):
        operator = OPERATORS[name]
        shapes |= {part.under(f"m{number}"): (2,) * (2 if part.axes is None else part.axes) for part in operator.parts}
        options = {key: _value(option) for key, option in operator.options.items() if option.required}
        options |= {"clamp": {"min": 0.0}, "pad": {"pads": (1, 1)}, "upsample": {"scales": (2.0,)}}.get(name, {})
        inputs = (0,) * (operator.values[1] if operator.values[1] < 3 else 2)
        steps.append(Step(name, f"m{number}", inputs, options))
    made = {name: Entry.of(name, numbers(*shape) + 1 if shape else np.array(3)) for name, shape in shapes.items()}
    return File(Program((Input("x", (2, 4, 4)),), tuple(steps), (len(steps),)), made)


def _value(option: Option) -> Value:
    """Return a value that the option may have."""
    one: Any = option.choices[0] if option.kind == "text" else 0.5 if option.kind in ("float", "floats") else 1
    return (one,) * max(1, option.length) if option.kind in ("ints", "floats") else one


def developing() -> bytes:
    """Return the file of a network that has lost connections and grown others."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    topology = Topology()
    topology.add("0.weight", (3, 4))
    for period in (2, 3):
        topology.step += 10
        topology.edit({"0.weight": torch.arange(12).reshape(3, 4) % period > 0})
    topology.state["score/0.weight"] = {"mean": torch.ones(3, 4)}
    for parameter in model.parameters():
        parameter.data = torch.from_numpy(numbers(*parameter.shape))
    topology.apply(model)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "net.syn", example_input=torch.zeros(1, 4), topology=topology)
        return (Path(folder) / "net.syn").read_bytes()


def seeds() -> list[Parts]:
    """Return the files that are damaged: small, and between them all that the format has."""
    golden = [path.read_bytes() for path in sorted(GOLDEN.glob("*.syn"))]
    quarters = [operators([*OPERATORS][place::4]) for place in range(4)]  # small programs are read in less time
    made = [*golden, *map(encode, (codings(), tied(), *quarters)), developing()]
    return [Parts(data, *split(data)) for data in made]


def assembled(head: bytes, sections: Sequence[bytes], filler: int) -> bytes:
    """Return a file of these parts with right checksums."""
    joint = zlib.crc32(b"".join(section[-CHECKSUM_BYTES:] for section in sections))
    start = START.pack(MAGIC, VERSION, len(head), joint) + head
    return b"".join([seal(start), *sections, bytes(min(filler, FILLER))])


def with_head(head: bytes, sections: Sequence[bytes]) -> bytes:
    """Return a file with this header, be it one or not."""
    filler = 0
    with suppress(Exception):  # of whatever kind: reading the whole file will show it
        filler = read_header(head).filler_bytes
    return assembled(head, sections, filler)


def with_header(header: Header, sections: Sequence[bytes]) -> bytes:
    return assembled(write_header(header), sections, header.filler_bytes)


def sized(header: Header, sections: Sequence[bytes]) -> Header:
    """Return the header with the lengths of these sections."""
    left = iter([*map(len, sections), *[0] * len(sections)])
    tensors = [line._replace(sizes=(next(left) if line.mask_shape else 0, next(left))) for line in header.tensors]
    arrays = [replace(array, size=next(left)) for array in header.arrays]
    return header._replace(tensors=tuple(tensors), arrays=tuple(arrays))


def edited(body: bytes, donor: bytes, rng: Random) -> bytes:
    """Return bytes with one to three changes, more of them at the front, where more is said."""
    part = bytearray(body)
    for _ in range(rng.randint(1, 3)):
        at = min(rng.randrange(len(part) + 1), rng.randrange(len(part) + 1))
        old, start = part[at : at + 1], rng.randrange(len(donor) + 1)
        taken, new = rng.choice((
            (1, rng.randbytes(1)),
            (1, bytes(byte ^ 1 << rng.randrange(8) for byte in old)),
            (1, bytes((byte + rng.choice((-1, 1))) % 256 for byte in old)),
            (0, rng.randbytes(rng.randint(1, 4))),
            (rng.randint(1, 8), b""),
            (rng.choice((0, 4)), donor[start : start + rng.randint(1, 16)]),
        ))  # fmt: skip
        part[at : at + taken] = new
    return bytes(part)


def change_bytes(own: Parts, other: Parts, rng: Random) -> bytes:
    """Change bytes; every checksum stands."""
    return edited(own.data, other.data, rng)


def cut(own: Parts, _: Parts, rng: Random) -> bytes:
    """Leave out the end, or put zeros behind it."""
    return own.data[: rng.randrange(len(own.data))] if rng.random() < 0.8 else own.data + bytes(rng.randint(1, 9))


def splice(own: Parts, other: Parts, rng: Random) -> bytes:
    """Go on with another file."""
    return own.data[: rng.randrange(len(own.data))] + other.data[rng.randrange(len(other.data)) :]


def make_up(own: Parts, _: Parts, rng: Random) -> bytes:
    """Make bytes up: all, all but the first, or the header."""
    body = rng.randbytes(rng.randrange(100))
    return rng.choice((body, MAGIC + body, own.data[: START.size] + body, assembled(body, (), 0)))


def change_header(own: Parts, other: Parts, rng: Random) -> bytes:
    """Change bytes of the header."""
    return with_head(edited(own.head, other.head, rng), own.sections)


def change_number(own: Parts, _: Parts, rng: Random) -> bytes:
    """Put an extreme number, one longer than it may be, or lists in lists at a place of the header or a section."""
    number = rng.choice(OVERLONG) if rng.random() < 0.2 else varint(rng.choice(EXTREMES))
    if rng.random() < 0.2:
        at = rng.randrange(len(own.head))
        nested = rng.choice(NESTED) * rng.choice((1, 31, 32, 33, 500))
        return with_head(own.head[:at] + nested + own.head[at:], own.sections)
    if rng.random() < 0.7:
        at = rng.randrange(len(own.head))
        return with_head(own.head[:at] + number + own.head[at + 1 :], own.sections)
    return _with_section(own, rng, lambda body, at: body[:at] + number + body[at + 1 :])


def change_section(own: Parts, other: Parts, rng: Random) -> bytes:
    """Change bytes of a section."""
    donor = rng.choice([*other.sections, b""])
    return _with_section(own, rng, lambda body, _: edited(body, donor, rng))


def _with_section(own: Parts, rng: Random, change: Callable[[bytes, int], bytes]) -> bytes:
    """Return the file with one section changed, given its body and a place in it."""
    place = rng.randrange(len(own.sections))
    body = own.sections[place][:-CHECKSUM_BYTES]
    sections = [*own.sections]
    sections[place] = seal(change(body, rng.randrange(len(body))))
    return with_header(sized(own.header, sections), sections)


def move_sections(own: Parts, other: Parts, rng: Random) -> bytes:
    """Exchange sections, write one twice, leave one out or take another file's."""
    sections = [*own.sections]
    one, two = rng.randrange(len(sections)), rng.randrange(len(sections))
    match rng.randrange(4):
        case 0:
            sections[one], sections[two] = sections[two], sections[one]
        case 1:
            sections[one] = sections[two]
        case 2:
            del sections[one]
        case 3:
            sections[one] = rng.choice(other.sections)
    header = sized(own.header, sections) if rng.random() < 0.7 else own.header
    return with_header(header, sections)


def change_table(own: Parts, _: Parts, rng: Random) -> bytes:
    """Say something else of a tensor."""
    lines = [*own.header.tensors]
    place = rng.randrange(len(lines))
    line = lines[place]
    axes = [*line.shape]
    if axes and rng.random() < 0.8:
        axes[rng.randrange(len(axes))] = rng.choice(EXTREMES[:20])
    else:
        axes.insert(0, rng.choice((0, 1, 2)))
    masks = (None, tuple(axes), tuple(rng.choice((1, axis)) for axis in axes), (1,) * len(axes))
    new = line._replace(shape=tuple(axes), mask_shape=line.mask_shape and rng.choice(masks[1:]))
    match rng.randrange(4):
        case 0:
            new = line._replace(dtype=rng.choice(DTYPES), values=rng.choice(VALUES))
        case 1:
            new = new._replace(mask_shape=rng.choice(masks))
        case 2:
            lines.insert(rng.randrange(len(lines)), line)
    lines[place] = new
    header = own.header._replace(tensors=tuple(lines))
    return with_header(sized(header, own.sections), own.sections)


def change_program(own: Parts, other: Parts, rng: Random) -> bytes:
    """Change steps to others that are written by the rules."""
    program = own.header.program
    if program is None:
        return change_table(own, other, rng)
    steps, place = [*program.steps], rng.randrange(len(program.steps))
    step = steps[place]
    match rng.randrange(7):
        case 0:
            del steps[place]
        case 1:
            steps.insert(rng.randrange(len(steps)), step)
        case 2:
            steps[place] = replace(step, op=rng.choice([*OPERATORS]))
        case 3:
            inputs = tuple(rng.randint(0, place) for _ in range(rng.randint(0, 3)))
            steps[place] = replace(step, inputs=inputs)
        case _:
            known = OPERATORS[step.op].options
            steps[place] = replace(step, options={name: _extreme(option, rng) for name, option in known.items()})
    outputs = tuple(min(value, len(program.inputs) + len(steps) - 1) for value in program.outputs)
    changed = replace(program, steps=tuple(steps), outputs=outputs)
    return with_header(own.header._replace(program=changed), own.sections)


def _extreme(option: Option, rng: Random) -> Value:
    """Return a value of the option's kind, near its bounds or far from everything."""
    several = (rng.randint(1, 4) if option.length == 0 else option.length) if option.kind in ("ints", "floats") else 0
    found: tuple[Any, ...] = tuple(_extreme(replace(option, kind=option.kind[:-1]), rng) for _ in range(several))
    if found or (option.optional and rng.random() < 0.2):
        return found or None
    if option.kind in ("bool", "text"):
        return rng.choice(option.choices or (False, True))
    if option.kind == "float" or (option.kind == "number" and rng.random() < 0.5):
        return rng.choice((0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf")))
    return rng.choice(EXTREMES) if rng.random() < 0.7 else -rng.choice(EXTREMES)


def change_names(own: Parts, _: Parts, rng: Random) -> bytes:
    """Give a step and its tensors, or one tensor alone, a name that means something elsewhere, or none."""
    header, new = own.header, rng.choice(NAMES)
    names = [line.name for line in header.tensors] + [*header.aliases]
    old = rng.choice(names)
    old = old.rpartition(".")[0] if "." in old and rng.random() < 0.7 else old

    def renamed(name: str) -> str:
        return new + name[len(old) :] if name == old or name.startswith(f"{old}.") else name

    program = header.program and replace(
        header.program, steps=tuple(replace(step, name=renamed(step.name)) for step in header.program.steps)
    )
    tensors = tuple(line._replace(name=renamed(line.name)) for line in header.tensors)
    aliases = {renamed(name): renamed(stored) for name, stored in header.aliases.items()}
    return with_header(header._replace(program=program, tensors=tensors, aliases=aliases), own.sections)


def respell(own: Parts, _: Parts, rng: Random) -> bytes:
    """Write a name with more letters than needed, or the name before it once more."""
    names = [line.name for line in own.header.tensors]
    before, name = rng.choice([*pairwise(names)])
    spelt = [varint(shared) + text(name[shared:]) for shared in range(len(name)) if before.startswith(name[:shared])]
    again = varint(len(before)) + text("")
    return with_head(own.head.replace(name_after(name, before), rng.choice([*spelt, again]), 1), own.sections)


def change_topology(own: Parts, _: Parts, rng: Random) -> bytes:
    """Put something else in the place of a value of the topology, or make one up."""
    old = own.header.topology
    made = {"a": _leaf(rng)} if old is None or rng.random() < 0.2 else _regrown(dict(old), rng)
    return with_header(own.header._replace(topology=made, arrays=_stored(made)), own.sections)


def _regrown(tree: Any, rng: Random) -> Any:
    """Return a tree with about one value in ten replaced."""
    if isinstance(tree, dict):
        return {key: _regrown(value, rng) if rng.random() < 0.9 else _leaf(rng) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_regrown(value, rng) for value in tree]
    return tree if rng.random() < 0.9 else _leaf(rng)


def _leaf(rng: Random) -> Any:
    nested: Any = {}
    for _ in range(rng.choice((0, 1, 31, 32, 40))):
        nested = [nested] if rng.random() < 0.5 else {"": nested}
    return rng.choice((None, True, "text", -1, 1.5, float("nan"), rng.choice(EXTREMES), nested, [1, None]))


def _stored(tree: Any) -> tuple[Stored, ...]:
    """Return what stands for arrays in a tree, in order."""
    if isinstance(tree, dict | list):
        return tuple(found for value in (tree.values() if isinstance(tree, dict) else tree) for found in _stored(value))
    return (tree,) if isinstance(tree, Stored) else ()


KINDS: Mapping[Callable[[Parts, Parts, Random], bytes], int] = {
    change_bytes: 1, cut: 1, splice: 1, make_up: 1, change_header: 4, change_number: 3, change_section: 5,
    move_sections: 2, change_table: 3, change_program: 3, change_names: 2, respell: 1, change_topology: 2,
}  # fmt: skip
"""Ways to damage a file, and how often each is taken."""


def damaged(files: Sequence[Parts], seed: int, number: int) -> tuple[str, bytes]:
    """Return how an input was made, and the input."""
    rng = Random(seed << 32 | number)
    (change,) = rng.choices([*KINDS], [*KINDS.values()])
    while True:
        own, other = rng.choice(files), rng.choice(files)
        with suppress(*UNWRITABLE):  # the writer of headers refuses some of what a reader has to
            if (made := change(own, other, rng)) not in (own.data, other.data):
                return change.__name__, made


def check(data: bytes, scratch: Path) -> str:
    """Return what became of an input: "refused", "read" or "built".

    Raises:
        Exception: anything else.
    """
    try:
        file = decode(data, limit=LIMIT)
    except FormatError:
        return "refused"
    if encode(file) != data:
        raise AssertionError("other bytes are written than were read")
    if file.topology is not None:
        scratch.write_bytes(data)
        with suppress(CheckpointError):
            load_topology(scratch)
    try:
        build(file)
    except CheckpointError:
        return "read"
    return "built"


def check_memory(data: bytes) -> None:
    """Check what reading takes.

    Raises:
        MemoryError: more than `SHARE` times the bytes and what they stand for, and `BESIDE`.
    """
    stands_for = len(data)
    with suppress(FormatError):
        header, _ = split(data, LIMIT)
        stands_for += sum(4 * entries(line.shape) + prod(line.mask_shape or (0,)) for line in header.tensors)
        stands_for += header.dense_bytes  # arrays, and float64
    tracemalloc.start()
    try:
        with suppress(FormatError):
            decode(data, limit=LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > SHARE * stands_for + BESIDE:
        raise MemoryError(f"{peak} bytes for {len(data)} that stand for {stands_for}")


@contextmanager
def clocked() -> Iterator[Callable[[float], object]]:
    """Within this, a function starts a clock, or stops it with 0: an input that takes longer is a `TimeoutError`."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Report(NamedTuple):
    """What became of the inputs.

    Attributes:
        counts: of (kind, "refused", "read", "built" or "finding").
        findings: the files in which they are kept.
    """

    counts: Counter[tuple[str, str]]
    findings: list[Path]

    def __str__(self) -> str:
        whats = ("refused", "read", "built", "finding")
        lines = [("", *whats), *((kind, *(self.counts[kind, what] for what in whats)) for kind in self.kinds)]
        return "\n".join(f"{kind:16}" + "".join(f"{each:>10}" for each in rest) for kind, *rest in lines)

    @property
    def kinds(self) -> list[str]:
        """The kinds of inputs there were."""
        return sorted({kind for kind, _ in self.counts})


def run(inputs: int, seed: int, keep: Path) -> Report:
    """Make inputs and check each."""
    files, counts, findings = seeds(), Counter[tuple[str, str]](), list[Path]()
    with tempfile.TemporaryDirectory() as folder, clocked() as clock, warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(inputs):
            kind, data = damaged(files, seed, number)
            clock(SECONDS)
            try:
                what = check(data, Path(folder) / "input.syn")
                clock(0)
                if number % SAMPLE == 0:
                    check_memory(data)
                    if what != "refused":
                        str(inspect(data))
            except Exception as error:  # whatever it is, it is what this looks for
                clock(0)
                what = "finding"
                keep.mkdir(parents=True, exist_ok=True)
                findings.append(keep / f"{seed}-{number}-{kind}-{type(error).__name__}.syn")
                findings[-1].write_bytes(data)
                print(f"{findings[-1]}: {type(error).__name__}: {error}")
            counts[kind, what] += 1
    return Report(counts, findings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "fuzz", help="folder of what was found")
    options = parser.parse_args()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    started = time.perf_counter()
    report = run(options.inputs, options.seed, options.keep)
    seconds = time.perf_counter() - started
    print(report)
    print(f"{options.inputs} inputs, {options.inputs / seconds:.0f} a second, {len(report.findings)} findings")
    return bool(report.findings)


if __name__ == "__main__":
    sys.exit(main())
