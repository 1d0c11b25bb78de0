import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from synaptree.core.errors import OptionError
from synaptree.rules.allocate import ErdosRenyi, Global, Room, Table, Uniform, allocation, check_density

densities = st.floats(0, 1) | st.sampled_from([0.0, 0.05, 0.1, 0.29, 0.5, 1.0])
# the distinct sizes of real networks: from one connection to many
shapes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6)


def rooms(*shapes):
    return [Room(f"layer{i}.weight", shape, math.prod(shape), torch.zeros(shape)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("allocate", [Uniform(), ErdosRenyi(), Global()])
@given(density=densities, shapes=shapes)
def test_counts_add_up_to_the_density_of_the_network_and_fit_their_layers(allocate, density, shapes):
    parts = rooms(*shapes)
    counts = allocate(density, parts)
    assert sum(counts) == round(density * sum(part.connections for part in parts))
    assert all(0 <= count <= part.connections for count, part in zip(counts, parts, strict=True))


def test_a_total_is_rounded_once_even_where_the_layers_sum_lies_on_the_other_side_of_a_half():
    assert ErdosRenyi()(0.5, rooms((27, 25))) == [338]  # 0.5 * 675 = 337.5, a half goes to the even count
    assert sum(Uniform()(0.35, rooms((30, 23), (20, 18)))) == 368  # 0.35 * 1050 = 367.5


@given(density=densities, shapes=shapes)
def test_uniform_counts_are_within_one_of_the_layers_own_density(density, shapes):
    parts = rooms(*shapes)
    for count, part in zip(Uniform()(density, parts), parts, strict=True):
        assert abs(count - density * part.connections) < 1 + 1e-9


def test_left_over_connections_go_to_the_largest_remainders_first_layer_first():
    # wanted 1.5, 1.5, 2.5: one each of the two halves that are left go to the first two layers
    assert Uniform()(0.5, rooms((3, 1), (3, 1), (5, 1))) == [2, 2, 2]


def test_erdos_renyi_is_proportional_to_the_sum_over_the_product_of_sizes():
    # densities 20/100 : 110/1000 : in counts 20 : 110 of 1100, at density 0.1: 110 = 20 s + 110 s
    counts = ErdosRenyi()(0.1, rooms((10, 10), (10, 100)))
    assert counts == [17, 93]  # 16.92 and 93.08


def test_erdos_renyi_of_kernels_sums_all_axes():
    conv = Room("c.weight", (4, 2, 3, 3), 72, torch.zeros(4, 2, 3, 3))
    linear = Room("f.weight", (8, 9), 72, torch.zeros(8, 9))
    # 12/72 against 17/72: 12 s + 17 s = 29 at a density of 29/144
    assert ErdosRenyi()(29 / 144, [conv, linear]) == [12, 17]


def test_erdos_renyi_clips_small_layers_to_dense_and_scales_the_others_up():
    # the 2 x 2 layer would get 4 s = 4 * 52 / 44 > 4
    assert ErdosRenyi()(52 / 404, rooms((2, 2), (20, 20))) == [4, 48]


def test_global_counts_follow_the_scores():
    parts = [
        Room("a", (1, 3), 3, tensor([[9.0, 8.0, 1.0]])), Room("b", (1, 3), 3, tensor([[2.0, 7.0, -math.inf]])),
    ]  # fmt: skip
    assert Global()(0.5, parts) == [2, 1]
    assert Global()(1.0, parts) == [3, 2]


def test_global_ties_go_to_the_first_layer():
    assert Global()(0.5, rooms((1, 3), (1, 3))) == [3, 0]


def test_a_table_names_parameters_or_layers():
    parts = rooms((1, 4), (1, 4))
    assert Table({"layer0": 0.5, "layer1.weight": 0.25})(0.9, parts) == [2, 1]


def test_a_table_must_name_every_layer_with_a_density():
    with pytest.raises(OptionError, match=r"'layer1.weight'; did you mean 'layer0'"):
        Table({"layer0": 0.5})(0.5, rooms((1, 4), (1, 4)))
    with pytest.raises(OptionError, match=r"density of layer0.weight = 1.5"):
        Table({"layer0": 1.5})(0.5, rooms((1, 4)))


def test_a_layer_without_connections_gets_none():
    for allocate in (Uniform(), ErdosRenyi(), Global()):
        assert allocate(0.5, rooms((0, 3), (2, 2))) == [0, 2]


@pytest.mark.parametrize("density", [-0.1, 1.1, math.nan])
def test_a_density_lies_between_nothing_and_dense(density):
    with pytest.raises(OptionError, match="wanted a number from 0"):
        check_density(density)


def test_allocations_have_names():
    assert allocation("erdos_renyi") == ErdosRenyi()
    assert allocation({"fc": 0.5}) == Table({"fc": 0.5})
    with pytest.raises(OptionError, match="unknown allocation 'unifrom'; did you mean 'uniform'"):
        allocation("unifrom")
