from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from synaptree.format import OPERATORS, File, FormatError, decode, encode
from synaptree.format.coding import MASK_CODINGS, mask_coding
from synaptree.format.dtypes import DTYPES
from synaptree.format.header import VALUES

SPEC = spec_from_file_location("fuzz", Path(__file__).parents[2] / "tools" / "fuzz.py")
fuzz = module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)
SEEDS = fuzz.seeds()


def test_a_thousand_damaged_files_are_refused_or_read_exactly(tmp_path):
    report = fuzz.run(1000, seed=0, keep=tmp_path)
    assert report.findings == [*tmp_path.iterdir()] == []
    assert report.counts.total() == 1000
    assert {*report.kinds} == {change.__name__ for change in fuzz.KINDS}
    for kind in report.kinds:
        assert report.counts[kind, "refused"] > 0, kind
    for kind in ("change_header", "change_section", "change_program", "change_names", "change_topology"):
        assert report.counts[kind, "built"] > 0, kind  # damage that is not seen tries what comes behind
    for kind in ("change_bytes", "cut", "splice", "make_up"):
        assert report.counts[kind, "read"] + report.counts[kind, "built"] == 0, kind


def mask_codings(seed):
    left = iter(seed.sections)
    for line in seed.header.tensors:
        if line.mask_shape is not None:
            yield mask_coding(next(left))
        next(left)


def test_the_seeds_have_between_them_all_that_the_format_has():
    lines = [line for seed in SEEDS for line in seed.header.tensors]
    assert {line.dtype for line in lines} == {*DTYPES} - {"float16"}
    assert {line.values for line in lines} == {*VALUES}
    assert {coding for seed in SEEDS for coding in mask_codings(seed)} == {*MASK_CODINGS}
    steps = [step for seed in SEEDS if seed.header.program for step in seed.header.program.steps]
    assert {step.op for step in steps} == {*OPERATORS}
    for part in ("program", "aliases", "ranges", "topology", "arrays", "about"):
        assert any(getattr(seed.header, part) for seed in SEEDS), part


def test_a_seed_in_parts_is_put_together_as_it_was():
    for seed in SEEDS:
        assert encode(decode(seed.data)) == seed.data
        assert fuzz.with_header(seed.header, seed.sections) == seed.data
        assert fuzz.with_head(seed.head, seed.sections) == seed.data
        assert fuzz.sized(seed.header, seed.sections) == seed.header


def test_the_same_seed_and_number_give_the_same_input():
    made, again = [fuzz.damaged(SEEDS, 3, number) for number in range(50)], fuzz.seeds()
    assert made == [fuzz.damaged(again, 3, number) for number in range(50)]
    assert made != [fuzz.damaged(SEEDS, 4, number) for number in range(50)]
    assert all(data != seed.data for _, data in made for seed in SEEDS)


def endless(*_, **__):
    while True:
        pass


def greedy(data, **_):
    np.ones(fuzz.BESIDE + 1000 * len(data), np.uint8)
    raise FormatError("refused, but late")


def wrong(*_, **__):
    return {}["key"]


def other(*_, **__):
    return File()


@pytest.mark.parametrize(("decode", "error"), [
    (endless, "TimeoutError"), (greedy, "MemoryError"), (wrong, "KeyError"), (other, "AssertionError"),
])  # fmt: skip
def test_whatever_else_happens_is_found_kept_and_fails(decode, error, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "decode", decode)
    monkeypatch.setattr(fuzz, "SECONDS", 0.01)
    monkeypatch.setattr(fuzz.resource, "setrlimit", lambda *_: None)  # tests go on after it
    monkeypatch.setattr("sys.argv", ["fuzz", "--inputs", "1", "--seed", "2", "--keep", str(tmp_path)])
    kind, data = fuzz.damaged(SEEDS, 2, 0)
    assert fuzz.main() == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {f"2-0-{kind}-{error}.syn": data}
    assert "1 findings" in capsys.readouterr().out
