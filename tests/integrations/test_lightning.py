"""Needs the extra `lightning`: `make test-integrations`."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from synaptree import build
from synaptree.core.errors import AttachError, CheckpointError, ShapeError
from synaptree.core.oneshot import prune

lightning = pytest.importorskip("lightning.pytorch")

from synaptree.integrate.lightning import Synaptree  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*is deprecated"),
]

METHODS = {
    "rigl": build("rigl", density=0.3, every=4, last=40, seed_weight="he"),
    "dynamic_synaptic": build("dynamic_synaptic", alpha=0.6, every=4, first=8, patience=2),
    "gradual_magnitude": build("gradual_magnitude", density=0.2, every=3, last=50),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


class Batches(DataLoader):
    """A loader that Lightning can resume in the midst of an epoch."""

    done = 0

    def __iter__(self):
        first = self.done
        for i, batch in enumerate(super().__iter__()):
            if i >= first:
                self.done = (i + 1) % len(self)
                yield batch

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-2, weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 4)]

    def train_dataloader(self):
        x, y = load_digits(return_X_y=True)
        digits = TensorDataset(torch.tensor(x[:640] / 16, dtype=torch.float32), torch.tensor(y[:640]))
        return Batches(digits, batch_size=64)


def equal(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def fit(folder, callback, epochs, model=Digits, checkpoint=None, beside=(), **options):
    """Train for `epochs` of 10 updates, and return the model and the trainer."""
    lightning.seed_everything(1)
    model = model() if isinstance(model, type) else model
    callbacks = [*([] if callback is None else [callback]), *beside]
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(model, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return model, trainer


class EveryUpdate(lightning.Callback):
    def __init__(self, callback):
        self.callback, self.seen = callback, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        topology = self.callback.topology
        revived = sum(int(p[~topology.expanded(name)].count_nonzero()) for name, p in topology.parameters(pl_module))
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append((revived, topology.density() - metrics["density"], topology.died - metrics["died"]))


@every_method
def test_dead_weights_are_zero_after_every_update_and_counts_are_logged(method, tmp_path):
    callback = Synaptree(method)
    watch = EveryUpdate(callback)
    model, trainer = fit(tmp_path, callback, 4, beside=[watch])
    assert len(watch.seen) == callback.topology.step == 40
    assert {revived for revived, *_ in watch.seen} == {0}
    assert max(abs(difference) for _, density, died in watch.seen for difference in (density, died)) < 1e-4
    assert callback.topology.density() < 0.9
    assert callback.topology.died > 0
    assert not any(vars(optimizer)["_optimizer_step_post_hooks"] for optimizer in trainer.optimizers)
    x, y = model.train_dataloader().dataset.tensors
    assert (model.net(x).argmax(1) == y).float().mean() > 0.5


@pytest.mark.parametrize(("name", "density"), [("rigl", 0.3), ("gradual_magnitude", 0.2)])
def test_the_density_asked_for_is_reached(name, density, tmp_path):
    callback = Synaptree(METHODS[name])
    fit(tmp_path, callback, 5)
    assert callback.topology.density() == pytest.approx(density, abs=0.005)


@every_method
def test_a_run_resumed_from_lightnings_checkpoint_ends_as_the_uninterrupted_one(method, tmp_path):
    whole = Synaptree(method, seed=3)
    model, trainer = fit(tmp_path, whole, 6)

    first = Synaptree(method, seed=3)
    fit(tmp_path, first, 3)[1].save_checkpoint(tmp_path / "half.ckpt")
    second = Synaptree(method, seed=3)
    resumed, again = fit(tmp_path, second, 6, checkpoint=tmp_path / "half.ckpt")

    assert first.topology.digest() != whole.topology.digest()
    assert second.topology.digest() == whole.topology.digest()
    assert second.topology.step == 60
    assert equal(model, resumed)
    ours, theirs = (torch.cat([v["exp_avg"].ravel() for v in t.optimizers[0].state.values()]) for t in (again, trainer))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["rigl", "dynamic_synaptic"])
def test_a_checkpoint_from_the_midst_of_an_epoch_with_accumulated_gradients_is_resumed_alike(name, tmp_path):
    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 7 and not (tmp_path / "7.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "7.ckpt")

    whole, second = Synaptree(METHODS[name]), Synaptree(METHODS[name])
    model, _ = fit(tmp_path, whole, 4, beside=[Save()], accumulate_grad_batches=2)
    resumed, _ = fit(tmp_path, second, 4, checkpoint=tmp_path / "7.ckpt", accumulate_grad_batches=2)
    assert whole.topology.step == second.topology.step == 20  # 10 batches in an epoch, 2 in an update
    assert second.topology.digest() == whole.topology.digest()
    assert equal(model, resumed)


def test_a_checkpoint_without_masks_is_refused(tmp_path):
    fit(tmp_path, None, 1)[1].save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match=r"plain.ckpt holds no masks under .*written without this callback"):
        fit(tmp_path, Synaptree(METHODS["rigl"]), 2, checkpoint=tmp_path / "plain.ckpt")


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    fit(tmp_path, Synaptree(METHODS["rigl"]), 1)[1].save_checkpoint(tmp_path / "rigl.ckpt")
    with pytest.raises(CheckpointError, match=r"written under the method rigl\(.*attached is gradual_magnitude\("):
        fit(tmp_path, Synaptree(METHODS["gradual_magnitude"]), 2, checkpoint=tmp_path / "rigl.ckpt")


def test_weights_alone_are_begun_with_and_a_test_needs_no_masks(tmp_path):
    _, trainer = fit(tmp_path, Synaptree(METHODS["rigl"]), 1)
    trainer.save_checkpoint(tmp_path / "rigl.ckpt")
    held = torch.load(tmp_path / "rigl.ckpt", weights_only=True)
    assert any("Synaptree" in key for key in held["callbacks"])
    fresh = Digits()
    fresh.load_state_dict(held["state_dict"])
    callback = Synaptree(METHODS["gradual_magnitude"])
    fit(tmp_path, callback, 3, model=fresh)
    assert callback.topology.density() < 0.3


def test_a_second_fit_goes_on_with_the_topology_of_the_first(tmp_path):
    callback = Synaptree(METHODS["gradual_magnitude"])
    model, _ = fit(tmp_path, callback, 2)
    first = callback.topology.step
    fit(tmp_path, callback, 2, model=model)
    assert (first, callback.topology.step) == (20, 40)
    other = Digits()
    other.net = nn.Linear(64, 10)
    with pytest.raises(ShapeError, match="use the model the topology was made for"):
        fit(tmp_path, callback, 1, model=other)


def test_after_an_interruption_the_same_callback_can_resume(tmp_path):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 15:
                raise ArithmeticError("power cut")

    method, callback = METHODS["rigl"], Synaptree(METHODS["rigl"])
    whole = Synaptree(method)
    model, _ = fit(tmp_path, whole, 3)
    fit(tmp_path, callback, 1)[1].save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ArithmeticError):
        fit(tmp_path, callback, 3, checkpoint=tmp_path / "one.ckpt", beside=[Stop()])
    assert callback.topology.step == 15
    again, _ = fit(tmp_path, callback, 3, checkpoint=tmp_path / "one.ckpt")
    assert callback.topology.digest() == whole.topology.digest()
    assert equal(model, again)


def test_masks_alone_are_kept_and_chosen_layers_left_alone(tmp_path):
    model = Digits()
    topology = prune(model, build("magnitude", density=0.25), exclude=["net.4"])
    before = topology.digest()
    model, _ = fit(tmp_path, Synaptree(topology=topology), 1, model=model)
    assert topology.digest() == before
    assert (model.net[0].weight != 0).float().mean() == topology.density("net.0.weight") == 0.25
    assert model.net[4].weight.all()
    callback = Synaptree(METHODS["rigl"], include=["net.0"])
    fit(tmp_path, callback, 1)
    assert list(callback.topology.masks) == ["net.0.weight"]


def test_an_average_of_weights_that_is_left_in_the_end_has_its_zeros_where_the_callback_comes_after_it(tmp_path):
    left = []
    for behind in (False, True):
        callback, average = Synaptree(METHODS["gradual_magnitude"]), lightning.callbacks.EMAWeightAveraging(decay=0.9)
        model, _ = fit(tmp_path, None, 5, beside=[average, callback] if behind else [callback, average])
        topology = callback.topology
        left.append(sum(int(p[~topology.expanded(name)].count_nonzero()) for name, p in topology.parameters(model)))
    assert left[0] > 0
    assert left[1] == 0


def test_what_cannot_be_attached_is_refused_when_training_starts(tmp_path):
    with pytest.raises(AttachError, match="acts only through prune"):
        fit(tmp_path, Synaptree(build("magnitude")), 1)


def test_two_networks_with_an_optimizer_each_have_a_callback_each(tmp_path):
    class Two(Digits):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.Adam(self.net[i].parameters(), lr=1e-2) for i in (0, 2)]

        def training_step(self, batch, _):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

    def both():
        return [Synaptree(METHODS["rigl"], include=[f"net.{2 * i}"], optimizer=i) for i in (0, 1)]

    whole = both()
    model, _ = fit(tmp_path, None, 4, model=Two, beside=whole)
    fit(tmp_path, None, 2, model=Two, beside=both())[1].save_checkpoint(tmp_path / "two.ckpt")
    resumed = both()
    again, _ = fit(tmp_path, None, 4, model=Two, checkpoint=tmp_path / "two.ckpt", beside=resumed)
    assert [one.topology.digest() for one in resumed] == [one.topology.digest() for one in whole]
    assert equal(model, again)
    assert [list(one.topology.masks) for one in whole] == [["net.0.weight"], ["net.2.weight"]]
    assert model.net[0].weight.count_nonzero() < 0.5 * model.net[0].weight.numel()
