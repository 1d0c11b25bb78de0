"""Accelerate's own loop: accumulated gradients, mixed precision, saved and loaded state."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from synaptree import build
from synaptree.core import attach as core
from synaptree.core.errors import CheckpointError, OptionError
from synaptree.integrate.accelerate import attach

accelerate = pytest.importorskip("accelerate")

METHODS = {
    "rigl": build("rigl", density=0.3, every=4, last=40, seed_weight="he"),
    "dynamic_synaptic": build("dynamic_synaptic", alpha=0.6, every=4, first=8, patience=2),
    "gradual_magnitude": build("gradual_magnitude", density=0.2, every=3, last=25),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


class Run:
    """A training run of 10 updates an epoch, with dropout, whose order of the data Accelerate restores."""

    def __init__(self, method=None, precision="no", accumulate=1, **options):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate
        )
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 15)
        x, y = load_digits(return_X_y=True)
        digits = TensorDataset(torch.tensor(x[:640] / 16, dtype=torch.float32), torch.tensor(y[:640]))
        loader = DataLoader(digits, batch_size=64 // accumulate, shuffle=True)
        self.model, self.optimizer, self.schedule, self.loader = self.accelerator.prepare(
            net, optimizer, schedule, loader
        )
        if method is not None:
            self.attached = attach(self.accelerator, self.model, self.optimizer, method, seed=3, **options)
        self.revived = 0

    def train(self, epochs):
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = F.cross_entropy(self.model(x), y)
                    self.accelerator.backward(loss)
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
                self.revived += self.dead()
        return self

    def dead(self):
        topology = self.attached.topology
        return sum(int(p[~topology.expanded(name)].count_nonzero()) for name, p in topology.parameters(self.model))


def equal(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@every_method
@pytest.mark.parametrize(("precision", "accumulate"), [("no", 1), ("bf16", 2)])
def test_a_run_resumed_from_accelerates_state_ends_as_the_uninterrupted_one(method, precision, accumulate, tmp_path):
    whole = Run(method, precision, accumulate).train(2)
    whole.accelerator.save_state(tmp_path)
    before = whole.attached.topology.digest()
    whole.train(2)

    resumed = Run(method, precision, accumulate)
    resumed.accelerator.load_state(tmp_path)
    assert resumed.attached.topology.digest() == before
    assert resumed.dead() == 0
    resumed.train(2)

    assert before != whole.attached.topology.digest() == resumed.attached.topology.digest()
    assert whole.attached.topology.step == resumed.attached.topology.step == 40
    assert equal(whole.model, resumed.model)
    assert whole.revived == resumed.revived == 0
    assert whole.attached.topology.density() < 0.85


@pytest.mark.parametrize(("name", "density"), [("rigl", 0.3), ("gradual_magnitude", 0.2)])
def test_the_density_asked_for_is_reached(name, density):
    assert Run(METHODS[name]).train(3).attached.finish().density() == pytest.approx(density, abs=0.005)


def test_a_folder_without_masks_is_refused_before_anything_is_changed(tmp_path):
    Run().accelerator.save_state(tmp_path)
    run = Run(METHODS["rigl"]).train(1)
    weight, digest = run.model[0].weight.clone(), run.attached.topology.digest()
    with pytest.raises(CheckpointError, match=r"synaptree_model.safetensors is missing: the checkpoint holds no masks"):
        run.accelerator.load_state(tmp_path)
    assert torch.equal(run.model[0].weight, weight)
    assert run.attached.topology.digest() == digest


def test_a_folder_of_another_method_or_with_a_damaged_file_is_refused(tmp_path):
    Run(METHODS["rigl"]).train(1).accelerator.save_state(tmp_path)
    run = Run(METHODS["gradual_magnitude"])
    with pytest.raises(CheckpointError, match=r"written under the method rigl\(.*attached is gradual_magnitude\("):
        run.accelerator.load_state(tmp_path)
    path = tmp_path / "synaptree_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read as a synaptree file"):
        Run(METHODS["rigl"]).accelerator.load_state(tmp_path)


def test_several_models_have_a_name_each_and_a_later_stage_takes_the_place_of_an_earlier_one(tmp_path):
    run = Run(METHODS["rigl"])
    critic = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    critic, optimizer = run.accelerator.prepare(critic, optimizer)
    with pytest.raises(OptionError, match="name = 'model': another model is attached under it"):
        attach(run.accelerator, critic, optimizer, METHODS["rigl"])
    attach(run.accelerator, critic, optimizer, METHODS["rigl"], name="critic")
    topology = run.attached.finish()
    stage = attach(run.accelerator, run.model, run.optimizer, METHODS["gradual_magnitude"], topology=topology)
    run.attached = stage
    run.train(1).accelerator.save_state(tmp_path)
    assert {path.name for path in tmp_path.glob("synaptree_*")} == {
        "synaptree_model.safetensors", "synaptree_critic.safetensors"
    }  # fmt: skip
    digest = topology.digest()
    run.train(2)
    assert topology.digest() != digest
    run.accelerator.load_state(tmp_path)
    assert topology.digest() == digest


def test_an_attachment_can_be_registered_with_accelerate_itself_and_holds_plain_values_only(tmp_path):
    def begin():
        run = Run()
        run.attached = core.attach(run.model, run.optimizer, METHODS["rigl"])
        run.accelerator.register_for_checkpointing(run.attached)
        return run

    run = begin().train(2)
    run.accelerator.save_state(tmp_path)
    state = torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True)
    assert state["topology"]["masks"].keys() == run.attached.topology.masks.keys()
    run.train(1)
    resumed = begin()
    resumed.accelerator.load_state(tmp_path)
    assert resumed.train(1).attached.topology.digest() == run.attached.topology.digest()
    assert equal(resumed.model, run.model)
