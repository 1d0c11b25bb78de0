"""Stopped anywhere and gone on with, a run ends bit for bit where it would have ended."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synaptree.core.method import Method
from synaptree.core.signal import magnitude
from synaptree.core.topology import Topology
from synaptree.methods import build
from synaptree.rules.density import Density
from synaptree.train import zoo
from synaptree.train.checkpoint import CHECKPOINT, read_checkpoint
from synaptree.train.data import load
from synaptree.train.growth import Grow, PruneUntil, Seed
from synaptree.train.loop import Interrupted, PenaltyOptions, TrainOptions
from synaptree.train.network import Network
from synaptree.train.programme import Measure, Prune, Renew, Rewind, Surroundings, Train, develop
from synaptree.train.strength import FoldStrengths, LearnStrengths

SHORT = TrainOptions(epochs=2, batch=300, lr=1e-2)  # 4 updates an epoch
THREE = SHORT.model_copy(update={"epochs": 3})
CONV = TrainOptions(epochs=2, batch=300, optimizer="sgd", lr=0.05, decay_all=False, weight_decay=1e-3)
PENALISED = CONV.model_copy(update={"penalty": PenaltyOptions(kind="strength", weight=1e-2)})
STRATEGIC = build("strategic_synthesis", seed_density=0.1, capacity=0.5, grow_fraction=0.5)
RELIEF = build("nnrelief", alpha_fc=0.8)
CUT = build("iterative_magnitude", cut=0.3, allocate="present")
DYNAMIC = build("dynamic_synaptic", every=3, first=0, patience=2)
RIGL = build("rigl", density=0.2, every=2, last=10)


def harm(on: Any) -> None:
    """Bring every connection to life and make the network guess."""
    on.edit({name: torch.ones_like(mask) for name, mask in on.topology.masks.items()})
    for parameter in on.model.parameters():
        parameter.mul_(0).add_(torch.rand(parameter.shape, generator=on.topology.rng))


HARMFUL = Method(Density(1.0), {"keep": magnitude}, edit=harm)
TRAINED = Train(SHORT.model_copy(update={"epochs": 5}))


def mlp(seed: int) -> nn.Module:
    return zoo.build("mlp", seed=seed, inputs=64, hidden=(12,))


def conv(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, bias=False),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 10),
        )  # fmt: skip


class Killed(BaseException):
    """No notice is taken of it: nothing is saved."""


class Trial:
    """Runs of the same stages in folders of their own."""

    def __init__(self, stages: list[Any], model: Any, folder: Path) -> None:
        self.stages, self.model, self.folder = stages, model, folder

    def run(self, name: str, until: int | None = None, error: type[BaseException] = Interrupted) -> Surroundings:
        """Go on, to the end or until so many updates were made in all."""
        network = Network(self.model(7), Topology(7))

        def stop() -> bool:
            if network.step == until and error is not Interrupted:
                raise error
            return network.step == until

        around = Surroundings(load("digits"), 7, self.folder / name, self.model, stop=stop)
        try:
            for _ in develop(network, self.stages, around, identity="me", resume=True, every=0.0):
                pass
        except error:
            assert until is not None
        else:
            assert until is None
        return around


def same(a: Any, b: Any, where: str = "") -> None:
    """Compare to the bit what two checkpoints hold, but for wall times."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            if key != "seconds":
                same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            same(one, other, f"{where}/{index}")
    else:
        assert a == b, where


ROUND = [Prune(RELIEF, samples=300), Rewind(4), Train(SHORT, "retrain"), Measure()]
CASES = {
    "within an epoch": ([Train(THREE)], mlp, 6, 9),
    "at the end of an epoch": ([Train(THREE)], mlp, 8, 9),
    "in iterative rounds": ([Train(SHORT), Measure(), *ROUND, *ROUND], mlp, 11, 22),
    "in growth": ([Seed(STRATEGIC), Grow(THREE, STRATEGIC)], mlp, 6, 9),
    "between a growth event and its judgement": (
        [Seed(STRATEGIC), TRAINED, Grow(THREE, HARMFUL, gate=True, limit=2), Measure()], mlp, 26, 31,
    ),
    "while pruning until it suffers": ([TRAINED, PruneUntil(SHORT, CUT, tolerance=0.05), Measure()], mlp, 25, 31),
    "while connections lose their patience": ([Train(THREE, method=DYNAMIC), Measure()], mlp, 7, 11),
    "while connections are replaced": ([Renew(), Train(THREE, method=RIGL), Measure()], mlp, 5, 9),
    "while strengths are learned": (
        [LearnStrengths(), Train(PENALISED), FoldStrengths(0.5, images=600), Measure(), Train(CONV)], conv, 3, 11,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("stages", "model", "moment", "later"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("error", [Interrupted, Killed])
def test_a_run_goes_on_bit_for_bit(
    stages: list[Any], model: Any, moment: int, later: int, error: type[BaseException], tmp_path: Path
) -> None:
    trial = Trial(stages, model, tmp_path)
    trial.run("parts", moment, error)
    trial.run("parts", later)
    trial.run("whole", later)
    parts, whole = (read_checkpoint(tmp_path / name / CHECKPOINT).content for name in ("parts", "whole"))
    assert parts["optimizer"]["state"]
    same(parts, whole)
    ends = [trial.run(name) for name in ("parts", "whole")]
    same(ends[0].log, ends[1].log)
    for entry in ends[1].log["rounds"]:
        files = [around.round_file(entry["round"]).read_bytes() for around in ends]
        assert files[0] == files[1]


def test_the_moments_are_those_they_are_meant_to_be(tmp_path: Path) -> None:
    """Else the cases above would prove less than their names say."""
    found = {}
    for name, (stages, model, moment, _) in CASES.items():
        Trial(stages, model, tmp_path).run(name, moment)
        found[name] = read_checkpoint(tmp_path / name / CHECKPOINT).content
    gate = found["between a growth event and its judgement"]["trial"]
    assert (gate["grown"], "before" in gate) == (1, True)
    assert found["while pruning until it suffers"]["trial"]["cuts"] == 1
    rounds = found["in iterative rounds"]
    assert (rounds["network"]["round"], rounds["network"]["within"]["batch"]) == (1, 3)
    lives = found["while connections lose their patience"]["topology"]["state"]
    assert any(int(value["memory"].max()) for value in lives.values())
    assert found["in growth"]["topology"]["births"]
    assert "3.strength" in found["while strengths are learned"]["model"]


def test_scores_taken_after_training_in_another_memory_layout_are_the_same(tmp_path: Path) -> None:
    last = CONV.model_copy(update={"channels_last": True})
    prune = Prune(build("nnrelief", alpha_conv=0.8, alpha_fc=0.8), samples=300)
    trial = Trial([Train(last), prune, Measure()], conv, tmp_path)
    seen = {}
    for name in ("parts", "whole"):
        network = Network(conv(7), Topology(7))
        around = Surroundings(load("digits"), 7, tmp_path / name, conv)
        for stage in develop(network, trial.stages, around, identity="me", every=0.0):
            if stage is prune and name == "parts":
                break  # killed there
        if name == "parts":
            network = Network(conv(7), Topology(7))
            for _ in develop(network, trial.stages, around, identity="me", resume=True):
                pass
        seen[name] = {key: (p.stride(), p) for key, p in network.model.named_parameters()}
    assert seen["whole"]["3.weight"][0] != conv(7)[3].weight.stride()
    for key, (stride, value) in seen["whole"].items():
        assert seen["parts"][key][0] == stride
        assert torch.equal(seen["parts"][key][1], value)
