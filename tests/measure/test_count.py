from dataclasses import dataclass
from math import nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from synaptree.core.errors import NumericError, OptionError, ShapeError
from synaptree.graph.shortcut import Shortcut
from synaptree.measure.clock import Ratio, Timings, interleaved
from synaptree.measure.count import LayerCount, count


@dataclass
class Masks:
    masks: dict[str, torch.Tensor]


def mask(*entries):
    return torch.tensor(entries, dtype=torch.bool)


@pytest.fixture
def small():
    """A 2 -> 3 convolution of 2x2 kernels with batch norm, and an fc layer from 3 to 2."""
    conv, norm, fc = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(3, 2)
    for parameter in (*conv.parameters(), *fc.parameters()):
        nn.init.ones_(parameter)
    return nn.Sequential(conv, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)


def test_without_a_topology_what_is_not_zero_is_alive(small):
    with torch.no_grad():
        small[0].weight[0, 0] = 0
        small[0].weight[0, 1, 0, 0] = 0
        small[4].bias[1] = -0.0
    result = count(small)
    assert result.what == "nonzero"
    assert result.layers == (
        LayerCount("0", "Conv2d", 24, 19, biases=3, biases_alive=3, kernels=6, kernels_alive=5),
        LayerCount("4", "Linear", 6, 6, biases=2, biases_alive=1),
    )
    assert (result.norm, result.norm_alive) == (6, 3)  # the shifts of batch norm start at zero
    assert result.density == 25 / 30


def test_masks_of_each_granularity_say_what_is_alive_whatever_the_values(small):
    result = count(small, Masks({
        "0.weight": mask([1, 0], [1, 1], [0, 0])[:, :, None, None],
        "0.bias": mask(1, 1, 0),
        "1.weight": mask(1, 1, 0),
        "4.weight": mask([1, 0, 0], [1, 1, 0]),
    }))
    assert result.what == "density"
    assert result.layers == (
        LayerCount("0", "Conv2d", 24, 12, biases=3, biases_alive=2, kernels=6, kernels_alive=3),
        LayerCount("4", "Linear", 6, 3, biases=2, biases_alive=2),
    )
    assert (result.norm, result.norm_alive) == (6, 5)
    assert result.parameters() == 35
    assert result.parameters(biases=False) == 30
    assert result.parameters(norm=True) == 41
    assert result.parameters_alive() == 19
    assert result.parameters_alive(biases=False) == 15
    assert result.parameters_alive(biases=False, norm=True) == 20
    assert result.density == 0.5


def test_a_zero_weight_that_exists_is_alive():
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    assert count(layer, Masks({})).density == 1
    assert count(layer).density == 0


def test_a_kernel_with_one_weight_alive_is_alive():
    weights = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    weights[0, 1, 2, 2] = True
    [layer] = count(nn.Conv2d(2, 1, 3), Masks({"weight": weights})).layers
    assert (layer.kernels, layer.kernels_alive, layer.weights_alive) == (2, 1, 1)


def test_macs_are_positions_times_weights_for_one_sample(small):
    kernels = mask([1, 0], [1, 1], [0, 0])[:, :, None, None]
    result = count(small, Masks({"0.weight": kernels}), example=torch.rand(5, 2, 4, 3))
    assert [(x.macs, x.macs_alive) for x in result.layers] == [(24 * 6, 12 * 6), (6, 6)]
    assert (result.macs, result.macs_alive) == (150, 78)


def test_without_an_example_macs_are_unknown(small):
    result = count(small)
    assert result.macs is None
    assert result.macs_alive is None


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Linear(3, 4), (2, 5, 3)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, (3, 2), groups=2), (2, 4, 6, 5)),
    (nn.Conv2d(4, 4, 3, dilation=2, groups=4), (2, 4, 6, 5)),
    (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 3)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 3, 5)),
    (nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 2, 3)),
])
def test_dense_macs_are_half_the_flops_that_torch_counts(layer, shape):
    example = torch.rand(shape)
    with FlopCounterMode(display=False) as counter:
        layer(example)
    assert count(layer, example=example).macs == counter.get_total_flops() // 2 // shape[0]


def test_a_layer_called_twice_multiplies_twice_and_is_counted_once():
    layer = nn.Linear(3, 3)
    result = count(nn.Sequential(layer, layer), example=torch.rand(4, 3))
    assert (result.parameters(), result.macs) == (12, 18)


def test_a_weight_shared_by_two_layers_counts_once_and_multiplies_in_both():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    shared = Masks({"0.weight": torch.eye(3, dtype=torch.bool)})
    result = count(nn.Sequential(first, second), shared, example=torch.rand(4, 3))
    assert [(x.weights, x.weights_alive, x.macs_alive) for x in result.layers] == [(9, 3, 3), (0, 0, 3)]


def test_the_fixed_scale_of_a_shortcut_is_no_weight_but_a_frozen_layer_is_counted():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), Shortcut(2)).requires_grad_(False)
    assert count(model).parameters() == 6


def test_layers_of_other_kinds_are_counted_without_macs():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    result = count(model, example=torch.tensor([[1, 2], [0, 4]]))
    assert [(x.kind, x.weights) for x in result.layers] == [("Embedding", 15), ("Linear", 6)]
    assert [x.macs for x in result.layers] == [None, 12]
    assert result.macs == 12


def test_a_parametrized_weight_is_counted_where_it_is_stored_without_macs():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    result = count(layer, example=torch.rand(1, 3))
    assert (result.parameters(), result.macs) == (2 + 2 + 6, None)  # biases, lengths and directions


def test_a_model_without_parameters_has_nothing_and_misses_nothing():
    result = count(nn.ReLU(), example=torch.rand(1, 2))
    assert (result.layers, result.parameters(norm=True), result.density, result.macs) == ((), 0, 1, None)


def test_observing_leaves_mode_hooks_statistics_and_gradients_as_they_were(small):
    small.train()
    small[1].eval()
    count(small, example=torch.rand(2, 2, 4, 4))
    assert [m.training for m in small] == [True, False, True, True, True]
    assert not any(m._forward_hooks for m in small.modules())
    assert small[1].num_batches_tracked == 0
    assert small[0].weight.grad is None


def test_a_failing_model_gets_its_mode_back_and_keeps_no_hook(small):
    with pytest.raises(RuntimeError, match="channels"):
        count(small, example=torch.rand(2, 7, 4, 4))
    assert small.training
    assert not any(m._forward_hooks for m in small.modules())


def test_a_mask_that_does_not_fit_is_named_with_both_shapes():
    with pytest.raises(ShapeError, match=r"mask of 'weight' has shape \(3, 2\).*parameter's \(2, 3\)"):
        count(nn.Linear(3, 2), Masks({"weight": torch.ones(3, 2, dtype=torch.bool)}))


def test_a_topology_of_another_model_is_refused():
    with pytest.raises(ShapeError, match=r"masks 'fc9.weight', a parameter this Linear does not have"):
        count(nn.Linear(3, 2), Masks({"fc9.weight": mask(1)}))


def test_a_topology_fits_the_model_inside_a_parallel_one():
    parallel = nn.DataParallel(nn.Sequential(nn.Linear(2, 1)))
    [layer] = count(parallel, Masks({"0.weight": mask([1, 0])})).layers
    assert (layer.name, layer.weights_alive) == ("0", 1)


def test_parts_that_names_of_wrappers_tell_apart_are_counted_apart_and_called_twice_once():
    net = nn.Module()
    net.fc, net.module = nn.Linear(2, 1), nn.ModuleDict({"fc": nn.Linear(2, 1)})
    net.again = net.fc
    net.forward = lambda x: net.again(torch.cat([net.fc(x), net.module["fc"](x)], 1))
    counted = count(net, Masks({"fc.weight": mask([1, 0]), "module.fc.weight": mask([0, 0])}), torch.ones(1, 2))
    assert [(layer.name, layer.weights_alive, layer.macs) for layer in counted.layers] == [
        ("fc", 1, 4), ("module.fc", 0, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("example", [torch.tensor(1.0), torch.rand(0, 3)])
def test_an_example_without_a_sample_is_refused(example):
    with pytest.raises(ShapeError, match="batch of at least one sample"):
        count(nn.Linear(3, 2), example=example)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_a_topology_and_the_zeros_it_leaves_count_the_same(rows):
    layer = nn.Linear(3, len(rows), bias=False)
    exists = torch.tensor(rows)
    with torch.no_grad():
        layer.weight.fill_(1).mul_(exists)
    example = torch.ones(2, 3)
    masked, zeroed = count(layer, Masks({"weight": exists}), example), count(layer, None, example)
    assert masked.layers == zeroed.layers
    assert masked.macs_alive == int(exists.sum())


class Clock:
    """A timer that moves only when a contender works."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def contender(self, name, *times):
        times = list(times)

        def run():
            self.calls.append(name)
            self.now += times.pop(0)

        return run


def test_contenders_run_in_rotating_order_after_the_warm_up():
    clock = Clock()
    contenders = {name: clock.contender(name, *[1.0] * 5) for name in "abc"}
    timings = interleaved(contenders, rounds=4, warmup=1, timer=clock)
    assert "".join(clock.calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert timings.seconds == dict.fromkeys("abc", [1.0] * 4)


def test_warm_up_times_are_left_out_and_ratios_are_paired_by_round():
    clock = Clock()
    timings = interleaved(
        {"dense": clock.contender("dense", 99, 2, 8, 30), "sparse": clock.contender("sparse", 99, 1, 2, 5)},
        rounds=3, warmup=1, timer=clock,
    )
    assert timings.median("dense") == 8
    assert timings.median("sparse") == 2
    assert timings.ratio("dense", "sparse") == Ratio(median=4, low=3, high=5)  # of 2, 4, 6
    assert timings.ratio("dense", "dense") == Ratio(1, 1, 1)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.5, 1), (4, 2), (4.5, 3), (None, 5)])
def test_no_round_starts_after_the_time_is_up(seconds, rounds):
    clock = Clock()
    contenders = {"a": clock.contender("a", *[1.0] * 5), "b": clock.contender("b", *[1.0] * 5)}
    timings = interleaved(contenders, rounds=5, warmup=0, seconds=seconds, timer=clock)
    assert [len(times) for times in timings.seconds.values()] == [rounds, rounds]


@pytest.mark.parametrize("options", [{"rounds": 0}, {"warmup": -1}, {"seconds": 0}, {"seconds": nan}])
def test_timing_options_out_of_range_are_refused(options):
    with pytest.raises(OptionError, match="rounds >= 1, warmup >= 0 and seconds > 0"):
        interleaved({"a": lambda: None}, **options)


def test_timing_nobody_is_refused():
    with pytest.raises(OptionError, match="at least one contender"):
        interleaved({})


def test_an_unknown_contender_is_told_with_the_known_ones():
    with pytest.raises(OptionError, match="unknown contender 'spars'; did you mean 'sparse'"):
        Timings({"sparse": [1.0]}).median("spars")


def test_a_ratio_to_no_time_at_all_is_refused():
    with pytest.raises(NumericError, match="'b' took no measurable time in 1 of 2 rounds"):
        Timings({"a": [1.0, 1.0], "b": [0.0, 1.0]}).ratio("a", "b")
