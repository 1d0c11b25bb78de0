"""The one error of the file format."""

__all__ = ["FormatError"]


class FormatError(ValueError):
    """Bytes are not what the format says they are, or an array cannot be written in the coding asked for."""
