"""Peak memory of one way to run a network, measured in a process of its own that does nothing else."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synaptree.artifact.describe import described
from synaptree.core.errors import SynaptreeError
from synaptree.measure.contenders import CONTENDERS, Model, Task

__all__ = ["peak_memory"]

ENGINE = "engine"


def peak_memory(
    name: str, file: str | Path, model: Model, *, batch: int = 1, threads: int = 1, precision: str = "fp32"
) -> int:
    """Return the bytes by which a process grows, at its largest, while it loads a network and runs it three times.

    What libraries take when they are imported does not count; reading the file, and what a runtime makes of it, does.

    Args:
        name: "engine", or a contender of this precision.
        file: a `.syn` file.
        model: the network in it, whose ONNX file is read by contenders that read such.
        batch: samples of the input.
        threads: that it may use.
        precision: of the contender.

    Raises:
        SynaptreeError: the process failed; says how.
    """
    reads_onnx = name != ENGINE and CONTENDERS[precision][name].reads_onnx
    graphs = {precision: str(model.onnx(precision))} if reads_onnx else {}
    how = {"name": name, "file": str(file), "shape": model.shape, "graphs": graphs, "batch": batch}
    asked = json.dumps({**how, "threads": threads, "precision": precision})
    done = subprocess.run([sys.executable, "-m", "synaptree.measure.memory", asked], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SynaptreeError(f"the memory of {name} could not be measured: {last}")
    return int(done.stdout.split()[-1])


def _grown(asked: dict[str, Any]) -> int:
    """Return by how many bytes this process grows at its largest."""
    graphs = {precision: Path(path) for precision, path in asked["graphs"].items()}
    model = Model(asked["file"], tuple(asked["shape"]), graphs)
    x, threads = model.inputs(asked["batch"]), asked["threads"]
    torch.set_num_threads(threads)
    described(nn.Sequential(nn.Linear(1, 1)), torch.zeros(1, 1))  # for which torch imports more parts of itself
    make: Callable[[], Callable[[], object]]
    if asked["name"] == ENGINE:
        engine = import_module("synaptree.runtime.engine").Engine
        make = lambda: partial(engine(asked["file"], threads=threads, batch=len(x)), x)  # noqa: E731
    else:
        runtime = CONTENDERS[asked["precision"]][asked["name"]]
        for module in runtime.modules:
            import_module(module)
        make = lambda: runtime.make(Task(model, x, threads))[0]  # noqa: E731
    before = _peak(forget=True)
    call = make()
    for _ in range(3):
        call()
    return _peak() - before


def _peak(*, forget: bool = False) -> int:
    """Return the most bytes that this process held in memory; on Linux since they were last forgotten.

    `getrusage` begins, there, with those of the process it was started from.
    """
    if forget:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


if __name__ == "__main__":
    print(_grown(json.loads(sys.argv[1])))
