"""The seam between a topology and any training loop: the optimizer's own step hooks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast
from weakref import finalize, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from synaptree.core.errors import AttachError, CheckpointError
from synaptree.core.layer import Layer, layers_of, modules_of, unwrapped
from synaptree.core.method import Method, Site, require_method
from synaptree.core.probe import Hook, Probe
from synaptree.core.ranks import Ranks, held, held_part, made_whole, whole
from synaptree.core.rule import Group, Part
from synaptree.core.signal import View
from synaptree.core.topology import Delta, Topology

__all__ = ["Attached", "attach", "forget", "groups_of", "inner_optimizer", "one_pass", "views_of"]

_owners: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Parameter -> weak reference to the Attached that masks it, so that two cannot fight over one."""

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a weight -> the integer of that size."""


def attach(
    model: nn.Module, optimizer: Optimizer, method: Method | None = None, *,
    topology: Topology | None = None, include: Iterable[str] = ("*",), exclude: Iterable[str] = (), seed: int = 0,
    group: Any = None,
) -> "Attached":  # fmt: skip
    """Keep dead weights at 0 through training, and let `method` edit the topology as training goes on.

    Any loop that calls `optimizer.step()` works, also with gradient accumulation, `GradScaler`, fused and
    foreach optimizers. The model itself is not changed: no wrappers, buffers or new names. The optimizer
    keeps what `attach` returns alive.

    Processes that train together, by `DistributedDataParallel` or `fully_shard`, add up what they have seen of the
    data and edit alike; that they hold the same masks is checked after every edit. Attach after wrapping or sharding,
    with the same arguments in all of them. Of a sharded model every process holds all during an edit.

    Args:
        model: the model that is trained.
        optimizer: holds its parameters.
        method: acts after optimizer updates, by its own schedule; None only keeps the masks of `topology`.
        topology: the connections to start from; dense by default.
        include: shell patterns of the module names to act on.
        exclude: likewise; wins over `include`.
        seed: of the topology's random generator.
        group: processes that train together; by default those of the model's wrapper or sharding, else all there are.

    Raises:
        RankError: the processes' topologies differ.
        AttachError: nothing to prune, a method that acts only through `prune` while nothing is pruned yet,
            an optimizer that takes many steps per call, or a parameter that is attached already; then
            nothing is changed.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> topology = Topology()
        >>> topology.add("weight", (1, 3))
        >>> _ = topology.edit({"weight": torch.tensor([[True, False, True]])})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> attached = attach(model, optimizer, topology=topology)
        >>> for _ in range(3):
        ...     model(torch.ones(1, 3)).sum().backward()
        ...     optimizer.step()
        >>> (model.weight == 0).tolist()
        [[False, True, False]]
        >>> attached.finish().step
        3
    """
    require_method(model, method)
    if method is None and topology is None:
        raise AttachError("attach wants a method, a topology whose masks to keep, or both; got neither")
    topology = Topology(seed) if topology is None else topology
    dense = all(bool(mask.all()) for mask in topology.masks.values())
    if method is not None and not method.acts_in_training and dense:
        raise AttachError(
            f"{method!r} acts only through prune, and nothing is pruned yet: call prune(model, method, batches) "
            "and attach with the topology it returns"
        )
    layers, fresh = layers_of(model, method.granularity, include, exclude) if method else (), not topology.masks
    with topology.restored_on_error(*(model.parameters() if fresh and method and method.start else ())):
        if method is not None:
            topology.cover(layers, method.granularity, biases=method.biases)
        attached = Attached(model, optimizer, method, topology, layers, Ranks(model, group))
        try:
            if fresh and method is not None and method.start is not None:
                with torch.no_grad(), attached.whole():
                    method.start(attached)
                attached.ranks.require_equal(topology)
        except BaseException:
            attached.detach()
            raise
        return attached


class Attached:
    """A topology bound to a model and an optimizer; made by `attach`.

    Attributes:
        topology: the connections; owned by whoever reads it, edited here.
        optimizer: torch's own, without what Accelerate puts around it; None once nobody holds it any more.
        last: what the last edit changed, or None.
        ranks: the processes that train together.
        inputs: one sample of what the model was last trained on, for methods with an `edit` of their own.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, method: Method | None, topology: Topology,
        layers: tuple[Layer, ...], ranks: Ranks,
    ) -> None:  # fmt: skip
        self.model, self.method, self.topology, self.layers, self.ranks = model, method, topology, layers, ranks
        ranks.require_equal(topology)
        self._trained = model  # `model` may be a whole copy of it during an edit
        self.last: Delta | None = None
        self._parameters = self._free_parameters()
        self.inputs: list[Tensor] = []
        self._hooks: list[Any] = []
        self._probe = Probe(layers, method.watch if method else {}, training=True)
        finalize(self, _let_go, self._probe, self._hooks)
        self._start_signals()
        self.rebind(optimizer)
        topology.apply(model)
        self._refresh()

    @property
    def optimizer(self) -> Optimizer | None:  # noqa: D102 - see above
        # weak: the optimizer holds this object, and both go at once when nobody holds the optimizer
        return self._optimizer()

    def rebind(self, optimizer: Optimizer) -> None:
        """Follow another optimizer from now on, for instance after a rewind.

        Raises:
            AttachError: the optimizer makes several updates per step (LBFGS), or holds none of the
                masked parameters.
        """
        inner = inner_optimizer(optimizer)
        if isinstance(inner, torch.optim.LBFGS):
            raise AttachError(
                "LBFGS changes weights many times within one step(), out of reach of step hooks; "
                "use an optimizer that makes one update per step"
            )
        trains = {id(p) for group in inner.param_groups for p in group["params"]}
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        if trained and not any(id(p) in trains for p in trained.values()):
            raise AttachError(f"the optimizer holds none of the masked parameters ({', '.join([*trained][:3])}, ...)")
        _let_go(self._probe, self._hooks)
        self._optimizer = ref(inner)
        self._hooks.append(inner.register_step_pre_hook(self._before_step))
        self._hooks.append(inner.register_step_post_hook(self._after_step))
        if self._probe.reductions:
            self._probe.__enter__()
        if self.method is not None and self.method.acts_in_training and self.method.edit is not None:
            self._hooks.append(unwrapped(self.model).register_forward_pre_hook(Hook(partial(_taste, self.inputs))))

    def detach(self) -> None:
        """Let go of the optimizer; the model stays as it is."""
        _let_go(self._probe, self._hooks)
        for parameter in self._parameters.values():
            if _owner(parameter) is self:
                del _owners[parameter]

    def finish(self) -> Topology:
        """Detach, write every dead weight as +0.0, and return the topology."""
        self.detach()
        self.topology.apply(self.model)
        return self.topology

    def state_dict(self) -> dict[str, Any]:
        """Return the topology's state and the method's name and options; the model and optimizer save their own."""
        return {"topology": self.topology.state_dict(), "method": repr(self.method)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, and set dead weights to 0; on an error nothing is changed.

        Raises:
            CheckpointError: it holds no masks, masks of other parameters, or was written under another method.
            ShapeError: the model lacks a parameter that has a mask.
        """
        theirs, ours = state.get("method") or "None", repr(self.method)
        if "None" not in (theirs, ours) and theirs != ours:
            raise CheckpointError(
                f"the checkpoint was written under the method {theirs}, attached is {ours}: attach that method, "
                'or load {"topology": state["topology"]} to go on from its topology with yours'
            )
        with self.topology.restored_on_error():
            self.topology.load_state_dict(state.get("topology", {}))
            self.ranks.require_equal(self.topology)
            self._start_signals()
            self._refresh()
            self.topology.apply(self.model)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let `model` and `layers` be whole where each process holds a part of them, for an edit that looks at all."""
        model, layers = self.model, self.layers
        with made_whole(model) as copy:
            if copy is not model:
                modules = dict(modules_of(copy))
                self.model, self.layers = copy, tuple(replace(la, module=modules[la.name]) for la in layers)
            try:
                yield
            finally:
                self.model, self.layers = model, layers

    def rate(self, layer: Layer) -> float:
        """Return the learning rate of a layer's weight; 0 where the optimizer does not hold it."""
        weight, groups = self._parameters[layer.weight], self.optimizer.param_groups if self.optimizer else []
        return next((float(group["lr"]) for group in groups if any(p is weight for p in group["params"])), 0.0)

    @torch.no_grad()
    def edit(self, masks: Mapping[str, Tensor]) -> Delta:
        """Change the topology now; newborn weights and their optimizer state start at 0, survivors keep theirs."""
        self.last = self.topology.edit(masks)
        self._refresh()
        at_work = dict(self.topology.parameters(self.model))
        for name, born in self.last.born.items():
            if born.any():
                weight = at_work[name]
                held(weight).masked_fill_(held_part(born, weight), 0.0)
                forget(self.optimizer, self._parameters[name], born)
        self.topology.apply(self.model)
        return self.last

    def masks(
        self, layers: Sequence[Layer] | None = None, stats: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Return what the method's rule says of `layers`, all by default; nothing is changed yet."""
        if self.method is None:
            return {}
        # a frozen layer has neither gradients to grow by nor training to recover in
        layers = [la for la in (self.layers if layers is None else layers) if la.module.weight.requires_grad]
        views = self._views("gradient" in self.method.needs, stats)
        return self.method.rule(groups_of(layers, self.method, views, self.topology), self.topology.step)

    @torch.no_grad()
    def _before_step(self, *_: object) -> None:
        if self._version != self.topology.version:  # edited by others, such as `prune`
            before = self._known
            self._refresh()
            for name, mask in self._known.items():
                forget(self.optimizer, self._parameters[name], mask & ~before.get(name, mask))

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - torch's hook
        # a fused optimizer is called on overflow too, and then leaves the weights alone
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and float(overflow) > 0:
            self._probe.take()
            return
        if _rehearsed(optimizer, kwargs):
            return
        self.topology.step += 1
        if self._masked:
            # as integers: infinity and NaN times 0 would be NaN, their bits times 0 are +0.0
            weights = [held(p).view(m.dtype) for p, m in zip(self._masked, self._masks, strict=True)]
            torch._foreach_mul_(weights, self._masks)
        if self.method is not None:
            self._follow(self.method)

    def _follow(self, method: Method) -> None:
        due = method.when(self.topology.step)
        remembering = {name: signal for name, signal in method.signals.items() if signal.update is not None}
        seen = self.ranks.add_up(self._probe.take(), steady=True) if self._probe.reductions else {}
        if self._probe.reductions and not any(seen.values()):
            raise AttachError(
                f"{method!r} watches what flows through layers, and nothing flowed through any before this update: "
                "train in training mode; where torch.compile has compiled the model already, attach and then call "
                "torch.compiler.reset()"
            )
        views = self._views("gradient" in method.needs, seen) if remembering else {}
        for name, signal in remembering.items():
            for parameter, view in views.items():
                key = f"{name}/{parameter}"
                self.topology.state[key] = cast(Any, signal.update)(self.topology.state[key], view)
        if due:
            with self.whole():
                (method.edit or one_pass)(self)
            self.ranks.require_equal(self.topology)

    def _views(self, gradient: bool, stats: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, View]:
        # after the step: a fused optimizer with a GradScaler has unscaled the gradients in place
        grads = {name: whole(p.grad) for name, p in self._parameters.items() if gradient and p.grad is not None}
        return views_of(self.layers, self.topology, grads=grads, stats=stats)

    def _start_signals(self) -> None:
        if self.method is None:
            return
        for parameter, view in self._views(False).items():
            for name, signal in self.method.signals.items():
                if state := signal.init(view):
                    self.topology.state.setdefault(f"{name}/{parameter}", state)

    def _free_parameters(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.topology.parameters(self._trained))
        for name, parameter in parameters.items():
            if _owner(parameter) not in (None, self):
                raise AttachError(
                    f"{name} of shape {tuple(parameter.shape)} is attached already; "
                    "call finish() or detach() on the first attachment, or keep the two apart with include and exclude"
                )
        return parameters

    def _refresh(self) -> None:
        """Derive the integer masks that are multiplied in after every step; wholly alive tensors need none."""
        self._version = self.topology.version
        self._parameters = self._free_parameters()
        self._known = dict(self.topology.masks)
        if self._hooks:
            for parameter in self._parameters.values():
                _owners[parameter] = ref(self)
        # frozen ones too: they may thaw before the next edit
        sparse = [name for name, mask in self.topology.masks.items() if not bool(mask.all())]
        self._masked = [self._parameters[name] for name in sparse]
        # foreach takes its fast path only for tensors of equal shape, type and strides
        masks = [held_part(self.topology.expanded(name), self._parameters[name]) for name in sparse]
        self._masks = [
            torch.empty_like(held(p), dtype=_INTEGER[p.element_size()]).copy_(mask)
            for p, mask in zip(self._masked, masks, strict=True)
        ]


def groups_of(layers: Iterable[Layer], method: Method, views: Mapping[str, View], topology: Topology) -> list[Group]:
    """Return the groups of a rule: the scores of every layer by every signal of `method`."""

    def part(name: str) -> Part:
        state = {key: topology.state.get(f"{key}/{name}", {}) for key in method.signals}
        scores = {key: signal.read(state[key], views[name]) for key, signal in method.signals.items()}
        return Part(name, topology.masks[name], scores)

    def group(layer: Layer) -> Group:
        bias = part(layer.bias) if layer.bias in topology.masks and method.biases else None
        return Group(layer, part(layer.weight), bias, topology.rng)

    return [group(layer) for layer in layers]


def forget(optimizer: Optimizer | None, parameter: nn.Parameter, born: Tensor) -> None:
    """Set the optimizer state of newborn weights of `parameter` to 0; `born` is bool, broadcast over it."""
    for value in optimizer.state.get(parameter, {}).values() if optimizer else ():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            held(value).masked_fill_(held_part(born, value), 0.0)


def one_pass(site: Site) -> None:
    """Edit the topology by one pass of the method's rule over all layers."""
    site.edit(site.masks())


def _rehearsed(optimizer: Optimizer, kwargs: Mapping[str, Any]) -> bool:
    """Say whether torch.distributed.checkpoint made the step, to have an optimizer's state before the first."""
    # it calls step(closure=None), with all rates and gradients 0
    if kwargs != {"closure": None} or any(float(group["lr"]) for group in optimizer.param_groups):
        return False
    grads = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
    return not any(bool(whole(grad).any()) for grad in grads)


def _let_go(probe: Probe, hooks: list[Any]) -> None:
    probe.__exit__()
    while hooks:
        hooks.pop().remove()


def _taste(inputs: list[Tensor], model: nn.Module, given: tuple[Any, ...]) -> None:
    """Keep a sample of what flows into the model."""
    if model.training and given and isinstance(given[0], Tensor) and len(given[0]):
        inputs[:] = [given[0][:1].detach().clone()]  # a view would keep the batch


def views_of(
    layers: Iterable[Layer], topology: Topology, *,
    grads: Mapping[str, Tensor] | None = None, stats: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, View]:  # fmt: skip
    """Return the view of every masked weight and bias of `layers`, by parameter name.

    Args:
        layers: of the model.
        topology: their masks.
        grads: parameter name -> dense gradient.
        stats: layer name -> what probes have seen of it.
    """
    grads, stats, views = grads or {}, stats or {}, {}
    for layer in layers:
        for role, name in (("weight", layer.weight), ("bias", layer.bias)):
            if name in topology.masks:
                weight, mask = whole(getattr(layer.module, role).detach()), topology.masks[name]
                grad, seen = grads.get(name), stats.get(layer.name, {})
                views[name] = View(layer, role, weight, grad, mask, topology.step, topology.rng, seen)
    return views


def _owner(parameter: nn.Parameter) -> Attached | None:
    owner = _owners.get(parameter)
    return None if owner is None else owner()


def inner_optimizer(optimizer: Any) -> Optimizer:
    """Return the torch optimizer inside wrappers such as Accelerate's, whose own hooks never fire."""
    while not hasattr(optimizer, "_optimizer_step_post_hooks") or type(optimizer).__module__.startswith("accelerate"):
        if not hasattr(optimizer, "optimizer"):
            raise AttachError(f"{type(optimizer).__name__} is no torch.optim.Optimizer: it has no step hooks")
        optimizer = optimizer.optimizer
    return cast(Optimizer, optimizer)
