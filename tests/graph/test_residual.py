import torch
import torch.nn.functional as F
from torch import nn

from synaptree.graph.read import read
from synaptree.graph.residual import norm_of, residual_sums
from synaptree.graph.shortcut import Shortcut


class Block(nn.Module):
    """A basic block of 1x1 convolutions; `past` carries the input to the sum."""

    def __init__(self, width=2, out=2, past=None, in_place=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.past = past or nn.Identity()
        self.in_place = in_place

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.in_place:
            out += self.past(x)
        else:
            out = self.past(x) + out
        return self.relu(out)


class OptionA(nn.Module):
    def forward(self, x):
        return F.pad(x[:, :, ::1, ::1], (0, 0, 0, 0, 1, 1))


def sums(*blocks):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), *blocks)
    return residual_sums(read(model, torch.randn(2, 1, 2, 2)))


def test_identity_shortcuts_are_found_whichever_way_the_sum_is_written():
    for in_place in (False, True):
        found = sums(Block(in_place=in_place), Block(in_place=in_place))
        assert [(r.layer, r.norm, r.shortcut, r.projection) for r in found] == [
            ("2.conv2", "2.bn2", None, False), ("3.conv2", "3.bn2", None, False)
        ]
        assert [r.branch for r in found] == ["_2_bn2", "_3_bn2"]


def test_an_identity_is_the_node_the_block_starts_from():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), Block(), Block())
    model[2].past = model[3].past = nn.Sequential()
    found = residual_sums(read(model, torch.randn(2, 1, 2, 2)))
    assert [r.skip for r in found] == ["_1", "_2_relu_1"]
    assert [r.add for r in found] == ["add", "add_1"]


def test_option_a_is_an_identity_like_shortcut():
    (found,) = sums(Block(2, 4, OptionA()))
    assert (found.skip, found.layer, found.projection) == ("pad", "2.conv2", False)


def test_a_shortcut_module_is_named_directly_and_through_per_channel_operations():
    assert sums(Block(2, 4, Shortcut(2, 4)))[0].shortcut == "2.past"
    assert sums(Block(2, 4, nn.Sequential(Shortcut(2, 4), nn.Dropout())))[0].shortcut == "2.past.0"


def test_a_projection_has_the_longer_side_as_branch():
    (found,) = sums(Block(2, 4, nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))))
    assert (found.branch, found.skip, found.projection) == ("_2_bn2", "_2_past_1", True)
    assert (found.layer, found.norm, found.shortcut) == ("2.conv2", "2.bn2", None)


def test_the_branch_may_end_in_something_else_than_a_layer():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            y = self.norm(x)
            return x + self.attention(y, y, y, need_weights=False)[0]

    (found,) = residual_sums(read(Attends(), torch.randn(2, 3, 4)))
    assert (found.skip, found.layer, found.projection) == ("x", None, False)


def test_a_layer_that_something_else_reads_too_is_not_the_branchs_own():
    class Leaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            y = self.a(x)
            return self.b(x + y) + F.relu(y)

    found = residual_sums(read(Leaks(), torch.randn(2, 2)))
    assert found[0].layer is None


def test_sums_without_a_common_origin_or_without_layers_are_no_residuals():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (x + self.position) + x.relu()

    assert residual_sums(read(Sums(), torch.randn(2, 2))) == ()


def test_an_additive_skip_across_an_encoder_and_decoder_is_identity_like():
    class AddUNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.down = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 2, stride=2)
            self.up = nn.ConvTranspose2d(2, 2, 2, stride=2)

        def forward(self, x):
            x = self.encode(x).relu()
            return self.up(self.down(x).relu()) + x

    (found,) = residual_sums(read(AddUNet(), torch.randn(1, 1, 4, 4)))
    assert (found.branch, found.skip, found.layer, found.projection) == ("up", "relu", "up", False)


def test_a_layers_norm_is_the_one_thing_that_reads_it():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(2, 2) for _ in range(3))
            self.one, self.two, self.twice = (nn.BatchNorm1d(2) for _ in range(3))

        def forward(self, x):
            x = self.one(self.a(x))
            y = self.b(x)
            x = self.two(y) + y
            return self.twice(self.twice(self.c(x)))

    assert norm_of(read(Norms(), torch.randn(2, 2))) == {"a": "one"}
