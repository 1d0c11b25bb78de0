"""How old the connections of a network are."""

import numpy as np

from synaptree.core.topology import Topology

__all__ = ["age_quartiles"]


def age_quartiles(topology: Topology) -> list[int] | None:
    """Return the ages of the connections that exist: the youngest, the quartiles between, the oldest.

    Biases do not count, and a kernel counts once.

    Args:
        topology: of any network.

    Returns:
        Five whole numbers of updates, ascending; None where nothing was ever born, so that all are as old as the
        network, or where nothing is left.

    >>> import torch
    >>> topology = Topology()
    >>> topology.add("fc.weight", (1, 3))
    >>> age_quartiles(topology) is None
    True
    >>> _ = topology.edit({"fc.weight": torch.tensor([[True, False, True]])})
    >>> topology.step = 10
    >>> _ = topology.edit({"fc.weight": torch.tensor([[True, True, True]])})
    >>> topology.step = 14
    >>> age_quartiles(topology)
    [4, 4, 14, 14, 14]
    """
    if not topology.born:
        return None
    names = [name for name, shape in topology.shapes.items() if len(shape) > 1]
    ages = [topology.age(name)[topology.masks[name]].cpu().numpy() for name in names]
    together = np.concatenate(ages) if ages else np.array([])
    if not together.size:
        return None
    return [int(age) for age in np.percentile(together, (0, 25, 50, 75, 100), method="lower")]
