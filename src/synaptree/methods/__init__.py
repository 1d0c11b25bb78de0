"""One published method per file. Importing this package registers them all, and those of installed plug-ins.

A plug-in is a package whose metadata names modules with methods under the entry points "synaptree.methods".
"""

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from synaptree.core.method import METHODS, build

__all__ = ["METHODS", "build"]

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

for _plugin in entry_points(group="synaptree.methods"):
    _plugin.load()

globals().update(METHODS)
__all__ += list(METHODS)
