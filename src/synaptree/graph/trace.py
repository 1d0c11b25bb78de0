"""Trace a model with torch.fx, torch's own modules whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from synaptree.graph.node import GraphError
from synaptree.graph.shortcut import Shortcut

__all__ = ["outputs", "reason", "require_equal", "trace", "undisturbed"]


class _Tracer(fx.Tracer):
    """Keeps `Shortcut` and every module whose forward is torch's own as one node."""

    failed = ""  # the innermost module in which tracing stopped

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        own = str(type(m).forward.__module__).startswith("torch.nn") and not isinstance(m, nn.Sequential)
        return own or isinstance(m, Shortcut)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or f"module {self.path_of_module(m)!r} ({type(m).__name__})"
            raise


def trace(model: nn.Module) -> fx.GraphModule:
    """Return `model` as a traced module that shares its submodules, in the mode the model is in.

    Raises:
        GraphError: torch.fx cannot trace it.
    """
    tracer = _Tracer()
    try:
        return fx.GraphModule(model, tracer.trace(model), type(model).__name__)
    except Exception as error:
        where = tracer.failed or f"{type(model).__name__}.forward"
        raise GraphError(
            f"cannot trace {where}: {reason(error)}. Keep decisions by tensor values and loops over tensors out "
            f"of forward, or go on without the graph"
        ) from error


@contextmanager
def undisturbed(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Hold `model` in eval mode without gradient; put modes and torch's random state back afterwards."""
    modes = {module: module.training for module in model.modules()}
    devices = [example.device] if example.is_cuda else []
    try:
        for module in modes:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def outputs(model: nn.Module, example: Tensor) -> Any:
    """Return what `model` gives for the first two samples of `example`, and leave both as they are."""
    with undisturbed(model, example):
        return model(example[:2].clone())


def require_equal(got: object, wanted: object, complaint: str) -> None:
    """Raise `GraphError` with the complaint unless two outputs are equal up to rounding."""
    try:
        torch.testing.assert_close(got, wanted, equal_nan=True)
    except Exception as error:
        raise GraphError(f"{complaint}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
