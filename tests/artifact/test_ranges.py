import numpy as np
import pytest
import torch
from torch import nn

from synaptree.artifact.build import network
from synaptree.artifact.describe import describe
from synaptree.artifact.ranges import activation_ranges
from synaptree.core.errors import DataError, NumericError


def plain(model: nn.Module, x: torch.Tensor):
    return network(describe(model, x), dict(model.state_dict())).eval()


@pytest.mark.parametrize("percentile", [0, 50, 99.9, 100])
def test_a_range_is_a_percentile_over_all_batches_together(percentile):
    torch.manual_seed(0)
    x = torch.randn(700, 3)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    found = activation_ranges(plain(model, x), x.split(300), percentile)
    with torch.no_grad():
        values = [x, model[0](x), model(x)]
    assert list(found) == [0, 1, 2]
    for number, value in enumerate(values):
        assert found[number] == np.percentile(value.abs().numpy(), percentile, method="lower")


def test_one_outlier_in_two_thousand_entries_does_not_count():
    x = torch.ones(2000, 1)
    x[7] = 1000.0
    assert activation_ranges(plain(nn.Sequential(nn.ReLU()), x), [x]) == {0: 1.0, 1: 1.0}


def test_no_sample_and_no_number_are_refused():
    relu = plain(nn.Sequential(nn.ReLU()), torch.ones(1, 2))
    with pytest.raises(DataError, match="none"):
        activation_ranges(relu, [])
    with pytest.raises(NumericError, match=r"value 0 of the network, of shape \(1, 2\)"):
        activation_ranges(relu, [torch.tensor([[1.0, float("nan")]])])


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.arange(1.0, 6.0))  # five numbers, beside batches of four samples and of two

    def forward(self, x):
        return x + self.shift


def test_a_constant_has_no_samples():
    x = torch.rand(6, 5)
    net = plain(Shifted(), x)
    # of 1 1 2 2 3 3 4 4 5 5, seen in two batches, the one of index floor(0.5 * 9) = 4
    assert activation_ranges(net, [x[:4], x[4:]], percentile=50)[1] == 3.0
