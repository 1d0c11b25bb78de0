"""A PyTorch model whose sparse layers run on the engine's kernels; all else stays torch's."""

import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from synaptree.runtime.engine import Engine
from synaptree.runtime.errors import EngineError
from synaptree.runtime.ir import Net, Node

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
        # tensors for whoever looks at them, and no parameters: the engine would not see them change
        self.weight = layer.weight.detach().clone(memory_format=torch.contiguous_format)
        self.bias = None if layer.bias is None else layer.bias.detach().clone()
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
            EngineError: gradients are asked for, of which it knows none; or x is of another shape or kind.
        """
        self._require(x)
        axes = 3 if self.options else 1
        before, sample = x.shape[:-axes], x.shape[-axes:]
        numbers = x.detach().reshape(-1, *sample).contiguous().numpy()
        out = torch.from_numpy(self._engine(numbers.shape)(numbers))
        return out.reshape(*before, *out.shape[1:])

    def extra_repr(self) -> str:
        """Return the layer's own description and its density."""
        return f"{self.kept}, density={int(self.weight.count_nonzero()) / self.weight.numel():.3g}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engines": {}}  # of this process; a copy plans its own

    def _require(self, x: Tensor) -> None:
        if torch.is_grad_enabled() and x.requires_grad:
            raise EngineError("a sparse layer knows no gradients; run it under torch.no_grad()")
        inputs = self.weight.shape[1] * self.options.get("groups", 1)
        fits = x.shape[-3:-2] == (inputs,) and x.dim() in (3, 4) if self.options else x.shape[-1:] == (inputs,)
        if not fits or x.dtype != torch.float32 or x.device.type != "cpu":
            wanted = f"(samples, {inputs}, height, width)" if self.options else f"(..., {inputs})"
            raise EngineError(
                f"x of {x.dtype} and shape {tuple(x.shape)} on {x.device}: wanted float32 of shape {wanted} on the cpu"
            )

    def _engine(self, shape: tuple[int, ...]) -> Engine:
        """Return the engine for a shape of samples; the first call plans it."""
        if shape[1:] not in self._engines:
            net = self._net(shape[1:])
            self._engines[shape[1:]] = Engine(net, threads=self.threads, batch=max(1, shape[0]))
        return self._engines[shape[1:]]

    def _net(self, shape: tuple[int, ...]) -> Net:
        op = "conv" if self.options else "linear"
        out = (self.weight.shape[0], *self._image(shape)) if self.options else (self.weight.shape[0],)
        bias = None if self.bias is None else self.bias.numpy()
        return Net(shape, (Node(op, op, (0,), out, self.weight.numpy(), bias, self.options),), 1)

    def _image(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return height and width of what a convolution gives."""
        options = (self.options[name] for name in ("stride", "padding", "dilation"))
        found = tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(shape[1:], self.weight.shape[2:], *options, strict=True)
        )
        if min(found) < 1:
            raise EngineError(f"a kernel of {tuple(self.weight.shape[2:])} finds no place in an image of {shape[1:]}")
        return found


def sparsify(model: nn.Module, threads: int = 1, density: float = SPARSE) -> nn.Module:
    """Return a copy of a model whose sparse linear layers and convolutions run on the engine's kernels.

    For inference on a processor, and for models the engine cannot run as a whole: each such layer carries its samples
    in and out by itself, which a whole network in an `Engine` does once.

    Args:
        model: stays as it is.
        threads: that share the work of a layer.
        density: of non-zero weights, below which a layer is handed over.

    Raises:
        EngineError: no layer is that sparse, or has hooks, which are left where they are.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
        >>> model[0].weight.data[:, 8:] = 0.0
        >>> type(sparsify(model)[0]).__name__, type(sparsify(model)[2]).__name__
        ('SparseLayer', 'Linear')
    """
    found = copy.deepcopy(model).eval()
    handed = {layer: SparseLayer(layer, threads).eval() for layer in found.modules() if _fits(layer, density)}
    if not handed:
        raise EngineError(
            f"no linear layer or 2-d convolution in float32 on the cpu, without hooks, has a density below {density}"
        )
    if found in handed:
        return handed[found]
    for parent in list(found.modules()):
        for name, layer in parent._modules.items():
            if layer in handed:
                setattr(parent, name, handed[layer])
        # else torch's fused encoder takes the weights, and passes by the layers
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False
    return found


def _fits(layer: nn.Module, density: float) -> TypeGuard[nn.Linear | nn.Conv2d]:
    if type(layer) not in (nn.Linear, nn.Conv2d) or not isinstance(layer.weight, Tensor):
        return False
    if layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu" or not layer.weight.numel():
        return False
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return False
    if layer._forward_hooks or layer._forward_pre_hooks:  # which would go with it
        return False
    return int(layer.weight.count_nonzero()) < density * layer.weight.numel()
