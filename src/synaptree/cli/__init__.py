"""The command line. This module knows only the standard library, so that it can say what is missing."""

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments name; exit with 0 done, 2 bad input, 130 stopped."""
    # read when torch is imported: with spinning barriers a busy neighbour slows small networks a hundredfold
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from synaptree.cli.commands import app

        app(prog_name="synaptree")
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("synaptree"):
            raise
        print(f"error: this needs {missing.name}: pip install 'synaptree[train,report]'", file=sys.stderr)
        sys.exit(2)
