"""The shortcut of a residual sum as a module, so that single channels of it can be cut."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Shortcut", "whole_shortcuts"]


class Shortcut(nn.Module):
    """Carry `x` past a block: `scale * pad(x[:, :, ::stride, ::stride])`.

    Channels are matched without weights, as in ResNet's option A: when `out_channels` exceeds
    `in_channels`, zeros are padded in equal parts before and after, so that output channel `k` is
    input channel `k - offset` (`offset = (out_channels - in_channels) // 2`), or zero.
    `scale` is fixed to ones and takes no gradient; a mask on it cuts single channels of the
    shortcut, which no weight of the network could express.

    Args:
        in_channels: channels of `x`, of shape `(batch, in_channels, ...)`.
        out_channels: channels of the sum it goes into; `in_channels` by default.
        stride: of the two spatial axes; 1 keeps them, and then `x` may have any number of axes.

    Example:
        >>> Shortcut(1, 3, stride=2)(torch.ones(1, 1, 4, 4)).sum((0, 2, 3))
        tensor([0., 4., 0.])

    Paper: He et al. 2015 (1512.03385), section 4.2, option A. The scale is ours.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None, stride: int = 1) -> None:
        super().__init__()
        self.in_channels, self.stride = in_channels, stride
        self.out_channels = in_channels if out_channels is None else out_channels
        self.offset = (self.out_channels - in_channels) // 2
        self.scale = nn.Parameter(torch.ones(self.out_channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, ...)` to `(batch, out_channels, ...)`."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.out_channels > self.in_channels:
            after = self.out_channels - self.in_channels - self.offset
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (self.offset, after))
        return x * self.scale.view(-1, *(1,) * (x.dim() - 2))

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


@contextmanager
def whole_shortcuts(model: nn.Module) -> Iterator[None]:
    """Let every channel of the model's `Shortcut` modules pass for the moment, also those that are cut."""
    scales = [module.scale for module in model.modules() if isinstance(module, Shortcut)]
    kept = [scale.detach().clone() for scale in scales]
    with torch.no_grad():
        try:
            for scale in scales:
                scale.fill_(1.0)
            yield
        finally:
            for scale, values in zip(scales, kept, strict=True):
                scale.copy_(values)
