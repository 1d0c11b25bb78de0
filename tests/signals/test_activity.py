"""What connections carry over a window, and the life left to them, by numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, tensor

from synaptree.core.errors import OptionError
from synaptree.core.layer import Layer, mask_shape
from synaptree.core.signal import View
from synaptree.signals.activity import Flow, Weak, Windows, consecutive, survival

EVERY_UPDATE = Windows(every=1)


def linear(weight):
    weight = tensor(weight)
    module = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    module.weight.data = weight
    return Layer("fc", "linear", module, "fc.weight", "fc.bias")


def convolution(weight, groups=1):
    weight = tensor(weight)
    units, inputs, *kernel = weight.shape
    module = nn.Conv2d(inputs * groups, units, kernel, groups=groups)
    module.weight.data = weight
    return Layer("conv", "conv", module, "conv.weight", "conv.bias")


def view(layer, step=1, x=None, watch=None, granularity="weight", mask=None, grad=None, role="weight"):
    """Return the view after an update with the batch `x`."""
    weight = layer.module.weight.detach()
    mask = torch.ones(mask_shape(tuple(weight.shape), granularity)).bool() if mask is None else tensor(mask).bool()
    stats = {}
    if x is not None:
        x = tensor(x) if isinstance(x, list) else x
        stats = {name: reduce(layer, x, layer.module(x).detach()).double() for name, reduce in (watch or {}).items()}
        stats["samples"] = torch.tensor(x.numel() / x.shape[-1] if layer.kind == "linear" else len(x)).double()
    return View(layer, role, weight, None if grad is None else tensor(grad), mask, step, torch.Generator(), stats)


def flow_of(flow, layer, x=None, **more):
    """Return what a window of one update carries."""
    state = flow.begin({}, view(layer, **more))
    return flow.read({**state, **flow.add(state, seen := view(layer, x=x, watch=flow.watch, **more))}, seen)


# --- windows


def test_a_window_of_one_update_begins_and_ends_with_it():
    windows = Windows(every=1, first=2)
    assert [(step, windows.place(step), windows(step)) for step in (2, 3, 4)] == [
        (2, 0, False), (3, 1, True), (4, 1, True),
    ]  # fmt: skip


def test_windows_begin_after_first_and_none_ends_after_last():
    windows = Windows(every=3, first=2, last=9)
    assert [windows.place(step) for step in range(12)] == [0, 0, 0, 1, 2, 3, 1, 2, 3, 1, 0, 0]
    assert [step for step in range(12) if windows(step)] == [5, 8]
    assert [windows.number(step) for step in (0, 2, 4, 5, 7, 8)] == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("options", "message"), [
    ({"every": 0}, "every = 0"), ({"every": 2, "first": -1}, "first = -1"),
    ({"every": 10, "first": 5, "last": 14}, "no window of every = 10 .* wanted last >= 15"),
])
def test_windows_that_never_end_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Windows(**options)


# --- what a connection carries


# mean |x| of two samples: ((1 + 3)/2, (2 + 0)/2) = (2, 1); y = (x0 - 2 x1, 4 x0): (5, -3), (4, -12), mean |y| = (4, 8)
BATCH = [[1.0, -2.0], [-3.0, 0.0]]


@pytest.mark.parametrize(("criterion", "wanted"), [
    ("contrib", [[2.0, 2.0], [8.0, 0.0]]),
    ("pre", [[2.0, 1.0], [2.0, 1.0]]),
    ("mag", [[1.0, 2.0], [4.0, 0.0]]),
    ("pre_post", [[8.0, 4.0], [16.0, 8.0]]),
])
def test_a_criterion_is_what_its_formula_says(criterion, wanted):
    layer = linear([[1.0, -2.0], [4.0, 0.0]])
    nn.init.zeros_(layer.module.bias)
    assert flow_of(Flow(criterion), layer, BATCH).tolist() == wanted


def test_activity_is_a_mean_over_all_batches_of_a_window():
    # |x| = 1 in one sample and 4 in three: mean 13/4
    layer, flow = linear([[2.0]]), Flow()
    state = flow.begin({}, view(layer))
    for x in ([[1.0]], [[-4.0], [4.0], [4.0]]):
        state = flow.add(state, view(layer, x=x, watch=flow.watch))
    assert flow.read(state, view(layer)).tolist() == [[6.5]]


def test_every_vector_of_a_sequence_counts_as_one_input():
    # two samples of three tokens; |x| = 0, 1, 2, 3, 4, 5, mean 2.5
    assert flow_of(Flow("pre"), linear([[1.0]]), torch.arange(6.0).view(2, 3, 1)).tolist() == [[2.5]]


MAPS = [[[[1.0, -1.0], [1.0, 1.0]], [[0.0, 2.0], [0.0, 0.0]]], [[[3.0, 3.0], [3.0, -3.0]], [[0.0, 0.0], [0.0, 0.0]]]]
KERNELS = [[[[1.0, -1.0]], [[0.0, 2.0]]], [[[4.0, 4.0]], [[1.0, 0.0]]]]


@pytest.mark.parametrize(("granularity", "wanted"), [
    # means over two samples and four pixels: a = (2, 0.25)
    ("weight", [[[[2.0, 2.0]], [[0.0, 0.5]]], [[[8.0, 8.0]], [[0.25, 0.0]]]]),
    ("kernel", [[[[4.0]], [[0.5]]], [[[16.0]], [[0.25]]]]),
    ("unit", [[[[4.5]]], [[[16.25]]]]),
])
def test_a_convolution_carries_its_weights_times_the_mean_of_the_map(granularity, wanted):
    assert flow_of(Flow(), convolution(KERNELS), MAPS, granularity=granularity).tolist() == wanted


def test_each_group_of_a_convolution_reads_its_own_inputs():
    # four inputs with means 1, 2, 3, 4 in two groups; the filter of the second reads 3 and 4
    x = torch.tensor([1.0, -2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    layer = convolution([[[[1.0]], [[1.0]]], [[[10.0]], [[1.0]]]], groups=2)
    assert flow_of(Flow(), layer, x).flatten(1).tolist() == [[1.0, 2.0], [30.0, 4.0]]


def test_a_kernel_of_one_weight_on_maps_of_one_pixel_carries_what_a_linear_layer_does():
    weight, x = torch.randn(3, 4), torch.randn(5, 4)
    kernels = flow_of(Flow(), convolution(weight[:, :, None, None].tolist()), x[:, :, None, None], granularity="kernel")
    assert torch.equal(kernels.flatten(1), flow_of(Flow(), linear(weight.tolist()), x))


def test_trend_is_the_growth_of_the_weight_since_the_last_window():
    flow, layer = Flow("trend"), linear([[1.0, -2.0]])
    state = flow.begin({}, view(layer))
    layer.module.weight.data = tensor([[1.5, -1.0]])
    state = {**state, **flow.add(state, view(layer))}
    assert flow.read(state, view(layer)).tolist() == [[0.5, 0.0]]
    state = {**state, **flow.begin(state, view(layer))}
    layer.module.weight.data = tensor([[-2.0, -4.0]])
    state = {**state, **flow.add(state, view(layer))}
    assert flow.read(state, view(layer)).tolist() == [[0.5, 3.0]]


def test_gradients_add_up_over_the_updates_of_a_window():
    flow, layer = Flow("gradient"), linear([[1.0, 1.0]])
    state = flow.begin({}, view(layer))
    for grad in ([[1.0, -2.0]], [[-1.0, -1.0]]):
        state = flow.add(state, view(layer, grad=grad))
    assert flow.read(state, view(layer)).tolist() == [[2.0, 3.0]]


def test_inputs_that_are_not_finite_do_not_count():
    layer, flow = linear([[1.0, 1.0]]), Flow()
    state = flow.begin({}, view(layer))
    for x in ([[1.0, 2.0]], [[math.inf, 2.0]], [[math.nan, 2.0]], [[3.0, 0.0]]):
        state = {**state, **flow.add(state, view(layer, x=x, watch=flow.watch))}
    assert flow.read(state, view(layer)).tolist() == [[2.0, 1.0]]


def test_a_sum_in_half_precision_does_not_overflow():
    layer = linear([[1.0]])
    x = torch.full((4, 1), 60000.0, dtype=torch.float16)
    layer.module.half()
    assert flow_of(Flow("pre"), layer, x).tolist() == [[60000.0]]


def test_activity_above_the_minimum_is_zero_where_an_input_never_leaves_it():
    # the smallest number of the batch is -0.5: means of x + 0.5 are 0 and 1.5
    layer, flow = linear([[2.0, 2.0]]), Flow(from_minimum=True)
    state = flow.begin({}, view(layer))
    x = [[-0.5, 0.5], [-0.5, 1.5]]
    plain, shifted = (
        {**kept, **flow.add(kept, view(layer, x=x, watch=flow.watch))}
        for kept in (state, {**state, "from_minimum": tensor(True)})
    )
    assert flow.read(plain, view(layer)).tolist() == [[1.0, 2.0]]
    assert flow.read(shifted, view(layer)).tolist() == [[0.0, 3.0]]


def test_an_unknown_criterion_is_named():
    with pytest.raises(OptionError, match="unknown criterion 'contribution'; did you mean 'contrib'"):
        Flow("contribution")


# --- what is weak


@pytest.mark.parametrize(("alpha", "scope", "wanted"), [
    # layer: mean of the four that exist 16/4 = 4, half of it 2; unit: (1 + 3)/2 = 2 and (2 + 10)/2 = 6, halves 1 and 3
    (0.5, "layer", [[1, 0, 0], [1, 0, 0]]),
    (0.5, "post", [[1, 0, 0], [1, 0, 0]]),
    (0.75, "layer", [[1, 1, 0], [1, 0, 0]]),
    (0.75, "post", [[1, 0, 0], [1, 0, 0]]),
    (0.25, "percentile", [[1, 0, 0], [0, 0, 0]]),
    (0.5, "percentile", [[1, 0, 0], [1, 0, 0]]),
    (1.0, "percentile", [[1, 1, 0], [1, 0, 1]]),
    (0.2, "percentile", [[0, 0, 0], [0, 0, 0]]),
    (3.0, "absolute", [[1, 1, 0], [1, 0, 0]]),
    (0.0, "layer", [[0, 0, 0], [0, 0, 0]]),
])
def test_weak_is_what_lies_at_or_below_the_threshold_and_exists(alpha, scope, wanted):
    flow, mask = tensor([[1.0, 3.0, 0.0], [2.0, 0.0, 10.0]]), tensor([[1, 1, 0], [1, 0, 1]]).bool()
    assert Weak(alpha, scope)(flow, mask).int().tolist() == wanted


def test_without_a_threshold_only_exact_zeros_are_weak():
    assert Weak(0.0)(tensor([[0.0, 1e-30, 5.0]]), torch.ones(1, 3).bool()).tolist() == [[True, False, False]]


@pytest.mark.parametrize("scope", ["layer", "post", "percentile", "absolute"])
def test_a_layer_without_connections_has_none_that_is_weak(scope):
    assert not Weak(0.5, scope)(torch.zeros(2, 2), torch.zeros(2, 2).bool()).any()


@pytest.mark.parametrize(("options", "message"), [
    ((-0.1,), "alpha = -0.1: wanted a number of at least 0"),
    ((math.nan,), "alpha = nan"), ((math.inf,), "alpha = inf"),
    ((1.5, "percentile"), "alpha = 1.5: wanted a number from 0 to 1 with threshold_scope 'percentile'"),
    ((0.5, "lair"), "unknown threshold_scope 'lair'; did you mean 'layer'"),
])
def test_a_threshold_out_of_range_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Weak(*options)


# --- the life left


def lives(signal, layer, xs, **more):
    """Return the lives of the first connection, window by window; each batch is an update."""
    state, found = signal.init(view(layer, **more)), []
    for step, x in enumerate(xs, 1):
        seen = view(layer, step=step, x=x, watch=signal.watch, **more)
        state = signal.update(state, seen)
        found.append(signal.read(state, seen).flatten()[0].item())
    return found


# S = |x| in both columns: the first is weak, at most half of the mean, where it is at most a third of the second
PAIR = [[1.0, 1.0]]
WEAK, STRONG = [[0.25, 1.0]], [[1.0, 1.0]]


def test_a_life_is_used_up_by_weak_windows_in_a_row_alone():
    signal = consecutive(Flow(), EVERY_UPDATE, Weak(0.5), patience=3)
    got = lives(signal, linear(PAIR), [WEAK, WEAK, STRONG, WEAK, WEAK, WEAK, WEAK])
    # -1 / S with S = 0.25 where nothing is left
    assert got == [2, 1, 3, 2, 1, -4, -4]


def test_counting_from_the_second_weak_window_takes_one_more():
    signal = consecutive(Flow(), EVERY_UPDATE, Weak(0.5), patience=2, count_from="second")
    assert lives(signal, linear(PAIR), [WEAK] * 3) == [2, 1, -4]


def test_of_two_lives_that_are_used_up_that_which_carries_more_is_longer():
    # S = 0, 0.25, 0.5, 4; mu = 1.1875; all but the last are weak
    layer = linear([[1.0, 1.0, 1.0, 1.0]])
    signal = consecutive(Flow(), EVERY_UPDATE, Weak(0.5), patience=1)
    seen = view(layer, x=[[0.0, 0.25, 0.5, 4.0]], watch=signal.watch)
    assert signal.read(signal.update(signal.init(seen), seen), seen).tolist() == [[-math.inf, -4.0, -2.0, 1.0]]


def test_sums_are_those_of_one_window_and_are_kept_until_the_next_begins():
    # windows of two updates: |x| = (1, 3), mean 2; then (5, 5)
    layer, signal = linear([[1.0]]), consecutive(Flow(), Windows(2), Weak(0.0), patience=1)
    state = signal.init(view(layer))
    for step, (x, total, samples) in enumerate([(1.0, 1, 1), (3.0, 4, 2), (5.0, 5, 1), (5.0, 10, 2)], 1):
        state = signal.update(state, view(layer, step=step, x=[[x]], watch=signal.watch))
        assert (state["input"].tolist(), state["samples"].item()) == ([total], samples)


def test_updates_before_the_first_window_and_after_the_last_do_not_count():
    layer, signal = linear(PAIR), consecutive(Flow(), Windows(1, first=2, last=4), Weak(0.5), patience=2)
    assert lives(signal, layer, [WEAK] * 7) == [2, 2, 1, -4, -4, -4, -4]


def test_a_window_in_which_nothing_flowed_changes_nothing():
    layer, signal = linear(PAIR), consecutive(Flow(), EVERY_UPDATE, Weak(0.5), patience=3)
    assert lives(signal, layer, [WEAK, None, WEAK]) == [2, 2, 1]


def test_the_count_of_weak_windows_stops_at_the_largest_byte():
    layer, signal = linear(PAIR), consecutive(Flow("mag"), EVERY_UPDATE, Weak(9.0), patience=254)
    state = {"memory": torch.full((1, 2), 254, dtype=torch.uint8)}
    for step in (1, 2):
        state = signal.update(state, view(layer, step=step))
        assert state["memory"].tolist() == [[255, 255]]


def test_what_a_nearly_silent_input_feeds_is_weak_however_large_the_weight():
    # a = (0.05, 1); S = (50, 1): only the second is below half of the mean; with eps 0.1 the first is weak too
    layer, x = linear([[1000.0, 1.0]]), [[0.05, 1.0]]
    for eps, wanted in ((0.0, [[0, 1]]), (0.1, [[1, 1]])):
        signal = consecutive(Flow(), EVERY_UPDATE, Weak(0.5), patience=2, inactive_eps=eps)
        seen = view(layer, x=x, watch=signal.watch)
        assert signal.update(signal.init(seen), seen)["memory"].tolist() == wanted


def test_a_unit_is_silent_if_all_its_inputs_are():
    x = torch.tensor([0.05, 1.0]).view(1, 2, 1, 1)
    for a, wanted in ((x, [0, 0]), (x * 0.05, [1, 1])):
        signal = consecutive(Flow(), EVERY_UPDATE, Weak(0.0), patience=2, inactive_eps=0.1)
        seen = view(convolution([[[[1.0]], [[1.0]]]] * 2), x=a, watch=signal.watch, granularity="unit")
        assert signal.update(signal.init(seen), seen)["memory"].flatten().tolist() == wanted


@pytest.mark.parametrize("signal", [consecutive(Flow(), EVERY_UPDATE, Weak(), 2), survival(Flow(), EVERY_UPDATE)])
def test_a_bias_lives_for_ever(signal):
    seen = view(linear(PAIR), role="bias", mask=[True], x=WEAK, watch=signal.watch)
    state = signal.init(seen)
    assert signal.update(state, seen) == state
    assert signal.read(state, seen).tolist() == [math.inf]


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_it_dies_where_as_many_windows_in_a_row_were_weak_as_there_is_patience(weak, patience):
    signal = consecutive(Flow(), EVERY_UPDATE, Weak(0.5), patience)
    got = lives(signal, linear(PAIR), [WEAK if one else STRONG for one in weak])
    for end, life in enumerate(got, 1):
        assert (life <= 0) == (end >= patience and all(weak[end - patience : end]))


@pytest.mark.parametrize(("options", "message"), [
    ({"patience": 0}, "patience = 0: wanted 1 to 254"), ({"patience": 255}, "patience = 255"),
    ({"patience": 1, "count_from": "third"}, "unknown count_from 'third'"),
    ({"patience": 1, "inactive_eps": -1.0}, "inactive_eps = -1.0: wanted a mean activity of at least 0"),
])
def test_a_patience_out_of_range_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        consecutive(Flow(), EVERY_UPDATE, Weak(), **options)


def test_silence_cannot_be_told_from_weights_alone():
    with pytest.raises(OptionError, match=r"inactive_eps = 0\.1: wanted 0 with criterion 'mag'"):
        consecutive(Flow("mag"), EVERY_UPDATE, Weak(), 1, inactive_eps=0.1)


def test_a_patience_longer_than_all_windows_is_refused():
    windows = Windows(every=10, first=5, last=34)
    with pytest.raises(OptionError, match=r"2 windows of every = 10 updates end up to last = 34, .* after 3"):
        consecutive(Flow(), windows, Weak(), 3)
    with pytest.raises(OptionError, match="the first cut comes after 3"):
        consecutive(Flow(), windows, Weak(), 2, count_from="second")
    assert consecutive(Flow(), windows, Weak(), 2).update is not None


# --- the survival score

# of eight that exist the sixth smallest is the quartile: minimum 0, quartile 1
SPREAD = [[0.1, 0.25, 0.5, 0.0, 1.0, 1.0, 2.0, 3.0]]
FILTER = {"penalty": 0.65, "bonus": 5.0, "tau": 12}


def dies_at(column, windows, **options):
    """Return the number of the window after which nothing is left, or None."""
    layer = linear(SPREAD)
    signal = survival(Flow("mag"), EVERY_UPDATE, **options)
    state = signal.init(view(layer))
    for step in range(1, windows + 1):
        state = signal.update(state, view(layer, step=step))
        if signal.read(state, view(layer))[0, column] <= 0:
            return step
    return None


@pytest.mark.parametrize(("column", "options", "wanted"), [
    (3, FILTER, 21), (0, FILTER, None), (3, {}, 7), (1, {}, 10), (2, {}, 44),
], ids=["filter, u = 0", "filter, u = 0.1", "unit, u = 0", "unit, u = 0.25", "unit, u = 0.5"])  # fmt: skip
def test_a_survival_score_is_used_up_after_as_many_windows_as_its_constants_say(column, options, wanted):
    assert dies_at(column, 300, **options) == wanted


def test_one_step_of_a_survival_score_by_hand():
    # u = 0.1, 0.25, 0.5, 0, 1, 1, 1, 1; delta = 2 u - 1.5, and 2 more where above 0
    layer, signal = linear(SPREAD), survival(Flow("mag"), EVERY_UPDATE, start=2.0)
    state = signal.update(signal.init(view(layer)), view(layer))
    wanted = tensor([[-1.3, -1.0, -0.5, -1.5, 2.5, 2.5, 2.5, 2.5]]) + 0.999 * 2.0
    torch.testing.assert_close(state["memory"], wanted)


def test_a_score_is_told_from_existing_connections_and_a_newborn_starts_anew():
    # existing: 1, 1, 2, 3 with quartile 2; u = 0, 0, 1, 1
    layer, signal = linear(SPREAD), survival(Flow("mag"), EVERY_UPDATE)
    seen = view(layer, mask=[[0, 0, 0, 0, 1, 1, 1, 1]])
    state = signal.update({"memory": torch.full((1, 8), 1.0)}, seen)
    torch.testing.assert_close(state["memory"], tensor([[10.0, 10, 10, 10, -0.501, -0.501, 3.499, 3.499]]))


def test_a_layer_without_connections_keeps_its_scores():
    layer, signal = linear(SPREAD), survival(Flow("mag"), EVERY_UPDATE)
    state = signal.update(signal.init(view(layer)), view(layer, mask=[[0] * 8]))
    assert state["memory"].tolist() == [[10.0] * 8]


@pytest.mark.parametrize("options", [{"penalty": 0.0}, {"bonus": -1.0}, {"start": 0.0}, {"tau": 0}])
def test_a_score_that_says_nothing_is_refused(options):
    with pytest.raises(OptionError, match="wanted penalty > 0, bonus >= 0"):
        survival(Flow(), EVERY_UPDATE, **options)
