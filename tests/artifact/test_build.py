import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_networks import NETWORKS, Graph, inputs_of
from torch import nn

from synaptree.artifact.build import build, network, program_of, values_of
from synaptree.artifact.describe import described
from synaptree.core.attach import attach
from synaptree.core.errors import CheckpointError, ShapeError
from synaptree.core.oneshot import prune
from synaptree.format import OPERATORS, Entry, File, Input, Program, Step
from synaptree.graph.read import read
from synaptree.graph.shortcut import Shortcut
from synaptree.graph.trace import trace
from synaptree.methods import build as method
from synaptree.surgery.compact import compact
from synaptree.train import zoo


def rebuilt(model, example):
    """Return the network made of a model's program and copies of its tensors."""
    found = described(model, example)
    copies = {name: tensor.detach().clone() for name, tensor in found.tensors.items()}
    return network(found.program, copies, found.aliases)


def bit_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return True


def ran(model, inputs, seed=0):
    torch.manual_seed(seed)  # of dropout
    return model(*(x.clone() for x in inputs))


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_odd_network_gives_the_same_bits_for_any_number_of_samples(make, training):
    model, example = make()
    built = rebuilt(model, example).train(training)
    inputs = tuple(torch.cat([x, x.flip(0), x[:1]]) for x in inputs_of(example))
    assert bit_equal(ran(built, inputs), ran(model.train(training), inputs))
    assert bit_equal(built.state_dict(), dict(model.state_dict()))  # statistics of batch norms moved alike


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_names_kinds_and_order_of_tensors_are_those_of_the_model(make):
    model, example = make()
    built = rebuilt(model, example)
    forms = [{name: (t.shape, t.dtype) for name, t in one.state_dict().items()} for one in (built, model)]
    assert forms[0] == forms[1]
    assert [name for name, _ in built.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(p.requires_grad == p.is_floating_point() for p in built.parameters())
    modules = {name: type(m) for name, m in model.named_modules() if type(m).__module__.startswith("torch.nn.modules.")}
    found = {name: type(m) for name, m in built.named_modules() if name in modules and name}
    assert all(cls in (modules[name], nn.Module) or issubclass(modules[name], cls) for name, cls in found.items())


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_gradients_are_those_of_the_model(make):
    model, example = make()
    built = rebuilt(model, example)
    gradients = []
    for one in (built.train(), model.train()):
        outputs = ran(one, inputs_of(example))
        outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
        outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        loss = sum(output.float().square().sum() for output in outputs)
        if loss.requires_grad:
            loss.backward()
        gradients.append({name: p.grad for name, p in one.named_parameters()})
    assert bit_equal(*gradients)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_a_built_network_is_copied_pickled_and_traced(make):
    model, example = make()
    built = rebuilt(model, example).eval()
    wanted = ran(built, inputs_of(example))
    for other in (copy.deepcopy(built), pickle.loads(pickle.dumps(built)), trace(built)):
        assert bit_equal(ran(other, inputs_of(example)), wanted)


COMPILED = """
import torch
from odd_networks import NETWORKS, inputs_of
from synaptree.artifact.build import network
from synaptree.artifact.describe import described
for make in NETWORKS:
    if make.__name__ in ("squeeze_excite", "constants", "attention_by_hand", "dict_output", "two_inputs", "tied"):
        model, example = make()
        built = torch.compile(network(*described(model, example)).eval(), backend="eager", fullgraph=True)
        torch.testing.assert_close(built(*inputs_of(example)), model.eval()(*inputs_of(example)), rtol=0, atol=0)
        print(make.__name__)
"""


@pytest.mark.slow
def test_a_built_network_is_compiled_whole():
    # in a process of its own: torch cannot compile calls that are checked against their type hints
    ran = subprocess.run([sys.executable, "-c", COMPILED], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) == 6


def test_a_built_network_prints_its_modules_where_they_ran():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    built = rebuilt(model, torch.zeros(1, 1, 4, 4))
    assert str(built).replace("Network(", "Sequential(") == str(model)


@pytest.mark.parametrize(("name", "options"), [
    ("mlp", {"inputs": 6, "hidden": (5,)}), ("vgg_small", {"width": 2}), ("resnet20", {}),
])  # fmt: skip
def test_a_built_network_is_read_pruned_and_compacted_as_the_model(name, options):
    model = zoo.build(name, **options).eval()
    x = torch.rand(2, *((6,) if name == "mlp" else (3, 8, 8)))
    built = rebuilt(model, x).eval()
    forms = [[(node.op, node.module, node.shape, node.axis) for node in read(one, x).nodes] for one in (built, model)]
    assert forms[0] == forms[1]
    magnitude = method("magnitude", density=0.1, conv="unit")
    topologies = [prune(one, magnitude) for one in (built, model)]
    assert topologies[0].digest() == topologies[1].digest()
    small = [compact(one, x, topology=of) for one, of in zip((built, model), topologies, strict=True)]
    assert str(small[0].plan) == str(small[1].plan)
    assert bit_equal(small[0].model(x), small[1].model(x))
    assert bit_equal(small[0].model.state_dict(), dict(small[1].model.state_dict()))


def test_a_built_network_trains_under_a_method_as_the_model_does():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    built, x = rebuilt(model, torch.zeros(1, 6)).train(), torch.randn(12, 6)
    attached = []
    for one in (built, model):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.1)
        attached.append(attach(one, optimizer, method("rigl", density=0.5, every=2, last=10), seed=1))
        for _ in range(6):
            optimizer.zero_grad()
            one(x).square().sum().backward()
            optimizer.step()
    assert attached[0].topology.digest() == attached[1].topology.digest()
    assert attached[0].topology.born > 0
    assert bit_equal(built.state_dict(), dict(model.state_dict()))


def test_a_module_under_two_names_stays_one_module():
    make = next(make for make in NETWORKS if make.__name__ == "one_module_under_two_names")
    built = rebuilt(*make()).double()  # moving makes new buffers, which one module has once
    assert built.block._modules["0"] is built.twin._modules["0"]
    built.train()(torch.randn(5, 4, dtype=torch.float64))
    state = built.state_dict()
    assert torch.equal(state["block.1.running_mean"], state["twin.1.running_mean"])


def test_a_module_that_only_borrows_a_weight_stays_its_own():
    class Borrowing(nn.Module):
        def __init__(self, other):
            super().__init__()
            self.weight, self.own = other.weight, nn.Linear(4, 4)

        def forward(self, x):
            return self.own(x)

    first = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(first, Borrowing(first))
    built = rebuilt(model, torch.zeros(1, 4))
    assert built.state_dict().keys() == model.state_dict().keys()
    assert built.get_submodule("1").weight is built.get_submodule("0").weight


def test_tied_parameters_are_one_parameter():
    make = next(make for make in NETWORKS if make.__name__ == "tied")
    built = rebuilt(*make())
    assert built.encode.weight is built.decode.weight
    assert len(list(built.parameters())) == 3


def test_a_constant_that_is_not_saved_is_not_saved():
    make = next(make for make in NETWORKS if make.__name__ == "constants")
    built = rebuilt(*make())
    assert [*built.state_dict()] == ["gain", "shift", "one.weight", "one.bias"]
    assert {name for name, _ in built.named_buffers()} == {"shift", "unsaved", "_tensor_constant0"}


def test_a_shortcut_takes_no_gradient_and_everything_else_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Shortcut(4, 6))
    model[0].weight.requires_grad_(False)
    built = rebuilt(model, torch.zeros(1, 3, 2, 2))
    assert {name: p.requires_grad for name, p in built.named_parameters()} == {
        "0.weight": True, "0.bias": True, "1.scale": False,
    }  # fmt: skip


def test_values_are_all_of_the_program():
    built = rebuilt(nn.Sequential(nn.ReLU(), nn.Softplus()), torch.zeros(1, 1))
    x = torch.tensor([[-1.0], [2.0]])
    assert bit_equal(values_of(built, x), [x, x.relu(), nn.functional.softplus(x.relu())])


def test_values_that_nothing_needs_any_more_are_let_go():
    class Watching(nn.Module):
        def forward(self, x):
            self.alive = sum(isinstance(value, torch.Tensor) for value in sys._getframe(3).f_locals["values"])
            return x

    built = rebuilt(nn.Sequential(*(nn.ReLU() for _ in range(6))), torch.zeros(1, 1))
    built._modules["5"] = watching = Watching()
    built(torch.zeros(1, 1))
    assert watching.alive == 1  # what it reads, and none of the five values before it


def test_more_or_fewer_inputs_than_the_program_has_are_refused():
    program = Program((Input("a", ()), Input("b", ())), (Step("sub", "", (0, 1)),), (2,))
    built = network(program, {})
    assert built(torch.tensor([3.0]), torch.tensor([1.0])).tolist() == [2.0]
    for inputs in (1, 3):
        with pytest.raises(ShapeError, match=f"wanted 2 inputs, a, b, got {inputs}"):
            built(*[torch.ones(1)] * inputs)


X = (Input("x", (2,)),)
HOSTILE = [
    (Program(X, (Step("eval", "", (0,)),), (1,)), "unknown operator 'eval'"),
    (Program(X, (Step("linear", "fc", (0,)),), (1,)), "step 0, linear 'fc': its weight is missing"),
    (Program(X, (Step("add", "", (0, 5)),), (1,)), "reads value 5"),
    (Program((), (Step("constant", "fc.weight"),), (0,)), "it has no input"),
    (Program(X, (Step("relu", "fc.weight", (0,)),), (1,)), "fc.weight"),
    (Program(X, (Step("linear", "a/b", (0,)),), (1,)), "name 'a/b'"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "message"), HOSTILE, ids=[message for _, message in HOSTILE])
def test_a_program_that_cannot_be_run_is_refused(program, message):
    tensors = {} if "missing" in message else {"fc.weight": torch.ones(1, 2)}
    with pytest.raises(CheckpointError, match=message):
        network(program, tensors)


def test_options_that_torch_refuses_are_named():
    wrong = Program(X, (Step("hardtanh", "h", (0,), {"min_val": 1.0, "max_val": 0.0}),), (1,))
    with pytest.raises(CheckpointError, match="the program cannot be run: hardtanh 'h': max_val"):
        network(wrong, {})


def test_a_file_without_a_program_says_what_to_do():
    with pytest.raises(CheckpointError, match="load it into a network of the same class with load_into"):
        build(File(entries={"a": Entry.of("a", np.ones(1, np.float32))}))


NAMES = ("__class__", "forward", "training", "_modules", "__init__", "__reduce__", "program", "values", "import")


def hostile():
    """Return a file whose tensors and modules have the names of attributes; it computes `x + 2 n` for n names."""
    steps, sum_so_far = [], 0
    for place, name in enumerate(NAMES):
        steps.append(Step("constant", f"{name}.forward", (), {"trained": True}))
        steps.append(Step("add", "", (sum_so_far, 2 * place + 1)))
        sum_so_far = 2 * place + 2
    steps.append(Step("identity", "eval", (sum_so_far,)))
    two = np.full(1, 2, np.float32)
    entries = {f"{name}.forward": Entry.of(f"{name}.forward", two) for name in NAMES}
    return File(Program((Input("x", (1,)),), tuple(steps), (sum_so_far + 1,)), entries)


def test_names_that_look_like_attributes_stay_data():
    file = hostile()
    built = build(file)
    assert built(torch.ones(3, 1)).flatten().tolist() == [1.0 + 2 * len(NAMES)] * 3
    assert [*built.state_dict()] == [f"{name}.forward" for name in NAMES]
    assert built.training is False
    assert type(built).__name__ == "Network"
    assert built.forward.__func__ is type(built).forward
    assert bit_equal(copy.deepcopy(built)(torch.ones(1, 1)), built(torch.ones(1, 1)))


WATCHED = {"exec", "compile", "import", "marshal.loads", "pickle.find_class", "os.system", "subprocess.Popen"}


def test_building_compiles_imports_and_runs_nothing():
    build(hostile())(torch.ones(1, 1))  # what torch itself imports on first use is imported now
    seen, watching = [], [True]
    sys.addaudithook(lambda event, args: seen.append((event, args)) if watching and event in WATCHED else None)
    result = build(hostile())(torch.ones(1, 1))
    watching.clear()  # a hook cannot be removed
    assert seen == []
    assert result.item() == 1.0 + 2 * len(NAMES)


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    network(Program((Input("x", (4, 4)),), (Step("conv1d", "c", (0,)),), (1,)), {"c.weight": torch.ones(2, 4, 1)})
    assert torch.equal(torch.get_rng_state(), before)


SHAPES = {
    "linear": (2, 4), "embedding": (5, 4),
    **{f"conv{n}d": (6, 4, *(2,) * n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (4, 6, *(2,) * n) for n in (1, 2, 3)},
}  # fmt: skip
OPTIONS = {
    "group_norm": {"groups": 2}, "softmax": {"dim": 1}, "log_softmax": {"dim": -1}, "pow": {"exponent": 2},
    "clamp": {"min": 0.0}, "reshape": {"sizes": (0, -1)}, "permute": {"dims": (0, 3, 2, 1)},
    "transpose": {"dim0": 1, "dim1": 2}, "squeeze": {"dims": (0,)}, "unsqueeze": {"dim": 1},
    "slice": {"dim": -1, "stop": 2}, "select": {"dim": 1, "index": 0}, "pad": {"pads": (1, 0)},
    "upsample": {"scales": (2.0, 2.0)}, "pixel_shuffle": {"factor": 2},
    **{op: {"dims": (1,)} for op in ("mean", "sum", "amax", "amin")},
    **{op: {"number": 2} for op in ("add", "sub", "mul", "div")},
}  # fmt: skip


def case(op):
    """Return options, tensors by part, and an input for an operator."""
    dims = int(op[-2]) if op.endswith(("1d", "2d", "3d")) else 2
    options = OPTIONS.get(op, {}) | {
        name: (2,) * dims for name in ("kernel_size", "output_size") if name in OPERATORS[op].options
    }  # fmt: skip
    weight = SHAPES.get(op, (4,))
    length = weight[1] if op.startswith("conv_transpose") else weight[0]
    tensors = {part.name: torch.ones(length) for part in OPERATORS[op].parts}
    tensors |= {"weight": torch.ones(weight)} if "weight" in tensors else {}
    tensors |= {"num_batches_tracked": torch.tensor(0)} if "num_batches_tracked" in tensors else {}
    x = torch.randint(0, 4, (2, 3)) if op == "embedding" else torch.rand(2, 4, *(4,) * dims)
    return options, tensors, x


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_of_the_format_runs_under_a_name_and_without(op):
    options, parts, x = case(op)
    inputs = (0,) * (2 if op == "matmul" else OPERATORS[op].values[0])
    results = []
    for name in ["m"] if parts else ["m", ""]:
        tensors = {f"{name}.{part}" if part else name: tensor for part, tensor in parts.items()}
        given = Input("x", tuple(x.shape[1:]), str(x.dtype).removeprefix("torch."))
        built = network(Program((given,), (Step(op, name, inputs, options),), (1,)), tensors).eval()
        results.append(built(x))
        assert isinstance(results[-1], torch.Tensor)
    assert bit_equal(results[0], results[-1])


def test_children_may_be_called_as_what_attention_is_made_of():
    def forward(m, x):
        return m.program(m.keys(x) @ m.values(x).transpose(1, 2))

    modules = {"keys": nn.Linear(4, 3), "values": nn.Linear(4, 3)}
    modules |= {"program": nn.Linear(5, 2), "_calls": nn.Linear(1, 1)}
    model, x = Graph(forward, **modules), torch.randn(2, 5, 4)
    built = rebuilt(model, x)
    assert all(getattr(built, name) is built._modules[name] for name in modules)
    assert bit_equal(built(x), model(x))
    assert bit_equal(values_of(built, x)[0], x)
    assert described(built, x).program.steps == program_of(built).steps
    assert bit_equal(compact(built, x).model(x), model(x))


def test_a_name_marked_as_unsaved_belongs_to_a_constant_alone():
    one = Entry.of("x1", np.ones(1, np.float32))
    other = Entry.of("-x1", np.full(1, 5, np.float32))
    steps = (Step("constant", "x1"), Step("constant", "-x1"), Step("add", "", (1, 2)))
    both = Program((Input("x", (1,)),), steps, (3,))
    with pytest.raises(CheckpointError, match="name '-x1': only a constant's own"):
        build(File(both, {"x1": one, "-x1": other}))
    weight = Entry.of("-fc.weight", np.ones((1, 1), np.float32))
    with pytest.raises(CheckpointError, match="name '-fc': only a constant's own"):
        build(File(Program((Input("x", (1,)),), (Step("linear", "-fc", (0,)),), (1,)), {"-fc.weight": weight}))


def test_modules_are_made_without_memory_for_weights(monkeypatch):
    made = []
    linear = torch.nn.Linear.__init__

    def watched(self, *args, **kwargs):
        linear(self, *args, **kwargs)
        made.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", watched)
    weight = Entry.of("fc.weight", np.ones((2, 3), np.float32))
    net = build(File(Program((Input("x", (3,)),), (Step("linear", "fc", (0,)),), (1,)), {"fc.weight": weight}))
    assert made == ["meta"]
    assert net(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]
