"""Plans in a file: which kernels were chosen for which network, batch and instruction set."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synaptree.format.replacing import replacing
from synaptree.runtime.errors import EngineError

__all__ = ["read_plan", "write_plan"]

WHAT = "plans of a synaptree engine"


def read_plan(path: Path, key: str, ways: Sequence[str]) -> list[str] | None:
    """Return the way and the kernels that stand under a key; None if there are none, or of another way.

    Raises:
        EngineError: the file is there, and is no file of plans.
    """
    found = _plans(path).get(key)
    if isinstance(found, list) and all(isinstance(name, str) for name in found) and found and found[0] in ways:
        return found
    return None


def write_plan(path: Path, key: str, kernels: Sequence[str]) -> None:
    """Put kernels under a key, beside what else is in the file.

    Raises:
        EngineError: the file is there, and is no file of plans: it is left as it is.
    """
    plans = {**_plans(path), key: list(kernels)}
    with replacing(path) as part:
        part.write_text(json.dumps({"what": WHAT, "plans": plans}, indent=1) + "\n", encoding="utf-8")


def _plans(path: Path) -> Mapping[str, Any]:
    if not path.exists() or not path.stat().st_size:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("what") != WHAT or not isinstance(found.get("plans"), dict):
        raise EngineError(f"{path} is no file of plans; give another name, or delete it if it was one")
    plans: dict[str, Any] = found["plans"]
    return plans
