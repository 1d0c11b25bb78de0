"""Write every table of figures in README.md and docs/ from what was recorded under results/ and benchmarks/recorded/.

Each stands between markers that name it. Pictures are drawn beside them. `--check` only compares the tables, and finds
those that somebody typed.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from synaptree.cli.compare import by_group
from synaptree.cli.compare import recorded as compared
from synaptree.cli.groups import Group, listed, missing
from synaptree.cli.show import MARGINS
from synaptree.report import standings_picture, standings_table, which
from synaptree.report.comparison import Row, brief, markdown, sparsest, summary
from synaptree.report.group import Task
from synaptree.report.picture import picture
from synaptree.report.standings import Level
from synaptree.report.tables import markdown as table_of
from synaptree.results import Result, read

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks" / "recorded"
ENGINE = "<!-- engine:begin -->\n", "<!-- engine:end -->"
FIGURE = re.compile(
    r"[+-]?(\d+\.\d+|\d{1,3}(,\d{3})+)( ?(%|x|s|ms|µs|MB|kB|GB|points|bytes))?( (±|->) [\d.]+)?( \[.*\])?"
)
"""A cell that somebody measured: a number with decimals, or of four digits and more."""


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


def size(path: Path) -> str:
    """Return the table of what networks take as files."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return table_of([size_cells(row) for row in rows], ("network", "masks", "values"))


def size_cells(row: dict[str, Any]) -> dict[str, str]:
    """Return a row of that table; a network that was not trained has no accuracy."""
    tested = f"{row['accuracy']:.2f} -> {row['accuracy_stored']:.2f}" if "accuracy" in row else ""
    return {
        "network": row["network"], "masks": row["masks"], "values": row["values"], "density": f"{row['existing']:.3f}",
        "bytes": f"{row['bytes']:,}", "times smaller": f"{row['times']:.1f}", "zstd": f"{row['zstd']:,}",
        "CSR, 16 bits": f"{row['csr16']:,}", "entropy": f"{row['bound']:,.0f}", "test accuracy %": tested,
    }  # fmt: skip


def checkpoints(path: Path) -> str:
    """Return the table of what a checkpoint costs."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return table_of([{
        "network": row["network"], "one checkpoint": f"{1000 * row['save']['wall']:.0f} ms",
        "share of an epoch": f"{100 * row['save']['wall'] / row['epoch']['wall']:.2f} %",
        "masks, beside bit-packed": f"{row['bytes']['masks'] / row['bits']:.3f} x",
        "ages, counters": f"{row['bytes']['ages']:,}, {row['bytes']['counters']:,} bytes",
        "going on, data read": f"{row['again']['wall']:.2f} s",
    } for row in rows], ("network",))  # fmt: skip


def compressions(path: Path) -> str:
    """Return the table of what `compress` found in a given time, and where that was measured."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    rows = sorted(recorded["rows"], key=lambda row: (row["case"], row["seed"]))
    table = table_of([compression_cells(row) for row in rows], ("network, data",))
    hardware, torch = recorded["hardware"], recorded["versions"]["torch"]
    return f"{table}\n{hardware['cpu']}, {hardware['cores']} cores, {recorded['threads']} thread; torch {torch}.\n"


def compression_cells(row: dict[str, Any]) -> dict[str, str]:
    """Return a row of that table."""
    validation, test = (f"{row[of + '_before']:.2f} -> {row[of + '_after']:.2f}" for of in ("validation", "test"))
    return {
        "network, data": f"{row['model']}, {row['case']}", "seed": str(row["seed"]), "budget": row["budget"],
        "seconds (processor)": f"{row['seconds']:.0f} ({row['processor_seconds']:.0f})",
        "weights": f"{row['weights']:,}", "left": f"{row['left']:,}", "times fewer": f"{row['times']:.0f}",
        "file, bytes": f"{row['file']:,} ({row['values']})", "validation %": validation, "test %": test,
        "engine, µs": f"{row['engine_us']:.1f}", "fastest dense, µs": f"{row['dense_us']:.1f} ({row['dense']})",
    }  # fmt: skip


GROWTH = {
    "strategic": "strategic_synthesis-lenet_300_100-short", "random": "random_growth-lenet_300_100-random-short",
    "gradient": "gradient_growth-lenet_300_100-gradient-short",
}  # fmt: skip
"""Rules of growth -> method and recipe."""


def growth(groups: dict[str, list[Result]]) -> str:
    """Return what networks of three rules of growth are, grown (round 1) and pruned (round 2)."""
    rows = {rule: {row.round: row for row in summary(groups[name])} for rule, name in GROWTH.items()}
    weights = {rule: fmean(result.rounds[2].weights_alive for result in groups[name]) for rule, name in GROWTH.items()}
    accuracy = {rule: [f"{100 * (row[index].accuracy or 0):.2f}" for index in (1, 2)] for rule, row in rows.items()}
    lines = {
        "grown, test accuracy %": {rule: found[0] for rule, found in accuracy.items()},
        "pruned, test accuracy %": {rule: found[1] for rule, found in accuracy.items()},
        "pruned, weights": {rule: f"{number:,.0f}" for rule, number in weights.items()},
    }
    return table_of([{"": name, **cells} for name, cells in lines.items()], ("",))


def similarity(path: Path) -> str:
    """Return how alike the networks of the three rules are, means over seeds."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    rules = {"strategic_synthesis": "strategic", "random_growth": "random", "gradient_growth": "gradient"}
    measures = {
        "overlap": "overlap", "chance": "overlap_chance", "seed floor": "seed_floor",
        "with independent growth": "seed_chance", "matched (NNSTD)": "nnstd", "its chance": "nnstd_chance",
    }  # fmt: skip
    pairs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:  # of runs in folders called METHOD-sSEED-HASH
        pair = ", ".join(rules[row[side].partition("-")[0]] for side in "ab")
        pairs.setdefault((row["round"], pair), []).append(row)
    lines = [
        {"pair": pair, "round": {1: "grown", 2: "pruned"}[number]}
        | {name: f"{fmean(row[key] for row in together):.3f}" for name, key in measures.items()}
        for (number, pair), together in pairs.items()
    ]
    return table_of(lines, ("pair", "round"))


def comparison(found: Mapping[Task, Sequence[Level]]) -> str:
    """Return a section for each task with more than one level: its table, and its picture."""
    return "\n".join(
        f"## {task.title}\n\n{standings_table.markdown(levels)}\n![{task.group}](pictures/compare-{task.group}.png)\n"
        for task, levels in found.items()
    )


def answers(found: Mapping[Task, Sequence[Level]], results: Sequence[Result]) -> str:
    """Return which method to take, and what was not run, by the recipes there are."""
    with chdir(ROOT):
        recipes, _ = listed()
    done = {result.config_hash for result in results if result.status == "done"}
    left = missing(Group("all", frozenset(), tuple(recipes)), done, Path("runs"), full=True)
    long, short = sum(one.full for one in recipes), by_group(part for part in left if not part.of.full)
    whole = long - sum(part.of.full for part in left)
    return f"{which.markdown(found, short)}\nOf the {long} long forms of recipes (`-full`), {whole} were run.\n"


def markers(name: str) -> tuple[str, str]:
    """Return what stands before and behind a table in a document."""
    return f"<!-- {name}: written by tools/tables.py -->\n", f"<!-- end of {name} -->"


def written(text: str, table: str, begin: str, end: str) -> str:
    """Return a document with `table` between its markers."""
    before, rest = text.split(begin)
    between = f"\n{table}\n" if table else ""
    return f"{before}{begin}{between}{end}{rest.split(end)[1]}"


def typed(text: str) -> Iterator[str]:
    """Yield the tables of figures in a document that stand between no markers, by their first line."""
    bare = re.sub(r"<!-- ([\w:]+)[^>]*-->.*?<!-- (end of \1|engine:end) -->", "", text, flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", bare, flags=re.MULTILINE):
        cells = [cell.strip(" *") for line in table.splitlines() for cell in line.split("|")]
        if sum(FIGURE.fullmatch(cell) is not None for cell in cells) > 1:
            yield table.partition("\n")[0]


def documents(groups: dict[str, list[Result]], found: Mapping[Task, Sequence[Level]]) -> dict[Path, str]:
    """Return the documents as they should be."""
    docs, results = ROOT / "docs", [result for group in groups.values() for result in group]
    parts = [
        (ROOT / "README.md", headline(groups), markers("results")),
        (docs / "results.md", tables(groups), markers("results")),
        (docs / "results.md", growth(groups), markers("growth")),
        (docs / "results.md", similarity(BENCHMARKS / "similarity.json"), markers("similarity")),
        (docs / "fast.md", engine(BENCHMARKS / "engine.json"), ENGINE),
        (docs / "small.md", size(BENCHMARKS / "size.json"), markers("size")),
        (docs / "resume.md", checkpoints(BENCHMARKS / "checkpoint.json"), markers("checkpoints")),
        (docs / "compress.md", compressions(BENCHMARKS / "compress.json"), markers("compressions")),
        (docs / "compare.md", comparison(found), markers("comparison")),
        (docs / "which.md", answers(found, results), markers("answers")),
    ]
    texts: dict[Path, str] = {}
    for path, table, marked in parts:
        texts[path] = written(texts.get(path) or path.read_text(encoding="utf-8"), table, *marked)
    return texts


def wrong(wanted: Mapping[Path, str]) -> list[str]:
    """Return what is wrong with the documents, a sentence each."""
    old = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    said = [f"{path.relative_to(ROOT)}: not the tables of the records; `make tables` writes them" for path in old]
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for first in typed(path.read_text(encoding="utf-8")):
            said.append(f"{path.relative_to(ROOT)}: typed by hand, record its figures and write it here: {first}")
    return said


def main() -> int:
    """Rewrite or compare the documents."""
    groups, found = recorded(), compared(ROOT / "results")
    wanted = documents(groups, found)
    if "--check" in sys.argv:
        problems = wrong(wanted)
        for problem in problems:
            print(problem, file=sys.stderr)
        return int(bool(problems))
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    pictures = ROOT / "docs" / "pictures"
    for name, group in groups.items():
        picture(group, pictures / f"{name}.png")
    for task, levels in found.items():
        standings_picture.picture(levels, pictures / f"compare-{task.group}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
