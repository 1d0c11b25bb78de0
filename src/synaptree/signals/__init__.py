"""Signals with more to them than a line."""
