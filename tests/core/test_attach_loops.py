"""Habits of people's own loops: none of them revives what is dead, or gives a newborn a past."""

import copy
from functools import partial

import pytest
import torch
from small_network import SGD, alive, dead, exchange, half, network, train
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

from synaptree.core.attach import attach
from synaptree.core.errors import AttachError
from synaptree.core.method import Method
from synaptree.core.probe import mean_abs_input
from synaptree.core.schedule import Every
from synaptree.core.signal import Signal, gradient, magnitude, stateless
from synaptree.methods import build
from synaptree.rules.density import Density

ADAMW = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1)
ELSEWHERE = stateless(lambda view: (~view.mask).float())
"""Makes an exchange grow 3 and 2 connections where none were."""
BOTH = pytest.mark.parametrize("make", [SGD, ADAMW], ids=["sgd", "adamw"])


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def batch(samples=8):
    return torch.randn(samples, 4), torch.randn(samples, 2)


def backward(model, scale=1.0, run=None):
    x, y = batch()
    loss = ((run or model)(x) - y).square().sum() * scale
    loss.backward()
    return loss


class Plain:
    """One update as it is usually made; habits change parts of it."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer, self.updates = model, optimizer, 0

    def __call__(self):
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()
        self.updates += 1

    def backward(self):
        backward(self.model)


class ClippedByNorm(Plain):
    def backward(self):
        super().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)


class ClippedByValue(Plain):
    def backward(self):
        super().backward()
        nn.utils.clip_grad_value_(self.model.parameters(), 0.1)


class Accumulated(Plain):
    def backward(self):
        for _ in range(3):
            backward(self.model, 1 / 3)


class ZeroedNotDropped(Plain):
    def __call__(self):
        super().__call__()
        self.optimizer.zero_grad(set_to_none=False)


class HalfPrecision(Plain):
    def backward(self):
        with torch.autocast("cpu", torch.bfloat16):
            backward(self.model)


class LossScaled(Plain):
    """The first updates overflow in half precision, and are none."""

    def __init__(self, model, optimizer):
        super().__init__(model, optimizer)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-30)

    def __call__(self):
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            x, y = batch()
            loss = (self.model(x) - y).square().mean()
        self.scaler.scale(loss).backward()
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += self.scaler.get_scale() >= before


class Recomputed(Plain):
    reentrant = False

    def backward(self):
        backward(self.model, run=lambda x: checkpoint(self.model, x, use_reentrant=self.reentrant))


class RecomputedReentrantly(Recomputed):
    reentrant = True

    def backward(self):
        backward(self.model, run=lambda x: checkpoint(self.model, x.requires_grad_(), use_reentrant=True))


class Cyclic(Plain):
    """Rates and momentum change at every update."""

    def __init__(self, model, optimizer):
        super().__init__(model, optimizer)
        self.schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=20)

    def __call__(self):
        super().__call__()
        self.schedule.step()


class ByClosure(Plain):
    def __call__(self):
        def closure():
            self.optimizer.zero_grad()
            return backward(self.model)

        self.optimizer.step(closure)
        self.updates += 1


HABITS = (
    ClippedByNorm, ClippedByValue, Accumulated, ZeroedNotDropped, HalfPrecision, LossScaled, Recomputed,
    RecomputedReentrantly, Cyclic, ByClosure,
)  # fmt: skip


@BOTH
@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.__name__)
def test_no_habit_revives_what_is_dead_or_gives_a_newborn_a_past(habit, make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 2)  # so that there is momentum where connections die
    attached = attach(model, optimizer, exchange(Every(3), ELSEWHERE), topology=half(model))
    update, edits = habit(model, optimizer), 0
    for _ in range(12):
        before = attached.topology.version
        update()
        assert not dead(model, attached.topology).any()
        assert attached.topology.step == update.updates
        if attached.topology.version != before:
            assert without_a_past(model, optimizer, attached.last) == 5
            edits += 1
    assert update.updates == (10 if habit is LossScaled else 12)
    assert edits == update.updates // 3
    assert attached.topology.density() == 0.5
    assert alive(model, attached.topology).isfinite().all()


def without_a_past(model, optimizer, delta):
    """Assert that newborns and their optimizer state are 0, and return how many they are."""
    born = 0
    for name, new in delta.born.items():
        parameter = model.get_parameter(name)
        values = [parameter, *(v for v in optimizer.state[parameter].values() if v.shape == parameter.shape)]
        assert len(values) > 1
        assert not any(value[new].any() for value in values)
        born += int(new.sum())
    return born


OTHERS = {
    "adagrad": partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1),
    "adagrad, fused": partial(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.1, fused=True),
    "rmsprop, foreach": partial(torch.optim.RMSprop, lr=0.1, momentum=0.9, foreach=True),
    "adadelta": partial(torch.optim.Adadelta, weight_decay=0.1),
    "adamax": partial(torch.optim.Adamax, lr=0.1),
    "nadam": partial(torch.optim.NAdam, lr=0.1, decoupled_weight_decay=True),
    "radam": partial(torch.optim.RAdam, lr=0.1),
    "asgd": partial(torch.optim.ASGD, lr=0.1),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_other_optimizers_are_masked_and_newborns_have_no_past_in_them(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 2)
    attached = attach(model, optimizer, exchange(Every(2), ELSEWHERE), topology=half(model))
    for step in range(1, 7):
        train(model, optimizer)
        assert not dead(model, attached.topology).any()
        if step % 2 == 0:
            assert without_a_past(model, optimizer, attached.last) == 5


def test_optimizers_whose_memory_is_not_one_of_weights_are_masked_too():
    model = network()
    for optimizer in (
        torch.optim.Adafactor(model.parameters(), lr=0.1), torch.optim.Muon([model[0].weight, model[2].weight], lr=0.1)
    ):  # fmt: skip
        attached = attach(model, optimizer, exchange(Every(2), ELSEWHERE), topology=half(model))
        for _ in range(4):
            train(model, optimizer)
            assert not dead(model, attached.topology).any()
        assert attached.finish().density() == 0.5


SCHEDULES = {
    "cosine with restarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3),
    "warm-up": partial(lr_scheduler.LinearLR, start_factor=0.1, total_iters=4),
    "swa": partial(SWALR, swa_lr=0.05, anneal_epochs=3),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_schedule_of_rates_is_made_before_or_after_attach(make):
    for scheduled_first in (True, False):
        model = network()
        optimizer = SGD(model.parameters())
        schedule = make(optimizer) if scheduled_first else None
        attached = attach(model, optimizer, exchange(Every(2), ELSEWHERE), topology=half(model))
        schedule = schedule or make(optimizer)
        rates = []
        for _ in range(6):
            train(model, optimizer)
            schedule.step()
            rates.append(schedule.get_last_lr())
            assert not dead(model, attached.topology).any()
        assert len({rate for (rate,) in rates}) > 1
        assert attached.topology.step == 6


def test_groups_have_their_own_rate_and_decay_and_later_ones_are_masked_too():
    model = network()
    model[0].requires_grad_(False)
    weights = {"params": [model[2].weight], "weight_decay": 0.5}
    optimizer = torch.optim.AdamW([weights, {"params": [model[2].bias], "weight_decay": 0.0}], lr=0.1)
    attached = attach(model, optimizer, exchange(Every(3), ELSEWHERE), topology=half(model))
    train(model, optimizer, 3)
    still = model[0].weight.clone()
    assert not dead(model, attached.topology).any()
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": [*model[0].parameters()], "lr": 0.05, "weight_decay": 0.3})
    train(model, optimizer, 2)
    assert not dead(model, attached.topology).any()
    assert (model[0].weight != still).any()
    train(model, optimizer)
    assert without_a_past(model, optimizer, attached.last) == 5
    train(model, optimizer)
    assert not dead(model, attached.topology).any()


def test_an_optimizer_that_takes_over_forgets_newborns_and_the_old_one_is_no_longer_asked():
    model = network()
    old = SGD(model.parameters())
    train(model, old, 2)
    attached = attach(model, old, exchange(Every(3), ELSEWHERE), topology=half(model))
    train(model, old, 2)
    new = ADAMW(model.parameters())
    attached.rebind(new)
    momentum = {p: old.state[p]["momentum_buffer"].clone() for p in (model[0].weight, model[2].weight)}
    train(model, new)
    assert attached.topology.step == 3
    assert without_a_past(model, new, attached.last) == 5
    assert all(torch.equal(old.state[p]["momentum_buffer"], before) for p, before in momentum.items())
    train(model, new, 3)
    assert not dead(model, attached.topology).any()


def test_two_optimizers_have_an_attachment_each():
    model = network()
    optimizers = [SGD(model[0].parameters()), ADAMW(model[2].parameters())]
    several = [
        attach(model, optimizer, exchange(Every(2)), include=[name])
        for optimizer, name in zip(optimizers, ("0", "2"), strict=True)
    ]
    for _ in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model)
        for optimizer in optimizers:
            optimizer.step()
        assert not any(dead(model, attached.topology).any() for attached in several)
    assert [attached.topology.density() for attached in several] == [0.5, 0.5]


class TestAverages:
    """An average is a network of its own: what died lives on in it, until the topology is applied."""

    def averaged(self, average, update, updates=6):
        model = network()
        optimizer = SGD(model.parameters())
        mean = average(model)
        falling = Method(Density(lambda step: 1 - step / 12), {"keep": magnitude}, Every(1))
        attached = attach(model, optimizer, falling)
        for _ in range(updates):
            train(model, optimizer)
            update(mean, model)
        return mean, attached.topology

    @pytest.mark.parametrize("average", [AveragedModel, partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.9))])
    def test_torchs_own_gets_its_zeros_from_the_topology(self, average):
        mean, topology = self.averaged(average, lambda mean, model: mean.update_parameters(model))
        assert topology.density() == 0.5
        self.assert_zeros_come_with_the_topology(mean, topology)

    def test_one_made_by_hand_gets_its_zeros_from_the_topology(self):
        def update(mean, model):
            with torch.no_grad():
                for ours, theirs in zip(mean.parameters(), model.parameters(), strict=True):
                    ours.lerp_(theirs, 0.1)

        mean, topology = self.averaged(copy.deepcopy, update)
        self.assert_zeros_come_with_the_topology(mean, topology)

    def assert_zeros_come_with_the_topology(self, mean, topology):
        assert dead(mean, topology).any()
        before = alive(mean, topology).clone()
        topology.apply(mean)
        assert not dead(mean, topology).any()
        assert not dead(mean, topology).signbit().any()
        assert torch.equal(alive(mean, topology), before)
        assert before.all()

    def test_batch_norms_of_an_average_are_updated_without_the_methods_knowledge(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        optimizer = SGD(model.parameters())
        attached = attach(model, optimizer, watching())
        mean = AveragedModel(model)
        train(model, optimizer)
        mean.update_parameters(model)
        before = attached.topology.state["keep/0.weight"]["seen"].clone()
        update_bn([torch.randn(8, 4)], mean)
        mean(torch.randn(8, 4)).sum().backward()
        assert attached._probe.take() == {"0": {}, "2": {}}
        assert torch.equal(attached.topology.state["keep/0.weight"]["seen"], before)


def watching(every=1):
    """Return a method whose signal adds up what flows into each layer in training."""
    signal = Signal(
        lambda state, view: view.weight.abs() + state["seen"],
        lambda view: {"seen": torch.zeros(view.weight.shape[1], dtype=torch.float64)},
        lambda state, view: {"seen": state["seen"] + view.stats["x"]} if view.stats else state,
        watch={"x": mean_abs_input},
    )
    return Method(Density(0.5), {"keep": signal}, Every(every))


class TestWatching:
    def seen(self, run, updates=2, first=lambda model: model):
        torch.manual_seed(0)
        model = network()
        optimizer = SGD(model.parameters())
        watched = first(model)
        attached = attach(watched, optimizer, watching(every=2))
        for n in range(updates):
            optimizer.zero_grad()
            for part in torch.randn(6, 4, generator=torch.Generator().manual_seed(n)).split(run.parts):
                run(watched, part).sum().backward()
            optimizer.step()
        return {key: value["seen"] for key, value in attached.topology.state.items()}, attached.topology.digest()

    def plainly(self, model, x):
        return model(x)

    def reentrantly(self, model, x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=True)

    def without_reentrance(self, model, x):
        return checkpoint(model, x, use_reentrant=False)

    def run(self, call, parts=6):
        run = partial(call)
        run.parts = parts
        return run

    def test_what_accumulated_batches_carried_adds_up(self):
        whole, parts = self.seen(self.run(self.plainly)), self.seen(self.run(self.plainly, parts=2))
        for key, value in whole[0].items():
            torch.testing.assert_close(parts[0][key], value, rtol=1e-6, atol=1e-6)
        assert whole[1] == parts[1]

    @pytest.mark.parametrize("how", ["reentrantly", "without_reentrance"])
    def test_a_forward_pass_that_is_made_again_for_gradients_counts_once(self, how):
        whole, again = self.seen(self.run(self.plainly)), self.seen(self.run(getattr(self, how)))
        assert all(torch.equal(again[0][key], value) for key, value in whole[0].items())
        assert whole[1] == again[1]

    @pytest.mark.parametrize("fused", [False, True])
    def test_a_skipped_update_that_overflowed_leaves_no_infinity_behind(self, fused):
        model = network()
        optimizer = SGD(model.parameters(), fused=fused)
        scaler, attached = torch.amp.GradScaler("cpu", init_scale=16.0), attach(model, optimizer, watching(9))
        for x in (torch.ones(1, 4), torch.full((1, 4), torch.inf), torch.ones(1, 4)):
            optimizer.zero_grad()
            scaler.scale(model(x).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert attached.topology.step == 2
        assert attached.topology.state["keep/0.weight"]["seen"].tolist() == [2.0] * 4

    def test_a_watching_method_that_sees_nothing_says_so(self):
        model = network()
        optimizer = SGD(model.parameters())
        attach(model, optimizer, watching())
        backward(model.eval())
        with pytest.raises(AttachError, match=r"nothing flowed through any before this update: .*compiler\.reset\(\)"):
            optimizer.step()

    @pytest.mark.slow
    def test_a_model_compiled_before_it_is_attached_is_not_unseen_in_silence(self):
        model = network()
        compiled = torch.compile(model, backend="aot_eager")
        compiled(torch.ones(2, 4)).sum().backward()
        optimizer = SGD(model.parameters())
        attach(compiled, optimizer, watching())
        compiled(torch.ones(2, 4)).sum().backward()
        with pytest.raises(AttachError, match=r"torch\.compiler\.reset\(\)"):
            optimizer.step()

    @pytest.mark.slow
    @pytest.mark.parametrize("ran_before", [False, True])
    def test_what_flows_through_a_compiled_model_is_seen_where_it_is_compiled_after_attach(self, ran_before):
        def compiled(model):
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            if ran_before:
                compiled(torch.ones(2, 4)).sum().backward()
                torch.compiler.reset()
            return compiled

        torch.compiler.reset()  # what others compiled of the same classes knows of no hooks
        whole, seen = self.seen(self.run(self.plainly)), self.seen(self.run(self.plainly), first=compiled)
        for key, value in whole[0].items():
            torch.testing.assert_close(seen[0][key], value)
        assert whole[1] == seen[1]


@pytest.mark.slow
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_model_compiled_ahead_of_time_is_masked_and_exchanged_as_it_is(compiled_first):
    digests = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = network()
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        if compiled_first:
            run(torch.ones(2, 4)).sum().backward()
        optimizer = ADAMW(model.parameters())
        attached = attach(model, optimizer, exchange(Every(2)))
        for _ in range(6):
            optimizer.zero_grad()
            backward(model, run=run)
            optimizer.step()
            assert not dead(model, attached.topology).any()
        digests.append(attached.finish().digest())
    assert digests[0] == digests[1]


def test_gradients_grow_connections_alike_where_they_are_accumulated_or_recomputed():
    seen = []
    for habit in (Plain, Recomputed, RecomputedReentrantly):
        torch.manual_seed(2)
        model, grads = network(), []

        def look(view, grads=grads):
            grads.append(view.grad.clone())
            return gradient.read({}, view)

        rule = Density(0.5, grow="grow", turnover=0.5)
        optimizer = SGD(model.parameters())
        attached = attach(
            model, optimizer, Method(rule, {"keep": magnitude, "grow": stateless(look, "gradient")}, Every(1))
        )
        update = habit(model, optimizer)
        for _ in range(3):
            update()
        seen.append((attached.finish().digest(), grads))
    for digest, grads in seen[1:]:
        assert digest == seen[0][0]
        assert len(grads) == len(seen[0][1]) == 6
        assert all(torch.equal(one, other) for one, other in zip(grads, seen[0][1], strict=True))


@pytest.mark.parametrize("name", ["rigl", "dynamic_synaptic"])
def test_a_step_that_only_makes_the_state_of_an_optimizer_is_none(name):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model = network()
    optimizer = ADAMW(model.parameters())
    attached = attach(model, optimizer, build(name))
    before = attached.topology.digest()
    get_state_dict(model, optimizer)  # makes one with zero gradients and a rate of 0
    assert attached.topology.step == 0
    assert attached.topology.digest() == before


def test_a_step_at_a_rate_of_0_counts_where_there_are_gradients():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attached = attach(model, optimizer, exchange(Every(2)))
    backward(model)
    optimizer.step()
    assert attached.topology.step == 1
