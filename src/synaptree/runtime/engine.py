"""The engine: a `.syn` file in, outputs out, as fast as this machine can."""

import hashlib
import json
import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from synaptree.format.file import File, decode, read_file
from synaptree.format.replacing import replacing
from synaptree.runtime import reference
from synaptree.runtime.explain import Explanation, explained
from synaptree.runtime.ir import EngineError, Net
from synaptree.runtime.lower import lower

try:
    from synaptree.runtime import _native
    from synaptree.runtime.fastest import Plan
    from synaptree.runtime.integers import MOST, computable, plan_integers
    from synaptree.runtime.plan import plan
    BUILT = True
except ImportError:  # installed without a compiler
    BUILT = False

__all__ = ["Engine", "instruction_set"]

Floats = npt.NDArray[np.float32]
ISA = "SYNAPTREE_ISA"
QUICK = 20e-6  # seconds below which it does not pay to let other Python threads in
_PLANS: dict[str, list[str]] = {}  # kernels chosen before in this process


class Engine:
    """Runs a sparse network.

    At load every layer is computed in several ways, and the fastest on this machine is kept: outputs of two engines
    can therefore differ by rounding. With a file to keep the plan in, they do not.

    Args:
        file: path of a `.syn` file, its bytes, a `File`, or a network in the engine's own operators.
        threads: that share the work; more than one pay for batches of several blocks and for large layers.
        batch: samples that a call mostly brings; others work as well, and are planned when they first come.
        budget: seconds for trying at load, for each number of lanes.
        plan: path of a JSON file to read the plan from, and to write it to if it is not there or is of another network,
            batch or instruction set.

    One engine may be used from several threads: they take turns.

    Raises:
        EngineError: the network has something the engine cannot compute, `threads` or `batch` is below 1.
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
        file: str | Path | bytes | File | Net,
        threads: int = 1,
        batch: int = 1,
        *,
        budget: float = 2.0,
        plan: str | Path | None = None,
    ) -> None:
        if threads < 1 or batch < 1:
            raise EngineError(f"threads {threads} and batch {batch}: wanted at least 1 of each")
        self.net = _net(file)
        self.threads, self.batch, self.budget, self.isa = threads, batch, budget, instruction_set()
        self._digest = _digest(self.net)
        self._kept = None if plan is None else Path(plan)
        self._networks: dict[int, Any] = {}
        self.plans: dict[int, Plan] = {}
        network = self._network(batch)
        self._call: Callable[[Floats], Floats] = network
        self.run = network.run  # type: ignore[method-assign]

    def __call__(self, x: Floats) -> Floats:
        """Return the outputs for samples `(samples, ...)`, float32, as a new array.

        Raises:
            ValueError: the array is of another shape or kind; says what is wanted.
        """
        return self._call(x)

    def run(self, x: Floats, out: Floats) -> Floats:  # pragma: no cover - replaced by the extension's own
        """Write the outputs for samples `(samples, ...)` into `out`, float32 and in C order, and return it.

        Raises:
            ValueError: an array is of another shape, kind or order, or they share memory; says what is wanted.
        """
        raise NotImplementedError

    def explain(self, dense: bool = True) -> Explanation:
        """Return what computes each layer, how long it takes, and what a dense layer would take.

        Args:
            dense: time kernels that ignore zeros beside; takes some time.
        """
        return explained(self.net, self.plans.get(self.batch), self.isa, self.batch, dense)

    def _network(self, batch: int) -> Any:
        if not BUILT:
            return _Plain(self.net)
        if batch not in self._networks:
            found = self._plan(batch)
            self.plans[batch] = found
            self._networks[batch] = _native.Network(
                steps=found.steps, shared=found.shared, arena=found.arena, lanes=found.lanes,
                x_shape=list(self.net.shape), y_shape=list(self.net.shape_of(self.net.output)), threads=self.threads,
                batch=batch, quick=found.seconds * ceil(batch / found.lanes) < QUICK,
                other=_weakly(self),
            )  # fmt: skip
        return self._networks[batch]

    def _other(self, x: Floats, out: Floats) -> Floats:
        """Run a batch of another size than planned for."""
        result: Floats = self._network(max(1, len(x))).run(x, out)
        return result

    def _plan(self, batch: int) -> "Plan":
        """Return the fastest plan among those of the numbers of lanes that suit a batch."""
        key = f"{self._digest} {self.isa} {batch}"
        ways = _ways(batch, self.net)
        kept = _read_plan(self._kept, key, ways)
        known = kept or _PLANS.get(key)
        ways = [known[0]] if known else ways
        tried = {way: self._planned(way, known[1:] if known else None) for way in ways}
        way = min(tried, key=lambda way: tried[way].seconds * ceil(batch / tried[way].lanes))
        _PLANS[key] = [way, *tried[way].kernels]
        if self._kept and not kept:
            _write_plan(self._kept, key, _PLANS[key])
        return tried[way]

    def _planned(self, way: str, kernels: Sequence[str] | None) -> "Plan":
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


def _net(file: str | Path | bytes | File | Net) -> Net:
    if isinstance(file, Net):
        return file
    if isinstance(file, File):
        return lower(file)
    return lower(decode(file) if isinstance(file, bytes) else read_file(file))


def instruction_set() -> str:
    """Return the instruction set kernels use: the widest, or that of the environment variable SYNAPTREE_ISA.

    Raises:
        EngineError: this machine has no such.
    """
    if not BUILT:
        return "none"
    known: Sequence[str] = _native.isas()
    wanted = os.environ.get(ISA) or known[-1]
    if wanted not in known:
        raise EngineError(f"{ISA}={wanted}: this machine has {', '.join(known)}")
    return wanted


def _weakly(engine: Engine) -> Callable[[Floats, Floats], Floats]:
    """Return the engine's way to run other batches, which does not keep it alive: no circle would ever be found."""
    method = weakref.WeakMethod(engine._other)

    def other(x: Floats, out: Floats) -> Floats:
        run = method()
        assert run is not None  # it runs
        return run(x, out)

    return other


def _ways(batch: int, net: Net) -> list[str]:
    """Return the kinds of numbers and the samples side by side that are worth trying for a batch."""
    whole = [f"int8 {min(batch, MOST)}"] if computable(net) else []
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


def _read_plan(path: Path | None, key: str, ways: Sequence[str]) -> list[str] | None:
    if path is None or not path.exists():
        return None
    with suppress(ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        plan = found.get(key) if isinstance(found, dict) else None
        if isinstance(plan, list) and all(isinstance(name, str) for name in plan) and plan and plan[0] in ways:
            return plan
    return None


def _write_plan(path: Path, key: str, kernels: list[str]) -> None:
    plans: dict[str, Any] = {}
    if path.exists():
        with suppress(ValueError):
            plans = json.loads(path.read_text(encoding="utf-8"))
    plans[key] = kernels
    with replacing(path) as part:
        part.write_text(json.dumps(plans, indent=1), encoding="utf-8")
