"""What a kernel carries: its norm times the scale of the map it reads."""

from torch import Tensor

from synaptree.core.signal import View, at_granularity, stateless

__all__ = ["scaled_kernel"]


def _read(view: View) -> Tensor:
    scale: Tensor = view.stats["scale"]
    return at_granularity(view.weight, view.mask) * scale


scaled_kernel = stateless(_read, "data")
"""`scale[i, j] ||k[i, j]||_F`; needs the statistic "scale", of the mask's shape."""
