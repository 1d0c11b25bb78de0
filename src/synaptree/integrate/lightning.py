"""Lightning: a callback that attaches, saves and resumes. Needs the extra `lightning`."""

from collections.abc import Iterable
from typing import Any

from synaptree.core.attach import Attached
from synaptree.core.errors import CheckpointError
from synaptree.core.method import Method
from synaptree.core.topology import Topology
from synaptree.integrate import optional
from synaptree.integrate.state import attach_from, require_task

__all__ = ["Synaptree"]

_Callback: Any = optional("lightning.pytorch", "Callback", "lightning")


class Synaptree(_Callback):
    """A Lightning callback that lets a network develop while a `Trainer` fits it.

    It attaches when training starts, logs "density", "born" and "died" (connections so far) at every batch,
    travels in Lightning's own checkpoints, and lets go when training ends. `Trainer.fit(ckpt_path=...)` goes on
    where the checkpoint was written, bit by bit. One callback serves one network: a second `fit` goes on with
    the topology of the first.

    Args:
        method: edits the topology by its own schedule; None only keeps the masks of `topology`.
        topology: the connections to start from; dense by default.
        include: shell patterns of the names of the modules to act on, as in `("encoder.*",)`.
        exclude: likewise; wins over `include`.
        seed: of the topology's random generator.
        optimizer: index of the optimizer to follow, where the module has several.

    Attributes:
        topology: the connections; edited in training.
        attached: what `attach` returned; None before training.

    Raises:
        OptionError: Lightning is not installed.
        AttachError: neither a method nor a topology is given, or what is given is none; when training starts: see
            `attach`.
        CheckpointError: when training starts: the checkpoint holds no masks, or those of another model or method.
    """

    def __init__(
        self, method: Method | None = None, *, topology: Topology | None = None, include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (), seed: int = 0, optimizer: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        require_task(method, topology)
        self.method, self.include, self.exclude, self.optimizer = method, include, exclude, optimizer
        self.topology = Topology(seed) if topology is None else topology
        self.attached: Attached | None = None
        self._saved: dict[str, Any] | None = None
        self._counted: tuple[int, float] | None = None

    @property
    def state_key(self) -> str:  # noqa: D102 - Lightning's, as all below
        return str(self._generate_state_key(optimizer=self.optimizer))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002, D102
        self._saved = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._saved = state_dict

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {} if self.attached is None else self.attached.state_dict()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if trainer.ckpt_path is not None and self._saved is None:
            raise CheckpointError(
                f"{trainer.ckpt_path} holds no masks under {self.state_key}: it was written without this callback; "
                "take another checkpoint, or load its weights into the module and fit without ckpt_path"
            )
        if self.attached is not None:  # to an optimizer of an earlier fit
            self.attached.detach()
        self.attached = attach_from(
            self._saved, pl_module, trainer.optimizers[self.optimizer], self.method, topology=self.topology,
            include=self.include, exclude=self.exclude,
        )  # fmt: skip
        self._saved = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:  # noqa: ARG002, D102
        topology = self.topology
        if self._counted is None or self._counted[0] != topology.version:  # every mask is read for it
            self._counted = topology.version, topology.density()
        born, died = float(topology.born), float(topology.died)
        pl_module.log_dict({"density": self._counted[1], "born": born, "died": died})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002, D102
        if self.attached is not None:
            self.attached.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002, D102
        self.on_train_end(trainer, pl_module)
