"""Needs the extra `transformers`: `make test-integrations`."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from synaptree import build
from synaptree.core.errors import CheckpointError
from synaptree.core.layer import layers_of
from synaptree.core.oneshot import prune

transformers = pytest.importorskip("transformers")

from synaptree.integrate.huggingface import Synaptree  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*pin_memory.*")]

METHODS = {
    "rigl": build("rigl", density=0.3, every=4, last=40, seed_weight="he"),
    "dynamic_synaptic": build("dynamic_synaptic", alpha=0.6, every=4, first=8, patience=2),
    "gradual_magnitude": build("gradual_magnitude", density=0.2, every=3, last=25),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
TEXT = "a network that forgets what it does not use learns what it does. " * 20


def model():
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, attention_dropout=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def sentences():
    letters = torch.tensor([ord(letter) for letter in TEXT[:1280]]).view(80, 16)
    return [{"input_ids": line, "labels": line} for line in letters]


def trainer(folder, *callbacks, epochs=3, net=None, **options):
    """Return a trainer that makes 10 updates an epoch."""
    options = {"logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2} | options
    args = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=8, weight_decay=0.1,
        use_cpu=True, report_to="none", disable_tqdm=True, seed=1, dataloader_pin_memory=False,
        **options,
    )  # fmt: skip
    net, data = model() if net is None else net, sentences()
    return transformers.Trainer(net, args, train_dataset=data, eval_dataset=data[:8], callbacks=[*callbacks])


def sparse(method, **options):
    return Synaptree(method, exclude=["lm_head"], **options)


def revived(net, topology):
    return sum(int(p[~topology.expanded(name)].count_nonzero()) for name, p in topology.parameters(net))


def equal(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


class EveryUpdate(transformers.TrainerCallback):
    def __init__(self, callback):
        self.callback, self.revived = callback, []

    def on_step_end(self, *_, model, **__):
        self.revived.append(revived(model, self.callback.topology))


@every_method
def test_dead_weights_are_zero_after_every_update_and_density_is_in_the_log(method, tmp_path):
    callback = sparse(method)
    watch = EveryUpdate(callback)
    run = trainer(tmp_path, callback, watch)
    run.train()
    topology = callback.topology
    assert watch.revived == [0] * 30
    assert topology.step == 30
    log = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in log] == list(range(1, 31))
    assert log[-1]["density"] == topology.density() < 0.8
    assert (log[-1]["born"], log[-1]["died"]) == (topology.born, topology.died)
    assert log[-1]["loss"] < log[0]["loss"]
    run.save_model(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(not stored[name][~topology.expanded(name)].any() for name in topology.masks)


@pytest.mark.parametrize(("name", "density"), [("rigl", 0.3), ("gradual_magnitude", 0.2)])
def test_the_density_asked_for_is_reached(name, density, tmp_path):
    callback = sparse(METHODS[name])
    trainer(tmp_path, callback).train()
    assert callback.topology.density() == pytest.approx(density, abs=0.005)


@every_method
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_from_a_trainers_checkpoint_ends_as_the_uninterrupted_one(method, accumulate, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 7, "epochs": 3 * accumulate, "warmup_steps": 5,
               "gradient_accumulation_steps": accumulate}  # fmt: skip
    callback = sparse(method, seed=3)
    whole = trainer(tmp_path, callback, **options)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-21")

    again = sparse(method, seed=3)
    watch = EveryUpdate(again)
    resumed = trainer(tmp_path, again, watch, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-14"))

    assert watch.revived == [0] * 16
    assert again.topology.step == 30
    assert again.topology.digest() == callback.topology.digest()
    assert equal(whole.model, resumed.model)
    ours, theirs = (torch.cat([v["exp_avg"].ravel() for v in r.optimizer.state.values()]) for r in (resumed, whole))
    assert torch.equal(ours, theirs)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a checkpoint of RigL after 7 of 10 updates, in a folder of its own name."""
    folder = tmp_path_factory.mktemp("trained")
    trainer(folder, sparse(METHODS["rigl"]), epochs=1, save_strategy="steps", save_steps=7).train()
    return shutil.move(folder / "checkpoint-7", folder / "seventh")


def test_a_checkpoint_elsewhere_is_named(checkpoint, tmp_path):
    callback = sparse(METHODS["rigl"])
    with pytest.raises(CheckpointError, match=r"checkpoint-7/synaptree.safetensors is missing: .* holds no masks"):
        trainer(tmp_path, callback, epochs=1).train(resume_from_checkpoint=str(checkpoint))
    callback = sparse(METHODS["rigl"], resume_from=checkpoint)
    trainer(tmp_path, callback, epochs=1).train(resume_from_checkpoint=str(checkpoint))
    assert callback.topology.step == 10


def test_a_checkpoint_without_masks_or_of_another_method_or_run_is_refused(checkpoint, tmp_path):
    bare = shutil.copytree(checkpoint, tmp_path / "checkpoint-7")
    (bare / "synaptree.safetensors").unlink()
    with pytest.raises(CheckpointError, match="written without synaptree or was cut off"):
        trainer(tmp_path, sparse(METHODS["rigl"])).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"written under the method rigl\(.*attached is gradual_magnitude\("):
        trainer(tmp_path, sparse(METHODS["gradual_magnitude"], resume_from=checkpoint)).train(str(checkpoint))
    other = sparse(METHODS["rigl"], seed=9)
    trainer(tmp_path / "other", other, epochs=1, save_strategy="steps", save_steps=7).train()
    with pytest.raises(CheckpointError, match="it belongs to other weights than those that were loaded"):
        trainer(tmp_path / "other", sparse(METHODS["rigl"])).train(str(checkpoint))


def test_the_best_model_comes_back_with_its_own_topology(tmp_path):
    net, callback = model(), sparse(METHODS["gradual_magnitude"])
    # the loss falls, so that the first checkpoint is the best where a large loss counts as good
    run = trainer(
        tmp_path, callback, net=net, save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4,
        load_best_model_at_end=True, epochs=1, metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-4")
    assert callback.topology.step == 4
    stored = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    masked = {layer.weight for layer in layers_of(net, exclude=["lm_head"])}
    assert all(torch.equal(net.get_parameter(name), stored[name]) for name in masked)
    assert revived(net, callback.topology) == 0


def test_masks_alone_are_kept_and_a_second_training_goes_on_with_them(tmp_path):
    net = model()
    topology = prune(net, build("magnitude", density=0.25), exclude=["lm_head"])
    before, callback = topology.digest(), Synaptree(topology=topology)
    run = trainer(tmp_path, callback, net=net, epochs=1)
    run.train()
    run.train()
    assert topology.step == 20
    assert topology.digest() == before
    assert revived(net, topology) == 0
    assert topology.density() == 0.25


def test_after_an_interruption_the_same_trainer_can_go_on(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, _, state, *__, **___):
            if state.global_step == 6:
                raise ArithmeticError("power cut")

    callback, stop = sparse(METHODS["rigl"]), Stop()
    run = trainer(tmp_path, callback, stop, epochs=2, save_strategy="steps", save_steps=4)
    with pytest.raises(ArithmeticError):
        run.train()
    run.remove_callback(stop)
    run.train(resume_from_checkpoint=True)
    whole = sparse(METHODS["rigl"])
    other = trainer(tmp_path / "whole", whole, epochs=2)
    other.train()
    assert callback.topology.digest() == whole.topology.digest()
    assert equal(run.model, other.model)


def test_a_checkpoint_that_is_saved_elsewhere_is_no_silent_loss(tmp_path):
    callback = sparse(METHODS["rigl"])
    run = trainer(tmp_path, callback, epochs=1)
    run.train()
    with pytest.raises(CheckpointError, match=r"checkpoint-10 does not exist.*search with save_strategy='no'"):
        callback.on_save(run.args, run.state, run.control)
