"""The engine: a `.syn` file in, outputs out, as fast as this machine can."""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import ceil
from operator import index
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from synaptree.format.file import File, decode, read_file
from synaptree.runtime import reference
from synaptree.runtime.errors import EngineError
from synaptree.runtime.explain import Explanation, explained
from synaptree.runtime.ir import Net
from synaptree.runtime.lower import lower
from synaptree.runtime.planfile import read_plan, write_plan

try:
    from synaptree.runtime import _native
except ImportError:  # installed without a compiler
    BUILT = False
else:
    from synaptree.runtime.fastest import Plan
    from synaptree.runtime.integers import MOST, computable, plan_integers
    from synaptree.runtime.plan import plan

    BUILT = True

__all__ = ["Engine", "instruction_set"]

Floats = npt.NDArray[np.float32]
ISA = "SYNAPTREE_ISA"
NUMBERS = ("fp32", "int8")
MOST_THREADS, MOST_BATCH = 256, 1 << 24
MOST_SIZES = 16  # beside the one it was made for
QUICK = 20e-6  # seconds below which it does not pay to let other Python threads in
_PLANS: dict[tuple[str, float], list[str]] = {}  # kernels chosen before in this process


class Engine:
    """Runs a sparse network.

    At load every layer is computed in several ways, and the fastest on this machine is kept: outputs of two engines
    can therefore differ by rounding. With a file to keep the plan in, they do not.

    Args:
        file: path of a `.syn` file, its bytes, a `File`, or a network in the engine's own operators.
        threads: that share the work; more than one pay for batches of several blocks and for large layers.
        batch: samples that a call mostly brings; others work as well, and are planned when they first come. The sixteen
            latest are kept.
        numbers: "int8" computes in whole numbers, where the file is of int8 linear layers alone; "fp32" in floats. By
            default the faster.
        budget: seconds for trying at load, for each number of lanes.
        plan: path of a JSON file to read the plan from, and to write it to where it is not in there, or names kernels
            that are no more.

    One engine may be used from several threads: they take turns.

    Raises:
        EngineError: the network has something the engine cannot compute, `threads` or `batch` is below 1, or `plan` is
            a file of another kind.
        FormatError: it is no such file.

    Example:
        >>> import tempfile, torch
        >>> from synaptree import save
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 10), torch.nn.ReLU())
        >>> path = tempfile.mkdtemp() + "/net.syn"
        >>> _ = save(model, path, example_input=torch.zeros(1, 100))
        >>> engine = Engine(path, batch=2)
        >>> x = np.random.default_rng(0).standard_normal((2, 100), np.float32)
        >>> bool(np.allclose(engine(x), model(torch.from_numpy(x)).detach().numpy(), atol=1e-5))
        True
    """

    def __init__(
        self,
        file: str | Path | bytes | bytearray | memoryview | File | Net,
        threads: int = 1,
        batch: int = 1,
        *,
        numbers: str | None = None,
        budget: float = 2.0,
        plan: str | Path | None = None,
    ) -> None:
        threads, batch = _whole("threads", threads, MOST_THREADS), _whole("batch", batch, MOST_BATCH)
        if numbers not in (None, *NUMBERS):
            raise EngineError(f"numbers {numbers!r}: wanted {' or '.join(NUMBERS)}")
        self.net = _net(file)
        self.threads, self.batch, self.isa = threads, batch, instruction_set()
        self._sizes = _Sizes(self.net, threads, numbers, float(budget), None if plan is None else Path(plan))
        self._network: Any = self._sizes.network(batch, self._sizes.run) if BUILT else _Plain(self.net)
        self.run = self._network.run  # type: ignore[method-assign]  # without a call of Python's in between

    @property
    def plans(self) -> Mapping[int, "Plan"]:
        """What was planned so far, by batch."""
        return self._sizes.plans

    def __call__(self, x: Floats) -> Floats:
        """Return the outputs for samples `(samples, ...)`, float32, as a new array.

        Raises:
            ValueError: the array is of another shape or kind; says what is wanted.
        """
        result: Floats = self._network(x)
        return result

    def run(self, x: Floats, out: Floats) -> Floats:
        """Write the outputs for samples `(samples, ...)` into `out`, float32 and in C order, and return it.

        Raises:
            ValueError: an array is of another shape, kind or order, or they share memory; says what is wanted.
        """
        result: Floats = self._network.run(x, out)
        return result

    def explain(self, dense: bool = True) -> Explanation:
        """Return what computes each layer, how long it takes, and what a dense layer would take.

        Args:
            dense: time kernels that ignore zeros beside; takes some time.
        """
        return explained(self.net, self.plans.get(self.batch), self.isa, self.batch, dense)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an engine is of one process: make another from the file")


class _Sizes:
    """Plans a network for each number of samples that comes, and keeps the latest."""

    def __init__(self, net: Net, threads: int, numbers: str | None, budget: float, kept: Path | None) -> None:
        self.net, self.threads, self.numbers, self.budget, self.kept = net, threads, numbers, budget, kept
        self.isa, self.digest = instruction_set(), _digest(net)
        self.plans: dict[int, Plan] = {}
        self.networks: dict[int, Any] = {}  # of sizes that the engine was not made for
        self.lock = Lock()  # of the two

    def run(self, x: Floats, out: Floats) -> Floats:
        """Run a batch of another size than the engine was made for."""
        batch = len(x)
        with self.lock:
            network = self.networks.pop(batch, None) or self.network(batch, None)
            self.networks[batch] = network  # the latest stands last
            for old in list(self.networks)[:-MOST_SIZES]:
                del self.networks[old], self.plans[old]
        result: Floats = network.run(x, out)
        return result

    def network(self, batch: int, other: Callable[[Floats, Floats], Floats] | None) -> Any:
        """Return the network planned for a batch; `other` runs what is of another size."""
        found = self.plans[batch] = self.plan(batch)
        return _native.Network(
            steps=found.steps, shared=found.shared, arena=found.arena, lanes=found.lanes,
            x_shape=list(self.net.shape), y_shape=list(self.net.shape_of(self.net.output)), threads=self.threads,
            batch=batch, quick=found.seconds * ceil(batch / found.lanes) < QUICK, other=other,
        )  # fmt: skip

    def plan(self, batch: int) -> "Plan":
        """Return the fastest plan among those of the kinds of numbers and of lanes that suit a batch."""
        key = f"{self.digest} {self.isa} {batch} {self.numbers or 'any'}"
        ways = [way for way in _ways(batch, self.net) if way.startswith(self.numbers or "")]
        if not ways:
            raise EngineError("numbers int8: wanted a network of linear layers alone, packed in int8")
        kept = None if self.kept is None else read_plan(self.kept, key, ways)
        known = kept or _PLANS.get((key, self.budget))
        tried = {
            way: self.planned(way, known[1:] if known else None) for way in ([known[0]] if known else ways)
        }
        way = min(tried, key=lambda way: tried[way].seconds * ceil(ceil(batch / tried[way].lanes) / self.threads))
        chosen = _PLANS[key, self.budget] = [way, *tried[way].kernels]
        if self.kept is not None and kept != chosen:
            write_plan(self.kept, key, chosen)
        return tried[way]

    def planned(self, way: str, kernels: Sequence[str] | None) -> "Plan":
        """Return the plan of one kind of numbers and one number of samples side by side."""
        numbers, _, lanes = way.partition(" ")
        make = plan_integers if numbers == "int8" else plan
        return make(self.net, int(lanes), self.isa, budget=self.budget, kernels=kernels)


class _Plain:
    """Stands in where the extension was not built."""

    def __init__(self, net: Net) -> None:
        warnings.warn(
            "synaptree was installed without its compiled kernels: the engine computes right, but slowly. Install a "
            "C++ compiler and synaptree anew",
            RuntimeWarning,
            stacklevel=4,
        )
        self.net = net

    def __call__(self, x: Floats) -> Floats:
        wanted = f"x: wanted a float32 array of shape (samples, {', '.join(map(str, self.net.shape))})"
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.shape[1:] != self.net.shape:
            got = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise ValueError(f"{wanted}, got {got}")
        return reference.run(self.net, x)

    def run(self, x: Floats, out: Floats) -> Floats:
        np.copyto(out, self(x), casting="no")
        return out


def _whole(name: str, number: int, most: int) -> int:
    """Return a number of threads or samples if it is one."""
    try:
        found = index(number)
    except TypeError:
        found = 0
    if not 1 <= found <= most:
        raise EngineError(f"{name} {number!r}: wanted a whole number, at least 1 and at most {most}")
    return found


def _net(file: str | Path | bytes | bytearray | memoryview | File | Net) -> Net:
    if isinstance(file, Net):
        return file
    if isinstance(file, File):
        return lower(file)
    return lower(decode(bytes(file)) if isinstance(file, bytes | bytearray | memoryview) else read_file(file))


def instruction_set() -> str:
    """Return the instruction set kernels use: the widest, or that of the environment variable SYNAPTREE_ISA.

    Raises:
        EngineError: this machine has no such.
    """
    if not BUILT:
        return "none"
    known: Sequence[str] = _native.isas()
    if list(known) == ["generic"]:
        _say_generic()
    wanted = os.environ.get(ISA) or known[-1]
    if wanted not in known:
        raise EngineError(f"{ISA}={wanted}: this machine has {', '.join(known)}")
    return wanted


@cache
def _say_generic() -> None:
    warnings.warn(
        "this machine has neither AVX2 nor AVX-512: the engine runs on generic kernels, which gain less",
        RuntimeWarning,
        stacklevel=4,
    )


def _ways(batch: int, net: Net) -> list[str]:
    """Return the kinds of numbers and the samples side by side that are worth trying for a batch."""
    alone = any(node.integers is not None and node.ranges[0] <= 0 for node in net.nodes)  # its scale is its own
    whole = [f"int8 {1 if alone else min(batch, MOST)}"] if computable(net) else []
    if batch == 1:
        return [*whole, "fp32 1"]
    flat = all(node.op not in ("conv", "max_pool", "avg_pool") for node in net.nodes)
    wide = [lanes for lanes in (16, 32, 64) if lanes < 2 * batch] if flat else [16]
    lanes = wide[-2:] if batch > 8 else [1, *(wide or [16])]
    return [*whole, *(f"fp32 {number}" for number in lanes)]


def _digest(net: Net) -> str:
    """Return a hash of all that a plan depends on."""
    found = hashlib.sha256(repr((net.shape, net.output)).encode())
    for node in net.nodes:
        said = (node.op, node.inputs, node.shape, sorted(node.options.items()), node.low, node.high, node.residual)
        found.update(repr((*said, node.integers is not None, [limit > 0 for limit in node.ranges])).encode())
        if node.weight is not None:
            found.update(np.packbits(node.weight != 0).tobytes())
    return found.hexdigest()[:32]
