"""Processes started by torchrun: the same network as one process, also after one of them died and others took over."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from integrate.own_loop import TOY, developed, outcome
from torch import distributed

from synaptree import attach, build
from synaptree.core.errors import CheckpointError
from synaptree.core.ranks import whole
from synaptree.integrate.sharded import load_sharded, save_sharded, sharded_exists
from synaptree.testing.together import in_processes, sharded

SCRIPT = Path(__file__).with_name("own_loop.py")

PAGE = Path(__file__).parents[2] / "docs" / "processes.md"


def torchrun(processes, script, *arguments, cwd=None):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        str(script), *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=180)


def results(folder, processes):
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "first", "then"), [
    ("fsdp", "dynamic_synaptic", 2, 4), ("ddp", "rigl", 2, 1),
])  # fmt: skip
def test_a_job_that_lost_a_process_goes_on_with_another_number_of_them(tmp_path, kind, name, first, then):
    alone = outcome(developed(TOY.model(), TOY.inputs, TOY.targets, name, 8))
    assert alone["died"] > 0
    died = torchrun(first, SCRIPT, kind, name, tmp_path, 8, 5)
    assert died.returncode != 0
    assert "SIGKILL" in died.stderr or "exitcode  : -9" in died.stderr
    assert not (tmp_path / "rank0.json").exists()
    resumed = torchrun(then, SCRIPT, kind, name, tmp_path, 8)
    assert resumed.returncode == 0, resumed.stderr
    assert results(tmp_path, then) == [alone] * then
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["latest"]


def _refuses(_, folder):
    def attached(name, **options):
        model = sharded(TOY.model())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        return model, optimizer, attach(model, optimizer, build(name, **options))

    first, second = attached("set", density=0.5), attached("rigl", density=0.5)
    with pytest.raises(CheckpointError, match="holds no complete sharded checkpoint"):
        load_sharded(folder, *first)
    save_sharded(folder, *first)
    assert first[-1].topology.step == 0
    with pytest.raises(CheckpointError, match=r"written under the method set.*attached is rigl"):
        load_sharded(folder, *second)
    load_sharded(folder, *first)
    save_sharded(f"{folder}/", *first)  # a slash at the end is the same folder
    assert sharded_exists(folder)
    distributed.barrier()
    if distributed.get_rank() == 0:  # a kill after the old one made way and before the new one took its place
        folder.replace(folder.with_name("latest.before"))
    distributed.barrier()
    assert sharded_exists(folder)
    load_sharded(folder, *first)
    save_sharded(folder, *first)
    assert not folder.with_name("latest.partial").exists()
    for part in folder.glob("*.distcp"):
        part.write_bytes(b"damaged")
    weights = [whole(parameter.detach()) for parameter in first[0].parameters()]
    distributed.barrier()
    with pytest.raises(CheckpointError, match="cannot be read into"):
        load_sharded(folder, *first)
    again = [whole(parameter.detach()) for parameter in first[0].parameters()]
    assert all(torch.equal(one, other) for one, other in zip(weights, again, strict=True))
    save_sharded(folder, *first)
    (folder / "synaptree.safetensors").unlink(missing_ok=True)
    distributed.barrier()
    with pytest.raises(CheckpointError, match="the checkpoint holds no masks"):
        load_sharded(folder, *first)


def test_a_folder_without_a_checkpoint_or_of_another_method_or_without_masks_is_refused(tmp_path):
    in_processes(2, _refuses, tmp_path / "latest")


@pytest.mark.slow
def test_the_loop_in_the_documentation_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "loop.py").write_text(code)
    done = torchrun(2, tmp_path / "loop.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0.20"
