import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synaptree.core.errors import ShapeError
from synaptree.graph.read import read
from synaptree.graph.scale import gathered, input_norms, input_scale, per_kernel
from synaptree.graph.shortcut import Shortcut

X = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two norms side by side, a sum, a norm that is called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.b, self.bn_b = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.join, self.sum = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)
        self.past, self.shortcut, self.fc = nn.Conv2d(2, 2, 1), Shortcut(2), nn.Linear(32, 1)

    def forward(self, x):
        a, b = F.silu(self.bn_a(self.a(x))), self.bn_b(self.b(x))
        y = self.join(torch.cat([b[:, 1:], a[:, :2]], 1))
        z = self.sum(y + b) + self.past(self.shortcut(b))
        return self.fc(F.relu(b).flatten(1)) + z.mean((1, 2, 3))[:, None]


def test_each_channel_is_followed_to_its_norm_through_slices_and_nonlinearities():
    found = input_norms(read(Net(), X))
    as_lists = {layer: {norm: index.tolist() for norm, index in norms.items()} for layer, norms in found.items()}
    assert as_lists == {
        "a": {}, "b": {}, "join": {"bn_b": [1, -1, -1], "bn_a": [-1, 0, 1]}, "sum": {}, "past": {},
        "fc": {"bn_b": [0] * 16 + [1] * 16},
    }  # fmt: skip


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, affine=False), nn.InstanceNorm2d(2), nn.LocalResponseNorm(2)])
def test_norms_without_a_scale_do_not_count(norm):
    assert input_norms(read(nn.Sequential(nn.Conv2d(2, 2, 1), norm, nn.Conv2d(2, 2, 1)), X))["2"] == {}


def test_a_layer_that_is_called_twice_has_no_entry():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    assert input_norms(read(Twice(), X)) == {}


def test_a_linear_layer_along_another_axis_does_not_read_channels():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4))
    assert input_norms(read(model, X)) == {"0": {}, "2": {}}


def test_scales_come_out_per_kernel_in_the_layout_of_groups():
    """Maps 0 and 1 belong to filters 0-2, maps 2 and 3 to filters 3-5; map 3 has no norm."""
    norm = nn.BatchNorm2d(3)
    norm.weight.data = torch.tensor([2.0, -3.0, 5.0])
    layer, sources = nn.Conv2d(4, 6, 1, groups=2), {"bn": torch.tensor([1, 0, 2, -1])}
    assert input_scale(layer, sources, {"bn": norm}).tolist() == [[3.0, 2.0]] * 3 + [[5.0, 1.0]] * 3
    assert input_scale(nn.Linear(2, 1), {}, {}).tolist() == [[1.0, 1.0]]


def test_values_are_gathered_in_their_own_type():
    assert gathered(torch.tensor([2.0], dtype=torch.float64), torch.tensor([0, -1])).dtype == torch.float64


def test_a_value_short_is_refused():
    with pytest.raises(ShapeError, match=r"values of shape \(3,\) for Conv2d.*wanted \(4,\)"):
        per_kernel(torch.ones(3), nn.Conv2d(4, 2, 1))
