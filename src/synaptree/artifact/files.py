"""Files that are written whole or not at all."""

from synaptree.format.replacing import replacing

__all__ = ["replacing"]
