"""What the usual methods of sparse training and pruning promise, each against its own equation."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, tensor

from synaptree.core.attach import attach
from synaptree.core.errors import AttachError, NumericError, OptionError
from synaptree.core.layer import layers_of
from synaptree.core.oneshot import prune
from synaptree.core.rule import Group, Part
from synaptree.core.signal import View
from synaptree.core.topology import Topology
from synaptree.experiment import start
from synaptree.methods import build
from synaptree.recipe import load_recipe
from synaptree.signals.gradients import mean_gradients
from synaptree.testing.require import require_same
from synaptree.testing.toys import DENSE, Toy, Trial

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
CONSTANT = {
    "set": {"every": 3, "zeta": 0.5},
    "rigl": {"every": 3, "alpha": 1.0, "last": 12},
    "deep_r": {"l1": 0.5, "noise": 0.5},
}


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5))


def training(method, updates, model=None, optimizer=SGD, **options):
    """Yield what is attached before the first update and after each."""
    model = network() if model is None else model
    optimizer = optimizer(model.parameters())
    attached = attach(model, optimizer, method, **options)
    yield attached
    for _ in range(updates):
        optimizer.zero_grad()
        (model(torch.randn(8, 12)) - torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
        yield attached


def one_layer(method, weights, exist, gradients=None, lr=1.0):
    """Return the layer and what is attached after one update with these gradients, by plain descent."""
    model = nn.Linear(len(weights[0]), len(weights), bias=False)
    model.weight.data = tensor(weights)
    topology = Topology()
    topology.add("weight", tuple(model.weight.shape))
    topology.edit({"weight": tensor(exist).bool()})
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    attached = attach(model, optimizer, method, topology=topology)
    model.weight.grad = torch.zeros_like(model.weight) if gradients is None else tensor(gradients)
    optimizer.step()
    return model, attached


# --- counts


@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_method_has_the_same_count_in_every_layer_after_every_update(name):
    # Erdos-Renyi for 96 and 40 places: raw 20/96 and 13/40; round(0.3 * 136) = 41; 41 * 20/33 = 24.8 and 16.2
    moved = set()
    for attached in training(build(name, density=0.3, **CONSTANT[name]), 12):
        masks = attached.topology.masks
        assert [int(masks[f"{layer}.weight"].sum()) for layer in (0, 2)] == [25, 16]
        moved.add(attached.topology.digest())
    assert len(moved) > 2


def test_granet_has_the_cubic_density_after_every_cut():
    method = build("granet", density=0.1, initial=0.5, last=10, every=2, swap_last=14)
    start, *after = (attached.topology.density() * 136 for attached in training(method, 14))
    assert start == 68  # 0.5 * 136
    # step 2: 0.1 + 0.4 * 0.8^3 = 0.3048, times 136 = 41.45; 4: 0.1864, 25.4; 6: 0.1256, 17.1; 8: 0.1032, 14.04; 13.6
    for step, count in {2: 41, 3: 41, 4: 25, 6: 17, 8: 14, 10: 14, 12: 14, 14: 14}.items():
        assert after[step - 1] == pytest.approx(count)


@pytest.mark.parametrize("name", ["snip", "wanda"])
def test_a_method_that_acts_once_meets_its_density(name):
    model, x, y = network(), torch.randn(20, 12), torch.randn(20, 5)
    gradients = mean_gradients(model, [(x, y)], nn.functional.mse_loss)
    topology = prune(model, build(name, density=0.25), x, gradients=gradients)
    assert topology.density() == 0.25  # of 12 inputs 3, of 8 inputs 2


# --- SET


def ranks(weights, exist):
    (layer,) = layers_of(nn.Linear(len(weights[0]), len(weights), bias=False))
    weights, mask = tensor(weights), tensor(exist)
    method = build("set", density=float(mask.float().mean()), zeta=0.3, every=1, allocate="uniform")
    view = View(layer, "weight", weights, None, mask, 1, torch.Generator(), {})
    return Group(layer, Part("weight", mask, {
        "keep": method.signals["keep"].read({}, view), "grow": (~mask).float(),  # what goes does not come back
    })), method  # fmt: skip


@given(st.lists(st.floats(-1, 1, width=32).filter(bool), min_size=8, max_size=40), st.randoms(use_true_random=False))
def test_set_drops_equal_shares_of_positive_and_negative_weights_and_of_each_the_smallest(weights, random):
    exist = [True] * len(weights) + [False] * len(weights)
    weights = weights + [0.0] * len(weights)
    pairs = random.sample(list(zip(weights, exist, strict=True)), len(weights))
    weights, exist = [[value for value, _ in pairs]], [[there for _, there in pairs]]
    group, method = ranks(weights, exist)
    old, new, w = group.weight.mask, method.rule([group], 1)["weight"], tensor(weights)
    gone = old & ~new
    assert int(gone.sum()) == round(0.3 * int(old.sum()))
    for side in (w > 0, w < 0):
        share = 0.3 * int((old & side).sum())
        assert abs(int((gone & side).sum()) - share) <= 1
        if (gone & side).any() and (new & side).any():
            assert w[gone & side].abs().max() <= w[new & side].abs().min()


def test_set_may_draw_the_weights_of_the_newborn():
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attached = attach(model, optimizer, build("set", density=0.5, every=1, new_weight="gauss"))
    before = attached.topology.masks["weight"]
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    born, dead = attached.last.born["weight"], ~attached.topology.masks["weight"]
    # 0.3 * 5000 go; of 6500 free places, 5000 of them never taken, as many come: about 1150 newborn
    assert 1000 < int(born.sum()) < 1300
    assert not (born & before).any()
    assert model.weight[born].std().item() == pytest.approx(0.1, rel=0.1)
    assert not model.weight[dead].any()


# --- RigL


def literal_exchange(weight, gradient, mask, share):
    """Return the mask after one exchange, connection by connection."""
    flat, size, slope = mask.flatten().tolist(), weight.abs().flatten().tolist(), gradient.abs().flatten().tolist()
    count = round(share * sum(flat))
    alive = sorted((i for i, there in enumerate(flat) if there), key=lambda i: (size[i], -i))
    kept = {*alive[count:]}
    free = sorted((i for i in range(len(flat)) if i not in kept), key=lambda i: (-slope[i], i))
    return tensor([i in kept | {*free[:count]} for i in range(len(flat))]).view(mask.shape)


def test_rigl_grows_the_largest_dense_gradients_outside_the_survivors():
    toy = Toy("wide", frozenset({"linear"}), network, (12,), 5)  # 136 weights of nine values: many ties
    trial = Trial(build("rigl", density=0.3, alpha=0.6, every=1, last=8), toy)
    changed = 0
    for _ in trial.develop(6):
        edit, gradients = trial.edits[-1], {name: p.grad for name, p in trial.model.named_parameters()}
        for name, mask in edit.before.masks.items():
            share = 0.3 * (1 + math.cos(math.pi * edit.step / 8))
            wanted = literal_exchange(edit.before.weights[name], gradients[name], mask, share)
            assert torch.equal(edit.after.masks[name], wanted)
            changed += int((wanted != mask).sum())
    assert len(trial.edits) == 6
    assert changed > 10


def test_rigl_lets_what_comes_back_at_once_keep_its_weight():
    # round(0.5 * 2) = 1 goes, the smallest, 0.5; it has the largest gradient of the two free places
    method = build("rigl", density=0.7, alpha=1.0, every=1, last=2)
    model, attached = one_layer(method, [[2.0, 0.5, 0.0]], [[1, 1, 0]], [[0.0, 5.0, 1.0]], lr=0.0)
    assert attached.topology.masks["weight"].tolist() == [[True, True, False]]
    assert model.weight.tolist() == [[2.0, 0.5, 0.0]]


# --- DEEP R


def test_deep_r_replaces_what_would_change_its_sign_and_moves_the_rest():
    # rate 1, l1 0.25, no walk:
    #   0.5 - 1 = -0.5: theta < 0, goes;  -0.5 - 0.25 = -0.75: theta 0.75 - 0.25 = 0.5;  1 - 0: 1 - 0.25 = 0.75
    # one of the places 0 and 3 is drawn, and starts at 0
    method = build("deep_r", l1=0.25, noise=0.0)
    model, attached = one_layer(method, [[0.5, -0.5, 1.0, 0.0]], [[1, 1, 1, 0]], [[1.0, 0.25, 0.0, 7.0]])
    mask = attached.topology.masks["weight"]
    assert model.weight[0, 1:3].tolist() == [-0.5, 0.75]
    assert mask[0, 1:3].all()
    assert int(mask.sum()) == 3
    assert model.weight[0, 0] == model.weight[0, 3] == 0


def test_deep_r_starts_again_from_0_where_all_places_are_taken():
    # the first goes, and its own place is the only free one
    model, attached = one_layer(build("deep_r", l1=0.0, noise=0.0), [[0.5, -1.0]], [[1, 1]], [[1.0, 0.5]])
    assert attached.topology.density() == 1.0
    assert model.weight.tolist() == [[0.0, -1.5]]


def test_deep_r_pulls_and_walks_at_the_rate_of_the_weights_own_group():
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=True)
    model.weight.data.fill_(8.0)
    groups = [{"params": [model.bias], "lr": 100.0}, {"params": [model.weight], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    attach(model, optimizer, build("deep_r", density=1.0, l1=2.0, noise=0.25))
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    change = model.weight.detach() - 8.0
    assert change.mean().item() == pytest.approx(-1.0, abs=0.01)  # 0.5 * 2
    assert change.std().item() == pytest.approx(0.125, rel=0.05)  # 0.5 * 0.25


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("seed_weight", ["given", "he"])
def test_deep_r_never_changes_a_sign_and_keeps_its_number_of_connections(scope, seed_weight):
    # half the rate, a strong walk: many replacements
    method = build("deep_r", density=0.3, l1=0.5, noise=2.0, scope=scope, seed_weight=seed_weight)
    signs, replaced = {}, 0
    for attached in training(method, 30):
        replaced += int(attached.last.died["0.weight"].sum()) if attached.topology.step else 0
        assert sum(int(mask.sum()) for mask in attached.topology.masks.values()) == 41
        for name, weight in attached.model.named_parameters():
            if name in attached.topology.masks:
                known = signs.setdefault(name, torch.zeros_like(weight))
                now = weight.detach().sign()
                assert not ((known * now) < 0).any()
                signs[name] = torch.where(known == 0, now, known)
    assert replaced > 30
    assert all((sign == 1).any() and (sign == -1).any() for sign in signs.values())


def test_deep_r_draws_the_signs_of_places_that_hold_nothing():
    torch.manual_seed(0)
    exist = torch.rand(50, 50) < 0.5
    weights = torch.randn(50, 50) * exist
    _, attached = one_layer(build("deep_r"), weights.tolist(), exist.tolist())
    sign = attached.topology.state["theta/weight"]["sign"]
    assert torch.equal(sign[exist], weights.sign()[exist].to(torch.int8))
    drawn = sign[~exist]  # about 1250, standard deviation of their sum 35
    assert {*drawn.tolist()} == {-1, 1}
    assert abs(int(drawn.sum())) < 180


def test_deep_r_leaves_survivors_alone_where_nothing_pulls_or_walks():
    toy = Toy("wide", frozenset({"linear"}), network, (12,), 5)
    edits = Trial(build("deep_r", density=0.5, l1=0.0, noise=0.0), toy).run().edits
    assert any(edit.changes() for edit in edits)
    for edit in edits:
        for name, old in edit.before.masks.items():
            new, before, after = edit.after.masks[name], edit.before.weights[name], edit.after.weights[name]
            back = old & new & (after == 0)  # gone, and drawn again at once
            assert torch.equal(after[old & new & ~back], before[old & new & ~back])


def test_deep_r_resumes_its_walk_bitwise():
    method = partial(build, "deep_r", density=0.5, l1=0.5, noise=0.5)
    straight = Trial(method(), DENSE).run()
    first, second = Trial(method(), DENSE).run(2), Trial(method(), DENSE)
    second.load_state_dict(first.state_dict())
    require_same(straight.state_dict(), second.run().state_dict(), "resumed")


def test_deep_r_acts_in_training_only():
    with pytest.raises(AttachError, match="prune has none: use attach"):
        prune(network(), build("deep_r"), topology=next(training(build("deep_r"), 0)).topology)


# --- GraNet, iterative magnitude


@pytest.mark.parametrize(("options", "message"), [
    ({"initial": 0.05}, r"initial = 0.05 lies below density = 0.1"),
    ({"last": 0}, "wanted 0 <= first < last <= swap_last, got 0, 0, 0"),
    ({"swap_last": 5}, "wanted 0 <= first < last <= swap_last, got 0, 1000, 5"),
    ({"swap": 1.5}, r"swap = 1.5: wanted a number from 0"),
    ({"every": 0}, "interval = 0"),
])  # fmt: skip
def test_granet_names_options_that_do_not_fit(options, message):
    with pytest.raises(OptionError, match=message):
        build("granet", **options)


@pytest.mark.parametrize(("name", "options"), [
    ("set", {"zeta": -0.1}), ("rigl", {"alpha": 2.0}), ("deep_r", {"l1": -1.0}), ("deep_r", {"noise": -1.0}),
    ("set", {"density": 2.0}), ("rigl", {"density": 2.0}), ("deep_r", {"density": 2.0}), ("snip", {"density": 2.0}),
    ("wanda", {"density": 2.0}), ("nest", {"cut": 2.0}), ("nest", {"end_density": 2.0}), ("nest", {"capacity": 0.05}),
])  # fmt: skip
def test_options_out_of_range_are_refused_when_the_method_is_built(name, options):
    with pytest.raises(OptionError, match=r"wanted (a number from 0|numbers of at least 0|a seed above 0)"):
        build(name, **options)


def test_levels_of_iterative_magnitude_leave_four_fifths_each_and_tickets_start_from_the_saved_bits():
    model = network()
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    topology = prune(model, build("magnitude", density=1.0))
    left = 136
    for level in range(1, 11):
        *_, attached = training(None, 3, model, topology=topology)
        attached.finish()
        prune(model, build("iterative_magnitude", cut=0.2), topology=topology)
        model.load_state_dict(saved)
        topology.apply(model)
        left -= math.ceil(0.2 * left)
        alive = topology.masks
        assert sum(int(mask.sum()) for mask in alive.values()) == left
        assert 0 <= 0.8**level * 136 - left < 5  # each level rounds by less than 1, and 1 + 0.8 + 0.8^2 + ... is 5
        assert all(torch.equal(model.state_dict()[name][mask], saved[name][mask]) for name, mask in alive.items())


# --- SNIP, Wanda


def test_snip_ranks_by_the_slope_of_the_loss_in_a_factor_on_each_connection():
    model, x, y = network(), torch.randn(20, 12), torch.randn(20, 5)
    gradients = mean_gradients(model, [(x[:15], y[:15]), (x[15:], y[15:])], nn.functional.mse_loss)
    factors = {name: torch.ones_like(p, requires_grad=True) for name, p in model.named_parameters() if p.dim() > 1}
    scaled = {name: p.detach() * factors.get(name, 1.0) for name, p in model.named_parameters()}
    loss = nn.functional.mse_loss(torch.func.functional_call(model, scaled, x), y)
    slopes = torch.autograd.grad(loss, list(factors.values()))
    threshold = torch.cat([slope.abs().flatten() for slope in slopes]).sort(descending=True).values[33]
    topology = prune(model, build("snip", density=0.25), gradients=gradients)  # 34 of 136
    for name, slope in zip(factors, slopes, strict=True):
        assert torch.equal(topology.masks[name], slope.abs() >= threshold)


def test_snip_asks_for_gradients():
    with pytest.raises(AttachError, match="needs gradients of the training loss"):
        prune(network(), build("snip"))


def test_wanda_scores_grouped_convolutions_within_the_group():
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2)), torch.randn(5, 4, 3, 3)
    weight = model[0].weight.detach().clone()
    mask = prune(model, build("wanda", density=0.5), x).masks["0.weight"]
    norms = [x[:, i].square().sum().sqrt() for i in range(4)]
    for unit in range(6):
        first = 2 * (unit // 3)  # filters 0 to 2 read maps 0 and 1, the others 2 and 3
        score = torch.stack([weight[unit, i].abs() * norms[first + i] for i in range(2)])
        assert torch.equal(mask[unit], score >= score.flatten().sort().values[4])


def test_wanda_counts_every_vector_of_a_sequence():
    model, x = nn.Linear(3, 1, bias=False), torch.zeros(2, 4, 3)
    x[1, 3, 2], x[0, 0, 0] = 3.0, 2.0
    nn.init.ones_(model.weight)
    assert prune(model, build("wanda", density=0.4), x).masks["weight"].tolist() == [[False, False, True]]


def test_wanda_names_a_layer_that_nothing_flows_through():
    model = nn.Sequential(nn.Linear(3, 2))
    model.add_module("idle", nn.Module())
    model.idle.fc, model.idle.forward = nn.Linear(2, 2), lambda x: x
    with pytest.raises(AttachError, match=r"layer 'idle.fc': nothing flows through it"):
        prune(model, build("wanda"), torch.ones(1, 3))


# --- NeST


NEST = {"seed_density": 0.3, "capacity": 0.6, "grow_fraction": 0.2, "seed_weight": "given", "grow_output": True}


def test_nest_adds_as_many_connections_per_layer_as_strategic_synthesis():
    counts = []
    for method in (build("nest", grow_every=2, **NEST), build("strategic_synthesis", every=2, **NEST)):
        counts.append([
            [int(mask.sum()) for mask in attached.topology.masks.values()] for attached in training(method, 10)
        ])  # fmt: skip
    assert counts[0] == counts[1]
    assert counts[0][-1] > counts[0][0]


def test_nest_leaves_the_output_as_it_was_when_it_grows():
    model, x = network(), torch.randn(4, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attached = attach(model, optimizer, build("nest", grow_every=1, **NEST))
    before = model(x)
    model(x).square().sum().backward()
    optimizer.step()
    assert sum(int(born.sum()) for born in attached.last.born.values()) > 0
    assert torch.equal(model(x), before)


def test_nest_grows_by_the_mean_gradient_since_the_last_event():
    # mean of the first two: (0, 0, 0.5, 0.25): (0, 2) comes though the last gradient is largest at (0, 1); n = 1;
    # the next event knows the third and fourth alone: (0, 3)
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = tensor([[1.0, 0.0, 0.0, 0.0]])
    topology = Topology()
    topology.add("weight", (1, 4))
    topology.edit({"weight": tensor([[True, False, False, False]])})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = NEST | {"capacity": 1.0, "grow_every": 2}
    attach(model, optimizer, build("nest", **options), topology=topology)
    for gradient in ([0.0, -4.0, 0.5, 0.5], [0.0, 4.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 1.0]):
        model.weight.grad = tensor([gradient])
        optimizer.step()
        if topology.step == 2:
            assert topology.masks["weight"].tolist() == [[True, False, True, False]]
    assert topology.masks["weight"].tolist() == [[True, False, True, True]]


def test_nest_cuts_after_it_has_grown_and_ends_at_its_density():
    method = build("nest", grow_every=1, grow_last=5, cut=0.25, cut_every=1, end_density=0.1, **NEST)
    counts, seeds = [], None
    for attached in training(method, 14):
        counts.append(sum(int(mask.sum()) for mask in attached.topology.masks.values()))
        seeds = seeds or counts[0]
    # 0.3 * 136 = 40.8: 41 or a little more; a fifth comes at a time, up to floor(0.6 * 136) = 81; then a fourth goes
    grown = [seeds]
    for _ in range(5):
        grown.append(min(81, grown[-1] + round(0.2 * grown[-1])))
    cut = [grown[-1]]
    for _ in range(9):
        cut.append(max(14, cut[-1] - round(0.25 * cut[-1])))
    assert counts == [*grown, *cut[1:]]
    assert (counts[5], counts[-1]) == (81, 14)
    assert attached.topology.notes == []


# --- as experiments


TINY = """
model = "mlp"
data = "digits"
method = "{name}"
threads = 1
[model_options]
inputs = 64
hidden = [12]
[method_options]
{options}
[dense]
epochs = {dense}
batch = 300
lr = 1e-2
[rounds]
rounds = 1
restart = "{restart}"
samples = 100
[retrain]
epochs = 2
[controls]
random = [1]
"""
EXPERIMENTS = {
    "set": ("density = 0.25\nevery = 2", 2, "rewind"),
    "rigl": ("density = 0.25\nevery = 2\nlast = 6", 2, "rewind"),
    "deep_r": ("density = 0.25", 2, "rewind"),
    "granet": ("density = 0.25\nevery = 2\nlast = 6", 2, "rewind"),
    "nest": ("grow_every = 1\ngrow_last = 4\ncut = 0.3\ncut_every = 1\nend_density = 0.15", 2, "rewind"),
    "snip": ("density = 0.25", 0, "continue"),
    "wanda": ("density = 0.25", 2, "continue"),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_baseline_runs_as_an_experiment_beside_random_connections_of_the_same_densities(name, tmp_path):
    options, dense, restart = EXPERIMENTS[name]
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.format(name=name, options=options, dense=dense, restart=restart))
    own, control = start(load_recipe(file), tmp_path)
    assert (own.method, control.control) == (name, "random")
    (_, sparse), (random,) = own.rounds, control.rounds
    assert 0 < sparse.density < 0.5
    assert random.layers == pytest.approx(sparse.layers)
    assert all(part.test_accuracy is not None for part in (sparse, random))
    *_, before, last = own.epochs
    assert last.loss < before.loss


def test_weights_that_are_not_numbers_are_named_by_set_too():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, build("set", density=0.5, every=1))
    model[0].weight.data[0, 0] = float("nan")
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(NumericError, match="NaN"):
        optimizer.step()


def test_the_saliency_of_snip_survives_half_precision():
    layer = nn.Linear(2, 1, bias=False).half()
    layer.weight.data = torch.tensor([[1e-4, 1e-4]]).half()
    gradients = {"weight": torch.tensor([[1e-4, 2e-4]]).half()}  # the products, 1e-8 and 2e-8, are 0 in half precision
    topology = prune(layer, build("snip", density=0.5), gradients=gradients)
    assert topology.masks["weight"].tolist() == [[False, True]]
