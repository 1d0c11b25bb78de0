"""The library's errors: each names the thing, its shape, what was wanted, what was got, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AttachError", "CheckpointError", "DataError", "NumericError",
    "OptionError", "RankError", "ShapeError", "SynaptreeError", "unknown",
]


class SynaptreeError(Exception):
    """Base of everything this library raises on purpose."""


class OptionError(SynaptreeError, ValueError):
    """An option has a value outside its range, or a name nobody knows."""


class ShapeError(SynaptreeError, ValueError):
    """A tensor does not fit the tensor it belongs to."""


class DataError(SynaptreeError):
    """A data set is missing, damaged or not what its name says."""


class NumericError(SynaptreeError, ArithmeticError):
    """A number is not what it must be: finite, zero, or equal."""


class AttachError(SynaptreeError):
    """A method cannot act on this model or optimizer."""


class RankError(SynaptreeError):
    """Processes that train together differ, or one of them is gone."""


class CheckpointError(SynaptreeError):
    """A checkpoint belongs to another model or method, or is damaged."""


def unknown(kind: str, name: object, known: Iterable[object]) -> OptionError:
    """Return the error for a name nobody knows, with the nearest known names first.

    >>> print(unknown("model", "lenet", ["lenet5", "mlp"]))
    unknown model 'lenet'; did you mean 'lenet5'? Known: lenet5, mlp
    """
    names = sorted(str(k) for k in known)
    close = get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
    return OptionError(f"unknown {kind} {str(name)!r}{hint} Known: {', '.join(names)}")
