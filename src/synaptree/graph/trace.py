"""Trace a model with torch.fx, torch's own modules whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from synaptree.graph.node import GraphError
from synaptree.graph.operations import is_torchs_own
from synaptree.graph.shortcut import Shortcut

__all__ = ["Tracer", "outputs", "reason", "require_equal", "trace", "undisturbed", "untraceable"]


class Tracer(fx.Tracer):
    """Keeps as one node every module whose forward is torch's own, and those that are `whole` whatever they do."""

    whole: tuple[type[nn.Module], ...] = (Shortcut, nn.Linear, _ConvNd)
    failed = ""  # the innermost module in which tracing stopped

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002, D102 - torch.fx's
        return isinstance(m, self.whole) or (is_torchs_own(m) and not isinstance(m, nn.Sequential))

    def call_module(  # noqa: D102 - torch.fx's
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
    tracer = Tracer()
    try:
        return fx.GraphModule(model, tracer.trace(model), type(model).__name__)
    except Exception as error:
        raise untraceable(model, tracer.failed, error, "go on without the graph") from error


def untraceable(model: nn.Module, failed: str, error: Exception, instead: str) -> GraphError:
    """Return the error for a model that torch.fx cannot trace.

    Args:
        model: any.
        failed: the module in which tracing stopped, "" for the model's own forward.
        error: of torch.fx.
        instead: what can be done with the model as it is.
    """
    if isinstance(model, torch.jit.ScriptModule):
        return GraphError(
            f"cannot trace {type(model).__name__}, which TorchScript has compiled: take the model it was made from, or "
            f"{instead}"
        )
    kinds = {parameter.kind for parameter in signature(type(model).forward).parameters.values()}
    named = "" if kinds.isdisjoint((Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)) else (
        "torch.fx does not take *args and **kwargs apart: wrap the model in one whose forward names its inputs. "
    )  # fmt: skip
    return GraphError(
        f"cannot trace {failed or f'{type(model).__name__}.forward'}: {reason(error)}. {named}Keep decisions by tensor "
        f"values and loops over tensors out of forward, or {instead}"
    )


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
    """Return an error's type and the first sentence of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].partition('. ')[0]}"
