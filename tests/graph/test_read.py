import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synaptree.core.errors import OptionError
from synaptree.graph.read import Graph, GraphError, Node, read, run
from synaptree.graph.shortcut import Shortcut


class Function(nn.Module):
    """A model made of modules and the function that joins them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def node_of(graph: Graph, module: str) -> Node:
    return next(node for node in graph.nodes if node.module == module)


def last(forward, *shape: int, **modules: nn.Module) -> Node:
    """Return the node before the output of a model on a conv of four channels, or a linear layer."""
    first = nn.Conv2d(3, 4, 1) if len(shape) == 4 else nn.Linear(shape[-1], 4)
    model = Function(lambda self, x: forward(self, self.first(x)), first=first, **modules)
    graph = read(model, torch.randn(shape))
    return graph[graph.nodes[-1].inputs[0]]


def test_the_nodes_of_a_convolutional_network_name_operations_modules_and_channels():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    graph = read(model, torch.randn(2, 1, 6, 6))
    assert [(node.op, node.module, node.channels) for node in graph.nodes] == [
        ("input", None, 1), ("conv", "0", 2), ("norm", "1", 2), ("pointwise", "2", 2), ("pool", "3", 2),
        ("move", "4", 8), ("linear", "5", 3), ("output", None, 1),
    ]
    assert graph.nodes[4].inputs == (graph.nodes[3].name,)
    assert graph.nodes[4].shape == (2, 2, 2, 2)
    assert graph.module("0") is model[0]


@pytest.mark.parametrize("flat", [
    lambda _, x: x.flatten(1),
    lambda _, x: torch.flatten(x, 1),
    lambda _, x: x.view(x.size(0), -1),
    lambda _, x: x.reshape(x.shape[0], 4 * x.shape[2] * x.shape[3]),
    lambda m, x: m.flat(x),
])  # fmt: skip
def test_flattening_gives_each_channel_consecutive_columns(flat):
    node = last(flat, 2, 3, 1, 2, flat=nn.Flatten())
    assert (node.op, node.axis, node.channels) == ("move", 1, 8)
    (links,) = node.links
    assert links.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 2, 2, 3, 3]]


def test_option_a_padding_links_the_middle_channels():
    node = last(lambda _, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), 2, 3, 4, 4)
    assert (node.op, node.channels) == ("move", 8)
    assert node.links[0].tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]


def test_zeros_around_a_map_keep_its_channels():
    for pad in (lambda _, x: F.pad(x, (1, 1, 1, 1)), lambda m, x: m.pad(x)):
        node = last(pad, 2, 3, 4, 4, pad=nn.ZeroPad2d(1))
        assert (node.op, node.axis, node.links[0].tolist()) == ("move", 1, [[0, 1, 2, 3], [0, 1, 2, 3]])


@pytest.mark.parametrize("shuffle", [
    lambda _, x: x.view(-1, 2, 2, 4, 4).transpose(1, 2).contiguous().view(-1, 4, 4, 4),
    lambda _, x: x.unflatten(1, (2, 2)).swapaxes(1, 2).flatten(1, 2),
    lambda m, x: m.shuffle(x),
])  # fmt: skip
def test_a_channel_shuffle_is_followed_through_its_views(shuffle):
    node = last(shuffle, 2, 3, 4, 4, shuffle=nn.ChannelShuffle(2))
    assert node.inputs == ("first",)
    assert node.links[0].tolist() == [[0, 1, 2, 3], [0, 2, 1, 3]]


def test_chunks_are_followed_to_the_channels_they_came_from():
    node = last(lambda _, x: torch.cat(x.chunk(2, 1)[::-1], 1), 2, 3, 4, 4)
    assert node.inputs == ("first",)
    assert node.links[0].tolist() == [[0, 1, 2, 3], [2, 3, 0, 1]]


def test_concatenation_links_each_input_to_its_slice():
    node = last(lambda m, x: torch.cat([x, m.second(x)], 1), 2, 3, 4, 4, second=nn.Conv2d(4, 2, 1))
    assert node.inputs == ("first", "second")
    assert [links.tolist() for links in node.links] == [[[0, 1, 2, 3], [0, 1, 2, 3]], [[4, 5], [0, 1]]]


def test_channels_last_are_followed_through_transpositions():
    node = last(lambda _, x: x.flatten(2).transpose(1, 2), 2, 3, 2, 2)
    assert (node.axis, node.channels) == (2, 4)
    node = last(lambda m, x: m.second(F.gelu(x)), 2, 5, 3, second=nn.Linear(4, 6))
    assert (node.op, node.axis, node.channels) == ("linear", 2, 6)


@pytest.mark.parametrize(("forward", "op", "axis"), [
    (lambda _, x: x.mean((2, 3)), "pool", 1),
    (lambda _, x: x.mean(-1, keepdim=True), "pool", 1),
    (lambda _, x: x.sum(dim=1), "other", None),
    (lambda _, x: x.mean(), "other", None),
    (lambda _, x: F.adaptive_avg_pool2d(x, 1), "pool", 1),
    (lambda _, x: F.max_pool2d(x, 2), "pool", 1),
    (lambda _, x: F.interpolate(x, scale_factor=2), "pool", 1),
    (lambda _, x: 2 * x - 1, "pointwise", 1),
    (lambda _, x: x * x.mean((2, 3), keepdim=True).sigmoid(), "pointwise", 1),
    (lambda _, x: x * x.mean((0, 2, 3)), "other", None),  # aligns channels with columns
    (lambda _, x: F.softmax(x, 1), "other", None),
    (lambda _, x: F.layer_norm(x, x.shape[1:]), "other", None),
    (lambda _, x: x @ x, "other", None),
    (lambda _, x: F.pixel_shuffle(x, 2), "move", None),
    (lambda _, x: x[x.argmax(1).flatten() % 2], "other", None),  # an index made from activations
    (lambda _, x: x.permute(0, 2, 3, 1), "move", 3),
])  # fmt: skip
def test_an_operation_keeps_channels_apart_or_is_other(forward, op, axis):
    node = last(forward, 2, 3, 4, 4)
    assert (node.op, node.axis) == (op, axis)


def test_group_and_layer_norm_mix_channels_and_instance_norm_does_not():
    for norm, op in ((nn.GroupNorm(2, 4), "other"), (nn.InstanceNorm2d(4), "norm"), (nn.BatchNorm2d(4), "norm")):
        assert last(lambda m, x: m.norm(x), 2, 3, 4, 4, norm=norm).op == op


def test_sizes_and_parameters_are_no_inputs():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.shift = nn.Linear(2, 3), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return (self.fc(x) + self.shift).view(x.size(0) * 1, -1)

    graph = read(Shifted(), torch.randn(2, 2))
    assert [(node.op, node.inputs) for node in graph.nodes[2:4]] == [("pointwise", ("fc",)), ("move", ("add",))]


def test_a_tensor_made_in_the_shape_of_another_does_not_read_it():
    node = last(lambda m, x: torch.cat([m.b(x), x.new_zeros(2, 1, 4, 4), torch.zeros_like(x)], 1), 2, 3, 4, 4,
                b=nn.Conv2d(4, 2, 1))  # fmt: skip
    assert (node.inputs, node.channels, node.links[0].tolist()) == (("b",), 7, [[0, 1], [0, 1]])


def test_a_module_may_be_named_like_a_question_about_size():
    graph = read(Function(lambda m, x: m.size(x), size=nn.Linear(2, 3)), torch.randn(1, 2))
    assert [node.op for node in graph.nodes] == ["input", "linear", "output"]


def test_a_layer_whose_weight_is_used_elsewhere_is_other():
    tied = Function(lambda m, x: m.b(m.a(x)), a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    tied.b.weight = tied.a.weight
    assert node_of(read(tied, torch.randn(1, 2)), "a").op == "other"
    decoder = Function(lambda m, x: F.linear(m.a(x), m.a.weight.t()), a=nn.Linear(3, 2))
    assert node_of(read(decoder, torch.randn(1, 3)), "a").op == "other"


def test_a_discarded_in_place_result_still_counts():
    def forward(m, x):
        a, b = m.a(x), m.b(x)
        a.add_(b)
        return m.c(a)

    graph = read(Function(forward, a=nn.Linear(2, 3), b=nn.Linear(2, 3), c=nn.Linear(3, 1)), torch.randn(2, 2))
    assert node_of(graph, "c").inputs == ("add_",)
    assert graph["add_"].inputs == ("a", "b")


def test_what_nothing_reads_is_left_out():
    def forward(m, x):
        m.b(x)
        return m.a(x)

    graph = read(Function(forward, a=nn.Linear(2, 3), b=nn.Linear(2, 3)), torch.randn(2, 2))
    assert graph.calls.keys() == {"a"}


def test_reading_leaves_model_example_and_random_state_as_they_were():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2))
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])
    random = torch.get_rng_state()
    graph = read(model, example)
    assert torch.equal(example, torch.tensor([[-1.0, 2.0], [3.0, -4.0]]))
    assert [module.training for module in model] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert graph.module("3").weight is model[3].weight


def test_user_hooks_never_see_channel_numbers():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 1))
    values = []
    model[1].register_forward_hook(lambda _, __, output: values.append(output))
    read(model, torch.zeros(1, 1, 1, 1))
    wanted = model[0](torch.zeros(1, 1, 1, 1)).flatten(1)
    assert len(values) == 2
    assert all(torch.equal(value, wanted) for value in values)


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_decision_by_value_is_refused_with_module_and_cause():
    with pytest.raises(GraphError, match=r"cannot trace module '1' \(Decides\).*control flow"):
        read(nn.Sequential(nn.Linear(2, 2), Decides()), torch.randn(1, 2))
    with pytest.raises(GraphError, match=r"cannot trace Decides\.forward"):
        read(Decides(), torch.randn(1, 2))


def test_an_example_the_model_does_not_accept_is_refused_with_its_place():
    with pytest.raises(GraphError, match=r"shape \(1, 3\), at module '0'.*shapes cannot be multiplied"):
        read(nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 3))


def test_a_trace_that_does_not_repeat_the_model_is_refused():
    def forward(m, x):
        y = m.fc(x)
        z = y
        y += 1  # the trace adds out of place, so z would not see it
        return z + y

    with pytest.raises(GraphError, match="does not repeat the model's outputs"):
        read(Function(forward, fc=nn.Linear(2, 2)), torch.randn(1, 2))


def test_a_user_layer_with_torchs_own_forward_stays_whole():
    class Mine(nn.Linear):
        pass

    assert read(nn.Sequential(Mine(2, 3)), torch.randn(1, 2)).nodes[1].op == "linear"


def test_unknown_nodes_are_named_with_the_nearest_known():
    graph = read(nn.Sequential(nn.Linear(2, 3)), torch.randn(1, 2))
    with pytest.raises(OptionError, match="unknown node"):
        run(graph, torch.randn(1, 2), {"nowhere": print})


def test_watched_values_are_seen_before_they_are_overwritten():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(inplace=True), Shortcut(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.zero_()
    graph = read(model, torch.zeros(1, 1))
    values, hooked = [], []
    model[0].register_forward_hook(lambda *_: hooked.append(True))
    y = run(graph, torch.ones(3, 1), {"_0": lambda value: values.append(value[0].tolist())})
    assert values == [[1.0, -1.0]]
    assert hooked == [True]
    assert torch.equal(y, model(torch.ones(3, 1)))
