"""The networks of the experiments, as plain modules with readable layer names."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn

from synaptree.core.errors import OptionError, unknown
from synaptree.graph.shortcut import Shortcut

__all__ = ["LARGEST_SEED", "MODELS", "ModelCard", "build"]

LARGEST_SEED = 2**63 - 1

_VGG_WIDTHS = (64, 128, 256, 512, 512)
_VGG_CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_RESNET_WIDTHS = (16, 32, 64)
_RESNET18_WIDTHS = (64, 128, 256, 512)
_STEMS = ("small", "large")
_CNN_FC = ((16, 16), (48, 48))


@dataclass(frozen=True)
class ModelCard:
    """What there is to know about a network before it is built.

    Args:
        name: its name in `MODELS`.
        input_shape: shape of one sample, without the batch axis.
        description: one line.
        options: what `build` takes for it besides `classes` and `seed`, with the defaults.
        make: makes the network, from `classes` and the options.
    """

    name: str
    input_shape: tuple[int, ...]
    description: str
    options: Mapping[str, object]
    make: Callable[..., nn.Module] = field(repr=False, compare=False)


def build(name: str, *, classes: int = 10, seed: int = 0, **options: object) -> nn.Module:
    """Return a new network of the zoo, on the CPU, in training mode.

    Weights are Kaiming-normal, biases and norm layers as PyTorch starts them. The same seed gives the
    same weights whatever was drawn before, and the global random state is left as it was.

    Args:
        name: a key of `MODELS`.
        classes: number of outputs, at least 1.
        seed: of the weights, 0 to `LARGEST_SEED`.
        options: see the `options` of the network's card.

    Raises:
        OptionError: for an unknown name or option, or a value out of range.

    Example:
        >>> build("mlp", classes=3, inputs=4, hidden=(5,))
        Sequential(
          (flatten): Flatten(start_dim=1, end_dim=-1)
          (fc1): Linear(in_features=4, out_features=5, bias=True)
          (relu1): ReLU()
          (fc2): Linear(in_features=5, out_features=3, bias=True)
        )
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    card = MODELS[name]
    for option in options:
        if option not in card.options:
            raise unknown(f"option of {name}", option, [*card.options, "classes", "seed"])
    _positive("classes", classes)
    if not 0 <= seed <= LARGEST_SEED:
        raise OptionError(f"seed must be a whole number from 0 to {LARGEST_SEED}, got {seed!r}")
    # The CPU's generator alone: torch.manual_seed would also reseed every accelerator.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = card.make(classes=classes, **options)
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.kaiming_normal_(module.weight)
    return model


def _positive(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} must be a whole number of at least 1, got {value!r}")


def _widths(hidden: object) -> None:
    if not isinstance(hidden, (list, tuple)):
        raise OptionError(f"hidden must be a list of layer widths, such as (300, 100), got {hidden!r}")
    for width in hidden:
        _positive("a width in hidden", width)


def _sequence(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _dense(widths: Sequence[int], relus: int = 0) -> dict[str, nn.Module]:
    """Return fc1, fc2, ... from each width to the next, ReLUs (counted on from `relus`) between them."""
    layers: dict[str, nn.Module] = {}
    for n, (inputs, outputs) in enumerate(pairwise(widths), 1):
        if n > 1:
            layers[f"relu{relus + n - 1}"] = nn.ReLU()
        layers[f"fc{n}"] = nn.Linear(inputs, outputs)
    return layers


def _mlp(classes: int, inputs: int = 784, hidden: Sequence[int] = (100,)) -> nn.Module:
    _positive("inputs", inputs)
    _widths(hidden)
    return _sequence({"flatten": nn.Flatten(), **_dense((inputs, *hidden, classes))})


def _lenet5(classes: int) -> nn.Module:
    return _sequence({
        "conv1": nn.Conv2d(1, 20, 5), "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(20, 50, 5), "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(), **_dense((800, 500, classes), relus=2),
    })


def _vgg_stages(depth: int) -> list[tuple[int, ...]]:
    return [(width,) * convs for convs, width in zip(_VGG_CONVS[depth], _VGG_WIDTHS, strict=True)]


def _convs(stages: Sequence[Sequence[int]], bias: bool) -> dict[str, nn.Module]:
    """Return 3x3 convolutions of these widths, each with batch norm and ReLU, and a max pool between stages."""
    layers: dict[str, nn.Module] = {}
    channels, n = 3, 0
    for stage, widths in enumerate(stages):
        if stage:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        for width in widths:
            n += 1
            layers[f"conv{n}"] = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
            layers[f"bn{n}"] = nn.BatchNorm2d(width)
            layers[f"relu{n}"] = nn.ReLU()
            channels = width
    return layers


def _vgg(classes: int, depth: int, hidden: Sequence[int], dropout: bool = False) -> nn.Module:
    layers = _convs(_vgg_stages(depth), bias=True)
    layers |= {"pool5": nn.MaxPool2d(2), "flatten": nn.Flatten()}
    if dropout:
        layers["dropout"] = nn.Dropout()
    return _sequence(layers | _dense((_VGG_WIDTHS[-1], *hidden, classes), relus=sum(_VGG_CONVS[depth])))


def _averaged(classes: int, stages: Sequence[Sequence[int]], hidden: Sequence[int] = ()) -> nn.Module:
    """Return convolutions without bias, the mean of each map, and linear layers."""
    _widths(hidden)
    return _sequence({
        **_convs(stages, bias=False),
        f"pool{len(stages)}": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
        **_dense((stages[-1][-1], *hidden, classes), relus=sum(map(len, stages))),
    })


def _vgg_small(classes: int, width: int = 16, hidden: Sequence[int] = ()) -> nn.Module:
    _positive("width", width)
    return _averaged(classes, [(width * factor, width * factor) for factor in (1, 2, 4, 8)], hidden)


def _cnn_fc(classes: int) -> nn.Module:
    return _sequence({
        **_convs(_CNN_FC, bias=False), "pool2": nn.MaxPool2d(2), "flatten": nn.Flatten(),
        **_dense((_CNN_FC[-1][-1] * 8 * 8, 256, classes), relus=4),
    })


class _Block(nn.Module):
    """Two 3x3 convolutions and the shortcut past them, with weights (option B) if `project`."""

    def __init__(self, inputs: int, width: int, stride: int, project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _projection(inputs, width, stride) if project else Shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


def _projection(inputs: int, width: int, stride: int) -> nn.Module:
    return _sequence({"conv": nn.Conv2d(inputs, width, 1, stride, bias=False), "bn": nn.BatchNorm2d(width)})


def _stem(width: int, size: str) -> dict[str, nn.Module]:
    """Return the first layers: a 3x3 convolution, or for larger images a 7x7 one and a max pool that quarter them."""
    large = size == "large"
    conv = nn.Conv2d(3, width, 7, 2, padding=3, bias=False) if large else nn.Conv2d(3, width, 3, padding=1, bias=False)
    layers = {"conv1": conv, "bn1": nn.BatchNorm2d(width), "relu1": nn.ReLU()}
    return layers | ({"pool1": nn.MaxPool2d(3, 2, padding=1)} if large else {})


def _resnet(
    classes: int, blocks: int, widths: Sequence[int] = _RESNET_WIDTHS, projections: bool = False, stem: str = "small"
) -> nn.Module:
    """Return stages of `blocks` basic blocks; `projections` match widths by 1x1 convolutions and not by zeros."""
    if stem not in _STEMS:
        raise unknown("stem", stem, _STEMS)
    channels = widths[0]
    layers = _stem(channels, stem)
    for stage, width in enumerate(widths, 1):
        in_stage: dict[str, nn.Module] = {}
        for n in range(1, blocks + 1):
            stride = 2 if stage > 1 and n == 1 else 1
            in_stage[f"block{n}"] = _Block(channels, width, stride, project=projections and channels != width)
            channels = width
        layers[f"stage{stage}"] = _sequence(in_stage)
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(channels, classes)}
    return _sequence(layers)


class _Growing(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution whose `growth` maps are put after those of the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], 1)


def _densenet(classes: int, depth: int, growth: int) -> nn.Module:
    channels = 2 * growth
    layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(3, channels, 3, padding=1, bias=False)}
    for block in (1, 2, 3):
        in_block: dict[str, nn.Module] = {}
        for n in range(1, (depth - 4) // 3 + 1):
            in_block[f"layer{n}"] = _Growing(channels, growth)
            channels += growth
        layers[f"block{block}"] = _sequence(in_block)
        if block < 3:
            layers[f"transition{block}"] = _sequence({
                "bn": nn.BatchNorm2d(channels), "relu": nn.ReLU(),
                "conv": nn.Conv2d(channels, channels, 1, bias=False), "pool": nn.AvgPool2d(2),
            })
    layers |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1)}
    return _sequence(layers | {"flatten": nn.Flatten(), "fc": nn.Linear(channels, classes)})


def _cards() -> list[ModelCard]:
    digits, colours = (1, 28, 28), (3, 32, 32)
    none: Mapping[str, object] = MappingProxyType({})
    return [
        ModelCard(
            "mlp", (784,), "Fully connected, of any depth and width.",
            MappingProxyType({"inputs": 784, "hidden": (100,)}), _mlp,
        ),
        ModelCard(
            "lenet_300_100", digits, "Fully connected, 784-300-100-classes.", none,
            partial(_mlp, inputs=784, hidden=(300, 100)),
        ),
        ModelCard(
            "lenet5", digits, "Caffe's form: 20 and 50 filters of 5x5, then 800-500-classes.", none, _lenet5
        ),
        ModelCard(
            "vgg_like", colours, "The convolutions of VGG-16, dropout, then 512-512-classes.", none,
            partial(_vgg, depth=16, hidden=(512,), dropout=True),
        ),
        *(
            ModelCard(
                f"vgg{depth}", colours, f"{sum(convs)} convolutions, then 512-512-512-classes.", none,
                partial(_vgg, depth=depth, hidden=(512, 512)),
            )
            for depth, convs in _VGG_CONVS.items()
        ),
        *(
            ModelCard(
                f"vgg{depth}_slim", colours,
                f"{depth - 3} convolutions without bias, the mean of each map, one linear layer; any size.",
                none, partial(_averaged, stages=_vgg_stages(depth)),
            )
            for depth in (16, 19)
        ),
        ModelCard(
            "vgg_small", colours, "2 convolutions each of 1, 2, 4, 8 x width filters, the mean of each map, linear.",
            MappingProxyType({"width": 16, "hidden": ()}), _vgg_small,
        ),
        ModelCard(
            "cnn_fc", colours, "2 convolutions of 16 and 2 of 48 filters, then 3072-256-classes, most weights there.",
            none, _cnn_fc,
        ),
        *(
            ModelCard(
                f"resnet{depth}", colours, f"{depth // 2 - 1} basic blocks of 16-32-64, option A shortcuts.",
                none, partial(_resnet, blocks=(depth - 2) // 6),
            )
            for depth in (20, 32, 44, 56)
        ),
        ModelCard(
            "resnet18", colours, "8 basic blocks of 64-128-256-512, option B shortcuts; stem: small or large.",
            MappingProxyType({"stem": "small"}),
            partial(_resnet, blocks=2, widths=_RESNET18_WIDTHS, projections=True),
        ),
        ModelCard(
            "densenet40", colours, "3 dense blocks of 12 layers that add 12 maps each to the 24 first, no bottleneck.",
            none, partial(_densenet, depth=40, growth=12),
        ),
    ]


MODELS: Mapping[str, ModelCard] = MappingProxyType({card.name: card for card in _cards()})
"""The card of every network of the zoo, by name."""
