"""What a run's networks are, read from the files of its rounds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from synaptree.artifact.interchange import load_into, read_tensors
from synaptree.artifact.masks import read_masks
from synaptree.core.layer import Layer, layers_of
from synaptree.core.topology import Topology
from synaptree.measure.count import LayerCount, count
from synaptree.report.page.gather import Found
from synaptree.results import Result
from synaptree.train import zoo
from synaptree.train.sources import source

__all__ = ["LayerFacts", "Network", "input_maps", "network_of", "shape_of_data"]

Counts = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerFacts:
    """One layer of a network as it is on disk.

    Attributes:
        name: of the module.
        kind: "linear" or "conv".
        kernels: existing weights from each input to each output, `(outputs, inputs)`: 0 or 1 in a linear layer, up
            to the size of a kernel in a convolution.
        strengths: sums of the weights' magnitudes, of the same shape; of kernels of one weight the weights themselves.
        size: weights of a kernel; 1 in a linear layer.
        counted: its weights and multiplications.
        bytes: of its tensors in the round's file.
    """

    name: str
    kind: str
    kernels: Counts
    strengths: Weights
    size: int
    counted: LayerCount
    bytes: int

    @property
    def dense_bytes(self) -> int:
        """Bytes that all weights and biases take in fp32."""
        return 4 * (self.counted.weights + self.counted.biases)

    @property
    def why(self) -> str:
        """Why sparsity gains nothing here, as far as counting can say; "" where it gains."""
        if self.counted.weights_alive == self.counted.weights:
            return "no gain here, because every connection exists"
        if not self.counted.weights_alive:
            return "nothing left: its outputs are constant"
        if self.bytes >= self.dense_bytes:
            return "no gain in bytes here, because the mask takes as much as it saves"
        return ""


@dataclass(frozen=True)
class Network:
    """The network at the end of a round.

    Attributes:
        round: its number.
        file: that holds it.
        model: with its weights.
        topology: over it.
        shape: of one sample.
        layers: in the order of the model.
    """

    round: int
    file: Path
    model: nn.Module
    topology: Topology
    shape: tuple[int, ...]
    layers: tuple[LayerFacts, ...]

    @property
    def is_chain(self) -> bool:
        """Whether each module is fed by the one before it and nothing else."""
        plain = not any(list(module.children()) for module in self.model.children())
        return isinstance(self.model, nn.Sequential) and plain


def network_of(run: Found) -> Network | None:
    """Return the last network that a run left on disk; None where its result lies alone.

    Raises:
        SynaptreeError: the file is damaged, or is of another model than the result says.
    """
    there = [(part.round, file) for part in run.result.rounds if (file := run.round_file(part.round))]
    if not there:
        return None
    index, file = there[-1]
    name, options = _model(run.result)
    model = zoo.build(name, **options).eval()
    topology = load_into(model, file)
    inputs = options.get("inputs")
    shape = zoo.MODELS[name].input_shape if inputs is None else (int(inputs),)
    counted = count(model, topology if topology.masks else None, torch.zeros(1, *shape))
    counts = {layer.name: layer for layer in counted.layers}
    sizes = _bytes(file)
    layers = tuple(_facts(layer, topology, counts[layer.name], sizes) for layer in layers_of(model))
    return Network(index, file, model, topology, shape, layers)


def _model(result: Result) -> tuple[str, dict[str, Any]]:
    """Return the name of a run's model and its options."""
    classes = source(str(result.config["data"])).classes
    options = dict(result.config.get("model_options") or {})
    return str(result.config["model"]), ({"classes": classes} if classes else {}) | options


def _bytes(file: Path) -> dict[str, int]:
    """Return the bytes in a file by the name of the module they are of."""
    sizes: dict[str, int] = {}
    for name, tensor in read_tensors(file)[0].items():
        module = name.rpartition(":")[0] or name
        module = module.rpartition(".")[0]
        sizes[module] = sizes.get(module, 0) + tensor.numel() * tensor.element_size()
    return sizes


def _facts(layer: Layer, topology: Topology, counted: LayerCount, sizes: Mapping[str, int]) -> LayerFacts:
    weight = layer.module.weight.detach()
    exists = topology.expanded(layer.weight) if layer.weight in topology.masks else weight.new_ones(weight.shape) > 0
    size = math.prod(weight.shape[2:])
    strengths = weight.abs().flatten(2).sum(2) if size > 1 else weight.flatten(1)
    return LayerFacts(
        layer.name, layer.kind, exists.flatten(2).sum(2).numpy() if weight.dim() > 2 else exists.long().numpy(),
        strengths.numpy(), size, counted, sizes.get(layer.name, 0),
    )  # fmt: skip


def shape_of_data(result: Result) -> tuple[int, ...]:
    """Return the shape of an image of the run's data set, `(channels, height, width)`; of a row `(features,)`."""
    return source(str(result.config["data"])).shape


def input_maps(run: Found, layer: LayerFacts, most: int = 6) -> dict[int, Counts]:
    """Return how many connections of the first layer each input keeps, `(inputs,)`, by round.

    Args:
        run: whose networks lie on disk.
        layer: the first one, linear.
        most: rounds, among them the first and the last.
    """
    there = [(part.round, file) for part in run.result.rounds if (file := run.round_file(part.round))]
    found: dict[int, Counts] = {}
    for index, file in _spread(there, most):
        mask = read_masks(file).masks.get(f"{layer.name}.weight")
        outputs, inputs = layer.kernels.shape
        found[index] = np.full(inputs, outputs) if mask is None else mask.sum(0).numpy()
    return found


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    """Return some values, evenly, with the first and the last.

    >>> _spread(range(9), 3), _spread([1, 2], 3)
    ([0, 4, 8], [1, 2])
    """
    if len(values) <= most:
        return list(values)
    return [values[round(number * (len(values) - 1) / (most - 1))] for number in range(most)]
