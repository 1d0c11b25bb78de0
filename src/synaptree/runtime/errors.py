"""What can go wrong in an engine."""

__all__ = ["EngineError"]


class EngineError(ValueError):
    """The engine cannot run this network or take this input; the message says what it wanted and what to do."""
