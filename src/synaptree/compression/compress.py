"""`compress`: any network in, the smallest one out that is about as good on validation data."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed, nn

from synaptree.compression.clock import Clock, Progress, Stopped, clock_of
from synaptree.compression.ending import CODINGS, Packed, packed, size_of, timing_of
from synaptree.compression.feed import training_feed, validation_feed
from synaptree.compression.judge import Judge, Metric, device_of
from synaptree.compression.report import Compressed, Report, Timing, outcome, write_report
from synaptree.compression.search import Candidate, Search, Try, dense_candidate
from synaptree.compression.training import Loss, Optimize, Trainer
from synaptree.compression.ways import Way, first_inputs, ways
from synaptree.core.errors import NumericError, OptionError, SynaptreeError, unknown
from synaptree.core.layer import unwrapped

__all__ = ["Moment", "compress"]

FILE, REPORT = "network.syn", "report.json"
DENSE_SHARE, DENSE_EPOCHS, DENSE_UPDATES = 0.25, 30, 3000  # how long an untrained network is trained at most
DENSE_LR = 0.4  # factor on the learning rate meanwhile
PROBE_SECONDS, PROBE_UPDATES = 1.0, 3
RUNTIME = 3.0  # seconds of processor time in which one more dense runtime is surely set up
SAMPLES = 500  # of the training data, for methods that want to see some
TOLD_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Moment:
    """Where a call of `compress` is.

    Attributes:
        doing: in words.
        used: of the budget.
        budget: in seconds, or in epochs.
        tries: so far.
    """

    doing: str
    used: float
    budget: float
    tries: tuple[Try, ...]


def compress(
    model: nn.Module,
    train_data: Any,
    val_data: Any = None,
    max_drop: float | None = None,
    budget: float | str = "10m",
    method: str = "auto",
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    optimizer: Optimize | None = None,
    trained: bool | None = None,
    out: str | Path | None = None,
    values: str = "auto",
    timing: bool = True,
    batch: int = 128,
    seed: int = 0,
    watch: Callable[[Moment], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Compressed:
    """Return the smallest network found within a budget of time that is about as good on validation data.

    Connections are cut and the rest is retrained, again and again, at ever lower densities. Each such try is judged on
    the validation data; what lost more than `max_drop` is dropped again. The smallest network kept is compacted,
    written as a `.syn` file in the smallest coding that is good enough, read back, and timed.

    Args:
        model: trained or not, on any device; it is not changed.
        train_data: a pair of tensors `(inputs, labels)` of shape `(samples, ...)` and `(samples,)`; a loader or
            another iterable of such pairs; a torch data set; or a data set of `synaptree.train.data`.
        val_data: likewise, not trained on. It may be left out where `train_data` is one of `synaptree.train.data`.
        max_drop: what may be lost on validation data: points of accuracy, by default 0.5; or, with a metric, what is
            said here in the metric's own unit. At least 0.
        budget: time on the wall, in seconds or as "90s", "20m", "1h30m"; or of training, as "40 epochs", which
            gives the same network each time. The search ends earlier where nothing is left to try.
        method: "auto", or a name of the registry that can be steered to a density.
        loss: `(outputs, labels) -> scalar tensor` to train with; cross-entropy by default.
        metric: `(model, val_data) -> number`, higher is better; accuracy by default.
        optimizer: `parameters -> torch optimizer`, at the learning rate to begin a training with; Adam at 5e-3, and
            also at a fifth of that, by default.
        trained: whether the model was trained; one that was not is trained first. By default a model counts as
            untrained that is hardly more accurate than the most frequent class; with a metric all count as trained.
        out: folder that gets `network.syn` and `report.json`; nothing is written without.
        values: how the file stores weights: "fp32", "fp16", "int8", or "auto": the smallest that is good enough.
        timing: whether the engine is timed beside dense runtimes at the end.
        batch: samples of a training batch, where the data does not come in batches.
        seed: of all that is random; what fits into a time depends on the machine.
        watch: is told where the call is, some times a second.
        stop: asked before each update; true ends the search like the end of the time.

    Raises:
        OptionError: an option is out of range, the model is no module, the metric gives no number, the budget is too
            short for an epoch, whose length is said then, or too short for an untrained model to learn anything.
        DataError: the data is empty, without labels, or does not fit the model and the loss, or inputs to judge by
            are not finite.
        AttachError: the model has no linear or convolution layer.
        NumericError: the outputs of the model, its metric, or its training before anything was cut, are not finite;
            or those of the network as `values` stores it.

    Example:
        >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> found = compress(model, (x[:192], y[:192]), (x[192:], y[192:]), max_drop=3, budget="3s", timing=False)
        >>> found.report.times_fewer > 5, found.model(x).shape
        (True, torch.Size([256, 2]))
    """
    _require_options(model, values, batch)
    _require_alone()
    _warm_up()
    clock = clock_of(budget, stop)
    judge = Judge.of(validation_feed(val_data, train_data), metric, max_drop)
    tried = ways(method, own_optimizer=optimizer is not None)
    teller = _Teller(clock, watch)
    trainer = Trainer(training_feed(train_data, batch, seed), loss, optimizer, clock, tick=teller.tick)
    codings = CODINGS if values == "auto" else (values,)
    with _random_held(model, seed), _folder(out) as folder:
        run = _Run(trainer, judge, teller, trained)
        dense = run.start(deepcopy(unwrapped(model)))
        search = run.search(dense, tried)
        best = search.run()
        teller.say("writes and measures")
        small = packed(best, run.example, judge, dense.value, folder / FILE, codings)
        return _compressed(run, search, small, folder, str(budget), written=out is not None, timed=timing)


@dataclass
class _Run:
    """What the steps of a call share.

    Attributes:
        trainer: of all trainings.
        judge: of what may be lost.
        teller: says where the call is.
        trained: what the user says of the model.
        notes: what is worth saying at the end.
    """

    trainer: Trainer
    judge: Judge
    teller: "_Teller"
    trained: bool | None
    notes: list[str] = field(default_factory=list)

    def start(self, model: nn.Module) -> Candidate:
        """Return the dense network to start from, trained first if it was not."""
        self.teller.say("looks at model and data")
        clock = self.trainer.clock
        first = self.trainer.feed.batches(0, device_of(model))
        self.inputs = first_inputs(first, SAMPLES)
        self.example = self.inputs[:8].clone()
        dense_candidate(model, math.nan)
        if self.judge.metric is not None:
            self.judge.feed.look()
        began = time.perf_counter()
        value = self.judge(model)
        self.judge_cost = clock.cost(time.perf_counter() - began, epochs=0)
        if self.judge.metric is None:
            _require_outputs(value)
        untrained = self._untrained(value)
        seconds = _epoch_seconds(self.trainer, model)
        self.epoch_cost = clock.cost(seconds, epochs=1)
        self._require_time(seconds, epochs=2 if untrained else 1)
        if untrained:
            value = self._train(model)
            self._require_learned(value)
        if not math.isfinite(value):
            raise NumericError(f"the metric of the dense network is {value}: wanted a finite number")
        return dense_candidate(model.eval(), value)

    def search(self, dense: Candidate, tried: tuple[Way, ...]) -> Search:
        """Return the search that is to be run."""
        return Search(
            dense, tried, self.judge, self.trainer, self.trainer.clock, self.inputs, self.epoch_cost,
            self.judge_cost, self.teller.tried,
        )  # fmt: skip

    def _untrained(self, value: float) -> bool:
        if self.trained is False or self.judge.metric is not None:
            return self.trained is False
        chance, least = self.judge.chance(), self.judge.learned_from()
        if value > least:
            return False
        what = "was said to be trained, but" if self.trained else "counts as untrained, since"
        then = "much of it can be cut at no loss" if self.trained else "it was trained first"
        self.notes.append(
            f"the model {what} its accuracy of {value:.2f} is not above {least:.2f}, and always saying the most "
            f"frequent class gives {chance:.2f}; {then}"
        )
        return not self.trained

    def _train(self, model: nn.Module) -> float:
        """Train the dense network for a share of the time, and return what it is worth."""
        clock, length = self.trainer.clock, self.trainer.length
        wanted = max(DENSE_EPOCHS, DENSE_UPDATES / length)
        epochs = max(1.0, min(wanted, DENSE_SHARE * clock.left() / self.epoch_cost))
        self.teller.say(f"trains the dense network for {epochs:.0f} epochs")
        try:
            self.trainer.train(model, Progress(round(epochs * length), clock.limit(clock.left() / 2)), lr=DENSE_LR)
        except Stopped:
            raise OptionError(
                f"stopped before the dense network was trained, after {clock.seconds():.0f} s; nothing was compressed"
            ) from None
        except NumericError as error:
            raise NumericError(f"while the dense network was trained, {error}") from error
        return self.judge(model)

    def _require_learned(self, value: float) -> None:
        """Refuse a network that is hardly better than none: of that, nothing would be left, and it would be a gain."""
        if self.judge.metric is not None:
            return
        _require_outputs(value)
        chance, least = self.judge.chance(), self.judge.learned_from()
        if value <= least:
            raise OptionError(
                f"the dense network did not learn in this budget: {value:.2f} on validation after "
                f"{self.trainer.epochs:.1f} epochs, against {chance:.2f} for the most frequent class, and more than "
                f"{least:.2f} is wanted; give a larger budget, a trained model, another loss or optimizer, or, where "
                "accuracy says little, a metric; nothing was compressed"
            )

    def _require_time(self, seconds: float, epochs: int) -> None:
        clock, needed = self.trainer.clock, epochs * self.epoch_cost + 3 * self.judge_cost
        if clock.left() < needed:
            least = math.ceil(1.2 * (needed + clock.used()) + clock.cost(1, epochs=0))
            raise OptionError(
                f"the budget is too short: of {clock.budget:.3g}, {clock.left():.3g} are left for training. An epoch "
                f"takes {seconds:.2g} s, and {epochs} of them are the least: give {least} or more; nothing was changed"
            )


class _Teller:
    """Says where a call is, some times a second."""

    def __init__(self, clock: Clock, watch: Callable[[Moment], None] | None) -> None:
        self.clock, self.watch = clock, watch
        self.doing, self.last, self.tries = "", -math.inf, list[Try]()

    def say(self, doing: str) -> None:
        self.doing, self.last = doing, -math.inf
        self.tick()

    def tried(self, one: Try) -> None:
        self.tries.append(one)
        self.say("searches")

    def tick(self) -> None:
        if self.watch is None or self.clock.seconds() - self.last < TOLD_EVERY:
            return
        self.last = self.clock.seconds()
        self.watch(Moment(self.doing, self.clock.used(), self.clock.budget, tuple(self.tries)))


def _compressed(
    run: _Run, search: Search, small: Packed, folder: Path, budget: str, *, written: bool, timed: bool
) -> Compressed:
    """Return what a call returns, and leave the report beside the file."""
    dense, clock, file = search.dense, run.teller.clock, folder / FILE
    before = size_of(dense.model, None, run.example, None, dense.value)
    after = size_of(small.model, small.topology, run.example, small.bytes, small.value)
    found: Timing | str = "nobody asked for it"
    if timed:
        seconds = min(1.0, clock.cost(clock.ending, epochs=math.inf) / 20)
        found = timing_of(
            dense.model, small.model, file, run.example.cpu(), seconds,
            spare=lambda: clock.spare(RUNTIME),
        )  # fmt: skip
    timing, why = (None, found) if isinstance(found, str) else (found, "")
    metric = run.judge.metric
    name = "accuracy" if metric is None else getattr(metric, "__name__", type(metric).__name__)
    notes = (*run.notes, *small.notes)
    words = outcome(name, before, after, search.tries, run.judge, notes, timing, why)
    report = Report(
        name, run.judge.max_drop, before, after, small.values, tuple(search.tries), budget, clock.seconds(),
        clock.processor(), run.trainer.epochs, small.removed, small.max_error, small.engine_value, words,
    )  # fmt: skip
    if written:
        write_report(folder / REPORT, report, timing)
    return Compressed(small.model, small.topology, dense.model, file if written else None, report, timing)


def _epoch_seconds(trainer: Trainer, model: nn.Module) -> float:
    """Return how long an epoch takes, after some updates of a copy; the trainer learns how many make an epoch."""
    scratch = deepcopy(model)
    optimizer = trainer.optimizer(scratch, sparse=True)
    scratch.train()
    began, counted, seen = 0.0, 0, 0
    for x, y in trainer.feed.batches(0, device_of(scratch)):
        if seen == 1:  # the first one is slower than those to come
            began = time.perf_counter()
        if seen <= PROBE_UPDATES or time.perf_counter() - began < PROBE_SECONDS:
            trainer.update(scratch, optimizer, x, y)
            counted = seen
            spent = time.perf_counter() - began
        elif trainer.feed.length is not None:
            break
        seen += 1
    trainer.length = trainer.feed.length or seen
    if not counted:  # one batch alone
        began = time.perf_counter()
        trainer.update(scratch, optimizer, x, y)
        return (time.perf_counter() - began) * trainer.length
    return spent / counted * trainer.length


def _require_outputs(accuracy: float) -> None:
    if math.isnan(accuracy):
        raise NumericError(
            "the outputs of the model on the validation data are not finite, so it cannot be judged: look at its "
            "weights, and at the scale of the inputs"
        )


def _warm_up() -> None:
    """Have torch import what the first optimizer of a process imports; that takes seconds and is no training."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def _require_alone() -> None:
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise OptionError(
            f"compress runs in one process, and there are {distributed.get_world_size()} that train together; "
            "call it in a program of its own"
        )


def _require_options(model: Any, values: str, batch: int) -> None:
    if isinstance(model, type):
        raise OptionError(f"model: wanted a torch.nn.Module, got the class {model.__name__}: call it")
    if not isinstance(model, nn.Module):
        raise OptionError(f"model = {model!r}: wanted a torch.nn.Module, got a {type(model).__name__}")
    if values not in ("auto", *CODINGS):
        raise unknown("coding of values", values, ("auto", *CODINGS))
    if not isinstance(batch, int) or batch < 1:
        raise OptionError(f"batch = {batch!r}: wanted a whole number of at least 1")
    if find_spec("constriction") is None:  # not after all of the work
        raise SynaptreeError(".syn files need constriction: pip install 'synaptree[pack]'")


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """Yield the folder to write to, made if need be; one that goes away again where none was named."""
    if out is None:
        with TemporaryDirectory() as made:
            yield Path(made)
    else:
        Path(out).mkdir(parents=True, exist_ok=True)
        yield Path(out)


@contextmanager
def _random_held(model: nn.Module, seed: int) -> Iterator[None]:
    """Start torch's random state from a seed, and put it back afterwards."""
    with torch.random.fork_rng({parameter.device for parameter in model.parameters() if parameter.is_cuda}):
        torch.manual_seed(seed)
        yield
