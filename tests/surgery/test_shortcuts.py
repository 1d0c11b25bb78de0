import pickle
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synaptree.graph.flow import needed
from synaptree.graph.read import GraphError, read
from synaptree.graph.residual import residual_sums
from synaptree.graph.shortcut import Shortcut
from synaptree.surgery.shortcuts import expose_shortcuts


class Block(nn.Module):
    def __init__(self, width, out, stride=1, projects=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu, self.pad = nn.ReLU(inplace=True), (out - width) // 2
        self.downsample = (
            nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if projects else None
        )

    def forward(self, x):
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        elif self.pad:
            identity = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        out += identity
        return self.relu(out)


def resnet():
    """Two identities, one option A, one projection."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), Block(2, 2), Block(2, 4, 2), Block(4, 4),
        Block(4, 6, 2, projects=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


X = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_each_identity_like_shortcut_becomes_a_module_and_the_outputs_stay_bit_for_bit():
    model = resnet().eval()
    exposed = expose_shortcuts(model, X)
    found = {name: m.out_channels for name, m in exposed.named_modules() if isinstance(m, Shortcut)}
    assert found == {"shortcut_add": 2, "shortcut_add_1": 4, "shortcut_add_2": 4}
    assert torch.equal(exposed(X), model(X))
    assert exposed.state_dict().keys() == model.state_dict().keys() | {f"{name}.scale" for name in found}


def test_training_steps_of_copy_and_model_are_equal_and_the_model_is_untouched():
    model = resnet()
    exposed = expose_shortcuts(model, X)
    assert model.training
    assert all(module.training for module in exposed.modules())
    assert not any(isinstance(module, Shortcut) for module in model.modules())
    for each in (model, exposed):
        each(X).square().sum().backward()
    assert all(
        torch.equal(parameter.grad, exposed.get_parameter(name).grad) for name, parameter in model.named_parameters()
    )
    assert exposed.shortcut_add.scale.grad is None
    assert exposed.get_parameter("0.weight") is not model[0].weight


def test_the_exposed_model_can_be_read_cut_copied_and_exposed_again():
    exposed = expose_shortcuts(resnet(), X)
    graph = read(exposed, X)
    assert [r.shortcut for r in residual_sums(graph)] == ["shortcut_add", "shortcut_add_1", "shortcut_add_2", None]
    masks = {
        "3.conv1.weight": torch.zeros(4, 2, 1, 1, dtype=torch.bool),
        "shortcut_add_1.scale": torch.tensor([True, True, False, True]),
    }
    assert needed(graph, masks)["2.conv2"].tolist() == [True, False]
    again = expose_shortcuts(exposed, X)
    assert again.state_dict().keys() == exposed.state_dict().keys()
    exposed.eval()
    for copy in (deepcopy(exposed), pickle.loads(pickle.dumps(exposed))):
        assert torch.equal(copy(X), exposed(X))


def test_a_model_without_residual_sums_is_returned_as_a_copy():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    copy = expose_shortcuts(model, torch.zeros(1, 2))
    assert copy.state_dict().keys() == model.state_dict().keys()
    assert copy.get_parameter("0.weight") is not model[0].weight


def test_the_scale_takes_the_models_type():
    model = Block(2, 2).double()
    exposed = expose_shortcuts(model, torch.zeros(1, 2, 2, 2, dtype=torch.float64))
    assert exposed.shortcut_add.scale.dtype == torch.float64


def test_a_sum_over_features_of_tokens_stays_as_it_is():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return x + self.fc(x)

    exposed = expose_shortcuts(Mixes(), torch.zeros(2, 4, 3))
    assert not any(isinstance(module, Shortcut) for module in exposed.modules())


def test_a_skip_that_is_overwritten_by_the_sum_stays_as_it_is():
    class Accumulates(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.a(x)
            x.add_(self.b(x))
            return x

    model = Accumulates()
    exposed = expose_shortcuts(model, torch.ones(1, 2))
    assert torch.equal(exposed(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert not hasattr(exposed, "shortcut_add_")


def test_a_name_in_use_is_not_taken():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.shortcut_add = nn.Linear(2, 2)

        def forward(self, x):
            return x + self.shortcut_add(x)

    exposed = expose_shortcuts(Named(), torch.zeros(1, 2))
    assert isinstance(exposed.shortcut_add, nn.Linear)
    assert isinstance(exposed.shortcut_add_, Shortcut)


def test_a_forward_that_asks_for_the_mode_is_refused():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return x + F.dropout(self.fc(x), training=self.training)

    with pytest.raises(GraphError, match=r"Drops asks for self\.training"):
        expose_shortcuts(Drops(), torch.zeros(1, 2))
