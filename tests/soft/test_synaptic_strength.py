import re
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy_networks import NETWORKS, X, chain, conv, densenet, jumbled, resnet, smooth

from synaptree.core.attach import attach
from synaptree.core.errors import AttachError, NumericError, OptionError, ShapeError
from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.soft.synaptic_strength import (
    convert,
    count_kernels,
    fold,
    parameter_groups,
    penalise,
    prune_strengths,
    recalibrate,
    strength_layers,
    strength_scores,
)

every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def of_strengths(*rows):
    """A network whose layers `1`, `2`, ... of 1x3 kernels have the given strengths, `(out, in)` each."""
    widths = [len(rows[0][0]), *(len(strengths) for strengths in rows)]
    model = nn.Sequential(nn.Conv2d(1, widths[0], 1), *(
        nn.Conv2d(a, b, (1, 3), padding=(0, 1)) for a, b in pairwise(widths)
    ))  # fmt: skip
    convert(model, X[:, :1])
    for layer, strengths in zip(model[1:], rows, strict=True):
        layer.strength.data = torch.tensor(strengths)
    return model


def masks(model):
    return [layer.mask.int().tolist() for layer in strength_layers(model).values()]


# --- scores


def test_a_score_is_the_strength_times_the_scale_of_what_the_kernel_reads():
    """SiLU keeps the scale before layer 3; what layer 6 reads has its scale absorbed."""
    model = jumbled(smooth())
    convert(model, X)
    scores = strength_scores(model)
    torch.testing.assert_close(scores["3"], model[3].strength.detach().abs() * model[1].weight.detach().abs())
    assert torch.equal(scores["6"], model[6].strength.detach().abs())


@every_network
def test_scores_do_not_depend_on_whether_scales_were_absorbed(make):
    model = jumbled(make())
    kept = deepcopy(model)
    convert(model, X)
    convert(kept, X, drop_gamma="none")
    for name, score in strength_scores(model).items():
        torch.testing.assert_close(score, strength_scores(kept)[name])


def test_rows_can_be_compared_by_their_own_size():
    """(3, -4) has the norm 5; a row of zeros stays 0."""
    model = of_strengths([[3.0, -4.0], [0.0, 0.0]])
    torch.testing.assert_close(strength_scores(model, "row")["1"], torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


# --- pruning


def test_the_weakest_kernels_of_all_layers_go_whatever_their_sign():
    """8 kernels by size: 9 8 7 6 | 5 4 3 2; half go."""
    model = of_strengths([[9.0, -2.0], [3.0, -8.0]], [[7.0, 4.0], [-6.0, 5.0]])
    left = prune_strengths(model, 0.5)
    assert masks(model) == [[[1, 0], [0, 1]], [[1, 0], [1, 0]]]
    assert model[1].strength.tolist() == [[9.0, 0.0], [0.0, -8.0]]
    assert (left.kernels, left.kernels_left, left.layers) == (8, 4, {"1": (2, 4), "2": (2, 4)})


def test_ties_go_to_the_lowest_index_of_the_first_layer():
    model = of_strengths([[1.0, -1.0], [1.0, 1.0]], [[1.0, 1.0]])
    prune_strengths(model, 0.5, floor=0.0)
    assert masks(model) == [[[1, 1], [1, 0]], [[1, 0]]]  # of 6 equals 3 stay; layer 2 keeps one in any case


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 0.5))
def test_just_the_share_goes_but_for_the_floor(seed, ratio, floor):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(-4, 5, shape, generator=generator).float() for shape in ((5, 3), (4, 5)))
    model = of_strengths(first.tolist(), second.tolist())
    left = prune_strengths(model, ratio, floor=floor)
    wanted = 35 - int(ratio * 35 + 1e-9)
    assert left.kernels_left >= wanted
    for kept, total in left.layers.values():
        assert kept >= max(1, floor * total - 1e-9)
    at_floor = [kept <= max(1, -(-floor * total // 1)) for kept, total in left.layers.values()]
    assert left.kernels_left == wanted or any(at_floor)
    cut = torch.cat([s[m == 0].abs().flatten() for s, m in zip((first, second), map(torch.tensor, masks(model)),
                                                              strict=True)])
    if not any(at_floor) and cut.numel():
        stay = torch.cat([layer.strength.detach()[layer.mask].abs() for layer in model[1:]])
        assert cut.max() <= stay.min()


def test_a_threshold_keeps_what_exceeds_it():
    model = of_strengths([[1.0, 2.0], [-3.0, 0.5]])
    prune_strengths(model, threshold=1.0)
    assert masks(model) == [[[0, 1], [1, 0]]]
    prune_strengths(model, threshold=100.0)
    assert masks(model) == [[[0, 0], [1, 0]]]  # the best one stays


def test_the_best_kernel_of_each_row_can_be_kept():
    model = of_strengths([[9.0, 8.0], [1.0, 2.0], [7.0, 6.0]])
    prune_strengths(model, 0.5, keep_row=True)
    assert masks(model) == [[[1, 1], [0, 1], [1, 0]]]


def test_rows_ranked_by_themselves_keep_weak_rows():
    """By rows: (9, 8) / 12.04 = .75, .66; (.1, .02) / .102 = .98, .20."""
    model = of_strengths([[9.0, 8.0], [0.1, 0.02]])
    prune_strengths(model, 0.5, norm="row")
    assert masks(model) == [[[1, 0], [1, 0]]]


def test_ratios_rise_and_what_went_stays_away():
    model = of_strengths([[4.0, 3.0], [2.0, 1.0]])
    prune_strengths(model, 0.5)
    model[1].strength.data[1] = 99.0  # as momentum might
    assert prune_strengths(model, 0.25).kernels_left == 2
    assert masks(model) == [[[1, 1], [0, 0]]]
    assert prune_strengths(model, 0.75).kernels_left == 1


def test_1x1_kernels_are_counted_apart():
    model = densenet()
    convert(model, X)
    assert count_kernels(model).spatial == {"1.conv", "2.conv"}
    left = prune_strengths(model, 0.5)
    assert (left.kernels, left.spatial_kernels) == (2 * 4 + 2 * 6 + 4 * 8, 2 * 4 + 2 * 6)
    assert left.kernels_left == 26
    by_hand = int(model[1].conv.mask.sum() + model[2].conv.mask.sum())
    assert left.spatial_kernels_left == by_hand
    assert str(left) == f"26 of 52 kernels left, of those larger than 1x1 {by_hand} of 20"


def test_a_layer_with_two_names_counts_once():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = conv(2, 2), conv(2, 3)
            self.last = self.conv

        def forward(self, x):
            return self.last(self.stem(x))

    model = Named()
    convert(model, X)
    assert model.last is model.conv
    assert count_kernels(model).layers == {"conv": (6, 6)}
    topology = fold(model)
    assert type(model.last) is nn.Conv2d
    assert model.last is model.conv
    assert set(topology.masks) == {"conv.weight"}


@pytest.mark.parametrize(("given_", "error", "message"), [
    ({}, OptionError, "give either ratio or threshold, got ratio=None and threshold=None"),
    ({"ratio": 0.5, "threshold": 1.0}, OptionError, "give either ratio or threshold"),
    ({"ratio": 1.1}, OptionError, "ratio = 1.1: wanted a share from 0 to 1"),
    ({"ratio": 0.5, "floor": -0.1}, OptionError, "floor = -0.1: wanted a share"),
    ({"threshold": float("nan")}, OptionError, "threshold = nan: wanted a number of at least 0"),
    ({"ratio": 0.5, "norm": "rows"}, OptionError, "unknown norm 'rows'; did you mean 'row'"),
])  # fmt: skip
def test_what_is_out_of_range_is_refused(given_, error, message):
    model = of_strengths([[4.0, 3.0]])
    with pytest.raises(error, match=re.escape(message)):
        prune_strengths(model, **given_)
    assert masks(model) == [[[1, 1]]]


def test_a_strength_that_is_no_number_is_refused_and_nothing_changes():
    model = of_strengths([[4.0, 3.0]], [[1.0], [torch.nan]])
    with pytest.raises(NumericError, match="holds NaN"):
        prune_strengths(model, 0.5)
    assert masks(model) == [[[1, 1]], [[1], [1]]]


@pytest.mark.parametrize("act", [fold, count_kernels, strength_scores, lambda model: prune_strengths(model, 0.5)])
def test_a_network_without_strengths_is_refused(act):
    with pytest.raises(AttachError, match=r"no layer with strengths: call convert\(model, example\) first"):
        act(chain())


# --- and back


@every_network
def test_folding_gives_the_plain_network_back_bit_for_bit(make):
    model = jumbled(make())
    plain = deepcopy(model)
    found = convert(model, X)
    prune_strengths(model, 0.5)
    before, kept = model(X), {name: layer.mask for name, layer in strength_layers(model).items()}
    topology = fold(model)
    assert torch.equal(model(X), before)
    assert {n: type(m) for n, m in model.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [
        (n, True) for n, _ in plain.named_parameters()]
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in plain.modules()]
    assert set(topology.masks) == {f"{name}.weight" for name in found.layers}
    for name in found.layers:
        zero = model.get_submodule(name).weight.flatten(2).eq(0).all(2)
        assert torch.equal(zero, ~kept[name])
        assert torch.equal(topology.masks[f"{name}.weight"], kept[name][:, :, None, None])


def test_finetuning_keeps_what_is_gone_at_zero():
    model = jumbled(chain()).train()
    convert(model, X)
    prune_strengths(model, 0.7)
    topology = fold(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attach(model, optimizer, topology=topology)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    for name, mask in topology.masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask.expand_as(weight)].any()
    assert not torch.equal(model[1].weight, before["1.weight"])  # the scale is trained again


def test_zero_kernels_survive_the_fusion_with_batch_norm():
    model = nn.Sequential(conv(2, 2), nn.ReLU(), conv(2, 4), nn.BatchNorm2d(4))
    convert(jumbled(model), X)
    prune_strengths(model, 0.5)
    fold(model)
    fused = torch.nn.utils.fuse_conv_bn_eval(model[2], model[3])
    assert torch.equal(fused.weight.flatten(2).any(2), model[2].weight.flatten(2).any(2))
    assert int(fused.weight.flatten(2).any(2).sum()) == 4


def test_a_topology_with_other_masks_takes_those_of_the_kernels_up():
    model = chain()
    topology = Topology.of(layers_of(model, ["linear"]), {"linear": "weight"})
    convert(model, X)
    prune_strengths(model, 0.5)
    assert fold(model, topology) is topology
    assert set(topology.masks) == {"4.weight", "9.weight", "13.weight", "15.weight"}
    assert topology.weights_alive("4.weight") + topology.weights_alive("9.weight") == 9 * 18


def test_a_topology_with_masks_of_another_granularity_is_refused_and_nothing_is_folded():
    model = chain()
    topology = Topology.of(layers_of(model, ["conv"], include=["9"]), {"conv": "weight"})
    convert(model, X)
    with pytest.raises(ShapeError, match=r"9\.weight .* has a mask of shape \(3, 4, 3, 3\) already"):
        fold(model, topology)
    assert set(topology.masks) == {"9.weight"}
    assert count_kernels(model).kernels == 24 + 12


def test_a_scale_the_user_has_fixed_stays_fixed():
    model = chain()
    model[1].weight.requires_grad_(False)
    convert(model, X)
    fold(model)
    assert [model[i].weight.requires_grad for i in (1, 5, 10)] == [False, True, True]


def test_a_converted_network_can_be_saved_copied_and_resumed():
    model, again = jumbled(resnet()), resnet().eval()
    convert(model, X)
    prune_strengths(model, 0.5)
    convert(again, X)
    again.load_state_dict(model.state_dict())
    for copy in (again, deepcopy(model)):
        assert torch.equal(copy(X), model(X))
        assert fold(copy).digest() == fold(deepcopy(model)).digest()
        assert all(p.requires_grad for p in copy.parameters())


@pytest.mark.slow
def test_a_folded_network_can_be_exported():
    model = jumbled(chain())
    convert(model, X)
    prune_strengths(model, 0.5)
    fold(model)
    exported = torch.export.export(model, (X,)).module()
    torch.testing.assert_close(exported(X), model(X))


# --- the whole of it


def textures(count, generator):
    """Stripes of four directions with noise, `(count, 1, 8, 8)`, and which direction."""
    kinds = torch.randint(0, 4, (count,), generator=generator)
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = torch.stack([row, column, row + column, row - column]) * 1.6
    phase = 6.28 * torch.rand(count, 1, 1, generator=generator)
    x = torch.sin(waves[kinds] + phase) + 0.3 * torch.randn(count, 8, 8, generator=generator)
    return x[:, None], kinds


def small():
    return nn.Sequential(
        conv(1, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 32), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        conv(32, 32), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def trained(model, x, y, updates, penalty=None, topology=None):
    """Train at the rates 0.1, 0.01 and 0.001."""
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=0.1, momentum=0.9)
    at_work = penalise(model, optimizer, **penalty) if penalty else None
    attached = attach(model, optimizer, topology=topology) if topology else None
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.6 * updates), int(0.85 * updates)])
    for step in range(updates):
        batch = torch.arange(32 * step, 32 * step + 32) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    if at_work:
        at_work.remove()
    if attached:
        attached.finish()
    return model


@torch.no_grad()
def accuracy(model, x, y):
    return (model.eval()(x).argmax(1) == y).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [{"weight": 8e-4}, {"weight": 5e-3, "step": "proximal"}], ids=str)
def test_strengths_learn_which_kernels_to_do_without(penalty):
    generator = torch.Generator().manual_seed(0)
    (x, y), (new_x, new_y) = textures(512, generator), textures(1000, generator)
    dense = accuracy(trained(small(), x, y, 200), new_x, new_y)
    model = small()
    convert(model, x[:4])
    trained(model, x, y, 600, penalty)
    strengths = torch.cat([layer.strength.detach().abs().flatten() for layer in strength_layers(model).values()])
    assert (strengths < 1e-3).float().mean() > 0.8
    assert accuracy(model, new_x, new_y) > dense - 0.005
    assert prune_strengths(model, 0.96).kernels_left == 1536 - int(0.96 * 1536)
    recalibrate(model, x.split(64))
    topology = fold(model)
    trained(model, x, y, 100, topology=topology)
    assert accuracy(model, new_x, new_y) > dense - 0.005
    alive = [model[i].weight.flatten(2).any(2).sum().item() for i in (3, 7)]
    assert sum(alive) == 62


def test_a_part_of_a_model_may_be_converted_and_the_whole_be_scored():
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 2, 3)).eval()
    nn.init.uniform_(part[1].weight, 0.5, 2.0)
    whole = nn.Sequential(nn.Identity(), nn.BatchNorm2d(1), part)
    convert(part, torch.rand(1, 1, 5, 5))
    alone, within = strength_scores(part)["3"], strength_scores(whole)["2.3"]
    assert torch.equal(alone, within)


def test_folding_revives_nothing_that_a_given_topology_has_lost():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 3)).eval()
    convert(model, torch.rand(1, 1, 5, 5))
    topology = Topology()
    topology.add("1.weight", (3, 2, 3, 3), "kernel")
    topology.edit({"1.weight": torch.tensor([[0, 1], [1, 1], [1, 1]]).bool().view(3, 2, 1, 1)})
    assert int(fold(model, topology).masks["1.weight"].sum()) == 5
