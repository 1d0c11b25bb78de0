"""Probes: running means of what flows into a layer, collected by hooks that keep no activations."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synaptree.core.errors import DataError, NumericError
from synaptree.core.layer import Layer

__all__ = ["Probe", "Reduction", "mean_abs_input"]

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
        self._sums: dict[str, dict[str, Tensor]] = {layer.name: {} for layer in layers}
        self._samples: dict[str, int] = dict.fromkeys(self._sums, 0)
        self._dtypes = {layer.name: torch.promote_types(layer.module.weight.dtype, torch.float32) for layer in layers}
        self._hooks: list[Any] = []

    def __enter__(self) -> "Probe":
        for layer in self.layers:
            self._hooks.append(layer.module.register_forward_hook(_Look(self, layer), with_kwargs=True))
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
        means = {stat: (total / self._samples[name]).to(self._dtypes[name]) for stat, total in self._sums[name].items()}
        for stat, mean in means.items():
            if not mean.isfinite().all():
                raise NumericError(
                    f"layer {name}: {stat} of its input is not finite over {self._samples[name]} samples; "
                    "look for NaN or infinity in the data or in the weights before it"
                )
        return means

    def take(self) -> dict[str, dict[str, Tensor]]:
        """Return the sums of each layer, with their number of "samples", and begin anew."""
        taken = {
            name: {**sums, "samples": torch.tensor(self._samples[name], dtype=torch.float64)} if sums else {}
            for name, sums in self._sums.items()
        }
        for name in self._sums:
            self._sums[name], self._samples[name] = {}, 0
        return taken

    @torch.no_grad()
    def look(self, layer: Layer, x: Tensor, y: Tensor) -> None:
        """Add what the input and output of one call show."""
        sums = self._sums[layer.name]
        rows = x.numel() // max(1, x.shape[-1]) if layer.kind == "linear" else x.shape[0]
        self._samples[layer.name] += rows
        for stat, reduce in self.reductions.items():
            # float64, so that the mean does not depend on how samples were cut into batches
            part = reduce(layer, x.detach(), y.detach()).double()
            if part.shape != sums.get(stat, part).shape:
                raise DataError(
                    f"layer {layer.name}: {tuple(x.shape)} came after inputs of other sizes; give batches of one"
                )
            sums[stat] = sums[stat] + part if stat in sums else part


class _Look:
    """The hook of a probe on one layer; its copies and pickles see nothing."""

    def __init__(self, probe: Probe | None = None, layer: Layer | None = None) -> None:
        self.probe, self.layer = probe, layer

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        watched = self.probe is not None and (not self.probe.training or (module.training and torch.is_grad_enabled()))
        if watched and self.probe and self.layer:
            self.probe.look(self.layer, next(iter((*inputs, *named.values()))), output)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Look, ()


def mean_abs_input(layer: Layer, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    """Return the sum over samples of `|x|`: `(in,)` for a linear layer, `(in, *map)` for a convolution."""
    values = x.abs().reshape(-1, x.shape[-1]) if layer.kind == "linear" else x.abs()
    # a sum in half precision overflows, and one in float32 depends on how samples were cut into batches
    return values.sum(0, dtype=torch.float64)
