"""A developing network: all that a programme's stages work on, and all that a checkpoint holds."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from synaptree.artifact.interchange import read_tensors, write_tensors
from synaptree.core.errors import CheckpointError
from synaptree.core.topology import Topology

__all__ = ["Network", "Weights", "load_checkpoint", "load_optimizer", "reached", "save_checkpoint"]

Weights = dict[str, Tensor]

_PLAIN = ("step", "epoch", "round", "stage", "within", "counted", "recent")  # parts of a network that are plain JSON


@dataclass
class Network:
    """A model, its topology and its history.

    Attributes:
        model: the network itself.
        topology: which connections exist; dense until something is pruned.
        step: optimizer updates made so far, over all stages.
        epoch: epochs of data begun so far, over all stages; the data order derives from it.
        round: of the programme; 0 until the first edit.
        kept: weights and batch-norm statistics of the steps a later rewind asks for.
        stage: index of the stage at work; with `within` it says where to go on.
        within: what that stage remembers: epochs done, batches done, running loss.
        optimizer: of the stage at work, None between training stages.
        best: the best weights of the stage at work by validation accuracy, where it selects.
        trial: what a stage that tries and judges remembers: numbers, and the state it may go back to.
        counted: connections born and died before the last measurement.
        recent: validation accuracies of the last three epochs that the network as it stands went through.
    """

    model: nn.Module
    topology: Topology = field(default_factory=Topology)
    step: int = 0
    epoch: int = 0
    round: int = 0
    kept: dict[int, Weights] = field(default_factory=dict)
    stage: int = 0
    within: dict[str, float] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    best: Weights = field(default_factory=dict)
    trial: dict[str, Any] = field(default_factory=dict)
    counted: list[int] = field(default_factory=lambda: [0, 0])
    recent: list[float] = field(default_factory=list)

    def weights(self) -> Weights:
        """Return a copy of the model's parameters and buffers."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def keep(self, steps: frozenset[int]) -> None:
        """Keep the present weights if a later rewind wants those of this step; the first to pass it counts."""
        if self.step in steps and self.step not in self.kept:
            self.kept[self.step] = self.weights()

    def snapshot(self) -> dict[str, Any]:
        """Return copies of all that an edit and the training after it may change."""
        optimizer = self.optimizer.state_dict() if self.optimizer is not None else {}
        return {
            "model": self.weights(), "optimizer": deepcopy(optimizer), "topology": self.topology.state_dict(),
            "best": dict(self.best), "recent": list(self.recent),
            "within": {key: self.within[key] for key in ("best", "masks") if key in self.within},
        }  # fmt: skip

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Undo exactly what happened since `snapshot`; only random draws go on."""
        rng = self.topology.rng.get_state()
        self.model.load_state_dict(snapshot["model"])
        self.topology.restore(snapshot["topology"])
        self.topology.rng.set_state(rng)
        self.best, self.recent = dict(snapshot["best"]), list(snapshot["recent"])
        self.within |= snapshot["within"]
        if self.optimizer is not None:
            load_optimizer(self.optimizer, snapshot["optimizer"])

    def load_weights(self, weights: Weights) -> None:
        """Take over parameters and buffers; connections that do not exist stay 0."""
        self.model.load_state_dict(weights)
        self.topology.apply(self.model)


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state in the memory layout of its parameters, which fused kernels take for granted."""
    optimizer.load_state_dict(deepcopy(dict(state)))  # it would hold on to the tensors given
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)


def save_checkpoint(network: Network, path: str | Path, *, identity: str, log: Mapping[str, Any]) -> None:
    """Write all of `network` to one safetensors file, atomically.

    Args:
        network: the network.
        path: of the file.
        identity: says whose checkpoint this is; loading wants the same.
        log: what the run has recorded so far, as JSON.
    """
    tensors: Weights = {f"model/{name}": value for name, value in network.weights().items()}
    for step, weights in network.kept.items():
        tensors |= {f"kept/{step}/{name}": value for name, value in weights.items()}
    tensors |= {f"best/{name}": value for name, value in network.best.items()}
    topology, optimizer = network.topology.state_dict(), {}
    if network.optimizer is not None:
        optimizer = network.optimizer.state_dict()
    plain: dict[str, Any] = {
        "identity": identity, "log": log,
        "network": {key: getattr(network, key) for key in _PLAIN},
        "topology": _flatten(topology, "topology", tensors),
        "optimizer": _flatten(optimizer, "optimizer", tensors),
        "trial": _flatten(network.trial, "trial", tensors),
    }  # fmt: skip
    tensors["random"] = torch.get_rng_state()
    write_tensors(path, tensors, plain)


def reached(path: str | Path) -> int:
    """Return the index of the stage that was at work when the checkpoint was written."""
    return int(read_tensors(path)[1]["network"]["stage"])


def load_checkpoint(network: Network, path: str | Path, *, identity: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take over what `save_checkpoint` wrote; return the log and the state of the optimizer at work.

    Raises:
        CheckpointError: the file is damaged or belongs to another run; then nothing is changed.
    """
    tensors, plain = read_tensors(path)
    if plain.get("identity") != identity:
        raise CheckpointError(
            f"{path}: the checkpoint belongs to another run ({plain.get('identity')!r}, wanted {identity!r}); "
            "use the recipe and options it was written with, or another --out folder"
        )
    parts: dict[str, Weights] = {"model": {}, "kept": {}, "best": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = value
    topology = Topology()
    known = _unflatten(plain["topology"], tensors)
    (topology.load_state_dict if known["masks"] else topology.restore)(known)
    network.model.load_state_dict(parts["model"])
    network.topology, network.best, network.kept = topology, parts["best"], {}
    for name, value in parts["kept"].items():
        step, _, rest = name.partition("/")
        network.kept.setdefault(int(step), {})[rest] = value
    for key, value in plain["network"].items():
        setattr(network, key, value)
    network.trial = _unflatten(plain["trial"], tensors)
    torch.set_rng_state(tensors["random"])
    return plain["log"], _unflatten(plain["optimizer"], tensors)


def _flatten(value: Any, path: str, tensors: Weights) -> Any:
    """Move the tensors in nested dicts and lists to `tensors`; leave `{"tensor": path}` in their place."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {str(key): _flatten(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    json.dumps(value)  # anything else must be plain
    return value


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            return tensors[value["tensor"]]
        return {int(key) if key.isdigit() else key: _unflatten(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    return value
