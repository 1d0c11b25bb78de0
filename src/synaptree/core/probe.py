"""Probes: running means of what flows into a layer, collected by hooks that keep no activations."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from synaptree.core.errors import DataError, NumericError
from synaptree.core.layer import Layer

__all__ = ["Hook", "Probe", "Reduction", "mean_abs_input"]

Reduction = Callable[[Layer, Tensor, Tensor], Tensor]
"""`(layer, input, output) -> sum over the samples`, of any shape without the batch axis."""


class Probe:
    """Running sums over samples of statistics of what flows through layers; a context manager.

    Copies and pickles of a watched model are not watched.

    Args:
        layers: what to watch.
        reductions: name of a statistic -> sum over samples of the batch; for a linear layer every
            vector along the last axis counts as a sample.
        training: look only at what flows in training mode with gradients on.

    Example:
        >>> from synaptree.core.layer import layers_of
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> with Probe(layers_of(model), {"mean_abs": mean_abs_input}) as probe:
        ...     _ = model(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        >>> probe.means("0")["mean_abs"]
        tensor([2., 1.])
    """

    def __init__(
        self, layers: tuple[Layer, ...], reductions: Mapping[str, Reduction], *, training: bool = False
    ) -> None:
        self.layers, self.reductions, self.training = layers, reductions, training
        self._sums: dict[str, dict[str, Any]] = {layer.name: {} for layer in layers}
        self._dtypes = {layer.name: torch.promote_types(layer.module.weight.dtype, torch.float32) for layer in layers}
        self._hooks: list[Any] = []

    def __enter__(self) -> "Probe":
        for layer in self.layers:
            hook = Hook(partial(self._look, layer))
            for module in (layer.module, *layer.tied):
                self._hooks.append(module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def means(self, name: str) -> dict[str, Tensor]:
        """Return the mean over samples of each statistic of the layer `name`; empty if nothing flowed through it.

        Means have the precision of the layer's weight, float32 at least.

        Raises:
            NumericError: a mean is not finite.
        """
        sums, dtype = dict(self._sums[name]), self._dtypes[name]
        samples = sums.pop("samples", 0)
        means = {stat: (total / samples).to(dtype) for stat, total in sums.items()}
        for stat, mean in means.items():
            if not mean.isfinite().all():
                raise NumericError(
                    f"layer {name}: {stat} of its input is not finite over {samples} samples; "
                    "look for NaN or infinity in the data or in the weights before it"
                )
        return means

    def take(self) -> dict[str, dict[str, Any]]:
        """Return the sums of each layer, with their number of "samples", an int, and begin anew."""
        taken, self._sums = self._sums, {layer.name: {} for layer in self.layers}
        return taken

    def put(self, sums: dict[str, dict[str, Any]]) -> None:
        """Go on from the sums of `take`, or from those of several processes added up."""
        self._sums = sums

    @torch.no_grad()
    def _look(
        self, layer: Layer, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        if self.training and (_repeated() or not (module.training and output.requires_grad)):
            return
        x, sums = next(iter((*inputs, *named.values()))).detach(), self._sums[layer.name]
        rows = x.numel() // max(1, x.shape[-1]) if layer.kind == "linear" else x.shape[0]
        sums["samples"] = sums.get("samples", 0) + rows
        for stat, reduce in self.reductions.items():
            # float64, so that the mean does not depend on how samples were cut into batches
            part = reduce(layer, x, output.detach()).double()
            if self.training:  # an update that overflows may be skipped by a scaler, of which no hook tells
                part = part.nan_to_num(0.0, 0.0, 0.0)
            if part.shape != sums.get(stat, part).shape:
                raise DataError(
                    f"layer {layer.name}: {tuple(x.shape)} came after inputs of other sizes; give batches of one"
                )
            sums[stat] = sums[stat] + part if stat in sums else part


class Hook:
    """A hook that calls a function; its copies and pickles, in copies of the model, do nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self.call = call

    def __call__(self, *seen: Any) -> None:  # noqa: D102 - the hook itself
        if self.call is not None:
            self.call(*seen)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Hook, ()


def _repeated() -> bool:
    """Say whether a backward pass makes a forward pass again that was seen already, as gradient checkpointing does."""
    node = torch._C._current_autograd_node()
    # the reentrant kind ran without gradients, and so unseen, the first time
    return node is not None and node.name() != "CheckpointFunctionBackward"


def mean_abs_input(layer: Layer, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    """Return the sum over samples of `|x|`: `(in,)` for a linear layer, `(in, *map)` for a convolution."""
    values = x.abs().reshape(-1, x.shape[-1]) if layer.kind == "linear" else x.abs()
    # a sum in half precision overflows, and one in float32 depends on how samples were cut into batches
    return values.sum(0, dtype=torch.float64)
