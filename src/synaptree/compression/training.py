"""Training of a try: updates until its progress is complete, masks kept all the while."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from synaptree.compression.clock import Clock, Progress
from synaptree.compression.feed import Feed
from synaptree.compression.judge import device_of
from synaptree.core.attach import attach
from synaptree.core.errors import DataError, NumericError
from synaptree.core.method import Method
from synaptree.core.topology import Topology
from synaptree.graph.trace import reason

__all__ = ["HOLD", "Loss", "Optimize", "Trainer"]

Loss = Callable[[Any, Tensor], Tensor]
Optimize = Callable[[Iterable[nn.Parameter]], Optimizer]

HOLD = 0.7
"""Share of a training at the full learning rate, in which connections are cut; then it falls along half a cosine."""
LR, WEIGHT_DECAY = 5e-3, 1e-4


@dataclass
class Trainer:
    """How networks are trained.

    Attributes:
        feed: the training data.
        loss: `(outputs, labels) -> scalar`; None means cross-entropy.
        optimize: makes the optimizer from parameters; None means Adam.
        clock: ends a training by `Stopped`.
        epoch: epochs begun so far; the order of the data derives from it.
        length: updates in an epoch, as far as they are known.
        updates: made so far.
        tick: called after each.
    """

    feed: Feed
    loss: Loss | None
    optimize: Optimize | None
    clock: Clock
    epoch: int = 0
    length: int = 0
    updates: int = 0
    tick: Callable[[], None] = field(default=lambda: None)

    def train(
        self, model: nn.Module, progress: Progress, *, topology: Topology | None = None, method: Method | None = None,
        lr: float = 1.0,
    ) -> float:  # fmt: skip
        """Train a model in place until `progress` is complete, and return the epochs that took.

        Args:
            model: in training mode afterwards.
            progress: of this training.
            topology: whose masks are kept.
            method: edits it as training goes on.
            lr: factor on the learning rate; 0 decay of weights where nothing is pruned.

        Raises:
            DataError: the model does not take a batch, or the loss does not take its outputs.
            NumericError: the loss is not finite.
            Stopped: the time is up before it is complete.
        """
        optimizer = self.optimizer(model, sparse=topology is not None)
        rates = [group["lr"] * lr for group in optimizer.param_groups]
        attached = None
        if topology is not None:
            topology.count_from(0)
            attached = attach(model, optimizer, method, topology=topology)
        model.train()
        updates = 0
        try:
            while progress.share < 1:
                updates += self._epoch(model, optimizer, rates, progress)
        finally:
            if attached is not None:
                attached.finish()
        return updates / max(1, self.length)

    def _epoch(self, model: nn.Module, optimizer: Optimizer, rates: list[float], progress: Progress) -> int:
        updates = 0
        self.epoch += 1
        for x, y in self.feed.batches(self.epoch, device_of(model)):
            if progress.share >= 1:
                return updates
            self.clock.require()
            progress.advance()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * falling(progress.share)
            self.update(model, optimizer, x, y)
            updates += 1
            self.updates += 1
            self.clock.spend(1 / max(1, self.length))
            self.tick()
        if not self.length:
            self.length = updates
        return updates

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
        """Make one update."""
        optimizer.zero_grad()
        try:
            loss = (self.loss or _cross_entropy)(model(x), y)
        except DataError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise DataError(
                f"a training batch of inputs {tuple(x.shape)} {x.dtype} and labels {tuple(y.shape)} {y.dtype} does not "
                f"go through {type(model).__name__} and the loss: {reason(error)}"
            ) from error
        if not isinstance(loss, Tensor) or loss.dim():
            raise DataError(f"the loss gave {type(loss).__name__}: wanted one number as a tensor without axes")
        if not bool(loss.isfinite()):
            raise NumericError(f"the loss became {loss.item()} {self._where()}; {_remedy(x, y)}")
        loss.backward()
        optimizer.step()

    def _where(self) -> str:
        if not self.epoch:
            return "in the updates that were made to time an epoch"
        return f"at update {self.updates} (epoch {self.epoch})"

    @property
    def epochs(self) -> float:
        """Epochs of training so far, in all."""
        return self.updates / max(1, self.length)

    def optimizer(self, model: nn.Module, *, sparse: bool) -> Optimizer:
        """Return the optimizer of a training."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.optimize is not None:
            return self.optimize(trained)
        weights = [parameter for parameter in trained if parameter.dim() > 1]
        others = [parameter for parameter in trained if parameter.dim() <= 1]
        # decay draws what is not needed to 0, so that magnitude tells the rest apart
        decay = WEIGHT_DECAY if sparse else 0.0
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": decay}, {"params": others}]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=LR, fused=True)


def falling(share: float) -> float:
    """Return the factor on the learning rate at a share of a training in [0, 1].

    >>> [round(falling(share), 2) for share in (0.0, 0.7, 0.85, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return 0.5 + 0.5 * math.cos(math.pi * max(0.0, share - HOLD) / (1 - HOLD))


def _remedy(x: Tensor, y: Tensor) -> str:
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        return "inputs or labels of its batch are not finite: fill in what is missing, or leave such samples out"
    return "try a smaller learning rate (by `optimizer`), and look for extreme values in the data"


def _cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or labels.dim() != 1 or labels.is_floating_point():
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(
            f"cross-entropy wants outputs (samples, classes) and whole labels (samples,), got {got} and {labels.dtype} "
            f"of shape {tuple(labels.shape)}; give the loss to train with"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
        raise DataError(
            f"labels from {int(labels.min())} to {int(labels.max())}: the model has {outputs.shape[1]} outputs, wanted "
            f"labels from 0 to {outputs.shape[1] - 1}"
        )
    return F.cross_entropy(outputs, labels)
