"""Other people's loops and trackers: each module needs the library it is named after."""

from importlib import import_module
from typing import Any

from synaptree.core.errors import OptionError

__all__ = ["optional"]


def optional(module: str, name: str, extra: str) -> Any:
    """Return a class of an optional library, to derive from; without the library, one that cannot be made.

    Args:
        module: where the class is.
        name: of the class.
        extra: of synaptree that installs the library.

    Raises:
        OptionError: where the library is missing, on making an object of the class or of one derived from it.

    Example:
        >>> from synaptree import SynaptreeError
        >>> try:
        ...     optional("no_such", "Loop", "lightning")()
        ... except SynaptreeError as error:
        ...     print(error)
        Loop needs no_such (No module named 'no_such'): pip install 'synaptree[lightning]'
    """
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        message = f"{name} needs {module} ({error}): pip install 'synaptree[{extra}]'"

    def refuse(*args: Any, **options: Any) -> None:  # noqa: ARG001 - whatever it is made with
        raise OptionError(message)

    return type(name, (), {"__init__": refuse})
