"""What the search is made of: ways to a density, progress by updates or time, and budgets."""

import pytest
import torch
from torch import nn

from synaptree.compression.clock import Clock, Progress, seconds_of
from synaptree.compression.feed import training_feed, validation_feed
from synaptree.compression.judge import Judge
from synaptree.compression.report import Size, Timing, TimingRow, outcome
from synaptree.compression.training import Trainer
from synaptree.compression.ways import Task, steerable, ways, weights_alive
from synaptree.core.errors import OptionError
from synaptree.core.topology import Topology

X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()
CONV, LINEAR = 8 * 9 + 16 * 8 * 9, 16 * 4 * 20 + 20 * 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(),
        nn.Linear(20, 2),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["auto", *steerable()])
def test_every_way_comes_down_to_the_weights_wanted(method):
    for way in ways(method, own_optimizer=True):
        model, topology = network(), Topology()
        whole = CONV if method == "kernel_norm" else CONV + LINEAR
        progress = Progress(40, 1e9)
        cut = way.cut(Task(model, topology, whole // 2, X, progress))
        trainer = Trainer(training_feed((X, Y), 16, 0), None, None, Clock(1e9))
        trainer.train(model, progress, topology=topology, method=cut, lr=way.lr)
        assert weights_alive(topology) == pytest.approx(whole // 2, rel=0.15)
        for name, parameter in topology.parameters(model):
            assert (parameter[~topology.expanded(name)] == 0).all()


def test_a_gradual_cut_goes_on_from_where_the_last_one_ended():
    [way, *_] = ways("auto", own_optimizer=True)
    model, topology = network(), Topology()
    trainer = Trainer(training_feed((X, Y), 16, 0), None, None, Clock(1e9))
    left = []
    for weights in (1000, 300):
        progress = Progress(30, 1e9)
        cut = way.cut(Task(model, topology, weights, X, progress))
        trainer.train(model, progress, topology=topology, method=cut)
        left.append(weights_alive(topology))
    assert left == [1000, 300]


def test_progress_counts_updates_or_time_whichever_is_further_on():
    by_updates = Progress(4, 1e9)
    for share in (0.25, 0.5, 0.75, 1.0):
        by_updates.advance()
        assert by_updates.share == pytest.approx(share)
    by_time = Progress(10**9, 0.0)
    by_time.advance()
    assert by_time.share == 1.0


@pytest.mark.parametrize("budget", ["", "m", "-3s", "1 0s", "20 minutes", float("nan"), float("inf"), -1, True, None])
def test_a_budget_that_says_no_time_is_refused(budget):
    with pytest.raises(OptionError, match="wanted seconds above 0"):
        seconds_of(budget)


@pytest.mark.parametrize(("budget", "seconds"), [("90", 90), ("1.5m", 90), ("1h1m1s", 3661), (1e-07, 1e-07)])
def test_a_budget_is_said_in_seconds_minutes_and_hours(budget, seconds):
    assert seconds_of(budget) == seconds


def test_every_epoch_of_a_feed_holds_every_sample_once_in_another_order():
    feed = training_feed((torch.arange(10.0).unsqueeze(1), torch.arange(10)), 4, 0)
    orders = [torch.cat([y for _, y in feed.batches(epoch, torch.device("cpu"))]).tolist() for epoch in (1, 2, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] == orders[2] != orders[1]
    assert feed.length == 3


def test_what_can_be_read_once_is_kept_and_judged_again_and_again():
    feed = validation_feed(iter([(X[:5], Y[:5]), (X[5:], Y[5:])]), None)
    for _ in range(2):
        assert sum(len(y) for _, y in feed.batches(0, torch.device("cpu"))) == 64
    assert isinstance(feed.given, list)


def test_an_epoch_counts_the_batches_it_has_and_leaves_out_a_single_last_sample():
    x, y = torch.zeros(129, 2), torch.zeros(129, dtype=torch.long)
    for batch, sizes in ((128, [128]), (64, [64, 64]), (43, [43, 43, 43]), (1, [1] * 129)):
        feed = training_feed((x, y), batch, 0)
        assert [len(part) for _, part in feed.batches(0, torch.device("cpu"))] == sizes
        assert feed.length == len(sizes)


@pytest.mark.parametrize(("dense", "said"), [
    ({"torch": 50.0}, "25.0 times as fast as torch, the fastest dense runtime that was timed; the engine takes 2.0 µs"),
    ({"torch": 50.0, "onnxruntime": 8.0}, "25.0 times as fast as torch, 4.0 times as fast as onnxruntime, the fastest"),
    ({"onnxruntime": 8.0}, "4.0 times as fast as onnxruntime, the fastest dense runtime that was timed"),
    ({"torch": 50.0, "onnxruntime": 1.5}, "no gain in speed here, because the engine takes 2.0 µs"),
])  # fmt: skip
def test_a_report_says_what_the_engine_is_faster_than(dense, said):
    rows = [TimingRow(1, name, net, time) for name, time in dense.items() for net in ("before", "compressed")]
    timing = Timing((TimingRow(1, "engine", "compressed", 2.0), *rows))
    judge = Judge.of(validation_feed((X, Y), None), None, None)
    sizes = Size(10, 10, 40, None, 90.0), Size(5, 5, 20, None, 90.0)
    [speed] = [line for line in outcome("accuracy", *sizes, (), judge, (), timing, "") if line.startswith("batch")]
    assert speed.startswith(f"batch 1: {said}")
