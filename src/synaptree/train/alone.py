"""One process at a time in a run's folder."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from synaptree.core.errors import OptionError
from synaptree.train import together

try:
    import fcntl
except ModuleNotFoundError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["alone_in"]

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder for as long as the block lasts, or this process lives.

    Of the processes that torchrun started the first one does. A folder that takes no files keeps nobody out: the first
    checkpoint says what is wrong with it.

    Args:
        folder: made if need be.

    Raises:
        OptionError: another process is at work there; in all processes that train together.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as out, alone_in(Path(out)):
        ...     with alone_in(Path(out)):
        ...         pass
        Traceback (most recent call last):
        synaptree.core.errors.OptionError: another process is at work in ...; wait for it or give another --out
    """
    with ExitStack() as held:
        taken = False
        if together.first():
            try:
                held.enter_context(_locked(folder / LOCK))
            except BlockingIOError:
                taken = True
        if together.anyone(taken):
            raise OptionError(f"another process is at work in {folder}; wait for it or give another --out")
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is gone afterwards, or none where there can be none.

    Raises:
        BlockingIOError: another process holds it.
    """
    file = _opened(path) if fcntl is not None else None
    if file is None:
        yield
        return
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _opened(path: Path) -> BinaryIO | None:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(file, path):
                return file
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a file system without locks
            path.unlink(missing_ok=True)
            file.close()
            return None
        file.close()  # the one before has removed it just then


def _is(file: BinaryIO, path: Path) -> bool:
    """Say whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
