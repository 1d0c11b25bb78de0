"""Grow, prune and run sparse neural networks in PyTorch, as the brain does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Attached": "synaptree.core.attach",
    "Engine": "synaptree.runtime.engine",
    "attach": "synaptree.core.attach",
    "METHODS": "synaptree.methods",
    "Method": "synaptree.core.method",
    "SynaptreeError": "synaptree.core.errors",
    "Topology": "synaptree.core.topology",
    "build": "synaptree.methods",
    "check_method": "synaptree.testing",
    "compact": "synaptree.surgery.compact",
    "compress": "synaptree.compression.compress",
    "count": "synaptree.measure.count",
    "expose_shortcuts": "synaptree.surgery.shortcuts",
    "load": "synaptree.artifact.syn",
    "load_into": "synaptree.artifact.syn",
    "load_recipe": "synaptree.recipe",
    "load_topology": "synaptree.artifact.syn",
    "method": "synaptree.core.method",
    "prune": "synaptree.core.oneshot",
    "save": "synaptree.artifact.syn",
    "save_sparse": "synaptree.artifact.interchange",
    "sparsify": "synaptree.runtime.sparsify",
}

__all__ = list(_WHERE)

if TYPE_CHECKING:
    from synaptree.artifact.interchange import save_sparse as save_sparse
    from synaptree.artifact.syn import load as load
    from synaptree.artifact.syn import load_into as load_into
    from synaptree.artifact.syn import load_topology as load_topology
    from synaptree.artifact.syn import save as save
    from synaptree.compression.compress import compress as compress
    from synaptree.core.attach import Attached as Attached
    from synaptree.core.attach import attach as attach
    from synaptree.core.errors import SynaptreeError as SynaptreeError
    from synaptree.core.method import Method as Method
    from synaptree.core.method import method as method
    from synaptree.core.oneshot import prune as prune
    from synaptree.core.topology import Topology as Topology
    from synaptree.measure.count import count as count
    from synaptree.methods import METHODS as METHODS
    from synaptree.methods import build as build
    from synaptree.recipe import load_recipe as load_recipe
    from synaptree.runtime.engine import Engine as Engine
    from synaptree.runtime.sparsify import sparsify as sparsify
    from synaptree.surgery.compact import compact as compact
    from synaptree.surgery.shortcuts import expose_shortcuts as expose_shortcuts
    from synaptree.testing import check_method as check_method


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import synaptree` stays quick."""
    if name not in _WHERE:
        raise AttributeError(f"module 'synaptree' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
