"""A network as an ONNX file, checked against ONNX Runtime before it takes its place."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from synaptree.artifact.files import replacing
from synaptree.core.errors import NumericError, SynaptreeError
from synaptree.graph.trace import reason

__all__ = ["export_onnx"]

TOLERANCE = 1e-4
"""Largest difference to the model's outputs, in relation to the largest of them and to 1."""


def export_onnx(model: nn.Module, path: str | Path, example_input: Tensor) -> float:
    """Write a network as ONNX, weights inside and any number of samples, and check it with ONNX Runtime.

    Zeros are written as they are: compact the model first to see a smaller file.

    Args:
        model: with one input; left as it is, and exported in eval mode.
        path: of the file; replaced only when the new one has passed.
        example_input: `(samples, ...)`, a batch of two samples or more.

    Returns:
        Largest absolute difference between ONNX Runtime's outputs and the model's, on the example and on one sample.

    Raises:
        SynaptreeError: onnx, onnxscript or onnxruntime is missing, the model cannot be expressed in ONNX, or ONNX
            Runtime does not run the file.
        OSError: the file cannot be written.
        NumericError: the file gives other outputs than the model; then nothing is written.
    """
    if len(example_input) < 2:
        raise SynaptreeError(f"example of shape {tuple(example_input.shape)}: wanted two samples or more")
    model = deepcopy(model).cpu().eval()
    x = example_input.detach().cpu()
    with replacing(path) as partial:
        with _quiet():
            _export(model, partial, x)
        return max(_checked(model, partial, batch) for batch in (x, x[:1]))


def _export(model: nn.Module, path: Path, x: Tensor) -> None:
    try:
        torch.onnx.export(
            model, (x,), path, dynamo=True, external_data=False, verbose=False,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )  # fmt: skip
    except ModuleNotFoundError as missing:
        raise SynaptreeError(f"export needs {missing.name}: pip install 'synaptree[onnx]'") from missing
    except OSError:
        raise
    except Exception as error:
        why = reason(_innermost(error))
        raise SynaptreeError(f"{type(model).__name__} cannot be expressed in ONNX: {why}") from error


def _innermost(error: Exception) -> Exception:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _checked(model: nn.Module, path: Path, x: Tensor) -> float:
    try:
        import onnxruntime
    except ModuleNotFoundError as missing:
        raise SynaptreeError("export needs onnxruntime: pip install 'synaptree[onnx]'") from missing
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    except Exception as refusal:
        raise SynaptreeError(
            f"ONNX Runtime does not run {type(model).__name__}: {reason(refusal)}; nothing was written"
        ) from refusal
    with torch.no_grad():
        wanted = [leaf.numpy() for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]
    if [one.shape for one in got] != [one.shape for one in wanted]:
        raise NumericError(
            f"ONNX Runtime gives outputs of shapes {[one.shape for one in got]}, "
            f"wanted {[one.shape for one in wanted]}; nothing was written"
        )
    largest = 0.0
    for one, other in zip(got, wanted, strict=True):
        error, scale = float(np.abs(one - other).max(initial=0)), float(np.abs(other).max(initial=1))
        if not error <= TOLERANCE * scale:
            raise NumericError(
                f"ONNX Runtime's outputs of shape {one.shape} differ by up to {error:.3g} from the model's, "
                f"of size up to {scale:.3g}; nothing was written"
            )
        largest = max(largest, error)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter says of its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
