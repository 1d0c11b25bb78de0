"""Sweeps: many changed copies of a recipe, tried on this machine or on a cluster, and chosen by validation."""

from synaptree.sweep.choice import Candidate, best, candidates, front
from synaptree.sweep.cluster import Outcome, sweep
from synaptree.sweep.space import Space, load_space
from synaptree.sweep.trials import Trial, recipe_text, trials

__all__ = [
    "Candidate", "Outcome", "Space", "Trial", "best", "candidates", "front", "load_space", "recipe_text", "sweep",
    "trials",
]  # fmt: skip
