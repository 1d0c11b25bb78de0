"""The patience rule by hand, and what holds for any scores."""

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scored import kept, masked, part
from torch import nn, tensor

from synaptree.core.errors import NumericError, OptionError
from synaptree.core.layer import layers_of
from synaptree.core.rule import Group
from synaptree.rules.patience import Patience


def group(life, mask=None, name="fc"):
    model = nn.Module()
    model.add_module(name, nn.Linear(len(life[0]), len(life)))
    (layer,) = layers_of(model)
    return Group(layer, part(layer.weight, life, mask, life=life))


def fc(floor=0, guard=0.0):
    return Patience({"linear": floor}, guard)


def test_what_has_no_life_left_dies():
    assert kept(fc(), group([[1.0, 0.0, 2.0], [-0.5, 3.0, -math.inf]])) == {"fc": [0, 2, 4]}


def test_what_is_dead_stays_dead_whatever_its_life():
    assert kept(fc(2), group([[1.0, 9.0, 2.0]], [[1, 0, 1]])) == {"fc": [0, 2]}


@pytest.mark.parametrize(("floor", "wanted"), [
    # unit 0 has two lives left; unit 1 none; unit 2 has one connection only
    (0, [0, 1]), (1, [0, 1, 5, 8]), (2, [0, 1, 4, 5, 8]), (3, [0, 1, 2, 3, 4, 5, 8]), (9, [0, 1, 2, 3, 4, 5, 8]),
])
def test_of_each_unit_those_that_carry_most_stay_up_to_the_floor(floor, wanted):
    life = [[1.0, 2.0, -9.0], [-math.inf, -2.0, -1.0], [5.0, 5.0, -3.0]]
    assert kept(fc(floor), group(life, [[1, 1, 1], [1, 1, 1], [0, 0, 1]])) == {"fc": wanted}


def test_equals_on_the_floor_go_to_the_lowest_index():
    assert kept(fc(2), group([[-1.0, -1.0, -1.0], [-math.inf, -math.inf, -math.inf]])) == {
        "fc": [0, 1, 3, 4],
    }


def test_of_many_equals_the_first_stays():
    assert kept(fc(1), group([[-1.0] * 100])) == {"fc": [0]}


def test_what_carries_nothing_is_held_before_what_is_alive_or_dead_already():
    assert kept(fc(2), group([[5.0, 1.0, -math.inf, -math.inf]], [[1, 0, 1, 1]])) == {"fc": [0, 2]}


def test_a_kind_of_layer_that_is_left_out_has_no_floor():
    layer = layers_of(nn.Sequential(nn.Conv2d(2, 3, 2)))[0]
    life = tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1)
    mask = fc(1)([Group(layer, part(layer.weight, life.tolist(), life=life.tolist()))], 0)["0.weight"]
    assert mask.flatten().tolist() == [True, False, True]


def test_a_cut_that_would_leave_too_few_is_not_made_and_the_log_says_so(caplog):
    rule, life = fc(guard=0.5), [[1.0, -1.0, -1.0, -1.0]]
    with caplog.at_level(logging.WARNING, logger="synaptree"):
        assert kept(rule, group(life, name="a"), group([[1.0, 1.0, -1.0, -1.0]], name="b"), step=7) == {"b": [0, 1]}
    (said,) = caplog.messages
    assert said == "a.weight: no cut at step 7: it would leave 1 of 4 connections, less than the share 0.5"


def test_a_layer_that_has_few_connections_already_is_returned_as_it_is():
    assert kept(fc(guard=0.5), group([[1.0, 1.0, 1.0]], [[1, 0, 0]])) == {"fc": [0]}


def test_without_a_guard_a_layer_may_die():
    assert kept(fc(), group([[-1.0, -1.0]])) == {"fc": []}


def test_a_life_that_is_no_number_is_an_error():
    with pytest.raises(NumericError, match="signal 'life' holds NaN"):
        Patience()([group([[math.nan, 1.0]])], 0)


@pytest.mark.parametrize("options", [{"floor": {"conv": -1}}, {"guard": 1.0}, {"guard": -0.1}, {"guard": math.nan}])
def test_a_floor_or_guard_out_of_range_is_refused(options):
    with pytest.raises(OptionError, match="wanted floor >= 0 connections per unit and a guard in"):
        Patience(**options)


@given(masked, st.integers(0, 4))
def test_a_unit_keeps_its_living_and_fills_the_floor_with_the_best_of_the_others(case, floor):
    life, mask = tensor(case[0]) - 0.5, tensor(case[1]).bool()
    new = fc(floor)([group(life.tolist(), mask.tolist())], 0)["fc.weight"]
    for row, before, after in zip(life, mask, new, strict=True):
        living, spared, dead = before & (row > 0), after & (row <= 0), before & ~after
        assert not (after & ~before).any()
        assert torch.equal(after & (row > 0), living)
        assert int(after.sum()) == max(int(living.sum()), min(floor, int(before.sum())))
        if spared.any() and dead.any():
            assert row[spared].min() >= row[dead].max()
