"""A new method: its file, recipe, golden edit and test, which pass as they are and wait to be changed."""

import keyword
from importlib.util import find_spec
from pathlib import Path
from string import Template

from synaptree.core.errors import OptionError
from synaptree.methods import METHODS

__all__ = ["write_method"]

_HERE = Path(__file__).parent
_OWN = {
    "method.py": "{name}.py", "golden.toml": "{name}.golden.toml", "recipe.toml": "{name}.toml",
    "test.py": "test_{name}.py",
}  # fmt: skip
_CHECKOUT = {
    "method.py": "src/synaptree/methods/{name}.py", "golden.toml": "src/synaptree/testing/golden_edits/{name}.toml",
    "recipe.toml": "recipes/{name}/mlp-short.toml",
}  # fmt: skip
"""Template -> where it goes: in a folder of one's own, and in a checkout of synaptree, whose suite finds methods."""


def write_method(name: str, folder: Path) -> list[Path]:
    """Write the files of a new method that keeps the largest weights, and return their paths.

    In a checkout of synaptree they go where methods, golden edits and recipes lie; elsewhere beside each other.

    Args:
        name: of lower-case ASCII letters, digits and _, that no method and no module has yet.
        folder: where to; made if it is missing.

    Raises:
        OptionError: the name will not do, or one of the files is there already; then nothing is written.
    """
    if not name.isidentifier() or not name.isascii() or name != name.lower():
        raise OptionError(
            f"{name!r} cannot be the name of a method: wanted lower-case letters from a to z, digits and _, beginning "
            "with a letter, as in my_rule"
        )
    if keyword.iskeyword(name):
        raise OptionError(f"{name!r} cannot be the name of a method: it is a word of Python itself; try {name}_rule")
    if name in METHODS:
        raise OptionError(f"a method is called {name!r} already; choose another name")
    places = _CHECKOUT if (folder / "src/synaptree/methods").is_dir() else _OWN
    files = {folder / place.format(name=name): _HERE / f"{template}.txt" for template, place in places.items()}
    if there := [path for path in files if path.exists()]:
        raise OptionError(f"{there[0]} is there already; move it away, or choose another name or folder")
    if _importable(name):
        raise OptionError(
            f"{name!r} cannot be the name of a method: a Python module is called so already, and its file would stand "
            f"in for it; try {name}_rule"
        )
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template.read_text()).substitute(name=name))
    return list(files)


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a file, as __main__
        return True
