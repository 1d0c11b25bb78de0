"""Files of one's own that a command needs, for instance with a method."""

import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from synaptree.core.errors import OptionError

__all__ = ["import_file"]


def import_file(path: Path) -> None:
    """Run a Python file as a module, so that what it registers is known.

    Raises:
        OptionError: there is no such Python file, or it raises an error.
    """
    spec = spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise OptionError(f"--import {path}: wanted a Python file, such as my_rule.py")
    module = sys.modules[path.stem] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise OptionError(f"--import {path}: {_place(error, path)}{type(error).__name__}: {error}") from error


def _place(error: Exception, path: Path) -> str:
    """Return the last line of the file that was at work; of an error of syntax its words say it."""
    if isinstance(error, SyntaxError):
        return ""
    places = traceback.extract_tb(error.__traceback__)
    lines = [place.lineno for place in places if Path(place.filename) == path.absolute()]
    return f"line {lines[-1]}: " if lines else ""
