"""Every kind of model through every link: right, or refused in words."""

from threading import Lock

import pytest
import torch
from models.model_kinds import KINDS
from models.model_links import LINKS, assert_as_declared, assert_equal_outputs
from torch import nn
from torch.nn.parameter import is_lazy

from synaptree import attach, build, compact, prune
from synaptree.core.errors import AttachError
from synaptree.graph.node import GraphError

TORCHS = [name for name, kind in KINDS.items() if not kind.needs]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", TORCHS)
def test_a_model_goes_through_a_link_right_or_is_refused_in_words(name, link):
    assert_as_declared(KINDS[name], link)


def test_a_layer_that_computes_its_weight_can_be_left_out_by_name():
    model, _ = KINDS["weight_norm"].made()
    topology = prune(model, build("magnitude", density=0.5), exclude=["0"])
    assert list(topology.masks) == ["2.weight", "4.weight"]


def test_a_model_of_layers_that_compute_their_weights_is_told_what_to_do():
    model, _ = KINDS["all_weight_norm"].made()
    with pytest.raises(AttachError, match="0: its weight is computed from other parameters; prune it before that, or"):
        prune(model, build("magnitude", density=0.5))


@pytest.mark.parametrize(("name", "advice"), [
    ("quantised", "prune the model before it is quantised"), ("scripted", "prune the model before it is quantised"),
    ("complex_numbers", "layer: its weight is of torch.complex64; wanted floats"),
])  # fmt: skip
def test_a_model_without_layers_to_prune_is_told_what_to_do(name, advice):
    model, _ = KINDS[name].made()
    with pytest.raises(AttachError, match=advice):
        prune(model, build("magnitude", density=0.5))


def test_a_refusal_leaves_a_lazy_module_without_weights():
    model, x = KINDS["lazy"].made()
    for refused in (lambda: compact(model, x), lambda: prune(model, build("nnrelief"), [x])):
        with pytest.raises(AttachError, match="call the model once on a batch"):
            refused()
    assert is_lazy(model[0].weight)


def test_masks_of_another_model_are_not_put_on_a_lazy_one():
    (lazy, _), like = KINDS["lazy"].made(), nn.Sequential(nn.Linear(6, 8))
    topology = prune(like, build("magnitude", density=0.5))
    with pytest.raises(AttachError, match=r"'0' \(LazyLinear\) has no weights before its first call"):
        attach(lazy, torch.optim.SGD(lazy[2].parameters(), lr=0.1), topology=topology)


def test_weights_that_were_computed_in_training_do_not_keep_a_model_from_being_compacted():
    model, x = KINDS["weight_norm_by_hooks"].made()
    model(x).sum().backward()
    model[2].weight.data[:, :4] = 0.0
    assert_equal_outputs(compact(model, x).model, model, x)


def test_a_model_that_cannot_be_copied_is_not_compacted():
    model, x = KINDS["one_layer_without_bias"].made()
    model.lock = Lock()
    with pytest.raises(GraphError, match="Sequential cannot be copied: TypeError: cannot pickle"):
        compact(model, x)


def test_nnrelief_prunes_what_a_layer_with_a_forward_of_its_own_reads():
    model, x = KINDS["own_forward"].made()
    topology = prune(model, build("nnrelief", alpha_fc=0.5), [x])
    assert topology.density("0.weight") < 1
