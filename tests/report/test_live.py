from io import StringIO

import pytest
from rich.console import Console
from torch import nn

from synaptree.core.topology import Topology
from synaptree.methods import build
from synaptree.report.live import Display, describe
from synaptree.train.loop import TrainOptions
from synaptree.train.network import Network
from synaptree.train.programme import Log, Prune, Train

TRAIN = Train(TrainOptions(epochs=9), "retrain")


@pytest.fixture
def network() -> Network:
    topology = Topology()
    topology.add("weight", (2, 4))
    topology.masks["weight"][0] = False
    return Network(nn.Linear(4, 2), topology, round=3, within={"epoch": 3.0})


def a_log(rounds: int) -> Log:
    return {
        "epochs": [{"validation_accuracy": 0.98125}],
        "rounds": [
            {"round": k, "density": 0.5**k, "validation_accuracy": 0.9, "bytes": 12345} for k in range(rounds)
        ],
    }  # fmt: skip


def shown(network: Network, *, terminal: bool, told: int = 0) -> str:
    out = StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=80), runs=12, epochs=10) as display:
        display.begin(2, "nnrelief, seed 0", rounds=14, told=told)
        display.show(TRAIN, network, a_log(2))
        display.show(TRAIN, network, a_log(2))
    return out.getvalue()


def test_a_line_says_where_a_run_is(network: Network) -> None:
    assert describe(TRAIN, network, a_log(1), 14) == (
        "round 3 of 14 · retrain, epoch 4 of 9 · density 50 % · validation 98.12 %"
    )
    assert describe(Prune(build("magnitude")), network, {"epochs": [], "rounds": []}, 14) == (
        "round 3 of 14 · prune · density 50 %"
    )


def test_the_last_epoch_is_not_exceeded_when_a_stage_has_ended(network: Network) -> None:
    network.within = {"epoch": 9.0}
    assert "epoch 9 of 9" in describe(TRAIN, network, a_log(1), 14)


def test_each_round_is_one_plain_line_where_nobody_watches(network: Network) -> None:
    assert shown(network, terminal=False).splitlines() == [
        "[2/12] nnrelief, seed 0: round 0 of 14, density 100 %, validation accuracy 90.00 %, 12,345 bytes",
        "[2/12] nnrelief, seed 0: round 1 of 14, density 50 %, validation accuracy 90.00 %, 12,345 bytes",
    ]


def test_a_finding_is_told_once_and_not_again_after_a_resume(network: Network) -> None:
    log = a_log(0) | {"health": [{"step": 40, "text": "fc1 has lost all connections"}]}
    out = StringIO()
    with Display(Console(file=out, width=80), runs=1, epochs=10) as display:
        display.begin(1, "nnrelief, seed 0", rounds=14, told=0)
        display.show(TRAIN, network, log)
        display.show(TRAIN, network, log)
        display.begin(1, "nnrelief, seed 0", rounds=14, told=0, warned=1)
        display.show(TRAIN, network, log)
    assert out.getvalue() == "[1/1] nnrelief, seed 0: update 40: fc1 has lost all connections\n"


def test_rounds_told_before_are_not_told_again(network: Network) -> None:
    assert [line.split(",")[1] for line in shown(network, terminal=False, told=1).splitlines()] == [
        " seed 0: round 1 of 14"
    ]


def test_a_terminal_also_shows_what_is_going_on(network: Network) -> None:
    text = shown(network, terminal=True)
    assert "run 2 of 12: nnrelief, seed 0" in text
    assert "retrain, epoch 4 of 9" in text
    assert "10%" in text


def test_epochs_add_up_over_runs(network: Network) -> None:
    out = StringIO()
    with Display(Console(file=out, force_terminal=True, width=80), runs=2, epochs=4) as display:
        for number in (1, 2):
            display.begin(number, "random, seed 0", rounds=1, told=0)
            display.show(TRAIN, network, a_log(1))
    assert "50%" in out.getvalue()
