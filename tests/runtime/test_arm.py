import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
KERNELS = sorted(path for path in NATIVE.glob("*.cpp") if not path.name.startswith(("bind_", "module", "network")))
COMPILER = shutil.which("aarch64-linux-gnu-g++")


@pytest.mark.skipif(COMPILER is None, reason="no compiler for ARM here (Debian: g++-aarch64-linux-gnu)")
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_compile_for_arm(path):
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", "-fsyntax-only", "-DSYNAPTREE_ISA=generic"]
    done = subprocess.run([str(COMPILER), *flags, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_are_kernels():
    assert {"rows.cpp", "planes.cpp", "lookup.cpp"} <= {path.name for path in KERNELS}
