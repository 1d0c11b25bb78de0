"""Accelerate: `attach` for an `Accelerator`, whose `save_state` and `load_state` then carry the topology."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from synaptree.core import attach as core
from synaptree.core.attach import Attached
from synaptree.core.errors import OptionError
from synaptree.core.layer import unwrapped
from synaptree.core.method import Method
from synaptree.core.topology import Topology
from synaptree.integrate.state import read_state, write_state

__all__ = ["attach"]

_attached: WeakKeyDictionary[Any, dict[str, Attached]] = WeakKeyDictionary()
"""Accelerator -> what is attached with it, by the name of its file."""


def attach(
    accelerator: Any, model: nn.Module, optimizer: Any, method: Method | None = None, *,
    topology: Topology | None = None, include: Iterable[str] = ("*",), exclude: Iterable[str] = (), seed: int = 0,
    name: str = "model",
) -> Attached:  # fmt: skip
    """Attach, and let `accelerator.save_state` and `load_state` carry the topology too.

    `save_state` writes it as `synaptree_NAME.safetensors` into its folder; `load_state` refuses a folder without
    that file, before it has changed anything. Call it between `prepare` and `load_state`.

    Args:
        accelerator: of the library Accelerate.
        model: what `accelerator.prepare` returned.
        optimizer: likewise.
        method: edits the topology by its own schedule; None only keeps the masks of `topology`.
        topology: the connections to start from; dense by default.
        include: shell patterns of the names of the modules to act on.
        exclude: likewise; wins over `include`.
        seed: of the topology's random generator.
        name: in that of the file. A later attachment of the same model takes the place of an earlier one.

    Returns:
        What `synaptree.attach` returns.

    Raises:
        AttachError: see `synaptree.attach`.
        OptionError: another model is attached under this name.
        CheckpointError: on `load_state`: the folder holds no masks, or those of another model or method.
    """
    known = _attached.setdefault(accelerator, {})
    before = known.get(name)
    if before is not None and before.optimizer is not None and unwrapped(before.model) is not unwrapped(model):
        raise OptionError(f"name = {name!r}: another model is attached under it; give each its own, such as 'critic'")
    attached = core.attach(model, optimizer, method, topology=topology, include=include, exclude=exclude, seed=seed)
    if not known:
        accelerator.register_save_state_pre_hook(_saving(known, accelerator.is_main_process))
        accelerator.register_load_state_pre_hook(_loading(known))
    known[name] = attached
    return attached


def _saving(known: dict[str, Attached], here: bool) -> Any:
    def save(models: Any, weights: Any, folder: str) -> None:  # noqa: ARG001 - Accelerate's hook
        for name, attached in known.items() if here else ():
            write_state(attached.state_dict(), _file(folder, name))

    return save


def _loading(known: dict[str, Attached]) -> Any:
    def load(models: Any, folder: str) -> None:  # noqa: ARG001 - Accelerate's hook
        states = {name: read_state(_file(folder, name)) for name in known}
        with ExitStack() as undo:  # where one is refused, all are as before
            for name, attached in known.items():
                undo.enter_context(attached.topology.restored_on_error(*attached.model.parameters()))
                attached.load_state_dict(states[name])

    return load


def _file(folder: str, name: str) -> Path:
    return Path(folder) / f"synaptree_{name}.safetensors"
