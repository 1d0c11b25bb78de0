import pytest
import torch
import torch.nn.functional as F
from odd_networks import NETWORKS, Graph, conv, image, inputs_of, tied, unread
from torch import nn

from synaptree.artifact.build import network
from synaptree.artifact.describe import describe, described, examples_of, state_of
from synaptree.core.errors import CheckpointError, OptionError, ShapeError
from synaptree.format.program import Input, Program, Step
from synaptree.graph.node import GraphError
from synaptree.graph.shortcut import Shortcut
from synaptree.surgery.compact import compact

X = torch.zeros(2, 3, 4, 4)


def said(forward, x=X, **modules):
    """Return the steps of a forward as (op, inputs, options), tensors left out."""
    return [(step.op, step.inputs, dict(step.options)) for step in describe(Graph(forward, **modules), x).steps]


def test_a_network_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    assert describe(model, torch.zeros(2, 3, 8, 8)) == Program(
        (Input("input", (3, 8, 8), "float32"),),
        (
            Step("conv2d", "0", (0,), {"stride": (2, 2), "padding": (1, 1)}),
            Step("batch_norm2d", "1", (1,)),
            Step("relu", "2", (2,)),
            Step("max_pool2d", "3", (3,), {"kernel_size": (2, 2), "stride": (2, 2)}),
            Step("flatten", "4", (4,)),
            Step("linear", "5", (5,)),
        ),
        outputs=(6,),
    )


@pytest.mark.parametrize("view", [
    lambda _, x: x.view(x.size(0), -1),
    lambda _, x: x.view(-1, 48),
    lambda _, x: x.reshape(x.shape[0], 3 * x.shape[2] * x.shape[3]),
    lambda _, x: torch.reshape(x, (x.size()[0] * 1, 48)),
])  # fmt: skip
def test_the_number_of_samples_is_never_fixed(view):
    assert said(view) == [("reshape", (0,), {"sizes": (0, -1)})]


@pytest.mark.parametrize(("forward", "sizes"), [
    (lambda _, x: x.view(x.size(0), 3, 16), (0, 0, -1)),
    (lambda _, x: x.view(x.size(0), 3, 2, -1), (0, 0, 2, -1)),
    (lambda _, x: x.view(x.size(0), -1, 2, 4), (0, -1, 2, 4)),
    (lambda _, x: x.view(x.size(0), 4, 3, 4), (0, 4, 3, 4)),
    (lambda _, x: x.view(x.size(0) * 3, 4, 4), (-1, 4, 4)),
    (lambda _, x: x.unflatten(1, (1, 3)), (0, 1, 3, 4, 4)),
])  # fmt: skip
def test_sizes_in_front_that_stay_are_0_and_one_that_follows_is_minus_1(forward, sizes):
    assert said(forward) == [("reshape", (0,), {"sizes": sizes})]


@pytest.mark.parametrize(("forward", "steps"), [
    (lambda _, x: x[:, 0], [("select", (0,), {"dim": 1, "index": 0})]),
    (lambda _, x: x[:, :, ::2, 1:], [
        ("slice", (0,), {"dim": 2, "step": 2}), ("slice", (1,), {"dim": 3, "start": 1}),
    ]),
    (lambda _, x: x[..., None], [("unsqueeze", (0,), {"dim": 4})]),
    (lambda _, x: x.chunk(3, 1)[1], [("slice", (0,), {"dim": 1, "start": 1, "stop": 2})]),
    (lambda _, x: x.split(2, dim=1)[1], [("slice", (0,), {"dim": 1, "start": 2, "stop": 3})]),
    (lambda _, x: x.unbind(1)[2], [("select", (0,), {"dim": 1, "index": 2})]),
    (lambda _, x: 1 - x, [("sub", (0,), {"number": 1, "flipped": True})]),
    (lambda _, x: 2.0 * x, [("mul", (0,), {"number": 2.0})]),
    (lambda _, x: x + x, [("add", (0, 0), {})]),
    (lambda _, x: x.mean(-1), [("mean", (0,), {"dims": (3,)})]),
    (lambda _, x: x.sum(), [("sum", (0,), {"dims": (0, 1, 2, 3)})]),
    (lambda _, x: F.max_pool2d(x, 2), [("max_pool2d", (0,), {"kernel_size": (2, 2)})]),
    (lambda _, x: F.dropout(x, 0.2, False), []),
    (lambda _, x: x.contiguous().to(x.dtype).to(x.device).to(device="cpu").float(), []),
])  # fmt: skip
def test_calls_of_functions_in_the_words_of_the_format(forward, steps):
    assert said(forward) == steps


def test_a_function_on_weight_and_bias_of_a_module_is_its_layer():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(4, 3, 1, 1)), nn.Parameter(torch.rand(4))

        def forward(self, x):
            return F.conv2d(x, self.weight, self.bias, padding=1)

    steps = describe(nn.Sequential(Own(), nn.ReLU()), X).steps
    assert steps[0] == Step("conv2d", "0", (0,), {"padding": (1, 1)})


def test_a_shortcut_keeps_its_place_also_where_it_is_not_in_the_middle():
    model, x = nn.Sequential(Shortcut(3, 5, stride=2)), torch.rand(2, 3, 4, 4)
    assert describe(model, x).steps == (Step("shortcut", "0", (0,), {"in_channels": 3, "stride": 2}),)
    model[0].offset = 2  # not (5 - 3) // 2, as after compaction
    pad = Step("pad", "", (0,), {"pads": (0, 0, 0, 0, 2, 0)})
    assert describe(model, x).steps == (pad, Step("shortcut", "0", (1,), {"stride": 2}))


def test_tensors_that_nothing_reads_are_still_named():
    model, x = unread()
    steps = describe(model, x).steps
    assert [(step.op, step.name, bool(step.options)) for step in steps] == [
        ("linear", "one", False),
        ("constant", "never.weight", True), ("constant", "never.bias", True),
        ("constant", "never.running_mean", False), ("constant", "never.running_var", False),
        ("constant", "never.num_batches_tracked", False), ("constant", "nor.0.weight", True),
        ("constant", "nor.0.bias", True),
    ]  # fmt: skip


def test_tied_parameters_have_one_name_and_further_ones():
    model, x = tied()
    found = described(model, x)
    assert found.aliases == {"decode.weight": "encode.weight"}
    assert [*found.tensors] == ["encode.weight", "encode.bias", "decode.bias"]


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_model_example_and_random_state_are_left_as_they_were(make):
    model, example = make()
    modes = {module: index % 2 == 0 for index, module in enumerate(model.modules())}
    for module, mode in modes.items():
        module.training = mode
    state = {name: value.clone() for name, value in model.state_dict().items()}
    copies, attributes, random = [x.clone() for x in inputs_of(example)], set(vars(model)), torch.get_rng_state()
    describe(model, example)
    assert {module: module.training for module in model.modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(x, copy) for x, copy in zip(inputs_of(example), copies, strict=True))
    assert set(vars(model)) == attributes
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_what_was_built_is_described_by_the_same_steps(make):
    model, example = make()
    found = described(model, example)
    again = describe(network(*found), example)
    if make.__name__ != "in_place":  # a copy, which only what works in place needs
        parts = ("steps", "outputs", "returns", "keys")
        assert all(getattr(again, part) == getattr(found.program, part) for part in parts)


class Moody(nn.Module):
    """Decides by what the trace cannot see: it is called for each mode, then for the proof."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(2, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x) * (1 if self.calls < 3 else 2)


def mine():
    class Mine(nn.Linear):
        def forward(self, x):
            return super().forward(x).cumsum(1)

    return nn.Sequential(nn.Linear(2, 2), Mine(2, 2))


def attention():
    model = Graph(lambda m, x: m.attend(x, x, x)[0], attend=nn.MultiheadAttention(8, 2))
    return model, torch.randn(2, 3, 8)


def reparametrized():
    model = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    return model, torch.randn(1, 2)


def weight_of_another():
    return Graph(lambda m, x: F.linear(m.a(x), m.a.weight.t()), a=nn.Linear(2, 3)), torch.randn(1, 2)


UNSUPPORTED = [
    (attention(), r"module 'attend' \(MultiheadAttention\): the file format has no operator"),
    ((nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 2)), torch.randn(2, 3, 8)), r"module '1' \(LSTM\)"),
    ((nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 1)), torch.randn(2, 2)), "cannot trace|does not run|Bilinear"),
    ((Graph(lambda _, x: torch.fft.fft(x).real), torch.randn(2, 2)), "fft_fft in Graph: the file format has no"),
    ((mine(), torch.randn(2, 2)), r"cumsum in module '1' \(Mine\)"),
    (reparametrized(), r"module '1' \(ParametrizedLinear\)"),
    ((Graph(lambda _, x: x if x.sum() > 0 else -x), torch.randn(2, 2)), r"cannot trace Graph\.forward.*control flow"),
    ((Graph(lambda m, x: (x, x) if m.training else x), torch.randn(2, 2)), "asks for self.training"),
    ((Graph(lambda _, x: F.dropout(x)), torch.randn(2, 2)), "dropout in Graph: it drops in eval mode too"),
    ((Graph(lambda _, x: x.sum(0) / x.size(0)), torch.randn(2, 2)), "not the same for every number of samples"),
    ((Graph(lambda _, x: x.view(2, 3)), torch.randn(2, 3)), r"does not run on inputs of shape \(3, 3\), at operation"),
    ((Graph(lambda _, x: x.chunk(2)[0]), torch.randn(2, 3)), "chunk in Graph: it cuts along the samples"),
    ((Graph(lambda _, x: x.double()), torch.randn(1, 3)), "double in Graph: it changes the kind of the numbers"),
    ((Graph(lambda _, x: x / x.max().item()), torch.randn(1, 3)), "max in Graph|makes a number of the values"),
    ((Graph(lambda _, x: x * x.sum().item()), torch.randn(1, 3)), "item in Graph: it makes a number of the values"),
    ((Graph(lambda _, x: x.max(1).values), torch.randn(2, 3)), "max in Graph"),
    ((Graph(lambda _, x: (x, {"a": x})), torch.randn(2, 3)), "Graph returns tuple: wanted a tensor"),
    ((Graph(lambda _, x: {1: x}), torch.randn(2, 3)), r"dict with keys \(1,\), wanted text"),
    ((Graph(lambda m, x: m.pool(x)[0], pool=nn.MaxPool1d(2, return_indices=True)), torch.randn(2, 3, 4)),
     r"module 'pool' \(MaxPool1d\): return_indices=True"),
    ((nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), torch.tensor([[1]])), "max_norm=1.0, which the file format"),
    ((nn.Sequential(nn.Softmax()), torch.randn(2, 3)), r"module '0' \(Softmax\): dim=None, wanted int"),
    ((Graph(lambda _, x: torch.add(x, x, alpha=2)), torch.randn(2, 3)), "add in Graph: alpha=2"),
    ((Graph(lambda _, x: 2**x), torch.randn(2, 3)), "pow in Graph: wanted a tensor, got 2"),
    ((Graph(lambda _, x: x[:, x.argmax(1)]), torch.randn(2, 3)), "argmax in Graph"),
    ((nn.Conv2d(3, 2, 1), image()), "not the weight and the bias of a module with nothing else in it"),
    (weight_of_another(), r"Graph reads a\.weight beside the module it belongs to"),
    ((Moody(), torch.randn(2, 2)), "does not repeat the model's outputs"),
    ((nn.Sequential(nn.Linear(2, 2)), torch.randn(2, 3)), r"does not run on inputs of shape \(2, 3\), at module '0'"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize(("case", "message"), UNSUPPORTED, ids=[message[:40] for _, message in UNSUPPORTED])
def test_what_the_format_cannot_say_is_named(case, message):
    with pytest.raises(GraphError, match=message):
        describe(*case)


def test_a_hook_that_changes_an_output_is_noticed():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].register_forward_hook(lambda _, __, output: output + 1)
    with pytest.raises(GraphError, match="has hooks"):
        describe(model, torch.randn(2, 2))


@pytest.mark.parametrize("example", [torch.zeros(0, 3), torch.tensor(1.0), (torch.zeros(2, 3), torch.zeros(3, 3)), ()])
def test_an_example_without_samples_is_refused(example):
    with pytest.raises(ShapeError, match="wanted at least one sample"):
        describe(nn.Sequential(nn.Linear(3, 1)), example)


def test_a_missing_input_is_named():
    class Two(nn.Module):
        def forward(self, x, y=None):
            return x * 2 if y is None else x + y

    with pytest.raises(GraphError, match=r"Two\.forward uses x, y, and example_input has 1 tensors"):
        describe(Two(), torch.ones(1, 2))
    assert len(describe(Two(), (torch.ones(1, 2), torch.ones(1, 2))).inputs) == 2
    with pytest.raises(GraphError, match="uses x, y, and example_input has 3 tensors"):
        describe(Two(), (torch.ones(1, 2),) * 3)


def test_what_is_no_tensor_in_a_state_is_refused():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(CheckpointError, match=r"1\._extra_state of the model's state is a dict"):
        state_of(nn.Sequential(nn.ReLU(), Extra(1, 1)))


def test_a_wrapper_around_the_model_is_not_described():
    model = nn.Sequential(conv())
    assert describe(nn.DataParallel(model), image()) == describe(model, image())


def part(m, x):
    h = m.a(x)
    F.relu(h[:, :3], inplace=True)
    return m.b(h)


def piece(m, x):
    h = m.a(x)
    h.chunk(2, 1)[0].clamp_(0.0)
    return m.b(h)


def reshaped(m, x):
    h = x * 1.0
    h.view(-1, 2, 2)[:, 0].clamp_(0.0)
    return m.b(h)


def turned_before(m, x):
    h = m.a(x)
    view = h.unsqueeze(1)
    h.relu_()
    return m.b(view.squeeze(1))


def of_an_identity(m, x):
    h = m.a(x)
    m.same(h).relu_()
    return m.b(h)


def into(m, x):
    h = m.a(x)
    torch.exp(x, out=h)
    return m.b(h)


@pytest.mark.parametrize("forward", [part, piece, reshaped, turned_before, of_an_identity, into])
@pytest.mark.parametrize("x", [torch.zeros(2, 4), torch.rand(2, 4)], ids=["zeros", "positive"])
def test_what_is_overwritten_through_a_view_is_not_read_as_it_was(forward, x):
    model = Graph(forward, a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 2), same=nn.Identity())
    with pytest.raises(GraphError, match=r"(relu|relu_|clamp_|exp) in Graph: .*Replace it, or save without"):
        describe(model, x)


def test_a_buffer_that_is_overwritten_in_part_is_named():
    model = Graph(lambda m, x: m.seen[:1].add_(1.0) * x + m.seen)
    model.register_buffer("seen", torch.zeros(4))
    with pytest.raises(GraphError, match="add_ in Graph: it changes seen, which the model holds"):
        describe(model, torch.rand(2, 4))


def gated(m, x):
    one, other = m.a(x).chunk(2, 1)
    return one * other.sigmoid_()  # they have no number in common


@pytest.mark.parametrize("forward", [
    lambda m, x: m.b(F.relu(m.a(x).flatten(1), inplace=True)),
    lambda m, x: torch.cat([m.a(x)[:, :2].relu_(), x[:, :2]], 1),
    gated,
    lambda m, x: m.b(m.a(x).clone().relu_()),
    lambda _, x: x.unsqueeze(1).relu_().squeeze(1),
])  # fmt: skip
def test_what_is_overwritten_and_not_read_again_does_no_harm(forward):
    model, x = Graph(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), torch.randn(2, 4)
    found = described(model, x)
    with torch.no_grad():
        torch.testing.assert_close(network(*found)(x.clone()), model(x.clone()), rtol=0, atol=0)


def test_a_copy_is_overwritten_alone():
    def forward(_, x):
        turned = x.transpose(1, 2).contiguous()
        return turned.relu_() + x.transpose(1, 2)

    x = torch.randn(2, 3, 4)
    found = described(Graph(forward), x)
    torch.testing.assert_close(network(*found)(x), x.transpose(1, 2).relu() + x.transpose(1, 2), rtol=0, atol=0)


def test_a_program_is_also_proved_on_numbers_that_the_example_lacks():
    def doubled(m, x):
        h = m.a(x)
        view = h[:, :3]
        view *= 2  # the trace sees a product and no writing
        return m.b(h)

    with pytest.raises(GraphError, match="does not repeat the model's outputs"):
        describe(Graph(doubled, a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 2)), torch.zeros(1, 4))


def test_numbers_that_a_model_does_not_take_prove_nothing():
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_forward_pre_hook(lambda _, inputs: None if bool((inputs[0] == 0).all()) else 1 / 0)
    assert [step.op for step in describe(model, torch.zeros(1, 2)).steps] == ["linear"]


@pytest.mark.parametrize("example", [[torch.zeros(2, 3)], {"x": torch.zeros(2, 3)}, (torch.zeros(2, 3), 1), None])
def test_an_example_of_another_kind_is_named(example):
    with pytest.raises(OptionError, match=r"example_input is a .*: wanted a tensor, or a tuple of tensors"):
        examples_of(example)


@pytest.mark.parametrize("name", ["training", "forward"])
def test_a_name_that_every_module_has_is_refused(name):
    program = Program((Input("x", (2,)),), (Step("linear", name, (0,)),), (1,))
    model = network(program, {f"{name}.weight": torch.ones(1, 2)})
    with pytest.raises(GraphError, match=f"'{name}' of Network is called as an attribute of every module"):
        describe(model, torch.ones(1, 2))
    with pytest.raises(GraphError, match=f"'{name}' of Network is called as an attribute of every module"):
        compact(model, torch.ones(1, 2))
