"""Edits outside training: one call changes the topology by what calibration batches show."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from synaptree.core.attach import groups_of, one_pass, views_of
from synaptree.core.errors import AttachError, DataError, NumericError, SynaptreeError
from synaptree.core.layer import Layer, layers_of
from synaptree.core.method import Method, require_method
from synaptree.core.probe import Probe, Reduction
from synaptree.core.ranks import Ranks, made_whole
from synaptree.core.topology import Delta, Topology

__all__ = ["Calibration", "prune"]

_BATCH = 250  # samples per forward pass when one tensor is given


def prune(
    model: nn.Module, method: Method, batches: Tensor | Iterable[Any] | None = None, *,
    topology: Topology | None = None, include: Iterable[str] = ("*",), exclude: Iterable[str] = (), seed: int = 0,
    gradients: Mapping[str, Tensor] | None = None, group: Any = None,
) -> Topology:  # fmt: skip
    """Let `method` edit the topology of `model` once, outside training; after an error both are as before.

    Args:
        model: pruned in place: weights that no longer exist become +0.0. Mode, gradients and the global
            random state are left as they were. A copy of its weights is held meanwhile.
        method: what decides.
        batches: calibration inputs, where the method needs data: one tensor of shape `(samples, ...)`, or
            an iterable of tensors or of tuples whose first entry is the input. Labels are not used.
        topology: the connections so far; dense by default. Edited in place.
        include: shell patterns of the module names to act on.
        exclude: likewise; wins over `include`.
        seed: of the topology's random generator, where a new one is made.
        gradients: parameter name -> gradient of the loss, where the method needs them; see
            `signals.gradients.mean_gradients`.
        group: processes that train together, see `attach`; each may give other batches.

    Returns:
        The topology; `topology.notes` says in sentences what the method could not do here.

    Raises:
        AttachError: nothing to prune, a method that acts during training only, or one that needs data,
            gradients or memories that are not there.
        DataError: a batch is no tensor and does not begin with one, or the model does not take it.
        NumericError: weights or data are not finite.

    Example:
        >>> from synaptree.methods import magnitude
        >>> model = nn.Linear(4, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> prune(model, magnitude(density=0.5)).density()
        0.5
        >>> model.weight.tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """
    require_method(model, method)
    ranks = Ranks(model, group)
    layers = layers_of(model, method.granularity, include, exclude)
    if "gradient" in method.needs and gradients is None:
        raise AttachError(f"{method!r} needs gradients of the training loss: use attach, or give `gradients`")
    if method.acts_in_training and method.edit is None:
        raise AttachError(f"{method!r} acts during training, by its own schedule: use attach, or another method")
    topology = Topology(seed) if topology is None else topology
    if not topology.state and any(signal.update for signal in method.signals.values()):
        raise AttachError(f"{method!r} remembers what it saw in training: use attach, or its topology")
    values = (*model.parameters(), *model.buffers())
    with topology.restored_on_error(*values), _undisturbed(model), torch.no_grad():
        inputs = _inputs(batches)
        if "data" in method.needs and not inputs:
            raise AttachError(f"{method!r} needs data to calibrate on, got none: give batches of inputs")
        topology.cover(layers, method.granularity, biases=method.biases)
        _require_finite(model, topology)
        topology.apply(model)
        topology.notes = []
        with made_whole(model) as whole:
            layers = layers_of(whole, method.granularity, include, exclude)
            (method.edit or one_pass)(Calibration(whole, method, topology, layers, inputs, gradients or {}, ranks))
        ranks.require_equal(topology)
    return topology


class Calibration:
    """What a calibrated edit works on: the model, its layers, the data, and the topology to change.

    Attributes:
        model: in eval mode, without gradients.
        method: what decides.
        topology: changed by `edit`.
        layers: those that may be touched.
        inputs: calibration batches, each of shape `(samples, ...)`.
        grads: parameter name -> gradient of the loss, where the method needs it.
        ranks: the processes that give batches, each its own.
    """

    def __init__(
        self, model: nn.Module, method: Method, topology: Topology, layers: Sequence[Layer],
        inputs: list[Tensor], grads: Mapping[str, Tensor], ranks: Ranks,
    ) -> None:  # fmt: skip
        self.model, self.method, self.topology = model, method, topology
        self.layers, self.inputs, self.grads, self.ranks = tuple(layers), inputs, grads, ranks

    def observe(
        self, reductions: Mapping[str, Reduction], forward: Callable[[Tensor], object] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Return the running means of statistics of what flows into each layer: layer -> statistic -> tensor.

        Args:
            reductions: see `Probe`.
            forward: how a batch goes through the network; the model itself by default.

        Raises:
            DataError: the network does not take a batch.
        """
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        with Probe(self.layers, reductions) as probe:
            for i, x in enumerate(self.inputs):
                try:
                    (forward or self.model)(x.to(device))
                except SynaptreeError:
                    raise
                except Exception as error:
                    raise DataError(
                        f"batch {i} of the calibration data, of shape {tuple(x.shape)} and {x.dtype}, does not go "
                        f"through {type(self.model).__name__}; give inputs such as it is trained on, and wrap a "
                        f"model of several inputs in one whose forward makes them of one tensor ({error})"
                    ) from error
        probe.put(self.ranks.add_up(probe.take()))
        return {layer.name: probe.means(layer.name) for layer in self.layers}

    def masks(
        self, layers: Sequence[Layer] | None = None, stats: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Return what the method's rule says of `layers`, all by default; nothing is changed yet."""
        if stats is None and self.method.watch:
            stats = self.observe(self.method.watch)
        layers = self.layers if layers is None else layers
        views = views_of(layers, self.topology, grads=self.grads, stats=stats)
        return self.method.rule(groups_of(layers, self.method, views, self.topology), self.topology.step)

    def edit(self, masks: Mapping[str, Tensor]) -> Delta:
        """Edit the topology and set the weights that no longer exist to 0."""
        delta = self.topology.edit(masks)
        self.topology.apply(self.model)
        return delta


def _require_finite(model: nn.Module, topology: Topology) -> None:
    for name, parameter in topology.parameters(model):
        if not parameter.isfinite().all():
            raise NumericError(
                f"{name} of shape {tuple(parameter.shape)} holds NaN or infinity; calibrate a network that was "
                "trained without, such as its last good checkpoint"
            )


def _inputs(batches: Tensor | Iterable[Any] | None) -> list[Tensor]:
    if batches is None:
        return []
    if isinstance(batches, Tensor):
        batches = batches.split(_BATCH) if batches.dim() else [batches]
    inputs = [batch[0] if isinstance(batch, (tuple, list)) and batch else batch for batch in batches]
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor) or not x.dim():
            raise DataError(
                f"batch {i} of the calibration data is {x if isinstance(x, Tensor) else f'a {type(x).__name__}'}: "
                "wanted a tensor of inputs, of shape (samples, ...), or a tuple that begins with one"
            )
    return [x for x in inputs if x.numel()]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode; give each its own mode back, and the global random state."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # a shuffling loader draws from it, and so do layers that are noisy in eval mode too
        with torch.random.fork_rng({parameter.device for parameter in model.parameters() if parameter.is_cuda}):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
