import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from synaptree.artifact.interchange import load_into, read_tensors, save_dense, save_sparse, write_tensors
from synaptree.core.errors import CheckpointError
from synaptree.core.oneshot import prune
from synaptree.core.topology import Topology
from synaptree.methods import build


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def pruned(conv: str = "kernel") -> tuple[nn.Sequential, Topology]:
    model = network()
    return model, prune(model, build("magnitude", density=0.25, conv=conv))


@pytest.mark.parametrize("conv", ["weight", "kernel"])
def test_a_saved_network_comes_back_bit_for_bit_with_its_masks(tmp_path, conv):
    model, topology = pruned(conv)
    save_sparse(model, tmp_path / "net.safetensors", topology)
    other = network(seed=1)
    back = load_into(other, tmp_path / "net.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert back.digest() == topology.digest()


def test_the_file_holds_one_bit_per_connection_and_the_values_that_exist(tmp_path):
    model = nn.Linear(64, 64, bias=False)
    topology = prune(model, build("magnitude", density=0.25))
    size = save_sparse(model, tmp_path / "net.safetensors", topology)
    tensors, _ = read_tensors(tmp_path / "net.safetensors")
    assert {name: t.numel() * t.element_size() for name, t in tensors.items()} == {
        "weight:mask": 64 * 64 // 8,
        "weight:values": 64 * 64 // 4 * 4,
    }
    assert size == (tmp_path / "net.safetensors").stat().st_size < 64 * 64 * 4


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model, topology = pruned()
    save_sparse(model, tmp_path / "a", topology)
    save_sparse(model, tmp_path / "b", topology)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_of_another_model_is_refused_and_nothing_changes(tmp_path):
    model, topology = pruned()
    save_sparse(model, tmp_path / "net", topology)
    other = nn.Linear(2, 2)
    before = other.weight.clone()
    with pytest.raises(CheckpointError, match=r"differ in .*0\.weight"):
        load_into(other, tmp_path / "net")
    assert torch.equal(other.weight, before)


def test_another_shape_under_the_same_name_is_refused(tmp_path):
    save_sparse(nn.Linear(3, 2), tmp_path / "net")
    with pytest.raises(CheckpointError, match=r"weight has shape \(2, 3\), the model wants \(2, 4\)"):
        load_into(nn.Linear(4, 2), tmp_path / "net")


@pytest.mark.parametrize("other", [
    nn.Linear(32, 30), nn.Linear(30, 32), nn.Linear(15, 60), nn.Conv2d(30, 30, 3),
], ids=str)  # fmt: skip
def test_another_shape_under_a_mask_is_refused_and_nothing_changes(tmp_path, other):
    model = nn.Linear(30, 30, bias=False)
    save_sparse(model, tmp_path / "net", prune(model, build("magnitude", density=0.5)))
    other.bias = None
    before = other.weight.clone()
    with pytest.raises(CheckpointError, match=r"weight has shape \(30, 30\), the model wants"):
        load_into(other, tmp_path / "net")
    assert torch.equal(other.weight, before)


def test_kernels_of_another_form_are_refused_though_their_numbers_fit(tmp_path):
    model, other = nn.Conv2d(1, 4, (3, 5), bias=False), nn.Conv2d(1, 4, (5, 3), bias=False)
    save_sparse(model, tmp_path / "net", prune(model, build("magnitude", density=0.5, conv="kernel")))
    with pytest.raises(CheckpointError, match=r"weight has shape \(4, 1, 3, 5\), the model wants \(4, 1, 5, 3\)"):
        load_into(other, tmp_path / "net")


META = {"format": "synaptree sparse 1", "masks": {"weight": [3, 4]}, "shapes": {"weight": [3, 4]}}
MASK, VALUES = torch.tensor([255, 240], dtype=torch.uint8), torch.ones(12)


@pytest.mark.parametrize(("tensors", "meta", "message"), [
    ({"weight:mask": MASK}, META, "weight is damaged .*weight:values"),
    ({"weight:mask": MASK[:1], "weight:values": VALUES[:8]}, META, "weight holds 1 bytes of mask for 12 connections"),
    ({"weight:mask": MASK.repeat(2), "weight:values": VALUES}, META, "weight holds 4 bytes of mask for 12"),
    ({"weight:mask": MASK, "weight:values": VALUES}, META | {"masks": {"weight": [2, 6]}}, "damaged .*RuntimeError"),
    ({"weight:mask": MASK, "weight:values": VALUES}, META | {"masks": {"weight": 3}}, "weight is damaged"),
    ({"weight:mask": MASK, "weight:values": VALUES}, META | {"masks": None}, "weight is damaged"),
    ({"weight:mask": MASK, "weight:values": VALUES}, META | {"shapes": []}, "weight is damaged"),
    ({"weight:mask": MASK, "weight:values": VALUES}, META | {"shapes": {"weight": [4, 3]}}, r"shape \(4, 3\)"),
    ({"weight:mask": MASK[:1], "weight:values": VALUES[:0]}, META | {"masks": {"weight": [3, 1]}, "shapes": {}},
     r"weight has shape \(3, 1\), the model wants \(3, 4\)"),
    ({"weight:mask": MASK, "weight:values": VALUES}, {"format": META["format"]}, "weight is damaged"),
    ({"weight:mask": MASK, "weight:values": VALUES}, ["synaptree"], "its JSON text is no table"),
])  # fmt: skip
def test_a_damaged_file_is_a_clear_error_and_nothing_changes(tmp_path, tensors, meta, message):
    save_file(tensors, tmp_path / "net", {"json": json.dumps(meta)})
    model = nn.Linear(4, 3, bias=False)
    before = model.weight.clone()
    with pytest.raises(CheckpointError, match=message):
        load_into(model, tmp_path / "net")
    assert torch.equal(model.weight, before)
    for sound in (META, META | {"shapes": {}}, {"format": META["format"], "masks": META["masks"]}):
        write_tensors(tmp_path / "net", {"weight:mask": MASK, "weight:values": VALUES}, sound)
        load_into(model, tmp_path / "net")
        assert model.weight.eq(1).all()


@pytest.mark.parametrize("around", [nn.DataParallel, AveragedModel, partial(torch.compile, backend="eager")])
def test_what_stands_around_a_network_is_not_in_the_file(tmp_path, around):
    model, topology = pruned()
    save_sparse(model, tmp_path / "plain", topology)
    save_sparse(around(model), tmp_path / "around", topology)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "around").read_bytes()
    other = network(seed=1)
    load_into(around(other) if around is not AveragedModel else other, tmp_path / "around")
    assert torch.equal(other[0].weight, model[0].weight)


def test_layers_that_names_of_wrappers_tell_apart_are_both_stored(tmp_path):
    model, other = nn.Module(), nn.Module()
    for net in (model, other):
        net.fc, net.module = nn.Linear(4, 4), nn.ModuleDict({"fc": nn.Linear(4, 4)})
    save_sparse(model, tmp_path / "net", prune(model, build("magnitude", density=0.5)))
    load_into(other, tmp_path / "net")
    assert all(torch.equal(v, other.state_dict()[name]) for name, v in model.state_dict().items())


def test_masks_lie_where_their_parameters_do(tmp_path):
    model, topology = pruned()
    save_sparse(model, tmp_path / "net", topology)
    back = load_into(network().to("meta"), tmp_path / "net")
    assert {mask.device.type for mask in back.masks.values()} == {"meta"}


@pytest.mark.parametrize("left", [0, 7, 100])
def test_a_truncated_file_is_a_clear_error(tmp_path, left):
    file = tmp_path / "net"
    save_sparse(nn.Linear(3, 2), file)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(CheckpointError, match="cannot be read as a synaptree file"):
        load_into(nn.Linear(3, 2), file)


def test_too_few_values_for_the_mask_are_noticed(tmp_path):
    file = tmp_path / "net"
    meta = {"format": "synaptree sparse 1", "masks": {"weight": [2, 2]}}
    tensors = {"weight:mask": torch.tensor([0b11110000], dtype=torch.uint8), "weight:values": torch.ones(3)}
    save_file(tensors, file, {"json": json.dumps(meta)})
    with pytest.raises(CheckpointError, match="weight holds 3 values for 4 connections"):
        load_into(nn.Linear(2, 2, bias=False), file)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "net"
    write_tensors(file, {"a": torch.ones(1)}, {"x": 1})
    with pytest.raises(TypeError):
        write_tensors(file, {"a": torch.zeros(1)}, {"x": object()})
    assert read_tensors(file)[1] == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_plain_file_goes_out_and_in_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model, other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    size = save_dense(model, tmp_path / "a.safetensors")
    assert size == (tmp_path / "a.safetensors").stat().st_size
    assert load_file(tmp_path / "a.safetensors").keys() == model.state_dict().keys()  # any library reads it
    topology = load_into(other, tmp_path / "a.safetensors")
    assert not topology.masks
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_a_plain_file_of_another_model_changes_nothing(tmp_path):
    save_file({"0.weight": torch.ones(2, 3), "0.bias": torch.ones(5)}, tmp_path / "a.safetensors")
    model = nn.Sequential(nn.Linear(3, 2))
    before = model[0].weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"0.bias has shape \(5,\), the model wants \(2,\)"):
        load_into(model, tmp_path / "a.safetensors")
    assert torch.equal(model[0].weight, before)


def test_tied_weights_go_out_under_both_names(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_dense(model, tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_tied_weights_go_out_sparse_and_in(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model, other = tied(), tied()
    save_sparse(model, tmp_path / "net.safetensors")
    load_into(other, tmp_path / "net.safetensors")
    assert other[1].weight.equal(model[0].weight)
    weight = torch.ones(2)
    write_tensors(tmp_path / "pair", {"a": weight, "b": weight}, {})
    assert sorted(read_tensors(tmp_path / "pair")[0]) == ["a", "b"]
