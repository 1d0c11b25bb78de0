"""One published method per file. Importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from synaptree.core.method import METHODS, build

__all__ = ["METHODS", "build"]

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

globals().update(METHODS)
__all__ += list(METHODS)
