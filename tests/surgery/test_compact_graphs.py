import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synaptree.surgery.compact import compact


class Graph(nn.Module):
    """A forward given as a function of the module and its input."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.apply_to = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.apply_to(self, x)


def pooled(x):
    return x.mean((2, 3))


def skip_concat():
    return Graph(
        lambda m, x: m.fc(pooled(torch.cat([y := m.one(x).relu(), m.two(y).relu()], 1))),
        one=nn.Conv2d(2, 6, 1), two=nn.Conv2d(6, 6, 1), fc=nn.Linear(12, 3),
    )  # fmt: skip


def padded_concat():
    def forward(m, x):
        y = m.one(x).relu()
        return m.fc(torch.cat([y, m.two(y)], 1).flatten(1))

    return Graph(forward, one=nn.Conv2d(2, 6, 1), two=nn.Conv2d(6, 4, 3, padding=1), fc=nn.Linear(360, 3))


def squeeze_excite():
    def forward(m, x):
        y = m.one(x).relu()
        gate = m.up(m.down(F.adaptive_avg_pool2d(y, 1)).relu()).sigmoid()
        return m.fc(pooled(y * gate))

    return Graph(
        forward, one=nn.Conv2d(2, 8, 3), down=nn.Conv2d(8, 6, 1), up=nn.Conv2d(6, 8, 1), fc=nn.Linear(8, 3)
    )


def depthwise_separable():
    return nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def grouped():
    return nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, groups=4), nn.ReLU(),
        nn.Conv2d(4, 8, 1, groups=2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def transposed():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2, stride=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def two_outputs():
    def forward(m, x):
        y = m.two(m.one(x).relu()).relu()
        return m.a(pooled(y)), {"b": m.b(y.flatten(1))}

    return Graph(
        forward, one=nn.Conv2d(2, 6, 3), two=nn.Conv2d(6, 6, 1), a=nn.Linear(6, 3), b=nn.Linear(96, 2)
    )


def called_twice():
    return Graph(
        lambda m, x: m.fc(pooled(m.norm(m.twice(m.norm(m.twice(m.one(x))))))),
        one=nn.Conv2d(2, 6, 1), twice=nn.Conv2d(6, 6, 1), norm=nn.BatchNorm2d(6), fc=nn.Linear(6, 3),
    )  # fmt: skip


def own_slopes():
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.PReLU(6), nn.InstanceNorm1d(6, affine=True), nn.MaxPool1d(2), nn.Flatten(),
        nn.Linear(12, 3),
    )  # fmt: skip


def projected_sum():
    def forward(m, x):
        y = m.stem(x).relu()
        return m.fc(pooled(m.norm(m.branch(y)).add_(m.past(y)).relu()))

    return Graph(
        forward, stem=nn.Conv2d(2, 6, 1), branch=nn.Conv2d(6, 8, 3, 2), past=nn.Conv2d(6, 8, 3, 2),
        norm=nn.BatchNorm2d(8), fc=nn.Linear(8, 3),
    )  # fmt: skip


def tied():
    def forward(m, x):
        return m.decode(m.encode(x.flatten(1)).relu())

    model = Graph(forward, encode=nn.Linear(72, 72), decode=nn.Linear(72, 72))
    model.decode.weight = model.encode.weight
    return model


def shuffled():
    return nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(288, 3)
    )


def sliced():
    return Graph(
        lambda m, x: m.fc(pooled(m.left((y := m.one(x))[:, :4]) + m.right(y[:, 4:]))),
        one=nn.Conv2d(2, 8, 1), left=nn.Conv2d(4, 6, 1), right=nn.Conv2d(4, 6, 1), fc=nn.Linear(6, 3),
    )  # fmt: skip


def scaled_by_a_parameter():
    model = Graph(
        lambda m, x: m.fc(pooled(m.one(x) * m.gain)), one=nn.Conv2d(2, 8, 1), fc=nn.Linear(8, 3)
    )
    model.gain = nn.Parameter(torch.rand(1, 8, 1, 1))
    return model


def attention():
    def forward(m, x):
        y = m.embed(x.flatten(2).transpose(1, 2))
        return m.fc(m.attend(y, y, y)[0].mean(1))

    return Graph(
        forward, embed=nn.Linear(2, 8), attend=nn.MultiheadAttention(8, 2, batch_first=True), fc=nn.Linear(8, 3)
    )


def flattened_by_number():
    return Graph(
        lambda m, x: m.fc(m.one(x).relu().view(-1, 6 * 4 * 4)), one=nn.Conv2d(2, 6, 3), fc=nn.Linear(96, 3)
    )


def outputs_by_name():
    def forward(m, x):
        y = m.two(m.one(x).relu()).relu()
        return {"classes": m.fc(pooled(y)), "maps": m.three(y)}

    return Graph(
        forward, one=nn.Conv2d(2, 6, 3), two=nn.Conv2d(6, 6, 1), three=nn.Conv2d(6, 2, 1), fc=nn.Linear(6, 3)
    )


def hourglass():
    def forward(m, x):
        y = m.one(x).relu()
        z = m.up(m.down(F.max_pool2d(y, 2)).relu())
        return m.out(torch.cat([y, z, F.interpolate(m.low(F.avg_pool2d(y, 3)), size=(6, 6))], 1))

    return Graph(
        forward, one=nn.Conv2d(2, 6, 3, padding=1), down=nn.Conv2d(6, 8, 1), up=nn.ConvTranspose2d(8, 5, 2, stride=2),
        low=nn.Conv2d(6, 4, 1), out=nn.Conv2d(15, 3, 1),
    )  # fmt: skip


def inverted_residual():
    def forward(m, x):
        y = m.stem(x)
        return m.fc(pooled(y + m.project(F.relu6(m.depth(F.relu6(m.expand(y)))))))

    return Graph(
        forward, stem=nn.Conv2d(2, 4, 1), expand=nn.Conv2d(4, 12, 1), project=nn.Conv2d(12, 4, 1), fc=nn.Linear(4, 3),
        depth=nn.Conv2d(12, 12, 3, padding=1, groups=12),
    )  # fmt: skip


def channels_last():
    def forward(m, x):
        y = m.two(F.gelu(m.one(x.permute(0, 2, 3, 1))))
        return m.fc(y.permute(0, 3, 1, 2).mean((2, 3)))

    return Graph(forward, one=nn.Linear(2, 8), two=nn.Linear(8, 6), fc=nn.Linear(6, 3))


def idle_branch():
    def forward(m, x):
        y = m.one(x)
        m.idle(y)
        m.two(m.other(x))  # the second call of a layer whose first one counts
        return m.fc(pooled(m.three(m.two(y))))

    return Graph(
        forward, one=nn.Conv2d(2, 6, 1), idle=nn.Conv2d(6, 4, 1), other=nn.Conv2d(2, 6, 1), two=nn.Conv2d(6, 4, 1),
        three=nn.Conv2d(4, 8, 1), fc=nn.Linear(8, 3),
    )  # fmt: skip


def half_of_a_concat():
    def forward(m, x):
        y = m.one(x)
        return m.fc(torch.cat([pooled(y), pooled(torch.cat([y, m.two(x)], 1).chunk(2, 1)[1])], 1))

    return Graph(forward, one=nn.Conv2d(2, 6, 1), two=nn.Conv2d(2, 6, 1), fc=nn.Linear(12, 3))


def swapped_halves():
    def forward(m, x):
        left, right = torch.cat([m.one(x), m.two(x)], 1).chunk(2, 1)
        return m.fc(pooled(torch.cat([right, left], 1)))

    return Graph(forward, one=nn.Conv2d(2, 6, 1), two=nn.Conv2d(2, 6, 1), fc=nn.Linear(12, 3))


def groups_of_what_is_not_told_apart():
    def forward(m, x):
        y = m.up(torch.cat([x, x], 1))
        return m.fc(pooled(m.two(m.norm(m.one(y)))))

    return Graph(
        forward, up=nn.ConvTranspose2d(4, 6, 2, groups=2), one=nn.Conv2d(6, 8, 1), norm=nn.GroupNorm(2, 8),
        two=nn.Conv2d(8, 8, 1, groups=2), fc=nn.Linear(8, 3),
    )  # fmt: skip


def recurrent():
    return Graph(
        lambda m, x: m.fc(m.rnn(m.embed(x.flatten(2).transpose(1, 2)))[0][:, -1]),
        embed=nn.Linear(2, 8), rnn=nn.LSTM(8, 8, batch_first=True), fc=nn.Linear(8, 3),
    )  # fmt: skip


NARROWED = [
    skip_concat, padded_concat, squeeze_excite, depthwise_separable, grouped, transposed, two_outputs, called_twice,
    own_slopes, projected_sum, sliced, flattened_by_number, outputs_by_name, hourglass, inverted_residual,
    channels_last, idle_branch,
]  # fmt: skip
LEFT_ALONE = [
    tied, scaled_by_a_parameter, attention, half_of_a_concat, swapped_halves, groups_of_what_is_not_told_apart,
    recurrent,
]  # fmt: skip
X = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def cut(model, seed, share=0.6):
    """Cut random units: half of them from what reads them, half from what feeds them."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.data = 0.5 * torch.randn(p.shape, generator=rng)
        elif p.dim() in (2, 3, 4) and "gain" not in name:
            for axis in (0, 1):
                if p.shape[axis] > 3:
                    gone = torch.rand(p.shape[axis], generator=rng) < share / 2
                    p.data.movedim(axis, 0)[gone] = 0.0
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(0.5 + torch.rand(value.shape, generator=rng))
    return model.eval()


def size(model):
    return sum(p.numel() for p in model.parameters())


def made(make, seed):
    torch.manual_seed(seed)
    return cut(make(), seed)


@pytest.mark.parametrize("make", [*NARROWED, *LEFT_ALONE, shuffled], ids=lambda make: make.__name__)
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_an_odd_graph_computes_the_same_when_compacted(make, seed):
    model, x = made(make, seed), X if make is not own_slopes else X[:, :, 0]
    small = compact(model, x)
    assert small.plan.notes == ()
    fresh = torch.randn(3, *x.shape[1:])
    torch.testing.assert_close(small.model(fresh), model(fresh), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", NARROWED, ids=lambda make: make.__name__)
@torch.no_grad()
def test_an_odd_graph_gets_smaller(make):
    models = [made(make, seed) for seed in range(4)]
    x = X if make is not own_slopes else X[:, :, 0]
    assert any(size(compact(model, x).model) < size(model) for model in models)


@pytest.mark.parametrize("make", LEFT_ALONE, ids=lambda make: make.__name__)
@torch.no_grad()
def test_what_cannot_be_narrowed_keeps_its_size(make):
    model = made(make, 0)
    assert size(compact(model, X).model) == size(model)


@torch.no_grad()
def test_tied_weights_stay_tied():
    model = compact(made(tied, 0), X).model
    assert model.encode.weight is model.decode.weight


@torch.no_grad()
def test_a_depthwise_kernel_goes_with_the_map_before_and_after_it():
    torch.manual_seed(0)
    model = depthwise_separable()
    model[5].weight.data[:, 2:] = 0.0  # only maps 0 and 1 are read
    small = compact(model, X).model
    assert (small[0].out_channels, small[2].groups, small[3].num_features, small[5].in_channels) == (2, 2, 2, 2)


@torch.no_grad()
def test_a_group_goes_only_as_a_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 1, 1))
    model[2].weight.data[:, [1, 2, 3]] = 0.0  # group 0 gives maps 0 and 1, group 1 maps 2 and 3
    small = compact(model, X)
    assert (small.model[1].groups, small.model[1].in_channels, small.model[1].out_channels) == (1, 2, 2)
    assert [(units.layer, units.units) for units in small.plan.kept] == [("1", (1,))]
    assert small.plan.kept[0].reason == "what they are joined with is still needed"


@torch.no_grad()
def test_units_of_a_branch_that_leads_nowhere_stay_with_the_reason():
    plan = compact(made(idle_branch, 0), X).plan
    assert {units.layer for units in plan.removed} == {"three"}
    assert [units.reason for units in plan.kept if units.layer == "one"] == [
        "'idle' reads it, whose value nothing reads"
    ]


@torch.no_grad()
def test_channels_picked_by_number_stay_with_the_reason():
    torch.manual_seed(0)
    model = sliced()
    model.left.weight.data[:, 0] = 0.0
    plan = compact(model, X).plan
    assert [(units.layer, units.units) for units in plan.kept] == [("one", (0,))]
    assert plan.kept[0].reason == "'getitem' picks channels by number"


def test_fixed_sizes_in_a_chain_of_reshapes_leave_the_model_as_it_is_and_are_said():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 4, 2)

        def forward(self, x):
            return self.head(self.conv(x).relu().view(-1, 4, 4).flatten(1))

    torch.manual_seed(0)
    model, x = Chain(), torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        model.conv.weight[2:] = 0.0
        model.conv.bias[2:] = 0.0
    small = compact(model, x)
    assert "fixed sizes" in small.plan.notes[0]
    assert small.model.conv.out_channels == 4
    torch.testing.assert_close(small.model.eval()(x), model.eval()(x))
