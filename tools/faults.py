"""Kill real runs at random moments, let them go on, and compare what they leave with a run that was never killed.

Each run is a process that carries out `synaptree run`, killed by SIGKILL several times. They are forked from one that
has imported everything, so that a life costs no three seconds of imports.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

import accelerate  # noqa: F401 - what runs would import, once for all
import matplotlib.pyplot  # noqa: F401
import sklearn.datasets
import sklearn.metrics

from synaptree.cli.commands import app
from synaptree.cli.run import carry_out  # noqa: F401
from synaptree.core.errors import CheckpointError
from synaptree.train.checkpoint import BEFORE, CHECKPOINT, newest

RECIPE = Path(__file__).with_suffix(".toml")
WALL_TIMES = ("started", "seconds", "seconds_per_epoch")
CHECKOUT = "commit"  # which another hand may change meanwhile
EARLY = 0.15  # of all lives end while the process still starts
START = 0.5  # seconds that takes, about
KILLS_OF_A_RUN = 12  # at most


def start(out: Path, every: float) -> int:
    """Begin or go on with a run in a process of its own; return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        words = ["run", str(RECIPE), "--out", str(out), "--checkpoint-every", str(every)]
        sys.argv = ["synaptree", *words]
        app(words)
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


def finish(child: int) -> None:
    """Wait for a process that nobody kills."""
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a run that was left alone ended with status {os.waitstatus_to_exitcode(status)}")


def live(child: int, out: Path, seconds: float, early: bool) -> bool:
    """Kill a process so many seconds after it went on, or started; return whether it had not ended before."""
    before, end = signs(out), time.monotonic() + seconds if early else None
    while end is None or time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        if end is None and signs(out) != before:
            end = time.monotonic() + seconds
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def signs(out: Path) -> list[int]:
    """Return what changes when a run writes a checkpoint."""
    return [inode(path) for path in sorted(out.glob(f"*/{CHECKPOINT}"))]


def inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:  # it is being replaced
        return 0


def left(out: Path) -> dict[str, Any]:
    """Return all that a run left but the picture: the bytes of networks, and results without wall times."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and "picture.png" not in path.name):
        found[str(path.relative_to(out))] = _timeless(path) if path.suffix == ".json" else path.read_bytes()
    return found


def _timeless(path: Path) -> dict[str, Any]:
    result = {key: value for key, value in json.loads(path.read_text()).items() if key not in (*WALL_TIMES, CHECKOUT)}
    for epoch in result["epochs"]:
        del epoch["seconds"]
    return result


def struck(out: Path) -> list[str]:
    """Say what a kill struck: the stage at work, and whether a file was being written."""
    found = []
    for folder in (path for path in out.glob("*") if path.is_dir()):
        partial = [path.name for path in folder.glob(".*")]
        if any(CHECKPOINT in name for name in partial):
            found.append("while a checkpoint was written")
        elif partial:
            found.append("while another file was written")
        elif (folder / BEFORE).exists() and not (folder / CHECKPOINT).exists():
            found.append("between the moves of two checkpoints")
        try:
            checkpoint, damage = newest(folder / CHECKPOINT)
        except CheckpointError as error:
            raise SystemExit(f"no whole checkpoint after a kill: {error}") from None
        if damage:
            found.append("with a damaged checkpoint left")
        if checkpoint is not None:
            network = checkpoint.content["network"]
            found.append(f"round {network['round']}, {'training' if network['within'] else 'between trainings'}")
    return found or ["before anything was begun"]


def differing(whole: dict[str, Any], parts: dict[str, Any]) -> list[str]:
    """Return the names of files that are not the same in both, those of results with the keys that differ."""
    names = [name for name in sorted({*whole, *parts}) if whole.get(name) != parts.get(name)]
    return [f"{name}{_keys(whole.get(name), parts.get(name))}" for name in names]


def _keys(one: Any, other: Any) -> str:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return ""
    return f" ({', '.join(key for key in {*one, *other} if one.get(key) != other.get(key))})"


def kill_at_random(folder: Path, kills: int, seed: int, every: float) -> int:
    """Return how many of the kills were survived without a trace."""
    rng, where, survived, done = random.Random(seed), Counter[str](), 0, 0
    begun = time.monotonic()
    finish(start(folder / "whole", every))
    seconds = time.monotonic() - begun
    whole = left(folder / "whole")
    print(f"never killed: {seconds:.1f} s, {len(whole)} files")
    for number in range(1, kills + 1):
        out, of_this = folder / f"run{number:03d}", 0
        moments = sorted(rng.uniform(0, seconds) for _ in range(min(kills - done, rng.randint(1, KILLS_OF_A_RUN))))
        for before, moment in zip([0.0, *moments], moments, strict=False):
            early = rng.random() < EARLY
            if not live(start(out, every), out, rng.uniform(0, START) if early else moment - before, early):
                break
            of_this += 1
            where.update(struck(out))
        finish(start(out, every))
        wrong, done = differing(whole, left(out)), done + of_this
        survived += 0 if wrong else of_this
        print(f"run {number}: killed {of_this} times, {'differs in ' + ', '.join(wrong) if wrong else 'the same'}")
        if done >= kills:
            break
    print(*(f"{count:5d}  {what}" for what, count in sorted(where.items())), sep="\n")
    print(f"{survived} of {done} kills left no trace ({time.monotonic() - begun:.0f} s, seed {seed})")
    return done - survived


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=0.05, help="seconds between checkpoints")
    options = parser.parse_args(words)
    sklearn.datasets.load_digits()
    with tempfile.TemporaryDirectory() as folder:
        return int(kill_at_random(Path(folder), options.kills, options.seed, options.every) > 0)


if __name__ == "__main__":
    sys.exit(main())
