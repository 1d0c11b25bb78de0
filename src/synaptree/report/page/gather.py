"""Finding the runs that go onto a page, finished or not."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from synaptree.core.errors import DataError
from synaptree.results import PROGRESS, Result, read

__all__ = ["Found", "Gathered", "gather"]


@dataclass(frozen=True)
class Found:
    """A run and where it was found.

    Attributes:
        result: what it recorded.
        file: that says so.
        written: when, in seconds since 1970.
    """

    result: Result
    file: Path
    written: float

    @property
    def name(self) -> str:
        """Its method or control, and its seed."""
        return f"{self.result.control or self.result.method}, seed {self.result.seed}"

    def round_file(self, index: int) -> Path | None:
        """Return the file of the network at the end of a round, if it lies beside the result."""
        file = self.file.with_name(f"round_{index:02d}.safetensors")
        return file if file.exists() else None


@dataclass(frozen=True)
class Gathered:
    """What was found, and in sentences what was left out."""

    runs: list[Found]
    left_out: list[str]


def gather(places: Iterable[Path]) -> Gathered:
    """Return the runs in result files and folders, each once, in order of name.

    Folders are searched at any depth. Other files in them are left out; of two files of the same run the later one
    counts, or that with networks beside it.

    Raises:
        DataError: a file that was named cannot be used, or nothing was found at all.
    """
    found: dict[tuple[str, str, str], Found] = {}
    left_out: list[str] = []
    places = [Path(place) for place in places]
    for place in places:
        for file in _files(place):
            try:
                run = Found(read([file])[0], file, file.stat().st_mtime)
            except DataError as error:
                if file == place:
                    raise
                left_out.append(str(error))
                continue
            key = (run.result.recipe, run.result.control or "", run.result.config_hash)
            found[key] = max(found.get(key, run), run, key=_worth)
    if not found:
        said = "; ".join(left_out) or "neither a result (*.json) nor the sign of a run at work is there"
        where = ", ".join(map(str, places))
        raise DataError(f"no runs in {where}: {said}; `synaptree run` writes them into its --out folder")
    return Gathered(sorted(found.values(), key=_order), left_out)


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    yield from sorted(path for pattern in ("*.json", PROGRESS) for path in place.rglob(pattern) if path.is_file())


def _worth(run: Found) -> tuple[bool, float]:
    """Say which of two files of the same run counts: a copy elsewhere has no networks beside it."""
    return any(run.file.parent.glob("round_*.safetensors")), run.written


def _order(run: Found) -> tuple[str, str, str, int]:
    return run.result.recipe, run.result.method, run.result.control or "", run.result.seed
