import sys
import tracemalloc
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from synaptree.artifact.syn import load
from synaptree.core.errors import CheckpointError
from synaptree.format import FormatError, decode, encode, read_file

FOLDER = Path(__file__).parents[2] / "attacks"
SPEC = spec_from_file_location("attacks", FOLDER / "make.py")
make = module_from_spec(SPEC)
SPEC.loader.exec_module(make)
REFUSED = [name for name, attack in make.ATTACKS.items() if attack.refused]
LOADED = [name for name, attack in make.ATTACKS.items() if not attack.refused]
RUNNING = ("compile", "exec", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pickle.find_class",
           "subprocess.Popen")  # fmt: skip
seen = []


def note(event, _):
    if event in RUNNING:
        seen.append(event)


@pytest.fixture(scope="module", autouse=True)
def _warm():
    load(FOLDER / "honest.syn")  # what is imported at the first call runs code of its own
    sys.addaudithook(note)  # stays for good


def test_the_folder_holds_what_its_program_writes_and_the_table_is_of_today():
    assert {path.stem: path.read_bytes() for path in FOLDER.glob("*.syn")} == {
        name: attack.data for name, attack in make.ATTACKS.items()
    }
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == make.table()
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 60_000


def test_what_runs_is_seen():
    seen.clear()
    exec("1 + 1")
    assert "exec" in seen


@pytest.mark.parametrize("name", REFUSED)
def test_an_attack_is_refused_for_what_its_table_says_and_nothing_runs(name):
    seen.clear()
    with pytest.raises(CheckpointError) as caught:
        load(FOLDER / f"{name}.syn")
    assert seen == []
    assert str(caught.value).startswith(f"{FOLDER / name}.syn: ")
    assert make.ATTACKS[name].refused in str(caught.value)


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "at-odds"])
def test_refusing_takes_little_memory(name):
    data = make.ATTACKS[name].data
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", LOADED)
def test_what_looks_dangerous_stays_data(name):
    seen.clear()
    network = load(FOLDER / f"{name}.syn")
    assert seen == []
    assert network.training is False
    x = torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(network(x), load(FOLDER / "honest.syn")(x), rtol=0, atol=0)
    file = read_file(FOLDER / f"{name}.syn")
    assert encode(file) == make.ATTACKS[name].data
    texts = [*file.about, *file.about.values(), *file.topology["notes"]]
    assert texts.count(make.CODE) == {"code-about": 2, "code-topology": 1}.get(name, 0)
