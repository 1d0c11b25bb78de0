"""The topology of a network: which connections exist. The only owner of masks."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synaptree.core.errors import CheckpointError, ShapeError, unknown
from synaptree.core.layer import Layer, mask_shape, parameters_of
from synaptree.core.ranks import held, held_part, settle

__all__ = ["Delta", "Topology"]


class Delta(NamedTuple):
    """What one edit changed: bool tensors at the granularity of the masks, by parameter name."""

    born: dict[str, Tensor]
    died: dict[str, Tensor]

    def __str__(self) -> str:
        born, died = (sum(int(t.sum()) for t in part.values()) for part in self)
        return f"{born} born, {died} died"


class Topology:
    """Masks, ages, a method's state, the step and the random state of one developing network.

    A mask is a bool tensor, True where a connection exists, stored at its granularity: `(out, in)`
    for a linear weight, `(out, in / groups, 1, 1)` for kernels, `(out,)` for a bias or a batch-norm
    scale; it broadcasts over its parameter. Names are parameter names without what DDP and
    `torch.compile` add to them. The topology holds no reference to the model.

    Attributes:
        masks: parameter name -> bool tensor.
        step: optimizer updates made so far.
        version: changes of the masks so far, by which whoever keeps something derived from them sees its age.
        state: what a method's signals remember: "signal/parameter" -> named tensors.
        notes: what the last edit could not do, in sentences.
        born, died: connections so far.

    Example:
        >>> topology = Topology(seed=0)
        >>> topology.add("fc.weight", (2, 3))
        >>> delta = topology.edit({"fc.weight": torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()})
        >>> print(delta, topology.density())
        0 born, 3 died 0.5
    """

    def __init__(self, seed: int = 0) -> None:
        self.masks: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.step = self.version = self.born = self.died = 0
        self.state: dict[str, dict[str, Tensor]] = {}
        self.notes: list[str] = []
        self.rng = torch.Generator().manual_seed(seed)
        self._births: dict[str, Tensor] = {}
        self._edits: list[int] = [0]

    @classmethod
    def of(
        cls, layers: Iterable[Layer], granularity: Mapping[str, str], *, biases: bool = False, seed: int = 0
    ) -> "Topology":
        """Return the dense topology of `layers`, with masks at the granularity of each kind of layer."""
        topology = cls(seed)
        topology.cover(layers, granularity, biases=biases)
        return topology

    def cover(self, layers: Iterable[Layer], granularity: Mapping[str, str], *, biases: bool = False) -> None:
        """Give every layer that has no mask yet a dense one, at the granularity of its kind.

        Raises:
            ShapeError: a layer has a mask of another granularity already; then nothing is changed.
        """
        layers = tuple(layers)
        for layer in layers:
            shape, wanted = tuple(layer.module.weight.shape), granularity[layer.kind]
            if layer.weight in self.masks and tuple(self.masks[layer.weight].shape) != mask_shape(shape, wanted):
                raise ShapeError(
                    f"{layer.weight} of shape {shape} has a mask of shape {tuple(self.masks[layer.weight].shape)} "
                    f"already, and granularity {wanted!r} wants {mask_shape(shape, wanted)}; "
                    "use the granularity it was pruned with"
                )
        for layer in layers:
            weight, bias = layer.module.weight, layer.module.bias
            if layer.weight not in self.masks:
                self.add(layer.weight, tuple(weight.shape), granularity[layer.kind], device=weight.device)
            if biases and bias is not None and layer.bias is not None and layer.bias not in self.masks:
                self.add(layer.bias, tuple(bias.shape), device=weight.device)

    def add(
        self, name: str, shape: tuple[int, ...], granularity: str = "weight", *, device: torch.device | str = "cpu"
    ) -> None:
        """Give the parameter `name` of shape `shape` a mask in which every connection exists."""
        self.version += 1
        self.shapes[name] = tuple(shape)
        self.masks[name] = torch.ones(mask_shape(tuple(shape), granularity), dtype=torch.bool, device=device)

    def edit(self, masks: Mapping[str, Tensor]) -> Delta:
        """Replace masks by new ones: pruning, growing, or both at once.

        Args:
            masks: parameter name -> bool tensor of the shape of the present mask; those left out stay.

        Returns:
            The connections born and died.

        Raises:
            OptionError: a name has no mask here.
            ShapeError: a mask is not bool or has another shape; then nothing is changed.
        """
        for name, mask in masks.items():
            self._check(name, mask)
        born, died = {}, {}
        self.version += 1
        for name, mask in masks.items():
            old, new = self.masks[name], mask.detach().clone()
            born[name], died[name] = new & ~old, old & ~new
            self.masks[name] = new
            self._remember_births(name, born[name])
            self.born, self.died = self.born + int(born[name].sum()), self.died + int(died[name].sum())
        return Delta(born, died)

    def age(self, name: str) -> Tensor:
        """Return the updates since birth of each connection of `name` (int64, 0 where none exists)."""
        mask = self._mask(name)
        births = self._births.get(name, torch.zeros_like(mask, dtype=torch.int32))
        steps = torch.tensor(self._edits, device=mask.device)
        return (self.step - steps[births.long()]) * mask

    def count_from(self, step: int) -> None:
        """Go on counting from `step`, for instance where a method begins; ages stay what they are."""
        self._edits = [edit + step - self.step for edit in self._edits]
        self.step = step

    def density(self, *names: str) -> float:
        """Return the share of weights that exist, in [0, 1], of the named parameters.

        Without names: of all weights (tensors of two or more axes). A kernel counts as its weights.
        """
        names = names or tuple(n for n, shape in self.shapes.items() if len(shape) > 1)
        total = sum(self.weights(n) for n in names)
        return sum(self.weights_alive(n) for n in names) / total if total else 1.0

    def weights(self, name: str) -> int:
        """Return how many weights the parameter `name` has, existing or not."""
        return self.expanded(name).numel()

    def weights_alive(self, name: str) -> int:
        """Return how many weights of the parameter `name` exist."""
        mask = self._mask(name)
        return int(mask.sum()) * (self.weights(name) // max(1, mask.numel()))

    def expanded(self, name: str) -> Tensor:
        """Return the mask of `name` at the shape of its parameter."""
        return self._mask(name).expand(self.shapes[name])

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every weight of `model` whose connection does not exist to +0.0."""
        for name, parameter in self.parameters(model):
            held(parameter).masked_fill_(~held_part(self.masks[name], parameter), 0.0)

    def parameters(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the masked parameters of `model` with their names.

        Raises:
            ShapeError: the model lacks one of them, or has it in another shape; then none is yielded.
        """
        settle(model)
        own = parameters_of(model)
        for name, shape in self.shapes.items():
            if name not in own or tuple(own[name].shape) != shape:
                got = f"has it in shape {tuple(own[name].shape)}" if name in own else "has no such parameter"
                raise ShapeError(
                    f"{name}: the topology masks a parameter of shape {shape}, {type(model).__name__} {got}; "
                    "use the model the topology was made for"
                )
        yield from ((name, own[name]) for name in self.shapes)

    def digest(self) -> str:
        """Return a hash of all masks, equal exactly where the masks are."""
        sha = hashlib.sha256()
        for name in sorted(self.masks):
            sha.update(f"{name}{tuple(self.masks[name].shape)}".encode())
            sha.update(self.masks[name].cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as tensors, numbers and texts, copied."""
        return {
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "births": {name: births.clone() for name, births in self._births.items()},
            "edits": list(self._edits),
            "step": self.step,
            "born": self.born,
            "died": self.died,
            "rng": self.rng.get_state(),
            "state": _cloned(self.state),
            "notes": list(self.notes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            CheckpointError: it holds no masks, lacks one of those here or has it in another shape, or is
                damaged; then nothing is changed. More masks than here are welcome: methods add some.
        """
        if not state.get("masks"):
            raise CheckpointError("the checkpoint holds no masks: it was not written by a synaptree topology")
        trial = Topology()
        try:
            trial.restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint is damaged: {type(error).__name__}: {error}") from error
        if differ := self._forms() - trial._forms():
            names = ", ".join(sorted(name for name, *_ in differ))
            raise CheckpointError(
                f"the checkpoint belongs to another model or method: {names} differ in name, shape or granularity"
            )
        self.restore(state)

    @contextmanager
    def restored_on_error(self, *values: Tensor) -> Iterator[None]:
        """Put the topology, and `values` with it, back as they were where the block fails."""
        before, copies = self.state_dict(), [value.detach().clone() for value in values]
        try:
            yield
        except BaseException:
            self.restore(before)
            for value, copy in zip(values, copies, strict=True):
                value.detach().copy_(copy)
            raise

    def __repr__(self) -> str:
        return f"Topology({len(self.masks)} masks, density {self.density():.4f}, step {self.step})"

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back exactly what `state_dict` returned, whatever masks are here now."""
        self.version += 1
        self.shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
        devices = {name: mask.device for name, mask in self.masks.items()}
        nearby = next(iter(devices.values()), None)  # for masks that came later
        self.masks = {name: state["masks"][name].to(devices.get(name, nearby)).bool().clone() for name in self.shapes}
        self._births = {
            name: torch.zeros_like(self.masks[name], dtype=torch.int32).copy_(births)
            for name, births in state["births"].items()
        }
        self._edits, self.step = list(state["edits"]), int(state["step"])
        self.born, self.died = int(state["born"]), int(state["died"])
        self.rng.set_state(state["rng"].cpu())
        self.state = {
            key: {name: value.to(nearby, copy=True) for name, value in values.items()}
            for key, values in state["state"].items()
        }
        self.notes = list(state["notes"])

    def _forms(self) -> set[tuple[str, tuple[int, ...], torch.Size]]:
        return {(name, shape, self.masks[name].shape) for name, shape in self.shapes.items()}

    def _mask(self, name: str) -> Tensor:
        if name not in self.masks:
            raise unknown("masked parameter", name, self.masks)
        return self.masks[name]

    def _check(self, name: str, mask: Tensor) -> None:
        wanted = self._mask(name).shape
        if mask.shape != wanted or mask.dtype != torch.bool:
            raise ShapeError(
                f"{name}: wanted a bool mask of shape {tuple(wanted)} for the parameter of shape "
                f"{self.shapes[name]}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )

    def _remember_births(self, name: str, born: Tensor) -> None:
        if not born.any():
            return
        if self._edits[-1] != self.step:
            self._edits.append(self.step)
        births = self._births.setdefault(name, torch.zeros_like(born, dtype=torch.int32))
        births[born] = len(self._edits) - 1


def _cloned(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {key: {name: value.clone() for name, value in values.items()} for key, values in state.items()}
