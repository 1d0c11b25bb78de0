"""Stages of synaptic strength: convolutions with learned strengths, and back to plain ones without the weak."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from synaptree.core.errors import OptionError
from synaptree.core.topology import Topology
from synaptree.soft.convert import convert
from synaptree.soft.network_slimming import slim
from synaptree.soft.synaptic_strength import fold, prune_strengths, recalibrate, strength_scores
from synaptree.train.data import batches
from synaptree.train.network import Network
from synaptree.train.programme import Surroundings

__all__ = ["FoldStrengths", "LearnStrengths", "Slim"]


@dataclass(frozen=True)
class LearnStrengths:
    """Give convolutions a learned strength per kernel; training comes after it.

    Attributes:
        options: of `soft.convert.convert`.
    """

    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, network: Network, around: Surroundings) -> None:
        """Convert the network in place.

        Raises:
            OptionError: connections of it are masked already.
        """
        if network.topology.masks:
            raise OptionError("strengths are learned on a network that is not pruned yet: renew it first")
        self.reshape(network, around)

    def reshape(self, network: Network, around: Surroundings) -> None:
        """Replace the convolutions."""
        convert(network.model, around.data.normalise(around.data.validation.x[:2]), **self.options)


@dataclass(frozen=True)
class FoldStrengths:
    """Cut the weakest kernels, measure the batch norms anew, and make the network plain again.

    Attributes:
        ratio: share in [0, 1] of all kernels that go.
        floor: share in [0, 1] of a layer's kernels that stay in any case.
        norm: "none" ranks strengths as they are, "row" in relation to the others of the same filter.
        images: training images that the batch norms are measured on.
    """

    ratio: float
    floor: float = 0.01
    norm: Literal["none", "row"] = "none"
    images: int = 25_600

    def run(self, network: Network, around: Surroundings) -> None:
        """Cut, recalibrate, fold."""
        sizes = torch.cat([score.flatten() for score in strength_scores(network.model).values()])
        weak = float((sizes < 1e-3).double().mean())
        kept = prune_strengths(network.model, self.ratio, floor=self.floor, norm=self.norm)
        _recalibrate(network, around, self.images)
        self.reshape(network, around)
        network.topology.notes = [f"{weak:.1%} of the strengths were below 0.001 before the cut", str(kept)]

    def reshape(self, network: Network, around: Surroundings) -> None:
        """Put plain convolutions back; their masks become the topology's."""
        network.topology = fold(network.model, Topology(around.seed))


@dataclass(frozen=True)
class Slim:
    """Cut the channels with the smallest batch-norm scales of the whole network, and measure the batch norms anew.

    Attributes:
        ratio: share in [0, 1] of all channels that go.
        images: training images that the batch norms are measured on.
    """

    ratio: float
    images: int = 25_600

    def run(self, network: Network, around: Surroundings) -> None:
        """Cut and recalibrate.

        Raises:
            OptionError: connections of it are masked already.
        """
        if network.topology.masks:
            raise OptionError("slimming wants a network that is not pruned yet: renew it first")
        example = around.data.normalise(around.data.validation.x[:2])
        network.topology = slim(network.model, example, self.ratio, Topology(around.seed))
        _recalibrate(network, around, self.images)


def _recalibrate(network: Network, around: Surroundings, images: int) -> None:
    size = 128
    order = batches(around.data, around.data.train, size, seed=around.seed, epoch=network.epoch)
    recalibrate(network.model, (x for _, (x, _) in zip(range(-(-images // size)), order, strict=False)))
