"""Tests that every method must pass, for the authors of methods here and elsewhere."""

from synaptree.testing.conformance import CHECKS, ConformanceError, check_method

__all__ = ["CHECKS", "ConformanceError", "check_method"]
