import pytest
import torch
from torch import fx, nn

from synaptree.core.errors import OptionError
from synaptree.graph.read import read
from synaptree.graph.shortcut import Shortcut
from synaptree.measure.count import count
from synaptree.train.zoo import MODELS, build

# model, classes, all parameters, and those NNrelief counts: no norm layers, no stem of a ResNet.
PARAMETERS = [
    ("lenet_300_100", 10, 266_610, 266_610),
    ("lenet5", 10, 431_080, 431_080),
    ("vgg_like", 10, 14_990_922, 14_982_474),
    ("vgg11", 10, 9_756_426, 9_750_922),
    ("vgg13", 10, 9_941_322, 9_935_434),
    ("vgg16", 10, 15_253_578, 15_245_130),
    ("vgg19", 10, 20_565_834, 20_554_826),
    ("vgg13", 100, 9_987_492, 9_981_604),
    ("resnet20", 10, 269_722, 267_914),
    ("resnet32", 10, 464_154, 461_450),
    ("resnet44", 10, 658_586, 654_986),
    ("resnet56", 10, 853_018, 848_522),
    ("resnet20", 100, 275_572, 273_764),
    ("resnet56", 100, 858_868, 854_372),
]
# 3x3 convolutions hold 9 weights for each pair of maps, norm layers two numbers for each map.
CONV_WEIGHTS = [
    # 9 x (3 64 + 64 64 + 64 128 + 128 128 + 128 256 + 3 256 256 + 256 512 + 7 512 512) = 9 x 2,224,320
    # norm: 2 x (2 64 + 2 128 + 4 256 + 8 512) = 11,008; linear: 512 10 + 10
    ("vgg19_slim", 20_018_880, 11_008, 5_130),
    # two pairs of 512 maps, one of 256 and so three layers less: 9 x 1,634,496; norm: 2 x 4,224
    ("vgg16_slim", 14_710_464, 8_448, 5_130),
    # 9 x (3 16 + 16 16 + 16 32 + 32 32 + 32 64 + 64 64 + 64 128 + 128 128) = 9 x 32,560; norm: 4 x 240
    ("vgg_small", 293_040, 960, 1_290),
    # 9 x (3 16 + 16 16 + 16 48 + 48 48) = 9 x 3,376; norm: 4 x 64; linear: 48 8 8 = 3072, 3072 256 + 256 + 2570
    ("cnn_fc", 30_384, 256, 789_258),
    # stem 9 x 3 64; stage 1: 9 x 4 64 64; then 9 x (w/2 w + 3 w w) and w/2 w of the 1x1 shortcut, w = 128, 256, 512:
    # 1,728 + 147,456 + (516,096 + 8,192) + (2,064,384 + 32,768) + (8,257,536 + 131,072)
    # norm: 2 x (64 + 4 64 + 5 (128 + 256 + 512))
    ("resnet18", 11_159_232, 9_600, 5_130),
    # A block that begins with m maps: 9 x 12 x (m + (m + 12) + ... + (m + 132)) = 108 (12 m + 792), m = 24, 168, 312;
    # stem 9 x 3 24; transitions 168 168 and 312 312: 648 + 116,640 + 303,264 + 489,888 + 28,224 + 97,344
    # norm: 2 x (3 792 + 12 (24 + 168 + 312) + 168 + 312 + 456); linear: 456 10 + 10
    ("densenet40", 1_036_008, 18_720, 4_570),
]
FC_PARAMETERS = [
    ("lenet5", 10, 405_510), ("vgg_like", 10, 267_786), ("vgg11", 10, 530_442), ("vgg13", 100, 576_612),
    ("resnet20", 10, 650), ("resnet20", 100, 6_500),
]


@pytest.mark.parametrize(("name", "classes", "total", "counted"), PARAMETERS)
def test_parameter_counts_are_the_published_ones(name, classes, total, counted):
    result = count(build(name, classes=classes))
    stem = 432 if name.startswith("resnet") else 0
    assert result.parameters(norm=True) == total
    assert result.parameters() - stem == counted


@pytest.mark.parametrize(("name", "classes", "fc"), FC_PARAMETERS)
def test_fully_connected_layers_have_the_published_size(name, classes, fc):
    layers = count(build(name, classes=classes)).layers
    assert sum(x.weights + x.biases for x in layers if x.kind == "Linear") == fc


@pytest.mark.parametrize(("name", "conv", "norm", "fc"), CONV_WEIGHTS)
def test_networks_without_biases_have_the_sizes_worked_out_by_hand(name, conv, norm, fc):
    result = count(build(name))
    assert sum(x.weights for x in result.layers if x.kind == "Conv2d") == conv
    assert result.parameters(norm=True) == conv + norm + fc
    assert not any(m.bias is not None for m in build(name).modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_holds_every_layer_with_weights(name):
    model = build(name)
    graph = read(model, torch.rand(2, *MODELS[name].input_shape))
    layers = {n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert {node.module for node in graph.nodes if node.op in ("conv", "linear")} == layers
    others = [node.module for node in graph.nodes if node.op == "other"]
    assert others == ([] if any(node.op == "conv" for node in graph.nodes) else ["flatten"])  # pixels are no channels


@pytest.mark.parametrize("name", ["vgg16_slim", "vgg_small", "resnet20", "resnet18", "densenet40"])
def test_networks_that_end_in_the_mean_of_each_map_take_larger_images(name):
    with torch.no_grad():
        assert build(name, classes=3).eval()(torch.rand(1, 3, 48, 64)).shape == (1, 3)


def test_the_mean_of_each_map_is_all_that_the_linear_layer_of_a_slim_network_sees():
    model = build("vgg_small").eval()
    x = torch.rand(2, 3, 32, 32)
    maps = model[: list(dict(model.named_children())).index("pool4")](x)
    assert maps.shape == (2, 128, 4, 4)
    torch.testing.assert_close(model(x), model.fc1(maps.mean((2, 3))))


class Tracer(fx.Tracer):
    """Traces as the library reads graphs: a shortcut is one node."""

    def is_leaf_module(self, module, name):
        return isinstance(module, Shortcut) or super().is_leaf_module(module, name)


@pytest.mark.parametrize("name", MODELS)
def test_a_trace_gives_one_score_per_class_and_the_same_scores_as_the_model(name):
    model = build(name, classes=7).eval()
    batch = torch.rand(2, *MODELS[name].input_shape)
    with torch.no_grad():
        scores = model(batch)
        traced = fx.GraphModule(model, Tracer().trace(model))(batch)
    assert scores.shape == (2, 7)
    assert torch.equal(traced, scores)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_starts_in_training_mode_and_no_relu_works_in_place(name):
    model = build(name)
    assert all(module.training for module in model.modules())
    assert not any(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (build("resnet20", seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    build("lenet5", seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_kaiming_normal_and_biases_within_their_default_range():
    fc1 = build("lenet_300_100").fc1
    assert fc1.weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.01)
    assert fc1.weight.abs().max() > (6 / 784) ** 0.5  # a uniform draw of this deviation ends there
    assert 0 < fc1.bias.abs().max() <= 784**-0.5


def test_lenet5_is_named_layer_by_layer():
    assert [name for name, _ in build("lenet5").named_children()] == [
        "conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten", "fc1", "relu3", "fc2",
    ]


def test_only_vgg_like_has_dropout_and_has_it_before_its_first_fc_layer():
    names = list(dict(build("vgg_like").named_children()))
    assert names[names.index("dropout") + 1] == "fc1"
    assert not any(isinstance(m, nn.Dropout) for m in build("vgg16").modules())


def test_every_residual_block_has_a_shortcut_and_two_of_them_widen_and_stride():
    shortcuts = [m for m in build("resnet32").modules() if isinstance(m, Shortcut)]
    shapes = [(s.in_channels, s.out_channels, s.stride) for s in shortcuts]
    assert shapes == (
        [(16, 16, 1)] * 5 + [(16, 32, 2)] + [(32, 32, 1)] * 4 + [(32, 64, 2)] + [(64, 64, 1)] * 4
    )


def test_a_block_without_convolution_weights_hands_its_positive_input_on():
    block = build("resnet20").stage1.block1.eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 16, 4, 4)
    assert torch.equal(block(x), x)


def test_only_the_blocks_of_resnet18_that_widen_have_a_shortcut_with_weights():
    shortcuts = {n: m for n, m in build("resnet18").named_modules() if n.endswith(".shortcut")}
    assert [isinstance(m, Shortcut) for m in shortcuts.values()] == [True, True, False, True, False, True, False, True]
    conv = shortcuts["stage2.block1.shortcut"].conv
    assert (conv.weight.shape, conv.stride) == ((128, 64, 1, 1), (2, 2))


def test_the_large_stem_quarters_images_before_the_first_stage():
    small, large = build("resnet18"), build("resnet18", stem="large")
    x = torch.rand(1, 3, 64, 64)
    before = [nn.Sequential(*list(m)[: list(dict(m.named_children())).index("stage1")])(x) for m in (small, large)]
    assert [maps.shape for maps in before] == [(1, 64, 64, 64), (1, 64, 16, 16)]
    # 7x7 in place of 3x3 filters on three colours
    assert count(large).parameters() - count(small).parameters() == 64 * 3 * (49 - 9)


def test_a_dense_layer_puts_its_maps_after_those_it_was_given():
    layer = build("densenet40").block2.layer3
    x = torch.rand(1, 168 + 24, 4, 4)
    y = layer(x)
    assert y.shape == (1, 168 + 36, 4, 4)
    assert torch.equal(y[:, :192], x)
    assert torch.equal(y[:, 192:], layer.conv(layer.relu(layer.bn(x))))


def test_vgg_small_can_be_wider():
    convolutions = [m for m in build("vgg_small", width=24).modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [24, 24, 48, 48, 96, 96, 192, 192]


def test_vgg_small_takes_linear_layers_before_its_last():
    names = list(dict(build("vgg_small", hidden=(20, 30)).named_children()))
    assert names[names.index("flatten"):] == ["flatten", "fc1", "relu9", "fc2", "relu10", "fc3"]
    assert [m.out_features for m in build("vgg_small", hidden=(20, 30)) if isinstance(m, nn.Linear)] == [20, 30, 10]


def test_an_mlp_takes_any_widths_even_none():
    assert count(build("mlp", inputs=4, hidden=[3, 2], classes=2)).parameters() == 15 + 8 + 6
    assert count(build("mlp", inputs=4, hidden=(), classes=2)).parameters() == 10


def test_the_card_shows_the_options_with_the_defaults_that_build_uses():
    card = MODELS["mlp"]
    given = build("mlp", **card.options).state_dict()
    assert [v.shape for v in given.values()] == [v.shape for v in build("mlp").state_dict().values()]
    assert card.input_shape == (card.options["inputs"],)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("lenet", {}, "unknown model 'lenet'; did you mean .*lenet5"),
    ("mlp", {"hiden": (3,)}, "unknown option of mlp 'hiden'; did you mean 'hidden'"),
    ("vgg16", {"hidden": (3,)}, "unknown option of vgg16 'hidden'. Known: classes, seed"),
    ("lenet5", {"classes": 0}, "classes must be a whole number of at least 1, got 0"),
    ("vgg_small", {"hidden": (0,)}, "a width in hidden must be a whole number of at least 1, got 0"),
    ("vgg_small", {"width": 0}, "width must be a whole number of at least 1, got 0"),
    ("resnet18", {"stem": "huge"}, "unknown stem 'huge'. Known: large, small"),
    ("resnet20", {"stem": "small"}, "unknown option of resnet20 'stem'"),
    ("cnn_fc", {"hidden": (3,)}, "unknown option of cnn_fc 'hidden'"),
    ("mlp", {"inputs": 2.5}, "inputs must be a whole number of at least 1, got 2.5"),
    ("mlp", {"hidden": (3, -1)}, "a width in hidden must be a whole number of at least 1, got -1"),
    ("mlp", {"seed": 2**63}, "seed must be a whole number from 0 to 9223372036854775807, got 9223372036854775808"),
    ("mlp", {"seed": -1}, "seed must be a whole number from 0 .*, got -1"),
    ("mlp", {"hidden": 3}, "hidden must be a list of layer widths, such as .*, got 3"),
])
def test_a_wrong_name_or_value_is_told_with_what_was_wanted(name, options, message):
    with pytest.raises(OptionError, match=message):
        build(name, **options)
