"""A recipe in several processes: as in one, up to rounding, and it survives that one of them is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synaptree.results import read

RECIPE = """
about = "two processes"
seconds_per_epoch = "0.1"
model = "mlp"
data = "digits"
method = "dynamic_synaptic"
seeds = [0]
threads = 1
model_options = { inputs = 64, hidden = [20] }
method_options = { every = 10, patience = 2, alpha = 0.6, first = 20 }
[dense]
epochs = 12
batch = 52  # the last batch has one image, fewer than processes
"""

pytestmark = pytest.mark.slow


def torchrun(processes, folder, *options):
    command = [sys.executable, "-m", "synaptree", "run", "two.toml", "--out", "out", *options]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    (folder / "two.toml").write_text(RECIPE)
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def one_of(process):
    """Return the number of a process that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[-1])


def wait_for(folder, pattern):
    for _ in range(1200):
        if found := [*folder.glob(pattern)]:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {pattern} in {folder}")


def test_a_job_whose_process_was_killed_says_so_and_goes_on_with_another_number_of_them(tmp_path):
    job = torchrun(2, tmp_path, "--checkpoint-every", "0")
    wait_for(tmp_path, "out/*/round_00.safetensors")  # the dense network is trained, the method at work
    os.kill(one_of(job), signal.SIGKILL)
    code, _, said = ended(job)
    assert code != 0
    assert "SIGKILL" in said or "exitcode  : -9" in said
    code, out, said = ended(torchrun(1, tmp_path, "--resume"))
    assert code == 0, said
    (result,) = read(tmp_path.glob("out/*/*.json"))
    assert result.status == "done"
    assert any("processes was 2, is 1" in note for note in result.notes)
    assert result.rounds[-1].density < 1
    assert "goes on from update" in out


def test_sigterm_to_a_job_leaves_a_checkpoint_that_two_processes_go_on_from(tmp_path):
    job = torchrun(2, tmp_path)
    wait_for(tmp_path, "out/*/round_00.safetensors")
    job.send_signal(signal.SIGTERM)
    code, _, said = ended(job)
    assert code != 0
    assert "To go on" in said
    assert wait_for(tmp_path, "out/*/checkpoint*")
    code, _, said = ended(torchrun(2, tmp_path, "--resume"))
    assert code == 0, said
    (result,) = read(tmp_path.glob("out/*/*.json"))
    assert result.hardware["processes"] == 2
    assert result.notes == []
    code, _, said = ended(torchrun(1, tmp_path, "--out", "alone"))
    assert code == 0, said
    (alone,) = read(tmp_path.glob("alone/*/*.json"))
    assert [epoch.loss for epoch in result.epochs] == pytest.approx([epoch.loss for epoch in alone.epochs], rel=1e-2)
    assert result.rounds[-1].density == pytest.approx(alone.rounds[-1].density, rel=0.05)
