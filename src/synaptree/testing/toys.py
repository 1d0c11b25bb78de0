"""The smallest networks, data whose sums are exact in float32, and a method at work on them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from synaptree.core.attach import Attached, attach
from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.topology import Topology
from synaptree.graph.shortcut import Shortcut
from synaptree.signals.gradients import mean_gradients

__all__ = [
    "CONVOLUTIONAL", "DENSE", "ONE_ROW", "RESIDUAL", "STEPS", "TIED",
    "Edit", "Snapshot", "Toy", "Trial", "dyadic",
]  # fmt: skip

STEPS = 6
"""Updates of a trial; a method that acts in training must act among them."""

_PRUNE_EVERY = 3  # updates; what acts outside training is asked twice within a trial
_SAMPLES = 4
_SGD = partial(torch.optim.SGD, lr=0.25)


def dyadic(*shape: int) -> Tensor:
    """Return quarters from -1.25 to 1.25 in a fixed jumble: their sums and products are exact in float32.

    >>> dyadic(2, 3)
    tensor([[-1.2500,  0.5000, -0.5000],
            [ 1.2500,  0.2500, -0.7500]])
    """
    return ((torch.arange(torch.Size(shape).numel()) * 7 % 11 - 5) / 4).view(shape)


def _signs(*shape: int) -> Tensor:
    return ((torch.arange(torch.Size(shape).numel()) * 5 % 7) % 3 - 1.0).view(shape)


@dataclass(frozen=True)
class Toy:
    """A tiny network with a batch of data.

    Its loss is linear in the outputs: no weight is multiplied by itself in a gradient, so that a few
    updates of two-layer networks stay exact, in whatever order the gradients are summed.

    Args:
        name: says what is special about it.
        kinds: of its layers.
        make: makes the network.
        sample: shape of one input.
        outputs: numbers per sample.
    """

    name: str
    kinds: frozenset[str]
    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    outputs: int

    def model(self) -> nn.Module:
        """Return the network with dyadic weights, the same at each call."""
        with torch.random.fork_rng(devices=[]):
            model = self.make()
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                for parameter in module.parameters(recurse=False):
                    parameter.data = dyadic(*parameter.shape)
        return model

    @property
    def inputs(self) -> Tensor:
        """A batch of shape `(4, *sample)`, of -1, 0 and 1."""
        return _signs(_SAMPLES, *self.sample)

    @property
    def targets(self) -> Tensor:
        """What the outputs are multiplied by in the loss: `(4, outputs)`, of -1, 0 and 1."""
        return _signs(_SAMPLES, self.outputs).flip(0)


class _Tied(nn.Module):
    """Two layers, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y


class _Residual(nn.Module):
    """A stem, a block with a batch norm and a shortcut, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 1)
        self.conv, self.norm, self.shortcut = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2), Shortcut(2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.norm(self.conv(x)) + self.shortcut(x)
        y: Tensor = self.head(x.relu().flatten(1))
        return y


_LINEAR, _BOTH = frozenset({"linear"}), frozenset({"linear", "conv"})

DENSE = Toy("dense", _LINEAR, lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (4,), 2)
CONVOLUTIONAL = Toy(
    "convolutional", _BOTH,
    lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (2, 3, 3), 2,
)  # fmt: skip
RESIDUAL = Toy("residual", _BOTH, _Residual, (1, 2, 2), 2)
ONE_ROW = Toy("one row", _LINEAR, lambda: nn.Sequential(nn.Linear(3, 1)), (3,), 1)
TIED = Toy("tied", _LINEAR, _Tied, (3,), 3)


class Snapshot(NamedTuple):
    """Copies of a network's masks, masked weights and optimizer state, each by parameter name."""

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]


class Edit(NamedTuple):
    """One edit: the step it fell on, and the network before and after."""

    step: int
    before: Snapshot
    after: Snapshot

    def changes(self) -> bool:
        """Return whether a mask is another one than before."""
        return any(not torch.equal(mask, self.after.masks[name]) for name, mask in self.before.masks.items())


class Trial:
    """A method at work on a toy: attached if it acts in training, else asked to prune before every third update.

    Args:
        method: the method.
        toy: network and data.
        optimizer: makes one from parameters; plain SGD with a dyadic rate, which keeps sums exact.
        model: in place of the toy's own, for instance in another precision.
        topology: to start from; dense by default.

    Attributes:
        edits: made so far.
        updates: made so far.
    """

    def __init__(
        self,
        method: Method,
        toy: Toy,
        *,
        optimizer: Callable[..., Optimizer] = _SGD,
        model: nn.Module | None = None,
        topology: Topology | None = None,
    ) -> None:
        self.method, self.toy = method, toy
        self.model = toy.model() if model is None else model
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.inputs, self.targets = toy.inputs.to(trained[0].dtype), toy.targets.to(trained[0].dtype)
        self.optimizer = optimizer(trained)
        self.topology = Topology(seed=0) if topology is None else topology
        self.edits: list[Edit] = []
        self.updates = 0
        # registered before attach's own hook, so that it sees the network just before an edit
        self._hook = self.optimizer.register_step_post_hook(self._look)
        self._seen = Snapshot({}, {}, {})
        self.attached: Attached | None = None
        if method.acts_in_training:
            self.attached = attach(self.model, self.optimizer, method, topology=self.topology)

    def run(self, steps: int = STEPS, parts: int = 1) -> "Trial":
        """Make updates, each from the gradients of `parts` equal pieces of the batch, until there are `steps`."""
        for _ in self.develop(steps, parts):
            pass
        return self

    def develop(self, steps: int = STEPS, parts: int = 1) -> Iterator[None]:
        """Make the updates of `run`; pause after each edit outside training and after each update."""
        while self.updates < steps:
            if not self.method.acts_in_training and self.updates % _PRUNE_EVERY == 0:
                self._prune(parts)
                yield
                self._keep()
            self.optimizer.zero_grad()
            for x, targets in zip(self.inputs.chunk(parts), self.targets.chunk(parts), strict=True):
                self.loss(x, targets).backward()
            self.update(self.optimizer.step)
            yield

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of `outputs * targets`, a scalar."""
        loss: Tensor = (self.model(x) * targets).sum()
        return loss

    def _mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * targets).sum() / len(targets)

    def update(self, step: Callable[[], object]) -> None:
        """Make one update by calling `step`, and note the edit that comes with it."""
        last = self.attached.last if self.attached else None
        step()
        self.updates += 1
        if self.attached and self.attached.last is not last:
            self.edits.append(Edit(self.topology.step, self._seen, self.snapshot()))

    def snapshot(self) -> Snapshot:
        """Return a copy of the present state."""
        parameters = dict(self.topology.parameters(self.model))
        state = self.optimizer.state
        return Snapshot(
            {name: mask.clone() for name, mask in self.topology.masks.items()},
            {name: parameter.detach().clone() for name, parameter in parameters.items()},
            {
                name: {key: value.clone() for key, value in state.get(p, {}).items() if isinstance(value, Tensor)}
                for name, p in parameters.items()
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "topology": self.topology.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        if self.attached:
            self.attached.load_state_dict({"topology": state["topology"]})
        else:
            self.topology.load_state_dict(state["topology"])
            self._keep()

    def finish(self) -> None:
        """Let go of model and optimizer."""
        self._hook.remove()
        if self.attached:
            self.attached.finish()

    def _prune(self, parts: int) -> None:
        if self.attached:
            self.attached.finish()
        granularity = self.method.granularity
        self.topology.cover(layers_of(self.model, granularity), granularity, biases=self.method.biases)
        before = self.snapshot()
        pairs = list(zip(self.inputs.chunk(parts), self.targets.chunk(parts), strict=True))
        gradients = mean_gradients(self.model, pairs, self._mean_loss) if "gradient" in self.method.needs else None
        prune(self.model, self.method, pairs, topology=self.topology, gradients=gradients)
        self.edits.append(Edit(self.topology.step, before, self.snapshot()))

    def _keep(self) -> None:
        """Hold on to the masks while training goes on."""
        self.attached = attach(self.model, self.optimizer, topology=self.topology)

    def _look(self, *_: object) -> None:
        self._seen = self.snapshot()
