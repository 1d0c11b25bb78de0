import json
import re
import sys
from dataclasses import replace
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from synaptree.artifact.syn import load, save
from synaptree.cli import bench as command
from synaptree.core.errors import NumericError, OptionError, SynaptreeError
from synaptree.measure import bench as module
from synaptree.measure import contenders as others
from synaptree.measure.bench import OURS, Benchmark, Row, bench, timed
from synaptree.measure.contenders import CONTENDERS, DEFAULT, Model, Runtime, contenders, installed, require_equal
from synaptree.measure.memory import peak_memory
from synaptree.train import zoo

SPARSE = ["torch", "numpy", "scipy", "torch-csr"]  # what needs neither ONNX nor a compiler


class StandIn:
    """An engine in torch."""

    def __init__(self, file, *, threads, batch):
        self.network, self.threads, self.batch = load(file), threads, batch

    def __call__(self, x):
        assert len(x) == self.batch
        with torch.inference_mode():
            return self.network(torch.from_numpy(x)).numpy()

    def run(self, x, out):
        out[:] = self(x)


class Clock:
    """Time that passes only when something says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def lasting(self, *seconds):
        """Return a call that takes each of these in turn, and the last ever after."""
        turns = iter(seconds)

        def call():
            self.now += next(turns, seconds[-1])

        return call


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def file(tmp_path):
    model = zoo.build("mlp", inputs=12, hidden=(7,), classes=3, seed=1)
    model.fc1.weight.data[:, ::2] = 0
    save(model, tmp_path / "m.syn", example_input=torch.rand(2, 1, 3, 4))
    return tmp_path / "m.syn"


def random(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def test_every_contender_at_hand_computes_what_the_network_does(file):
    x = random(5, 1, 3, 4)
    found = contenders(file, x, names=SPARSE)
    assert [one.name for one in found] == SPARSE
    with torch.no_grad():
        wanted = load(file)(torch.from_numpy(x)).numpy()
    for one in found:
        np.testing.assert_allclose(one.call(), wanted, atol=1e-5)


def test_a_contender_reads_its_input_anew_at_every_call(file):
    x = random(2, 1, 3, 4)
    for one in contenders(file, x, names=SPARSE):
        before = one.call().copy()
        x += 1
        assert np.abs(one.call() - before).max() > 1e-3


def test_eight_bits_come_near_and_are_named(file):
    x = random(4, 1, 3, 4)
    [one] = contenders(file, x, names=["torch"], precision="int8")
    assert one.name == "torch int8"
    assert one.note.removeprefix("linear layers, ") in torch.backends.quantized.supported_engines
    off = np.abs(one.call() - Model(file).outputs(x)).max()
    assert 1e-6 < off < 0.1 * np.abs(one.call()).max()


def test_only_linear_layers_are_rounded_and_the_network_stays_as_it_was():
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2, bias=False)), random(2, 1, 4, 4)
    given = Model(model, (1, 4, 4))
    before = given.outputs(x)
    [one] = contenders(given, x, names=["torch"], precision="int8")
    assert 1e-6 < np.abs(one.call() - before).max() < 0.1 * np.abs(before).max()
    np.testing.assert_array_equal(given.outputs(x), before)
    assert isinstance(given.network[2], nn.Linear)


def test_networks_of_convolutions_are_run_by_torch_alone():
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), random(2, 1, 4, 4)
    [one] = contenders(model, x, names=["torch"])
    assert one.note in ("", "channels last")
    with pytest.raises(OptionError, match=r"contender numpy: wanted a chain of linear layers and ReLU, .* conv2d 0"):
        contenders(model, x, names=["numpy"])


def test_a_network_that_begins_with_relu_is_no_chain_of_layers():
    with pytest.raises(OptionError, match="begins with ReLU"):
        contenders(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), random(2, 3), names=["scipy"])


def test_layers_without_bias_and_relus_in_a_row_are_read():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.ReLU(), nn.Linear(4, 2))
    layers = Model(model, (3,)).layers
    assert [(one.weight.shape, one.bias.tolist() == [0] * len(one.bias), one.relu) for one in layers] == [
        ((4, 3), True, True), ((2, 4), False, False),
    ]  # fmt: skip


def test_threads_are_set_for_torch(file):
    contenders(file, random(1, 1, 3, 4), threads=2, names=["torch"])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"names": ["tensorflow"]}, "unknown contender in fp32 'tensorflow'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"names": ["openvino"], "precision": "int8"}, "unknown contender in int8 'openvino'"),
    ],
)
def test_what_nobody_knows_is_named(file, wrong, said):
    with pytest.raises(OptionError, match=said):
        contenders(file, random(1, 1, 3, 4), **wrong)


@pytest.mark.parametrize("x", [random(4).astype(np.float64), random(4), random(4, 6)[:, ::2], random(0, 3)])
def test_other_inputs_are_refused(x):
    with pytest.raises(OptionError, match=r"wanted C-contiguous float32, \(samples, \.\.\.\)"):
        contenders(nn.Linear(3, 2), x, names=["torch"])


def test_networks_of_several_outputs_are_refused(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x), x

    save(Two(), tmp_path / "two.syn", example_input=torch.rand(2, 3))
    with pytest.raises(OptionError, match="one input of float32 and one output"):
        bench(tmp_path / "two.syn", ["torch"], engine=StandIn)


def test_a_missing_library_is_named_with_how_to_get_it(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(SynaptreeError, match=r"numpy needs threadpoolctl: pip install 'synaptree\[bench\]'"):
        contenders(file, random(1, 1, 3, 4), names=["numpy"])


def test_a_runtime_that_fails_is_named_with_its_reason(file, monkeypatch):
    def fails(_task):
        raise RuntimeError("no kernel for this")

    table = {"fp32": {**CONTENDERS["fp32"], "torch": Runtime(fails)}}
    monkeypatch.setattr(others, "CONTENDERS", table)
    with pytest.raises(SynaptreeError, match=r"contender torch does not run this network: .*no kernel for this"):
        contenders(file, random(1, 1, 3, 4), names=["torch"])


@pytest.mark.parametrize(
    ("y", "said"),
    [
        ([[1.0, 2.1]], "up to 0.1, wanted at most 0.02"),
        ([[1.0, float("nan")]], "up to nan"),
        ([1.0, 2.0], r"shape \(2,\)"),
    ],
)
def test_other_outputs_are_refused(y, said):
    with pytest.raises(NumericError, match=f"this computes something else: .*{said}"):
        require_equal([("this", np.array(y))], np.array([[1.0, 2.0]]), 0.01)


def test_a_contender_that_computes_something_else_is_refused(file, monkeypatch):
    def wrong(task):
        return lambda: task.model.outputs(task.x) * 1.001, ""

    monkeypatch.setattr(others, "CONTENDERS", {"fp32": {**CONTENDERS["fp32"], "torch": Runtime(wrong)}})
    with pytest.raises(NumericError, match="torch computes something else"):
        contenders(file, random(3, 1, 3, 4), names=["torch"])


class Idle(StandIn):
    """An engine that leaves the buffer as it was."""

    def run(self, x, out):
        pass


class Rough(StandIn):
    """An engine that is a little off where it makes a new array."""

    def __call__(self, x):
        return 1.001 * super().__call__(x)

    def run(self, x, out):
        out[:] = super().__call__(x)


@pytest.mark.parametrize(("engine", "name"), [(Idle, "engine.run"), (Rough, "engine(x)")])
def test_an_engine_that_computes_something_else_is_refused(file, engine, name):
    with pytest.raises(NumericError, match=re.escape(f"{name} computes something else")):
        bench(file, [], engine=engine, seconds=0.01)


def test_the_table_has_a_row_for_every_contender_in_every_setting(file):
    found = bench(file, ["torch", "numpy"], (1, 3), (1, 2), engine=StandIn, seconds=1e-9, timer=count().__next__)
    assert [(row.threads, row.batch, row.name) for row in found.rows] == [
        (threads, batch, name) for threads in (1, 2) for batch in (1, 3) for name in (*OURS, "torch", "numpy")
    ]
    assert (found.file, found.precision) == ("m.syn", "fp32")
    assert found.versions["torch"] == version("torch")
    assert all(row.rounds == 5 and row.memory is None for row in found.rows)


def test_torch_has_its_own_number_of_threads_again_afterwards(file):
    torch.set_num_threads(1)
    bench(file, ["torch"], (1,), (2,), engine=StandIn, seconds=1e-9, timer=count().__next__)
    assert torch.get_num_threads() == 1


def test_medians_quartiles_and_ratios_are_those_of_the_numbers_given():
    clock = Clock()
    # the first two calls are the warm-up and the count of calls; then each measurement has one call before it
    turns = {
        "engine.run": [9, 9, 9, 1, 9, 2, 9, 3, 9, 4, 9, 5],
        "slow": [9, 9, 9, 30, 9, 30, 9, 30, 9, 30, 9, 30],
        "quick": [9, 9, 9, 4, 9, 4, 9, 6, 9, 6, 9, 6],
    }
    runs = [others.Contender(name, clock.lasting(*seconds), f"as {name}") for name, seconds in turns.items()]
    ours, slow, quick = module._rows(runs, 8, 1, 1e-9, clock)
    assert (ours.seconds, ours.low, ours.high, ours.calls, ours.rounds) == (3, 2, 4, 1, 5)
    assert (slow.seconds, slow.note, slow.batch, slow.threads) == (30, "as slow", 8, 1)
    assert (quick.times, quick.times_low, quick.times_high) == (1, 1, 1)
    # quick / engine.run in each round: 4, 2, 2, 1.5, 1.2
    assert (ours.times, ours.times_low, ours.times_high) == (2, 1.5, 2)
    assert slow.times == pytest.approx(0.2)


def test_a_measurement_is_made_of_many_short_calls():
    clock = Clock()
    timings, calls = timed({"short": clock.lasting(2e-5), "long": clock.lasting(0.25)}, 1e-9, clock)
    assert calls == {"short": 64, "long": 1}
    np.testing.assert_allclose(timings.seconds["short"], [2e-5] * 5, rtol=1e-6)
    assert timings.seconds["long"] == [0.25] * 5


def test_rounds_go_on_until_the_time_is_over_and_begin_with_the_next_one():
    clock, order = Clock(), []

    def run(name):
        def call():
            order.append(name)
            clock.now += 1

        return call

    timings, _ = timed({name: run(name) for name in "abc"}, 40, clock)
    assert len(timings.seconds["a"]) == 7  # of six seconds each
    assert [order[6 + 6 * n :: 2][:3] for n in range(3)] == [list("abc"), list("bca"), list("cab")]


def test_a_clock_that_stands_still_ends_all_the_same(monkeypatch):
    monkeypatch.setattr(module, "MOST_CALLS", 4)
    assert module._calls(lambda: None, lambda: 0.0) == 4


@pytest.mark.parametrize("wrong", [{"batches": ()}, {"batches": (0,)}, {"threads": (-1,)}, {"seconds": 0.0}])
def test_numbers_out_of_range_are_refused(file, wrong):
    with pytest.raises(OptionError, match="above 0"):
        bench(file, [], engine=StandIn, **wrong)


def test_with_nothing_to_compare_with_the_engine_is_its_own_measure(file):
    found = bench(file, [], (1,), engine=StandIn, seconds=1e-9, timer=count().__next__)
    assert [row.name for row in found.rows] == list(OURS)
    assert found.best(1).name in OURS


def test_an_engine_that_was_not_built_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "synaptree.runtime.engine", None)
    with pytest.raises(SynaptreeError, match="the native engine cannot be imported"):
        bench(file, [])


def test_a_network_that_the_engine_cannot_run_is_named_with_its_file(file):
    def refuses(*_file, **_how):
        raise ValueError("no such operator")

    with pytest.raises(SynaptreeError, match=r"m\.syn: no such operator"):
        bench(file, [], engine=refuses)


def test_the_instruction_set_of_the_engine_stands_beside_it(file):
    class Wide(StandIn):
        isa = "avx512"

    found = bench(file, [], (1,), engine=Wide, seconds=1e-9, timer=count().__next__)
    assert [row.note for row in found.rows] == ["avx512"] * 2


def test_files_of_eight_bits_stand_beside_runtimes_of_eight_bits(file, tmp_path):
    save(load(file), tmp_path / "small.syn", values="int8", example_input=torch.rand(2, 1, 3, 4))

    class Rounding(StandIn):
        def __call__(self, x):
            return 1.01 * super().__call__(x)

    how = {"batches": (1,), "seconds": 1e-9, "timer": count().__next__}
    found = bench(tmp_path / "small.syn", ["torch"], engine=Rounding, **how)
    assert (found.precision, found.rows[-1].name) == ("int8", "torch int8")
    found = bench(tmp_path / "small.syn", ["torch"], engine=Rounding, precision="fp32", **how)
    assert (found.precision, found.rows[-1].name) == ("fp32", "torch")
    with pytest.raises(NumericError, match="engine"):
        bench(file, ["torch"], engine=Rounding, **how)


def made(name, batch, seconds, **more):
    return Row(name, batch, 1, seconds, seconds, seconds, 1.0, 1.0, 1.0, 1, 5, **more)


def test_the_best_is_the_quickest_of_the_others():
    rows = (made("engine.run", 1, 1.0), made("a", 1, 3.0), made("b", 1, 2.0), made("a", 8, 1.0))
    found = Benchmark("m.syn", "fp32", rows, {})
    assert (found.best(1).name, found.best(8).name, found.row("a", 1).seconds) == ("b", "a", 3.0)
    with pytest.raises(OptionError, match="no row of b at batch 8 and 1 threads"):
        found.row("b", 8)


def test_numbers_come_back_out_of_json():
    rows = (made("engine.run", 1, 1.5e-6, note="n", memory=7), made("a", 1, 3e-6))
    said = Benchmark("m.syn", "int8", rows, {"torch": "2"}).as_dict()
    assert json.loads(json.dumps(said)) == said
    assert Benchmark(**{**said, "rows": tuple(Row(**row) for row in said["rows"])}).as_dict() == said


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(module, "_engine", lambda: StandIn)
    monkeypatch.setattr(module, "LEAST_SECONDS", 1e-9)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.usefixtures("stand_in")
def test_the_command_prints_a_table_and_writes_json(file, capsys, tmp_path):
    out = tmp_path / "new" / "b.json"
    command.bench_file(file, against="torch,numpy", batch="1,2", threads="1", seconds=1e-9, out=out)
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert [line[2] for line in lines if line[:2] == ["2", "1"]] == [*OURS, "torch", "numpy"]
    said = json.loads(out.read_text())
    assert {"cpu", "cores"} <= said["hardware"].keys()
    assert said["hardware"]["cpu"] in shown
    assert f"torch {version('torch')}" in shown
    assert {"python", "torch", "numpy"} <= said["versions"].keys()
    assert len(said["rows"]) == 8
    assert "threads" not in said


@pytest.mark.usefixtures("stand_in")
def test_without_names_the_usual_ones_are_meant(file, monkeypatch, capsys):
    monkeypatch.setattr(module, "installed", lambda _: ("torch",))
    command.bench_file(file, batch="1", seconds=1e-9)
    assert " torch " in capsys.readouterr().out


def test_memory_stands_in_the_table_where_it_was_measured():
    found = Benchmark("m.syn", "fp32", (made("engine.run", 1, 1e-6, memory=2_500_000), made("a", 1, 2e-6)), {})
    assert [str(column.header) for column in command.table(found).columns][-2:] == ["MB", "set up"]
    assert next(iter(command.table(found).columns[-2].cells)).plain == "2.5"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"batch": "1,x"}, "--batch 1,x"), ({"threads": "0"}, "--threads 0"), ({"precision": "fp8"}, "fp32 or int8")],
)
def test_the_command_names_options_that_say_nothing(file, wrong, said):
    with pytest.raises(OptionError, match=said):
        command.bench_file(file, **wrong)


@pytest.mark.slow
def test_the_memory_of_a_contender_is_that_of_its_weights_at_least(tmp_path):
    model = nn.Sequential(nn.Linear(1500, 2000))
    save(model, tmp_path / "m.syn", example_input=torch.rand(2, 1500))
    grown = peak_memory("torch", tmp_path / "m.syn", Model(tmp_path / "m.syn"), batch=2)
    assert 12e6 < grown < 400e6


@pytest.mark.slow
def test_a_process_that_fails_says_why(file):
    model = Model(file)
    file.unlink()
    model._shape = (1, 3, 4)
    with pytest.raises(SynaptreeError, match=r"the memory of torch could not be measured: .*m\.syn"):
        peak_memory("torch", file, model)


@pytest.fixture
def benchmark():
    """Return benchmarks/engine.py."""
    found = spec_from_file_location("engine_benchmark", Path(__file__).parents[1] / "benchmarks" / "engine.py")
    assert found is not None
    module = module_from_spec(found)
    sys.modules[found.name] = module  # where its dataclasses look for their module
    found.loader.exec_module(module)
    yield module
    del sys.modules[found.name]


@pytest.mark.usefixtures("stand_in")
def test_the_benchmark_sets_each_row_beside_its_goal(benchmark, monkeypatch, capsys, tmp_path):
    options = (("inputs", 40), ("hidden", (30,)))
    case = benchmark.Case("small", "mlp", 0.2, {1: 1e-9, 3: 1e9}, {3: 1e-9}, last=0.5, options=options)
    monkeypatch.setattr(benchmark, "CASES", [case])
    monkeypatch.setattr(benchmark, "LINEAR", ("torch", "numpy"))
    words = ["--only", "small", "--seconds", "1e-9", "--json", str(tmp_path / "b.json")]
    monkeypatch.setattr(sys, "argv", ["engine.py", *words])
    assert benchmark.main() == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [(row["batch"], row["call"], row["goal"]) for row in rows] == [
        (1, "engine.run", 1e-9), (1, "engine(x)", None), (3, "engine.run", 1e9), (3, "engine(x)", 1e-9),
    ]  # fmt: skip
    assert all(row["theirs"] == min(row["all"][name] for name in ("torch", "numpy")) for row in rows)
    marks = [line.count("✓") for line in capsys.readouterr().out.splitlines() if "│ small" in line]
    assert marks == [1, 0, 0, 1]


def test_networks_of_the_benchmark_have_the_density_asked_for_and_finite_outputs(benchmark):
    for case in benchmark.CASES:
        if case.network == "vgg16":
            continue  # takes seconds, and differs in nothing but its size
        model, _ = benchmark.drawn(replace(case, options=tuple((k, 200 if v else v) for k, v in case.options)))
        weights = [p for p in model.parameters() if p.dim() > 1]
        shares = [float((p != 0).float().mean()) for p in weights]
        assert shares[0] == pytest.approx(case.density, abs=0.03)
        assert shares[-1] == pytest.approx(case.last or case.density, abs=0.06)
        shape = benchmark.shape_of(case) if not case.options else (200,)
        assert model(torch.randn(2, *shape)).isfinite().all()


def test_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(others, "find_spec", lambda name: None if name.startswith("o") else object())
    assert installed("fp32") == ("torch",)
    assert set(installed("fp32")) < set(DEFAULT["fp32"])
