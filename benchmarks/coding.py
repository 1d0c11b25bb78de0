"""How fast masks and values are written and read on one core, how near their sizes come to the entropy.

Speeds are those of the dense fp32 weights the sections stand for, in 10^6 bytes per second of processor time. "coder"
is the share of the time spent inside the range coder, the limit. The size of a mask is divided by its layer-wise
entropy, that of int8 values by the entropy of the integers plus 16 bits a scale.
Prints a table: python benchmarks/coding.py [--values int8 fp32 fp16] [--rounds N] [--record]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import constriction
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from synaptree.format.coding import decode_mask, encode_mask, mask_coding, mask_entropy
from synaptree.format.values import VALUE_CODINGS, decode_values, encode_values, quantize
from synaptree.measure.clock import interleaved
from synaptree.results import environment

RECORD = Path(__file__).parent / "recorded" / "coding.json"
LAYERS = (((300, 784), 1), ((512, 4608), 1), ((512, 512), 9))  # shape of the mask, weights an entry stands for
DENSITIES = (0.02, 0.05, 0.1, 0.5, 1.0)
GOAL = 50.0  # MB/s
SKEW = 0.6  # sigma of the logarithm of the scales of rows and columns

Mask = npt.NDArray[np.bool_]


def uniform(shape: tuple[int, int], density: float, rng: np.random.Generator) -> Mask:
    """Return a mask whose entries are all alike."""
    return rng.random(shape) < density


def skewed(shape: tuple[int, int], density: float, rng: np.random.Generator) -> Mask:
    """Return the mask of the largest weights of a layer whose rows and columns have scales of their own."""
    scales = rng.lognormal(sigma=SKEW, size=(shape[0], 1)) * rng.lognormal(sigma=SKEW, size=(1, shape[1]))
    weights = np.abs(rng.laplace(size=shape)) * scales
    return weights >= np.quantile(weights, 1 - density)


MASKS: dict[str, Callable[[tuple[int, int], float, np.random.Generator], Mask]] = {
    "uniform": uniform, "skewed": skewed,
}  # fmt: skip


class Clocked:
    """The library's coder, adding up the seconds spent inside it."""

    def __init__(self, coder: Any, spent: list[float]) -> None:
        self._coder, self._spent = coder, spent

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.process_time()
            try:
                return getattr(self._coder, name)(*args)
            finally:
                self._spent[0] += time.process_time() - started

        return call


@contextmanager
def clocked() -> Iterator[list[float]]:
    """Within this, the seconds inside the coder are added to the list's only number."""
    spent, queue = [0.0], constriction.stream.queue
    made = {name: getattr(queue, name) for name in ("RangeEncoder", "RangeDecoder")}
    with (
        patch.object(queue, "RangeEncoder", lambda: Clocked(made["RangeEncoder"](), spent)),
        patch.object(queue, "RangeDecoder", lambda words: Clocked(made["RangeDecoder"](words), spent)),
    ):
        yield spent


def coder_share(run: Callable[[], object], rounds: int) -> float:
    """Return the share of the time of `run` that is spent inside the coder."""
    shares = []
    with clocked() as spent:
        for _ in range(rounds):
            spent[0], started = 0.0, time.process_time()
            run()
            shares.append(spent[0] / (time.process_time() - started))
    return float(np.median(shares))


def entropy(integers: npt.NDArray[np.int8]) -> float:
    """Return the empirical entropy in bits."""
    counts = np.unique(integers, return_counts=True)[1]
    return float((counts * np.log2(integers.size / counts)).sum())


def measure(
    layer: tuple[tuple[int, int], int], density: float, kind: str, coding: str, rounds: int
) -> dict[str, Any]:
    """Write and read one layer."""
    (shape, each), rng = layer, np.random.default_rng(0)
    mask = MASKS[kind](shape, density, rng)
    values = (0.03 * rng.laplace(size=each * np.count_nonzero(mask))).astype(np.float32)
    rows = np.repeat(np.arange(shape[0]), each * np.count_nonzero(mask, axis=1))
    channels = (rows, shape[0]) if coding == "int8" else ()

    def write() -> tuple[bytes, bytes]:
        return encode_mask(mask), encode_values(values, coding, *channels)

    sections = write()

    def read() -> tuple[Mask, npt.NDArray[np.float32]]:
        return decode_mask(sections[0], shape), decode_values(sections[1], values.size, *channels)

    if (read()[0] != mask).any():
        raise AssertionError("the mask did not come back")
    timings = interleaved({"write": write, "read": read}, rounds=rounds, timer=time.process_time)
    megabytes = 4 * each * mask.size / 1e6
    row = {
        "shape": shape, "weights_per_entry": each, "density": density, "mask": kind, "values": coding,
        "mask_coding": mask_coding(sections[0]), "mask_bytes": len(sections[0]), "values_bytes": len(sections[1]),
        "mask_of_entropy": 8 * len(sections[0]) / mask_entropy(mask) if density < 1 else None,
        "values_of_entropy": None,
    }  # fmt: skip
    if coding == "int8":
        bits = entropy(quantize(values, *channels).integers) + 16 * shape[0]
        row["values_of_entropy"] = 8 * len(sections[1]) / bits
    for name, run in (("write", write), ("read", read)):
        row[f"{name}_mb_per_s"] = megabytes / timings.median(name)
        row[f"{name}_coder_share"] = coder_share(run, rounds)
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """Return what the table says of a case."""
    sizes = [f"{row[key]:.3f}" if row[key] else "-" for key in ("mask_of_entropy", "values_of_entropy")]
    speeds = [(row[f"{name}_mb_per_s"], row[f"{name}_coder_share"]) for name in ("write", "read")]
    layer = " x ".join(map(str, (*row["shape"], row["weights_per_entry"])))
    return [
        layer, f"{row['density']}", row["mask"], row["values"], row["mask_coding"],
        *(text for speed, share in speeds for text in (f"{speed:.0f}", f"{share:.0%}")), *sizes,
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", nargs="+", choices=VALUE_CODINGS, default=["int8"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="write benchmarks/recorded/coding.json")
    options = parser.parse_args()
    cases = [
        (layer, density, kind, coding)
        for coding, layer, density, kind in product(options.values, LAYERS, DENSITIES, MASKS)
        if density < 1 or kind == "uniform"
    ]
    rows = [measure(*case, rounds=options.rounds) for case in cases]
    table = Table(title="Masks and values, MB/s of dense fp32 weights on one core, sizes against the entropy")
    for column in ("layer", "density", "mask", "values", "coding"):
        table.add_column(column, no_wrap=True)
    for column in ("write", "coder", "read", "coder", "mask", "values"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=120).print(table)
    slowest = {name: min(row[f"{name}_mb_per_s"] for row in rows) for name in ("write", "read")}
    print(f"slowest: {slowest['write']:.0f} MB/s written, {slowest['read']:.0f} MB/s read; the goal is {GOAL:.0f}")
    if options.record:
        RECORD.write_text(json.dumps({**environment(), "goal_mb_per_s": GOAL, "rows": rows}, indent=1))
        print(f"written to {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
