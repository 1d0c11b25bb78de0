"""Grow, prune and run sparse neural networks in PyTorch, as the brain does."""

__version__ = "0.1.0"
