"""The stage tables of a recipe's programme, and the stages they stand for.

A programme is a list of tables `[[programme]]` in TOML, each with a `stage`: "train", "prune", "seed", "grow",
"prune_until", "strengthen", "slim", "rewind", "renew" or "repeat". A table that leaves a network worth
measuring ends a round of its own, counted from 0.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from synaptree import methods
from synaptree.core.errors import OptionError
from synaptree.core.method import Method
from synaptree.train.growth import Grow, PruneUntil, Seed
from synaptree.train.loop import TrainOptions
from synaptree.train.programme import Measure, Prune, Renew, Rewind, Stage, Train
from synaptree.train.strength import FoldStrengths, LearnStrengths, Slim

__all__ = ["StageTable", "flat", "programme_stages"]


class Table(BaseModel):
    """Base of the stage tables: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    name: str = ""

    @property
    def title(self) -> str:
        """Its name in the log."""
        return self.name or self.stage


class Training(Table):
    """A table that trains: `options` are changes to the recipe's `[dense]`."""

    options: dict[str, Any] = {}

    def training(self, dense: TrainOptions) -> TrainOptions:
        """Return how this stage trains."""
        return TrainOptions.model_validate(dense.model_dump() | self.options)


class WithMethod(Table):
    """A table in which a registered method acts."""

    method: str
    method_options: dict[str, Any] = {}
    exclude: tuple[str, ...] = ()

    def build(self) -> Method:
        """Return the method.

        Raises:
            OptionError: it cannot do what the stage asks.
        """
        method = methods.build(self.method, **self.method_options)
        if self.stage == "seed" and method.start is None:
            raise OptionError(f"stage 'seed': {self.method} does not start sparse")
        if self.stage != "seed" and method.acts_in_training and method.edit is None:
            raise OptionError(f"stage {self.stage!r}: {self.method} acts in training; give it to a stage 'train'")
        return method


class TrainTable(Training):
    """Train; with a method that edits the topology meanwhile, if one is named."""

    stage: Literal["train"]
    method: str | None = None
    method_options: dict[str, Any] = {}
    exclude: tuple[str, ...] = ()

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:
        """Return what it stands for."""
        method = methods.build(self.method, **self.method_options) if self.method else None
        return [Train(self.training(dense), self.title, method, self.exclude, index)]


class PruneTable(Training, WithMethod):
    """Let a method edit the topology, then retrain."""

    stage: Literal["prune"]
    samples: int = Field(1000, ge=1)
    rewind_step: int | None = Field(None, ge=0)

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:
        """Return what it stands for."""
        rewind: list[Stage] = [] if self.rewind_step is None else [Rewind(self.rewind_step)]
        prune = Prune(self.build(), self.samples, exclude=self.exclude, index=index)
        return [prune, *rewind, Train(self.training(dense), self.title, index=index)]


class SeedTable(WithMethod):
    """Make the network the sparse one that a method starts from."""

    stage: Literal["seed"]

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:  # noqa: ARG002
        """Return what it stands for."""
        return [Seed(self.build(), self.exclude, index)]


class GrowTable(Training, WithMethod):
    """Train with a growth event after every epoch."""

    stage: Literal["grow"]
    gate: bool = False
    limit: int = Field(3, ge=1)
    samples: int = Field(1000, ge=1)

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:
        """Return what it stands for."""
        options, method = self.training(dense), self.build()
        return [Grow(options, method, self.gate, self.limit, self.samples, self.title, self.exclude, index)]


class PruneUntilTable(Training, WithMethod):
    """Prune and retrain until the network suffers."""

    stage: Literal["prune_until"]
    tolerance: float = Field(0.005, ge=0, le=1)
    fails: int = Field(2, ge=1)
    min_density: float = Field(0.0, ge=0, le=1)
    unused_paths: bool = True

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:
        """Return what it stands for."""
        return [
            PruneUntil(
                self.training(dense), self.build(), self.tolerance, self.fails, self.min_density, self.unused_paths,
                self.title, self.exclude, index,
            )
        ]  # fmt: skip


class StrengthenTable(Training):
    """Train with a learned strength per kernel, cut the weakest kernels, and go back to plain convolutions."""

    stage: Literal["strengthen"]
    ratio: float = Field(ge=0, le=1)
    floor: float = Field(0.01, ge=0, le=1)
    norm: Literal["none", "row"] = "none"
    convert: dict[str, Any] = {}

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:
        """Return what it stands for."""
        training = Train(self.training(dense), self.title, index=index)
        return [LearnStrengths(self.convert), training, FoldStrengths(self.ratio, self.floor, self.norm)]


class SlimTable(Training):
    """Train, then cut the channels with the smallest batch-norm scales."""

    stage: Literal["slim"]
    ratio: float = Field(ge=0, le=1)

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:
        """Return what it stands for."""
        return [Train(self.training(dense), self.title, index=index), Slim(self.ratio)]


class RewindTable(Table):
    """Bring back the weights of an earlier step; masks stay."""

    stage: Literal["rewind"]
    step: int = Field(0, ge=0)

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:  # noqa: ARG002
        """Return what it stands for."""
        return [Rewind(self.step)]


class RenewTable(Table):
    """Begin anew with the initial weights and all connections."""

    stage: Literal["renew"]

    def stages(self, dense: TrainOptions, index: int) -> list[Stage]:  # noqa: ARG002
        """Return what it stands for."""
        return [Renew()]


class RepeatTable(Table):
    """The tables in it, several times."""

    stage: Literal["repeat"]
    times: int = Field(ge=1)
    programme: tuple["StageTable", ...]


StageTable = Annotated[
    TrainTable | PruneTable | SeedTable | GrowTable | PruneUntilTable | StrengthenTable | SlimTable | RewindTable
    | RenewTable | RepeatTable,
    Field(discriminator="stage"),
]  # fmt: skip
"""One table of a programme, told apart by its `stage`."""

Plain = (
    TrainTable | PruneTable | SeedTable | GrowTable | PruneUntilTable | StrengthenTable | SlimTable | RewindTable
    | RenewTable
)  # fmt: skip


def flat(tables: Sequence[Any]) -> Iterator[Plain]:
    """Yield the tables one after the other, those in a "repeat" as often as it says."""
    for table in tables:
        if isinstance(table, RepeatTable):
            for _ in range(table.times):
                yield from flat(table.programme)
        else:
            yield table


def programme_stages(tables: Sequence[Any], dense: TrainOptions) -> list[Stage]:
    """Return the stages that the tables stand for; each that is worth it ends with a measurement."""
    stages: list[Stage] = []
    index = 0
    for table in flat(tables):
        stages += table.stages(dense, index)
        if not isinstance(table, RewindTable | RenewTable):
            stages.append(Measure(table.title))
            index += 1
    return stages
