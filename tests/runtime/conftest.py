"""Lets the tests run another build of the extension, as the sanitized one: its path stands in SYNAPTREE_NATIVE."""

import importlib.util
import os
import sys

PATH = os.environ.get("SYNAPTREE_NATIVE")
if PATH:
    spec = importlib.util.spec_from_file_location("synaptree.runtime._native", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
