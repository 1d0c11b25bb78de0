"""Comparing the topologies of networks on disk, each with each."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from synaptree.artifact.files import replacing
from synaptree.artifact.masks import StoredMasks, read_masks
from synaptree.core.errors import DataError, OptionError
from synaptree.measure.similarity import Similarity, check_same_network, compare
from synaptree.report.steps import steps

__all__ = ["ROUND0", "network_file", "show_similarity"]

ROUND0 = "round0"
"""As the seed network: what the two networks of a pair have in common in round 0 of their runs."""

_ROUND = re.compile(r"round_(\d+)\.safetensors")

_COLUMNS = {
    "overlap": "overlap", "chance": "overlap_chance", "seed floor": "seed_floor", "jaccard": "jaccard", "dice": "dice",
    "kappa": "kappa", "neuron": "neuron", "NNSTD": "nnstd", "NNSTD chance": "nnstd_chance",
}  # fmt: skip

Masks = dict[str, Tensor]


def show_similarity(
    places: Sequence[Path], *, seed_net: str | None = None, exclude: Sequence[str] = (), index: int | None = None,
    report: Path | None = None,
) -> None:  # fmt: skip
    """Print how alike the topologies of networks are, pair by pair, and a verdict on each pair.

    Args:
        places: files of networks, or folders of runs.
        seed_net: a file or folder likewise, or `ROUND0`; what all networks started from.
        exclude: shell patterns of layers that the totals leave out; those without a mask in any file are out anyway.
        index: of the round that is taken from run folders; the last by default.
        report: JSON file for all of it, with the measures of every layer.

    Raises:
        OptionError: fewer than two networks, a round that is not there, or a pattern that fits no layer.
        DataError: a folder without rounds, or no mask in any of the files.
        CheckpointError: a file is missing, damaged or of another kind.
        ShapeError: the files hold different networks.
    """
    if len(places) < 2:
        raise OptionError(f"wanted two networks or more to compare, got {len(places)}")
    if index is not None and not any(place.is_dir() for place in places):
        raise OptionError(f"--round {index} is for folders of runs, and none of these networks is given as one")
    files = [network_file(place, index) for place in places]
    starts = _starts(files, seed_net)
    stored = {file: read_masks(file) for file in dict.fromkeys([*files, *starts])}
    whole = _never_masked(stored)
    topologies = {file: _masks(one) for file, one in stored.items()}
    check_same_network({str(file): masks for file, masks in topologies.items()})
    for start in dict.fromkeys(starts):
        if all(bool(mask.all()) for mask in topologies[start].values()):
            raise OptionError(
                f"the seed network {start} is dense: all networks begin in it, and it explains nothing; "
                "leave --seed-net out, or give the sparse network they grew from"
            )
    numbers = list(combinations(range(len(files)), 2))
    pairs: dict[tuple[int, int], Similarity] = {}
    with steps(len(numbers)) as step:
        for a, b in numbers:
            step(f"comparing networks {a + 1} and {b + 1}")
            seed = _common(topologies[starts[a]], topologies[starts[b]]) if starts else None
            pairs[a, b] = compare(topologies[files[a]], topologies[files[b]], exclude=[*exclude, *whole], seed=seed)
    _print(files, pairs)
    if report is not None:
        _write(report, files, starts, pairs)


def network_file(place: Path, index: int | None = None) -> Path:
    """Return the file of a network: `place` itself, or that of a round, the last by default, in a run's folder.

    Raises:
        DataError: a folder without rounds.
        OptionError: the round is not there.
    """
    if not place.is_dir():
        return place
    rounds = {int(m[1]): path for path in place.iterdir() if (m := _ROUND.fullmatch(path.name))}
    if not rounds:
        runs = sorted({str(path.parent) for path in place.glob("*/round_*.safetensors")})
        hint = f"; it has runs within: {', '.join(runs)}" if runs else ""
        raise DataError(f"{place} is no folder of a run: it holds no file round_NN.safetensors{hint}")
    if index is not None and index not in rounds:
        raise OptionError(f"{place} has no round {index}, but {', '.join(map(str, sorted(rounds)))}")
    return rounds[max(rounds) if index is None else index]


def _starts(files: Sequence[Path], seed_net: str | None) -> list[Path]:
    """Return the file of the seed network of each network, or nothing."""
    if seed_net is None:
        return []
    if seed_net == ROUND0:
        return [network_file(file.parent, 0) for file in files]
    return [network_file(Path(seed_net))] * len(files)


def _never_masked(stored: dict[Path, StoredMasks]) -> list[str]:
    masked = {name for one in stored.values() for name, mask in one.masks.items() if mask.dim() > 1}
    if not masked:
        raise DataError(f"none of these networks has a mask, they are dense: {', '.join(map(str, stored))}")
    return sorted({name for one in stored.values() for name in one.whole} - masked)


def _masks(stored: StoredMasks) -> Masks:
    """Return the masks of all weights, in the order of the layers as far as it is known."""
    masks = stored.masks | {name: torch.ones(shape, dtype=torch.bool) for name, shape in stored.whole.items()}
    # a file keeps the order of its masks only
    return {name: masks[name] for name in sorted(masks, key=_natural)} if stored.whole else masks


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts fc2 before fc10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _common(a: Masks, b: Masks) -> Masks:
    return {name: a[name] & b[name] for name in a}


def _print(files: Sequence[Path], pairs: dict[tuple[int, int], Similarity]) -> None:
    for number, file in enumerate(files, 1):
        typer.echo(f"{number}: {file}")  # no table, which would break the paths
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    out.add_column("pair", no_wrap=True)
    for column in _COLUMNS:
        out.add_column(column, justify="right")
    for (a, b), similarity in pairs.items():
        values = (getattr(similarity.total, measure) for measure in _COLUMNS.values())
        out.add_row(f"{a + 1}-{b + 1}", *("-" if value is None else f"{value:.3f}" for value in values))
    Console().print(out)
    for (a, b), similarity in pairs.items():
        typer.echo(f"{a + 1}-{b + 1}: {similarity.verdict}")
    first = next(iter(pairs.values()))
    if first.excluded:
        typer.echo(f"left out of the totals: {', '.join(first.excluded)}")
    for note in dict.fromkeys(note for similarity in pairs.values() for note in similarity.notes):
        typer.echo(note)


def _write(
    report: Path, files: Sequence[Path], starts: Sequence[Path], pairs: dict[tuple[int, int], Similarity]
) -> None:
    content = {
        "networks": list(map(str, files)),
        "seeds": list(map(str, starts)) or None,
        "pairs": [
            {"networks": [a, b], "clear": similarity.clear, "verdict": similarity.verdict, **asdict(similarity)}
            for (a, b), similarity in pairs.items()
        ],
    }
    with replacing(report) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")
