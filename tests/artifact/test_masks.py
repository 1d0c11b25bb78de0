import pytest
import torch
from torch import nn

from synaptree.artifact.interchange import save_sparse, write_tensors
from synaptree.artifact.masks import read_masks
from synaptree.core.errors import CheckpointError
from synaptree.core.topology import Topology


def test_masks_are_read_without_a_model_at_the_shape_of_their_parameters(tmp_path):
    conv, topology = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 2)), Topology()
    topology.add("0.weight", (3, 2, 2, 2), "kernel")
    topology.add("0.bias", (3,))
    kernels = torch.tensor([[1, 0], [0, 1], [1, 1]]).bool()
    topology.edit({"0.weight": kernels[:, :, None, None]})
    save_sparse(conv, tmp_path / "net", topology)
    masks, whole = read_masks(tmp_path / "net")
    assert torch.equal(masks["0.weight"], kernels[:, :, None, None].expand(3, 2, 2, 2))
    assert masks["0.bias"].tolist() == [True, True, True]
    assert whole == {"2.weight": (2, 3)}


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"format": "other"}, "net: wanted the format 'synaptree sparse 1', got 'other'"),
        ({"format": "synaptree sparse 1"}, "net: the masks are damaged .KeyError"),
        ({"format": "synaptree sparse 1", "masks": {"weight": [9]}}, "net: weight holds 1 bytes of mask for 9 connect"),
        ({"format": "synaptree sparse 1", "masks": {"weight": [4]}, "shapes": {"weight": [2, 3]}}, "masks are damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, meta, message):
    write_tensors(tmp_path / "net", {"weight:mask": torch.tensor([240], dtype=torch.uint8)}, meta)
    with pytest.raises(CheckpointError, match=message):
        read_masks(tmp_path / "net")


def test_files_of_the_first_version_have_masks_in_their_own_shape(tmp_path):
    meta = {"format": "synaptree sparse 1", "masks": {"weight": [2, 2]}}
    write_tensors(tmp_path / "net", {"weight:mask": torch.tensor([0b10010000], dtype=torch.uint8)}, meta)
    assert read_masks(tmp_path / "net").masks["weight"].tolist() == [[True, False], [False, True]]
