"""The training loop: whole data sets in memory, any step of it reproducible on its own."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from synaptree.core.attach import attach
from synaptree.core.errors import NumericError
from synaptree.core.method import Method
from synaptree.soft.penalty import Kind, Step, parameter_groups, penalise
from synaptree.train import together
from synaptree.train.data import Dataset, Split, batches, derive
from synaptree.train.network import Network, load_optimizer

__all__ = [
    "EpochLog", "Interrupted", "PenaltyOptions", "TrainOptions", "evaluate", "macro_auc", "mistakes", "train",
]  # fmt: skip


class Interrupted(Exception):  # noqa: N818 - it is no error
    """Training was asked to stop; the network stands between two optimizer updates."""


class PenaltyOptions(BaseModel):
    """What is added to the loss so that kernels or channels grow weak; see `soft.penalty.penalise`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    weight: float = Field(1e-5, ge=0)
    step: Step = "subgradient"


class TrainOptions(BaseModel):
    """How a network is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(60, ge=0)
    batch: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "adam"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    decay_all: bool = True  # also biases and batch norm
    milestones: tuple[int, ...] = ()  # epochs before which lr is multiplied by gamma
    gamma: float = Field(0.1, gt=0)
    schedule: Literal["steps", "cosine"] = "steps"
    augment: Literal["none", "crop_flip"] = "none"
    shuffle: bool = True
    selection: Literal["last", "best_validation"] = "last"
    channels_last: bool = False  # memory layout of 2-d convolutions; faster for some networks
    autocast: Literal["bfloat16"] | None = None  # what products are computed in; weights stay float32
    penalty: PenaltyOptions | None = None


@dataclass(frozen=True)
class EpochLog:
    """What one epoch gave: mean training loss, validation accuracy in [0, 1], seconds."""

    epoch: int
    loss: float
    validation_accuracy: float
    seconds: float


def train(
    network: Network,
    data: Dataset,
    options: TrainOptions,
    *,
    seed: int,
    method: Method | None = None,
    exclude: tuple[str, ...] = (),
    keep: frozenset[int] = frozenset(),
    optimizer_state: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochLog]:
    """Train `network` by cross-entropy and yield after every epoch.

    Connections that do not exist stay 0; `method` may edit the topology as training goes on. The order
    of the data derives from (seed, epoch) and all other randomness of an epoch from the same, so that
    training goes on exactly where `network.within` says. Processes that torchrun started take each its part of
    every batch; running statistics are those of the first one's part.

    Args:
        network: trained in place.
        data: the data set.
        options: how.
        seed: of data order, augmentation and dropout.
        method: edits the topology after optimizer updates, by its own schedule.
        exclude: patterns of layer names it leaves alone.
        keep: steps whose weights a later rewind wants.
        optimizer_state: of an interrupted stage.
        stop: asked after every update; true ends training at once.

    Raises:
        Interrupted: `stop` said so.
        NumericError: the loss is not finite.
    """
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    network.model.to(memory_format=layout)  # type: ignore[call-overload]
    accelerator = Accelerator(cpu=next(network.model.parameters()).device.type == "cpu")
    optimizer = _optimizer(network.model, options)
    if optimizer_state:
        load_optimizer(optimizer, optimizer_state)
    network.optimizer = optimizer
    attached, penalty = None, options.penalty
    if penalty is not None:
        penalise(network.model, optimizer, penalty.weight, penalty.step, penalty.kind)
    if method is not None or network.topology.masks:
        attached = attach(network.model, optimizer, method, topology=network.topology, exclude=exclude)
    model, stepper = accelerator.prepare(network.model, optimizer)
    try:
        for epoch in range(int(network.within.setdefault("epoch", 0)), options.epochs):
            started = time.perf_counter()
            _set_lr(optimizer, options, epoch)
            loss = _epoch(network, model, accelerator, stepper, data, options, seed, keep, stop)
            accuracy = evaluate(model, data, data.validation)
            network.epoch += 1
            _end_epoch(network, epoch, accuracy, options.selection)
            yield EpochLog(epoch, loss, accuracy, time.perf_counter() - started)
    finally:
        if attached is not None:
            attached.finish()
    if network.best:
        network.load_weights(network.best)
    network.optimizer, network.within, network.best = None, {}, {}


def _epoch(
    network: Network, model: nn.Module, accelerator: Accelerator, stepper: Any, data: Dataset, options: TrainOptions,
    seed: int, keep: frozenset[int], stop: Callable[[], bool],
) -> float:  # fmt: skip
    """Train one epoch from the batch `network.within` names on; return the mean loss per sample."""
    within = network.within
    if not within.setdefault("batch", 0):
        torch.manual_seed(derive(seed, network.epoch))
        within |= {"loss": 0.0, "samples": 0}
    model.train()
    order = batches(
        data, data.train, options.batch, seed=seed, epoch=network.epoch, shuffle=options.shuffle,
        augment=options.augment, first_step=int(within["batch"]), device=accelerator.device,
    )  # fmt: skip
    for x, y in order:
        network.keep(keep)
        if options.channels_last:
            x = x.to(memory_format=torch.channels_last)
        stepper.zero_grad()
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=options.autocast is not None):
            loss = together.mean_loss(model(together.part(x)), together.part(y), len(y))
        accelerator.backward(loss)
        value = together.mean(loss.item())
        if not math.isfinite(value):
            raise NumericError(
                f"the loss is {value} at update {network.step} (epoch {network.epoch}, batch {int(within['batch'])}); "
                "weights are those of the update before; try a smaller lr"
            )
        stepper.step()
        network.step += 1
        within["batch"] += 1
        within["loss"] += value * len(y)
        within["samples"] += len(y)
        if together.anyone(stop()):
            raise Interrupted
    together.same_buffers(network.model)
    network.keep(keep)
    mean = within["loss"] / max(1, within["samples"])
    within["batch"] = 0
    return mean


def _end_epoch(network: Network, epoch: int, accuracy: float, selection: str) -> None:
    """Say where to go on from, and remember the best weights; those under other masks are no candidates."""
    masks = float(int(network.topology.digest()[:12], 16))
    known = network.within.get("masks") == masks
    best = network.within["best"] if known else -1.0
    if selection == "best_validation" and accuracy > best:
        network.best = network.weights()
    network.within = {"epoch": epoch + 1, "best": max(best, accuracy), "masks": masks}


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset, split: Split) -> float:
    """Return the accuracy in [0, 1] on a split."""
    return 1.0 - len(mistakes(model, data, split)) / len(split.y)


@torch.no_grad()
def macro_auc(model: nn.Module, data: Dataset, split: Split) -> float:
    """Return the area under the ROC curve in [0, 1], one class against the rest, mean over the classes."""
    from sklearn.metrics import roc_auc_score  # slow to import, and seldom wanted

    training, device = model.training, next(model.parameters()).device
    model.eval()
    order = batches(data, split, 1000, seed=0, epoch=0, shuffle=False, device=device)
    parts = [model(x).softmax(1).cpu() for x, _ in order]
    model.train(training)
    labels = torch.arange(data.classes)
    return float(roc_auc_score(split.y.cpu(), torch.cat(parts).double(), multi_class="ovr", labels=labels))


@torch.no_grad()
def mistakes(model: nn.Module, data: Dataset, split: Split) -> list[int]:
    """Return the indices of the items of a split that are classified wrongly, in order."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    wrong: list[Tensor] = []
    for x, y in batches(data, split, 1000, seed=0, epoch=0, shuffle=False, device=device):
        wrong.append(model(x).argmax(1) != y)
    model.train(training)
    return torch.cat(wrong).nonzero().squeeze(1).tolist()


def _optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: Any = [{"params": trained}] if options.decay_all else parameter_groups(model, options.weight_decay)
    common: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    match options.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, momentum=options.momentum, fused=True, **common)
        case "adam":
            return torch.optim.Adam(groups, fused=True, **common)
        case "adamw":
            return torch.optim.AdamW(groups, fused=True, **common)
        case "rmsprop":
            return torch.optim.RMSprop(groups, momentum=options.momentum, **common)


def _set_lr(optimizer: Optimizer, options: TrainOptions, epoch: int) -> None:
    """Set the learning rate of an epoch; it follows from the epoch alone, so there is no state to save."""
    if options.schedule == "cosine":
        lr = options.lr / 2 * (1 + math.cos(math.pi * epoch / max(1, options.epochs)))
    else:
        lr = options.lr * options.gamma ** sum(epoch >= m for m in options.milestones)
    for group in optimizer.param_groups:
        group["lr"] = lr
