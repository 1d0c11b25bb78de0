"""The replacement rule: what falls below 0 gives its place to a random connection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from synaptree.core.errors import unknown
from synaptree.core.rule import Group
from synaptree.rules.propose import random_places

__all__ = ["Replace"]


@dataclass(frozen=True)
class Replace:
    """Connections with a score below 0 go; as many come, drawn uniformly among those that then do not exist.

    Those just gone may come back.

    Args:
        scope: "layer" keeps the number of connections of every layer, "global" that of the whole network.
        keep: the signal that says which go.
        grow: how those that come are chosen; there is one way.

    Raises:
        OptionError: nobody knows the scope.

    Paper: the rewiring of Bellec et al. 2018 (1711.05136), algorithm 1.
    """

    scope: Literal["layer", "global"] = "layer"
    keep: str = "keep"
    grow: Literal["uniform"] = "uniform"

    def __post_init__(self) -> None:
        if self.scope not in ("layer", "global"):
            raise unknown("scope", self.scope, ("layer", "global"))

    def __call__(self, groups: Sequence[Group], step: int) -> dict[str, Tensor]:  # noqa: ARG002
        masks = {}
        for pool in [groups] if self.scope == "global" else [[group] for group in groups]:
            parts = [group.weight for group in pool]
            flat = torch.cat([(part.mask & (part.score(self.keep) >= 0)).flatten() for part in parts])
            gone = sum(int(part.mask.sum()) for part in parts) - int(flat.sum())
            taken = flat.nonzero().squeeze(1).cpu()
            flat[random_places((1, len(flat)), taken, gone, pool[0].rng).to(flat.device)] = True
            for part, kept in zip(parts, flat.split([part.mask.numel() for part in parts]), strict=True):
                masks[part.name] = kept.view(part.mask.shape)
        return masks
