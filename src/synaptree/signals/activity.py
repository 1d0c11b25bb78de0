"""Activity: what each connection carries over a window of training, and how long it has been weak.

A window is a number of optimizer updates. Over it running sums of what flows through a layer are kept, one
number per input; at its end they say what each connection carried, `S[j, i]`, and the life left to it is
told from that:

- `consecutive`: windows in a row in which it was weak, counted down from a patience;
- `survival`: a score that falls with each weak window and rises with each strong one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from synaptree.core.errors import OptionError, unknown
from synaptree.core.layer import Layer
from synaptree.core.probe import Reduction
from synaptree.core.signal import Signal, State, View

__all__ = ["Criterion", "Flow", "Scope", "Weak", "Windows", "consecutive", "survival"]

Criterion = Literal["contrib", "pre", "mag", "pre_post", "trend", "gradient"]
Scope = Literal["layer", "post", "percentile", "absolute"]

_LONGEST = 254  # windows; the counter is one byte per connection
_FADE = 0.999  # of a survival score from one window to the next


@dataclass(frozen=True)
class Windows:
    """Windows of `every` optimizer updates, one after the other, after update `first` and up to `last`.

    Args:
        every: updates in a window, at least 1.
        first: updates before the first window.
        last: update after which no window ends; None means there is none.

    Raises:
        OptionError: no window fits between `first` and `last`.

    Example:
        >>> [step for step in range(12) if Windows(every=3, first=2, last=9)(step)]
        [5, 8]
    """

    every: int
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.first < 0:
            raise OptionError(f"wanted every >= 1 and first >= 0, got every = {self.every} and first = {self.first}")
        if self.last is not None and self.last < self.first + self.every:
            raise OptionError(
                f"no window of every = {self.every} updates ends between first = {self.first} and last = {self.last}: "
                f"wanted last >= {self.first + self.every}, or shorter windows"
            )

    def __call__(self, step: int) -> bool:
        """Return whether a window ends with the update `step`."""
        return self.place(step) == self.every

    def place(self, step: int) -> int:
        """Return which update of its window `step` is, from 1 to `every`; 0 where it is in none."""
        if step <= self.first or (self.last is not None and step > self.last):
            return 0
        return (step - self.first - 1) % self.every + 1

    def number(self, step: int) -> int:
        """Return how many windows have ended up to the update `step`."""
        return max(0, step - self.first) // self.every


@dataclass(frozen=True)
class Flow:
    """What a connection carries over a window, `S[j, i] >= 0` from input `i` to unit `j`.

    With `a[i]` the mean of `|x[i]|` over the window's inputs, in convolutions over positions too, `p[j]` the
    same of the layer's own output, before any activation function, and `w` the weight at the window's end:

    - "contrib": `|w[j, i]| a[i]`; "pre": `a[i]`; "mag": `|w[j, i]|`; "pre_post": `a[i] p[j]`;
    - "trend": by how much `|w[j, i]|` grew over the window, 0 where it fell; the first window counts from
      where the signal began;
    - "gradient": the sum of `|dL/dw[j, i]|` over the window's updates.

    Where one connection stands for several weights, as a kernel does, it is the sum over them. Inputs whose
    sums are not finite, such as those of an update that loss scaling skips, do not count.

    Args:
        criterion: one of those above.
        from_minimum: in layers whose state says so, `a[i]` is the mean of `x[i] - min(x)`, with the smallest
            number of the batch: constant pixels of standardized images then carry nothing.
    """

    criterion: Criterion = "contrib"
    from_minimum: bool = False

    def __post_init__(self) -> None:
        if self.criterion not in _SUMS:
            raise unknown("criterion", self.criterion, _SUMS)

    @property
    def watch(self) -> dict[str, Reduction]:
        """What probes must collect."""
        names = _SUMS[self.criterion] + (("above_minimum",) if self.from_minimum and self.watches else ())
        return {name: _REDUCTIONS[name] for name in names}

    @property
    def watches(self) -> bool:
        """Whether it looks at what flows, and not at weights and gradients alone."""
        return bool(_SUMS[self.criterion])

    def begin(self, state: State, view: View) -> State:
        """Return the part of the state that a new window starts with."""
        if self.criterion == "gradient":
            return {"gradient": view.weight.new_zeros(view.mask.shape, dtype=_precise(view))}
        if self.criterion == "trend":
            now = _gathered(view.weight.abs(), view)
            return {"before": state.get("now", now), "now": now}
        new = partial(view.weight.new_zeros, dtype=torch.float64)
        sizes = {"input": view.weight.shape[1] * _groups(view.layer), "output": view.weight.shape[0]}
        if view.layer.kind == "linear":
            return {name: new(sizes[name]) for name in _SUMS[self.criterion]} | {"samples": new(())}
        return {name: new(sizes[name] + 1) for name in _SUMS[self.criterion]}

    def add(self, state: State, view: View) -> State:
        """Return the part of the state that one update changes."""
        if self.criterion == "gradient":
            return {} if view.grad is None else {"gradient": state["gradient"] + _gathered(view.grad.abs(), view)}
        if self.criterion == "trend":
            return {"now": _gathered(view.weight.abs(), view)}
        if not view.stats:
            return {}
        parts = {name: view.stats[name] for name in _SUMS[self.criterion]}
        if self.from_minimum and "input" in parts and bool(state.get("from_minimum", False)):
            parts["input"] = view.stats["above_minimum"]
        # none is below 0, and NaN is not below infinity
        if not all(float(part.sum()) < math.inf for part in parts.values()):
            return {}
        if "samples" in state:
            parts["samples"] = view.stats["samples"]
        return {name: state[name] + part for name, part in parts.items()}

    def saw(self, state: State) -> bool:
        """Return whether anything flowed in this window."""
        return all(float(_count(state, name)) > 0 for name in _SUMS[self.criterion])

    def read(self, state: State, view: View) -> Tensor:
        """Return `S` of the mask's shape."""
        if self.criterion == "gradient":
            return state["gradient"]
        if self.criterion == "trend":
            return (state["now"] - state["before"]).clamp_min(0.0)
        flow = view.weight.abs().to(_precise(view)) if self.criterion in ("contrib", "mag") else None
        for factor in (self.inputs(state, view), self._outputs(state, view)):
            if factor is not None:
                flow = factor if flow is None else flow * factor
        assert flow is not None  # every criterion has a factor
        return _gathered(flow.expand(view.weight.shape), view)

    def inputs(self, state: State, view: View) -> Tensor | None:
        """Return `a`, to be multiplied with the weight, or None."""
        if "input" not in _SUMS[self.criterion]:
            return None
        mean, (units, inputs, *kernel), groups = _mean(state, "input", view), view.weight.shape, _groups(view.layer)
        rows = mean.view(groups, 1, inputs).expand(groups, units // groups, inputs)
        return rows.reshape(units, inputs, *(1 for _ in kernel))

    def _outputs(self, state: State, view: View) -> Tensor | None:
        if "output" not in _SUMS[self.criterion]:
            return None
        return _mean(state, "output", view).view(-1, *(1 for _ in view.weight.shape[1:]))


@dataclass(frozen=True)
class Weak:
    """Which existing connections are weak: `S[j, i] <= threshold`, with `mu` a mean over those that exist.

    Args:
        alpha: at least 0; 0 leaves the exact zeros.
        scope: "layer": the threshold is `alpha mu` with the layer's mean; "post": with the mean of each
            receiving unit; "percentile": the share `alpha` with the smallest `S`, and their equals, is weak;
            "absolute": it is `alpha` itself.

    Raises:
        OptionError: alpha is out of range.

    Example:
        >>> Weak(alpha=0.5)(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[False, False, False]])
        >>> Weak(alpha=0.5)(torch.tensor([[0.5, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[ True, False, False]])
    """

    alpha: float = 0.5
    scope: Scope = "layer"

    def __post_init__(self) -> None:
        if self.scope not in _THRESHOLDS:
            raise unknown("threshold_scope", self.scope, _THRESHOLDS)
        highest = 1.0 if self.scope == "percentile" else math.inf
        if not 0.0 <= self.alpha <= highest or math.isinf(self.alpha):
            limit = "from 0 to 1" if self.scope == "percentile" else "of at least 0"
            raise OptionError(f"alpha = {self.alpha!r}: wanted a number {limit} with threshold_scope {self.scope!r}")

    def __call__(self, flow: Tensor, mask: Tensor) -> Tensor:
        """Return which connections are weak by what they carry, bool; both of the mask's shape."""
        return mask & (flow <= _THRESHOLDS[self.scope](self.alpha, flow, mask))


def consecutive(
    flow: Flow, windows: Windows, weak: Weak, patience: int, *, inactive_eps: float = 0.0, count_from: str = "first"
) -> Signal:
    """Return the life left to each connection: `patience` less the windows in a row in which it was weak.

    One window in which it was not weak gives back all of it. What has none left has the value `-1 / S`, so
    that what carries more has more.

    Args:
        flow: what a connection carries, `S`.
        windows: when that is looked at.
        weak: what is weak.
        patience: windows in a row, from 1 to 254.
        inactive_eps: at least 0; a connection is weak too where its input's mean activity is at most this.
        count_from: "first": the first weak window counts; "second": only those after it.

    Raises:
        OptionError: an option is out of range, or no cut can ever fall before the last window.
    """
    if count_from not in ("first", "second"):
        raise unknown("count_from", count_from, ("first", "second"))
    if not 1 <= patience <= _LONGEST:
        raise OptionError(f"patience = {patience}: wanted 1 to {_LONGEST} windows in a row; make windows longer")
    if not 0.0 <= inactive_eps < math.inf or (inactive_eps > 0 and not flow.watches):
        wanted = "a mean activity of at least 0" if flow.watches else f"0 with criterion {flow.criterion!r}"
        raise OptionError(f"inactive_eps = {inactive_eps!r}: wanted {wanted}")
    rounds = patience + (count_from == "second")
    if windows.last is not None and windows.number(windows.last) < rounds:
        raise OptionError(
            f"{windows.number(windows.last)} windows of every = {windows.every} updates end up to last = "
            f"{windows.last}, and the first cut comes after {rounds}: lower patience or every, or raise last"
        )

    def age(count: Tensor, state: State, view: View) -> Tensor:
        tired = weak(flow.read(state, view), view.mask)
        activity = flow.inputs(state, view) if inactive_eps > 0 else None
        if activity is not None:
            tired |= view.mask & (_gathered((activity > inactive_eps).expand(view.weight.shape), view) == 0)
        return (count.clamp(max=_LONGEST) + 1) * tired

    def left(count: Tensor) -> Tensor:
        return rounds - count.float()

    return _life(flow, windows, torch.uint8, 0, age, left)


def survival(
    flow: Flow, windows: Windows, *, penalty: float = 1.5, bonus: float = 2.0, start: float = 10.0, tau: int = 13
) -> Signal:
    """Return a survival score `R` for each connection, which falls while it is weak and rises while it is strong.

    At the end of window `e = 0, 1, ...`, with minimum and third quartile over the layer's existing connections:

        u = clip((S - min S) / (quartile S - min S), 0, 1);  delta = 2 u - penalty;  delta += bonus if delta > 0
        R = 0.999 R + delta exp(-floor(e / tau))

    What has none left has the value `-1 / S`, so that what carries more has more.

    Args:
        flow: what a connection carries, `S`.
        windows: when that is looked at.
        penalty: above 0; what a window costs.
        bonus: at least 0; what a strong window gives in addition.
        start: above 0; R before the first window.
        tau: windows after which changes are an e-th of what they were, at least 1.

    Raises:
        OptionError: an option is out of range.

    Paper: DPAP, Han, Zhao, Zeng and Shen 2024 (2211.12714), with `S` in place of its plasticity signal.
    """
    if not (penalty > 0 and bonus >= 0 and start > 0 and tau >= 1):
        raise OptionError(
            f"wanted penalty > 0, bonus >= 0, a survival score above 0 at the start and tau >= 1, "
            f"got {penalty!r}, {bonus!r}, {start!r}, {tau!r}"
        )

    def age(score: Tensor, state: State, view: View) -> Tensor:
        carried = flow.read(state, view)
        alive = carried[view.mask]
        if not len(alive):
            return score
        low = alive.min()
        # a quartile that equals the minimum: what lies above both is strong
        width = (_smallest(alive, math.ceil(0.75 * len(alive))) - low).clamp_min(torch.finfo(carried.dtype).tiny)
        delta = 2 * ((carried - low) / width).clamp(0.0, 1.0) - penalty
        delta = torch.where(delta > 0, delta + bonus, delta)
        fading = math.exp(-((windows.number(view.step) - 1) // tau))
        return torch.where(view.mask, _FADE * score + delta * fading, start)

    return _life(flow, windows, torch.float32, start, age, lambda score: score)


def _life(
    flow: Flow, windows: Windows, dtype: torch.dtype, start: float,
    age: Callable[[Tensor, State, View], Tensor], left: Callable[[Tensor], Tensor],
) -> Signal:  # fmt: skip
    """Return the signal whose memory `age` changes at the end of each window, and of which `left` tells the life."""

    def init(view: View) -> State:
        memory = torch.full(view.mask.shape, start, dtype=dtype, device=view.weight.device)
        return {"memory": memory} | (flow.begin({}, view) if view.role == "weight" else {})

    def update(state: State, view: View) -> State:
        place = windows.place(view.step)
        if place == 0 or view.role == "bias":
            return state
        if place == 1:  # until here sums of the past window are kept: an edit at its end reads them
            state = {**state, **flow.begin(state, view)}
        state = {**state, **flow.add(state, view)}
        if place == windows.every and flow.saw(state):
            state["memory"] = age(state["memory"], state, view)
        return state

    def read(state: State, view: View) -> Tensor:
        if view.role == "bias":
            return torch.full_like(view.mask, math.inf, dtype=torch.float32)
        life = left(state["memory"])
        return torch.where(life > 0, life, -1 / flow.read(state, view).to(life.dtype))

    needs = frozenset({"gradient"}) if flow.criterion == "gradient" else frozenset()
    return Signal(read, init, update, needs, flow.watch)


def _sum_abs(layer: Layer, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    return _summed(layer, x.abs())


def _sum_abs_output(layer: Layer, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    return _summed(layer, y.abs())


def _sum_above_minimum(layer: Layer, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    return _summed(layer, x - x.min())


def _summed(layer: Layer, values: Tensor) -> Tensor:
    """Return the sums over all axes but that of channels; of a convolution, last, over how many positions they go."""
    # a batch is short: its sum is precise in float32, and takes a third of the time of one in float64
    dtype = torch.promote_types(values.dtype, torch.float32)
    if layer.kind == "linear":
        return (values if values.dim() == 2 else values.reshape(-1, values.shape[-1])).sum(0, dtype=dtype)
    channels = values.dim() - layer.module.weight.dim() + 1
    total = values.sum([axis for axis in range(values.dim()) if axis != channels], dtype=dtype)
    return torch.constant_pad_nd(total, (0, 1), values.numel() // max(1, len(total)))


_REDUCTIONS: dict[str, Reduction] = {
    "input": _sum_abs, "output": _sum_abs_output, "above_minimum": _sum_above_minimum,
}  # fmt: skip
_SUMS: dict[str, tuple[str, ...]] = {
    "contrib": ("input",), "pre": ("input",), "mag": (), "pre_post": ("input", "output"), "trend": (), "gradient": (),
}  # fmt: skip
"""Criterion -> the running sums it is told from."""


def _count(state: State, name: str) -> Tensor:
    """Return over how many vectors the sums go; the probe counts them in a linear layer."""
    return state["samples"] if "samples" in state else state[name][-1]


def _mean(state: State, name: str, view: View) -> Tensor:
    sums = state[name] if "samples" in state else state[name][:-1]
    return (sums / _count(state, name).clamp_min(1.0)).to(_precise(view))


def _precise(view: View) -> torch.dtype:
    return torch.promote_types(view.weight.dtype, torch.float32)


def _groups(layer: Layer) -> int:
    return int(getattr(layer.module, "groups", 1))


def _gathered(values: Tensor, view: View) -> Tensor:
    """Return the sums of `values` over the weights that one entry of the mask stands for."""
    axes = [axis for axis, size in enumerate(view.mask.shape) if size != values.shape[axis]]
    dtype = _precise(view)
    return values.sum(axes, keepdim=True, dtype=dtype) if axes else values.to(dtype)


def _mean_of_layer(alpha: float, flow: Tensor, mask: Tensor) -> Tensor:
    return (alpha * (flow * mask).sum(dtype=torch.float64) / mask.sum().clamp_min(1)).to(flow.dtype)


def _mean_of_unit(alpha: float, flow: Tensor, mask: Tensor) -> Tensor:
    axes = list(range(1, mask.dim()))
    means = (flow * mask).sum(axes, keepdim=True, dtype=torch.float64) / mask.sum(axes, keepdim=True).clamp_min(1)
    return (alpha * means).to(flow.dtype)


def _percentile(alpha: float, flow: Tensor, mask: Tensor) -> Tensor | float:
    alive = flow[mask]
    # 1e-9: a share such as 0.3 is a little above or below its decimal value
    few = int(alpha * len(alive) + 1e-9)
    return _smallest(alive, few) if few else -math.inf


def _smallest(values: Tensor, k: int) -> Tensor:
    # unlike torch.quantile it takes any number of values
    return values.kthvalue(k).values


_THRESHOLDS: dict[str, Callable[[float, Tensor, Tensor], Tensor | float]] = {
    "layer": _mean_of_layer, "post": _mean_of_unit, "percentile": _percentile,
    "absolute": lambda alpha, flow, mask: alpha,  # noqa: ARG005
}  # fmt: skip
