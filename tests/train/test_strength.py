from dataclasses import replace

import pytest
import torch
from torch import nn

from synaptree.core.errors import OptionError
from synaptree.methods import build
from synaptree.soft.kernel_strength import KernelStrengthConv2d
from synaptree.train.data import load
from synaptree.train.loop import Interrupted, PenaltyOptions, TrainOptions
from synaptree.train.network import Network
from synaptree.train.programme import Measure, Prune, Surroundings, Train, develop, read_test
from synaptree.train.strength import FoldStrengths, LearnStrengths, Slim

SHORT = TrainOptions(epochs=1, batch=300, optimizer="sgd", lr=0.05, decay_all=False, weight_decay=1e-3)
PENALISED = SHORT.model_copy(update={"penalty": PenaltyOptions(kind="strength", weight=1e-2)})


def fresh(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, bias=False),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )


@pytest.fixture
def around(tmp_path) -> Surroundings:
    return Surroundings(load("digits"), 7, tmp_path, fresh)


def run(stages, around, **options) -> Network:
    network = Network(fresh(around.seed))
    for _ in develop(network, stages, around, identity="me", **options):
        pass
    return network


STRENGTHEN = [LearnStrengths(), Train(PENALISED, "strengthen"), FoldStrengths(0.75, images=600), Measure("strengthen")]


def test_a_network_learns_strengths_loses_the_weakest_and_is_plain_again(around):
    network = run([*STRENGTHEN, Train(SHORT, "finetune"), Measure("finetune")], around)
    assert [type(module) for module in network.model] == [type(module) for module in fresh(0)]
    # 4 x 8 kernels of the second convolution; the first is left alone
    assert int(network.topology.masks["3.weight"].sum()) == 8
    assert not network.model[3].weight[~network.topology.expanded("3.weight")].any()
    cut, tuned = around.log["rounds"]
    assert (cut["layers"]["3"], tuned["layers"]["3"]) == (0.25, 0.25)
    read_test(around)
    assert tuned["test_items"] == len(around.data.test.y)


def test_the_penalty_makes_strengths_smaller(around):
    sizes = []
    for options in (SHORT, PENALISED):
        network = run([LearnStrengths(), Train(options)], around)
        assert isinstance(network.model[3], KernelStrengthConv2d)
        sizes.append(network.model[3].strength.abs().sum().item())
    # four updates with momentum 0.9 move by 1 + 1.9 + 2.71 + 3.439 = 9.049 times lr * weight = 0.0005, 32 strengths
    assert sizes[0] - sizes[1] == pytest.approx(32 * 9.049 * 0.0005, rel=0.1)


@pytest.mark.parametrize("moment", [2, 6])
def test_it_goes_on_exactly_where_it_was_interrupted(around, tmp_path, moment):
    # 4 updates with strengths, then 4 of finetuning
    stages = [*STRENGTHEN, Train(SHORT, "finetune")]
    straight = run(stages, around)
    folder = tmp_path / "again"
    folder.mkdir()
    updates = iter(range(1, 100))
    parted = replace(around, folder=folder, log={"epochs": [], "rounds": []}, stop=lambda: next(updates) == moment)
    with pytest.raises(Interrupted):
        run(stages, parted)
    resumed = run(stages, replace(parted, stop=lambda: False, log={"epochs": [], "rounds": []}), resume=True)
    assert resumed.topology.digest() == straight.topology.digest()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_strengths_want_a_network_that_is_not_pruned(around):
    with pytest.raises(OptionError, match="not pruned yet"):
        run([Prune(build("magnitude", density=0.5)), LearnStrengths()], around)


def test_slimming_wants_a_network_that_is_not_pruned(around):
    with pytest.raises(OptionError, match="not pruned yet"):
        run([Prune(build("magnitude", density=0.5)), Slim(0.5)], around)


def test_the_random_state_after_folding_is_that_of_the_seed(around):
    states = [
        run(STRENGTHEN, replace(around, seed=seed, log={"epochs": [], "rounds": []})).topology.rng.get_state()
        for seed in (1, 2)
    ]
    assert not torch.equal(*states)


def test_slimming_cuts_whole_channels_by_their_scale(around):
    slimmed = SHORT.model_copy(update={"penalty": PenaltyOptions(kind="gamma", weight=1e-2)})
    network = run([Train(slimmed), Slim(0.5, images=600), Measure("slim")], around)
    gone = network.model[1].weight == 0, network.model[4].weight == 0
    assert int(gone[0].sum()) + int(gone[1].sum()) == 6
    assert not network.model[0].weight[gone[0]].any()
    assert not network.model[4].bias[gone[1]].any()
