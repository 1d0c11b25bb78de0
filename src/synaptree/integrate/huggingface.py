"""Hugging Face: a callback for the `Trainer` that attaches, saves and resumes. Needs the extra `transformers`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from synaptree.core.attach import Attached
from synaptree.core.errors import CheckpointError
from synaptree.core.method import Method
from synaptree.core.topology import Topology
from synaptree.integrate import optional
from synaptree.integrate.state import attach_from, check_weights, read_state, require_task, write_state

__all__ = ["FILE", "Synaptree"]

FILE = "synaptree.safetensors"
"""The topology's file in each checkpoint folder."""

_TrainerCallback: Any = optional("transformers", "TrainerCallback", "transformers")


class Synaptree(_TrainerCallback):
    """A callback that lets a network develop while a Hugging Face `Trainer` trains it.

    It attaches when training starts, adds "density", "born" and "died" (connections so far) to
    `trainer.state.log_history`, writes `synaptree.safetensors` into each checkpoint folder, and lets go when
    training ends. `trainer.train(resume_from_checkpoint=...)` goes on where the checkpoint was written, bit by
    bit, and `load_best_model_at_end` brings back the topology of the best model with it. One callback serves one
    network: a second `train` goes on with the topology of the first.

    Args:
        method: edits the topology by its own schedule; None only keeps the masks of `topology`.
        topology: the connections to start from; dense by default.
        include: shell patterns of the names of the modules to act on, as in `("model.layers.*",)`.
        exclude: likewise; wins over `include`. Name output layers here that share the weight of an embedding.
        seed: of the topology's random generator.
        resume_from: the checkpoint folder that training resumes from, where it lies outside `output_dir` or has
            another name than `checkpoint-STEP`: the `Trainer` does not tell it to callbacks.

    Attributes:
        topology: the connections; edited in training.
        attached: what `attach` returned; None before training.

    Raises:
        OptionError: transformers is not installed.
        AttachError: neither a method nor a topology is given, or what is given is none; when training starts: see
            `attach`.
        CheckpointError: when training starts: the checkpoint holds no masks, or those of another model, method or
            moment.
    """

    def __init__(
        self, method: Method | None = None, *, topology: Topology | None = None, include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (), seed: int = 0, resume_from: str | Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require_task(method, topology)
        self.method, self.include, self.exclude, self.resume_from = method, include, exclude, resume_from
        self.topology = Topology(seed) if topology is None else topology
        self.attached: Attached | None = None

    def on_train_begin(  # noqa: D102 - transformers', as all below
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any  # noqa: ARG002
    ) -> None:
        saved = None
        if state.global_step > 0:
            folder = Path(self.resume_from or _folder(args, state))
            saved = read_state(folder / FILE)
            check_weights(saved, model, folder)
        if self.attached is not None:  # by an earlier training
            self.attached.detach()
        self.attached = attach_from(
            saved, model, optimizer, self.method, topology=self.topology, include=self.include, exclude=self.exclude
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002, D102
        if not args.should_save or self.attached is None:
            return
        folder = _folder(args, state)
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder} does not exist, so that the topology cannot be saved beside the model; "
                "searches over options save elsewhere: search with save_strategy='no'"
            )
        write_state(self.attached.state_dict(), folder / FILE)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002, D102
        topology = self.topology
        numbers = {"density": topology.density(), "born": topology.born, "died": topology.died}
        for place in (logs, state.log_history[-1] if state.log_history else None):
            if place is not None:
                place.update(numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002, D102
        if self.attached is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.attached.load_state_dict(read_state(Path(state.best_model_checkpoint) / FILE))
        self.attached.finish()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
