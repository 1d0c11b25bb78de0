"""Checkpoints: all of a developing network in one file, of which the last two are kept."""

import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synaptree.artifact.files import replacing
from synaptree.artifact.interchange import read_tensors, write_tensors
from synaptree.core.errors import CheckpointError, NumericError
from synaptree.core.topology import Topology
from synaptree.train.network import Network, Weights

__all__ = [
    "BEFORE", "CHECKPOINT", "Checkpoint", "Identity", "load_checkpoint", "newest", "read_checkpoint", "remove",
    "remove_partial", "save_checkpoint", "set_aside", "sizes", "whereabouts",
]  # fmt: skip

CHECKPOINT = "checkpoint.safetensors"
BEFORE = "checkpoint-before.safetensors"
DAMAGED = "checkpoint-damaged.safetensors"

Identity = str | Mapping[str, Any]
"""Whose a checkpoint is: a name, or a configuration as plain JSON, which can say where two differ."""

_FORMAT = "synaptree checkpoint 1"
_PLAIN = ("step", "epoch", "round", "stage", "within", "counted", "recent")  # parts of a network that are plain JSON
_TENSOR = "$tensor"
_NUMBER = re.compile(r"#-?\d+")  # a key that is no text
_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SMALL = 64  # numbers that are not worth compressing


class DamagedError(CheckpointError):
    """A file is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, read and found whole.

    Attributes:
        path: of the file.
        content: its parts, in nested dicts.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def stage(self) -> int:
        """Index of the stage that was at work."""
        return int(self.content["network"]["stage"])

    @property
    def step(self) -> int:
        """Optimizer updates made until then."""
        return int(self.content["network"]["step"])

    @property
    def masked(self) -> bool:
        """Whether it holds masks."""
        return bool(self.content["topology"]["masks"])

    def require(self, identity: Identity) -> None:
        """Raise a CheckpointError that says what differs, where it is another run's."""
        identity = json.loads(json.dumps(identity))  # as it looks in a file
        if self.content["identity"] != identity:
            raise CheckpointError(
                f"{self.path}: the checkpoint belongs to another run: "
                f"{_difference(self.content['identity'], identity)}; use the recipe and options it was written with, "
                "or another --out folder; --fresh starts over"
            )

    def elsewhere(self, machine: Mapping[str, Any]) -> list[str]:
        """Say where it was written otherwise than on `machine`: the numbers to come may differ in their last bits."""
        then, now = dict(_leaves(self.content["machine"])), dict(_leaves(machine))
        return [f"{key} was {then[key]}, is {now[key]}" for key in now if then.get(key, now[key]) != now[key]]

    def restore(self, network: Network) -> dict[str, Any]:
        """Give `network` all that it holds, and return the state of the optimizer at work.

        Raises:
            CheckpointError: it was written for another model, or lacks masks; then nothing is changed.
        """
        content = self.content
        self._check_model(network.model)
        topology = self._topology()
        layout = content["layout"]
        for name, parameter in network.model.named_parameters():
            if name in layout:
                parameter.data = torch.empty_strided(
                    parameter.shape, layout[name], dtype=parameter.dtype, device=parameter.device
                )
        network.model.load_state_dict(content["model"])
        network.model.train(content["training"])
        network.topology, network.best, network.trial = topology, content["best"], content["trial"]
        network.kept = {int(step): weights for step, weights in content["kept"].items()}
        for key in _PLAIN:
            setattr(network, key, content["network"][key])
        torch.set_rng_state(content["random"])
        return dict(content["optimizer"])

    def _check_model(self, model: nn.Module) -> None:
        theirs = {name: tuple(value.shape) for name, value in self.content["model"].items()}
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for name in [*own, *theirs]:
            if theirs.get(name) != own.get(name):
                there, here = (f"has shape {at[name]}" if name in at else "is missing" for at in (theirs, own))
                raise CheckpointError(
                    f"{self.path}: the checkpoint belongs to another model: {name} {there} there and {here} here; "
                    "use the model and programme it was written with"
                )

    def _topology(self) -> Topology:
        state, model = self.content["topology"], self.content["model"]
        if (state["born"] or state["died"]) and not state["masks"]:
            raise CheckpointError(
                f"{self.path}: the checkpoint holds no masks, though {state['died']} connections have died and "
                f"{state['born']} were born: it cannot be gone on from; --fresh starts over"
            )
        topology = Topology()
        try:
            topology.restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: the topology is damaged ({type(error).__name__}: {error})") from error
        for name, shape in topology.shapes.items():
            if name not in model or tuple(model[name].shape) != shape:
                raise CheckpointError(f"{self.path}: a mask for {name} of shape {shape}, which its model does not have")
        return topology


def save_checkpoint(
    network: Network, path: str | Path, *, identity: Identity, log: Mapping[str, Any],
    machine: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write all of `network` to one file, atomically; what `path` held before is kept beside it.

    The new file lies on the disk, whole, before the old one is moved, so that one of the two can be read at any moment.

    Args:
        network: the network, between two updates.
        path: of the file.
        identity: says whose checkpoint this is; loading wants the same.
        log: what the run has recorded so far, as JSON.
        machine: where the run happens, as `whereabouts` says it.

    Raises:
        NumericError: a weight is NaN or infinite; then nothing is written.
    """
    path = Path(path)
    _require_finite(network.model)
    tensors: Weights = {}
    content = _flatten(_content(network, identity, log, machine or {}), "", tensors)
    meta = {"format": _FORMAT, "content": content, "sha256": _digest(tensors, content)}
    with replacing(path) as partial:
        write_tensors(partial, tensors, meta)
        _sync(partial)
        if path.exists():
            os.replace(path, _before(path))
    _sync(path.parent)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Return what the file holds.

    Raises:
        CheckpointError: it is missing or damaged; one flipped bit is enough.
    """
    try:
        tensors, meta = read_tensors(path)
        if meta.get("format") != _FORMAT:
            raise DamagedError(f"{path}: wanted the format {_FORMAT!r}, got {meta.get('format')!r}")
        if meta["sha256"] != _digest(tensors, meta["content"]):
            raise DamagedError(f"{path}: its content does not fit its checksum")
        return Checkpoint(Path(path), _unflatten(meta["content"], tensors))
    except DamagedError:
        raise
    except (CheckpointError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, zlib.error) as error:
        raise DamagedError(str(error) if isinstance(error, CheckpointError) else f"{path}: {error!r}") from error


def newest(path: str | Path) -> tuple[Checkpoint | None, str]:
    """Return the last whole one of the checkpoint `path` and the one before, and what is wrong with a damaged one.

    Raises:
        CheckpointError: there is a file, and none is whole; nothing is changed.
    """
    wrong: list[str] = []
    for place in (Path(path), _before(path)):
        if place.exists():
            try:
                return read_checkpoint(place), "; ".join(wrong)
            except DamagedError as error:
                wrong.append(str(error))
    if wrong:
        raise CheckpointError(
            f"the checkpoint is damaged, and no other one is whole: {'; '.join(wrong)}. "
            "Nothing was changed; bring a copy back, or start over with --fresh"
        )
    return None, ""


def load_checkpoint(
    network: Network, path: str | Path, *, identity: Identity
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take over what `save_checkpoint` wrote; return the log and the state of the optimizer at work.

    Raises:
        CheckpointError: the file is damaged or belongs to another run; then nothing is changed.
    """
    found = read_checkpoint(path)
    found.require(identity)
    return dict(found.content["log"]), found.restore(network)


def set_aside(path: str | Path) -> None:
    """Move a damaged checkpoint out of the way, so that the whole one before it is not the next to go."""
    with suppress(FileNotFoundError):
        os.replace(path, Path(path).with_name(DAMAGED))


def remove(folder: Path) -> None:
    """Remove the checkpoints in a run's folder."""
    for name in (CHECKPOINT, BEFORE, DAMAGED):
        (folder / name).unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed while it wrote to a run's folder has left there."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink(missing_ok=True)


def whereabouts(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the last bits of a run, of what `results.environment` says."""
    processor = f"{environment['hardware']['cpu']} ({torch.backends.cpu.get_cpu_capability()})"
    processes = environment["hardware"].get("processes", 1)
    versions = environment["versions"]
    return {"processor": processor, "threads": environment["threads"], "processes": processes, "versions": versions}


def sizes(path: str | Path) -> dict[str, int]:
    """Return the bytes of a checkpoint's tensors by what they hold, and of all its text as "names"."""
    parts = {"model": "weights", "topology/masks": "masks", "topology/births": "ages", "topology/state": "counters"}
    found = dict.fromkeys(["weights", "optimizer", "masks", "ages", "counters", "kept", "best", "trial", "random"], 0)
    for name, tensor in read_tensors(path)[0].items():
        part = name.split("/")[0] if name.startswith("optimizer") else next(
            (kind for start, kind in parts.items() if name.startswith(f"{start}/")), name.split("/")[0]
        )
        found["random" if part == "topology" else part] += tensor.nbytes
    return found | {"names": Path(path).stat().st_size - sum(found.values())}


def _content(
    network: Network, identity: Identity, log: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, Any]:
    optimizer = network.optimizer.state_dict() if network.optimizer is not None else {}
    return {
        "identity": identity, "machine": machine, "log": log,
        "network": {key: getattr(network, key) for key in _PLAIN},
        "model": {name: value.detach() for name, value in network.model.state_dict().items()},
        "training": network.model.training, "layout": _layout(network.model),
        "kept": network.kept, "best": network.best, "trial": network.trial,
        "topology": network.topology.state_dict(), "optimizer": optimizer, "random": torch.get_rng_state(),
    }  # fmt: skip


def _layout(model: nn.Module) -> dict[str, list[int]]:
    """Return the strides of the parameters that lie in memory otherwise than usual: kernels are chosen by them."""
    usual = {name: torch.empty(p.shape, device="meta").stride() for name, p in model.named_parameters()}
    return {name: list(p.stride()) for name, p in model.named_parameters() if p.stride() != usual[name]}


def _require_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NumericError(f"{name} of shape {tuple(parameter.shape)} is not finite: no state to go on from")


def _before(path: str | Path) -> Path:
    path = Path(path)
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _sync(path: Path) -> None:
    """Wait until a file or a folder lies on the disk."""
    if sys.platform == "win32":  # which opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(tensors: Mapping[str, Tensor], content: Any) -> str:
    """Return a hash of all there is: names, types, shapes, bytes, and the JSON text."""
    sha = hashlib.sha256(json.dumps(content).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _flatten(value: Any, path: str, tensors: Weights) -> Any:
    """Move the tensors in nested dicts and lists to `tensors`; leave `{"$tensor": path}` in their place."""
    if isinstance(value, Tensor):
        while path in tensors:
            path += "'"
        tensors[path], entry = _small(value)
        return {_TENSOR: path} | entry
    if isinstance(value, Mapping):
        keys = {key: f"#{key}" if isinstance(key, int) else _told_apart(str(key)) for key in value}
        return {keys[key]: _flatten(item, f"{path}/{keys[key]}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    json.dumps(value)  # anything else must be plain
    return value


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return _whole(tensors[value[_TENSOR]], value)
        return {_key(key): _unflatten(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    return value


def _told_apart(key: str) -> str:
    """Return a text that is taken neither for a number nor for the mark of a tensor."""
    return f"'{key}" if key[:1] in ("#", "$", "'") else key


def _key(text: str) -> int | str:
    return int(text[1:]) if _NUMBER.fullmatch(text) else text.removeprefix("'")


def _small(tensor: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return bits of a mask packed and whole numbers compressed, with what it takes to undo that; the rest as it is."""
    if tensor.dtype == torch.bool:
        packed = np.packbits(tensor.cpu().numpy().ravel())
        return torch.from_numpy(packed), {"packed": "bits", "shape": list(tensor.shape)}
    if tensor.dtype in _WHOLE_NUMBERS and tensor.numel() > _SMALL:
        values = tensor.detach().cpu().contiguous().numpy()
        packed = np.frombuffer(bytearray(zlib.compress(values.data, 1)), np.uint8)
        return torch.from_numpy(packed), {"packed": values.dtype.name, "shape": list(tensor.shape)}
    return tensor, {}


def _whole(stored: Tensor, entry: Mapping[str, Any]) -> Tensor:
    if "packed" not in entry:
        return stored.clone()  # what was read is the file's own memory
    size = torch.Size(entry["shape"]).numel()
    if entry["packed"] == "bits":
        values = np.unpackbits(stored.numpy(), count=size).astype(bool)
    else:
        values = np.frombuffer(bytearray(zlib.decompress(stored.numpy().data)), entry["packed"])
    return torch.from_numpy(values).view(entry["shape"])


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values in nested dicts and lists with their dotted names."""
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def _difference(theirs: Identity, ours: Identity, shown: int = 4) -> str:
    """Say in what two identities differ."""
    there, here = dict(_leaves(theirs)), dict(_leaves(ours))
    differ = [
        f"{key or 'it'} is {there.get(key, 'not set')!r} there and {here.get(key, 'not set')!r} here"
        for key in dict.fromkeys([*there, *here]) if there.get(key, _TENSOR) != here.get(key, _TENSOR)
    ]  # fmt: skip
    more = [f"and {len(differ) - shown} more"] if len(differ) > shown else []
    return ", ".join(differ[:shown] + more)
