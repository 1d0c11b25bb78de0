"""Calling commands in tests: what they show, and how they fail."""

from typer.testing import CliRunner, Result

from synaptree.cli.commands import app


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def shows(*words: object) -> str:
    """Return what a command that succeeds writes."""
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*words: object) -> str:
    """Return the sentence in which a command ends that cannot work with what it was given."""
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    return result.stderr
