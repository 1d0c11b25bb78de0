"""Check that a method does what every method must, on networks small enough to reason about."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from synaptree.core.errors import unknown
from synaptree.core.method import Method
from synaptree.methods import METHODS
from synaptree.testing.checks import CHECKS, Subject
from synaptree.testing.golden import Golden, golden_path, read_golden

__all__ = ["CHECKS", "ConformanceError", "check_method"]


class ConformanceError(AssertionError):
    """A method does not do what every method must."""


def check_method(
    build_method: Callable[..., Method] | str,
    *,
    golden: Path | None = None,
    checks: Collection[str] | None = None,
    exempt: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Check that a registered method does what every method must.

    Args:
        build_method: the function decorated with `@method`, or its name.
        golden: TOML file with options for the trials and edits worked out by hand; see
            `synaptree.testing.golden` for the format. By default the library's own for that name.
        checks: names of the checks to make, from `CHECKS`; all by default.
        exempt: name of a check -> the reason why this method need not pass it, beside those its golden file names.

    Returns:
        Name -> reason of the checks that were not made: exempt, or without meaning for this method.

    Raises:
        ConformanceError: the method fails a check.
        OptionError: nobody knows the method or a check.

    Example:
        >>> check_method("magnitude", checks=["dead_weights_are_zero", "amp_skips_do_not_count"])
        {'amp_skips_do_not_count': 'it acts outside training'}
    """
    name = build_method if isinstance(build_method, str) else build_method.__name__
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    golden = golden or golden_path(name)
    subject = Subject(METHODS[name], read_golden(golden) if golden else Golden())
    exempt, checks = {**subject.golden.exempt, **(exempt or {})}, CHECKS if checks is None else checks
    for check in (*checks, *exempt):
        if check not in CHECKS:
            raise unknown("check", check, CHECKS)
    reasons = {check: exempt.get(check) or _make(name, check, subject) for check in checks}
    return {check: reason for check, reason in reasons.items() if reason}


def _make(name: str, check: str, subject: Subject) -> str | None:
    try:
        return CHECKS[check](subject)
    except AssertionError as error:
        raise ConformanceError(f"{name} fails {check}: {error}") from error
    except Exception as error:
        raise ConformanceError(f"{name} fails {check}: {type(error).__name__}: {error}") from error
