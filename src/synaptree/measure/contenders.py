"""Other runtimes of the same network, each as a call with a fixed input: what the engine is compared with."""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synaptree.artifact.build import Network, program_of
from synaptree.artifact.describe import described
from synaptree.artifact.onnx import export_onnx
from synaptree.artifact.syn import load
from synaptree.core.errors import NumericError, OptionError, SynaptreeError, unknown
from synaptree.graph.trace import reason

__all__ = ["CONTENDERS", "DEFAULT", "TOLERANCES", "Contender", "Model", "contenders", "installed", "require_equal"]

Array = npt.NDArray[Any]
Call = Callable[[], Array]
TOLERANCES: Mapping[str, float] = MappingProxyType({"fp32": 1e-4, "int8": 0.1})
"""Precision -> largest difference to the network's outputs in fp32, in relation to the largest of them."""
SAMPLES = "samples"
_PASSING = ("flatten", "identity", "dropout")  # operators that change no number, or its place, where samples are rows


class Contender(NamedTuple):
    """A runtime with the network in it.

    Attributes:
        name: as asked for, the precision behind it if it is not fp32.
        call: runs the network once on the input it was made for, and returns the outputs.
        note: how it was set up.
    """

    name: str
    call: Call
    note: str = ""


class Linear(NamedTuple):
    """A linear layer, `y = x W^T + bias`, with `max(y, 0)` after it if `relu`.

    Attributes:
        weight: shape (outputs, inputs).
        bias: shape (outputs,).
        relu: whether negative outputs become 0.
    """

    weight: Array
    bias: Array
    relu: bool


class Model:
    """A network in the forms that runtimes read, each made when it is first asked for.

    Args:
        network: of one input and one output, or the `.syn` file of one.
        shape: of one sample; where it is left out, the file says it.
        graphs: precision -> the network as an ONNX file, where there is one already.
    """

    def __init__(
        self,
        network: nn.Module | str | Path,
        shape: tuple[int, ...] | None = None,
        graphs: Mapping[str, Path] | None = None,
    ) -> None:
        self._given, self._shape, self._graphs = network, shape, dict(graphs or {})

    @cached_property
    def network(self) -> nn.Module:
        """The network in eval mode, with its zeros."""
        if isinstance(self._given, nn.Module):
            return deepcopy(self._given).cpu().eval()
        return load(self._given)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one sample.

        Raises:
            OptionError: the network does not read one tensor of float32, or does not return one.
        """
        if self._shape is not None:
            return self._shape
        if not isinstance(self.network, Network):
            raise OptionError(f"the shape of one sample is wanted with a {type(self.network).__name__}")
        program = program_of(self.network)
        given = program.inputs[0]
        if len(program.inputs) > 1 or given.dtype != "float32" or program.returns != "value":
            kinds = ", ".join(f"{one.name} of {one.dtype}" for one in program.inputs)
            raise OptionError(f"wanted a network of one input of float32 and one output, this one reads {kinds}")
        return tuple(given.shape)

    def onnx(self, precision: str = "fp32") -> Path:
        """Return the network as an ONNX file, which lives as long as this."""
        if precision not in self._graphs:
            path = self._folder / f"{precision}.onnx"
            if precision == "fp32":
                export_onnx(self.network, path, torch.from_numpy(self.inputs(2)))
                _name_samples(path)
            else:
                _round(self.onnx(), path)
            self._graphs[precision] = path
        return self._graphs[precision]

    @cached_property
    def _folder(self) -> Path:
        folder = mkdtemp()
        finalize(self, rmtree, folder)
        return Path(folder)

    @cached_property
    def layers(self) -> list[Linear]:
        """The linear layers of a network that is nothing but a chain of such, with ReLU between them.

        Raises:
            OptionError: the network has something else in it, which is named.
        """
        program, tensors, aliases = described(self.network, torch.from_numpy(self.inputs(2)))
        found: list[Linear] = []
        for number, step in enumerate(program.steps):
            if step.inputs != (number,) or step.op not in ("linear", "relu", *_PASSING):
                raise OptionError(f"wanted a chain of linear layers and ReLU, this network has {step.op} {step.name}")
            if step.op == "linear":
                weight, bias = (tensors.get(aliases.get(name, name)) for name in _parts(step.name))
                assert weight is not None
                shift = torch.zeros(len(weight)) if bias is None else bias
                found.append(Linear(weight.detach().numpy(), shift.detach().numpy(), relu=False))
            elif step.op == "relu" and found:
                found[-1] = found[-1]._replace(relu=True)
            elif step.op == "relu":
                raise OptionError("wanted a chain of linear layers and ReLU, this network begins with ReLU")
        return found

    def inputs(self, samples: int) -> Array:
        """Return random inputs, shape `(samples, *shape)`, the same at every call."""
        return np.random.default_rng(0).standard_normal((samples, *self.shape), np.float32)

    def outputs(self, x: Array) -> Array:
        """Return what the network computes in fp32, run step by step."""
        with torch.inference_mode():
            found: Array = self.network(torch.from_numpy(x)).numpy()
        return found


def _name_samples(path: Path) -> None:
    """Call the number of samples by its name in an ONNX file, and leave out the shapes that follow from it."""
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = SAMPLES
    del model.graph.value_info[:]
    onnx.save(model, path)


def _round(path: Path, out: Path) -> None:
    """Round the weights of an ONNX file's linear layers to 8 bits, and their inputs whenever it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    how = {"op_types_to_quantize": ["MatMul"], "per_channel": True, "weight_type": QuantType.QInt8}
    with _quiet():
        quantize_dynamic(path, out, **how)


def _parts(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


@dataclass(frozen=True)
class Task:
    """What a contender is made for: a network, its input, and how many threads it may use."""

    model: Model
    x: Array
    threads: int

    @property
    def samples(self) -> int:
        """How many there are in the input."""
        return len(self.x)


def contenders(
    network: nn.Module | str | Path | Model,
    x: Array,
    threads: int = 1,
    names: Iterable[str] | None = None,
    precision: str = "fp32",
) -> list[Contender]:
    """Return runtimes with the network in them, after a check that they compute the same.

    Each is set up as its makers advise for one stream of small batches: shapes fixed, no copies of input and output
    where it can do without, threads that sleep while they wait. torch, and with it numpy, are set to so many
    `threads` for the whole process.

    Args:
        network: of one input and one output, or the `.syn` file of one; zeros are run like any other number.
        x: the input, float32, shape (samples, ...), which is not copied.
        threads: that each may use, at least 1.
        names: keys of `CONTENDERS`; those of `DEFAULT` if left out.
        precision: "fp32", or "int8": linear layers with weights of 8 bits, to which inputs are rounded on the way.

    Raises:
        OptionError: nobody knows a name or the precision, or a contender does not run such networks.
        SynaptreeError: a library is missing, or does not run the network.
        NumericError: a contender computes something else; see `require_equal`.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> [one] = contenders(model, np.ones((4, 3), np.float32), names=["torch"])
        >>> one.name, one.call().shape
        ('torch', (4, 2))
    """
    if precision not in CONTENDERS:
        raise unknown("precision", precision, CONTENDERS)
    if threads < 1:
        raise OptionError(f"threads must be at least 1, got {threads}")
    if x.dtype != np.float32 or not x.flags.c_contiguous or x.ndim < 2 or not len(x):
        raise OptionError(f"input of {x.dtype} and shape {x.shape}: wanted C-contiguous float32, (samples, ...)")
    model = network if isinstance(network, Model) else Model(network, x.shape[1:])
    torch.set_num_threads(threads)
    task = Task(model, x, threads)
    found = [_made(task, name, precision) for name in (DEFAULT[precision] if names is None else names)]
    require_equal(((one.name, one.call()) for one in found), model.outputs(x), TOLERANCES[precision])
    return found


def require_equal(outputs: Iterable[tuple[str, Array]], wanted: Array, tolerance: float) -> None:
    """Check that contenders compute the same: `max |y - wanted| <= tolerance max |wanted|`.

    Args:
        outputs: name, and `y` of the shape of `wanted`.
        wanted: outputs of the network, shape (samples, ...).
        tolerance: share of the largest of them.

    Raises:
        NumericError: for the first that is different, or that is not finite.

    >>> require_equal([("this", np.array([[1.0, 2.1]]))], np.array([[1.0, 2.0]]), 0.01)
    Traceback (most recent call last):
    synaptree.core.errors.NumericError: this computes something else: outputs differ by up to 0.1, wanted at most 0.02
    """
    limit = tolerance * float(np.abs(wanted).max(initial=0))
    for name, y in outputs:
        if y.shape != wanted.shape:
            raise NumericError(f"{name} computes something else: outputs of shape {y.shape}, wanted {wanted.shape}")
        off = float(np.abs(y - wanted).max(initial=0))
        if not off <= limit:
            raise NumericError(
                f"{name} computes something else: outputs differ by up to {off:.3g}, wanted at most {limit:.3g}"
            )


def installed(precision: str) -> tuple[str, ...]:
    """Return the names of `DEFAULT` whose libraries are there."""
    there = (name for name in DEFAULT[precision] if all(map(_found, CONTENDERS[precision][name].modules)))
    return tuple(there)


def _found(module: str) -> bool:
    return find_spec(module.partition(".")[0]) is not None


def _made(task: Task, name: str, precision: str) -> Contender:
    if name not in CONTENDERS[precision]:
        raise unknown(f"contender in {precision}", name, CONTENDERS[precision])
    runtime = CONTENDERS[precision][name]
    try:
        for module in runtime.modules:
            import_module(module)
        call, note = runtime.make(task)
        call()
    except ModuleNotFoundError as missing:
        raise SynaptreeError(f"contender {name} needs {missing.name}: pip install 'synaptree[bench]'") from missing
    except SynaptreeError as error:
        raise type(error)(f"contender {name}: {error}") from error
    except Exception as error:
        raise SynaptreeError(f"contender {name} does not run this network: {reason(error)}") from error
    return Contender(name if precision == "fp32" else f"{name} {precision}", call, note)


def _eager(task: Task) -> tuple[Call, str]:
    ways = {"": _in_torch(task.model.network, task.x)}
    if task.x.ndim == 4 and any(isinstance(one, nn.Conv2d) for one in task.model.network.modules()):
        last = deepcopy(task.model.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ways["channels last"] = _in_torch(last, task.x)
    return _quickest(ways)


def _compiled(task: Task) -> tuple[Call, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which the compiler raises over torch's own code
        call = _in_torch(torch.compile(task.model.network, dynamic=False), task.x)
        call()
    return call, "inductor"


def _in_torch(network: Callable[[Tensor], Tensor], x: Array) -> Call:
    tensor = torch.from_numpy(x)

    @torch.inference_mode()
    def call() -> Array:
        found: Array = network(tensor).numpy()
        return found

    return call


def _quickest(ways: Mapping[str, Call], rounds: int = 3) -> tuple[Call, str]:
    """Return the way that takes the least time, and what it is called."""
    if len(ways) == 1:
        return next((call, note) for note, call in ways.items())
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds + 1):  # the first warms up, and is never the least
        for note, call in ways.items():
            start = time.perf_counter()
            call()
            least[note] = min(least[note], time.perf_counter() - start)
    best = min(least, key=least.__getitem__)
    return ways[best], best


def _onnxruntime(task: Task) -> tuple[Call, str]:
    return _session(task, task.model.onnx()), "bound buffers"


def _onnxruntime_int8(task: Task) -> tuple[Call, str]:
    return _session(task, task.model.onnx("int8")), "linear layers, bound buffers"


def _session(task: Task, path: Path) -> Call:
    """Return a call of ONNX Runtime that reads and writes buffers of ours."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(SAMPLES, task.samples)  # known shapes are a little faster
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given, result, binding = session.get_inputs()[0], session.get_outputs()[0], session.io_binding()
    out = np.empty(result.shape, np.float32)
    for bind, name, buffer in ((binding.bind_input, given.name, task.x), (binding.bind_output, result.name, out)):
        bind(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)

    def call() -> Array:
        session.run_with_iobinding(binding)
        return out

    return call


def _openvino(task: Task) -> tuple[Call, str]:
    import openvino

    core = openvino.Core()
    graph = core.read_model(task.model.onnx())
    graph.reshape(list(task.x.shape))
    how = {
        "INFERENCE_NUM_THREADS": task.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    request = core.compile_model(graph, "CPU", how).create_infer_request()
    out = np.empty(tuple(graph.output(0).shape), np.float32)
    request.set_input_tensor(openvino.Tensor(task.x, shared_memory=True))
    request.set_output_tensor(openvino.Tensor(out, shared_memory=True))

    def call() -> Array:
        request.infer(share_outputs=True)
        return out

    return call, "f32, one stream"


def _numpy(task: Task) -> tuple[Call, str]:
    from threadpoolctl import threadpool_limits

    threadpool_limits(task.threads, "blas")
    layers = [(layer, np.empty((task.samples, len(layer.bias)), np.float32)) for layer in task.model.layers]
    rows = task.x.reshape(task.samples, -1)

    def call() -> Array:
        h = rows
        for layer, y in layers:
            h = np.matmul(h, layer.weight.T, out=y)
            h += layer.bias
            if layer.relu:
                np.maximum(h, 0, out=h)
        return h

    return call, "BLAS"


def _scipy(task: Task) -> tuple[Call, str]:
    from scipy.sparse import csr_array

    layers = [(csr_array(layer.weight), layer.bias[:, None], layer.relu) for layer in task.model.layers]
    rows = task.x.reshape(task.samples, -1)

    def call() -> Array:
        h = rows.T
        for weight, bias, relu in layers:
            h = weight @ h
            h += bias
            if relu:
                np.maximum(h, 0, out=h)
        return h.T

    return call, "CSR, sparse, 1 thread"


def _torch_csr(task: Task) -> tuple[Call, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse tensors are young
        layers = [
            (torch.from_numpy(layer.weight).to_sparse_csr(), torch.from_numpy(layer.bias)[:, None], layer.relu)
            for layer in task.model.layers
        ]

    def run(x: Tensor) -> Tensor:
        h = x.flatten(1).T
        for weight, bias, relu in layers:
            h = (weight @ h).add_(bias)
            h = F.relu_(h) if relu else h
        return h.T

    return _in_torch(run, task.x), "CSR, sparse"


def _torch_int8(task: Task) -> tuple[Call, str]:
    """Run torch's linear layers that round their inputs, by the quicker of its libraries."""
    known = torch.backends.quantized.supported_engines
    libraries: list[Any] = [name for name in ("x86", "onednn") if name in known] or ["qnnpack"]
    ways = {name: _in_torch(_rounded(task.model.network, name), task.x) for name in libraries}
    call, best = _quickest(ways)
    return call, f"linear layers, {best}"


class _Rounded(nn.Module):
    """A linear layer of 8 bits, with one scale for each output; it rounds inputs with a scale of their own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        scales, zeros = weight.abs().amax(1).clamp(min=1e-30) / 127, torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that such tensors will go from torch
            whole = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        bias = None if layer.bias is None else layer.bias.detach()
        self.packed = torch.ops.quantized.linear_prepack(whole, bias)

    def forward(self, x: Tensor) -> Tensor:
        # as torch's own layers: 7 bits where 8 would overflow
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, True)
        return y


def _rounded(network: nn.Module, library: Any) -> nn.Module:
    """Return a copy of a network with linear layers of 8 bits."""
    copy, before = nn.Sequential(deepcopy(network)), torch.backends.quantized.engine
    torch.backends.quantized.engine = library
    try:
        for module in list(copy.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    module._modules[name] = _Rounded(child)
    finally:
        torch.backends.quantized.engine = before
    return copy


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back advice that is given through the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)


class Runtime(NamedTuple):
    """How a contender is made, the libraries it needs besides torch and numpy, and whether it reads ONNX."""

    make: Callable[[Task], tuple[Call, str]]
    modules: tuple[str, ...] = ()
    reads_onnx: bool = False


CONTENDERS: Mapping[str, Mapping[str, Runtime]] = MappingProxyType({
    "fp32": MappingProxyType({
        "onnxruntime": Runtime(_onnxruntime, ("onnx", "onnxruntime"), reads_onnx=True),
        "openvino": Runtime(_openvino, ("onnx", "openvino"), reads_onnx=True),
        "torch": Runtime(_eager),
        "torch-compiled": Runtime(_compiled),
        "numpy": Runtime(_numpy, ("threadpoolctl",)),
        "scipy": Runtime(_scipy, ("scipy.sparse",)),
        "torch-csr": Runtime(_torch_csr),
    }),
    "int8": MappingProxyType({
        "onnxruntime": Runtime(_onnxruntime_int8, ("onnx", "onnxruntime.quantization"), reads_onnx=True),
        "torch": Runtime(_torch_int8),
    }),
})  # fmt: skip
"""Precision -> name -> how it is made. "scipy" and "torch-csr" run sparse matrices, all others zeros as numbers;
they and "numpy" are for chains of linear layers."""
DEFAULT: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "fp32": ("onnxruntime", "openvino", "torch"), "int8": ("onnxruntime", "torch"),
})  # fmt: skip
"""Precision -> the contenders that are meant if none is named."""
