from copy import deepcopy

import pytest
import torch
from sparse_network import carried, lived_in, settled, size, sparse, without_constants
from torch import nn

from synaptree.surgery.compact import compact
from synaptree.train.zoo import MODELS, build

OPTIONS = {"mlp": {"inputs": 20, "hidden": (12, 8)}, "vgg_small": {"width": 8}}
SHAPES = {"mlp": (20,), "vgg_small": (3, 16, 16), "resnet20": (3, 8, 8)}
FAST = ("mlp", "lenet_300_100", "lenet5", "vgg_small", "resnet20")
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def made(name, density, conv, change):
    """Return a network of the zoo, its topology and a batch of two."""
    model = change(build(name, **OPTIONS.get(name, {})))
    x = torch.randn(2, *SHAPES.get(name, MODELS[name].input_shape), generator=torch.Generator().manual_seed(1))
    return model, sparse(model, density, conv=conv), x


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("conv", ["kernel", "weight"])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_the_zoo_computes_the_same_when_compacted(name, conv, density):
    model, topology, x = made(name, density, conv, lived_in)
    settled(model, x)
    before = deepcopy(model.state_dict())
    small = compact(model, x, topology=topology)
    fresh = torch.randn(3, *x.shape[1:])
    with torch.no_grad():
        wanted, got = model.eval()(fresh), small.model.eval()(fresh)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert small.plan.notes == ()
    assert type(small.model) is type(model)
    assert bool(small.plan.removed) == (size(small.model) < size(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [name for name, _ in small.topology.parameters(small.model)] == list(topology.masks)


@pytest.mark.parametrize("conv", ["kernel", "weight"])
@pytest.mark.parametrize(("name", "density"), [
    *((name, density) for name in FAST for density in (0.1, 0.02)),
    *(pytest.param(name, 0.02, marks=pytest.mark.slow) for name in MODELS if name not in FAST),
])  # fmt: skip
def test_every_unit_that_no_path_runs_through_goes(name, density, conv):
    model, topology, x = made(name, density, conv, without_constants)
    small = compact(model, x, topology=topology).model
    paths = carried(model, topology, x)
    for layer, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or layer == last(model):
            continue
        narrow = small.get_submodule(layer)
        width = narrow.out_features if isinstance(module, nn.Linear) else narrow.out_channels
        if name.startswith("resnet") and ".conv1" not in layer:
            assert width >= int(paths[layer].sum())  # joined with others in a sum
        else:
            assert width == max(1, int(paths[layer].sum())), layer


def last(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


@pytest.mark.parametrize("density", [0.15, 0.05])
def test_a_channel_of_a_residual_stage_goes_where_no_sum_of_it_carries_anything(density):
    model, topology, x = made("resnet20", density, "kernel", without_constants)
    # an option A shortcut joins channel k with k + 8 of 32 and k + 24 of 64
    paths, alive = carried(model, topology, x), torch.zeros(64, dtype=torch.bool)
    for name, some in paths.items():
        if name == "relu1" or name.endswith("relu2"):
            start = (64 - len(some)) // 2
            alive[start : start + len(some)] |= some
    small = compact(model, x, topology=topology).model
    widths = [int(alive[start:64 - start].sum()) for start in (24, 16, 0)]
    assert [small.get_submodule(f"stage{stage}.block3.conv2").out_channels for stage in (1, 2, 3)] == widths
    assert small.conv1.out_channels == widths[0]
    assert small.fc.in_features == widths[2]
