"""Several processes that train one network: what they add up, what they hold parts of, and that they agree."""

import os
from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from synaptree.core.attach import attach
from synaptree.core.errors import AttachError, DataError, RankError
from synaptree.core.layer import parameters_of
from synaptree.core.oneshot import prune
from synaptree.core.ranks import Ranks, made_whole, whole
from synaptree.core.topology import Topology
from synaptree.methods import build
from synaptree.signals.gradients import mean_gradients
from synaptree.testing.together import in_processes, sharded
from synaptree.testing.toys import DENSE, TIED, dyadic
from synaptree.train.health import check

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked")


def trained(model, name="rigl", optimizer=torch.optim.SGD, **options):
    optimizer = optimizer(model.parameters(), lr=0.25)
    return optimizer, attach(model, optimizer, build(name, **options))


def update(model, optimizer, x):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()


# --- sums


def _adds_up(rank):
    ranks = Ranks(nn.Linear(2, 1))
    mine = {"a": {"samples": 2 + rank, "sum": torch.tensor([1.0, 2.0]) * (rank + 1)}}
    if rank == 0:
        mine["b"] = {"samples": 1, "sum": torch.ones(1)}
    total = ranks.add_up(mine)
    assert total["a"]["samples"] == 5
    assert total["a"]["sum"].tolist() == [3.0, 6.0]
    assert total["b"] == {"samples": 1, "sum": torch.ones(1)}
    assert ranks.add_up({}) == {}


def test_sums_of_two_processes_add_up_also_where_one_saw_nothing():
    in_processes(2, _adds_up)


def _differs_in_shape(rank):
    with pytest.raises(DataError, match=r"layer a: sum has shape \(2,\) in one process and \(3,\) in another"):
        Ranks(nn.Linear(2, 1)).add_up({"a": {"samples": 1, "sum": torch.ones(2 + rank)}})


def test_inputs_of_other_sizes_in_another_process_are_named():
    in_processes(2, _differs_in_shape)


def _comes_late(_):
    ranks = Ranks(nn.Linear(2, 1))
    ranks.add_up({"a": {"samples": 1}}, steady=True)
    with pytest.raises(DataError, match="have not agreed on"):
        ranks.add_up({"b": {"samples": 1}}, steady=True)


def test_a_layer_that_comes_after_the_agreement_is_refused():
    in_processes(2, _comes_late)


def test_one_process_keeps_its_sums():
    sums = {"a": {"samples": 1}}
    assert Ranks(nn.Linear(2, 1)).add_up(sums) is sums


def _joint_gradients(rank):
    model = DENSE.model()
    x, y = DENSE.inputs[rank : rank + 1 + rank * 2], DENSE.targets[rank : rank + 1 + rank * 2]
    wanted = _gradients(model, DENSE.inputs, DENSE.targets)
    for spread in (lambda model: model, DistributedDataParallel, sharded):
        for name, value in _gradients(spread(DENSE.model()), x, y).items():
            assert torch.equal(value, wanted[name])


def _gradients(model, x, y):
    if len(x) == len(DENSE.inputs):
        parameters = parameters_of(model)
        loss = (model(x) * y).sum() / len(x)
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    return mean_gradients(model, [(x, y)], lambda outputs, targets: (outputs * targets).sum() / len(targets))


def test_gradients_are_those_over_the_samples_of_all_processes():
    in_processes(2, _joint_gradients)


# --- agreement


def _edits_alone(rank):
    model = DistributedDataParallel(DENSE.model())
    optimizer, attached = trained(model, "set", density=0.5, every=2)
    update(model, optimizer, DENSE.inputs)
    if rank == 1:
        attached.topology.masks["0.weight"][0, 0] ^= True
    with pytest.raises(RankError, match=r"2 processes that train together differ after update 2: 0.weight"):
        update(model, optimizer, DENSE.inputs)


def test_a_mask_changed_in_one_process_alone_is_an_error_at_the_next_edit():
    in_processes(2, _edits_alone)


def _another_seed(rank):
    model = DistributedDataParallel(DENSE.model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    with pytest.raises(RankError, match="the random state"):
        attach(model, optimizer, build("set", density=0.5, every=2), seed=rank)
    assert not optimizer._optimizer_step_post_hooks


def test_another_seed_in_another_process_is_refused_when_attaching():
    in_processes(2, _another_seed)


def _another_checkpoint(rank):
    model = DistributedDataParallel(DENSE.model())
    _, attached = trained(model, "set", density=0.5, every=2)
    state = attached.state_dict()
    if rank == 1:
        state["topology"]["masks"]["0.weight"].logical_not_()
    with pytest.raises(RankError, match=r"0\.weight"):
        attached.load_state_dict(state)


def test_another_checkpoint_in_another_process_is_refused():
    in_processes(2, _another_checkpoint)


def _is_left_alone(rank):
    model = DistributedDataParallel(DENSE.model())
    ranks = Ranks(model)
    if rank == 1:
        os._exit(0)
    with pytest.raises(RankError, match="one of the 2 processes that train together has ended"):
        _agree_again_and_again(ranks)


def _agree_again_and_again(ranks):
    for _ in range(10):
        ranks.require_equal(Topology())


def test_a_process_that_is_gone_is_named():
    in_processes(2, _is_left_alone)


def _groups(rank):
    alone = [distributed.new_group([other]) for other in range(2)][rank]
    model = DENSE.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    attached = attach(model, optimizer, build("set", density=0.5, every=1), seed=rank, group=alone)
    update(model, optimizer, DENSE.inputs)
    assert attached.ranks.size == 1
    assert attached.topology.step == 1


def test_processes_that_train_networks_of_their_own_say_so_by_a_group():
    in_processes(2, _groups)


def _many_edits(rank):
    model = DistributedDataParallel(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)))
    optimizer, attached = trained(model, "set", density=0.3, every=1)
    for step in range(60):
        update(model, optimizer, torch.randn(4, 12, generator=torch.Generator().manual_seed(2 * step + rank)))
    assert attached.topology.born > 60


def test_sixty_edits_in_four_processes_agree():
    in_processes(4, _many_edits)


# --- shards


def _stays_dead(_):
    whole_model, model = DENSE.model(), sharded(DENSE.model())
    for one in (whole_model, model):
        options = {"density": 0.5, "alpha": 0.5, "every": 2, "last": 20}
        optimizer, attached = trained(one, optimizer=partial(torch.optim.Adam), **options)
        attached.ranks.size = 1 if one is whole_model else 4
        for step in range(6):
            update(one, optimizer, DENSE.inputs)
            for name, parameter in attached.topology.parameters(one):
                dead = ~attached.topology.expanded(name)
                assert not whole(parameter.detach())[dead].any()
                for value in optimizer.state[parameter].values():
                    if value.shape == parameter.shape and step == 1:
                        assert not whole(value)[attached.last.born[name]].any()
        assert attached.topology.born > 0
        one.eval()
        with torch.no_grad():
            one(DENSE.inputs)  # leaves the root's parameters gathered
        attached.finish()
    for name, parameter in parameters_of(model).items():
        assert torch.equal(whole(parameter.detach()), dict(whole_model.named_parameters())[name])


def test_dead_weights_stay_dead_where_four_processes_share_three_units():
    in_processes(4, _stays_dead)


def _pruned_whole(rank):
    model, alone = sharded(DENSE.model()), DENSE.model()
    x = DENSE.inputs[2 * rank : 2 * rank + 2]
    topology = prune(model, build("nnrelief", alpha_conv=0.9, alpha_fc=0.7), x)
    wanted = Topology()
    wanted_masks = _alone(alone, wanted)
    assert topology.density() < 1
    assert {name: mask.tolist() for name, mask in topology.masks.items()} == wanted_masks
    for name, parameter in topology.parameters(model):
        assert not whole(parameter.detach())[~topology.expanded(name)].any()


def _alone(model, topology):
    group = [distributed.new_group([rank]) for rank in range(distributed.get_world_size())][distributed.get_rank()]
    method = build("nnrelief", alpha_conv=0.9, alpha_fc=0.7)
    prune(model, method, DENSE.inputs, topology=topology, group=group)
    return {name: mask.tolist() for name, mask in topology.masks.items()}


def test_a_sharded_model_is_pruned_by_the_data_of_all_processes():
    in_processes(2, _pruned_whole)


def _keeps_ties(_):
    model = sharded_as_one(TIED.model())
    with made_whole(model) as copy:
        assert copy is not model
        assert copy.first.weight is copy.second.weight
        with torch.no_grad():
            copy.first.weight.fill_(3.0)
    assert bool((whole(model.second.weight.detach()) == 3).all())
    assert type(copy).__name__ == type(TIED.model()).__name__


def sharded_as_one(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    return model


def test_a_whole_copy_keeps_tied_weights_tied_and_is_taken_over():
    in_processes(2, _keeps_ties)


def _old_sharding(_):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(DENSE.model(), device_id=torch.device("cpu"))
    with pytest.raises(AttachError, match=r"fully_shard$"):
        prune(model, build("magnitude", density=0.5))


def test_the_first_generation_of_sharding_is_refused():
    in_processes(2, _old_sharding)


def test_what_fails_in_a_process_is_told_by_the_one_that_started_it():
    with pytest.raises(AssertionError, match=r"(?s)rank 1: .*ZeroDivisionError"):
        in_processes(2, _fails)


def _fails(rank):
    assert torch.equal(dyadic(1), dyadic(1))
    if rank == 1:
        raise ZeroDivisionError


def _is_refused_whole(rank):
    model = DistributedDataParallel(DENSE.model())
    _, attached = trained(model, "set", density=0.5, every=2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    state = attached.state_dict()
    if rank == 1:
        state["topology"]["masks"]["0.weight"].logical_not_()
    with pytest.raises(RankError):
        attached.load_state_dict(state)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_checkpoint_that_differs_between_processes_changes_nothing():
    in_processes(2, _is_refused_whole)


def _says_much(_):
    raise AssertionError("x" * 200_000)


def test_a_process_may_say_more_than_a_pipe_holds():
    with pytest.raises(AssertionError, match="xxxx"):
        in_processes(1, _says_much)


def _late_in_one(rank):
    ranks = Ranks(nn.Linear(2, 1))
    ranks.add_up({"a": {"samples": 1}}, steady=True)
    with pytest.raises(DataError, match="have not agreed on"):
        ranks.add_up({"b" if rank else "a": {"samples": 1}}, steady=True)


def test_a_layer_that_comes_late_in_one_process_is_an_error_in_all():
    in_processes(2, _late_in_one)


def _is_looked_after(_):
    model = sharded(DENSE.model())
    optimizer, attached = trained(model, "set", density=0.5, every=1)
    update(model, optimizer, DENSE.inputs)
    assert check(model, attached.topology, optimizer=optimizer) == []


def test_the_guards_look_at_a_sharded_model():
    in_processes(2, _is_looked_after)
