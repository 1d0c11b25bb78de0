"""Golden edits: what a method does to a tiny network, worked out by hand and kept in a TOML file.

A file has two parts. `[training]` holds options with which the method acts within six updates on tiny
networks, and cuts some; `[exempt]` names checks that do not apply, each with the reason. Each `[[edit]]` is
a network, and the masks wanted after one edit:

    [[edit]]
    about = "the two largest of four stay"
    options = { density = 0.5 }             # of the method
    weights.fc1.weight = [[4, 1], [2, 3]]   # 2 axes: linear, 4: convolution; a ReLU between two layers
    masks.fc1.weight = [[1, 0], [0, 1]]     # every mask left out is wanted dense

Optional: `network` ("chain", or "residual": a sum of `conv` and `shortcut`, then `fc`), `inputs` (the
calibration batch, or what flows through in training), `exist` (masks before the edit), `gradients`, `step`
(updates made, that of the edit included), `rate` (of the update's plain SGD, 0 by default) and `seed`. A
kernel's mask is written without the kernel's axes.
"""

import tomllib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synaptree.core.attach import attach
from synaptree.core.errors import DataError, unknown
from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.topology import Topology
from synaptree.graph.shortcut import Shortcut

__all__ = ["Case", "Golden", "golden_path", "read_golden", "replay", "wanted"]

Nested = Mapping[str, Mapping[str, Any]]
"""Module -> parameter -> nested list of numbers."""


@dataclass(frozen=True)
class Case:
    """One golden edit; the fields are the keys of an `[[edit]]`."""

    about: str
    weights: Nested
    masks: Nested
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = "chain"
    inputs: list[Any] | None = None
    exist: Nested = field(default_factory=dict)
    gradients: Nested = field(default_factory=dict)
    step: int = 1
    seed: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class Golden:
    """All golden edits of a method, the options its trials run with, and the checks that do not apply to it."""

    training: Mapping[str, Any] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    exempt: Mapping[str, str] = field(default_factory=dict)


def golden_path(name: str) -> Path | None:
    """Return where the golden edits of the library's own method `name` lie; None for other methods."""
    path = Path(__file__).parent / "golden_edits" / f"{name}.toml"
    return path if path.exists() else None


def read_golden(path: Path) -> Golden:
    """Return the golden edits in `path`.

    Raises:
        DataError: there is no such file, it is no TOML, or an edit has a key nobody knows or lacks one.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        cases = tuple(Case(**edit) for edit in tables.get("edit", ()))
        return Golden(tables.get("training", {}), cases, tables.get("exempt", {}))
    except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
        raise DataError(f"{path} holds no golden edits: {error}; synaptree.testing.golden shows the format") from error


def replay(method: Method, case: Case) -> Topology:
    """Return the topology after the method's edit of the network of `case`.

    Raises:
        OptionError: nobody knows the network.
    """
    if case.network not in _NETWORKS:
        raise unknown("network", case.network, _NETWORKS)
    model = _NETWORKS[case.network](case.weights)
    topology = Topology(case.seed)
    topology.cover(layers_of(model, method.granularity), method.granularity, biases=method.biases)
    topology.edit({name: _mask(values, topology, name) for name, values in _flat(case.exist).items()})
    if method.acts_in_training:
        topology.step = case.step - 1
        _update(model, method, topology, case)
    else:
        topology.step = case.step
        gradients = _gradients(model, case) if "gradient" in method.needs else None
        prune(model, method, _batch(case), topology=topology, gradients=gradients)
    return topology


def wanted(case: Case, topology: Topology) -> dict[str, Tensor]:
    """Return the masks wanted after the edit, in the shapes of those of `topology`."""
    listed = _flat(case.masks)
    for name in listed:
        if name not in topology.masks:
            raise unknown("masked parameter", name, topology.masks)
    dense = {name: torch.ones_like(mask) for name, mask in topology.masks.items()}
    return dense | {name: _mask(values, topology, name) for name, values in listed.items()}


def _update(model: nn.Module, method: Method, topology: Topology, case: Case) -> None:
    """Make one update; at the rate 0 it moves no weight."""
    optimizer = torch.optim.SGD(model.parameters(), lr=case.rate)
    attached = attach(model, optimizer, method, topology=topology)
    if (batch := _batch(case)) is not None:
        model(batch)
    gradients = _gradients(model, case)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]
    optimizer.step()
    attached.finish()


def _batch(case: Case) -> Tensor | None:
    return None if case.inputs is None else torch.tensor(case.inputs).float()


def _gradients(model: nn.Module, case: Case) -> dict[str, Tensor]:
    given = {name: torch.tensor(values).float() for name, values in _flat(case.gradients).items()}
    return {name: given.get(name, torch.zeros_like(p)) for name, p in model.named_parameters()}


def _flat(nested: Nested) -> dict[str, Any]:
    return {f"{module}.{key}": value for module, parameters in nested.items() for key, value in parameters.items()}


def _mask(values: Any, topology: Topology, name: str) -> Tensor:
    return torch.tensor(values).bool().view(topology.masks[name].shape)


def _layer(parameters: Mapping[str, Any]) -> nn.Module:
    """Return the linear layer or convolution that has these parameters."""
    tensors = {key: torch.tensor(values).float() for key, values in parameters.items()}
    (units, inputs, *kernel), bias = tensors["weight"].shape, "bias" in tensors
    layer = nn.Conv2d(inputs, units, (kernel[0], kernel[1]), bias=bias) if kernel else nn.Linear(inputs, units, bias)
    layer.load_state_dict(tensors)
    return layer


def _chain(weights: Nested) -> nn.Module:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, parameters in weights.items():
        layer = _layer(parameters)
        if modules:
            modules[f"{name}_relu"] = nn.ReLU()
        if isinstance(layer, nn.Linear):
            modules[f"{name}_flatten"] = nn.Flatten()
        modules[name] = layer
    return nn.Sequential(modules)


class _Residual(nn.Module):
    def __init__(self, weights: Nested) -> None:
        super().__init__()
        self.conv, self.fc = _layer(weights["conv"]), _layer(weights["fc"])
        self.shortcut = Shortcut(len(weights["conv"]["weight"]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc((self.conv(x) + self.shortcut(x)).flatten(1))
        return y


_NETWORKS = {"chain": _chain, "residual": _Residual}
