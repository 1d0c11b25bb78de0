import builtins
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_networks import NETWORKS, Graph, conv, image, inputs_of
from torch import nn
from torch.optim.swa_utils import AveragedModel

from synaptree.artifact.interchange import save_dense, save_sparse
from synaptree.artifact.syn import load, load_into, load_topology, save, texts
from synaptree.core.attach import attach
from synaptree.core.errors import CheckpointError, NumericError, OptionError, ShapeError, SynaptreeError
from synaptree.core.oneshot import prune
from synaptree.core.topology import Topology
from synaptree.format import Entry, File, read_file, write_file
from synaptree.graph.node import GraphError
from synaptree.graph.shortcut import Shortcut
from synaptree.methods import build as method
from synaptree.surgery.compact import compact
from synaptree.train import zoo


def bit_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return True


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


X = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
QUICK = ("mlp", "lenet_300_100", "lenet5", "vgg_small", "cnn_fc", "resnet20", "densenet40")


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.MODELS
])  # fmt: skip
def test_every_network_of_the_zoo_comes_back_bit_for_bit(tmp_path, name):
    model = zoo.build(name).eval()
    x = torch.rand(2, *zoo.MODELS[name].input_shape)
    size = save(model, tmp_path / "net.syn", example_input=x)
    back = load(tmp_path / "net.syn")
    assert size == (tmp_path / "net.syn").stat().st_size
    assert bit_equal(back(x), model(x))
    assert bit_equal(back.state_dict(), dict(model.state_dict()))


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_an_odd_network_comes_back_bit_for_bit(tmp_path, make):
    model, example = make()
    save(model.eval(), tmp_path / "net.syn", example_input=example)
    back = load(tmp_path / "net.syn")
    assert bit_equal(back(*(x.clone() for x in inputs_of(example))), model(*(x.clone() for x in inputs_of(example))))
    assert bit_equal(back.state_dict(), dict(model.state_dict()))
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in model.named_parameters()]
    size = (tmp_path / "net.syn").stat().st_size
    assert save(back, tmp_path / "again.syn", example_input=example) <= size + 60  # the names of inputs may differ


def test_the_same_network_gives_the_same_bytes(tmp_path):
    model = small()
    topology = prune(model, method("magnitude", density=0.3))
    for name in "ab":
        save(model, tmp_path / name, example_input=X, topology=topology, about={"by": "hand"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_a_file_says_beside_the_network_is_kept(tmp_path):
    save(small(), tmp_path / "net.syn", example_input=X, ranges={0: 1.0, 2: 3.5}, about={"data": "digits"})
    file = read_file(tmp_path / "net.syn")
    assert (dict(file.ranges), dict(file.about)) == ({0: 1.0, 2: 3.5}, {"data": "digits"})


# How values are stored.


def test_int8_is_off_by_half_a_scale_by_hand(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[127.0, 1.25, -0.75], [0.0, -254.0, 5.0]]))
        model[0].bias.copy_(torch.tensor([0.1, -0.2]))
    save(model, tmp_path / "net.syn", values="int8", example_input=torch.zeros(1, 3))
    back = load(tmp_path / "net.syn").get_submodule("0")
    # scales 127 / 127 = 1 and 254 / 127 = 2: 1.25 -> 1, -0.75 -> -1, 5 -> 2 x 2 (2.5 goes to the even 2)
    assert back.weight.tolist() == [[127.0, 1.0, -1.0], [0.0, -254.0, 4.0]]
    assert bit_equal(back.bias.detach(), torch.tensor([0.1, -0.2]).half().float())


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=12, max_size=12))
@settings(max_examples=30)
def test_int8_is_never_off_by_more_than_half_a_scale(tmp_path_factory, values):
    file = tmp_path_factory.getbasetemp() / "int8.syn"
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(values).view(3, 4))
    save(model, file, values="int8")
    back = nn.Linear(4, 3, bias=False)
    load_into(back, file)
    scales = model.weight.abs().amax(1, keepdim=True).double() / 127
    # a scale is rounded up to fp16: by a 2^-10th, or to the next multiple of 2^-24 where it is tiny
    scales = torch.maximum(scales * (1 + 2**-10), scales + 2**-24)
    assert bool(((back.weight - model.weight).abs().double() <= scales / 2 * (1 + 1e-6)).all())


def test_fp16_rounds_to_the_nearest_and_refuses_what_it_cannot_hold(tmp_path):
    model = nn.Sequential(nn.Linear(8, 4))
    save(model, tmp_path / "net.syn", values="fp16", example_input=torch.zeros(1, 8))
    rounded = {name: value.half().float() for name, value in model.state_dict().items()}
    assert bit_equal(dict(load(tmp_path / "net.syn").state_dict()), rounded)
    model[0].weight.data[1, 2] = 7e4
    before = (tmp_path / "net.syn").read_bytes()
    with pytest.raises(CheckpointError, match=r"net\.syn is not written: 0\.weight: .*1 of 32 values.*65504"):
        save(model, tmp_path / "net.syn", values="fp16")
    assert (tmp_path / "net.syn").read_bytes() == before


@pytest.mark.parametrize("values", ["fp16", "int8"])
def test_small_tensors_are_fp16_and_fp32_where_fp16_would_lose_them(tmp_path, values):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].running_var.copy_(torch.tensor([1.0, 1e-6, 2.0]))  # 1e-6 is 17 of the smallest steps of fp16
    model[1].running_mean.copy_(torch.tensor([0.0, 1e5, 0.0]))
    model[2].running_mean.copy_(torch.tensor([0.0, 1e-7, 0.0]))
    save(model, tmp_path / "net.syn", values=values, example_input=torch.zeros(1, 2, 2, 2))
    found = {name: entry.values for name, entry in read_file(tmp_path / "net.syn").entries.items()}
    assert found == {
        "0.weight": values, "0.bias": "fp16", "1.weight": "fp16", "1.bias": "fp16", "1.running_mean": "fp32",
        "1.running_var": "fp32", "1.num_batches_tracked": "raw", "2.weight": "fp16", "2.bias": "fp16",
        "2.running_mean": "fp32", "2.running_var": "fp16", "2.num_batches_tracked": "raw",
    }  # fmt: skip
    assert load(tmp_path / "net.syn").state_dict()["1.running_var"][1] == torch.tensor(1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_other_kinds_come_back_as_they_were(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(dtype).eval()
    topology = prune(model, method("magnitude", density=0.5))
    x = torch.randn(3, 6, dtype=dtype)
    save(model, tmp_path / "net.syn", example_input=x, topology=topology)
    assert bit_equal(load(tmp_path / "net.syn").state_dict(), dict(model.state_dict()))
    assert load_topology(tmp_path / "net.syn").digest() == topology.digest()
    if dtype == torch.float16:
        assert read_file(tmp_path / "net.syn").entries["0.weight"].values == "fp16"


def test_values_that_are_no_numbers_survive_in_fp32(tmp_path):
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("nan"), float("inf"), -0.0, 0.0]]))
    save(model, tmp_path / "net.syn")
    back = nn.Linear(4, 1, bias=False)
    load_into(back, tmp_path / "net.syn")
    assert torch.equal(back.weight.view(torch.int32), model.weight.view(torch.int32))


def test_without_a_topology_zeros_are_left_out_where_that_is_smaller(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 64, 3, bias=False), nn.Conv2d(64, 32, 1, bias=False), nn.Conv2d(2, 2, 1))
    with torch.no_grad():
        model[0].weight[torch.rand(64, 8) < 0.9] = 0.0  # whole kernels
        model[1].weight[torch.rand(32, 64, 1, 1) < 0.9] = 0.0
        model[2].weight[0, 0] = 0.0  # 4 bytes, and a mask takes more
    save(model, tmp_path / "net.syn")
    entries = read_file(tmp_path / "net.syn").entries
    shapes = {name: None if entry.mask is None else entry.mask.shape for name, entry in entries.items()}
    assert shapes == {
        "0.weight": (64, 8, 1, 1), "1.weight": (32, 64, 1, 1), "2.weight": None, "2.bias": None
    }
    assert load_topology(tmp_path / "net.syn") is None


def test_unknown_ways_to_store_values_are_refused(tmp_path):
    with pytest.raises(OptionError, match="unknown coding of values 'int4'"):
        save(small(), tmp_path / "net.syn", values="int4")
    assert list(tmp_path.iterdir()) == []


# The topology.


def grown(steps=7, seed=3):
    """Return a network in the middle of training under a method that gives birth to connections."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = attach(model, optimizer, method("rigl", density=0.4, every=3, last=30), seed=seed)
    train(model, optimizer, steps)
    return model, optimizer, attached


def train(model, optimizer, steps):
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        batch = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        model(batch).square().mean().backward()
        optimizer.step()


def flat(tree, name=""):
    """Return the leaves of nested dicts by their path."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {path: leaf for key, each in tree.items() for path, leaf in flat(each, f"{name}/{key}").items()}


def same_topology(one, other):
    states = [flat(topology.state_dict()) for topology in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        equal = torch.equal(value, states[1][name]) if isinstance(value, torch.Tensor) else value == states[1][name]
        assert equal, name
    return True


def test_a_topology_comes_back_with_ages_random_state_and_what_the_method_remembers(tmp_path):
    model, _, attached = grown()
    topology = attached.topology
    topology.state["seen/4.weight"] = {
        "mean": torch.rand(3, 16), "half": torch.rand(3, 16).bfloat16(), "count": torch.tensor(5),
    }  # fmt: skip
    topology.notes.append("a layer was full; größer")
    save(model, tmp_path / "net.syn", example_input=X, topology=topology)
    back = load_topology(tmp_path / "net.syn")
    assert topology.born > 0
    assert len(flat(topology.state_dict())["/edits"]) > 1
    assert same_topology(back, topology)
    assert bit_equal(back.age("4.weight"), topology.age("4.weight"))


def test_a_random_state_that_was_never_drawn_from_is_stored_as_its_seed(tmp_path):
    model, sizes = nn.Linear(4, 2), []
    for draws in (0, 1):
        topology = prune(model, method("magnitude", density=0.5))
        topology.rng = torch.Generator().manual_seed(7)
        torch.rand(draws, generator=topology.rng)
        sizes.append(save(model, tmp_path / "net.syn", topology=topology))
        back = load_topology(tmp_path / "net.syn")
        assert torch.equal(back.rng.get_state(), topology.rng.get_state())
    assert sizes[0] < 300 < 2000 < sizes[1]


def test_a_connection_that_happens_to_be_0_is_not_a_dead_one(tmp_path):
    model, topology = nn.Linear(3, 2, bias=False), Topology()
    topology.add("weight", (2, 3))
    topology.edit({"weight": torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()})
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 2.0, 0.0], [-0.0, -1.0, 0.0]]))  # dead may be a zero of either sign
    save(model, tmp_path / "net.syn", topology=topology)
    assert load_topology(tmp_path / "net.syn").masks["weight"].tolist() == topology.masks["weight"].tolist()
    back = nn.Linear(3, 2, bias=False)
    load_into(back, tmp_path / "net.syn")
    assert back.weight.tolist() == [[0.0, 2.0, 0.0], [0.0, -1.0, 0.0]]
    assert not back.weight.signbit()[1, 0]


@pytest.mark.parametrize("conv", ["weight", "kernel", "unit"])
def test_masks_come_back_at_their_granularity(tmp_path, conv):
    model = small()
    topology = prune(model, method("magnitude", density=0.5, conv=conv))
    topology.add("0.bias", (4,))
    topology.add("1.weight", (4,))
    save(model, tmp_path / "net.syn", topology=topology)
    back = load_topology(tmp_path / "net.syn")
    assert same_topology(back, topology)
    assert {name: tuple(mask.shape) for name, mask in back.masks.items()} == {
        "0.weight": {"weight": (4, 1, 3, 3), "kernel": (4, 1, 1, 1), "unit": (4, 1, 1, 1)}[conv], "4.weight": (3, 16),
        "0.bias": (4,), "1.weight": (4,),
    }  # fmt: skip


def test_a_topology_that_names_a_tied_weight_by_its_second_name(tmp_path):
    model = Graph(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False))
    model.b.weight = model.a.weight
    topology = Topology()
    topology.add("b.weight", (4, 4))
    topology.edit({"b.weight": torch.eye(4).bool()})
    topology.apply(model)
    save(model, tmp_path / "net.syn", example_input=torch.zeros(1, 4), topology=topology)
    assert same_topology(load_topology(tmp_path / "net.syn"), topology)
    assert load(tmp_path / "net.syn").b.weight.equal(model.a.weight)


@pytest.mark.parametrize("read", ["load", "load_into"])
def test_training_goes_on_from_a_file_as_if_it_had_never_stopped(tmp_path, read):
    model, optimizer, attached = grown(steps=7)
    attached.topology.apply(model)
    save(model, tmp_path / "net.syn", example_input=X, topology=attached.topology)
    if read == "load":
        other, topology = load(tmp_path / "net.syn"), load_topology(tmp_path / "net.syn")
    else:
        other = small(seed=9)
        topology = load_into(other, tmp_path / "net.syn")
    resumed = torch.optim.SGD(other.parameters(), lr=0.1)
    again = attach(other, resumed, method("rigl", density=0.4, every=3, last=30), topology=topology)
    train(model, optimizer, 7)
    train(other, resumed, 7)
    assert attached.topology.step == 14
    assert attached.topology.born > 2
    assert same_topology(again.topology, attached.topology)
    assert bit_equal(dict(other.state_dict()), dict(model.state_dict()))


def test_dead_weights_that_are_not_0_are_refused_with_their_count(tmp_path):
    model = small()
    topology = prune(model, method("magnitude", density=0.5))
    model[4].weight.data[~topology.masks["4.weight"]] = torch.tensor(1.0)
    model[4].weight.data[~topology.masks["4.weight"]][0] = float("nan")
    count = int((~topology.masks["4.weight"]).sum())
    with pytest.raises(NumericError, match=rf"{count} weights of connections that do not exist.*4\.weight \({count}\)"):
        save(model, tmp_path / "net.syn", topology=topology)
    assert list(tmp_path.iterdir()) == []


def test_a_topology_of_another_model_is_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"0\.weight: the topology masks"):
        save(nn.Linear(2, 2), tmp_path / "net.syn", topology=prune(small(), method("magnitude")))


TREES = [
    ({}, "KeyError"),
    ({"shapes": {"nothing": [2]}}, "no tensor 'nothing'"),
    ({"shapes": {"weight": [3, 2]}}, r"weight of shape \[3, 2\], where the file has \(2, 3\)"),
    ({"shapes": 3}, "AttributeError"),
    ({"masks": {"weight": np.ones((2, 2), np.bool_)}}, "RuntimeError|has a mask of shape"),
    ({"masks": {"weight": np.ones((2, 3), np.float32)}}, "has a mask of shape"),
    ({"births": {"weight": np.full((2, 3), 9, np.int32)}}, "births in edits that were not"),
    ({"births": {"weight": np.zeros(4, np.int32)}}, r"births of shape \(4,\)"),
    ({"births": {"other": np.zeros(4, np.int32)}}, "births of what has no mask"),
    ({"edits": []}, "steps that are no numbers"),
    ({"step": "many"}, "steps that are no numbers"),
    ({"rng": np.zeros(3, np.uint8)}, "RuntimeError|TypeError"),
    ({"rng": None}, "AttributeError|TypeError"),
    ({"state": {"a": {"b": 1}}}, "what a method remembers is no tensor"),
    ({"state": 1}, "AttributeError"),
    ({"notes": 5}, "TypeError"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), TREES, ids=[f"{changes}"[:40] for changes, _ in TREES])
def test_a_topology_that_is_none_is_refused(tmp_path, changes, message):
    model, topology = nn.Linear(3, 2, bias=False), Topology()
    topology.add("weight", (2, 3))
    save(model, tmp_path / "net.syn", topology=topology)
    assert same_topology(load_topology(tmp_path / "net.syn"), topology)
    file = read_file(tmp_path / "net.syn")
    write_file(tmp_path / "net.syn", replace(file, topology=dict(file.topology) | changes if changes else {}))
    before = model.weight.clone()
    for act in (load_topology, lambda path: load_into(model, path)):
        with pytest.raises(CheckpointError, match=rf"net\.syn: the topology is damaged .*({message})"):
            act(tmp_path / "net.syn")
    assert torch.equal(model.weight, before)


# Compacted networks.


@pytest.mark.parametrize("name", ["vgg_small", "resnet20", "densenet40"])
def test_a_compacted_network_comes_back_with_its_topology(tmp_path, name):
    model = zoo.build(name, **({"width": 4} if name == "vgg_small" else {})).eval()
    topology = prune(model, method("magnitude", density=0.3, conv="unit"))
    for module_name, module in model.named_modules():
        if isinstance(module, Shortcut):
            topology.add(f"{module_name}.scale", tuple(module.scale.shape))
    x = torch.rand(2, 3, 16, 16)
    smaller = compact(model, x, topology=topology)
    save(smaller.model, tmp_path / "net.syn", example_input=x, topology=smaller.topology)
    back = load(tmp_path / "net.syn")
    assert sum(p.numel() for p in smaller.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert bit_equal(back(x), smaller.model(x))
    assert bit_equal(back.state_dict(), dict(smaller.model.state_dict()))
    again = load_topology(tmp_path / "net.syn")
    assert same_topology(again, smaller.topology)
    attach(back, torch.optim.SGD(back.parameters(), lr=0.1), topology=again).finish()
    assert bit_equal(back(x), smaller.model(x))


def test_a_shortcut_that_lost_channels_comes_back(tmp_path):
    model = Graph(
        lambda m, x: m.fc((m.past(y := m.first(x)) + m.branch(y)).mean((2, 3))), first=conv(3, 2), fc=nn.Linear(6, 1),
        past=Shortcut(2, 6, stride=2), branch=nn.Conv2d(2, 6, 1, 2),
    ).eval()  # fmt: skip
    model.fc.weight.data[0, :2] = 0.0  # nothing reads the two in front any more
    smaller = compact(model, image()).model
    assert (smaller.past.offset, smaller.past.in_channels, smaller.past.out_channels) == (0, 2, 4)  # not (4 - 2) // 2
    save(smaller, tmp_path / "net.syn", example_input=image())
    x = image()
    assert bit_equal(load(tmp_path / "net.syn")(x), smaller(x))
    assert not load(tmp_path / "net.syn").past.scale.requires_grad


def test_a_network_compacted_to_a_traced_module_comes_back(tmp_path):
    model = Graph(lambda m, x: m.fc(m.one(x).view(-1, 576)), one=conv(3, 16), fc=nn.Linear(576, 2)).eval()
    with torch.no_grad():
        model.one.weight[:5] = 0.0
        model.one.bias[:5] = 0.0
    x = image()
    smaller = compact(model, x).model
    assert isinstance(smaller, torch.fx.GraphModule)
    save(smaller, tmp_path / "net.syn", example_input=x)
    assert bit_equal(load(tmp_path / "net.syn")(x), smaller(x))


# Into a network of the same class.


def test_a_file_without_a_program_goes_into_a_network_of_the_same_class(tmp_path):
    model = small()
    topology = prune(model, method("magnitude", density=0.5))
    save(model, tmp_path / "net.syn", topology=topology)
    other = small(seed=1)
    back = load_into(other, tmp_path / "net.syn")
    assert bit_equal(other.state_dict(), dict(model.state_dict()))
    assert same_topology(back, topology)
    with pytest.raises(CheckpointError, match=r"net\.syn: the file says nothing about what.*load_into"):
        load(tmp_path / "net.syn")


def test_a_network_that_cannot_be_traced_goes_through_a_file_too(tmp_path):
    model, other = nn.LSTM(3, 4), nn.LSTM(3, 4)
    with pytest.raises(GraphError):
        save(model, tmp_path / "net.syn", example_input=torch.rand(2, 5, 3))
    assert list(tmp_path.iterdir()) == []
    save(model, tmp_path / "net.syn")
    assert load_into(other, tmp_path / "net.syn") is None
    assert bit_equal(other.state_dict(), dict(model.state_dict()))


def test_a_file_with_a_program_goes_into_a_network_of_the_same_class(tmp_path):
    for make in NETWORKS:
        model, example = make()
        save(model, tmp_path / "net.syn", example_input=example)
        other, _ = make()
        load_into(other, tmp_path / "net.syn")
        assert bit_equal(dict(other.state_dict()), dict(model.state_dict()))


def test_safetensors_go_through_the_same_door(tmp_path):
    model = small()
    topology = prune(model, method("magnitude", density=0.5))
    save_sparse(model, tmp_path / "net.safetensors", topology)
    other = small(seed=1)
    back = load_into(other, tmp_path / "net.safetensors")
    assert bit_equal(other.state_dict(), dict(model.state_dict()))
    assert back.digest() == topology.digest()


OTHERS = [
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), r"1\.weight has shape \(3, 4\) and shape \(2, 4\)"),
    (lambda: nn.Sequential(nn.Linear(4, 4)), r"1\.weight has shape \(3, 4\) and nothing"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(3, 1)),
     r"2\.weight has nothing and shape \(1, 3\)"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, bias=False)), r"1\.bias has shape \(3,\) and nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), OTHERS)
def test_a_file_of_another_network_is_refused_with_the_first_difference(tmp_path, make, message):
    save(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), tmp_path / "net.syn")
    other = make()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"net\.syn and Sequential differ: {message}"):
        load_into(other, tmp_path / "net.syn")
    assert bit_equal(dict(other.state_dict()), before)


def test_numbers_of_another_kind_are_refused_and_of_another_precision_rounded(tmp_path):
    class Counted(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.register_buffer("n", torch.tensor([2.0], dtype=dtype))

    save(Counted(torch.float32), tmp_path / "net.syn")
    with pytest.raises(CheckpointError, match=r"n has numbers of float32 and torch\.int64"):
        load_into(Counted(torch.int64), tmp_path / "net.syn")
    half = Counted(torch.float16)
    half.n.zero_()
    load_into(half, tmp_path / "net.syn")
    assert half.n.dtype == torch.float16
    assert half.n.item() == 2.0


def test_two_tensors_do_not_go_into_one(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    save(model, tmp_path / "net.syn")
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    before = tied[0].weight.clone()
    with pytest.raises(CheckpointError, match=r"1\.weight and 0\.weight differ, in Sequential they are one tensor"):
        load_into(tied, tmp_path / "net.syn")
    assert torch.equal(tied[0].weight, before)
    save(tied, tmp_path / "net.syn")
    load_into(model, tmp_path / "net.syn")  # one goes into two
    assert torch.equal(model[1].weight, tied[0].weight)


@pytest.mark.parametrize("around", [nn.DataParallel, AveragedModel])
def test_what_stands_around_a_network_is_not_in_the_file(tmp_path, around):
    model = small()
    topology = prune(model, method("magnitude", density=0.5))
    for name, one in (("plain", model), ("around", around(model))):
        save(one, tmp_path / name, topology=topology, example_input=X)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "around").read_bytes()
    other = small(seed=1)
    load_into(nn.DataParallel(other), tmp_path / "around")
    assert bit_equal(other.state_dict(), dict(model.state_dict()))


def test_masks_lie_where_their_parameters_do(tmp_path):
    model = small()
    save(model, tmp_path / "net.syn", topology=prune(model, method("magnitude", density=0.5)))
    back = load_into(small().to("meta"), tmp_path / "net.syn")
    assert {mask.device.type for mask in back.masks.values()} == {"meta"}


# What is refused.


def test_what_is_no_syn_file_is_refused(tmp_path):
    save_dense(small(), tmp_path / "net.safetensors")
    (tmp_path / "garbage").write_bytes(bytes(range(256)))
    (tmp_path / "empty").write_bytes(b"")
    for name in ("net.safetensors", "garbage", "empty"):
        for read in (load, load_topology):
            with pytest.raises(CheckpointError, match=rf"{name}: no \.syn file; .*load_into"):
                read(tmp_path / name)
    for name in ("garbage", "empty"):
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read"):
            load_into(small(), tmp_path / name)


@pytest.mark.parametrize("read", [load, load_topology, lambda path: load_into(small(), path)])
def test_a_folder_and_a_missing_file_are_named(tmp_path, read):
    with pytest.raises(CheckpointError, match=r": cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match=r"gone\.syn: cannot be read: No such file"):
        read(tmp_path / "gone.syn")


def test_a_file_cut_anywhere_is_refused_and_nothing_changes(tmp_path):
    model, _, attached = grown()
    attached.topology.apply(model)
    size = save(model, tmp_path / "net.syn", example_input=X, topology=attached.topology)
    data, other = (tmp_path / "net.syn").read_bytes(), small(seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for cut in [*range(0, 24), *range(24, size, size // 40), size - 1]:
        (tmp_path / "cut.syn").write_bytes(data[:cut])
        for read in (load, load_topology, lambda path: load_into(other, path)):
            with pytest.raises(CheckpointError, match=r"cut\.syn"):
                read(tmp_path / "cut.syn")
    assert bit_equal(dict(other.state_dict()), before)


def test_a_changed_byte_is_refused(tmp_path):
    size = save(small(), tmp_path / "net.syn", example_input=X)
    data = bytearray((tmp_path / "net.syn").read_bytes())
    for place in range(0, size, size // 50):
        changed = data.copy()
        changed[place] ^= 4
        (tmp_path / "net.syn").write_bytes(changed)
        with pytest.raises(CheckpointError):
            load(tmp_path / "net.syn")


def test_names_and_kinds_of_numbers_the_format_does_not_have_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not written: .*'a b\.weight'"):
        save(nn.ModuleDict({"a b": nn.Linear(1, 1)}), tmp_path / "net.syn")
    with pytest.raises(CheckpointError, match=r"is not written: .*complex64"):
        save(nn.ParameterDict({"c": torch.zeros(2, dtype=torch.complex64)}), tmp_path / "net.syn")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"net\.syn.* is not written"):
        save(small(), tmp_path / "file" / "net.syn")


def test_without_the_coder_syn_files_say_what_is_missing_and_safetensors_work(tmp_path, monkeypatch):
    save(small(), tmp_path / "net.syn", example_input=X)
    save_dense(small(seed=1), tmp_path / "net.safetensors")
    ordinary = builtins.__import__

    def bare(name, *args, **kwargs):
        if name.startswith("constriction"):
            raise ModuleNotFoundError("No module named 'constriction'", name="constriction")
        return ordinary(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("synaptree.format.") or name == "constriction"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("synaptree.format.file", raising=False)
    monkeypatch.setattr(builtins, "__import__", bare)
    other = small(seed=2)
    load_into(other, tmp_path / "net.safetensors")
    assert bit_equal(other.state_dict(), dict(small(seed=1).state_dict()))
    for act in (lambda: load(tmp_path / "net.syn"), lambda: save(small(), tmp_path / "net.syn")):
        with pytest.raises(SynaptreeError, match=r"need constriction: pip install 'synaptree\[pack\]'"):
            act()


def test_a_file_made_by_hand_is_loaded(tmp_path):
    write_file(tmp_path / "net.syn", File(entries={"weight": Entry.of("weight", np.array([[1.0, 2.0]], np.float32))}))
    model = nn.Linear(2, 1, bias=False)
    assert load_into(model, tmp_path / "net.syn") is None
    assert model.weight.tolist() == [[1.0, 2.0]]


def test_without_resume_only_the_connections_are_kept(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    topology = prune(model, method("random", density=0.2))  # has drawn: its random state is some thousand bytes
    topology.step = 7
    whole = save(model, tmp_path / "whole.syn", topology=topology)
    small = save(model, tmp_path / "small.syn", topology=topology, resume=False)
    assert small < whole - 2000
    kept = load_topology(tmp_path / "small.syn")
    assert kept is not None
    assert kept.masks.keys() == topology.masks.keys()
    assert all(torch.equal(kept.masks[name], mask) for name, mask in topology.masks.items())
    assert kept.step == 0
    resumed = load_topology(tmp_path / "whole.syn")
    assert resumed is not None
    assert resumed.step == 7


def test_a_path_that_cannot_be_written_is_named_once(tmp_path):
    (tmp_path / "net.syn").mkdir()
    with pytest.raises(CheckpointError) as caught:
        save(small(), tmp_path / "net.syn")
    assert str(caught.value).count("net.syn") == 1


@pytest.mark.parametrize(("about", "message"), [
    ({"epochs": 3}, "about 'epochs' is a int: wanted text"), ({1: "a"}, "about 1 is a str under a int: wanted text"),
])  # fmt: skip
def test_what_is_no_text_about_a_network_is_named(about, message):
    with pytest.raises(CheckpointError, match=message):
        texts(about)


@pytest.mark.parametrize("values", ["fp16", "int8"])
def test_gains_too_small_for_fp16_are_kept(tmp_path, values):
    model = nn.Sequential(nn.LayerNorm(2))
    model[0].weight.data.copy_(torch.tensor([1e-8, 3e-7]))  # 0 and 5 of the smallest steps of fp16
    save(model, tmp_path / "net.syn", values=values, example_input=torch.rand(2, 2))
    assert bit_equal(load(tmp_path / "net.syn").state_dict()["0.weight"], model[0].weight.data)
