import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synaptree.core.errors import OptionError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.rules.allocate import ErdosRenyi, Uniform
from synaptree.rules.seed import draw_weights, seed_masks


def topology(*shapes, granularity="weight"):
    made = Topology(seed=0)
    for i, shape in enumerate(shapes):
        made.add(f"{i}.weight", shape, granularity)
    return made


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), density=st.floats(0, 1))
def test_a_seed_has_its_count_and_an_input_for_each_unit(rows, columns, density):
    mask = seed_masks(topology((rows, columns)), ["0.weight"], density, Uniform())["0.weight"]
    assert int(mask.sum()) == max(rows, round(density * rows * columns))
    assert mask.any(1).all()


def test_small_layers_of_an_erdos_renyi_seed_are_denser():
    # densities in proportion to (10 + 40) / 400 = 0.125 and (10 + 10) / 100 = 0.2: shares 50 and 20 of 0.14 * 500 = 70
    masks = seed_masks(topology((10, 40), (10, 10)), ["0.weight", "1.weight"], 0.14, ErdosRenyi())
    assert [int(mask.sum()) for mask in masks.values()] == [50, 20]


def test_inputs_of_a_seed_are_spread_evenly():
    made = topology((5, 8))
    counts = sum(seed_masks(made, ["0.weight"], 0.25, Uniform())["0.weight"].int() for _ in range(2000))
    # 10 of 40 places each time: 500 +- 19; five deviations
    assert ((counts - 500).abs() < 100).all()


def test_masks_that_are_not_named_and_the_topology_stay_as_they_are():
    made = topology((4, 4), (4, 4))
    assert list(seed_masks(made, ["1.weight"], 0.5, Uniform())) == ["1.weight"]
    assert made.density() == 1.0


def test_a_seed_above_the_capacity_is_refused_before_anything_is_drawn():
    made, fresh = topology((3, 4)), Topology(seed=0)
    with pytest.raises(OptionError, match=r"takes 3 of the 12 places of 0\.weight, .* = 0\.2: raise capacity to 0\.25"):
        seed_masks(made, ["0.weight"], 0.1, Uniform(), capacity=0.2)
    assert torch.equal(made.rng.get_state(), fresh.rng.get_state())
    assert int(seed_masks(made, ["0.weight"], 0.1, Uniform(), capacity=0.25)["0.weight"].sum()) == 3


def test_weights_are_drawn_by_the_inputs_that_exist():
    model = nn.Linear(2000, 2)
    mask = torch.ones(2, 2000, dtype=torch.bool)
    mask[1, 500:] = False
    draw_weights(layers_of(model)[0], mask, torch.Generator().manual_seed(0))
    weight = model.weight.detach()
    # standard deviations sqrt(2 / 2000) and sqrt(2 / 500)
    assert float(weight[0].std()) == pytest.approx(0.0316, rel=0.1)
    assert float(weight[1, :500].std()) == pytest.approx(0.0632, rel=0.1)
    assert not weight[1, 500:].any()
    assert not model.bias.any()


def test_a_kernel_counts_as_its_weights():
    model = nn.Conv2d(100, 1, 5, bias=False)
    made = topology((1, 100, 5, 5), granularity="kernel")
    made.edit(seed_masks(made, ["0.weight"], 0.4, Uniform()))
    draw_weights(layers_of(model)[0], made.expanded("0.weight"), made.rng)
    # 40 kernels of 25 weights: sqrt(2 / 1000)
    alive = model.weight.detach()[made.expanded("0.weight")]
    assert len(alive) == int((model.weight != 0).sum()) == 1000
    assert float(alive.std()) == pytest.approx(0.0447, rel=0.1)
