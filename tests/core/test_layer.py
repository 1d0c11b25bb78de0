from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from synaptree.core.errors import AttachError, OptionError
from synaptree.core.layer import layers_of, mask_shape, parameters_of, unwrapped


def network():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False), nn.Linear(3, 1))


def test_layers_come_in_the_models_order_with_their_parameters_names():
    assert [(layer.name, layer.kind, layer.weight, layer.bias) for layer in layers_of(network())] == [
        ("0", "conv", "0.weight", "0.bias"), ("2", "linear", "2.weight", None), ("3", "linear", "3.weight", "3.bias"),
    ]  # fmt: skip


def test_a_model_may_be_one_layer():
    (layer,) = layers_of(nn.Linear(2, 2))
    assert (layer.name, layer.weight, layer.bias) == ("", "weight", "bias")


def test_a_shared_weight_is_listed_once_under_its_first_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert [layer.weight for layer in layers_of(model)] == ["0.weight"]


def test_layers_are_chosen_by_kind_and_pattern_and_exclude_wins():
    names = [layer.name for layer in layers_of(network(), ["linear"])]
    assert names == ["2", "3"]
    assert [layer.name for layer in layers_of(network(), include=["[02]"], exclude=["0"])] == ["2"]


compiled = partial(torch.compile, backend="eager")


@pytest.mark.parametrize("around", [
    nn.DataParallel, AveragedModel, compiled, lambda net: nn.DataParallel(compiled(net)),
])  # fmt: skip
def test_names_are_those_of_the_plain_model_whatever_stands_around_it(around):
    wrapped, parts = around(network()), network()
    parts[0], parts[2] = around(parts[0]), around(parts[2])
    assert layers_of(wrapped) == layers_of(parts) == layers_of(network())
    assert list(parameters_of(wrapped)) == list(parameters_of(parts)) == list(dict(network().named_parameters()))
    assert type(unwrapped(wrapped)) is nn.Sequential


def test_names_that_wrappers_use_are_kept_where_they_are_the_users_own():
    net = nn.Module()
    net.fc, net.module, net._orig_mod = nn.Linear(2, 2), nn.ModuleDict({"fc": nn.Linear(2, 2)}), nn.Linear(2, 2)
    assert [layer.weight for layer in layers_of(net)] == ["fc.weight", "module.fc.weight", "_orig_mod.weight"]
    assert parameters_of(net) == dict(net.named_parameters())


def test_a_shared_parameter_is_found_under_each_of_its_names():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert parameters_of(model) == {"0.weight": model[0].weight, "1.weight": model[0].weight}


@pytest.mark.parametrize("pattern", [{"include": ["fc*"]}, {"exclude": ["fc*"]}])
def test_a_pattern_that_fits_nothing_is_an_error_that_names_the_layers(pattern):
    with pytest.raises(OptionError, match=r"unknown layer 'fc\*'.*Known: 0, 2, 3"):
        layers_of(network(), **pattern)


def test_one_pattern_is_a_list_of_one():
    with pytest.raises(OptionError, match=r"got 'fc': write \['fc'\]"):
        layers_of(network(), include="fc")


def test_an_unknown_kind_is_named():
    with pytest.raises(OptionError, match="kind of layer 'convolution'"):
        layers_of(network(), ["convolution"])


def test_a_model_with_nothing_to_prune_says_what_was_looked_for():
    with pytest.raises(AttachError, match="ReLU has nothing to prune: wanted layers of kind linear or conv, found 0"):
        layers_of(nn.ReLU())
    with pytest.raises(AttachError, match="found 3 before `include` and `exclude` and none after"):
        layers_of(network(), exclude=["*"])


@pytest.mark.parametrize(("weight", "granularity", "mask"), [
    ((4, 3), "weight", (4, 3)), ((4, 3), "kernel", (4, 3)), ((4, 3), "unit", (4, 1)),
    ((4, 3, 5, 5), "weight", (4, 3, 5, 5)), ((4, 3, 5, 5), "kernel", (4, 3, 1, 1)),
    ((4, 3, 5, 5), "unit", (4, 1, 1, 1)), ((4, 3, 1, 1), "kernel", (4, 3, 1, 1)), ((4,), "weight", (4,)),
])  # fmt: skip
def test_a_mask_has_one_entry_per_connection(weight, granularity, mask):
    assert mask_shape(weight, granularity) == mask


def test_an_unknown_granularity_is_named():
    with pytest.raises(OptionError, match="unknown granularity 'filter'"):
        mask_shape((4, 3), "filter")
