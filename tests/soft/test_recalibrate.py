import pytest
import torch
from torch import nn
from toy_networks import X, chain, jumbled

from synaptree.core.errors import DataError
from synaptree.soft.recalibrate import recalibrate


def test_statistics_are_plain_means_over_the_batches():
    """Batches (1, 3) and (5, 7, 9): means 2 and 7, unbiased variances 2 and 4; their means are 4.5 and 3."""
    norm = nn.BatchNorm1d(1, momentum=0.5)
    recalibrate(norm, [torch.tensor([[1.0], [3.0]]), (torch.tensor([[5.0], [7.0], [9.0]]), "label")])
    assert norm.running_mean.item() == 4.5
    assert norm.running_var.item() == 3.0
    assert norm.momentum == 0.5
    assert norm.num_batches_tracked == 2


def test_nothing_but_the_statistics_changes():
    model = jumbled(chain()).train()
    model[7].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    recalibrate(model, X)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is not ("running" in name or "tracked" in name)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_dropout_rests_meanwhile():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(2))
    recalibrate(model, X)
    torch.testing.assert_close(model[1].running_mean, X.mean((0, 2, 3)))


def test_a_network_without_statistics_is_left_alone():
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.BatchNorm2d(1, track_running_stats=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recalibrate(model, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("batches", "message"), [
    ([], "wants at least one batch of inputs, got none"),
    ([X, torch.zeros(2, 5, 8, 8)], "batch 1 does not go through Sequential"),
    (["no tensor"], "batch 0 does not go through Sequential"),
])  # fmt: skip
def test_after_an_error_statistics_and_modes_are_as_before(batches, message):
    model = jumbled(chain())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match=message):
        recalibrate(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1
