import math

import pytest
import torch
from torch import nn

from synaptree.core.errors import NumericError
from synaptree.core.oneshot import prune
from synaptree.methods import build
from synaptree.train import zoo
from synaptree.train.checkpoint import load_checkpoint, save_checkpoint
from synaptree.train.data import Dataset, Split, load
from synaptree.train.loop import Interrupted, TrainOptions, evaluate, mistakes, train
from synaptree.train.network import Network

OPTIONS = TrainOptions(epochs=3, batch=300, lr=1e-2)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def network(seed: int = 0, hidden: tuple[int, ...] = (16,)) -> Network:
    return Network(zoo.build("mlp", seed=seed, inputs=64, hidden=hidden))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_learns_and_is_the_same_twice(digits):
    runs = [network(), network()]
    logs = [list(train(net, digits, OPTIONS, seed=3)) for net in runs]
    assert equal(runs[0].model, runs[1].model)
    assert logs[0][-1].validation_accuracy > 0.4  # chance is 0.1
    assert [log.loss for log in logs[0]] == [log.loss for log in logs[1]]
    assert runs[0].step == 3 * math.ceil(len(digits.train.y) / 300)
    assert runs[0].epoch == 3


def test_another_seed_gives_another_order(digits):
    runs = [network(), network()]
    for seed, net in enumerate(runs):
        list(train(net, digits, OPTIONS, seed=seed))
    assert not equal(runs[0].model, runs[1].model)


def test_dead_connections_stay_dead_through_training(digits):
    net = network()
    prune(net.model, build("magnitude", density=0.2), topology=net.topology)
    list(train(net, digits, OPTIONS, seed=0))
    for name, parameter in net.topology.parameters(net.model):
        assert (parameter[~net.topology.masks[name]] == 0).all()
    assert net.topology.step == net.step


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_stopped_run_goes_on_bit_for_bit_from_its_checkpoint(digits, tmp_path, optimizer, after):
    options = OPTIONS.model_copy(update={"optimizer": optimizer, "lr": 1e-3, "selection": "best_validation"})
    whole = network()
    prune(whole.model, build("magnitude", density=0.5), topology=whole.topology)
    logs = list(train(whole, digits, options, seed=5))

    part = network()
    prune(part.model, build("magnitude", density=0.5), topology=part.topology)
    with pytest.raises(Interrupted):
        list(train(part, digits, options, seed=5, stop=lambda: part.step == after))
    save_checkpoint(part, tmp_path / "c", identity="me", log={"a": [1]})
    torch.manual_seed(99)
    resumed = network(seed=8)
    log, state = load_checkpoint(resumed, tmp_path / "c", identity="me")
    rest = list(train(resumed, digits, options, seed=5, optimizer_state=state))
    assert log == {"a": [1]}
    assert equal(whole.model, resumed.model)
    assert [x.loss for x in logs[-len(rest) :]] == [x.loss for x in rest]
    assert resumed.topology.digest() == whole.topology.digest()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_go_on_bit_for_bit_in_either_memory_layout(digits, tmp_path, optimizer, channels_last):
    def fresh() -> Network:
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)
        return Network(nn.Sequential(*layers))

    options = TrainOptions(epochs=2, batch=300, lr=1e-2, optimizer=optimizer, channels_last=channels_last)
    whole, part, resumed = fresh(), fresh(), fresh()
    list(train(whole, digits, options, seed=0))
    with pytest.raises(Interrupted):
        list(train(part, digits, options, seed=0, stop=lambda: part.step == 3))
    save_checkpoint(part, tmp_path / "c", identity="me", log={})
    _, state = load_checkpoint(resumed, tmp_path / "c", identity="me")
    list(train(resumed, digits, options, seed=0, optimizer_state=state))
    assert equal(whole.model, resumed.model)


def test_the_best_epoch_is_one_under_the_final_masks(digits):
    net = network()
    method = build("gradual_magnitude", density=0.02, last=10, every=2)
    options = OPTIONS.model_copy(update={"epochs": 5, "selection": "best_validation"})
    logs = list(train(net, digits, options, seed=0, method=method))
    assert net.topology.density() == pytest.approx(0.02, abs=1e-3)
    under_final_masks = [log.validation_accuracy for log in logs[2:]]  # update 10 falls into the third epoch
    assert evaluate(net.model, digits, digits.validation) == max(under_final_masks)


def test_dropout_goes_on_too(digits, tmp_path):
    def fresh() -> Network:
        torch.manual_seed(0)
        return Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10)))

    whole, part, resumed = fresh(), fresh(), fresh()
    list(train(whole, digits, OPTIONS, seed=0))
    with pytest.raises(Interrupted):
        list(train(part, digits, OPTIONS, seed=0, stop=lambda: part.step == 6))
    save_checkpoint(part, tmp_path / "c", identity="me", log={})
    _, state = load_checkpoint(resumed, tmp_path / "c", identity="me")
    list(train(resumed, digits, OPTIONS, seed=0, optimizer_state=state))
    assert equal(whole.model, resumed.model)


def test_selection_keeps_the_best_validation_epoch(digits):
    net, last = network(), network()
    options = OPTIONS.model_copy(update={"epochs": 6, "lr": 0.3, "selection": "best_validation"})
    logs = list(train(net, digits, options, seed=1))
    list(train(last, digits, options.model_copy(update={"selection": "last"}), seed=1))
    best = max(log.validation_accuracy for log in logs)
    assert evaluate(net.model, digits, digits.validation) == best
    assert evaluate(last.model, digits, digits.validation) == logs[-1].validation_accuracy


def test_a_loss_that_is_not_finite_stops_before_the_update(digits):
    net = network()
    before = net.weights()
    net.model[1].bias.data[0] = math.nan
    with pytest.raises(NumericError, match="the loss is nan at update 0"):
        list(train(net, digits, OPTIONS, seed=0))
    assert torch.equal(net.model.state_dict()["fc1.weight"], before["fc1.weight"])


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"milestones": (1, 2), "gamma": 0.1}, [1.0, 0.1, 0.01]),
        ({"schedule": "cosine"}, [1.0, 0.75, 0.25]),
    ],
)
def test_the_learning_rate_follows_from_the_epoch(digits, options, rates):
    net, seen = network(), []
    chosen = TrainOptions(epochs=3, batch=1500, optimizer="sgd", lr=1.0, **options)
    for _ in train(net, digits, chosen, seed=0):
        seen.append(net.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx(rates)


def test_biases_can_be_spared_from_decay(digits):
    net = network()
    options = TrainOptions(epochs=1, optimizer="sgd", weight_decay=0.1, decay_all=False)
    logs = train(net, digits, options, seed=0)
    next(logs)
    decays = {p.dim(): group["weight_decay"] for group in net.optimizer.param_groups for p in group["params"]}
    assert decays == {2: 0.1, 1: 0.0}
    logs.close()


def test_mistakes_are_the_indices_of_wrong_items():
    images = torch.tensor([[[[1, 0]]], [[[0, 1]]], [[[1, 0]]]], dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 0, 1]))
    data = Dataset("toy", split, split, split, 2, (0.0,), (1.0,), 1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    model[1].weight.data = torch.eye(2)
    assert mistakes(model, data, split) == [1, 2]
    assert evaluate(model, data, split) == pytest.approx(1 / 3)


def test_channels_last_keeps_masks_and_results_close():
    data = load("digits")
    results = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        net = Network(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)))
        prune(net.model, build("magnitude", density=0.5, conv="kernel"), topology=net.topology)
        list(train(net, data, TrainOptions(epochs=1, batch=400, channels_last=channels_last), seed=0))
        assert (net.model[0].weight[~net.topology.expanded("0.weight")] == 0).all()
        results.append(net.model[3].weight.detach().clone())
    torch.testing.assert_close(*results)


def test_autocast_computes_in_bfloat16_and_keeps_masks_and_float32_weights():
    data = load("digits")
    results = {}
    for autocast in (None, "bfloat16"):
        torch.manual_seed(0)
        net = Network(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)))
        prune(net.model, build("magnitude", density=0.5, conv="kernel"), topology=net.topology)
        seen = set()
        net.model[1].register_forward_hook(lambda _module, _x, y, seen=seen: seen.add((y.dtype, y.requires_grad)))
        list(train(net, data, TrainOptions(epochs=1, batch=400, autocast=autocast), seed=0))
        trained = torch.bfloat16 if autocast else torch.float32
        assert seen == {(trained, True), (torch.float32, False)}  # accuracies are measured without
        assert (net.model[0].weight[~net.topology.expanded("0.weight")] == 0).all()
        results[autocast] = net.model[3].weight.detach().clone()
    assert results["bfloat16"].dtype == torch.float32
    assert not torch.equal(results[None], results["bfloat16"])
    torch.testing.assert_close(results[None], results["bfloat16"], atol=5e-3, rtol=0)
