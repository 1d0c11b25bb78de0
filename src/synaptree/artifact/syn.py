"""Networks as `.syn` files: written small, and read back without the class they were made of."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from synaptree.artifact import interchange
from synaptree.artifact.build import UNSAVED, Network, build, dense
from synaptree.artifact.describe import Examples, described, state_of
from synaptree.core.errors import CheckpointError, SynaptreeError, unknown
from synaptree.core.topology import Topology
from synaptree.format.dtypes import FLOATS
from synaptree.format.errors import FormatError
from synaptree.surgery.compact import require_dead_weights_zero

__all__ = ["load", "load_into", "load_topology", "save", "texts"]

Array = npt.NDArray[Any]
_VALUES = ("fp32", "fp16", "int8")
_BFLOAT16 = "bits of bfloat16"  # which numpy does not have
_DAMAGED = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    values: str = "fp32",
    example_input: Examples | None = None,
    topology: Topology | None = None,
    resume: bool = True,
    ranges: Mapping[int, float] | None = None,
    about: Mapping[str, str] | None = None,
) -> int:
    """Write a network as a `.syn` file, and return its bytes.

    Only weights that exist are stored: those of the topology's connections, zeros among them included, and in all
    other tensors those that are not 0, where that takes fewer bytes.

    Args:
        model: its `state_dict` is written, tied parameters once; left as it is.
        path: of the file; replaced only when the new one is complete.
        values: "fp32" keeps every bit. "fp16" rounds to the nearest: below 6e-5 to a multiple of 6e-8, so that a
            weight below 3e-8 becomes 0. "int8" stores tensors of two and more axes as
            `integer * scale`, with one scale for each index of axis 0, so that a weight is off by half a scale at
            most; the scale is a 127th of the largest. Biases, norms and other small tensors are fp16 under both, and
            fp32 where fp16 would be off by more than 2^-11 of the largest of their numbers, or of any of a variance.
        example_input: `(samples, ...)`, or a tuple of such for a model of several inputs, on its device. With it the
            file says what the network computes, and `load` needs no class; without it only `load_into` can read it,
            which also serves models that cannot be traced.
        topology: says which connections exist, and is stored too.
        resume: store all of the topology, with ages, random state and what a method remembers, so that development
            goes on exactly. Without it the file is smaller, and says only which connections exist.
        ranges: number of a value of the program -> how large it gets.
        about: texts, for people.

    Raises:
        CheckpointError: the file cannot be written: a value, a name or a kind of number that does not fit, or what is
            said about it is no text.
        GraphError: the model has no program; see `describe`.
        NumericError: connections that do not exist have weights other than 0.
        OptionError: nobody knows the `values`, or the example is no tensor and no tuple of tensors.
        ShapeError: the topology does not fit the model.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
        >>> model[0].weight.data[:, 5:] = 0.0
        >>> file = Path(tempfile.mkdtemp()) / "net.syn"
        >>> size = save(model, file, values="int8", example_input=torch.randn(2, 100))
        >>> size < 3000, load(file)(torch.zeros(7, 100)).shape
        (True, torch.Size([7, 10]))
    """
    format_ = _format()
    if values not in _VALUES:
        raise unknown("coding of values", values, _VALUES)
    about = texts(about or {})
    if topology is not None:
        require_dead_weights_zero(model, topology)
    if example_input is None:
        program, (tensors, aliases) = None, state_of(model)
    else:
        program, tensors, aliases = described(model, example_input)
    masks, beside = _masks(topology, tensors, aliases, values)
    try:
        entries = {name: _entry(name, tensor, masks.get(name), values) for name, tensor in tensors.items()}
        tree = None if topology is None else _tree(topology, beside, resume)
        file = format_.File(program, entries, aliases, ranges or {}, tree, about)
        size: int = format_.write_file(path, file)
    except FormatError as error:
        why = str(error).removeprefix(f"{path}: cannot be written: ")
        raise CheckpointError(f"{path} is not written: {why}") from error
    return size


def texts(about: Mapping[Any, Any]) -> Mapping[str, str]:
    """Return what is said about a network.

    Raises:
        CheckpointError: a key or what stands under it is no text; names the key.

    >>> texts({"data": "digits"})
    {'data': 'digits'}
    """
    for key, said in about.items():
        if not isinstance(key, str):
            raise CheckpointError(f"about {key!r} is a {type(said).__name__} under a {type(key).__name__}: wanted text")
        if not isinstance(said, str):
            raise CheckpointError(f"about {key!r} is a {type(said).__name__}: wanted text, such as {str(said)!r}")
    return about


def load(path: str | Path) -> Network:
    """Return the network of a `.syn` file, in eval mode, on the CPU; see `build`.

    Nothing in the file is run as code. Its size in memory is what it says, at most 8 GiB.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind, or was written without `example_input`.
    """
    file = _read(path)
    try:
        return build(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_topology(path: str | Path) -> Topology | None:
    """Return the topology of a `.syn` file, None if it has none.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    return _topology(path, _read(path))


def load_into(model: nn.Module, path: str | Path) -> Topology | None:
    """Load a file into a model of the same class, and return the topology, None if a `.syn` file has none.

    Args:
        model: takes over the weights, in its own kinds of numbers and on its own devices.
        path: of a `.syn` file, or of a safetensors file; see `synaptree.artifact.interchange.load_into`. A plain
            safetensors file gives a topology without masks.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model, whose first difference is named; then
            nothing is changed.
    """
    if not _is_syn(path):
        return interchange.load_into(model, path)
    file = _read(path)
    tensors, aliases = state_of(model)
    own = {name: tensors[aliases.get(name, name)] for name in (*tensors, *aliases)}
    theirs = {name: file.entry(name) for name in (*file.entries, *file.aliases) if not _leaf(name).startswith(UNSAVED)}
    _require_same_forms(f"{path} and {type(model).__name__}", theirs, own)
    values = {name: dense(file, name) for name in own}
    for name, first in aliases.items():
        if not torch.equal(values[name], values[first]):
            raise CheckpointError(f"{path}: {name} and {first} differ, in {type(model).__name__} they are one tensor")
    topology = _topology(path, file, {name: tensor.device for name, tensor in own.items()})
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
    return topology


def _format() -> ModuleType:
    """Return the module that reads and writes bytes, which needs the coder."""
    try:
        from synaptree.format import file
    except ModuleNotFoundError as missing:
        raise SynaptreeError(f".syn files need {missing.name}: pip install 'synaptree[pack]'") from missing
    return file


def _is_syn(path: str | Path) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(4) == b"\x89SYN"
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(path: str | Path) -> Any:
    format_ = _format()
    if not _is_syn(path):
        raise CheckpointError(
            f"{path}: no .syn file; weights alone, as in a safetensors file, go into a network of their class with "
            f"load_into"
        )
    try:
        return format_.read_file(path)
    except FormatError as error:
        raise CheckpointError(str(error)) from error


def _require_same_forms(which: str, theirs: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` for the first name that one side lacks, or has in another shape."""
    for name in (*own, *theirs):
        stored = tuple(theirs[name].shape) if name in theirs else None
        wanted = tuple(own[name].shape) if name in own else None
        if stored != wanted:
            sides = " and ".join("nothing" if shape is None else f"shape {shape}" for shape in (stored, wanted))
            raise CheckpointError(f"{which} differ: {name} has {sides}")
        if (theirs[name].dtype in FLOATS) != own[name].is_floating_point():
            raise CheckpointError(f"{which} differ: {name} has numbers of {theirs[name].dtype} and {own[name].dtype}")


def _masks(
    topology: Topology | None, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], values: str
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the topology's masks that go with a tensor of the file, by its name, and those that do not."""
    found: dict[str, Array] = {}
    beside: dict[str, Array] = {}
    for name, mask in ({} if topology is None else topology.masks).items():
        array, stored = mask.cpu().numpy(), aliases.get(name, name)
        coded = not (tensors[stored].dtype == torch.float64 and values == "fp32")
        if array.ndim and coded and np.array_equal(found.setdefault(stored, array), array):
            continue
        beside[name] = array
    return found, beside


def _entry(name: str, tensor: Tensor, mask: Array | None, values: str) -> Any:
    entry = _format().Entry
    dtype = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.detach().cpu()
    if not tensor.is_floating_point() or (dtype == "float64" and values == "fp32"):
        return entry.of(name, plain.numpy(), values="raw", dtype=dtype)
    array = plain.float().numpy()
    coding = _coding(name, array, dtype, values)
    whole = entry.of(name, array, mask, values=coding, dtype=dtype)
    exist = None if mask is not None else _nonzero(array)
    if exist is None:
        return whole
    sparse = entry.of(name, array, exist, values=coding, dtype=dtype)
    return min(whole, sparse, key=lambda one: sum(map(len, _format().sections_of(one))))


def _coding(name: str, array: Array, dtype: str, values: str) -> str:
    """Return how a tensor of floats is stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        halves = array.astype(np.float16).astype(np.float32)
    fits = bool(np.isfinite(halves).all())
    if values == "fp32":
        return "fp16" if dtype == "float16" and fits else "fp32"
    if array.ndim > 1 and (len(array) > 1 or values == "fp16" or _leaf(name) == "weight"):
        return values
    sizes = np.abs(array)
    # a network divides by a variance: what is small counts; what is added is seen beside the largest
    allowed = sizes if _leaf(name) == "running_var" else sizes.max(initial=0)
    return "fp16" if fits and bool((np.abs(halves - array) <= allowed / 2048).all()) else "fp32"


def _nonzero(array: Array) -> Array | None:
    """Return where an array is not +0.0, for whole kernels if that says it all; None if it is nowhere."""
    exist: Array = np.asarray((array != 0) | np.signbit(array))
    if array.ndim == 0 or exist.all():
        return None
    if array.ndim > 2:
        kernels: Array = np.asarray(exist.any(axis=tuple(range(2, array.ndim)), keepdims=True))
        exist = kernels if np.array_equal(np.broadcast_to(kernels, exist.shape), exist) else exist
    return exist


def _tree(topology: Topology, beside: Mapping[str, Array], resume: bool) -> dict[str, Any]:
    """Return the topology's state without the masks that go with tensors; of which tensors it has some, if no more."""
    state = topology.state_dict()
    if not resume:
        return {"shapes": state["shapes"]} | ({"masks": dict(beside)} if beside else {})
    seed = topology.rng.initial_seed()
    fresh = seed < 1 << 63 and torch.Generator().manual_seed(seed).get_state().equal(state["rng"])
    tree: dict[str, Any] = _plain(state | {"masks": {}} | ({"rng": seed} if fresh else {}))
    return tree | {"masks": dict(beside)}


def _plain(value: Any) -> Any:
    """Return a tree with arrays for tensors."""
    if isinstance(value, Tensor):
        bits = value.dtype == torch.bfloat16
        return {_BFLOAT16: value.view(torch.int16).cpu().numpy()} if bits else value.cpu().numpy()
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def _tensors(value: Any) -> Any:
    """Return a tree with tensors for arrays."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict) and value.keys() == {_BFLOAT16}:
        return torch.from_numpy(value[_BFLOAT16].copy()).view(torch.bfloat16)
    return {key: _tensors(each) for key, each in value.items()} if isinstance(value, dict) else value


def _topology(
    path: str | Path, file: Any, devices: Mapping[str, torch.device] | None = None
) -> Topology | None:
    """Return the topology of a file, its masks on the devices of their parameters.

    Raises:
        CheckpointError: it is not what `_tree` wrote.
    """
    if file.topology is None:
        return None
    topology = Topology()
    try:
        state = topology.state_dict() | _tensors(dict(file.topology))
        for name, shape in file.topology["shapes"].items():
            if file.entry(name).shape != tuple(shape):
                raise ValueError(f"{name} of shape {shape}, where the file has {file.entry(name).shape}")
            if name not in state["masks"]:
                state["masks"][name] = torch.from_numpy(file.mask(name))
            topology.masks[name] = torch.ones((), dtype=torch.bool, device=(devices or {}).get(name))
        if isinstance(state["rng"], int):
            state["rng"] = torch.Generator().manual_seed(state["rng"]).get_state()
        _check_state(state)
        topology.restore(state)
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: the topology is damaged ({type(error).__name__}: {error})") from error
    return topology


def _check_state(state: Mapping[str, Any]) -> None:
    """Raise an error of some kind where a state could not be worked with."""
    for name, shape in state["shapes"].items():
        mask, births = state["masks"][name], state["births"].get(name)
        if mask.dtype != torch.bool or mask.dim() != len(shape) or mask.expand(shape).shape != torch.Size(shape):
            raise ValueError(f"{name} of shape {shape} has a mask of shape {tuple(mask.shape)}")
        if births is not None and (births.shape != mask.shape or births.dtype != torch.int32):
            raise ValueError(f"{name}: births of shape {tuple(births.shape)} for a mask of shape {tuple(mask.shape)}")
        if births is not None and births.numel() and not 0 <= births.min() <= births.max() < len(state["edits"]):
            raise ValueError(f"{name}: births in edits that were not")
    numbers = [state["step"], state["born"], state["died"], *state["edits"]]
    if not state["edits"] or not all(type(number) is int for number in numbers):
        raise ValueError("steps that are no numbers")
    if not state["births"].keys() <= state["shapes"].keys():
        raise ValueError("births of what has no mask")
    if not all(isinstance(each, Tensor) for values in state["state"].values() for each in values.values()):
        raise ValueError("what a method remembers is no tensor")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
