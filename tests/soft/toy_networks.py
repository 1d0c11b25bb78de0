"""Small networks with batch norm of every kind of wiring, for the tests of soft methods."""

import torch
import torch.nn.functional as F
from torch import nn

X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def jumbled(model):
    """Give batch norms scales of both signs, shifts and statistics, and put the model into eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def chain():
    """Conv, norm, nonlinearity; bias, pooling, leaky ReLU and a head of two linear layers."""
    return nn.Sequential(
        conv(2, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        conv(6, 4, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Dropout(),
        conv(4, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


def functional():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(2, 4), nn.BatchNorm2d(4)
            self.conv2, self.bn2 = conv(4, 4), nn.BatchNorm2d(4)
            self.fc = nn.Linear(16, 2)

        def forward(self, x):
            x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
            x = F.avg_pool2d(F.leaky_relu(self.bn2(self.conv2(x))), 2)
            return self.fc(torch.flatten(x, 1))

    return Functional()


class Block(nn.Module):
    """Conv, norm, ReLU, conv, norm, and a shortcut, with a projection where the width changes."""

    def __init__(self, inputs, width):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, bias=False), nn.BatchNorm2d(width)
        self.down = nn.Sequential(conv(inputs, width, 1), nn.BatchNorm2d(width)) if inputs != width else nn.Identity()

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


def resnet():
    return nn.Sequential(
        conv(2, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), Block(4, 4), Block(4, 6), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


class PreActivation(nn.Module):
    """Norm and ReLU before each convolution; what the first norm reads also goes past the block."""

    def __init__(self, width):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), conv(width, width)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)

    def forward(self, x):
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


def preactivation():
    return nn.Sequential(
        conv(2, 4), PreActivation(4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip


class Dense(nn.Module):
    """A layer of a dense block: norm, ReLU and convolution of all maps so far, put beside them."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(inputs), conv(inputs, growth, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


def densenet():
    return nn.Sequential(
        conv(2, 4), Dense(4, 2), Dense(6, 2), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 1), nn.AvgPool2d(2),
        nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Inception(nn.Module):
    """Two paths with norms of their own, side by side, read by one convolution."""

    def __init__(self):
        super().__init__()
        self.left, self.bn_left = conv(2, 3), nn.BatchNorm2d(3)
        self.right, self.bn_right = conv(2, 2, 1), nn.BatchNorm2d(2)
        self.join = conv(5, 3)

    def forward(self, x):
        left, right = F.relu(self.bn_left(self.left(x))), F.relu(self.bn_right(self.right(x)))
        return self.join(torch.cat([left, right], 1))


def grouped():
    """A grouped and a depthwise convolution."""
    return nn.Sequential(
        conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 6, groups=2), nn.BatchNorm2d(6), nn.ReLU(),
        conv(6, 6, groups=6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 2, 1),
    )  # fmt: skip


def smooth():
    """SiLU, which is not positively homogeneous, between."""
    return nn.Sequential(conv(2, 4), nn.BatchNorm2d(4), nn.SiLU(), conv(4, 3), nn.BatchNorm2d(3), nn.ReLU(), conv(3, 2))


NETWORKS = {
    make.__name__: make
    for make in (chain, functional, resnet, preactivation, densenet, Inception, grouped, smooth)
}
