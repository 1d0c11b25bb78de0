"""Sparse networks as training leaves them, and which of their units carry anything."""

from copy import deepcopy

import torch
from torch import nn

from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.graph.shortcut import Shortcut


def sparse(model, density, seed=0, conv="kernel"):
    """A topology with random connections, applied to the model, whose signals stay as large as they were."""
    rng = torch.Generator().manual_seed(seed)
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": conv})
    topology.edit({name: torch.rand(mask.shape, generator=rng) < density for name, mask in topology.masks.items()})
    topology.apply(model)
    for layer in layers_of(model):
        layer.module.weight.data /= density**0.5
    return topology


def lived_in(model, seed=0):
    """Give biases and batch norms values as training leaves them."""
    rng = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.dim() == 1 and value.is_floating_point() and not name.endswith("scale"):
            value.data = 0.2 * torch.randn(value.shape, generator=rng)
            if name.endswith(("running_var", ".weight")):
                value.data = value.data.abs() + 0.8
    return model


def settled(model, x):
    """Give batch norms the statistics of random inputs of this shape, so that signals reach the output."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(2)))
    return model


def without_constants(model):
    """Let units that nothing feeds give 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def size(model):
    return sum(p.numel() for p in model.parameters())


def carried(model, topology, x):
    """Return for every module with one tensor out which channels paths from the input to the output run through.

    Counted, not read off a graph: with 1 for every connection, 0 for every bias and inputs of 1, a channel's value
    is the number of paths from the input, and the gradient of the output that of the paths to the output.
    """
    counts = deepcopy(model).eval().double()
    for module in counts.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    without_constants(counts)
    with torch.no_grad():
        for name, parameter in topology.parameters(counts):
            parameter.copy_(topology.masks[name].expand(parameter.shape))
    values = {}

    def keep(name):
        def hook(_, __, value):
            value.retain_grad()
            values[name] = value
        return hook

    for name, module in counts.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ReLU | Shortcut):
            module.register_forward_hook(keep(name))
    counts(torch.ones_like(x, dtype=torch.float64)).sum().backward()
    return {
        name: (value.transpose(0, 1).flatten(1) > 0).any(1) & (value.grad.transpose(0, 1).flatten(1) > 0).any(1)
        for name, value in values.items()
    }
