"""Dynamic synaptic pruning in training: what dies when, what training without pruning is, and what is resumed."""

import logging
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn, tensor

from synaptree.core.attach import attach
from synaptree.core.errors import OptionError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.methods import build, dynamic_synaptic

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
OPTIMIZERS = {
    "SGD": SGD,
    "Adam": partial(torch.optim.Adam, lr=0.05, weight_decay=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1),
}


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def batches(count, shape=(6,), seed=1):
    """Return inputs of which number 1 is always zero, and classes."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(16, *shape, generator=generator)
        x[:, 1 % shape[0]] = 0.0
        yield x, torch.randint(0, 3, (16,), generator=generator)


def train(model, optimizer, data):
    """Make an update for each batch; pause after it."""
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield


def attached(model=None, *, optimizer=SGD, topology=None, **options):
    model = perceptron() if model is None else model
    optimizer = optimizer(model.parameters())
    return model, optimizer, attach(model, optimizer, dynamic_synaptic(**options), topology=topology)


def masks(on):
    return {name: mask.clone() for name, mask in on.topology.masks.items()}


# --- what dies, and when


def test_what_a_silent_input_feeds_dies_after_as_many_windows_as_there_is_patience():
    # alpha 0: nothing else is weak; windows of two updates after the first, so the third ends with update 7
    model, optimizer, on = attached(alpha=0.0, patience=3, every=2, first=1, floor=0)
    columns = []
    for _ in train(model, optimizer, batches(8)):
        columns.append(on.topology.masks["0.weight"].any(0).tolist())
        assert on.topology.masks["2.weight"].all()
    dense = [True] * 6
    assert columns == [dense] * 6 + [[True, False, True, True, True, True]] * 2


def test_one_strong_window_starts_the_count_anew():
    # input 1 is silent in windows 1, 2, then 4, 5, 6: it dies after three in a row
    model, optimizer, on = attached(alpha=0.0, patience=3, every=1, first=0, floor=0)
    data = list(batches(6))
    data[2][0][:, 1] = 1.0
    got = [bool(on.topology.masks["0.weight"][:, 1].any()) for _ in train(model, optimizer, data)]
    assert got == [True] * 5 + [False]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_dead_is_zero_after_every_update_and_stays_dead(optimizer):
    model, optimizer, on = attached(alpha=0.6, patience=2, every=2, first=0, optimizer=OPTIMIZERS[optimizer])
    before = masks(on)
    for _ in train(model, optimizer, batches(20)):
        for name, mask in on.topology.masks.items():
            assert not (mask & ~before[name]).any()
        for name, parameter in on.topology.parameters(model):
            assert not parameter[~on.topology.expanded(name)].any()
        before = masks(on)
    assert on.topology.died > 20


def test_kernels_on_maps_of_one_pixel_die_as_the_weights_of_a_linear_layer_do():
    def convolutional():
        kernels = [nn.Conv2d(6, 8, 1), nn.Tanh(), nn.Conv2d(8, 5, 1), nn.Tanh(), nn.Conv2d(5, 3, 1)]
        for module, other in zip(kernels, perceptron(), strict=True):
            if isinstance(module, nn.Conv2d):
                module.weight.data, module.bias.data = other.weight.data[:, :, None, None], other.bias.data
        return nn.Sequential(*kernels, nn.Flatten())

    options = {"alpha": 0.6, "patience": 2, "every": 3, "first": 0, "prune_output": True, "floor": 0}
    model, optimizer, on = attached(**options)
    twin, other, beside = attached(convolutional(), conv="kernel", **options)
    pictures = ((x[:, :, None, None], y) for x, y in batches(20))
    for _ in zip(train(model, optimizer, batches(20)), train(twin, other, pictures), strict=True):
        for name, mask in on.topology.masks.items():
            assert torch.equal(mask, beside.topology.masks[name].view_as(mask)), name
    assert on.topology.died > 10


def test_after_the_last_window_all_stay():
    model, optimizer, on = attached(alpha=0.6, patience=1, every=2, first=0, last=5)
    seen = [on.topology.digest() for _ in train(model, optimizer, batches(12))]
    assert len({*seen[:4]}) == 3  # dense, and after updates 2 and 4
    assert len({*seen[3:]}) == 1


def test_the_leaky_rule_takes_a_survival_score():
    # the silent input: R = 1 at first, then 0.999 R - 0.4 each window: 0.6, 0.2, -0.2
    options = {"patience_rule": "leaky", "penalty": 0.4, "survival_start": 1.0, "every": 1, "first": 0, "floor": 0}
    model, optimizer, on = attached(**options)
    got = [bool(on.topology.masks["0.weight"][:, 1].any()) for _ in train(model, optimizer, batches(4))]
    assert got == [True, True, False, False]


def test_weak_weights_fade_before_they_die():
    # a rate of 0: only the fading moves weights; the silent input feeds what is weak
    model, optimizer, _ = attached(
        alpha=0.0, patience=3, every=1, first=0, weaken=0.5, floor=0, optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    start = perceptron()[0].weight.detach()
    factors = []
    for _ in train(model, optimizer, batches(3)):
        factors.append((model[0].weight / start).detach())
    for step, factor in enumerate((0.5, 0.25, 0.0)):
        assert torch.equal(factors[step][:, 1], torch.full((8,), factor))
        assert (factors[step][:, [0, 2, 3, 4, 5]] == 1).all()


# --- pruning off


@pytest.mark.parametrize("options", [
    {"alpha": 0.0, "patience": 1, "every": 1, "first": 0}, {"alpha": 0.9, "patience": 1, "every": 1, "first": 100},
], ids=["alpha 0", "before first"])  # fmt: skip
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_where_nothing_dies_training_is_that_of_the_dense_network_bit_for_bit(options, optimizer):
    data = [(x + 0.5, y) for x, y in batches(10)]  # no input is silent
    plain, model = perceptron(), perceptron()
    twin, optimizer, on = attached(model, optimizer=(make := OPTIMIZERS[optimizer]), **options)
    for _ in zip(train(plain, make(plain.parameters()), data), train(twin, optimizer, data), strict=True):
        for one, other in zip(plain.parameters(), twin.parameters(), strict=True):
            assert torch.equal(one, other)
    assert on.topology.died == 0
    assert on.topology.density() == 1.0


# --- resumed


@pytest.mark.parametrize("options", [
    {"alpha": 0.6, "patience": 2}, {"patience_rule": "leaky", "survival_start": 3.0},
    {"alpha": 0.9, "criterion": "trend", "patience": 2}, {"alpha": 0.6, "criterion": "gradient", "patience": 2},
    {"alpha": 0.6, "criterion": "pre_post", "patience": 1}, {"alpha": 0.6, "first_layer_activity": "abs_minus_min"},
], ids=lambda options: " ".join(map(str, options.values())))  # fmt: skip
def test_stopped_in_the_middle_of_a_window_and_resumed_it_ends_where_it_would_have(options, tmp_path):
    options = {"every": 4, "first": 1, "floor": 0, **options}
    data = list(batches(30))
    model, optimizer, on = attached(**options)
    for step, _ in enumerate(train(model, optimizer, data), 1):
        if step == 11:
            parts = {"model": model, "optimizer": optimizer, "attached": on}
            torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "checkpoint")
    again, other, resumed = attached(**options)
    saved = torch.load(tmp_path / "checkpoint")
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["attached"])
    for _ in train(again, other, data[11:]):
        pass
    assert resumed.topology.digest() == on.topology.digest()
    assert on.topology.died > 0
    for key, state in on.topology.state.items():
        assert all(torch.equal(value, resumed.topology.state[key][name]) for name, value in state.items())
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


# --- the guard


def test_a_layer_whose_cut_is_held_back_is_left_alone_from_then_on_also_after_resuming(caplog):
    # "absolute" with alpha 1000: all are weak in every window, so the first layer's and the second's cuts leave nothing
    options = {"alpha": 1000.0, "threshold_scope": "absolute", "patience": 2, "every": 1, "first": 0, "floor": 0}
    model, optimizer, on = attached(**options)
    with caplog.at_level(logging.WARNING, logger="synaptree"):
        for _ in train(model, optimizer, batches(3)):
            pass
        assert on.topology.density() == 1.0
        assert on.topology.notes == [
            "0.weight: no longer pruned: too little would be left",
            "2.weight: no longer pruned: too little would be left",
        ]
        assert [text.partition(":")[0] for text in caplog.messages] == ["0.weight", "2.weight"]
        caplog.clear()
        again, other, resumed = attached(**options)
        resumed.load_state_dict(deepcopy(on.state_dict()))
        for _ in train(again, other, batches(3)):
            pass
    assert resumed.topology.notes == on.topology.notes
    assert not caplog.messages


def test_without_a_guard_all_of_it_dies():
    model, optimizer, on = attached(
        alpha=1000.0, threshold_scope="absolute", patience=2, every=1, first=0, floor=0, guard=0.0
    )
    for _ in train(model, optimizer, batches(3)):
        pass
    assert not on.topology.masks["0.weight"].any()
    assert not on.topology.masks["2.weight"].any()


# --- which layers


def test_the_output_and_convolutions_are_left_alone_unless_asked_for():
    def network():
        return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))

    def developed(**options):
        torch.manual_seed(0)
        model, optimizer, on = attached(network(), alpha=0.9, patience=1, every=1, first=0, **options)
        for _ in train(model, optimizer, batches(3, (2, 3, 3))):
            pass
        return {name: mask.all() for name, mask in on.topology.masks.items() if name.endswith("weight")}

    assert developed() == {"3.weight": False, "5.weight": True}
    assert developed(prune_output=True) == {"3.weight": False, "5.weight": False}
    assert developed(conv="kernel") == {"0.weight": False, "3.weight": False, "5.weight": True}


def test_a_dead_filter_goes_with_its_bias_its_batch_norm_and_all_that_read_it():
    # filter 1 has no weights, so it alone is weak; its shift of 1 feeds 4 columns of the linear layer until it dies
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3)
    )
    model[0].weight.data = tensor([[1.0, 1.0], [0.0, 0.0], [1.0, -1.0]]).view(3, 2, 1, 1)
    nn.init.ones_(model[1].bias)
    model, optimizer, on = attached(
        model, alpha=0.0, patience=1, every=1, first=0, conv="unit", optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    for _ in train(model, optimizer, batches(1, (2, 2, 2))):
        pass
    assert on.topology.masks["0.weight"].flatten().tolist() == [True, False, True]
    for name in ("0.bias", "1.weight", "1.bias"):
        assert on.topology.masks[name].tolist() == [True, False, True]
    assert on.topology.masks["4.weight"].any(0).tolist() == [True] * 4 + [False] * 4 + [True] * 4


@pytest.mark.parametrize("conv", [None, "weight", "kernel"])
def test_units_that_die_by_consequence_do_not_change_the_outputs(conv):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(45, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3),
        )  # fmt: skip

    developed = []
    for cascade in (True, False):
        model, optimizer, on = attached(
            network(), alpha=1.3, patience=2, every=3, first=0, floor=0, guard=0.0, conv=conv, cascade=cascade
        )
        for _ in train(model, optimizer, batches(6, (1, 18, 18))):
            pass
        developed.append((model.eval(), on.topology))
    (model, with_cascade), (plain, without) = developed
    assert with_cascade.died > without.died + 10
    x = torch.randn(20, 1, 18, 18)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-5)


class Deciding(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_a_model_that_cannot_be_read_is_pruned_without_its_units():
    torch.manual_seed(0)
    model, optimizer, on = attached(Deciding(*perceptron()), alpha=0.6, patience=1, every=1, first=0, floor=0)
    for _ in train(model, optimizer, batches(1)):
        pass
    assert on.topology.died > 0
    (note,) = on.topology.notes
    assert note.startswith("units that nothing reads any more stay: cannot trace Deciding.forward")


def test_wrapped_models_are_pruned_as_they_are():
    digests = []
    for wrap in (nn.Identity, nn.DataParallel):
        inner = perceptron()
        model, optimizer, on = attached(inner if wrap is nn.Identity else wrap(inner), alpha=0.6, patience=1, every=2,
                                        first=0, floor=0)  # fmt: skip
        for _ in train(model, optimizer, batches(6)):
            pass
        digests.append(on.topology.digest())
    assert digests[0] == digests[1]


# --- the first layer's activity


def silent_above_minimum(topology=None, windows=1):
    """Return what dies if input 1 is always at the batch's minimum, far from 0."""
    model, optimizer, on = attached(
        alpha=0.0, patience=1, every=1, first=0, floor=0, first_layer_activity="abs_minus_min", topology=topology
    )
    data = [(x.clamp_min(-1.0), y) for x, y in batches(windows)]
    for x, _ in data:
        x[:, 1] = -1.0
    for _ in train(model, optimizer, data):
        pass
    return on.topology.masks["0.weight"].any(0).tolist()


def test_what_an_input_at_the_minimum_feeds_dies_if_the_first_layer_counts_from_there():
    assert silent_above_minimum() == [True, False, True, True, True, True]


def test_on_a_topology_that_exists_it_counts_from_there_after_the_first_window():
    granularity = {"linear": "weight"}
    given = [Topology.of(layers_of(perceptron()), granularity) for _ in range(2)]
    assert silent_above_minimum(given[0]) == [True] * 6
    assert silent_above_minimum(given[1], windows=2) == [True, False, True, True, True, True]


def test_other_layers_count_from_zero():
    _, _, on = attached(first_layer_activity="abs_minus_min")
    flags = {name: bool(state.get("from_minimum", False)) for name, state in on.topology.state.items()}
    assert [name for name, flag in flags.items() if flag] == ["life/0.weight"]


# --- mixed precision, options


def test_a_batch_that_overflows_does_not_count():
    # two windows, of two batches and of the same with an infinite one between them; no gradient, so no weight moves
    first, second = (x for x, _ in batches(2))
    digests = []
    for window in ([first, second], [first, torch.full((16, 6), torch.inf), second]):
        model, optimizer, on = attached(alpha=0.6, patience=1, every=len(window), first=0)
        for x in window:
            model(x)
            optimizer.step()
        digests.append(on.topology.digest())
        assert on.topology.died > 0
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("options", "message"), [
    ({"alpha": -1.0}, "alpha = -1.0: wanted a number of at least 0"),
    ({"alpha": 2.0, "threshold_scope": "percentile"}, "wanted a number from 0 to 1"),
    ({"patience": 0}, "patience = 0: wanted 1 to 254"),
    ({"every": 0}, "wanted every >= 1"),
    ({"every": 100, "first": 50, "last": 149}, "no window of every = 100 updates ends between first = 50 and last"),
    ({"every": 100, "first": 0, "last": 450}, "4 windows .* the first cut comes after 5"),
    ({"floor": -1}, "wanted floor >= 0"),
    ({"guard": 1.5}, r"a guard in \[0, 1\)"),
    ({"weaken": 0.0}, "weaken = 0.0: wanted a factor above 0 and at most 1"),
    ({"weaken": 0.5, "patience_rule": "leaky"}, "and 1 with the leaky rule"),
    ({"patience_rule": "leaky", "tau": 0}, "tau >= 1"),
    ({"criterion": "contribution"}, "unknown criterion of dynamic_synaptic 'contribution'; did you mean 'contrib'"),
    ({"conv": "kernal"}, "dynamic_synaptic: wanted conv of type"),
])
def test_options_out_of_range_are_refused_when_the_method_is_built(options, message):
    with pytest.raises(OptionError, match=message):
        build("dynamic_synaptic", **options)


# --- on digits

EPOCH = 26  # updates: 1,257 of 1,797 images in batches of 50


def digits(epochs, **options):
    """Return the share of unseen digits told apart, the share of weights cut, and the notes."""
    load = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(load.data / 16).float(), torch.tensor(load.target)
    training, test = torch.randperm(len(x), generator=torch.Generator().manual_seed(100)).split((1257, 540))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    on = attach(model, optimizer, dynamic_synaptic(every=EPOCH, first=3 * EPOCH, **options))
    for _ in range(epochs):
        for batch in training[torch.randperm(len(training))].split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    right = (model(x[test]).argmax(1) == y[test]).double().mean().item()
    return right, 1 - on.topology.density(), on.topology.notes


@pytest.mark.slow
def test_on_digits_most_connections_go_within_a_point_of_the_dense_network():
    dense, none, _ = digits(30, alpha=0.0, last=4 * EPOCH, patience=1, threshold_scope="absolute", criterion="mag")
    assert none == 0
    right, gone, notes = digits(30, alpha=0.5, patience=3)
    assert 0.70 < gone < 0.85
    assert right > dense - 0.01
    assert not notes


@pytest.mark.slow
def test_on_digits_the_guard_stops_a_threshold_that_makes_the_network_collapse():
    right, gone, notes = digits(30, alpha=1.0, patience=2)
    assert right > 0.9
    assert gone < 0.99
    assert notes[0] == "0.weight: no longer pruned: too little would be left"
    collapsed, gone, notes = digits(30, alpha=1.0, patience=2, guard=0.0, floor=0)
    assert collapsed < 0.3
    assert gone > 0.99
    assert not notes
