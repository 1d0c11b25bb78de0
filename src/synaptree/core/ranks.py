"""Several processes that train one network: sums over them, whole tensors from their parts, masks that must agree."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from synaptree.core.errors import AttachError, DataError, RankError
from synaptree.core.layer import modules_of, parameters_of

if TYPE_CHECKING:
    from synaptree.core.topology import Topology

__all__ = ["Ranks", "Sums", "held", "held_part", "made_whole", "reached", "settle", "whole"]

Sums = dict[str, dict[str, Any]]
"""Layer -> name of a statistic -> its sum over samples; their number is the int "samples"."""

_GONE = ("gloo", "Connection", "NCCL", "process group", "Timed out")  # words in what torch says of a lost process


class Ranks:
    """The processes that train one network, each on its part of the data.

    Args:
        model: wrapped in `DistributedDataParallel` or sharded by `fully_shard`, or neither.
        group: the processes; by default those of the wrapper, else all where torch.distributed is at work.

    Attributes:
        size: how many they are; 1 where there is nobody to talk to.

    Raises:
        AttachError: the model is sharded in a way that cannot be followed.

    Example:
        >>> alone = Ranks(nn.Linear(2, 1))
        >>> alone.size
        1
    """

    def __init__(self, model: nn.Module, group: Any = None) -> None:
        self.group, self._layout = group, list[tuple[str, str, torch.Size]]()
        if distributed.is_available() and distributed.is_initialized():
            self.group = group or _group_of(model) or distributed.group.WORLD
        self.size = 1 if self.group is None else distributed.get_world_size(self.group)
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def add_up(self, sums: Sums, *, steady: bool = False) -> Sums:
        """Return the sums over all processes; where one saw nothing its share is 0.

        Args:
            sums: of this process.
            steady: the statistics are the same at every call, so that one agreement on them is enough.

        Raises:
            DataError: a statistic has another shape here than there, or came after the agreement.
            RankError: another process cannot be reached.
        """
        if self.size == 1:
            return sums
        shapes = [(la, stat, torch.as_tensor(v).shape) for la, stats in sums.items() for stat, v in stats.items()]
        if not (steady and self._layout):
            self._layout = self._agreed(shapes)
        if not self._layout:
            return sums
        late = sorted(set(shapes) - set(self._layout))
        parts = [torch.as_tensor(sums.get(la, {}).get(stat, torch.zeros(shape))) for la, stat, shape in self._layout]
        parts.append(torch.tensor([len(late)]))  # all of them learn of it: an error in one alone leaves others waiting
        flat = torch.cat([part.to(self._device, torch.float64).flatten() for part in parts])
        with reached(self.size):
            distributed.all_reduce(flat, group=self.group)
        if flat[-1]:
            raise DataError(
                f"layers saw data of a kind that the processes have not agreed on: {late or 'in another process'}; let "
                "the first update of every process go through all layers, with inputs of one size"
            )
        total: Sums = {layer: {} for layer in sums}
        for (layer, stat, shape), part in zip(self._layout, flat.split([p.numel() for p in parts]), strict=False):
            total.setdefault(layer, {})[stat] = int(part) if stat == "samples" else part.view(shape)
        return {layer: stats if stats.get("samples", 1) else {} for layer, stats in total.items()}

    def require_equal(self, topology: "Topology") -> None:
        """Raise a RankError unless masks, step and random state are the same in all processes."""
        if self.size == 1:
            return
        mine = int.from_bytes(hashlib.sha256("".join(_states(topology).values()).encode()).digest()[:7], "big")
        largest = torch.tensor([mine, -mine], device=self._device)
        with reached(self.size):
            distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=self.group)
        if int(largest[0]) != -int(largest[1]):
            raise RankError(self._difference(topology))

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        with reached(self.size):
            distributed.all_gather_object(values, value, group=self.group)
        return values

    def _agreed(self, shapes: list[tuple[str, str, torch.Size]]) -> list[tuple[str, str, torch.Size]]:
        union = sorted({entry for some in self._gather(shapes) for entry in some})
        for first, second in pairwise(union):
            if first[:2] == second[:2]:
                raise DataError(
                    f"layer {first[0]}: {first[1]} has shape {tuple(first[2])} in one process and "
                    f"{tuple(second[2])} in another; give all of them inputs of one size"
                )
        return union

    def _difference(self, topology: "Topology") -> str:
        known = self._gather(_states(topology))
        differ = {
            name: [rank for rank, states in enumerate(known) if states.get(name) != known[0].get(name)]
            for name in sorted({name for states in known for name in states})
        }
        named = [f"{name} (rank {', '.join(map(str, ranks))} from rank 0)" for name, ranks in differ.items() if ranks]
        return (
            f"the {self.size} processes that train together differ after update {topology.step}: {', '.join(named)}; "
            "wrap the model in DistributedDataParallel or fully_shard before attaching, attach the same method with "
            "the same seed and topology in all of them, let nobody edit masks in one alone, and go on from the last "
            "checkpoint"
        )


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which each process may hold a part."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def held(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, to be changed in place."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def held_part(values: Tensor, tensor: Tensor) -> Tensor:
    """Return of `values`, which broadcast over `tensor`, the part that this process holds of `tensor`."""
    if not hasattr(tensor, "to_local"):
        return values
    from torch.distributed.tensor import distribute_tensor

    place: Any = tensor
    spread = values.expand(tensor.shape).contiguous()
    return held(distribute_tensor(spread, place.device_mesh, place.placements, src_data_rank=None))


def settle(model: nn.Module) -> None:
    """Let every process hold its part of the parameters alone, as between two updates."""
    for module in _sharded(model):
        module.reshard()


@contextmanager
def made_whole(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model, or of one that is sharded a whole copy; what is done to it is taken over at the end.

    The copy holds the whole model in every process, for as long as the block lasts, and shares its buffers.
    """
    settle(model)
    if not any(True for _ in _sharded(model)):
        yield model
        return
    copy = _copy(model, {}, {})
    yield copy
    copied = parameters_of(copy)
    with torch.no_grad():
        for name, parameter in parameters_of(model).items():
            held(parameter).copy_(held_part(copied[name], parameter))


def _copy(module: nn.Module, modules: dict[int, nn.Module], parameters: dict[int, nn.Parameter]) -> nn.Module:
    """Return a module as it was before it was sharded, with all of its parameters; shared ones stay shared."""
    if id(module) in modules:
        return modules[id(module)]
    kinds: tuple[Any, ...] = type(module).__mro__
    plain = next(kind for kind in kinds if not kind.__module__.startswith("torch.distributed.fsdp"))
    copy: nn.Module = plain.__new__(plain)
    modules[id(module)] = copy
    copy.__dict__ = {**module.__dict__}
    for name in vars(nn.Module()):
        if name.endswith("_hooks"):
            copy.__dict__[name] = type(module.__dict__[name])()
    for p in module._parameters.values():
        if p is not None and id(p) not in parameters:
            parameters[id(p)] = nn.Parameter(whole(p.detach()).clone(), requires_grad=p.requires_grad)
    copy._parameters = {n: None if p is None else parameters[id(p)] for n, p in module._parameters.items()}
    children = module._modules.items()
    copy._modules = {n: None if m is None else _copy(m, modules, parameters) for n, m in children}
    return copy


def _sharded(model: nn.Module) -> Iterator[Any]:
    """Yield the modules that `fully_shard` was applied to."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # it takes seconds to import, and who shards has done so
    for name, module in modules_of(model) if fsdp is not None else ():
        if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
            raise AttachError(
                f"{name or type(model).__name__} is a FullyShardedDataParallel, whose flat parameters have no shapes "
                "to mask: use torch.distributed.fsdp.fully_shard"
            )
        if fsdp is not None and isinstance(module, fsdp.FSDPModule):
            yield module


def _group_of(model: nn.Module) -> Any:
    """Return the processes among which a model is replicated or sharded; None where it is neither."""
    meshes = {parameter.device_mesh for parameter in model.parameters() if hasattr(parameter, "device_mesh")}
    for mesh in meshes:
        if mesh.ndim > 1 and mesh.size() != distributed.get_world_size():
            raise AttachError(
                f"the model is spread over {mesh}, only a part of the {distributed.get_world_size()} processes: give "
                "attach the `group` of those that share its data"
            )
        return mesh.get_group() if mesh.ndim == 1 else distributed.group.WORLD
    replicas = (module for module in model.modules() if isinstance(module, DistributedDataParallel))
    return next((replica.process_group for replica in replicas), None)


def _states(topology: "Topology") -> Mapping[str, str]:
    """Return short texts that are equal exactly where masks, step and random state are."""
    masks = {
        name: hashlib.sha256(f"{tuple(mask.shape)}".encode() + mask.cpu().contiguous().numpy().tobytes()).hexdigest()
        for name, mask in sorted(topology.masks.items())
    }
    rng = hashlib.sha256(topology.rng.get_state().numpy().tobytes()).hexdigest()
    return {**masks, "the step": f"{topology.step}", "the random state": rng}


@contextmanager
def reached(size: int) -> Iterator[None]:
    """Turn what torch says of a process that is gone, one of `size`, into a RankError."""
    try:
        yield
    except RuntimeError as error:
        if size == 1 or not any(word in str(error) for word in _GONE):
            raise
        raise RankError(
            f"one of the {size} processes that train together has ended or cannot be reached; start all of them anew, "
            f"they go on from the last checkpoint ({str(error).splitlines()[0]})"
        ) from error
