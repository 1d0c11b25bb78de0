"""Small networks of every kind of graph, each with an example input: what a program must be able to say."""

import torch
import torch.nn.functional as F
from torch import nn


class Graph(nn.Module):
    """A forward of one input, given as a function of the module and it."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.apply_to = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.apply_to(self, x)


class Pair(Graph):
    def forward(self, x, y):
        return self.apply_to(self, x, y)


class ChannelNorm(nn.Module):
    """Layer norm over the maps at each place: its weight and bias in a function of torch's."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), (4,), self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class Scaled(nn.Module):
    """A linear function whose module holds more than weight and bias."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.rand(5, 8)), nn.Parameter(torch.rand(5))

    def forward(self, x):
        return F.linear(x, self.weight) * self.gain


def image(samples=2):
    return torch.randn(samples, 3, 6, 6)


def conv(inputs=3, outputs=4, size=1, **options):
    return nn.Conv2d(inputs, outputs, size, **options)


def skip_concat():
    def forward(m, x):
        y = m.one(x).relu()
        return m.fc(torch.cat([y, m.two(y)], 1).flatten(1))

    return Graph(forward, one=conv(), two=conv(4, 2, 3, padding=1), fc=nn.Linear(216, 3)), image()


def squeeze_excite():
    def forward(m, x):
        y = m.one(x)
        samples, maps, _, _ = y.size()
        gate = F.adaptive_avg_pool2d(y, 1).view(samples, maps)
        return y * torch.sigmoid(m.up(F.relu(m.down(gate)))).view(samples, maps, 1, 1)

    return Graph(forward, one=conv(), down=nn.Linear(4, 2), up=nn.Linear(2, 4)), image()


def depthwise_separable():
    return nn.Sequential(
        conv(3, 6, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True), conv(6, 4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4, 3),
    ), image()  # fmt: skip


def convolutions():
    return nn.Sequential(
        conv(3, 4, 3, padding="same"), conv(4, 4, 3, padding="valid"),
        conv(4, 8, 3, padding=1, groups=4, padding_mode="reflect", bias=False),
        nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, 2), nn.ConvTranspose2d(6, 2, 2, stride=2, bias=False),
        conv(2, 2, (1, 3), dilation=(1, 2), padding=(0, 1)),
    ), image()  # fmt: skip


def other_dimensions():
    def forward(m, x):
        return m.volume(m.line(x.flatten(2)).unflatten(2, (3, 3, 4)))

    return Graph(forward, line=nn.Conv1d(3, 2, 1), volume=nn.Conv3d(2, 2, 2)), image()


def tied():
    model = Graph(lambda m, x: m.decode(m.encode(x)), encode=nn.Linear(8, 8), decode=nn.Linear(8, 8))
    model.decode.weight = model.encode.weight
    return model, torch.randn(3, 8)


def one_module_under_two_names():
    model = Graph(lambda m, x: m.twin(m.block(x)), block=nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    model.twin = model.block
    return model, torch.randn(3, 4)


def called_twice():
    return Graph(
        lambda m, x: m.norm(m.twice(m.norm(m.twice(x)))), twice=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)
    ), image()


def two_outputs():
    return Graph(lambda m, x: (m.one(x), x * 2), one=conv()), image()


def list_output():
    return Graph(lambda m, x: [m.one(x)], one=conv()), image()


def dict_output():
    return Graph(lambda m, x: {"map": m.one(x), "input": x}, one=conv()), image()


def two_inputs():
    model = Pair(lambda m, x, y: m.left(x) + m.right(y), left=nn.Linear(8, 2), right=nn.Linear(3, 2))
    return model, (torch.randn(3, 8), torch.randn(3, 3))


def indices():
    model = Graph(lambda m, x: m.fc(m.embed(x).mean(1)), embed=nn.Embedding(7, 4, padding_idx=0), fc=nn.Linear(4, 2))
    return model, torch.randint(0, 7, (2, 5))


def sizes_in_view():
    def forward(m, x):
        y = m.one(x)
        y = y.view(y.size(0), 4, -1).mean(-1) + y.reshape(-1, 36).view(x.shape[0], 4, 36).sum(-1)
        return m.fc(y.view(-1, 2, 2).reshape(x.shape[0], 2 * y.shape[1] // 2))

    return Graph(forward, one=conv(), fc=nn.Linear(4, 3)), image()


def channel_shuffle():
    def forward(m, x):
        y = m.one(x)
        samples, maps, height, width = y.size()
        y = y.view(samples, 2, maps // 2, height, width).transpose(1, 2).contiguous()
        return y.view(samples, -1, height, width)

    return Graph(forward, one=conv()), image()


def cut_up():
    def forward(m, x):
        a, b = m.one(x).chunk(2, 1)
        c, d = torch.split(x, [1, 2], dim=1)
        return torch.cat([a, b.sigmoid(), c, d.narrow(1, 1, 1), torch.cat(x.chunk(3, 1)[::-1], 1)], 1)

    return Graph(forward, one=conv()), image()


def indexed():
    def forward(_, x):
        y = x[:, 1:, ::2, ::2] + x[:, :-1, ::2, -3:].mean((2, 3), keepdim=True)
        return y.sum(1) + x[:, 0, :3, 1:4] - x[..., None][:, 1, :3, :3, 0] * x.select(1, -1)[:, 2:5, 3:]

    return Graph(forward), image()


def arithmetic():
    return Graph(lambda _, x: (1 - x) / 2 + 3 * x - x / (x.abs() + 1) + 2 / (x * x + 1) - x**2 + x.pow(3)), image()


def activations():
    return nn.Sequential(
        nn.LeakyReLU(0.2), nn.ELU(0.5), nn.SELU(), nn.CELU(0.7), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Sigmoid(),
        nn.Tanh(), nn.Softplus(2, 3), nn.Softsign(), nn.Hardtanh(-2, 0.5), nn.Hardsigmoid(), nn.Hardswish(),
        nn.Softmax(1), nn.LogSoftmax(-1), nn.Identity(), nn.Dropout2d(0.2), nn.AlphaDropout(0.1), nn.PReLU(3),
        nn.Softmax2d(),
    ), image()  # fmt: skip


def functional_activations():
    def forward(_, x):
        y = F.leaky_relu(x, 0.2) + F.elu(x, 0.5) + F.selu(x) + F.celu(x, 0.7) + F.gelu(x, approximate="tanh")
        y = y + F.silu(x) + F.mish(x) + F.softplus(x, 2, 3) + F.softsign(x) + F.hardtanh(x, -2, 0.5) + F.relu6(x)
        y = y + F.hardsigmoid(x) + F.hardswish(x) + F.softmax(x, 1) + x.log_softmax(2) + x.clamp(-1, 0.5)
        y = y + x.clamp(min=0) + torch.clamp(x, max=1) + x.clamp_min(0.2) + x.exp() + x.abs().log() + x.abs().sqrt()
        return y + (x.abs() + 1).rsqrt() - abs(x) + torch.tanh(x) + x.square() + F.dropout(x, 0.5, False)

    return Graph(forward), image()


def asks_for_the_mode():
    return Graph(lambda m, x: F.dropout2d(F.dropout(m.one(x), 0.3, m.training), 0.5, m.training), one=conv()), image()


def pools():
    return nn.Sequential(
        nn.AvgPool2d(2, 1, 1, count_include_pad=False), nn.AdaptiveAvgPool2d((None, 3)), nn.MaxPool2d(2, 1, 1, 1),
        nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveMaxPool2d(2),
    ), image()  # fmt: skip


def functional_pools():
    def forward(_, x):
        y = F.max_pool2d(x, 2).sum((2, 3)) + F.avg_pool2d(x, 3, stride=1).amax((-1, -2)) + x.amin(dim=(2, 3))
        y = y + F.adaptive_avg_pool2d(x, (1, 1)).flatten(1) + F.adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(-1)
        return y + torch.mean(x, [2, 3])

    return Graph(forward), image()


def norms():
    return nn.Sequential(
        nn.GroupNorm(3, 3), nn.InstanceNorm2d(3, affine=True, track_running_stats=True), nn.InstanceNorm2d(3),
        nn.LayerNorm(6), nn.LayerNorm([6, 6], elementwise_affine=False), nn.LayerNorm(6, bias=False),
        nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, momentum=None, eps=1e-3),
        nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3, affine=False),
    ), image()  # fmt: skip


def norm_as_a_function():
    return nn.Sequential(conv(), ChannelNorm(4)), image()


def linear_as_a_function():
    return nn.Sequential(Scaled(), nn.ReLU()), torch.randn(3, 8)


def paddings():
    return nn.Sequential(
        nn.ZeroPad2d(1), nn.ConstantPad2d((1, 0, 0, 2), 0.5), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1),
        nn.CircularPad2d(1), Graph(lambda _, x: F.pad(x, (1, 1, 0, 2)) + F.pad(x, (0, 2, 1, 1), "constant", 2.0)),
    ), image()  # fmt: skip


def upsampled():
    return nn.Sequential(
        nn.Upsample(scale_factor=2), nn.Upsample(size=(5, 7), mode="bilinear", align_corners=True),
        nn.UpsamplingNearest2d(scale_factor=2), nn.UpsamplingBilinear2d(size=6), conv(3, 8), nn.PixelShuffle(2),
        nn.Unflatten(1, (1, 2)), Graph(lambda _, x: F.interpolate(x[:, 0], size=x.shape[-1] * 2) + 1),
    ), image()  # fmt: skip


def attention_by_hand():
    def forward(m, x):
        samples, places, width = x.shape
        q, k, v = m.qkv(x).reshape(samples, places, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        share = ((q @ k.transpose(-2, -1)) * (width // 2) ** -0.5).softmax(dim=-1)
        return m.out((share @ v).transpose(1, 2).reshape(samples, places, width))

    return Graph(forward, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8)), torch.randn(2, 5, 8)


def constants():
    def forward(m, x):
        return m.one(x) * m.gain.view(1, -1, 1, 1) + m.shift - m.number * torch.full((1,), 0.5) + m.unsaved

    model = Graph(forward, one=conv())
    model.gain, model.number = nn.Parameter(torch.rand(4)), torch.tensor(2.0)
    model.register_buffer("shift", torch.rand(4, 1, 1))
    model.register_buffer("unsaved", torch.rand(4, 1, 1), persistent=False)
    return model, image()


def axes():
    def forward(_, x):
        y = torch.stack([x, x + 1], 1).transpose(1, 2).permute(0, 2, 1, 3).sum(-1).mT
        return (y.unsqueeze(1).squeeze(1) + x[:, None, :, 0].squeeze(0).swapaxes(1, 2)).squeeze()

    return Graph(forward), torch.randn(2, 3, 4)


def in_place():
    def forward(m, x):
        y = m.one(x)
        same = y
        y.add_(1)
        z = y.clone()
        z.mul_(3)
        return F.relu(z + same, inplace=True)

    return Graph(forward, one=conv()), image()


def unread():
    """Has modules it never calls and a value it throws away."""
    def forward(m, x):
        torch.fft.fft(x)
        return m.one(x)

    model = Graph(forward, one=nn.Linear(8, 2), never=nn.BatchNorm1d(3), nor=nn.Sequential(nn.Linear(2, 2)))
    return model, torch.randn(3, 8)


def half_precision():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    return model.to(torch.bfloat16), torch.randn(3, 8, dtype=torch.bfloat16)


def input_alone():
    return Graph(lambda _, x: x), torch.randn(3, 8)


NETWORKS = [
    skip_concat, squeeze_excite, depthwise_separable, convolutions, other_dimensions, tied, one_module_under_two_names,
    called_twice, two_outputs, list_output, dict_output, two_inputs, indices, sizes_in_view, channel_shuffle, cut_up,
    indexed, arithmetic, activations, functional_activations, asks_for_the_mode, pools, functional_pools, norms,
    norm_as_a_function, linear_as_a_function, paddings, upsampled, attention_by_hand, constants, axes, in_place, unread,
    half_precision, input_alone,
]  # fmt: skip


def inputs_of(example):
    """Return the arguments of the forward."""
    return example if isinstance(example, tuple) else (example,)
