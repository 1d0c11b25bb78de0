"""The `.syn` format: sparse networks as small files that are safe to read. See SPEC.md."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "OPERATORS": "operators",
    "Entry": "sections",
    "File": "file",
    "FormatError": "errors",
    "Input": "program",
    "Program": "program",
    "Step": "program",
    "check": "program",
    "decode": "file",
    "encode": "file",
    "filled": "program",
    "read_file": "file",
    "write_file": "file",
}

__all__ = list(_WHERE)

if TYPE_CHECKING:
    from synaptree.format.errors import FormatError as FormatError
    from synaptree.format.file import File as File
    from synaptree.format.file import decode as decode
    from synaptree.format.file import encode as encode
    from synaptree.format.file import read_file as read_file
    from synaptree.format.file import write_file as write_file
    from synaptree.format.operators import OPERATORS as OPERATORS
    from synaptree.format.program import Input as Input
    from synaptree.format.program import Program as Program
    from synaptree.format.program import Step as Step
    from synaptree.format.program import check as check
    from synaptree.format.program import filled as filled
    from synaptree.format.sections import Entry as Entry


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: programs can be made without the coder."""
    if name not in _WHERE:
        raise AttributeError(f"module 'synaptree.format' has no attribute {name!r}")
    return getattr(import_module(f"synaptree.format.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
