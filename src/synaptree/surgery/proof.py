"""The proof that a changed model still computes the same."""

import io
import re
from contextlib import redirect_stderr, suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from synaptree.core.errors import NumericError
from synaptree.graph.node import Graph, GraphError
from synaptree.graph.trace import reason, trace, undisturbed

__all__ = ["Proof", "require_fit_in_training", "require_own_names"]


class Proof:
    """What a model gives in eval mode for an example, and for random numbers of its shape.

    The random numbers are left out where the model does not take them. A difference counts as rounding up to 1000
    times the resolution of the numbers, relative to the largest output, or 100 times what the model's own outputs
    differ by in double precision. Where it does not run in that, outputs below 1 are taken for 1.

    Args:
        model: as it must stay.
        example: `(samples, ...)`, a batch the model accepts.

    Attributes:
        inputs: what the model is run on.

    Raises:
        NumericError: the example is not finite, or an output is NaN.
        GraphError: the model does not run on the example, or something in it is called "training" or the like.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
        >>> Proof(model, torch.ones(1, 2)).error(nn.Sequential(model[0]))
        0.0
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        require_own_names(model)
        _require_numbers(example, "the example")
        self.inputs = [example]
        try:
            self._wanted = _leaves(model, [example])
        except Exception as error:
            shape = tuple(example.shape)
            raise GraphError(f"the model does not run on an example of shape {shape}: {reason(error)}") from error
        for output in self._wanted:
            _require_numbers(output, "an output of the model on the example", infinite=True)
        if example.is_floating_point():
            rng = torch.Generator().manual_seed(0)
            numbers = torch.randn(example.shape, generator=rng).to(example.device, example.dtype)
            with suppress(Exception):  # a model may take no more than what it was made for
                self._wanted += _leaves(model, [numbers])
                self.inputs.append(numbers)
        self._noise = self._differences_in_double(model)

    def error(self, model: nn.Module) -> float:
        """Return the largest absolute difference of another model's outputs.

        Raises:
            NumericError: the difference is beyond rounding, or the other model does not run.
        """
        try:
            with redirect_stderr(io.StringIO()):  # where a traced model prints what is raised anyway
                got = _leaves(model, self.inputs)
        except Exception as error:
            raise NumericError(f"the compacted model does not run: {reason(error)}") from error
        forms = [[_form(leaf) for leaf in leaves] for leaves in (got, self._wanted)]
        if forms[0] != forms[1]:
            raise NumericError(f"the compacted model gives outputs {forms[0]}, wanted {forms[1]}")
        leaves = zip(got, self._wanted, self._noise, strict=True)
        return max((_error(*leaf) for leaf in leaves if isinstance(leaf[0], Tensor)), default=0.0)

    def holds(self, model: nn.Module) -> bool:
        """Return whether another model gives the same."""
        try:
            self.error(model)
        except NumericError:
            return False
        return True


    def _differences_in_double(self, model: nn.Module) -> list[float | None]:
        """Return by how much each output differs from the one in double precision; None where that is not known."""
        unknown: list[float | None] = [None] * len(self._wanted)
        try:
            inputs = [x.double() if x.is_floating_point() else x for x in self.inputs]
            wide = _leaves(deepcopy(model).double(), inputs)
        except Exception:
            return unknown
        if [_form(leaf) for leaf in wide] != [_form(leaf) for leaf in self._wanted]:
            return unknown
        pairs = zip(wide, self._wanted, strict=True)
        return [_size(one.double() - other.double()) if _is_narrow(other) else None for one, other in pairs]


def _require_numbers(leaf: object, what: str, infinite: bool = False) -> None:
    """Raise a NumericError for NaN, beside which nothing is proved."""
    if isinstance(leaf, Tensor) and bool(leaf.isnan().any() if infinite else not leaf.isfinite().all()):
        raise NumericError(
            f"{what}, of shape {tuple(leaf.shape)}, holds NaN{'' if infinite else ' or infinity'}; give an example "
            "such as the model was trained on, and a model whose weights are finite"
        )


def require_own_names(model: nn.Module) -> None:
    """Raise `GraphError` for the first child or tensor that no attribute can stand for: torch has one of that name."""
    taken = {*dir(nn.Module), *vars(nn.Module())}
    for above, module in model.named_modules():
        for name in (*module._modules.keys(), *module._parameters.keys(), *module._buffers.keys()):  # scripted ones too
            if name in taken:
                whole = f"{above}.{name}" if above else name
                raise GraphError(
                    f"{whole!r} of {type(model).__name__} is called as an attribute of every module, and is not found "
                    f"under its name; give it another"
                )


def require_fit_in_training(model: nn.Module, smaller: nn.Module, graph: Graph, example: Tensor) -> None:
    """Raise `GraphError` where a forward that asks for the mode does not fit the narrower model in training mode.

    Nothing is run where the traces of both modes differ in nothing but `training=` of functions. Otherwise copies
    of both models are run on the example in training mode, and must give outputs of the same shapes.

    Args:
        model: as it was.
        smaller: the narrower one.
        graph: of the model in eval mode.
        example: a batch both accept.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        if _mode_apart(trace(model.train()).code) == _mode_apart(graph.traced.code):
            return
    except GraphError:
        pass  # what cannot be traced can still be run
    finally:
        for module, mode in modes.items():
            module.training = mode
    shapes = [_shapes_in_training(each, example) for each in (model, smaller)]
    if shapes[0] != shapes[1]:
        raise GraphError(
            f"the forward asks for self.training, and in training mode the narrower model gives outputs of shapes "
            f"{shapes[1]}, wanted {shapes[0]}"
        )


def _mode_apart(code: str) -> str:
    return re.sub(r"training = (True|False)", "", code)


def _shapes_in_training(model: nn.Module, example: Tensor) -> list[tuple[int, ...]]:
    trial = deepcopy(model).train()
    with torch.no_grad(), torch.random.fork_rng([example.device] if example.is_cuda else []):
        try:
            return [tuple(leaf.shape) for leaf in tree_leaves(trial(example.clone())) if isinstance(leaf, Tensor)]
        except Exception as error:
            raise GraphError(
                f"the forward asks for self.training, and the narrower model cannot be shown to fit in training mode: "
                f"{reason(error)}"
            ) from error


def _leaves(model: nn.Module, inputs: list[Tensor]) -> list[Any]:
    found = []
    for x in inputs:
        with undisturbed(model, x):
            found += [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(model(x.clone()))]
    return found


def _form(leaf: object) -> object:
    """Return the shape of a tensor, a number as it is, and the type of anything else."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape)
    return leaf if isinstance(leaf, int | float | str | None) else type(leaf).__name__


def _is_narrow(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64


def _size(tensor: Tensor) -> float:
    return float(torch.nan_to_num(tensor.abs(), 0.0, 0.0, 0.0).max().item()) if tensor.numel() else 0.0


def _error(one: Tensor, other: Tensor, noise: float | None) -> float:
    wide = torch.complex128 if other.is_complex() else torch.float64
    error, scale = _size(one.to(wide) - other.to(wide)), _size(other.to(wide))
    exact = not (other.is_floating_point() or other.is_complex())
    resolution = 0.0 if exact else min(1000 * torch.finfo(other.dtype).eps, 0.05)
    limit = resolution * max(1.0, scale) if noise is None else max(resolution * scale, 100 * noise)
    if error > limit or not one.isfinite().equal(other.isfinite()):
        raise NumericError(
            f"the compacted model's outputs of shape {tuple(one.shape)} differ by up to {error:.3g} from the "
            f"model's, of size up to {scale:.3g}; rounding explains {limit:.3g}"
        )
    return error
