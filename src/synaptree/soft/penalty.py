"""Penalties that make kernels or channels weak while any loop trains: L1 on strengths, group lasso, L1 on scales."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from synaptree.core.attach import inner_optimizer
from synaptree.core.errors import AttachError, OptionError, unknown
from synaptree.core.layer import modules_of
from synaptree.soft.kernel_strength import KernelStrengthConv2d

__all__ = ["Kind", "Penalty", "parameter_groups", "penalise"]

Kind = Literal["strength", "group_lasso", "gamma"]
Step = Literal["subgradient", "proximal"]

_WHOM: Mapping[str, tuple[type[nn.Module], str]] = {
    "strength": (KernelStrengthConv2d, "strength"),
    "group_lasso": (nn.Conv2d, "weight"),
    "gamma": (nn.BatchNorm2d, "weight"),
}
"""Kind of penalty -> the modules it acts on, and the parameter."""


def penalise(
    model: nn.Module, optimizer: Optimizer, weight: float = 1e-5, step: Step = "subgradient", kind: Kind = "strength",
    *, include: Iterable[str] = ("*",), exclude: Iterable[str] = (),
) -> "Penalty":  # fmt: skip
    """Add `weight * sum_g ||p_g||` to what `optimizer` minimises, in its own step hooks.

    Any loop that calls `optimizer.step()` works, with gradient accumulation, closures, `GradScaler` and
    fused optimizers too. The loss that the loop computes does not hold the penalty: `Penalty.value()` does.

    - "strength": `g` is one strength of a `KernelStrengthConv2d` that exists, `|s|`;
    - "group_lasso": one kernel of an `nn.Conv2d`, `||k[i, j]||_F`; equal in value to "strength" for the
      same kernels;
    - "gamma": one scale of an `nn.BatchNorm2d`, `|gamma|`: the penalty of network slimming.

    With "subgradient" `weight p_g / ||p_g||` (0 at 0) is added to the gradient just before each update.
    With "proximal" the update is that of the loss alone, and then `p_g *= max(0, 1 - lr weight / ||p_g||)`
    with the learning rate of the group: exact zeros. Momentum `m` makes the former act `1 / (1 - m)` times
    as strongly, the latter not. Parameters without gradient are left out of a step.

    Args:
        model: has what is penalised; frozen parameters are left out.
        optimizer: holds it; those it does not hold are another optimizer's.
        weight: lambda, at least 0.
        step: how the penalty enters the update.
        kind: what is penalised.
        include: shell patterns of the module names to act on.
        exclude: likewise; wins over `include`.

    Raises:
        AttachError: there is nothing to penalise, the optimizer holds nothing of it (made before
            `convert`, for instance), or it evaluates the loss many times per step (LBFGS).
        OptionError: `weight` is negative or not finite, or `step` or `kind` is unknown.

    Example:
        >>> conv = nn.Conv2d(1, 1, (1, 2), bias=False)
        >>> _ = conv.weight.data.copy_(torch.tensor([[[[3.0, 4.0]]]]))
        >>> optimizer = torch.optim.SGD(conv.parameters(), lr=1.0)
        >>> penalty = penalise(conv, optimizer, weight=1.0, step="proximal", kind="group_lasso")
        >>> penalty.value().item()
        5.0
        >>> conv.weight.grad = torch.zeros_like(conv.weight)
        >>> optimizer.step()
        >>> round(penalty.value().item(), 4)
        4.0
        >>> penalty.remove()

    Paper: Lin, Zhong, Wu and Yan 2018 (1811.02454), L1 on strengths; Liu et al. 2017 (1708.06519), L1 on
    scales. The paper's `weight` per network is not known to us; 1e-5 is our starting point.
    """
    if step not in ("subgradient", "proximal"):
        raise unknown("step", step, ("subgradient", "proximal"))
    if kind not in _WHOM:
        raise unknown("kind of penalty", kind, _WHOM)
    if not 0 <= weight < float("inf"):
        raise OptionError(f"weight = {weight!r}: wanted a finite number of at least 0")
    inner = inner_optimizer(optimizer)
    if isinstance(inner, torch.optim.LBFGS):
        raise AttachError("LBFGS evaluates the loss many times within one step(); use another optimizer")
    targets = _targets(model, kind, tuple(include), tuple(exclude))
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    if not any(id(parameter) in held for parameter, _ in targets):
        raise AttachError(
            f"the optimizer holds none of the {len(targets)} penalised parameters; make it after convert, from "
            "parameter_groups(model, weight_decay) or model.parameters()"
        )
    return Penalty([(p, mask) for p, mask in targets if id(p) in held], inner, float(weight), step)


class Penalty:
    """A penalty at work in an optimizer's step hooks; made by `penalise`.

    Attributes:
        weight: lambda; may be changed while training goes on.
    """

    def __init__(
        self, targets: list[tuple[nn.Parameter, Tensor | None]], optimizer: Optimizer, weight: float, step: Step
    ) -> None:
        self.weight = weight
        self._targets = {id(parameter): (parameter, mask) for parameter, mask in targets}
        if step == "subgradient":
            self._hook = optimizer.register_step_pre_hook(self._before_step)
        else:
            self._hook = optimizer.register_step_post_hook(self._after_step)

    @torch.no_grad()
    def value(self) -> Tensor:
        """Return `weight * sum_g ||p_g||` of the parameters as they are, a scalar."""
        sums = [_norms(parameter, mask).sum(dtype=torch.float64).cpu() for parameter, mask in self._targets.values()]
        return self.weight * torch.stack(sums).sum()

    def remove(self) -> None:
        """Take the penalty out of the optimizer; weights and gradients stay as they are."""
        self._hook.remove()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._add(optimizer)
            return None

        def penalised() -> Any:
            # the closure clears the gradients first, so what is added must come after it
            loss = cast(Callable[[], Any], closure)()
            self._add(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], penalised, *args[2:]), kwargs
        return args, {**kwargs, "closure": penalised}

    @torch.no_grad()
    def _add(self, optimizer: Optimizer) -> None:
        if self.weight == 0 or _overflowed(optimizer):
            return
        # a fused optimizer divides the gradients by this while it steps
        scale = getattr(optimizer, "grad_scale", None)
        for parameter, mask, _ in self._present(optimizer):
            term = self.weight * _direction(parameter, _norms(parameter, mask))
            if scale is not None:
                term = term * scale.to(term.device)
            cast(Tensor, parameter.grad).add_(term.to(parameter.dtype))

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - torch's hook
        if self.weight == 0 or _overflowed(optimizer):
            return
        for parameter, _, lr in self._present(optimizer):
            norm = _norms(parameter, None)
            parameter.copy_(_direction(parameter, norm) * (norm - lr * self.weight).clamp_min(0.0))

    def _present(self, optimizer: Optimizer) -> list[tuple[nn.Parameter, Tensor | None, float]]:
        """Return the penalised parameters that this step updates, with mask and learning rate."""
        found = [
            (*self._targets[id(p)], float(group["lr"]))
            for group in optimizer.param_groups for p in group["params"] if id(p) in self._targets
        ]
        return [(parameter, mask, lr) for parameter, mask, lr in found if parameter.grad is not None]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, with weight decay where it belongs.

    Directions of kernels and the weights of other layers decay; strengths, biases and batch-norm scales
    and shifts do not. Frozen parameters are left out, and so are empty groups.

    Args:
        model: any module.
        weight_decay: of the weights, at least 0.

    Raises:
        OptionError: `weight_decay` is negative or not finite.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> [(len(group["params"]), group["weight_decay"]) for group in parameter_groups(model, 1e-4)]
        [(1, 0.0001), (3, 0.0)]
    """
    if not 0 <= weight_decay < float("inf"):
        raise OptionError(f"weight_decay = {weight_decay!r}: wanted a finite number of at least 0")
    strengths = {id(m.strength): m.strength for m in model.modules() if isinstance(m, KernelStrengthConv2d)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1 and id(p) not in strengths], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in strengths], "weight_decay": 0.0},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _targets(
    model: nn.Module, kind: str, include: tuple[str, ...], exclude: tuple[str, ...]
) -> list[tuple[nn.Parameter, Tensor | None]]:
    """Return the parameters a kind of penalty acts on, each once, and their masks."""
    cls, role = _WHOM[kind]
    modules = {name: module for name, module in modules_of(model) if isinstance(module, cls)}
    if not modules:
        raise AttachError(f"nothing to penalise: {type(model).__name__} has no {cls.__name__} for kind {kind!r}")
    for pattern in (*(p for p in include if p != "*"), *exclude):
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise unknown("layer", pattern, modules)
    found: dict[int, tuple[nn.Parameter, Tensor | None]] = {}
    for name, module in modules.items():
        parameter = getattr(module, role)
        wanted = any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)
        if wanted and parameter is not None and parameter.requires_grad:
            found[id(parameter)] = (parameter, getattr(module, "mask", None))
    if not found:
        raise AttachError(f"nothing to penalise: every {cls.__name__}.{role} is excluded or frozen")
    return list(found.values())


def _norms(parameter: Tensor, mask: Tensor | None) -> Tensor:
    """Return the norm of each group of a parameter, in float32 at least; broadcasts over it."""
    values = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
    if values.dim() == 4:
        return cast(Tensor, torch.linalg.vector_norm(values, dim=(2, 3), keepdim=True))
    return values.abs() if mask is None else values.abs() * mask


def _direction(parameter: Tensor, norm: Tensor) -> Tensor:
    """Return `p / ||p||` of each group, 0 where the norm is."""
    return torch.where(norm > 0, parameter.detach() / norm, 0.0)


def _overflowed(optimizer: Optimizer) -> bool:
    """Return whether `GradScaler` found infinities; a fused optimizer is called nevertheless, and does nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and float(found) > 0
