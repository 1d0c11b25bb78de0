"""A developing network: all that a programme's stages work on."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from synaptree.core.topology import Topology

__all__ = ["Network", "Weights", "load_optimizer"]

Weights = dict[str, Tensor]


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
