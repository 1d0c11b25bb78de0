"""A program as bytes, and back."""

from synaptree.format.dtypes import DTYPES
from synaptree.format.errors import FormatError
from synaptree.format.operators import MANY, OPERATORS
from synaptree.format.options import Value
from synaptree.format.program import AXES, NAME_BYTES, RETURNS, Input, Program, Step, filled
from synaptree.format.tree import name_after, read_name_after, read_text, read_tree, text, tree
from synaptree.format.wire import Reader, varint

__all__ = ["read_dtype", "read_program", "read_shape", "write_program", "write_shape"]

AXIS_LIMIT = (1 << 40) - 1
_NUMBERS = {operator.number: operator for operator in OPERATORS.values()}


def write_shape(shape: tuple[int, ...]) -> bytes:
    """Return the number of axes and their lengths.

    Raises:
        FormatError: there are too many, or one is too long.
    """
    if len(shape) > AXES or not all(0 <= axis <= AXIS_LIMIT for axis in shape):
        raise FormatError(f"shape {shape}: wanted at most {AXES} axes, each from 0 to {AXIS_LIMIT}")
    return bytes([len(shape)]) + b"".join(varint(axis) for axis in shape)


def read_shape(reader: Reader) -> tuple[int, ...]:
    """Read what `write_shape` wrote."""
    return tuple(reader.varint(limit=AXIS_LIMIT) for _ in range(reader.varint(limit=AXES)))


def read_dtype(number: int) -> str:
    """Return the kind of numbers that has this number.

    Raises:
        FormatError: there is none.
    """
    if number >= len(DTYPES):
        raise FormatError(f"unknown dtype {number}. Known: 0 to {len(DTYPES) - 1}")
    return DTYPES[number]


def write_program(program: Program) -> bytes:
    """Return a checked program as bytes; options at their default are left out."""
    out = bytearray(varint(len(program.inputs)))
    for given in program.inputs:
        out += text(given.name) + bytes([DTYPES.index(given.dtype)]) + write_shape(given.shape)
    out += varint(len(program.steps))
    before = ""
    for own, step in enumerate(program.steps, len(program.inputs)):
        out += varint(OPERATORS[step.op].number) + name_after(step.name, before)
        out += varint(len(step.inputs)) + b"".join(varint(own - value) for value in step.inputs)
        out += _write_options(step)
        before = step.name or before
    out += bytes([RETURNS.index(program.returns)]) + varint(len(program.outputs))
    out += b"".join(varint(value) for value in program.outputs)
    return bytes(out + b"".join(text(key) for key in program.keys))


def read_program(reader: Reader) -> Program:
    """Read a program. Whether it can be run is for `check` to say.

    Raises:
        FormatError: the bytes are none; an operator, option or dtype has a number nobody knows.
    """
    inputs = tuple(_read_input(reader) for _ in range(reader.varint(limit=reader.left)))
    steps: list[Step] = []
    before = ""
    for place in range(reader.varint(limit=reader.left)):
        try:
            steps.append(_read_step(reader, len(inputs) + place, before))
        except FormatError as error:
            raise FormatError(f"step {place}: {error}") from error
        before = steps[-1].name or before
    number = reader.take(1)[0]
    if number >= len(RETURNS):
        raise FormatError(f"unknown way to return outputs {number}. Known: 0 to {len(RETURNS) - 1}")
    values = len(inputs) + len(steps)
    outputs = tuple(reader.varint(limit=values) for _ in range(reader.varint(limit=reader.left)))
    keys = tuple(read_text(reader) for _ in outputs) if RETURNS[number] == "dict" else ()
    return Program(inputs, tuple(steps), outputs, RETURNS[number], keys)


def _read_input(reader: Reader) -> Input:
    name, dtype = read_text(reader), read_dtype(reader.take(1)[0])
    return Input(name, read_shape(reader), dtype)


def _write_options(step: Step) -> bytes:
    known, values = OPERATORS[step.op].options, filled(step)
    said = [
        varint(place) + tree(values[name], _no_array) for place, (name, option) in enumerate(known.items())
        if option.required or values[name] != option.default
    ]
    return varint(len(said)) + b"".join(said)


def _read_step(reader: Reader, own: int, before: str) -> Step:
    number = reader.varint(limit=1 << 32)
    if number not in _NUMBERS:
        raise FormatError(f"unknown operator {number}")
    operator = _NUMBERS[number]
    name = read_name_after(reader, before, NAME_BYTES)
    inputs = tuple(own - reader.varint(limit=own) for _ in range(reader.varint(limit=MANY)))
    names, options = tuple(operator.options), dict[str, Value]()
    for _ in range(reader.varint(limit=len(names))):
        place = reader.varint(limit=1 << 32)
        if place >= len(names):
            raise FormatError(f"{operator.name}: unknown option {place}. Known: 0 to {len(names) - 1}")
        value = read_tree(reader, _no_array)
        if isinstance(value, dict):
            raise FormatError(f"{operator.name}: an option of dict")
        options[names[place]] = tuple(value) if isinstance(value, list) else value
    return Step(operator.name, name, inputs, options)


def _no_array(_: object) -> bytes:
    raise FormatError("an array in an option")
