"""The links of the chain a network goes through, each checked against the plain network.

Every function takes what makes a model and an input, alike at each call, and returns in sentences what the link left
alone. It raises the library's error where the link refuses the model, an `AssertionError` where what it did is wrong.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from synaptree import Engine, attach, build, compact, load, load_into, load_topology, prune, save
from synaptree.artifact.describe import examples_of
from synaptree.core.errors import AttachError, SynaptreeError
from synaptree.core.layer import layers_of, parameters_of
from synaptree.format.errors import FormatError
from synaptree.runtime.errors import EngineError

ALPHA = 0.8
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def masks(make):
    """Training under masks is training of the plain model with dead weights set to 0 after each step, bit by bit."""
    (model, x), (plain, _) = make(), make()
    topology = prune(model, build("random", density=0.5))
    topology.apply(plain)
    own, theirs = optimizer_of(model, 0.01), optimizer_of(plain, 0.01)
    attached = attach(model, own, topology=topology)
    train(model, x, own, 3)
    train(plain, x, theirs, 3, after=partial(topology.apply, plain))
    attached.finish()
    assert topology.step == 3
    assert_dead_weights_are_zero(model, topology)
    for name, parameter in parameters_of(plain).items():
        assert torch.equal(parameters_of(model)[name], parameter), name
    return ""


def gradients(make):
    """Connections move to where gradients are large, and every layer keeps its number of them."""
    model, x = make()
    optimizer = optimizer_of(model, 0.01)
    method = build("rigl", density=0.5, alpha=1.0, every=1, last=10, allocate="uniform")
    topology = attach(model, optimizer, method).topology
    before = dict(topology.masks)
    train(model, x, optimizer, 3)
    assert_dead_weights_are_zero(model, topology)
    for name, mask in topology.masks.items():
        assert int(mask.sum()) == int(before[name].sum()), name
    assert any(not torch.equal(before[name], mask) for name, mask in topology.masks.items())
    return ""


def activity(make):
    """Connections that carry at most ALPHA times the mean of their layer die, but for the strongest of each unit."""
    (model, x), (plain, _) = make(), make()
    topology = dynamically_pruned(model, x, floor=1, cascade=False)
    inputs, alone = seen(plain, x), []
    for layer in layers_of(plain):
        mask = topology.masks[layer.weight]
        if layer.name in inputs and layer.module.weight.requires_grad:
            carried = carried_by(layer, inputs[layer.name])
            strongest = torch.zeros_like(mask).scatter_(1, carried.argmax(1, keepdim=True), True)
            assert torch.equal(mask, (carried > ALPHA * carried.mean()) | strongest), layer.name
        else:
            assert mask.all(), layer.name
            alone.append(layer.name)
    assert_units_die_without_effect(make)
    return ", ".join(alone)


def assert_units_die_without_effect(make):
    (model, x), (plain, _) = make(), make()
    with_units = dynamically_pruned(model, x, floor=0, cascade=True)
    without = dynamically_pruned(plain, x, floor=0, cascade=False)
    assert with_units.died >= without.died
    assert_equal_outputs(model, plain, x)


def dynamically_pruned(model, x, **options):
    optimizer = optimizer_of(model, 0.0)
    method = build(
        "dynamic_synaptic", alpha=ALPHA, patience=1, every=1, first=0, guard=0.0, conv="kernel", prune_output=True,
        **options,
    )  # fmt: skip
    attached = attach(model, optimizer, method)
    train(model, x, optimizer, 1)
    topology = attached.finish()
    assert_dead_weights_are_zero(model, topology)
    return topology


def carried_by(layer, x):
    """Return what each connection, or kernel, carries: |w| times the mean |x| over samples and positions."""
    weight, x = layer.module.weight.detach().double().abs(), x.double().abs()
    channels = x.dim() - weight.dim() + 1
    activities = x.mean([axis for axis in range(x.dim()) if axis != channels])
    if layer.kind == "linear":
        return weight * activities
    groups = layer.module.groups
    by_unit = activities.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
    return (weight.flatten(2).sum(2) * by_unit).view(*weight.shape[:2], *[1] * (weight.dim() - 2))


def nnrelief(make):
    """Each unit keeps the fewest inputs that carry ALPHA of its signal; convolutions first, then linear layers."""
    (model, x), (plain, _) = make(), make()
    topology = relieved(model, x, backward_sweep=False)
    assert topology.density() < 1 or any(note.startswith("left alone") for note in topology.notes)
    plain.eval()
    for kind in ("conv", "linear"):
        inputs = seen(plain, x)
        for layer in (layer for layer in layers_of(plain) if layer.kind == kind):
            if not left_alone(layer.name, topology):
                assert_kept(layer, inputs[layer.name], topology.masks[layer.weight])
            else:
                assert topology.masks[layer.weight].all(), layer.name
        own = [layer for layer in layers_of(plain) if layer.kind == kind]
        copy_weights(model, plain, [name for layer in own for name in (layer.weight, layer.bias) if name])
    assert_sweeps_have_no_effect(make)
    return "; ".join(topology.notes)


def relieved(model, x, **options):
    method = build("nnrelief", alpha_conv=ALPHA, alpha_fc=ALPHA, residual_rule=False, **options)
    topology = prune(model, method, [x])
    assert_dead_weights_are_zero(model, topology)
    return topology


def left_alone(name, topology):
    notes = [note for note in topology.notes if note.startswith("left alone")]
    return any(name in note.partition(": ")[2].split(", ") for note in notes)


def assert_kept(layer, x, mask):
    """Assert that each unit keeps what it must by definition, or that it is dead as a whole."""
    mask, wanted = mask.flatten(1), kept(layer, x)
    whole = mask.any(1)
    assert torch.equal(mask[whole], wanted[whole]), layer.name


def kept(layer, x):
    """Return which inputs of each unit carry the share ALPHA of its signal, in float64."""
    signals, bias = norms_of_signals(layer, x)
    parts = signals if bias is None else torch.cat([signals, bias[:, None]], 1)
    order = torch.argsort(parts, dim=1, descending=True, stable=True)
    sizes = parts.gather(1, order)
    before = sizes.cumsum(1) - sizes
    keep = torch.zeros_like(parts, dtype=torch.bool).scatter(1, order, before < ALPHA * parts.sum(1, keepdim=True))
    return (keep & (parts > 0))[:, : signals.shape[1]] if parts.shape[1] > 1 else torch.ones_like(parts).bool()


def norms_of_signals(layer, x):
    """Return the norm of the mean signal of each connection, and of the bias of each unit."""
    weight, bias = layer.module.weight.detach().double().abs(), layer.module.bias
    bias = None if bias is None else bias.detach().double().abs()
    mean = x.double().abs().reshape(-1, *x.shape[1 - weight.dim() :]).mean(0)
    if layer.kind == "linear":
        return weight * mean, bias
    module, inputs = layer.module, weight.shape[1]
    one = type(module)(1, 1, module.kernel_size, module.stride, module.padding, module.dilation, bias=False).double()
    signals = torch.zeros(weight.shape[:2], dtype=torch.float64)
    for unit, kernels in enumerate(weight):
        first = unit // (len(weight) // module.groups) * inputs
        for i, kernel in enumerate(kernels):
            one.weight.data.copy_(kernel)
            signal = one(mean[None, first + i : first + i + 1]).detach()
            signals[unit, i] = signal.norm()
    return signals, None if bias is None else bias * signal.numel() ** 0.5


def assert_sweeps_have_no_effect(make):
    (model, x), (plain, _) = make(), make()
    relieved(model, x, backward_sweep=True)
    relieved(plain, x, backward_sweep=False)
    assert_equal_outputs(model, plain, x)


def compaction(make):
    """The smaller model gives the same outputs, on other inputs too."""
    model, x = make()
    topology = without_some_units(model)
    small = compact(model, x, topology=topology)
    for inputs in (x, other(x)):
        assert_equal_outputs(small.model, model, inputs)
    if topology is not None:
        assert_dead_weights_are_zero(small.model, small.topology)
    assert sum(p.numel() for p in small.model.parameters()) <= sum(p.numel() for p in model.parameters())
    return "; ".join(small.plan.notes)


def file(make):
    """A file gives back outputs, weights and masks, without the model's class."""
    model, x = make()
    topology = without_some_units(model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.syn"
        save(model, path, example_input=examples_of(x), topology=topology)
        again = load(path)
        assert same_topology(load_topology(path), topology)
    for inputs in (x, other(x)):
        assert_equal_outputs(again, model, inputs)
    assert_equal_states(again, model)
    return ""


def weights(make):
    """A file without a program gives back weights and masks to a model of the same class."""
    (model, _), (fresh, _) = make(), make()
    topology = without_some_units(model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.syn"
        save(model, path, topology=topology)
        assert same_topology(load_into(fresh, path), topology)
    assert_equal_states(fresh, model)
    return ""


def engine(make):
    """The engine's outputs are the model's within 1e-5 of the largest."""
    model, x = make()
    without_some_units(model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.syn"
        save(model, path, example_input=examples_of(x))
        fast = Engine(path, batch=len(x), budget=0.02)
    for inputs in (x, other(x)):
        wanted = model.eval()(inputs).detach().numpy()
        assert np.abs(fast(inputs.numpy()) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    return ""


LINKS = {link.__name__: link for link in (masks, gradients, activity, nnrelief, compaction, file, weights, engine)}


REFUSED = (SynaptreeError, FormatError, EngineError)


def assert_as_declared(kind, link):
    """Assert that a link is right for a kind of model, leaves alone what is declared, or refuses it as declared."""
    if link in kind.refuses:
        with pytest.raises(REFUSED) as refusal:
            LINKS[link](kind.made)
        assert kind.refuses[link] in str(refusal.value)
    else:
        said = LINKS[link](kind.made)
        assert said.startswith(kind.leaves.get(link, ""))
        assert bool(said) == (link in kind.leaves), said


def output(model, x):
    """Call a model with a tensor, with a tuple of them, or with whatever else it takes."""
    return model(*x) if isinstance(x, tuple) else model(x)


def optimizer_of(model, rate):
    parameters = [*model.parameters()] or [nn.Parameter(torch.zeros(1))]
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def train(model, x, optimizer, steps, after=lambda: None):
    torch.manual_seed(0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        found = [leaf for leaf in tree_leaves(output(model, x)) if isinstance(leaf, torch.Tensor)]
        sum(leaf.float().square().mean() for leaf in found).backward()
        optimizer.step()
        after()


def seen(model, x):
    """Return all that flows into each layer whose module is called, by its name."""
    found, hooks = {}, []

    def note(name, axes, _, inputs, named, output):  # noqa: ARG001 - a hook's
        x = (*inputs, *named.values())[0].detach()
        x = x.reshape(-1, x.shape[-1]) if axes == 2 else x
        found[name] = torch.cat([found[name], x]) if name in found else x

    for layer in layers_of(model):
        hook = partial(note, layer.name, layer.module.weight.dim())
        modules = (layer.module, *layer.tied)
        hooks += [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    torch.manual_seed(0)
    with torch.no_grad():
        output(model, x)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def copy_weights(model, plain, names):
    for name in names:
        parameters_of(plain)[name].copy_(parameters_of(model)[name])


def without_some_units(model):
    """Cut units: some from what reads them, some from what feeds them; return the topology, None of no layers."""
    try:
        topology = prune(model, build("random", density=0.6, conv="kernel"))
    except AttachError as error:
        if "nothing to prune" not in str(error):
            raise
        return None
    rng, cut = torch.Generator().manual_seed(0), {}
    for name, mask in topology.masks.items():
        cut[name] = mask.clone()
        for axis in (axis for axis in (0, 1) if mask.shape[axis] > 3):
            cut[name].movedim(axis, 0)[torch.rand(mask.shape[axis], generator=rng) < 0.2] = False
    topology.edit(cut)
    topology.apply(model)
    return topology


def same_topology(one, other):
    return one is other is None or one.digest() == other.digest()


def other(x):
    """Return other inputs of the same form."""
    rng = torch.Generator().manual_seed(7)

    def drawn(t):
        return torch.randn(t.shape, generator=rng).to(t.dtype) if t.is_floating_point() else t.flip(0)

    return tree_map(drawn, x)


def assert_dead_weights_are_zero(model, topology):
    """Assert that masks are legal, and that every dead weight is +0.0."""
    for name, parameter in topology.parameters(model):
        mask = topology.masks[name]
        assert mask.dtype == torch.bool
        assert all(own in (1, size) for own, size in zip(mask.shape, parameter.shape, strict=True))
        dead = parameter.detach()[~topology.expanded(name)]
        assert not dead.view(_INTEGER[parameter.element_size()]).any(), name


def assert_equal_outputs(model, plain, x):
    floats = [p for p in plain.parameters() if p.is_floating_point()]
    coarsest = max((torch.finfo(p.dtype).eps for p in floats), default=0.0)
    with torch.no_grad():
        leaves = [tree_leaves(output(m.eval(), x)) for m in (model, plain)]
    for got, wanted in zip(*leaves, strict=True):
        if isinstance(wanted, torch.Tensor):
            assert float((got - wanted).abs().max()) <= max(1e-5, 4 * coarsest) * float(wanted.abs().max())


def assert_equal_states(model, plain):
    state = model.state_dict()
    assert state.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state[name], tensor), name
