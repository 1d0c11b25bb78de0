"""Files of one's own that a command needs, for instance with a method."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from synaptree.core.errors import OptionError

__all__ = ["import_file"]


def import_file(path: Path) -> None:
    """Run a Python file as a module, so that what it registers is known.

    Raises:
        OptionError: there is no such Python file.
    """
    spec = spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise OptionError(f"--import {path}: wanted a Python file, such as my_rule.py")
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
