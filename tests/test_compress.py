"""The one call: what it promises, in which forms data comes, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import synaptree
from synaptree.artifact.syn import load, load_into
from synaptree.compression.feed import validation_feed
from synaptree.compression.judge import Judge
from synaptree.core.errors import AttachError, DataError, NumericError, OptionError
from synaptree.train import data

Pair = tuple[Tensor, Tensor]


@pytest.fixture
def toy() -> tuple[nn.Module, Pair, Pair]:
    """A network of 640 weights, and a task for which some dozen are enough."""
    torch.manual_seed(0)
    x = torch.randn(400, 8)
    y = (x[:, 0] + x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    return model, (x[:300], y[:300]), (x[300:], y[300:])


def quick(model, train, val=None, **options):
    return synaptree.compress(model, train, val, **({"budget": "60 epochs", "batch": 32, "timing": False} | options))


def test_a_network_comes_out_smaller_and_loses_no_more_than_is_allowed(toy, tmp_path):
    model, train, val = toy
    found = quick(model, train, val, max_drop=3, out=tmp_path)
    report = found.report
    assert report.times_fewer > 3
    assert report.after.value >= report.before.value - 3
    assert report.after.weights == sum(found.topology.weights_alive(name) for name in found.topology.masks)
    assert report.after.bytes == (tmp_path / "network.syn").stat().st_size < report.before.bytes
    assert found.file == tmp_path / "network.syn"
    assert any(one.kept for one in report.tries)
    x, y = val
    assert 100 * float((found.model(x).argmax(1) == y).float().mean()) == pytest.approx(report.after.value)
    torch.testing.assert_close(load(found.file)(x), found.model(x))


def test_the_model_its_mode_and_the_random_state_are_left_as_they_were(toy):
    model, train, val = toy
    model.eval()
    model[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    quick(model, train, val, budget="30 epochs")
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model[0].training, model[1].training) == (False, False, True)


def test_an_untrained_network_is_trained_first_and_a_trained_one_is_not(toy):
    model, train, val = toy
    for parameter in model.parameters():
        parameter.data.zero_()
    torch.nn.init.normal_(model[0].weight)
    found = quick(model, train, val, max_drop=3)
    assert "counts as untrained" in found.report.words[0]
    assert found.report.before.value > 80
    again = quick(found.dense, train, val, max_drop=3)
    assert "untrained" not in str(again.report)
    assert all(torch.equal(a, b) for a, b in zip(again.dense.parameters(), found.dense.parameters(), strict=True))


def test_the_search_closes_in_on_the_least_density_that_is_good_enough(toy):
    _, (x, y), _ = toy
    train = (x.repeat(1, 20), y)

    def enough(network: nn.Module, _: object) -> float:
        return float(int((network.weight != 0).sum()) >= 100)

    found = quick(nn.Linear(160, 2), train, train, metric=enough, max_drop=0.5)
    assert 100 <= int((found.model.weight != 0).sum()) < 120
    assert found.report.before.weights == 320
    assert found.report.metric == "enough"
    assert [one.kept for one in found.report.tries].count(False) > 0


def test_where_nothing_can_be_cut_the_report_says_that_there_is_no_gain_and_why(toy):
    model, train, val = toy

    def only_dense(network: nn.Module, _: object) -> float:
        return float((network[0].weight != 0).all())

    found = quick(model, train, val, metric=only_dense, max_drop=0.0, budget="30 epochs")
    assert found.report.after.weights == found.report.before.weights
    assert str(found.report).startswith("no gain here, because no try came out well enough; the nearest, ")


def test_a_budget_of_epochs_gives_the_same_network_each_time(toy):
    model, train, val = toy
    first, second = (quick(model, train, val, max_drop=3, budget="40 epochs", seed=3) for _ in range(2))
    assert first.topology.digest() == second.topology.digest()
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert first.report.epochs <= 40


def test_a_search_whose_time_is_up_ends_with_what_was_kept(toy):
    model, train, val = toy
    found = quick(model, train, val, max_drop=100, budget=2, loss=nn.functional.cross_entropy)
    kept = [one.weights for one in found.report.tries if one.kept]
    assert found.report.after.weights <= min(kept, default=640)
    assert found.report.budget == "2"


def test_whoever_asks_to_stop_gets_what_was_found_so_far(toy):
    model, train, val = toy
    seen: list[int] = []
    found = quick(
        model, train, val, max_drop=3, budget="10m", trained=True,
        watch=lambda moment: seen.append(len(moment.tries)), stop=lambda: len(seen) > 4,
    )  # fmt: skip
    assert found.report.seconds < 300
    assert [one.why for one in found.report.tries][-1] == "the time was up"


def test_the_engine_is_timed_beside_torch_with_the_network_before(toy, monkeypatch):
    pytest.importorskip("synaptree.runtime._native")
    monkeypatch.setattr("synaptree.compression.ending.installed", lambda _: ("torch",))
    model, train, val = toy
    found = quick(model, train, val, max_drop=3, timing=True, budget="20 epochs")
    assert found.report.engine_value is not None
    assert found.timing is not None
    assert found.timing.batches == [1, 32]
    assert {row.network for row in found.timing.rows if row.batch == 1} == {"before", "compressed"}
    assert found.timing.engine(1).microseconds > 0
    assert any(line.startswith("batch 32: ") for line in found.report.words)


def test_the_report_is_left_beside_the_file_as_plain_numbers(toy, tmp_path):
    model, train, val = toy
    found = quick(model, train, val, out=tmp_path / "new" / "folder")
    said = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert said["after"]["weights"] == found.report.after.weights
    assert len(said["tries"]) == len(found.report.tries)
    assert said["words"] == list(found.report.words)
    assert said["timing"] is None


class Branching(nn.Module):
    """Decides by a value, so that nobody can trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.second(y if float(y.detach().sum()) >= 0 else -y)


def test_a_model_that_cannot_be_traced_gets_masks_and_a_file_for_its_own_class(toy, tmp_path):
    _, train, val = toy
    found = quick(Branching(), train, val, max_drop=3, out=tmp_path, timing=True)
    assert found.report.times_fewer > 2
    assert "for load_into and a model of the same class" in str(found.report)
    assert found.timing is None
    assert "not timed" in str(found.report)
    again = Branching()
    load_into(again, found.file)
    torch.testing.assert_close(again.eval()(val[0]), found.model(val[0]))


def test_a_loss_and_a_metric_of_the_users_make_it_compress_a_regression(toy):
    _, (x, _), (x_val, _) = toy
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    train, val = (x, x[:, :1] * 2), (x_val, x_val[:, :1] * 2)

    def closeness(network: nn.Module, pair: Pair) -> Tensor:
        return -(network(pair[0]) - pair[1]).square().mean()

    found = quick(
        model, train, val, loss=nn.functional.mse_loss, metric=closeness, max_drop=0.3, trained=False,
    )  # fmt: skip
    assert found.report.before.value > -0.3
    assert found.report.times_fewer > 2


@pytest.mark.parametrize("form", ["loader", "shuffling", "batches", "once", "map", "arrays"])
def test_data_comes_in_many_forms(form, toy):
    model, (x, y), val = toy
    train = {
        "loader": DataLoader(TensorDataset(x, y), 64),
        "shuffling": DataLoader(TensorDataset(x, y), 64, shuffle=True),
        "batches": list(zip(x.split(50), y.split(50), strict=True)),
        "once": zip(x.split(50), y.split(50), strict=True),
        "map": TensorDataset(x, y),
        "arrays": (x.double().numpy(), y.numpy()),
    }[form]
    found = quick(model, train, val, max_drop=3, budget="30 epochs")
    assert found.report.tries
    assert found.report.epochs > 1


def test_a_data_set_of_the_zoo_brings_its_own_validation_data():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
    found = quick(model, data.load("digits"), max_drop=2, batch=128)
    assert found.report.times_fewer > 2


def _of(model=None, train=None, val=None, **options):
    """Return a call in which some things are not what they should be."""

    def call(toy):
        own, its_train, its_val = toy
        quick(model or own, its_train if train is None else train, its_val if val is None else val, **options)

    return call


X, Y = torch.randn(20, 8), torch.zeros(20, dtype=torch.long)


@pytest.mark.parametrize(("call", "error", "said"), [
    (_of(train=X), DataError, "the training data is a tensor of shape (20, 8): wanted"),
    (_of(train=[X, X, X]), DataError, "batch 0 of the training data is a tensor of shape (20, 8): wanted a pair"),
    (_of(train=[]), DataError, "the training data is empty"),
    (_of(val=[]), DataError, "the validation data is empty"),
    (_of(val=(X[:0], Y[:0])), DataError, "the validation data is empty"),
    (_of(train=(X, Y[:3])), DataError, "wanted a label for each input"),
    (_of(train=(X[:, :3], Y)), DataError, "does not go through Sequential and the loss"),
    (_of(train=(X, Y + 9)), DataError, "the model has 2 outputs, wanted labels from 0 to 1"),
    (_of(train=(X, X)), DataError, "give the loss to train with"),
    (_of(val=(X, X)), DataError, "give a metric of your own"),
    (_of(max_drop=-1), OptionError, "max_drop = -1: wanted a number of at least 0"),
    (_of(max_drop="much"), OptionError, "max_drop = 'much'"),
    (_of(budget="soon"), OptionError, "budget = 'soon': wanted seconds above 0"),
    (_of(budget=0), OptionError, "budget = 0"),
    (_of(method="abacus"), OptionError, "unknown method 'abacus'"),
    (_of(method="nest"), OptionError, "'nest' has no option that brings a network to a density"),
    (_of(values="int4"), OptionError, "unknown coding of values 'int4'"),
    (_of(batch=0), OptionError, "batch = 0"),
    (_of(val=(torch.where(torch.arange(20)[:, None] == 7, torch.nan, X), Y)), DataError,
     "batch 0 of the validation data has inputs that are not finite, the first in its sample 7"),
    (_of(val=[(X, Y), (X / 0, Y)], metric=lambda *_: 1.0, max_drop=1), DataError, "batch 1 of the validation data"),
    (_of(model="m"), OptionError, "model = 'm': wanted a torch.nn.Module, got a str"),
    (_of(model=nn.ReLU), OptionError, "got the class ReLU: call it"),
    (_of(train=(X / 0, Y), val=(X, Y)), NumericError, "inputs or labels of its batch are not finite"),
    (_of(metric=lambda *_: "good", max_drop=1), OptionError, "metric gave 'good', a str: wanted one number"),
    (_of(metric=lambda *_: 1.0), OptionError, "max_drop is missing"),
    (_of(metric=lambda *_: float("nan"), max_drop=1), NumericError, "the metric of the dense network is nan"),
    (_of(loss=lambda *_: 3.0), DataError, "the loss gave float"),
    (_of(loss=lambda y, _: y), DataError, "wanted one number as a tensor"),
    (_of(model=nn.Sequential(nn.Flatten(), nn.PReLU())), AttachError, "nothing to prune"),
])  # fmt: skip
def test_what_cannot_be_worked_with_is_refused_in_a_sentence(call, error, said, toy):
    with pytest.raises(error) as caught:
        call(toy)
    assert said in str(caught.value)


def test_validation_data_may_be_left_out_only_with_a_data_set_of_the_zoo(toy):
    model, train, _ = toy
    with pytest.raises(OptionError, match="val_data is missing"):
        quick(model, train)


def test_a_budget_too_short_for_an_epoch_says_how_long_one_takes_and_changes_nothing(toy, tmp_path):
    _, (x, y), val = toy
    large = nn.Sequential(nn.Linear(8, 2000), nn.ReLU(), nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 2))
    train = (x.repeat(200, 1), y.repeat(200))
    with pytest.raises(OptionError, match=r"An epoch takes .* s, .* nothing was changed"):
        quick(large, train, val, budget=1, out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


class Breaking(nn.Module):
    """Gives outputs that are not finite outside training, once a weight is dead."""

    def __init__(self, bad: float) -> None:
        super().__init__()
        self.layer, self.bad = nn.Linear(8, 2), bad

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        dead = not self.training and bool((self.layer.weight == 0).any())
        return y.where(torch.arange(2) > 0, self.bad) if dead else y


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_whose_outputs_are_not_finite_is_a_try_that_was_not_kept(bad, toy):
    _, train, val = toy
    found = quick(Breaking(bad), train, val, trained=True, max_drop=100, budget="8 epochs")
    assert found.report.tries
    for one in found.report.tries:
        assert not one.kept
        assert one.why == "its outputs on the validation data are not finite"
        assert np.isnan(one.value)
    assert found.report.after.weights == found.report.before.weights


def test_a_model_whose_outputs_are_not_finite_is_refused(toy, tmp_path):
    model, train, val = toy
    nn.init.constant_(model[0].bias, float("nan"))
    with pytest.raises(NumericError, match="the outputs of the model on the validation data are not finite"):
        quick(model, train, val, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_is_ruled_out_by_minus_infinity_can_be_judged(toy):
    _, _, val = toy
    judge = Judge.of(validation_feed(val, None), None, None)
    model = nn.Linear(8, 3)
    with torch.no_grad():
        model.bias[2] = -float("inf")
    assert 0 <= judge(model) <= 100


def test_a_metric_that_becomes_infinite_is_never_good_enough(toy):
    judge = Judge.of(validation_feed(toy[2], None), lambda *_: 1.0, 0.5)
    assert [judge.accepts(value, 1.0) for value in (1.0, 0.5, 0.4, float("inf"), float("nan"))] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_network_that_does_not_learn_in_the_budget_is_refused_and_nothing_is_written(toy, tmp_path):
    _, (x, y), (x_val, y_val) = toy
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))

    def unlearning(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, 1 - labels)

    with pytest.raises(OptionError, match=r"did not learn in this budget: .* most frequent class.* larger budget"):
        quick(model, (x, y), (x_val, y_val), loss=unlearning, trained=False, max_drop=3, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_called_trained_that_knows_nothing_is_compressed_with_a_warning(toy):
    model, train, val = toy
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    found = quick(model, train, val, trained=True, budget="2 epochs")
    assert found.report.words[0].startswith("the model was said to be trained, but its accuracy of ")


def exact(model: nn.Module, worth: float):
    """Return a metric that is 1 for the weights a model has now, and `worth` for all others."""
    wanted = model[0].weight.detach().clone()
    return lambda network, _: 1.0 if torch.equal(network[0].weight, wanted) else worth


def test_weights_that_fp16_cannot_say_are_stored_as_fp32(toy):
    model, train, val = toy
    with torch.no_grad():
        model[0].weight *= 1e6
    found = quick(model, train, val, metric=exact(model, 0.0), max_drop=0.5, budget="2 epochs")
    assert found.report.values == "fp32"


def test_a_metric_that_is_not_finite_as_stored_is_refused_and_an_older_file_stays(toy, tmp_path):
    model, train, val = toy
    (tmp_path / "network.syn").write_bytes(b"older")
    with pytest.raises(NumericError, match=r"stored as int8 .* not finite .*values='fp32'"):
        quick(
            model, train, val, metric=exact(model, float("nan")), max_drop=0.5, values="int8", out=tmp_path,
            budget="2 epochs",
        )  # fmt: skip
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


def test_a_loss_that_is_not_finite_says_when_and_what_to_try(toy):
    _, train, val = toy
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    calls = iter(range(10**9))

    def breaking(outputs: Tensor, labels: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, labels)
        return loss if next(calls) < 30 else loss * float("nan")

    said = r"dense network was trained, the loss became nan at update \d+ \(epoch [1-9]\); try a smaller learning rate"
    with pytest.raises(NumericError, match=said):
        quick(model, train, val, loss=breaking, trained=False)


def test_a_training_that_goes_astray_is_a_try_that_was_not_kept(toy):
    model, train, val = toy
    calls = iter(range(10**9))

    def breaking(outputs: Tensor, labels: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, labels)
        return loss if next(calls) < 30 else loss * float("nan")

    found = quick(model, train, val, loss=breaking, trained=True, budget="30 epochs")
    astray = [one for one in found.report.tries if "went astray: the loss became nan" in one.why]
    assert astray
    assert not any(one.kept for one in astray)
    assert np.isfinite(found.report.after.value)


def test_the_file_takes_as_few_bytes_as_accuracy_allows_or_as_was_asked_for(toy, tmp_path):
    model, train, val = toy
    asked = quick(model, train, val, values="fp32", out=tmp_path, budget="30 epochs")
    assert asked.report.values == "fp32"
    chosen = quick(model, train, val, max_drop=3, budget="30 epochs")
    assert chosen.report.values == "int8"
    assert Path(tmp_path / "network.syn").read_bytes()[:4] == b"\x89SYN"
