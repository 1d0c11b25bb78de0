import copy
import functools
import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from synaptree import Engine, save
from synaptree.format.file import read_file
from synaptree.runtime import engine as module
from synaptree.runtime import reference
from synaptree.runtime.errors import EngineError
from synaptree.runtime.ir import Net, Node
from synaptree.runtime.lower import lower
from synaptree.train import zoo

native = pytest.importorskip("synaptree.runtime._native")


def sparse(model, density, kernels=False, seed=0):
    """Give a model random masks, whole kernels or single weights, and running statistics of its own."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            shape = layer.weight.shape[:2] if kernels else layer.weight.shape
            mask = (torch.rand(shape) < density).float()
            layer.weight.data *= mask.reshape(*mask.shape, *(1,) * (layer.weight.dim() - mask.dim()))
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2.0)
    return model.eval()


def filed(model, shape, folder, **options):
    save(model, folder / "net.syn", example_input=torch.randn(2, *shape), **options)
    return folder / "net.syn"


def close(got, wanted):
    scale = np.abs(wanted).max() + 1e-6
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got / scale, wanted / scale, atol=2e-5)


class Small(nn.Module):
    """Every kind of place: borders, strides, sums, joins, tiny images, flat values."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(12, 12, 5, padding=2, groups=3)
        self.one = nn.Conv2d(24, 10, 1)
        self.tiny = nn.Conv2d(10, 9, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(36, 20), nn.Linear(20, 5)

    def forward(self, x):
        y = torch.relu(self.conv1(x))
        y = torch.relu(self.norm(self.conv2(y)) + y)
        y = self.down(nn.functional.max_pool2d(y, 3, 2, 1))
        y = torch.cat([nn.functional.relu6(self.wide(y)), y], 1)
        y = nn.functional.avg_pool2d(nn.functional.leaky_relu(self.one(y), 0.2), 2)
        y = torch.relu(self.tiny(y))
        return torch.softmax(self.fc2(torch.relu(self.fc1(torch.flatten(y, 1)))), 1)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_an_engine_computes_what_torch_does(isa, density, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTREE_ISA", isa)
    model = sparse(Small(), density)
    path = filed(model, (3, 17, 17), tmp_path)
    x = torch.randn(35, 3, 17, 17)
    wanted = model(x).detach().numpy()
    for batch in (1, 3, 16, 35):
        close(Engine(path, batch=batch, budget=0.2)(x[:batch].numpy()), wanted[:batch])


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", ["lenet_300_100", "lenet5", "resnet20", "cnn_fc"])
def test_networks_of_the_zoo(name, kernels, tmp_path):
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    model = sparse(zoo.build(name), 0.2, kernels and name != "lenet_300_100")
    path = filed(model, shape, tmp_path)
    x = torch.randn(18, *shape)
    wanted = model(x).detach().numpy()
    for batch in (1, 18):
        close(Engine(path, batch=batch, budget=0.5)(x[:batch].numpy()), wanted[:batch])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "densenet40", "resnet18", "vgg_small"])
def test_large_networks_of_the_zoo(name, tmp_path):
    model = sparse(zoo.build(name), 0.1, kernels=True)
    path = filed(model, (3, 32, 32), tmp_path)
    x = torch.randn(16, 3, 32, 32)
    wanted = model(x).detach().numpy()
    for batch in (1, 16):
        close(Engine(path, batch=batch, budget=0.5)(x[:batch].numpy()), wanted[:batch])


def test_run_writes_into_the_array_given_and_returns_it(tmp_path):
    engine = Engine(filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path), batch=4)
    x, out = np.ones((4, 3), np.float32), np.full((4, 2), np.nan, np.float32)
    assert engine.run(x, out) is out
    np.testing.assert_array_equal(out, engine(x))
    short = np.ones((2, 3), np.float32)  # a batch it was not planned for
    np.testing.assert_allclose(engine(short), out[:2], rtol=1e-6)
    assert engine(np.empty((0, 3), np.float32)).shape == (0, 2)


def test_threads_give_the_same_numbers(tmp_path):
    model = sparse(Small(), 0.3)
    path = filed(model, (3, 17, 17), tmp_path)
    x = np.random.default_rng(0).standard_normal((50, 3, 17, 17), np.float32)
    plan = tmp_path / "plan.json"
    one = Engine(path, batch=50, plan=plan)(x)
    np.testing.assert_array_equal(Engine(path, threads=2, batch=50, plan=plan)(x), one)
    single = Engine(path, batch=1, plan=plan)(x[:1])
    np.testing.assert_array_equal(Engine(path, threads=3, batch=1, plan=plan)(x[:1]), single)


def test_large_layers_are_shared_out_among_threads():
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((3000, 2000)) * (rng.random((3000, 2000)) < 0.3)).astype(np.float32)
    net = Net((2000,), (Node("linear", "fc", (0,), (3000,), weight),), 1)
    x = rng.standard_normal((1, 2000)).astype(np.float32)
    engine = Engine(net, threads=2)
    assert any(engine.plans[1].shared)
    close(engine(x), x @ weight.T)


def test_a_plan_that_was_kept_is_taken_again(tmp_path, monkeypatch):
    path = filed(sparse(zoo.build("lenet_300_100"), 0.1), (1, 28, 28), tmp_path)
    plan = tmp_path / "plans" / "net.json"
    first = Engine(path, plan=plan)
    monkeypatch.setattr(module, "_PLANS", {})
    kept = json.loads(plan.read_text())
    assert list(kept["plans"].values()) == [["fp32 1", *first.plans[1].kernels]]
    assert Engine(path, plan=plan).plans[1].kernels == first.plans[1].kernels
    plan.write_text(plan.read_text().replace("lookup", "abacus"))  # kernels that are no more
    monkeypatch.setattr(module, "_PLANS", {})
    again = Engine(path, plan=plan).plans[1].kernels
    assert list(json.loads(plan.read_text())["plans"].values()) == [["fp32 1", *again]]
    assert "abacus" not in plan.read_text()


@pytest.mark.parametrize("content", ["my notes", "{not json", "[]", "5", '{"a": 1}', "[" * 100_000])
def test_a_file_that_holds_no_plans_is_left_as_it_is(content, tmp_path):
    path = filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path)
    (tmp_path / "precious").write_text(content)
    with pytest.raises(EngineError, match="no file of plans"):
        Engine(path, plan=tmp_path / "precious")
    assert (tmp_path / "precious").read_text() == content
    (tmp_path / "empty").touch()
    assert Engine(path, plan=tmp_path / "empty").plans[1].kernels


def test_an_engine_used_from_many_threads_is_never_wrong(tmp_path):
    model = sparse(zoo.build("lenet_300_100"), 0.1)
    engine = Engine(filed(model, (1, 28, 28), tmp_path), batch=8)
    xs = [np.random.default_rng(seed).standard_normal((8, 1, 28, 28), np.float32) for seed in range(4)]
    wanted = [engine(x) for x in xs]
    wrong = []

    def work(x, y):
        for _ in range(200):
            if not np.array_equal(engine(x), y):
                wrong.append(x)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(xs, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_in_a_forked_process_an_engine_goes_on_with_the_callers_thread(tmp_path):
    engine = Engine(filed(sparse(zoo.build("lenet_300_100"), 0.1), (1, 28, 28), tmp_path), threads=2, batch=130)
    x = np.random.default_rng(0).standard_normal((130, 1, 28, 28), np.float32)
    wanted = engine(x)
    child = os.fork()
    if not child:
        right = np.array_equal(engine(x), wanted)
        del engine
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(engine(x), wanted)


def test_an_int8_file_and_an_fp32_file_of_the_same_connections_have_plans_of_their_own(tmp_path):
    model = sparse(zoo.build("lenet_300_100"), 0.1)
    x = np.random.default_rng(0).standard_normal((4, 1, 28, 28), np.float32)
    wanted = model(torch.from_numpy(x)).detach().numpy()
    for values, tolerance in (("int8", 0.1), ("fp32", 1e-5), ("int8", 0.1)):
        got = Engine(filed(model, (1, 28, 28), tmp_path, values=values), batch=4)(x)
        assert np.abs(got - wanted).max() < tolerance * np.abs(wanted).max()


def test_a_plan_of_another_kind_of_numbers_is_made_anew(tmp_path, monkeypatch):
    path = filed(sparse(zoo.build("lenet_300_100"), 0.1), (1, 28, 28), tmp_path)
    plan = tmp_path / "plan.json"
    Engine(path, plan=plan)
    plan.write_text(plan.read_text().replace("fp32 1", "int8 1"))
    monkeypatch.setattr(module, "_PLANS", {})
    Engine(path, plan=plan)
    assert "fp32 1" in plan.read_text()


def test_samples_of_whole_numbers_do_not_know_each_other(tmp_path):
    path = filed(sparse(zoo.build("lenet_300_100"), 0.1), (1, 28, 28), tmp_path, values="int8")  # no ranges
    engine = Engine(path, batch=4, numbers="int8")
    x = np.random.default_rng(0).standard_normal((4, 1, 28, 28), np.float32)
    wanted = engine(x)
    x[0] = 1e6
    np.testing.assert_array_equal(engine(x)[1:], wanted[1:])
    x[0] = np.inf
    np.testing.assert_array_equal(engine(x)[1:], wanted[1:])


def test_the_kind_of_numbers_can_be_chosen(tmp_path):
    model = sparse(zoo.build("lenet_300_100"), 0.1)
    path = filed(model, (1, 28, 28), tmp_path, values="int8")
    for numbers in ("int8", "fp32"):
        kernels = Engine(path, batch=16, numbers=numbers).plans[16].kernels
        assert any(kernel.startswith("int8") for kernel in kernels) == (numbers == "int8")
    with pytest.raises(EngineError, match="fp32 or int8"):
        Engine(path, numbers="int4")
    with pytest.raises(EngineError, match="linear layers alone"):
        Engine(filed(model, (1, 28, 28), tmp_path), numbers="int8")


def test_layers_of_whole_numbers_are_explained_by_their_own_names(tmp_path):
    model = sparse(zoo.build("lenet_300_100"), 0.1)
    rows = Engine(filed(model, (1, 28, 28), tmp_path, values="int8")).explain().rows
    assert {row.name for row in rows if row.op == "linear"} == {"fc1", "fc2", "fc3"}
    assert all(row.dense_microseconds is None for row in rows if row.kernel.startswith("int8"))


def test_an_engine_that_nobody_holds_is_gone(tmp_path):
    engine = Engine(filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path))
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((1, 4), np.float32), r"x: wanted a float32 array of shape \(samples, 3\), got float32 .* \(1, 4\)"),
        (np.zeros((1, 3)), "got float64"),
        (np.zeros(3, np.float32), r"got float32 of shape \(3,\)"),
        (np.zeros((3, 2), np.float32).T, "ascontiguousarray"),
        ([[1.0, 2.0, 3.0]], "got list"),
    ],
)
def test_wrong_inputs_are_named(x, said, tmp_path):
    engine = Engine(filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path))
    with pytest.raises(ValueError, match=said):
        engine(x)
    with pytest.raises(ValueError, match=said):
        engine.run(x, np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (np.zeros((2, 2), np.float32), "out: wanted 1 samples"),
        (np.zeros((1, 2)), "out: wanted a float32"),
        (np.frombuffer(bytes(8), np.float32).reshape(1, 2), "can be written to"),
    ],
)
def test_wrong_outputs_are_named(out, said, tmp_path):
    engine = Engine(filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path))
    with pytest.raises(ValueError, match=said):
        engine.run(np.zeros((1, 3), np.float32), out)


def test_input_and_output_may_not_share_memory(tmp_path):
    engine = Engine(filed(nn.Sequential(nn.Linear(2, 2)), (2,), tmp_path))
    x = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="shares memory"):
        engine.run(x, x)


def test_run_goes_on_without_the_engine_and_keeps_the_latest_sizes(tmp_path):
    model = sparse(zoo.build("lenet_300_100"), 0.1)
    engine = Engine(filed(model, (1, 28, 28), tmp_path), batch=2)
    run, sizes = engine.run, engine._sizes
    del engine
    gc.collect()
    x = np.random.default_rng(0).standard_normal((20, 1, 28, 28), np.float32)
    wanted = model(torch.from_numpy(x)).detach().numpy()
    for batch in range(1, 21):
        close(run(x[:batch], np.empty((batch, 10), np.float32)), wanted[:batch])
    assert list(sizes.networks) == list(range(5, 21))


def test_many_threads_may_bring_many_sizes():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 5)).astype(np.float32)
    engine = Engine(Net((5,), (Node("linear", "fc", (0,), (3,), weight),), 1))
    wrong = []

    def work(first):
        for turn in range(60):
            x = rng.standard_normal((1 + (first + 7 * turn) % 40, 5)).astype(np.float32)
            if not np.allclose(engine(x), x @ weight.T, atol=1e-4):
                wrong.append(len(x))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # raises what a thread did
    assert not wrong


def test_an_engine_is_of_one_process(tmp_path):
    engine = Engine(filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path))
    with pytest.raises(TypeError, match="make another from the file"):
        copy.deepcopy(engine)


def test_bytes_of_any_kind_are_a_file(tmp_path):
    data = filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path).read_bytes()
    x = np.ones((1, 3), np.float32)
    for kind in (bytes, bytearray, memoryview):
        np.testing.assert_array_equal(Engine(kind(data))(x), Engine(data)(x))


@pytest.mark.parametrize("options", [{"threads": 0}, {"batch": 0}, {"batch": 2.5}, {"threads": 10_000}, {"batch": "4"}])
def test_what_is_no_number_of_threads_or_samples_is_refused(options, tmp_path):
    with pytest.raises(EngineError, match="at least 1"):
        Engine(filed(nn.Sequential(nn.Linear(2, 2)), (2,), tmp_path), **options)


def test_an_instruction_set_this_machine_has_not_got_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTREE_ISA", "abacus")
    with pytest.raises(EngineError, match="this machine has generic"):
        Engine(filed(nn.Sequential(nn.Linear(2, 2)), (2,), tmp_path))


def test_a_machine_of_generic_kernels_alone_is_told_so_once(tmp_path, monkeypatch):
    path = filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path)
    monkeypatch.setattr(module._native, "isas", lambda: ["generic"])
    monkeypatch.setattr(module, "_say_generic", functools.cache(module._say_generic.__wrapped__))
    with pytest.warns(RuntimeWarning, match="generic kernels"):
        assert Engine(path).isa == "generic"
    Engine(path)  # a second warning would be an error


def test_without_the_extension_the_reference_computes_and_says_so(tmp_path, monkeypatch):
    model = sparse(Small(), 0.5)
    path = filed(model, (3, 17, 17), tmp_path)
    x = torch.randn(2, 3, 17, 17)
    monkeypatch.setattr(module, "BUILT", False)
    with pytest.warns(RuntimeWarning, match="without its compiled kernels"):
        engine = Engine(path)
    close(engine(x.numpy()), model(x).detach().numpy())
    out = np.empty((2, 5), np.float32)
    assert engine.run(x.numpy(), out) is out
    with pytest.raises(ValueError, match="wanted a float32"):
        engine(x.numpy()[0])
    assert "reference" in str(engine.explain())


def test_an_engine_explains_what_it_does(tmp_path):
    model = sparse(zoo.build("lenet_300_100"), 0.05)
    model.fc3.weight.data.fill_(0.1)
    found = Engine(filed(model, (1, 28, 28), tmp_path), batch=32).explain()
    rows = {row.name: row for row in found.rows}
    assert rows["fc1"].density == pytest.approx(0.05, abs=0.01)
    assert rows["fc3"].density == 1.0
    assert rows["fc1"].microseconds > 0
    assert rows["fc1"].dense_microseconds > 0
    text = str(found)
    assert all(part in text for part in ("fc1", "batch 32", "kernel"))
    assert json.dumps(found.as_dict())


def test_an_engine_needs_no_torch(tmp_path):
    path = filed(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path)
    code = (
        "import sys, numpy as np; from synaptree import Engine; "
        f"y = Engine({str(path)!r})(np.ones((1, 3), np.float32)); "
        "print(y.shape, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "(1, 2) False"


def test_what_is_not_a_number_stays_so(tmp_path):
    engine = Engine(filed(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (3,), tmp_path))
    assert np.isnan(engine(np.full((1, 3), np.nan, np.float32))).all()


def test_the_reference_agrees_with_itself_over_batches(tmp_path):
    net = lower(read_file(filed(sparse(Small(), 0.5), (3, 17, 17), tmp_path)))
    x = np.random.default_rng(0).standard_normal((3, 3, 17, 17), np.float32)
    np.testing.assert_allclose(reference.run(net, x)[1:2], reference.run(net, x[1:2]), rtol=1e-6)
