import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, tensor

from synaptree.core.errors import DataError, NumericError
from synaptree.core.layer import layers_of
from synaptree.core.probe import Probe, mean_abs_input

MEAN = {"mean_abs": mean_abs_input}


def means(model, *batches, layer="0"):
    with Probe(layers_of(model), MEAN) as probe, torch.no_grad():
        for x in batches:
            model(x)
    return probe.means(layer)["mean_abs"]


def test_a_linear_layer_sees_the_mean_of_absolute_inputs():
    model = nn.Sequential(nn.Linear(2, 1))
    assert means(model, tensor([[1.0, -2.0]]), tensor([[-3.0, 0.0], [2.0, 4.0]])).tolist() == [2.0, 2.0]


def test_every_vector_of_a_sequence_is_a_sample():
    model = nn.Sequential(nn.Linear(2, 1))
    assert means(model, tensor([[[1.0, -2.0], [3.0, 0.0]], [[0.0, 0.0], [0.0, 6.0]]])).tolist() == [1.0, 2.0]


def test_a_convolution_sees_the_mean_map():
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    x = tensor([[[[1.0, -2.0]]], [[[-3.0, 4.0]]]])
    assert means(model, x).tolist() == [[[2.0, 3.0]]]


def test_a_layer_that_is_called_twice_sees_both_inputs():
    shared = nn.Linear(1, 1, bias=False)
    nn.init.constant_(shared.weight, -3.0)
    assert means(nn.Sequential(shared, shared), tensor([[1.0]])).tolist() == [2.0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from([nn.Linear(3, 2), nn.Conv1d(3, 2, 1)]))
def test_means_do_not_depend_on_how_samples_were_cut_into_batches(sizes, layer):
    x = torch.randn(sum(sizes), 3) if isinstance(layer, nn.Linear) else torch.randn(sum(sizes), 3, 2)
    model = nn.Sequential(layer)
    assert torch.equal(means(model, x), means(model, *x.split(sizes)))


def test_sums_of_low_precision_are_kept_in_high_precision():
    model = nn.Sequential(nn.Linear(1, 1)).bfloat16()
    x = torch.cat([torch.full((256, 1), 1.0), torch.full((1, 1), 3.0)]).bfloat16()
    assert means(model, x).item() == pytest.approx(259 / 257, rel=1e-6)


@pytest.mark.parametrize(("weight", "mean"), [
    (torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32),
])  # fmt: skip
def test_means_have_the_precision_of_the_weight_or_float32(weight, mean):
    assert means(nn.Sequential(nn.Linear(2, 1)).to(weight), torch.ones(1, 2, dtype=weight)).dtype == mean


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_is_not_finite_is_named_with_its_layer(value):
    with pytest.raises(NumericError, match="layer 0: mean_abs of its input is not finite over 2 samples"):
        means(nn.Sequential(nn.Linear(2, 1)), tensor([[1.0, value], [1.0, 1.0]]))


def test_where_nothing_flowed_there_are_no_means():
    with Probe(layers_of(nn.Sequential(nn.Linear(2, 1))), MEAN) as probe:
        pass
    assert probe.means("0") == {}


def test_no_activation_outlives_its_batch():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    seen = []
    model[1].register_forward_hook(lambda *seen_by: seen.append(weakref.ref(seen_by[-1])))
    with Probe(layers_of(model), MEAN) as probe:
        model(torch.randn(5, 2))
        gc.collect()
        assert seen[0]() is None
    assert not probe.means("2")["mean_abs"].requires_grad


def test_hooks_are_gone_afterwards_also_after_an_error():
    model = nn.Sequential(nn.Linear(2, 1))
    probe = Probe(layers_of(model), MEAN)
    with pytest.raises(RuntimeError, match="shapes"), probe:
        model(torch.zeros(1, 3))
    assert not model[0]._forward_pre_hooks


def test_an_input_given_by_keyword_is_seen_too():
    class Named(nn.Linear):
        def forward(self, input):
            return super().forward(input)

    model = nn.Sequential(Named(2, 1))
    model.forward = lambda x: model[0](input=x)
    assert means(model, tensor([[1.0, -2.0], [3.0, 0.0]])).tolist() == [2.0, 1.0]


def test_maps_of_different_sizes_have_no_mean():
    with pytest.raises(DataError, match=r"layer 0: \(2, 1, 1, 5\) came after inputs of other sizes; give"):
        means(nn.Sequential(nn.Conv2d(1, 2, 1)), torch.ones(2, 1, 5, 5), torch.ones(2, 1, 1, 5))


def test_sequences_may_have_different_lengths():
    assert means(nn.Sequential(nn.Linear(1, 1)), torch.ones(2, 5, 1), torch.full((1, 2, 1), 7.0)).tolist() == [2.0]


def test_a_weight_that_two_layers_share_is_seen_through_both():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
    with Probe(layers_of(model), {"mean_abs": mean_abs_input}) as probe:
        model(torch.tensor([[1.0, 3.0]]))  # the second layer sees 6 and 2
    assert probe.means("0")["mean_abs"].tolist() == [3.5, 2.5]
