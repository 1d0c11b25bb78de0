"""Sweeps through Ray Tune: each run is a task of the cluster, and goes on elsewhere where its worker dies."""

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from synaptree.core.errors import CheckpointError, OptionError, SynaptreeError
from synaptree.experiment import Run
from synaptree.recipe import load_recipe
from synaptree.results import Result, write
from synaptree.sweep.choice import Candidate, candidates
from synaptree.sweep.trials import Trial, write_recipe
from synaptree.train.data import load
from synaptree.train.loop import Interrupted

__all__ = ["Outcome", "sweep"]

RESTARTS: Final = 5
"""How often a run goes on after its worker died, before it counts as failed."""

REACHED_WITHIN = 5.0  # seconds, in which the head of a cluster answers

# Ray speaks gRPC, so HTTP/2, whose server answers the hello of a client with a frame of settings, which is type 4
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = bytes([4])

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the other output prints a box even when asked for nothing
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # who calls decides what a signal does
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass
class Outcome:
    """What a sweep left.

    Attributes:
        trials: all of them.
        results: name of a trial -> the results of its runs, where all of them are done.
        failed: name of a trial -> why one of its runs is not.
    """

    trials: list[Trial]
    results: dict[str, list[Result]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def candidates(self) -> list[Candidate]:
        """The networks to choose from: every round of every trial that is done."""
        return [found for t in self.trials if t.name in self.results for found in candidates(t, self.results[t.name])]


@dataclass(frozen=True)
class Job:
    """One run of one trial: a recipe with one seed."""

    trial: Trial
    run: Run

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.trial.name}, seed {self.run.seed}"


def sweep(
    trials: Sequence[Trial], out: Path, *, data: Path | None = None, seeds: Sequence[int] | None = None,
    parallel: int | None = None, address: str | None = None, every: float = 60.0, record: Path | None = None,
    stop: Callable[[], bool] = lambda: False, say: Callable[[str], None] = lambda line: None,  # noqa: ARG005
    prepare: Callable[[], None] = lambda: None,
) -> Outcome:  # fmt: skip
    """Run every trial that is not done, some at a time, and return what all of them left.

    A trial is its recipe's method, without controls, in a folder under `out` keyed by its configuration, so that
    what is done is never repeated. A run whose worker dies goes on from its last checkpoint there.

    Args:
        trials: what to run; the recipe of each is written to `out/trials`.
        out: folder for the runs' files; all nodes of a cluster see it under the same path.
        data: where the data sets lie, on all nodes.
        seeds: in place of each recipe's own.
        parallel: runs at a time; by default as many as there are CPUs for.
        address: HOST:PORT of a running cluster this machine belongs to, or "auto" to find it; None starts Ray here.
        every: seconds between a run's checkpoints, at most that much is lost.
        record: folder that gets a copy of each finished run's result file.
        stop: asked all the time; true ends the sweep.
        say: told, line by line, what happens.
        prepare: called on a worker before each run, as to import methods of one's own.

    Raises:
        OptionError: Ray is not installed, the cluster cannot be reached, or none of its nodes can run a trial.
        DataError: the data is missing.
        Interrupted: `stop` said so; what is done and each run's last checkpoint stay.
    """
    out = out.absolute()
    files = {trial.name: write_recipe(trial, out / "trials") for trial in trials}
    jobs = [Job(trial, Run(trial.recipe, seed, None, out)) for trial in trials for seed in _seeds(trial, seeds)]
    left = [job for job in jobs if job.run.done() is None]
    if len(left) < len(jobs):
        say(f"{len(jobs) - len(left)} of {len(jobs)} runs are done already")
    reasons: dict[str, str] = {}
    if left:
        root = Path(data or os.environ.get("SYNAPTREE_DATA") or "data").absolute()
        for name, validation in {(job.run.recipe.data, job.run.recipe.validation): None for job in left}:
            load(name, root, validation=validation)  # what is missing is missing before anything starts
        tasks = [_task(job, files[job.trial.name], out, root, every) | {"prepare": prepare} for job in left]
        with _ray(address, parallel, max(task["threads"] for task in tasks)):
            reasons = _tune(tasks, parallel, stop, say)
    for job in jobs:
        if record is not None and (result := job.run.done()):
            write(result, record)
    if left and stop():
        raise Interrupted
    return _outcome(trials, jobs, reasons)


def _seeds(trial: Trial, seeds: Sequence[int] | None) -> list[int]:
    return list(dict.fromkeys(trial.recipe.seeds if seeds is None else seeds))


def _task(job: Job, file: Path, out: Path, data: Path, every: float) -> dict[str, Any]:
    """Return what a worker needs to know of a run."""
    return {
        "title": job.title, "recipe": str(file), "hash": job.run.hash, "seed": job.run.seed, "out": str(out),
        "data": str(data), "every": every, "folder": str(Path.cwd()), "threads": job.run.recipe.threads or 1,
    }  # fmt: skip


def _outcome(trials: Sequence[Trial], jobs: Sequence[Job], reasons: Mapping[str, str]) -> Outcome:
    outcome = Outcome(list(trials))
    for trial in trials:
        runs = [job for job in jobs if job.trial is trial]
        results = [(job, job.run.done()) for job in runs]
        if missing := [job for job, result in results if result is None]:
            outcome.failed[trial.name] = reasons.get(missing[0].title, "its worker left no word")
        else:
            outcome.results[trial.name] = [result for _, result in results if result is not None]
    return outcome


def develop(config: Mapping[str, Any]) -> None:
    """Carry out one run on a worker of the cluster; report what it says, and how it ended."""
    from ray import tune

    task = config["task"]
    try:
        run = _run(task)
        if run.done() is None:
            _finish(run, task, lambda line: tune.report({"says": line}))
        result = run.done()
        assert result is not None
    except SynaptreeError as error:  # it would fail again on any worker
        tune.report({"failed": str(error)})
    else:
        last = result.rounds[-1]
        seconds = sum(epoch.seconds for epoch in result.epochs)
        tune.report({"validation": last.validation_accuracy, "density": last.density, "seconds": seconds})


def _finish(run: Run, task: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Carry a run out, from its checkpoint if it has one; a checkpoint of no use costs the run its beginning only."""
    begun, data = run.checkpoint.exists(), Path(task["data"])
    stages = run.run(data, resume=True, say=say, every=task["every"])
    try:
        next(stages)
        if begun:
            say(f"goes on from update {run.network.step}")
    except CheckpointError as error:
        if not begun:
            raise
        say(f"starts over: {error}")
        run.forget()
        stages = run.run(data, say=say, every=task["every"])
    for _ in stages:
        pass


def _run(task: Mapping[str, Any]) -> Run:
    file = Path(task["recipe"])
    if not file.is_file():
        raise OptionError(
            f"{file} is not to be seen on node {socket.gethostname()}: --out must be a folder that all nodes share, "
            "under the same path"
        )
    with contextlib.suppress(OSError):  # a folder of images may be given relative to where the sweep was started
        os.chdir(task["folder"])
    torch.set_num_threads(task["threads"])
    task["prepare"]()
    run = Run(load_recipe(file), task["seed"], None, Path(task["out"]))
    if run.hash != task["hash"]:
        raise OptionError(f"{file} holds another recipe on node {socket.gethostname()}; is --out shared by all nodes?")
    return run


def _tune(
    tasks: Sequence[Mapping[str, Any]], parallel: int | None, stop: Callable[[], bool], say: Callable[[str], None]
) -> dict[str, str]:  # fmt: skip
    """Let Ray Tune carry the tasks out; return title -> why it failed."""
    from ray import tune

    reasons: dict[str, str] = {}

    def resources(config: Mapping[str, Any]) -> Any:
        return tune.PlacementGroupFactory([{"CPU": config["task"]["threads"]}])

    # what Ray keeps of a sweep is of no use later: the runs' own folders say what is done
    with tempfile.TemporaryDirectory(prefix="synaptree-sweep-") as folder:
        tune.Tuner(
            tune.with_resources(develop, resources),
            param_space={"task": tune.grid_search(list(tasks))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=parallel),
            run_config=tune.RunConfig(
                name="sweep", storage_path=folder, verbose=0, stop=_stopper(stop),
                callbacks=[_teller(say, len(tasks), reasons)],
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
            ),
        ).fit()  # fmt: skip
    return reasons


class _Here:
    """What lives in this process alone: Ray writes down what it was given, to be restored, and need not have this."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Here, ()

    def __deepcopy__(self, memo: Any) -> "_Here":
        return self


def _stopper(stop: Callable[[], bool]) -> Any:
    from ray import tune

    stopper: Any = tune.Stopper

    class Asked(_Here, stopper):
        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:  # noqa: ARG002
            return False

        def stop_all(self) -> bool:
            return stop()

    return Asked()


def _teller(say: Callable[[str], None], total: int, reasons: dict[str, str]) -> Any:
    """Return what Ray Tune tells how runs fare: it says so in lines, and notes why runs fail."""
    from ray import tune

    callback: Any = tune.Callback

    class Teller(_Here, callback):
        ended = 0

        def on_trial_result(self, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
            if "says" in result:
                say(f"{_title(trial)}: {result['says']}")

        def on_trial_recover(self, trial: Any, **_: Any) -> None:
            say(f"{_title(trial)}: its worker died; it goes on from its last checkpoint")

        def on_trial_error(self, trial: Any, **_: Any) -> None:
            self._end(trial, f"its worker died {RESTARTS + 1} times, the last time by: {_last_line(trial.get_error())}")

        def on_trial_complete(self, trial: Any, **_: Any) -> None:
            last = trial.last_result or {}
            self._end(trial, last.get("failed") or ("" if "validation" in last else "was stopped"))

        def _end(self, trial: Any, reason: str) -> None:
            self.ended += 1
            if reason:
                reasons[_title(trial)] = reason
            how = f"failed: {reason}" if reason else _reached(trial.last_result)
            say(f"{self.ended} of {total}  {_title(trial)}: {how}")

    return Teller()


def _title(trial: Any) -> str:
    return str(trial.config["task"]["title"])


def _reached(last: Mapping[str, Any]) -> str:
    return f"validation {last['validation']:.2%}, density {last['density']:.2%}, {last['seconds']:.0f} s"


def _last_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or ["no word"])[-1]


@contextlib.contextmanager
def _ray(address: str | None, parallel: int | None, threads: int) -> Iterator[None]:
    """Bring Ray up, or reach a cluster, and leave it at the end; a Ray that is there already is used as it is."""
    with _settings(_QUIET):
        try:
            import ray
            from ray import tune  # noqa: F401 - ray[tune] has more to install than ray
        except ImportError as error:
            raise OptionError(f"sweeps need Ray Tune ({error}): pip install 'synaptree[sweep]'") from None
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, address, (parallel or max(1, (os.cpu_count() or 1) // threads)) * threads)
        before = logging.getLogger("ray.tune").level
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is said once, in our words
        try:
            largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
            if largest < threads:
                raise OptionError(f"a trial wants {threads} CPUs of one node (threads), the largest has {largest}")
            yield
        finally:
            logging.getLogger("ray.tune").setLevel(before)
            if ours:
                ray.shutdown()


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}}
    if address is None:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, runtime_env=environment, **quiet)
        return
    if address != "auto":
        _reach(address)
    try:
        ray.init(address=address, runtime_env=environment, **quiet)
    except (ConnectionError, RuntimeError) as error:
        raise OptionError(
            f"--address {address}: {_last_line(error).rstrip('.')}; `ray start` joins this machine to a cluster, "
            "`ray start --head` begins one"
        ) from None


def _reach(address: str) -> None:
    """Raise an OptionError for an address that does not answer, which Ray itself would wait for, for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not port.isdigit():
        raise OptionError(f"--address {address!r}: wanted HOST:PORT of the head node, as `ray start` prints, or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN) as connection:
            connection.sendall(_HELLO)
            if connection.recv(4)[3:] != _SETTINGS:
                raise ConnectionError("something else listens there")
    except (OSError, OverflowError) as error:
        raise OptionError(
            f"--address {address}: no Ray cluster answers there ({error}); is its head node up (`ray start --head`), "
            "and is this the address that `ray status` is about?"
        ) from None


@contextlib.contextmanager
def _settings(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for a time."""
    added = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
