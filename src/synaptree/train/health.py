"""Health: what goes wrong in a sparse network without an error, found cheaply and said once."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from synaptree.core.attach import inner_optimizer
from synaptree.core.errors import OptionError
from synaptree.core.layer import layers_of, parameters_of, unwrapped
from synaptree.core.method import Method
from synaptree.core.ranks import made_whole
from synaptree.core.schedule import as_schedule
from synaptree.core.topology import Topology
from synaptree.graph.flow import needed
from synaptree.graph.node import Graph, GraphError, Node
from synaptree.graph.read import read
from synaptree.rules.allocate import Room, Table
from synaptree.rules.density import Density
from synaptree.rules.replace import Replace
from synaptree.rules.structure import Weights

if TYPE_CHECKING:
    from synaptree.train.network import Network
    from synaptree.train.programme import Surroundings

__all__ = ["Finding", "Guard", "Kind", "Limits", "check"]

Kind = Literal["collapse", "blocked", "dead_units", "density", "not_zero", "not_finite", "untrained"]

UPDATES_APART = 100  # between two checks within an epoch: a method may edit after every update


@dataclass(frozen=True)
class Limits:
    """From where on something is said.

    Attributes:
        dead_units: share in [0, 1] of a layer's units without inputs; more of them are said.
        density: share in [0, 1] of the density a method asks for; a larger difference from it is said.

    Raises:
        OptionError: a limit lies outside [0, 1].
    """

    dead_units: float = 0.9
    density: float = 0.05

    def __post_init__(self) -> None:
        for name, value in (("dead_units", self.dead_units), ("density", self.density)):
            if not 0 <= value <= 1:
                raise OptionError(f"health limit {name} = {value!r}: wanted a share from 0 to 1")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: what: "collapse", a layer has lost all connections; "blocked", nothing flows from the input to the
            output; "dead_units", too many units without inputs; "density", another than the method asks for;
            "not_zero", dead weights that are not 0; "not_finite", NaN or infinity; "untrained", connections
            that no optimizer holds.
        where: name of the layer or parameter, or "network".
        shape: of its weight; `()` for the network.
        numbers: the figures in the sentence, by name.
        step: at which it was found.
        text: the sentence, with what to do.
    """

    kind: Kind
    where: str
    shape: tuple[int, ...]
    numbers: Mapping[str, float] = field(compare=False)
    step: int = field(compare=False)
    text: str = field(compare=False)

    def __str__(self) -> str:
        return f"step {self.step}: {self.text}"


@torch.no_grad()
def check(
    model: nn.Module, topology: Topology, *, method: Method | None = None, exclude: Iterable[str] = (),
    optimizer: Optimizer | None = None, graph: Graph | None = None, limits: Limits | None = None,
    step: int | None = None,
) -> list[Finding]:  # fmt: skip
    """Return what is wrong with a sparse network; nothing is changed.

    Args:
        model: as it is trained; wrappers of data parallelism and `torch.compile` are looked through.
        topology: its connections.
        method: what edits the topology; with a density of its own, that density is compared. Leave it out
            where somebody else has edited since.
        exclude: patterns of layer names the method leaves alone.
        optimizer: what trains the model; by it connections that nobody trains are found.
        graph: of the model, `graph.read.read(model, example)`; by it a network is found through which nothing
            flows although every layer has connections. Without it, layers are looked at one by one.
        limits: from where on something is said; see `Limits`.
        step: what findings say as their step; the topology's by default.

    Returns:
        The findings, layer by layer; an empty list for a network that is well.

    Raises:
        ShapeError: the topology is not that of the model.

    Example:
        >>> from synaptree import prune
        >>> from synaptree.methods import magnitude
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> topology = prune(model, magnitude(density=0.5))
        >>> check(model, topology)
        []
        >>> _ = nn.init.ones_(model[0].weight)  # somebody writes weights that do not exist
        >>> [finding.kind for finding in check(model, topology)]
        ['not_zero']
    """
    limits = limits or Limits()
    with made_whole(model) as whole:
        found = [
            *_lost(topology, limits), *_flow(graph, topology), *_density(whole, topology, method, exclude, limits),
            *_written(whole, topology), *_infinite(whole), *_untrained(model, topology, optimizer),
        ]  # fmt: skip
    at = topology.step if step is None else step
    return [Finding(kind, where, shape, numbers, at, text) for kind, where, shape, numbers, text in found]


_Found = tuple[Kind, str, tuple[int, ...], dict[str, float], str]


def _lost(topology: Topology, limits: Limits) -> Iterator[_Found]:
    """Layers without connections, and layers most of whose units have none."""
    for name, mask in topology.masks.items():
        shape = topology.shapes[name]
        if len(shape) < 2:
            continue
        layer, unit = _layer(name), "filters" if len(shape) > 2 else "units"
        fed = _fed(mask)
        dead, units, size = int((~fed).sum()), len(fed), mask.numel()
        if dead == units:
            yield "collapse", layer, shape, {"connections": size}, (
                f"{layer} of shape {shape} has lost all {size:,} connections, no one of its {units} {unit} is live: "
                "what comes after it sees constants; keep more there (a higher density, allocate = 'erdos_renyi'), "
                "or leave it out with exclude"
            )
        elif size > units and dead > limits.dead_units * units:  # where a connection is a unit, that is the density
            yield "dead_units", layer, shape, {"dead": dead, "units": units, "limit": limits.dead_units}, (
                f"{layer} of shape {shape}: {dead} of {units} {unit} have no inputs ({dead / units:.1%}, said above "
                f"{limits.dead_units:.1%}); if that is meant, compaction removes them, else keep more connections "
                "there or let them grow"
            )


def _flow(graph: Graph | None, topology: Topology) -> Iterator[_Found]:
    """Say where the way from the input to the output ends, unless a layer without connections says it already."""
    if graph is None or not topology.masks:
        return
    masks, read_units = topology.masks, needed(graph, topology.masks)
    first = _first_layers(graph)
    if first is None or any(_passes(graph, node, masks, read_units) for node in first):
        return
    ends = [node for node in graph.nodes if _ends(graph, node, masks, read_units)]
    if not ends or not all(masks[_parameter(node)].any() for node in ends):
        return
    layer, name = str(ends[-1].module), _parameter(ends[-1])
    alive, units = int(masks[name].sum()), int(read_units[layer].sum())
    yield "blocked", layer, topology.shapes[name], {"alive": alive, "read": units}, (
        f"nothing flows from the input to the output: {layer} of shape {topology.shapes[name]} has {alive:,} "
        f"connections, and none leads to one of its {units} units that are still read; the outputs are constants. "
        "Keep more connections in this layer and the one after it"
    )


def _ends(graph: Graph, node: Node, masks: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Return whether what is read of a layer has no connections, so that demand ends there."""
    units = wanted.get(str(node.module))
    return units is not None and bool(units.any()) and not _passes(graph, node, masks, wanted)


def _first_layers(graph: Graph) -> list[Node] | None:
    """Return the layers and shortcuts that read the input itself, or None where it reaches the output without any."""
    reached: set[str] = set()
    first = []
    for node in graph.nodes:
        if node.op != "input" and not reached.intersection(node.inputs):
            continue
        if node.op == "output":
            return None
        if node.is_layer or node.op == "shortcut":
            first.append(node)
        else:
            reached.add(node.name)
    return first


def _passes(graph: Graph, node: Node, masks: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Return whether a layer has a connection to a unit that is still read."""
    units, mask = wanted.get(str(node.module)), masks.get(_parameter(node))
    if units is None or mask is None or isinstance(graph.module(str(node.module)), _ConvTransposeNd):
        return units is not None and bool(units.any())
    return bool(_fed(mask).cpu()[units].any())


def _fed(mask: Tensor) -> Tensor:
    """Return which units have a connection: bool `(out,)`."""
    if mask.dim() < 2 or not mask.numel():
        return mask.flatten(1).any(1) if mask.dim() > 1 else mask
    return mask.flatten(1).view(torch.uint8).amax(1).bool()  # 20 times as fast as `any`


def _parameter(node: Node) -> str:
    return f"{node.module}.{'scale' if node.op == 'shortcut' else 'weight'}"


def _density(
    model: nn.Module, topology: Topology, method: Method | None, exclude: Iterable[str], limits: Limits
) -> Iterator[_Found]:
    """Compare the density of the connections a method acts on with the one it asks for."""
    if method is None or not isinstance(method.rule, Density | Replace):
        return
    layers = [
        layer for layer in layers_of(model, method.granularity, exclude=exclude)
        if layer.weight in topology.masks and (layer.module.weight.requires_grad or not method.acts_in_training)
    ]  # fmt: skip
    rooms = [
        Room(layer.weight, topology.shapes[layer.weight], topology.masks[layer.weight].numel(), torch.empty(0))
        for layer in layers
    ]
    size = sum(room.connections for room in rooms)
    has = sum(int(topology.masks[room.name].sum()) for room in rooms)
    asked = _asked(method, rooms, topology.step)
    if not size or asked is None or _near(has, asked, size, method, limits):
        return
    if method.acts_in_training:  # between two edits the density is that of the last
        edit = next((step for step in range(topology.step, 0, -1) if method.when(step)), None)
        asked = None if edit is None else _asked(method, rooms, edit)
        if asked is None or _near(has, asked, size, method, limits):
            return
    yield "density", "network", (), {"density": has / size, "asked": asked, "connections": size}, (
        f"{has / size:.4f} of the {size:,} connections {method.name or 'the method'} acts on exist, it asks for "
        f"{asked:.4f} (said beyond {limits.density:.1%} of that): somebody else edits the topology, or the method "
        "cannot grow what is missing; let one of them edit, or start from a new topology"
    )


def _asked(method: Method, rooms: list[Room], step: int) -> float | None:
    """Return the share of the connections that a method asks for at a step, or None where it asks for none."""
    rule = method.rule
    if isinstance(rule, Replace):  # it keeps the number the method's start has made
        return method.options.get("density")
    if not isinstance(rule, Density) or rule.of_remaining:
        return None
    target = float(as_schedule(rule.target)(step))
    if not isinstance(rule.allocate, Table) or not rooms:
        return target
    return sum(rule.allocate(target, rooms)) / sum(room.connections for room in rooms)


def _near(has: int, asked: float, size: int, method: Method, limits: Limits) -> bool:
    """Return whether a number of connections is what was asked for, to one connection and the tolerance."""
    over = has - asked * size
    if isinstance(method.rule, Density) and not isinstance(method.rule.structure, Weights):
        over = max(0.0, over)  # a structure may keep fewer
    return abs(over) <= 1 + limits.density * asked * size


def _written(model: nn.Module, topology: Topology) -> Iterator[_Found]:
    for name, parameter in topology.parameters(model):
        mask = topology.masks[name]
        written = (parameter != 0).logical_and_(~mask).view(torch.uint8)
        if written.numel() and bool(written.amax()):
            wrong = int(written.sum())
            dead = parameter.numel() - int(topology.expanded(name).sum())
            yield "not_zero", name, topology.shapes[name], {"not_zero": wrong, "dead": dead}, (
                f"{name} of shape {topology.shapes[name]}: {wrong:,} of {dead:,} dead weights are not 0: something "
                "wrote them past the optimizer's step; call topology.apply(model) after it has"
            )


def _infinite(model: nn.Module) -> Iterator[_Found]:
    buffers = {name: buffer for name, buffer in unwrapped(model).named_buffers() if buffer.is_floating_point()}
    for name, parameter in {**parameters_of(model), **buffers}.items():
        if bool(parameter.sum().isfinite()) or (wrong := int((~parameter.isfinite()).sum())) == 0:
            continue
        shape = tuple(parameter.shape)
        yield "not_finite", name, shape, {"not_finite": wrong, "weights": parameter.numel()}, (
            f"{name} of shape {shape}: {wrong:,} of {parameter.numel():,} numbers are NaN or infinite; go back to the "
            "last checkpoint that was well, and train with a smaller lr or clipped gradients"
        )


def _untrained(model: nn.Module, topology: Topology, optimizer: Optimizer | None) -> Iterator[_Found]:
    if optimizer is None:
        return
    held = {id(p) for group in inner_optimizer(optimizer).param_groups for p in group["params"]}
    for name, parameter in topology.parameters(model):
        if parameter.requires_grad and id(parameter) not in held:  # a frozen one is left alone on purpose
            alive = int(topology.expanded(name).sum())
            yield "untrained", name, topology.shapes[name], {"connections": alive}, (
                f"{name} of shape {topology.shapes[name]}: the optimizer does not hold it, so its {alive:,} existing "
                "weights are never trained; give it to the optimizer, or freeze it with requires_grad_(False)"
            )


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


class Guard:
    """Checks a network while it develops and writes each finding into the log once, with when it came and went.

    Args:
        limits: from where on something is said; None says nothing at all.

    What it has found so far stands in the log alone, so that an interrupted run goes on without saying it again.
    """

    def __init__(self, limits: Limits | None = Limits()) -> None:
        self.limits = limits
        self._modules: list[nn.Module] = []
        self._graph: Graph | None = None

    def look(
        self, network: "Network", around: "Surroundings", stage: str, method: Method | None = None,
        exclude: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """Check the network and bring the log's list "health" up to date.

        Args:
            network: as it stands.
            around: has the data and the log.
            stage: name of the stage at work.
            method: what has edited last and keeps a density of its own, if any.
            exclude: patterns of layer names it leaves alone.
        """
        if self.limits is None:
            return
        found = check(
            network.model, network.topology, method=method, exclude=exclude, optimizer=network.optimizer,
            graph=self._read(network, around), limits=self.limits, step=network.step,
        )  # fmt: skip
        _enter(found, around.log.setdefault("health", []), network, stage)

    def mark(
        self, network: "Network", around: "Surroundings", stage: str, method: Method | None = None,
        exclude: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """Look while training goes on; the network remembers, also in a checkpoint, which edits have been seen."""
        network.within |= {"edits": _edits(network), "looked": network.step}
        self.look(network, around, stage, method, exclude)

    def after_update(
        self, network: "Network", around: "Surroundings", stage: str, method: Method | None = None,
        exclude: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """Look if the topology has been edited since the last time, at most once in 100 updates."""
        edited = network.within.get("edits") != _edits(network)
        if edited and network.step - network.within.get("looked", -UPDATES_APART) >= UPDATES_APART:
            self.mark(network, around, stage, method, exclude)

    def _read(self, network: "Network", around: "Surroundings") -> Graph | None:
        """Return the graph of a model, read anew where its modules are others; None where none is needed or read."""
        if all(bool(_fed(mask).all()) for mask in network.topology.masks.values()):
            return None  # as long as every unit has inputs, there is a way back from every output
        model = unwrapped(network.model)
        modules = list(model.modules())
        if len(modules) != len(self._modules) or any(a is not b for a, b in zip(modules, self._modules, strict=True)):
            self._modules, self._graph = modules, None
            device = next(model.parameters()).device
            try:
                self._graph = read(model, around.data.normalise(around.data.validation.x[:2]).to(device))
            except GraphError:
                self._graph = None  # layers are looked at one by one
        return self._graph


def _edits(network: "Network") -> int:
    """Return a number that changes with every edit; unlike the topology's version it survives a checkpoint."""
    return network.topology.born + network.topology.died


def _enter(found: list[Finding], log: list[dict[str, Any]], network: "Network", stage: str) -> None:
    """Bring a log up to date: what has gone ends here, what is back in the same round goes on, the rest is new."""
    now = {(finding.kind, finding.where): finding for finding in found}
    for entry in log:
        key = entry["kind"], entry["where"]
        if key in now and (entry["until"] is None or entry["round"] == network.round):
            entry["until"] = None
            del now[key]
        elif entry["until"] is None:
            entry["until"] = network.step
    log.extend({
        "kind": finding.kind, "where": finding.where, "text": finding.text, "stage": stage, "round": network.round,
        "epoch": network.epoch, "step": finding.step, "until": None,
    } for finding in now.values())  # fmt: skip
