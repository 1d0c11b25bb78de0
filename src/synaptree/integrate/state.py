"""What an attachment remembers, kept beside a checkpoint and taken up again."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from synaptree.artifact.interchange import read_tensors, write_tensors
from synaptree.core.attach import Attached, attach
from synaptree.core.errors import AttachError, CheckpointError
from synaptree.core.layer import layers_of, parameters_of
from synaptree.core.method import Method, require_method
from synaptree.core.ranks import whole
from synaptree.core.topology import Topology

__all__ = ["attach_from", "check_weights", "read_state", "require_task", "write_state"]

_FORMAT = "synaptree state 1"


def attach_from(
    state: Mapping[str, Any] | None, model: nn.Module, optimizer: Optimizer, method: Method | None, *,
    topology: Topology, include: Iterable[str] = ("*",), exclude: Iterable[str] = (),
) -> Attached:  # fmt: skip
    """Attach to a model whose weights are loaded already, and go on where `state` was taken.

    Args:
        state: of `Attached.state_dict`; None to begin.
        model: see `attach`, as all below.
        optimizer: likewise.
        method: likewise.
        topology: takes over that of `state`; may be empty.
        include: likewise.
        exclude: likewise.

    Raises:
        AttachError: see `attach`.
        CheckpointError: the state holds no masks, those of another model, or was taken under another method.
    """
    if state is not None:
        if method is not None:  # masks where the weights are
            topology.cover(
                layers_of(model, method.granularity, include, exclude), method.granularity, biases=method.biases
            )
        # before attach, which would cut the loaded weights to older masks, or start the method anew
        topology.load_state_dict(state.get("topology", {}))
    attached = attach(model, optimizer, method, topology=topology, include=include, exclude=exclude)
    if state is not None:
        try:
            attached.load_state_dict(state)
        except BaseException:
            attached.detach()
            raise
    return attached


def require_task(method: object, topology: object) -> None:
    """Raise an AttachError where there is neither a method nor a topology whose masks to keep."""
    require_method(nn.Identity(), method)
    if method is None and topology is None:
        raise AttachError("wanted a method, a topology whose masks to keep, or both; got neither")


def check_weights(state: Mapping[str, Any], model: nn.Module, where: str | Path) -> None:
    """Refuse a state whose dead weights are not 0 in `model`.

    Raises:
        CheckpointError: it belongs to other weights.
    """
    masks = state.get("topology", {}).get("masks", {})
    for name, parameter in parameters_of(model).items():
        if name in masks and bool(whole(parameter.detach()).masked_fill(masks[name].to(parameter.device), 0.0).any()):
            raise CheckpointError(
                f"{where}: {name} has weights that are not 0 where the checkpoint has no connections: "
                "it belongs to other weights than those that were loaded"
            )


def write_state(state: Mapping[str, Any], path: str | Path) -> None:
    """Write what `Attached.state_dict` returned as one safetensors file, atomically.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_state({"topology": {"step": 3}, "method": "rigl()"}, f"{folder}/state.safetensors")
        ...     read_state(f"{folder}/state.safetensors")
        {'topology': {'step': 3}, 'method': 'rigl()'}
    """
    tensors: dict[str, Tensor] = {}
    plain = _apart(state, "state", tensors)
    write_tensors(path, tensors, {"format": _FORMAT, "state": plain})


def read_state(path: str | Path) -> dict[str, Any]:
    """Return what `write_state` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    if not Path(path).exists():
        raise CheckpointError(
            f"{path} is missing: the checkpoint holds no masks, because it was written without synaptree or was cut "
            "off; take another checkpoint, or load its weights alone and begin anew"
        )
    tensors, meta = read_tensors(path)
    if meta.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: wanted the format {_FORMAT!r}, got {meta.get('format')!r}")
    try:
        return dict(_together(meta["state"], tensors))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint is damaged ({type(error).__name__}: {error})") from error


def _apart(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of nested tables to `tensors`; leave `{"tensor": path}` in their place."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {key: _apart(item, f"{path}/{key}", tensors) for key, item in value.items()}
    return value


def _together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("tensor"), str):
        return tensors[value["tensor"]]
    return {key: _together(item, tensors) for key, item in value.items()}
