"""Batch-norm statistics of a network as it is now."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from synaptree.core.errors import DataError

__all__ = ["recalibrate"]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Tensor | Iterable[Any]) -> None:
    """Measure the running statistics of every batch norm anew, as plain means over `batches`.

    Pruning changes what flows through a network, and statistics from before no longer fit: measure
    accuracy without finetuning only after this. About 200 training batches are plenty. Weights, modes,
    momenta and the other layers, which run in eval mode, stay as they are; after an error so do the statistics.

    Args:
        model: any module; changed in place. Without batch norm nothing happens.
        batches: inputs, `(samples, ...)` each, or tuples that begin with one; a tensor is one batch.

    Raises:
        DataError: there is no batch, or the model does not take one in training mode (a batch norm wants
            more than one value per channel).

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> recalibrate(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        >>> norm.running_mean, norm.running_var
        (tensor([4.]), tensor([2.]))

    Paper: none; whether Lin, Zhong, Wu and Yan 2018 (1811.02454) do it is not known to us.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    device = next(chain(model.parameters(), model.buffers())).device
    with _measuring(model, norms):
        count = -1
        for count, batch in enumerate([batches] if isinstance(batches, Tensor) else batches):
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            try:
                model(x.to(device))
            except Exception as error:
                raise DataError(
                    f"batch {count} does not go through {type(model).__name__} in training mode; give inputs such as "
                    f"it is trained on, several samples each ({error})"
                ) from error
        if count < 0:
            raise DataError("recalibrate wants at least one batch of inputs, got none")


@contextmanager
def _measuring(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Let `norms` take plain means from here on, all else in eval mode; undo that, and on an error all of it."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [[(buffer, buffer.clone()) for buffer in norm.buffers()] for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        yield
    except BaseException:
        for buffer, copy in chain.from_iterable(before):
            buffer.copy_(copy)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
