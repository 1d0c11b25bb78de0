import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synaptree.core.layer import layers_of
from synaptree.core.topology import Topology
from synaptree.surgery.compact import compact

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A forward given as a function of the module and its input, which it cannot be traced for."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.apply_to = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        if x.sum() > 1e6:
            raise ValueError("too large")
        return self.apply_to(self, x)


class Two(nn.Module):
    """Two layers, of whose four hidden units the first two are read by nothing."""

    def __init__(self, inputs=4, outputs=4):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 4), nn.Linear(4, outputs)
        self.last.weight.data[:, :2] = 0.0

    def forward(self, x):
        return self.last(self.first(x).relu())


def widths(model):
    return {name: module.out_features for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def compacted(model, x=X, **options):
    """Return the result, whose model computes the same."""
    small = compact(model, x, **options)
    fresh = torch.randn_like(x)
    with torch.no_grad():
        torch.testing.assert_close(small.model.eval()(fresh), model.eval()(fresh))
    return small


def test_the_children_of_a_model_that_cannot_be_traced_are_compacted_on_their_own():
    small = compacted(Net(lambda m, x: m.b(m.a(x)), a=Two(), b=nn.Sequential(Two(), nn.Tanh())))
    assert widths(small.model) == {"a.first": 2, "a.last": 4, "b.0.first": 2, "b.0.last": 4}
    assert [(units.layer, units.units) for units in small.plan.removed] == [("a.first", (0, 1)), ("b.0.first", (0, 1))]


def test_the_notes_name_the_operation_and_the_line_that_stopped_the_trace():
    (note,) = compacted(Net(lambda m, x: m.a(x), a=Two())).plan.notes
    assert note.startswith("only parts of the model were compacted: cannot trace Net.forward")
    assert "It stopped at operation 'gt' in forward, test_compact_parts.py line" in note
    assert note.endswith(": if x.sum() > 1e6:")


def test_of_a_child_that_cannot_be_read_the_children_are_looked_at():
    inner = Net(lambda m, x: m.blocks[1](m.blocks[0](x)), blocks=nn.ModuleList([Two(), Two()]))
    small = compacted(Net(lambda m, x: m.inner(x) + x, inner=inner))
    assert widths(small.model)["inner.blocks.0.first"] == widths(small.model)["inner.blocks.1.first"] == 2
    assert [note.partition(":")[0] for note in small.plan.notes] == [
        "only parts of the model were compacted", "'inner' was not compacted as a whole"
    ]  # fmt: skip


def test_inputs_and_outputs_of_a_child_stay_even_where_nothing_reads_them():
    def forward(m, x):
        return m.head(m.a(x))

    model = Net(forward, a=Two(), head=nn.Linear(4, 2))
    model.head.weight.data[:, 0] = 0.0
    model.a.first.weight.data[:, 0] = 0.0
    small = compacted(model).model
    assert widths(small) == {"a.first": 2, "a.last": 4, "head": 2}
    assert small.a.first.in_features == 4


def shared_weight():
    model = Net(lambda m, x: m.b(m.a(x)), a=Two(), b=nn.Linear(4, 4))
    model.b.weight = model.a.first.weight
    return model, "it shares parameters with modules outside it"


def shared_module():
    a = Two()
    return Net(lambda m, x: m.a(x), a=a, b=nn.ModuleList([a.first])), "modules in it also belong to modules outside it"


def called_from_outside():
    model = Net(lambda m, x: m.a(x) + m.a.first(x), a=Two())
    return model, "modules or parameters in it are used from outside it"


def read_from_outside():
    model = Net(lambda m, x: m.a(x) + F.linear(x, m.a.first.weight), a=Two())
    return model, "modules or parameters in it are used from outside it"


def hooked():
    model = Net(lambda m, x: m.a(x), a=Two())
    model.a.first.register_forward_hook(lambda _, __, y: y + torch.arange(4.0))
    return model, "modules in it have hooks"


def called_with_two():
    class Sum(Two):
        def forward(self, x, y):
            return super().forward(x + y)

    return Net(lambda m, x: m.a(x, x), a=Sum()), "it is called with something else than one tensor"


def called_by_name():
    return Net(lambda m, x: m.a(x=x), a=Two()), "it is called with something else than one tensor"


def several_shapes():
    model = Net(lambda m, x: m.a(x) + m.a(x[:, None])[:, 0], a=Two())
    return model, "it is called with inputs of several shapes or types"


def gives_a_number():
    class Counts(Two):
        def forward(self, x):
            return self.last(y := self.first(x).relu()), y.shape[1]

    return Net(lambda m, x: m.a(x)[0], a=Counts()), "it gives something else than tensors"


def never_called():
    return Net(lambda m, x: m.a(x) if x[0, 0] > 1e3 else x, a=Two()), "it was not called"


def torchs_own():
    return Net(lambda m, x: m.a(x[None])[0], a=nn.TransformerEncoderLayer(4, 2, 8)), "its forward is torch's own"


def fixed_sizes():
    class Sized(Two):
        def forward(self, x):
            return self.last(self.first(x).view(-1, 4))

    return Net(lambda m, x: m.a(x), a=Sized()), "narrower, it does not compute the same; its forward may hold"


def asks_for_its_width():
    class Asks(Two):
        def forward(self, x):
            return super().forward(x) * self.first.out_features

    return Net(lambda m, x: m.a(x), a=Asks()), "narrower, it does not compute the same"


@pytest.mark.parametrize("make", [
    shared_weight, shared_module, called_from_outside, read_from_outside, hooked, called_with_two, called_by_name,
    several_shapes, gives_a_number, never_called, torchs_own, fixed_sizes, asks_for_its_width,
], ids=lambda make: make.__name__)  # fmt: skip
def test_what_is_not_certain_is_left_alone_with_the_reason(make):
    model, why = make()
    small = compacted(model)
    assert widths(small.model) == widths(model)
    assert small.plan.removed == ()
    first, note = small.plan.notes
    assert first.startswith("nothing was removed")
    assert note.startswith(f"'a' was not compacted as a whole: {why}")


def test_a_parameter_whose_type_is_asked_from_outside_is_no_obstacle():
    model = Net(lambda m, x: m.a(x.to(next(m.parameters()).dtype).to(m.a.first.weight.device)), a=Two())
    assert widths(compacted(model).model)["a.first"] == 2


def test_experts_called_with_as_many_samples_as_are_theirs_are_compacted():
    def forward(m, x):
        mine = x[:, 0] > 0
        y = torch.empty_like(x)
        for expert, rows in ((m.a, mine), (m.b, ~mine)):
            y[rows] = expert(x[rows])
        return y

    small = compacted(Net(forward, a=Two(), b=Two()), torch.randn(9, 4))
    assert widths(small.model) == {"a.first": 2, "a.last": 4, "b.first": 2, "b.last": 4}


def test_a_child_called_twice_alike_is_compacted_once():
    small = compacted(Net(lambda m, x: m.a(m.a(x)), a=Two()))
    assert [units.layer for units in small.plan.removed] == ["a.first"]


def test_a_child_under_two_names_stays_one():
    a = Two()
    small = compacted(Net(lambda m, x: m.a(x) + m.again(x), a=a, again=a)).model
    assert small.a is small.again
    assert small.a.first.out_features == 2


def test_topology_and_optimizer_are_carried_over_to_the_parts():
    torch.manual_seed(0)
    model = Net(lambda m, x: m.head(m.a(x)), a=Two(), head=nn.Linear(4, 2))
    topology = Topology.of(layers_of(model), {"linear": "weight", "conv": "kernel"})
    topology.edit({"a.last.weight": torch.tensor([[False, False, True, True]]).expand(4, 4)})
    topology.apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    topology.apply(model)
    small = compacted(model, topology=topology, optimizer=optimizer)
    assert {name: tuple(mask.shape) for name, mask in small.topology.masks.items()} == {
        "a.first.weight": (2, 4), "a.last.weight": (4, 2), "head.weight": (2, 4)
    }  # fmt: skip
    momentum = [state["momentum_buffer"] for state in small.optimizer.state.values()]
    torch.testing.assert_close(momentum[0], optimizer.state[model.a.first.weight]["momentum_buffer"][2:])
    assert [part.shape for part in momentum] == [p.shape for p in small.model.parameters()]


def test_batch_norms_are_folded_within_the_parts():
    a = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    a[1].running_mean += torch.arange(4.0)
    small = compacted(Net(lambda m, x: m.a(x), a=a), fold_norms=True)
    assert isinstance(small.model.a[1], nn.Identity)


class Helped(nn.Module):
    """In training a second head reads the hidden units too."""

    def __init__(self):
        super().__init__()
        self.body, self.hidden = Two(), nn.Linear(4, 4)
        self.head, self.helper = nn.Linear(4, 2), nn.Linear(4, 2)
        self.head.weight.data[:, :3] = 0.0

    def forward(self, x):
        y = self.hidden(self.body(x)).relu()
        return (self.head(y), self.helper(y)) if self.training else self.head(y)


def test_a_unit_that_only_the_forward_of_training_reads_stays():
    small = compacted(Helped())
    assert widths(small.model) == {"body.first": 2, "body.last": 4, "hidden": 4, "head": 2, "helper": 2}
    assert "asks for self.training" in small.plan.notes[0]
    assert len(small.model.train()(X)) == 2


def test_a_dropout_that_is_a_function_is_no_obstacle():
    class Drops(Two):
        def forward(self, x):
            return self.last(F.dropout(self.first(x), training=self.training))

    small = compacted(Drops())
    assert small.plan.notes == ()
    assert small.model.first.out_features == 2


def test_a_model_that_cannot_be_run_under_watch_comes_back_whole():
    def forward(m, x):
        if torch.overrides._get_current_function_mode() is not None:
            raise TypeError("not now")
        return m.a(x)

    small = compacted(Net(forward, a=Two()))
    assert widths(small.model)["a.first"] == 4
    assert "Its parts cannot be told apart: not now" in small.plan.notes[0]
