import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synaptree.core.errors import ShapeError
from synaptree.graph.flow import needed, seen
from synaptree.graph.read import read
from synaptree.graph.shortcut import Shortcut


class Basic(nn.Module):
    def __init__(self, width, out, past):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = past

    def forward(self, x):
        out = F.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class Dense(nn.Module):
    """A chain in which each layer reads all earlier maps."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, 2, 1)) for w in (2, 4, 6)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.head(torch.cat(maps, 1).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.down = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.decode = nn.Conv2d(9, 1, 1)

    def forward(self, x):
        x = F.relu(self.encode(x))
        y = self.up(F.relu(self.down(F.max_pool2d(x, 2))))
        return self.decode(torch.cat([x, y], 1))


class Gated(nn.Module):
    """Squeeze and excitation, a depthwise layer, a channel shuffle and a layer called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.squeeze, self.excite = nn.Linear(8, 3), nn.Linear(3, 8)
        self.shuffle, self.twice = nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        x = F.silu(self.depthwise(self.stem(x)))
        x = x * self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()[:, :, None, None]
        x = self.twice(F.relu(self.twice(self.shuffle(x))))
        return self.head(F.adaptive_avg_pool2d(x, 2).view(x.size(0), -1))


class Tokens(nn.Module):
    """A patch embedding and one transformer layer."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm1, self.norm2 = nn.Conv2d(1, 4, 2, 2), nn.LayerNorm(4), nn.LayerNorm(4)
        self.value, self.project = nn.Linear(4, 4), nn.Linear(4, 4)
        self.fc1, self.fc2, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.place = nn.Parameter(torch.zeros(1, 5, 4))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([x.new_zeros(1, 1, 4).expand(x.shape[0], -1, -1), x], 1) + self.place
        y = self.norm1(x)
        x = x + self.project(torch.softmax(y @ y.transpose(1, 2), -1) @ self.value(y))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0])


def resnet():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU(inplace=True),
        Basic(2, 2, nn.Identity()), Basic(2, 2, Shortcut(2)), Basic(2, 4, Shortcut(2, 4)),
        Basic(4, 4, nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


MODELS = {make.__name__: make for make in (resnet, Dense, UNet, Gated, Tokens)}


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_a_filter_is_needed_while_one_of_its_columns_is_read():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    graph = read(model, torch.randn(1, 1, 2, 2))
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[1, 6] = True
    assert needed(graph, {"3.weight": mask})["0"].tolist() == [False, True]
    mask[2, 3] = True
    assert needed(graph, {"3.weight": mask})["0"].tolist() == [True, True]


def test_a_kernel_into_an_unneeded_filter_needs_nothing():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2, 1))
    graph = read(model, torch.randn(1, 1, 3, 3))
    kernels = bools(1, 0, 0, 0, 1, 0).view(2, 3, 1, 1)
    found = needed(graph, {"1.weight": kernels, "3.weight": bools(1, 0).view(1, 2)})
    assert {name: units.tolist() for name, units in found.items()} == {
        "0": [True, False, False], "1": [True, False], "3": [True]
    }


def test_weight_and_unit_masks_of_a_convolution_are_read_too():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(2, 1))
    graph = read(model, torch.randn(1, 1, 3, 3))
    weights = torch.zeros(2, 2, 3, 3, dtype=torch.bool)
    weights[1, 1, 0, 2] = True
    assert needed(graph, {"1.weight": weights})["0"].tolist() == [False, True]
    assert needed(graph, {"1.weight": bools(0, 0).view(2, 1, 1, 1)})["0"].tolist() == [False, False]


def test_a_block_output_is_useless_iff_neither_the_next_layer_nor_the_next_shortcut_reads_it():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), Basic(2, 2, Shortcut(2)), Basic(2, 4, Shortcut(2, 4)), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    graph = read(model, torch.randn(1, 1, 2, 2))
    conv1 = torch.ones(4, 2, 1, 1, dtype=torch.bool)
    conv1[:, 0] = False  # block 2 does not read channel 0 through its first layer
    masks = {"2.conv1.weight": conv1}
    assert needed(graph, masks)["1.conv2"].tolist() == [True, True]
    masks["2.shortcut.scale"] = bools(1, 0, 1, 1)  # channel 0 of the input is channel 1 of the sum
    found = needed(graph, masks)
    assert found["1.conv2"].tolist() == [False, True]
    assert found["1.shortcut"].tolist() == [False, True]
    assert found["2.shortcut"].tolist() == [True, True, True, True]
    assert found["0"].tolist() == [True, True]  # block 1's first layer still reads both


def test_the_last_block_is_read_by_the_classifier_alone():
    graph = read(resnet(), torch.randn(1, 1, 2, 2))
    found = needed(graph, {"9.weight": bools(1, 0, 0, 0, 1, 0, 0, 0).view(2, 4)})
    for name in ("6.conv2", "6.shortcut.0"):
        assert found[name].tolist() == [True, False, False, False]


def test_groups_are_read_within_themselves():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 8, 1, groups=4))
    graph = read(model, torch.randn(1, 1, 1, 1))
    mask = torch.ones(4, 2, 1, 1, dtype=torch.bool)
    mask[2:, 0] = False  # group 2 reads only its second channel
    assert needed(graph, {"1.weight": mask})["0"].tolist() == [True, True, False, True]
    depthwise = torch.ones(8, 1, 1, 1, dtype=torch.bool)
    depthwise[2:4] = False  # both readers of channel 1
    assert needed(graph, {"2.weight": depthwise})["1"].tolist() == [True, False, True, True]


def test_a_transposed_convolution_is_read_along_its_own_axes():
    graph = read(UNet(), torch.randn(1, 1, 4, 4))
    decode = torch.zeros(1, 9, 1, 1, dtype=torch.bool)
    decode[0, [1, 3 + 4]] = True  # map 1 of the skip, map 4 of `up`: its second group
    up = torch.ones(4, 3, 1, 1, dtype=torch.bool)
    up[2, 1] = False  # channel 2 does not feed map 1 of its group
    found = needed(graph, {"decode.weight": decode, "up.weight": up})
    assert found["up"].tolist() == [False, False, False, False, True, False]
    assert found["down"].tolist() == [False, False, False, True]


def test_concatenated_maps_are_read_slice_by_slice():
    graph = read(Dense(), torch.randn(1, 1, 2, 2))
    head = torch.zeros(3, 8, dtype=torch.bool)
    head[0, 5] = True  # the second map of layer 1
    last = torch.zeros(2, 6, 1, 1, dtype=torch.bool)
    middle = torch.zeros(2, 4, 1, 1, dtype=torch.bool)
    middle[0, 0] = middle[1, 3] = True
    masks = {"head.weight": head, "layers.2.2.weight": last, "layers.1.2.weight": middle}
    found = needed(graph, masks)
    assert [found[f"layers.{i}.2"].tolist() for i in range(3)] == [[False, True], [False, True], [False, False]]
    assert found["stem"].tolist() == [True, True]  # through layer 0


def test_a_module_called_twice_is_needed_if_any_call_needs_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x):
            return self.head(self.fc(self.fc(x)))

    graph = read(Twice(), torch.randn(1, 2))
    masks = {"head.weight": bools(1, 0).view(1, 2), "fc.weight": bools(0, 1, 1, 0).view(2, 2)}
    assert needed(graph, masks)["fc"].tolist() == [True, True]  # unit 0 at the second call, unit 1 at the first
    masks["fc.weight"] = bools(1, 0, 1, 1).view(2, 2)
    assert needed(graph, masks)["fc"].tolist() == [True, False]


def test_the_features_of_tokens_are_told_apart():
    graph = read(Tokens(), torch.randn(1, 1, 4, 4))
    fc2 = torch.ones(4, 6, dtype=torch.bool)
    fc2[:, 4] = False
    found = needed(graph, {"fc2.weight": fc2})
    assert found["fc1"].tolist() == [True, True, True, True, False, True]
    assert found["patch"].all()  # layer norm mixes its channels
    found = needed(graph, {"head.weight": bools(1, 0, 0, 1).view(1, 4).expand(2, 4)})
    assert found["fc2"].tolist() == [True, False, False, True]


def test_a_reader_of_another_axis_needs_everything():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 3, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.fc(self.conv(x))  # reads columns, not channels

    found = needed(read(Mixes(), torch.randn(1, 1, 2, 2)), {"fc.weight": bools(1, 0).view(1, 2)})
    assert found["conv"].tolist() == [True, True, True]


def test_a_mask_that_does_not_fit_is_refused():
    graph = read(nn.Sequential(nn.Linear(2, 3)), torch.randn(1, 2))
    for mask in (torch.ones(3), torch.ones(2, 3)):
        with pytest.raises(ShapeError, match=r"mask of 0\.weight has shape .* wanted \(3, 2\)"):
            needed(graph, {"0.weight": mask.bool()})


def test_seen_takes_what_was_read_and_not_what_is_connected():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    graph = read(model, torch.randn(1, 1, 2, 2))
    assert seen(graph, {"3": bools(0, 0, 0, 0, 0, 1, 0, 0)})["0"].tolist() == [False, True]
    assert seen(graph, {})["0"].tolist() == [True, True]
    assert seen(graph, {"3": bools(*[0] * 8)})["3"].tolist() == [True, True, True]


def test_seen_looks_at_a_block_after_its_sum():
    model = nn.Sequential(
        Basic(1, 2, nn.Conv2d(1, 2, 1)), Basic(2, 4, Shortcut(2, 4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 1),
    )  # fmt: skip
    graph = read(model, torch.randn(1, 1, 2, 2))
    dead = {"1.conv1": bools(0, 1), "4": bools(1, 1, 1, 0)}
    found = seen(graph, dead)
    assert found["1.conv2"].tolist() == found["1.shortcut"].tolist() == [True, True, True, False]
    # the sum after the shortcut is not zero at channel 1 = 0 + 1, but the shortcut carried nothing to it
    assert found["0.conv2"].tolist() == [True, True]
    assert seen(graph, dead | {"1.shortcut": bools(0, 1)})["0.conv2"].tolist() == [False, True]


def test_seen_refuses_an_entry_of_another_width():
    graph = read(nn.Sequential(nn.Linear(2, 3)), torch.randn(1, 2))
    with pytest.raises(ShapeError, match=r"nonzero\['0'\] has shape \(3,\); wanted \(2,\)"):
        seen(graph, {"0": bools(1, 1, 1)})


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_units_that_are_not_needed_can_do_anything(name, seed):
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    x = torch.randn(2, 1, 4, 4)
    graph = read(model, x)
    masks = {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("weight", "scale")) and "norm" not in key:
                masks[key] = torch.rand(parameter.shape[:2] + (1,) * (parameter.dim() - 2)) < 0.4
                parameter.mul_(masks[key])
        wanted = model(x)
        for layer, units in needed(graph, masks).items():
            by_unit = {Shortcut: "scale", nn.ConvTranspose2d: "bias"}.get(type(graph.module(layer)), "weight")
            model.get_parameter(f"{layer}.{by_unit}")[~units] = 7.0
    torch.testing.assert_close(model(x), wanted)
