"""A network of 18 weights, and what is done to it in the tests of attach."""

from functools import partial

import torch
from torch import nn

from synaptree.core.layer import layers_of
from synaptree.core.method import Method
from synaptree.core.signal import gradient, magnitude
from synaptree.core.topology import Topology
from synaptree.rules.density import Density

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def half(model):
    """Return a topology of every second weight."""
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "weight"})
    topology.edit({name: torch.arange(mask.numel()).view(mask.shape) % 2 == 0 for name, mask in topology.masks.items()})
    return topology


def train(model, optimizer, updates=1, parts=1):
    dtype = model[0].weight.dtype
    for _ in range(updates):
        optimizer.zero_grad()
        for _ in range(parts):
            (model(torch.randn(8, 4).to(dtype)) - torch.randn(8, 2).to(dtype)).square().sum().backward()
        optimizer.step()


def exchange(when, grow=gradient):
    """Return a method at density 0.5 that drops and grows half of the connections."""
    return Method(Density(0.5, grow="grow", turnover=0.5), {"keep": magnitude, "grow": grow}, when)


def dead(model, topology):
    return torch.cat([parameter[~topology.expanded(name)] for name, parameter in topology.parameters(model)])


def alive(model, topology):
    return torch.cat([parameter[topology.expanded(name)] for name, parameter in topology.parameters(model)])
