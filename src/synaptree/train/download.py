"""The published files of each data set: where they lie, whether they are intact, how to fetch them."""

import gzip
import hashlib
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple, TypeVar

from synaptree.core.errors import DataError, OptionError
from synaptree.train.sources import FOLDER, SETS, File, Source, directory, source

__all__ = [
    "FOLDER", "SETS", "File", "FileState", "Source",
    "directory", "download", "locate", "needs_extra", "read", "source", "verify",
]

T = TypeVar("T")

TIMEOUT = 30.0  # seconds a server may stay silent
SLOWEST = 50_000  # bytes a second below which a transfer is given up
CHUNK = 1 << 16


class FileState(NamedTuple):
    """One file on disk (`path`) held against what was published (`bytes`, `sha256`)."""

    path: Path
    bytes: int
    sha256: str
    state: Literal["ok", "missing", "truncated", "checksum differs"]


def locate(folder: Path, file: File) -> tuple[Path, File]:
    """Return the path of `file` in `folder` and what it must hold: as published or, failing that, gunzipped."""
    if file.plain and not (folder / file.name).exists() and (folder / file.plain.name).exists():
        file = file.plain
    return folder / file.name, file


def read(name: str, folder: Path, file: File, parse: Callable[[bytes], T]) -> T:
    """Return `parse` of the content of one file of the data set `name`.

    Size and form are checked; the checksum is worked out only to report a file that fails.

    Raises:
        DataError: the file is missing, has another size than published, or `parse` raises ValueError.
    """
    path, file = locate(folder, file)
    if not path.exists():
        raise DataError(
            f"{name}: {path} is missing. Either run `synaptree data download {name}`, or set SYNAPTREE_DATA "
            f"(or root) to the directory that holds {name}/{SETS[name].folder}/{file.name}."
        )
    if path.stat().st_size != file.bytes:
        raise _damaged(name, path, file, "its size is wrong")
    try:
        return parse(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(name, path, file, str(error)) from error


def verify(name: str, root: str | os.PathLike[str] | None = None) -> list[FileState]:
    """Return the state of every file of the data set `name`, each read whole and held against its checksum.

    Where a gunzipped file stands in for a published one, its own size and checksum are expected.
    A set that is embedded in a library has no files, and single images have no published checksums.

    >>> verify("digits")
    []
    """
    known, folder = source(name), directory(name, root)
    extra = [file for file in known.extra if (folder / file.name).exists()]
    return [_state(*locate(folder, file)) for file in (*known.files, *extra)]


def download(
    name: str, root: str | os.PathLike[str] | None = None, *, mirror: str | None = None, progress: bool = False
) -> None:
    """Fetch what is missing or damaged of the data set `name` to ROOT/NAME, as published.

    One request a file, bounded in time. A file takes its place only when its checksum is right, so
    an interrupted or damaged transfer leaves what was there. Image folders that are there stay as they are.

    Args:
        name: a name in SETS.
        root: the directory of all data sets; by default $SYNAPTREE_DATA, then ./data.
        mirror: the address of a folder that holds the same files, to use instead of the published one.
        progress: show a progress bar on the error stream.

    Raises:
        OptionError: nobody knows the name, or nobody publishes the set: `folder:PATH`.
        DataError: a file could not be fetched, or is not the one that was published.
    """
    known = source(name)
    folder = directory(name, root)
    url = mirror.rstrip("/") + "/" if mirror else known.url
    if known.format == "folders":
        _download_folders(name, known, folder, url, progress)
        return
    wanting = [file for file in known.files if _state(*locate(folder, file)).state != "ok"]
    if wanting and known.archive:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:
            _fetch(url, Path(temporary), known.archive, progress)
            _unpack(Path(temporary) / known.archive.name, folder, wanting)
        return
    for file in wanting:
        _fetch(url, folder, file, progress)


def _download_folders(name: str, known: Source, folder: Path, url: str, progress: bool) -> None:
    """Fetch the archive of image folders and unpack it whole, unless they are there."""
    if not known.archive:
        raise OptionError(f"{name} is a folder of images that nobody publishes; only you can put it there")
    if all((folder / part).is_dir() for part in ("train", known.test_folder)):
        return
    if folder.exists():
        raise DataError(f"{name}: {folder} is there, but lacks train or {known.test_folder}; move it out of the way")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        _fetch(url, Path(temporary), known.archive, progress)
        shutil.unpack_archive(Path(temporary) / known.archive.name, temporary)
        os.replace(Path(temporary) / known.folder, folder)


def _fetch(base: str, folder: Path, file: File, progress: bool) -> None:
    """Fetch one file into `folder`; pooch keeps it apart until its checksum is right."""
    with needs_extra("downloading"):
        import pooch
    pooch.get_logger().setLevel("WARNING")  # it announces every file

    def receive(url: str, path: str, _: object) -> None:
        _receive(url, Path(path), file, progress)

    pooch.retrieve(base + file.name, f"sha256:{file.sha256}", file.name, folder, downloader=receive)
    (folder / file.name).chmod(0o644)  # the temporary file was its owner's alone


def _receive(url: str, path: Path, file: File, progress: bool) -> None:
    """Write to `path` what `url` sends and check it; DataError unless it is `file`."""
    with needs_extra("downloading"):
        import requests
        from rich.console import Console
        from rich.progress import Progress
        from urllib3.exceptions import HTTPError
    limit = TIMEOUT + file.bytes / SLOWEST
    end = time.monotonic() + limit
    why = "the server sent something else"
    try:
        # A server that compresses on the way would send other bytes than the published ones.
        identity = {"Accept-Encoding": "identity"}
        with (
            requests.get(url, stream=True, timeout=TIMEOUT, headers=identity) as response,
            Progress(console=Console(stderr=True), disable=not progress) as bar,
            path.open("wb") as out,
        ):
            response.raise_for_status()
            task = bar.add_task(file.name, total=file.bytes)
            # read1 hands over bytes as they arrive, so that even a trickle meets the limit
            take = getattr(response.raw, "read1", response.raw.read)
            while out.tell() <= file.bytes and (chunk := take(CHUNK)):
                out.write(chunk)
                bar.update(task, advance=len(chunk))
                if time.monotonic() > end:
                    raise TimeoutError(f"not finished after {limit:.0f} s")
    except (OSError, HTTPError) as error:  # requests' own errors are OSErrors
        why = str(error)
    size, sha256 = path.stat().st_size, _sha256(path)
    if sha256 != file.sha256:
        raise DataError(
            f"{file.name} could not be fetched from {url}: {why}. Expected {file.bytes} bytes with sha256 "
            f"{file.sha256}, got {size} bytes with sha256 {sha256}. Nothing of it was kept; "
            f"try again, or name another server with mirror=."
        )


def _unpack(archive: Path, folder: Path, wanting: list[File]) -> None:
    """Move the wanted files of a verified archive to `folder`, each only when it is whole."""
    wanted = {file.name for file in wanting}
    with tarfile.open(archive) as tar:
        for member in tar:
            if (file := Path(member.name).name) in wanted:
                tar.extract(member, archive.parent, filter="data")
                os.replace(archive.parent / member.name, folder / file)


def _state(path: Path, file: File) -> FileState:
    if not path.exists():
        return FileState(path, file.bytes, file.sha256, "missing")
    if path.stat().st_size < file.bytes:
        return FileState(path, file.bytes, file.sha256, "truncated")
    same = _sha256(path) == file.sha256
    return FileState(path, file.bytes, file.sha256, "ok" if same else "checksum differs")


def _damaged(name: str, path: Path, file: File, why: str) -> DataError:
    return DataError(
        f"{name}: {path} is damaged ({why}): expected {file.bytes} bytes with sha256 {file.sha256}, got "
        f"{path.stat().st_size} bytes with sha256 {_sha256(path)}. Run `synaptree data download {name}`."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def needs_extra(what: str) -> Iterator[None]:
    """Say which extra to install where an import inside the block fails."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"{what} needs {error.name}: pip install 'synaptree[train]'") from error
