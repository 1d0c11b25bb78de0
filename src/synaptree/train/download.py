"""The published files of each data set: where they lie, whether they are intact, how to fetch them."""

import gzip
import hashlib
import os
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple, TypeVar

from synaptree.core.errors import DataError, unknown

__all__ = [
    "SETS", "File", "FileState", "Source", "directory", "download", "locate", "needs_extra", "read", "source", "verify",
]

T = TypeVar("T")

TIMEOUT = 30.0  # seconds a server may stay silent
SLOWEST = 50_000  # bytes a second below which a transfer is given up
CHUNK = 1 << 16


@dataclass(frozen=True)
class File:
    """One published file: its name, size in bytes and SHA-256; `plain` is the same file gunzipped."""

    name: str
    bytes: int
    sha256: str
    plain: "File | None" = None


@dataclass(frozen=True)
class Source:
    """What is known of a data set before any of its files is read.

    Attributes:
        format: how the files are read: "idx", CIFAR's "records", or "digits", embedded in scikit-learn.
        shape: (channels, height, width) of an image.
        classes: number of classes; labels are 0..classes-1.
        validation: training images held out when nobody says otherwise.
        licence: the terms, in a line.
        folder: where the files lie under ROOT/NAME.
        url: the folder they are published in.
        files: the published files; "idx": training images and labels, then test images and labels;
            "records": the training batches, then the test set, without which one can do.
        extra: files that are read if present, but that nobody publishes.
        archive: the archive under `url` that holds `files`, if they are published as one.
        spare: last training images, never trained on: the test set of whoever lacks the published one.
        scale: the pixel value that becomes 1.
        mean: subtracted from each channel after scaling.
        std: divides each channel after that.
        augment: the augmentation that suits the set.
    """

    format: Literal["idx", "records", "digits"]
    shape: tuple[int, int, int]
    classes: int
    validation: int
    licence: str
    folder: str = ""
    url: str = ""
    files: tuple[File, ...] = ()
    extra: tuple[File, ...] = ()
    archive: File | None = None
    spare: int = 0
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: str = "none"


class FileState(NamedTuple):
    """One file on disk (`path`) held against what was published (`bytes`, `sha256`)."""

    path: Path
    bytes: int
    sha256: str
    state: Literal["ok", "missing", "truncated", "checksum differs"]


def _gz(name: str, size: int, sha256: str, plain_size: int, plain_sha256: str) -> File:
    return File(name + ".gz", size, sha256, File(name, plain_size, plain_sha256))


SETS: dict[str, Source] = {
    "mnist": Source(
        format="idx", shape=(1, 28, 28), classes=10, validation=5000,
        licence="Y. LeCun, C. Cortes, C. Burges; commonly stated as CC BY-SA 3.0",
        folder="MNIST/raw", url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=(
            _gz("train-images-idx3-ubyte",
                9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
            _gz("train-labels-idx1-ubyte",
                28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
            _gz("t10k-images-idx3-ubyte",
                1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
            _gz("t10k-labels-idx1-ubyte",
                4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        ),
    ),
    "fashion_mnist": Source(
        format="idx", shape=(1, 28, 28), classes=10, validation=5000,
        licence="MIT, Zalando SE",
        folder="FashionMNIST/raw", url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files=(
            _gz("train-images-idx3-ubyte",
                26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
            _gz("train-labels-idx1-ubyte",
                29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
            _gz("t10k-images-idx3-ubyte",
                4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
            _gz("t10k-labels-idx1-ubyte",
                5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
        ),
    ),
    "cifar10": Source(
        format="records", shape=(3, 32, 32), classes=10, validation=5000,
        licence="no explicit licence; cite A. Krizhevsky, Learning Multiple Layers of Features, 2009",
        folder="cifar-10-batches-bin", url="https://www.cs.toronto.edu/~kriz/",
        files=tuple(File(name, 30_730_000, sha256) for name, sha256 in (
            ("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
            ("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
            ("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
            ("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
            ("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
            ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
        )),
        extra=(File("test_batch_1017.bin", 3_125_241,
                    "c77ad46116beb3508f55d38aa34893560beae9515f9aca4a4dd0ea3617ac289e"),),
        archive=File("cifar-10-binary.tar.gz", 170_052_171,
                     "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        spare=5000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), augment="crop_flip",
    ),
    "digits": Source(
        format="digits", shape=(1, 8, 8), classes=10, validation=240, scale=16.0,
        licence="CC BY 4.0, E. Alpaydin and C. Kaynak, UCI; embedded in scikit-learn",
    ),
}


def source(name: str) -> Source:
    """Return what is known of the data set `name`; OptionError if nobody knows it."""
    if name not in SETS:
        raise unknown("data set", name, SETS)
    return SETS[name]


def directory(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds, or would hold, the files of `name`.

    That is ROOT/NAME/FOLDER, or ROOT/FOLDER where only that exists. ROOT defaults to the environment
    variable SYNAPTREE_DATA, then to ./data.
    """
    base = Path(root or os.environ.get("SYNAPTREE_DATA") or "data")
    nested, flat = (base / part / source(name).folder for part in (name, ""))
    return flat if flat.is_dir() and not nested.is_dir() else nested


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
    A set that is embedded in a library has no files.

    >>> verify("digits")
    []
    """
    folder = directory(name, root)
    extra = [file for file in SETS[name].extra if (folder / file.name).exists()]
    return [_state(*locate(folder, file)) for file in (*SETS[name].files, *extra)]


def download(
    name: str, root: str | os.PathLike[str] | None = None, *, mirror: str | None = None, progress: bool = False
) -> None:
    """Fetch what is missing or damaged of the data set `name` to ROOT/NAME, as published.

    One request a file, bounded in time. A file takes its place only when its checksum is right, so
    an interrupted or damaged transfer leaves what was there.

    Args:
        name: a name in SETS.
        root: the directory of all data sets; by default $SYNAPTREE_DATA, then ./data.
        mirror: the address of a folder that holds the same files, to use instead of the published one.
        progress: show a progress bar on the error stream.

    Raises:
        DataError: a file could not be fetched, or is not the one that was published.
    """
    known = source(name)
    folder = directory(name, root)
    wanting = [file for file in known.files if _state(*locate(folder, file)).state != "ok"]
    url = mirror.rstrip("/") + "/" if mirror else known.url
    if wanting and known.archive:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:
            _fetch(url, Path(temporary), known.archive, progress)
            _unpack(Path(temporary) / known.archive.name, folder, wanting)
        return
    for file in wanting:
        _fetch(url, folder, file, progress)


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
