"""How long each step of a network takes in the engine, measured here and now."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from synaptree.artifact.syn import save
from synaptree.report.page.networks import Network
from synaptree.runtime.engine import Engine
from synaptree.runtime.explain import Explanation
from synaptree.surgery.compact import compact

__all__ = ["Timing", "timed"]


class Timing:
    """What was measured of a network.

    Attributes:
        explanation: the engine's, step by step.
        bytes: of its packed file, compacted, in fp32.
    """

    def __init__(self, explanation: Explanation, size: int) -> None:
        self.explanation, self.bytes = explanation, size


def timed(network: Network, batch: int = 1) -> Timing:
    """Return how long each step of a network takes on this machine, compacted and packed as `synaptree pack` does.

    Args:
        network: of a round.
        batch: samples of a call.

    Raises:
        SynaptreeError: it cannot be packed.
        EngineError: it has an operation the engine does not know.
    """
    x = torch.rand(4, *network.shape, generator=torch.Generator().manual_seed(0))
    small = compact(network.model, x, topology=network.topology if network.topology.masks else None)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "network.syn"
        size = save(small.model, file, example_input=x, topology=small.topology, resume=False)
        return Timing(Engine(file, 1, batch).explain(), size)
