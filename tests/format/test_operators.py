from pathlib import Path

import pytest

import synaptree.format
from synaptree.format.errors import FormatError
from synaptree.format.operators import OPERATORS
from synaptree.format.options import KINDS, Option

SPEC = Path(synaptree.format.__file__).with_name("SPEC.md").read_text()


def said(value):
    """Return a default; one number for several equal ones."""
    return str(value[0]) if isinstance(value, tuple) else str(value)


def described(operator, dims=0, free=False):
    """Return a row of the table without its number; N stands for `dims`, in the axes of tensors only if `free`."""
    def axes(part):
        count = "any" if part.axes is None else part.axes
        return f"N + {part.axes - dims}" if free and part.axes not in (None, 1) else count

    least, most = operator.values
    parts = [f"{part.name or 'tensor'}({axes(part)}){'?' if part.optional else ''}" for part in operator.parts]
    options = [f"{name}: {option}" + ("" if option.required else f" = {said(option.default)}")
               for name, option in operator.options.items()]
    texts = (operator.name, f"{least}" if least == most else f"{least} to {most}", ", ".join(parts), "; ".join(options))
    row = " | ".join(texts)
    return row.replace(f"{dims}d", "Nd").replace(f"{dims} ints", "N ints") if dims else row


def table():
    """Return the rows of the table as SPEC.md has them: what differs in the number of axes alone is one row."""
    numbers = {}
    for name, operator in OPERATORS.items():
        family = [OPERATORS.get(name[:-2] + f"{dims}d") for dims in (1, 2, 3)]
        rows = {described(operator)}
        for free in (False, True):
            if name[-2:] in ("1d", "2d", "3d") and all(family):
                merged = {described(each, dims, free) for dims, each in enumerate(family, 1)}
                rows = merged if len(merged) == 1 else rows
        assert len(rows) == 1
        numbers.setdefault(rows.pop(), []).append(str(operator.number))
    return [f"| {', '.join(places)} | {row} |" for row, places in numbers.items()]


def test_the_table_of_the_specification_is_the_table_of_the_code():
    rows = table()
    assert len(rows) == 67
    assert "\n".join(rows) in SPEC


def test_no_number_is_given_twice_and_each_fits_one_byte():
    numbers = [operator.number for operator in OPERATORS.values()]
    assert len(set(numbers)) == len(numbers) == 85
    assert max(numbers) < 128
    assert numbers == sorted(numbers)


def test_every_default_is_what_its_option_takes():
    for operator in OPERATORS.values():
        for option in operator.options.values():
            assert option.kind in KINDS
            if option.required:
                assert option.default is None
            elif option.default is not None:
                assert option.checked(option.default) == option.default
            else:
                assert option.optional


@pytest.mark.parametrize(("option", "value", "found"), [
    (Option("float"), 1, 1.0), (Option("number"), 1, 1), (Option("number"), 1.5, 1.5), (Option("ints"), [1, 2], (1, 2)),
    (Option("floats"), (1, 2.5), (1.0, 2.5)), (Option("int", optional=True), None, None), (Option("bool"), True, True),
    (Option("text", choices=("a", "b")), "b", "b"), (Option("float"), float("-inf"), float("-inf")),
])
def test_an_option_takes_its_kind_and_returns_it_as_the_file_does(option, value, found):
    got = option.checked(value)
    assert (got, type(got)) == (found, type(found))
    if isinstance(got, tuple):
        assert [type(each) for each in got] == [type(each) for each in found]


@pytest.mark.parametrize(("option", "value", "message"), [
    (Option("int"), True, "wanted int, got True"), (Option("int"), 1.0, "wanted int, got 1.0"),
    (Option("bool"), 1, "wanted bool, got 1"), (Option("float"), float("nan"), "got nan"),
    (Option("float"), "1", "wanted float, got '1'"), (Option("int"), None, "got None"),
    (Option("ints", length=2), (1,), "wanted 2 ints, got \\(1,\\)"), (Option("ints"), (), "some ints, got \\(\\)"),
    (Option("ints"), (1, 2.0), "got 2.0"), (Option("ints"), 3, "got 3"),
    (Option("ints", least=1), (1, 0), "at least 1, got 0"), (Option("float", most=1), 1.5, "at most 1, got 1.5"),
    (Option("text", choices=("a", "b")), "c", "one of a, b, got 'c'"),
    (Option("int", optional=True), "x", "wanted int or None"), (Option("int"), 1 << 63, "at most 63 bits"),
])
def test_an_option_refuses_what_is_of_another_kind_or_out_of_bounds(option, value, message):
    with pytest.raises(FormatError, match=message):
        option.checked(value)
