"""Write the tables of recorded results: all of them into docs/results.md, one row each into README.md, pictures beside.

The table of the engine's benchmark goes into docs/fast.md. `--check` only compares the tables.
"""

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from synaptree.cli.show import MARGINS
from synaptree.report.comparison import Row, brief, markdown, sparsest, summary
from synaptree.report.picture import picture
from synaptree.results import Result, read

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: written by tools/tables.py -->\n", "<!-- end of results -->"
ENGINE = "<!-- engine:begin -->\n", "<!-- engine:end -->"


def recorded() -> dict[str, list[Result]]:
    """Return the recorded results by method and recipe, which stands for its file."""
    results = sorted(read([ROOT / "results"]), key=_place)
    return {"-".join(place): list(group) for place, group in groupby(results, key=_place)}


def _place(result: Result) -> tuple[str, str]:
    return result.method, result.recipe


def margin(group: list[Result]) -> float:
    """Return how many points below dense count as the same on the data of a group."""
    return MARGINS.get(group[0].config["data"], 0.2)


def headline(groups: dict[str, list[Result]]) -> str:
    """Return one row for each method and recipe with a dense network: the sparsest that is as good on validation."""
    rows = [(summary(group), margin(group)) for group in groups.values()]
    best = [sparsest(found, allowed) for found, allowed in rows if _has_dense(found)]
    return markdown([row for row in best if row is not None])


def _has_dense(rows: list[Row]) -> bool:
    return any(row.control is None and row.round == 0 and row.density == 1 for row in rows)


def tables(groups: dict[str, list[Result]]) -> str:
    """Return a section for each method and recipe: its telling rounds and its picture."""
    return "\n".join(
        f"## {name}\n\n{markdown(brief(summary(group), margin(group)))}\n![{name}](pictures/{name}.png)\n"
        for name, group in groups.items()
    )


def engine(path: Path) -> str:
    """Return the table of the engine's benchmark, and where it was measured; "" where nothing is recorded."""
    if not path.exists():
        return ""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    head = ("network", "density", "batch", "ours, µs", "best dense", "its µs", "times", "goal")
    rows = [engine_cells(row) for row in recorded["rows"] if row["call"] != "engine(x)" or row["goal"] is not None]
    lines = [head, (":--", "--:", "--:", "--:", ":--", "--:", "--:", "--:"), *rows]
    versions, hardware = recorded["versions"], recorded["hardware"]
    others = ("onnxruntime", "openvino", "torch", "numpy")
    said = ", ".join(f"{name} {versions[name]}" for name in others if name in versions)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\n{hardware['cpu']}, {hardware['cores']} cores; {said}.\n"


def engine_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of that table; times to load and to call have no others beside them."""
    name = row["name"] + (", `engine(x)`" if row["call"] == "engine(x)" else "")
    goal, density = ("" if row[key] is None else f"{row[key]:g}" for key in ("goal", "density"))
    said = (name, density, str(row["batch"]))
    if "times" not in row:
        return (*said, seconds(row["ours"]), "", "", "", seconds(row["goal"]))
    micro = [f"{1e6 * row[key]:,.1f}" for key in ("ours", "theirs")]
    return (*said, micro[0], row["best"], micro[1], f"{row['times']:.1f}", goal)


def seconds(number: float) -> str:
    """Return a time in seconds, or in microseconds where it is short."""
    return f"{number:.2f} s" if number >= 0.01 else f"{1e6 * number:.2f} µs"


def written(path: Path, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Return the content of a document with `text` between its markers."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    between = f"\n{text}\n" if text else ""
    return f"{before}{begin}{between}{end}{rest.split(end)[1]}"


def main() -> int:
    """Rewrite or compare the documents."""
    groups = recorded()
    wanted = {
        path: written(path, text)
        for path, text in ((ROOT / "README.md", headline(groups)), (ROOT / "docs" / "results.md", tables(groups)))
    }
    fast = ROOT / "docs" / "fast.md"
    wanted[fast] = written(fast, engine(ROOT / "benchmarks" / "recorded" / "engine.json"), *ENGINE)
    if "--check" in sys.argv:
        return int(any(path.read_text(encoding="utf-8") != text for path, text in wanted.items()))
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    for name, group in groups.items():
        picture(group, ROOT / "docs" / "pictures" / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
