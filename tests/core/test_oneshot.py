import copy
from dataclasses import replace

import pytest
import torch
from torch import nn, tensor
from torch.utils.data import DataLoader, TensorDataset

from synaptree.core.errors import AttachError, DataError, NumericError, OptionError, ShapeError
from synaptree.core.method import Method
from synaptree.core.oneshot import prune
from synaptree.core.schedule import Every
from synaptree.core.signal import gradient, magnitude, noise
from synaptree.core.topology import Topology
from synaptree.methods import build
from synaptree.rules.allocate import Global
from synaptree.rules.density import Density
from synaptree.rules.share import Share
from synaptree.signals.average import ema
from synaptree.signals.contribution import contribution, reductions


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.ReLU(), nn.Linear(3, 2))


def keeping(density, **options):
    return Method(Density(density, **options), {"keep": magnitude})


def observe(calibration):
    calibration.edit(calibration.masks(calibration.layers, calibration.observe(reductions("norm_of_mean"))))


def relief(alpha):
    """Return a method that keeps what carries alpha of each unit's signal, bias included."""
    return Method(Share({"linear": alpha}), {"contribution": contribution()}, biases=True, edit=observe)


def unit(*weights, bias=0.0):
    model = nn.Linear(len(weights), 1)
    model.weight.data, model.bias.data = tensor([list(weights)]), tensor([bias])
    return model


def unchanged(model, before):
    return all(torch.equal(value.nan_to_num(9), before[key].nan_to_num(9)) for key, value in model.state_dict().items())


def test_the_smallest_weights_become_plus_zero():
    model = unit(-3.0, 1.0, -2.0, 0.5)
    topology = prune(model, keeping(0.5))
    assert model.weight.tolist() == [[-3.0, 0.0, -2.0, 0.0]]
    assert not model.weight[0, 1::2].signbit().any()
    assert topology.masks["weight"].tolist() == [[True, False, True, False]]


def test_equal_weights_of_the_whole_network_go_to_the_first():
    model = nn.Sequential(unit(1.0, 1.0), unit(1.0, 1.0))
    prune(model, keeping(0.75, allocate=Global()))
    assert [layer.weight.tolist() for layer in model] == [[[1.0, 1.0]], [[1.0, 0.0]]]


def test_contributions_are_those_of_the_data():
    # mean |x| is 2, 1, 1: contributions 2, 3, 1 and a bias of 4
    model = unit(1.0, -3.0, 1.0, bias=-4.0)
    topology = prune(model, relief(0.7), tensor([[1.0, 2.0, 0.0], [-3.0, 0.0, 2.0]]))
    assert model.weight.tolist() == [[0.0, -3.0, 0.0]]
    assert topology.masks["bias"].tolist() == [True]
    prune(model, relief(0.5), tensor([[1.0, 2.0, 0.0], [-3.0, 0.0, 2.0]]), topology=topology)
    assert (model.weight.any().item(), model.bias.item()) == (False, -4.0)


def test_exact_ties_do_not_depend_on_the_order_of_samples_and_batches():
    x = torch.randint(-8, 9, (40, 1)).div(4).repeat(1, 4)
    for samples in (x, x.flip(0), x.split(7), x[torch.randperm(40)].split(13)):
        model = unit(0.5, 0.5, 0.5, 0.5)
        prune(model, relief(0.5), samples)
        assert model.weight.tolist() == [[0.5, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("batches", [
    lambda x: x,
    lambda x: list(x.split(3)),
    lambda x: (batch for batch in x.split(3)),
    lambda x: [(x, torch.zeros(10)), [x, "labels"]],
    lambda x: DataLoader(TensorDataset(x, torch.zeros(10)), batch_size=4, shuffle=True),
])  # fmt: skip
def test_batches_may_be_a_tensor_an_iterable_or_tuples_with_the_input_first(batches):
    x = torch.randint(-8, 9, (10, 4)) / 4
    models = [unit(1.0, 2.0, 3.0, 4.0) for _ in range(2)]
    topologies = [prune(model, relief(0.6), data) for model, data in zip(models, (x, batches(x)), strict=True)]
    assert topologies[0].digest() == topologies[1].digest()
    assert topologies[0].density() < 1.0


def test_modes_gradients_statistics_and_the_random_state_are_left_as_they_were():
    model = network()
    model[2].eval()
    model(torch.randn(5, 4)).sum().backward()
    modes = [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    norm = copy.deepcopy(model[1].state_dict())
    before = torch.get_rng_state()
    loader = DataLoader(TensorDataset(torch.ones(6, 4)), batch_size=2, shuffle=True)
    prune(model, relief(0.8), loader)
    prune(model, Method(Density(0.5), {"keep": noise}))
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(parameter.grad, g) for parameter, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(value, norm[key]) for key, value in model[1].state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_random_state_is_kept_also_where_the_model_draws_in_eval_mode():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.rand(x.shape))

    before = torch.get_rng_state()
    model = Noisy(4, 2)
    torch.set_rng_state(before)
    prune(model, relief(0.5), torch.ones(2, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_after_an_error_every_module_has_its_mode_back():
    model = network()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(DataError, match="shapes"):
        prune(model, relief(0.5), torch.ones(2, 7))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [keeping(0.5), relief(0.5)])
def test_weights_that_are_not_finite_are_named_and_nothing_changes(method, value):
    model = network()
    model[4].weight.data[0, 1] = value
    before, topology = copy.deepcopy(model.state_dict()), Topology()
    topology.notes = ["of the last call"]
    with pytest.raises(NumericError, match=r"4.weight of shape \(2, 3\) holds NaN or infinity"):
        prune(model, method, torch.ones(2, 4), topology=topology)
    assert unchanged(model, before)
    assert (topology.masks, topology.notes) == ({}, ["of the last call"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_is_not_finite_is_named_and_nothing_changes(value):
    model = network()
    before, topology = copy.deepcopy(model.state_dict()), Topology()
    x = torch.ones(3, 4)
    x[1, 2] = value
    with pytest.raises(NumericError, match="layer 0: mean_abs of its input is not finite over 3 samples"):
        prune(model, relief(0.5), x, topology=topology)
    assert unchanged(model, before)
    assert not topology.masks


def test_an_edit_that_fails_half_way_is_undone():
    def half_way(calibration):
        calibration.edit({"0.weight": torch.zeros(3, 4).bool()})
        model[1].running_mean.fill_(3.0)
        raise KeyboardInterrupt

    model = network()
    before, topology = copy.deepcopy(model.state_dict()), prune(model, keeping(1.0))
    with pytest.raises(KeyboardInterrupt):
        prune(model, replace(keeping(0.5), edit=half_way), topology=topology)
    assert unchanged(model, before)
    assert topology.density() == 1.0


def test_methods_get_what_they_need_or_say_so():
    model = network()
    for nothing in (None, [], torch.ones(0, 4)):
        with pytest.raises(AttachError, match="needs data to calibrate on, got none: give batches"):
            prune(model, relief(0.5), nothing)
    with pytest.raises(AttachError, match="needs gradients of the training loss: use attach"):
        prune(model, Method(Density(0.5, keep="grow"), {"grow": gradient}))
    with pytest.raises(AttachError, match="remembers what it saw in training: use attach"):
        prune(model, Method(Density(0.5), {"keep": ema(magnitude, 0.5)}))


def test_what_is_no_batch_is_named():
    with pytest.raises(DataError, match="batch 1 of the calibration data is a dict: wanted a tensor"):
        prune(network(), relief(0.5), [torch.ones(2, 4), {"x": torch.ones(2, 4)}])


@pytest.mark.parametrize(("batches", "message"), [
    ([()], "batch 0 of the calibration data is a tuple: wanted a tensor"),
    (torch.tensor(1.0), r"batch 0 of the calibration data is 1.0: wanted .* of shape \(samples, ...\)"),
    ([torch.ones(2, 4), torch.tensor(1.0)], "batch 1 of the calibration data is 1.0: wanted"),
    (torch.ones(2, 3), r"batch 0 .* shape \(2, 3\) and torch.float32, does not go through Sequential; give.*mat1"),
    ([torch.ones(2, 4), torch.ones(2, 3)], r"batch 1 .* shape \(2, 3\) and torch.float32, does not go through"),
    (torch.ones(2, 4, dtype=torch.uint8), r"(?s)batch 0 .* shape \(2, 4\) and torch.uint8, .* dtype"),
])  # fmt: skip
def test_data_that_the_model_does_not_take_are_named_and_nothing_changes(batches, message):
    model = network()
    before, topology = copy.deepcopy(model.state_dict()), Topology()
    with pytest.raises(DataError, match=message):
        prune(model, relief(0.5), batches, topology=topology)
    assert unchanged(model, before)
    assert not topology.masks


def test_a_method_that_acts_in_training_is_not_asked_to_prune():
    for method in (replace(keeping(0.5), when=Every(2)), build("gradual_magnitude", density=0.1)):
        with pytest.raises(AttachError, match="acts during training, by its own schedule: use attach"):
            prune(nn.Linear(4, 4), method)


def test_include_and_exclude_choose_layers():
    for chosen in ({"include": ["0"]}, {"exclude": ["4"]}):
        model = network()
        topology = prune(model, keeping(0.5), **chosen)
        assert list(topology.masks) == ["0.weight"]
        assert model[4].weight.all()
    with pytest.raises(OptionError, match="unknown layer '5'"):
        prune(network(), keeping(0.5), exclude=["5"])


def test_repeated_pruning_adds_up():
    model = network()
    topology = prune(model, keeping(0.5))
    first = copy.deepcopy(topology.masks)
    again = prune(model, keeping(0.5, of_remaining=True), topology=topology)
    assert again is topology
    assert topology.density() == 4 / 18  # 9 of 18 remain, then ceil(9 / 2) go
    assert not any((topology.masks[name] & ~first[name]).any() for name in first)
    assert int((model[0].weight != 0).sum() + (model[4].weight != 0).sum()) == 4


def test_a_topology_of_another_granularity_is_refused_and_nothing_changes():
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    topology = prune(model, Method(Density(0.5), {"keep": magnitude}, granularity={"conv": "kernel"}))
    before, digest = copy.deepcopy(model.state_dict()), topology.digest()
    with pytest.raises(ShapeError, match="use the granularity it was pruned with"):
        prune(model, keeping(0.5), topology=topology)
    assert unchanged(model, before)
    assert topology.digest() == digest


def test_notes_are_those_of_the_last_call():
    topology = prune(unit(1.0, 2.0), keeping(1.0))
    topology.notes.append("left over")
    prune(unit(1.0, 2.0), keeping(1.0), topology=topology)
    assert topology.notes == []


def test_the_seed_decides_what_is_drawn():
    drawn = [prune(nn.Linear(8, 8), Method(Density(0.5), {"keep": noise}), seed=seed).digest() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
