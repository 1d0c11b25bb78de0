"""What a file computes: inputs, steps of named operators, outputs. Plain data, no code."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from synaptree.format.dtypes import DTYPES, FLOATS
from synaptree.format.errors import FormatError
from synaptree.format.operators import OPERATORS, Operator
from synaptree.format.options import Options, Value

__all__ = ["NAME_BYTES", "RETURNS", "Input", "Program", "Step", "check", "check_name", "filled"]

RETURNS = ("value", "tuple", "list", "dict")  # the place in this list is the number in a file
NAME_BYTES, NAME_PARTS = 255, 32
AXES = 16  # a tensor has at most
_DOTTED = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SINGLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Input:
    """A tensor the program is given.

    Attributes:
        name: of the argument.
        shape: of one sample, without the samples' axis.
        dtype: "float32", "int64", ...; see `DTYPES`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Step:
    """One operator applied to values.

    Attributes:
        op: name of the operator; see `OPERATORS`.
        name: dotted path of the module, under which its tensors stand; "" for a function.
        inputs: numbers of the values it reads, each lower than its own.
        options: those that are not at their default; more may be given.
    """

    op: str
    name: str = ""
    inputs: tuple[int, ...] = ()
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Steps in the order in which they run.

    Values are numbered: first the inputs, then the result of each step. Two steps of one name are two calls of one
    module.

    Attributes:
        inputs: in the order of the arguments.
        steps: each reads only what comes before it.
        outputs: numbers of the values returned.
        returns: "value" (one), "tuple", "list" or "dict".
        keys: for "dict", those of the outputs.

    >>> steps = (Step("linear", "fc", (0,)), Step("relu", "", (1,)))
    >>> program = Program((Input("x", (3,)),), steps, outputs=(2,))
    >>> check(program, {"fc.weight": (2, 3), "fc.bias": (2,)})
    """

    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    returns: str = "value"
    keys: tuple[str, ...] = ()


def filled(step: Step) -> dict[str, Value]:
    """Return every option of a step, defaults filled in, lists as tuples, ints as floats where floats are meant.

    >>> filled(Step("leaky_relu", options={"negative_slope": 1}))
    {'negative_slope': 1.0}

    Raises:
        FormatError: nobody knows the operator or an option, one is missing, or a value is of another kind.
    """
    known = _operator(step).options
    for name in step.options:
        if name not in known:
            raise FormatError(f"unknown option {name!r}. Known: {', '.join(known) or 'none'}")
    found: dict[str, Value] = {}
    for name, option in known.items():
        if option.required and name not in step.options:
            raise FormatError(f"option {name!r} is missing: wanted {option}")
        try:
            found[name] = option.checked(step.options[name]) if name in step.options else option.default
        except FormatError as error:
            raise FormatError(f"option {name!r}: {error}") from error
    return found


def check_name(name: str) -> None:
    """Check the name of a tensor or a module: parts of letters, digits, _ and -, joined by dots.

    Raises:
        FormatError: it is something else, or of more than 255 bytes or 32 parts.
    """
    if len(name) > NAME_BYTES or name.count(".") >= NAME_PARTS or not _DOTTED.fullmatch(name):
        raise FormatError(
            f"name {name[:NAME_BYTES]!r}: wanted parts of a-z, A-Z, 0-9, _ and -, joined by dots, at most {NAME_PARTS} "
            f"of them and {NAME_BYTES} bytes; rename the module"
        )


def check(
    program: Program, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] | None = None
) -> None:
    """Check that a program can be run with these tensors.

    Args:
        program: steps that nobody has checked.
        shapes: shape of each tensor of the file by name; more than the program needs are welcome.
        dtypes: kind of number of each tensor by name; not checked if None.

    Raises:
        FormatError: names the step and operator, and what it wants: known operators and options, values numbered
            below the step, tensors there and of fitting shapes.
    """
    _check_inputs(program.inputs)
    calls: dict[str, tuple[str, Options]] = {}
    for number, step in enumerate(program.steps):
        try:
            _check_step(step, len(program.inputs) + number, shapes, dtypes)
            if step.name and calls.setdefault(step.name, (step.op, filled(step))) != (step.op, filled(step)):
                raise FormatError("another step has this name, but another operator or other options")
        except FormatError as error:
            raise FormatError(f"step {number}, {step.op} {step.name!r}: {error}") from error
    _check_tree(calls, shapes)
    _check_outputs(program)


def _operator(step: Step) -> Operator:
    if step.op not in OPERATORS:
        raise FormatError(f"unknown operator {step.op!r}")
    return OPERATORS[step.op]


def _check_inputs(inputs: Sequence[Input]) -> None:
    names = [given.name for given in inputs]
    if len(set(names)) < len(names):
        raise FormatError(f"inputs {names}: wanted each name once")
    for given in inputs:
        if len(given.name) > NAME_BYTES or not _SINGLE.fullmatch(given.name):
            raise FormatError(f"input {given.name[:NAME_BYTES]!r}: wanted letters, digits and _, the first no digit")
        if given.dtype not in DTYPES:
            raise FormatError(f"input {given.name}: unknown dtype {given.dtype!r}. Known: {', '.join(DTYPES)}")
        if len(given.shape) > AXES or min(given.shape, default=0) < 0:
            raise FormatError(f"input {given.name} of shape {given.shape}: wanted at most {AXES} axes, none negative")


def _check_step(
    step: Step, own: int, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] | None
) -> None:
    operator = _operator(step)
    if step.name:
        check_name(step.name)
    elif operator.parts:
        raise FormatError("wanted a name, under which its tensors stand")
    least, most = operator.values
    if not least <= len(step.inputs) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise FormatError(f"wanted {wanted} values, got {len(step.inputs)}")
    for value in step.inputs:
        if not 0 <= value < own:
            raise FormatError(f"reads value {value}, wanted one below its own, {own}")
    options = filled(step)
    names = {part.name: part.under(step.name) for part in operator.parts}
    found = {part: tuple(shapes[name]) for part, name in names.items() if name in shapes}
    operator.check(len(step.inputs), options, found)
    if dtypes is not None:
        for part in operator.parts:
            _check_dtype(dtypes.get(names[part.name]), names[part.name], part.numbers)


def _check_dtype(dtype: str | None, name: str, numbers: str) -> None:
    fits = {"float": FLOATS, "int": ("int64",), "any": DTYPES}[numbers]
    if dtype is not None and dtype not in fits:
        raise FormatError(f"{name} is {dtype}, wanted {' or '.join(fits)}")


def _check_tree(calls: Mapping[str, tuple[str, Options]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that no name is that of two things, and none stands below a tensor or a module below a step's."""
    for names, above in (({*calls, *shapes}, shapes.keys()), (set(calls), calls.keys())):
        for before, name in pairwise(sorted(names, key=lambda name: name.replace(".", " "))):
            if before in above and name.startswith(f"{before}."):  # sorted so, what stands below a name follows it
                raise FormatError(f"{name!r} is a name below {before!r}, which is no container")
    for name, (op, _) in calls.items():
        if op != "constant" and name in shapes:
            raise FormatError(f"{name!r} is the name of a tensor and of a step, {op}")


def _check_outputs(program: Program) -> None:
    values = len(program.inputs) + len(program.steps)
    for value in program.outputs:
        if not 0 <= value < values:
            raise FormatError(f"outputs: value {value}, wanted one of 0 to {values - 1}")
    if program.returns not in RETURNS:
        raise FormatError(f"unknown way to return outputs {program.returns!r}. Known: {', '.join(RETURNS)}")
    if not program.outputs or (program.returns == "value" and len(program.outputs) > 1):
        wanted = "one value" if program.returns == "value" else "at least one value"
        raise FormatError(f"outputs: wanted {wanted}, got {len(program.outputs)}")
    keys = program.keys
    if len(keys) != (len(program.outputs) if program.returns == "dict" else 0) or len(set(keys)) < len(keys):
        raise FormatError(f"outputs: {len(program.outputs)} with keys {keys}, wanted a key each for dict alone")
