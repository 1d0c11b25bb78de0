"""A 2-d convolution whose kernels are a learnt strength times a direction."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from synaptree.core.errors import NumericError

__all__ = ["KernelStrengthConv2d"]

_SMALLEST = 1e-12
"""Kernels of a smaller norm count as 0; keeps the direction's norm away from 0."""


class KernelStrengthConv2d(nn.Module):
    """Convolve with kernels `k[i, j] = mask[i, j] strength[i, j] direction[i, j] / ||direction[i, j]||_F`.

    `k[i, j]` is the kernel from input map `j` to output map `i`. With `G = dL/dk` and `u = direction /
    ||direction||` the gradients are `dL/dstrength = <G, u>` and `dL/ddirection = (strength /
    ||direction||) (G - <G, u> u)`: a direction turns the more slowly the weaker its kernel, and never
    grows by its gradient. The length of a direction means nothing; it sets how fast it turns.

    A kernel of size 1x1 is its strength: there is no direction then.

    Attributes:
        strength: parameter `(out, in / groups)`; its sign may change, its size is what counts.
        direction: parameter `(out, in / groups, kh, kw)`, or None for 1x1.
        bias: parameter `(out,)`, or None.
        mask: buffer, bool `(out, in / groups)`, True where the kernel exists.
        norms: name of a batch norm in the model -> `(in,)` int64: its channel that input channel `j`
            comes from, or -1; set by `convert`.
        norm_modules: these batch norms, by name.

    Example:
        >>> conv = nn.Conv2d(1, 1, (1, 2), bias=False)
        >>> _ = conv.weight.data.copy_(torch.tensor([[[[3.0, 4.0]]]]))
        >>> KernelStrengthConv2d.from_conv(conv).strength.item()
        5.0

    Paper: Lin, Zhong, Wu and Yan 2018 (1811.02454): each kernel reparameterised by itself. The form, and
    directions that begin un-normalised, are our reading.
    """

    direction: nn.Parameter | None
    bias: nn.Parameter | None
    mask: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.dilation, self.padding_mode = conv.dilation, conv.padding_mode
        self._edges = tuple(conv._reversed_padding_repeated_twice)
        self.norms: dict[str, Tensor] = {}
        self.norm_modules: dict[str, nn.Module] = {}  # in a dict, so that they stay modules of the model alone
        weight, trained = conv.weight.detach().clone(), conv.weight.requires_grad
        if not weight.isfinite().all():
            raise NumericError(f"a kernel of {conv} is not finite; convert a network without NaN or infinity")
        if self.kernel_size == (1, 1):
            self.register_parameter("direction", None)
            strength = weight.flatten(1)
        else:
            weight.masked_fill_((_norm(weight) < _SMALLEST)[:, :, None, None], 0.0)
            zero = (weight == 0).flatten(2).all(2)
            weight.masked_fill_(zero[:, :, None, None], 1.0)
            self.direction = nn.Parameter(weight, trained)
            strength = _norm(weight).masked_fill(zero, 0.0).to(weight.dtype)
        self.strength = nn.Parameter(strength, trained)
        bias = conv.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.register_buffer("mask", torch.ones_like(strength, dtype=torch.bool))
        self.train(conv.training)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "KernelStrengthConv2d":
        """Return the layer whose kernels are those of `conv`, in float32 and float64 bit for bit.

        `conv` is left as it is, and nothing is shared with it. Kernels with a norm below 1e-12 are taken
        as 0, with a direction of ones.

        Raises:
            NumericError: a weight is not finite.
        """
        return cls(conv)

    def weight(self) -> Tensor:
        """Return the kernels the forward pass uses, `(out, in / groups, kh, kw)`."""
        strength = self.strength * self.mask
        if self.direction is None:
            return strength[:, :, None, None]
        ratio = strength / _norm(self.direction).clamp_min(_SMALLEST)
        return (ratio[:, :, None, None] * self.direction).to(self.direction.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in, height, width)` to `(batch, out, ...)`, as `nn.Conv2d` does."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._edges, mode=self.padding_mode), (0, 0)
        return F.conv2d(x, self.weight(), self.bias, self.stride, padding, self.dilation, self.groups)

    def to_conv(self) -> nn.Conv2d:
        """Return a new plain convolution whose weights are, bit for bit, what the forward pass uses."""
        conv = skip_init(
            nn.Conv2d, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding,
            self.dilation, self.groups, self.bias is not None, self.padding_mode,
            device=self.strength.device, dtype=self.strength.dtype,
        )  # fmt: skip
        conv.weight = nn.Parameter(self.weight().detach(), self.strength.requires_grad)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return cast(nn.Conv2d, conv.train(self.training))

    def extra_repr(self) -> str:
        """Return sizes, stride and groups."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}"
        )


def _norm(direction: Tensor) -> Tensor:
    """Return the Frobenius norm of each kernel, in float32 at least: `(out, in / groups)`."""
    dtype = torch.promote_types(direction.dtype, torch.float32)
    return cast(Tensor, torch.linalg.vector_norm(direction, dim=(2, 3), dtype=dtype))
