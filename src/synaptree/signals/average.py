"""Signals averaged over updates."""

import torch

from synaptree.core.signal import Signal, State, View

__all__ = ["ema"]


def ema(signal: Signal, decay: float) -> Signal:
    """Return the exponential moving average `m = decay * m + (1 - decay) * signal` over updates, from 0.

    Args:
        signal: a signal without memory.
        decay: in [0, 1).
    """

    def init(view: View) -> State:
        return {"mean": view.weight.new_zeros(view.mask.shape)}

    def update(state: State, view: View) -> State:
        return {"mean": torch.lerp(signal.read({}, view), state["mean"], decay)}

    return Signal(lambda state, view: state["mean"], init, update, signal.needs, signal.watch)  # noqa: ARG005
