"""A PyTorch model whose sparse layers run on the engine's kernels; all else stays torch's."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synaptree.runtime.engine import Engine
from synaptree.runtime.ir import EngineError, Net, Node

__all__ = ["SparseLayer", "sparsify"]

SPARSE = 0.5  # density below which a layer is handed over


class SparseLayer(nn.Module):
    """A linear layer or convolution of fixed weights, computed by the engine.

    Args:
        layer: `nn.Linear` or `nn.Conv2d` on the processor, in float32; zeros of its weight are no connections.
        threads: that share the work.

    Raises:
        EngineError: of another kind of layer, of numbers, or of padding.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> layer.weight.data[:, 1:] = 0.0
        >>> x = torch.ones(3, 4)
        >>> bool(torch.allclose(SparseLayer(layer)(x), layer(x).detach()))
        True
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, threads: int = 1) -> None:
        super().__init__()
        if layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu":
            raise EngineError(f"weights of {layer.weight.dtype} on {layer.weight.device}: wanted float32 on the cpu")
        self.kept = layer.extra_repr()
        self.threads = threads
        self.weight = layer.weight.detach().numpy().copy()
        self.bias = None if layer.bias is None else layer.bias.detach().numpy().copy()
        self.options: dict[str, Any] = {}
        if isinstance(layer, nn.Conv2d):
            if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                raise EngineError(f"padding {layer.padding!r} of {layer.padding_mode}: wanted numbers, of zeros")
            names = ("stride", "padding", "dilation", "groups")
            self.options = {name: getattr(layer, name) for name in names}
        self._engines: dict[tuple[int, ...], Engine] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., inputs)`, or `(samples, channels, height, width)`, to the layer's outputs.

        Raises:
            EngineError: gradients are asked for, of which it knows none.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise EngineError("a sparsified layer knows no gradients; run it under torch.no_grad()")
        given = x if self.options else x.reshape(-1, x.shape[-1])
        numbers = np.ascontiguousarray(given.detach().numpy())
        out = torch.from_numpy(self._engine(numbers.shape)(numbers))
        return out if self.options else out.reshape(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Return the layer's own description and its density."""
        return f"{self.kept}, density={np.count_nonzero(self.weight) / self.weight.size:.3g}"

    def _engine(self, shape: tuple[int, ...]) -> Engine:
        """Return the engine for a shape of samples; the first call plans it."""
        if shape[1:] not in self._engines:
            net = self._net(shape[1:])
            self._engines[shape[1:]] = Engine(net, threads=self.threads, batch=max(1, shape[0]))
        return self._engines[shape[1:]]

    def _net(self, shape: tuple[int, ...]) -> Net:
        out = self.weight.shape[:1]
        if self.options:
            own = (self.options[name] for name in ("stride", "padding", "dilation"))
            sizes = (
                (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
                for size, kernel, stride, padding, dilation in zip(shape[1:], self.weight.shape[2:], *own, strict=True)
            )
            out = (*out, *sizes)
        op = "conv" if self.options else "linear"
        return Net(shape, (Node(op, op, (0,), out, self.weight, self.bias, self.options),), 1)


def sparsify(model: nn.Module, threads: int = 1, density: float = SPARSE) -> nn.Module:
    """Return a copy of a model whose sparse linear layers and convolutions run on the engine's kernels.

    For inference on a processor, and for models the engine cannot run as a whole: each such layer carries its samples
    in and out by itself, which a whole network in an `Engine` does once.

    Args:
        model: stays as it is.
        threads: that share the work of a layer.
        density: of non-zero weights, below which a layer is handed over.

    Raises:
        EngineError: no layer is that sparse.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
        >>> model[0].weight.data[:, 8:] = 0.0
        >>> type(sparsify(model)[0]).__name__, type(sparsify(model)[2]).__name__
        ('SparseLayer', 'Linear')
    """
    found = copy.deepcopy(model).eval()
    handed = 0
    for name, layer in list(found.named_modules()):
        if not _fits(layer, density):
            continue
        handed += 1
        if not name:
            return SparseLayer(layer, threads)
        parent, _, own = name.rpartition(".")
        setattr(found.get_submodule(parent), own, SparseLayer(layer, threads))
    if not handed:
        raise EngineError(f"no linear layer or 2-d convolution in float32 on the cpu has a density below {density}")
    return found


def _fits(layer: nn.Module, density: float) -> bool:
    if type(layer) not in (nn.Linear, nn.Conv2d) or not isinstance(layer.weight, Tensor):
        return False
    if layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu" or not layer.weight.numel():
        return False
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return False
    return int(layer.weight.count_nonzero()) < density * layer.weight.numel()
