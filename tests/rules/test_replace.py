import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, tensor

from synaptree.core.errors import OptionError
from synaptree.core.layer import Layer
from synaptree.core.rule import Group, Part
from synaptree.rules.replace import Replace

scores = st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0]), min_size=6, max_size=6), min_size=1, max_size=3)


def groups(rows, seed=0):
    """Return a group for each row of scores, where a connection exists unless the score is 0."""
    rng = torch.Generator().manual_seed(seed)
    return [
        Group(Layer(str(i), "linear", nn.Linear(3, 2), f"{i}.weight", None), Part(
            f"{i}.weight", tensor(row).view(2, 3) != 0, {"keep": tensor(row).view(2, 3)}), rng=rng)
        for i, row in enumerate(rows)
    ]  # fmt: skip


@given(scores, st.integers(0, 5))
def test_as_many_come_as_go_within_every_layer(rows, seed):
    before = groups(rows, seed)
    masks = Replace("layer")(before, 1)
    for group in before:
        mask, score = masks[group.weight.name], group.weight.scores["keep"]
        assert int(mask.sum()) == int(group.weight.mask.sum())
        assert mask[group.weight.mask & (score > 0)].all()


@given(scores, st.integers(0, 5))
def test_global_keeps_the_number_of_the_network(rows, seed):
    before = groups(rows, seed)
    masks = Replace("global")(before, 1)
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(int(group.weight.mask.sum()) for group in before)


def test_global_moves_connections_to_where_there_is_room():
    # the first layer loses six; three places of the second and six of the first are free
    rows = [[-1.0] * 6, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    counts = {int(Replace("global")(groups(rows, seed), 1)["1.weight"].sum()) for seed in range(20)}
    assert {4, 5} <= counts <= {3, 4, 5, 6}


def test_those_that_come_are_uniform_among_the_free_places_those_just_gone_included():
    row = [-1.0, 1.0, 0.0, 0.0, 0.0, 1.0]  # one goes; four places are free
    came = sum(Replace()(groups([row], seed), 1)["0.weight"].flatten().int() for seed in range(1000))
    assert came[1] == came[5] == 1000
    # 250 expected, standard deviation 14
    assert all(abs(int(n) - 250) < 70 for n in came[[0, 2, 3, 4]])


def test_a_scope_nobody_knows_is_named():
    with pytest.raises(OptionError, match="unknown scope 'net'"):
        Replace("net")
