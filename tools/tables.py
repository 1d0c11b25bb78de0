"""Write the tables of recorded results: all of them into docs/results.md, one row each into README.md, pictures beside.

`--check` only compares the tables.
"""

import sys
from itertools import groupby
from pathlib import Path

from synaptree.cli.show import MARGINS
from synaptree.report.comparison import Row, brief, markdown, sparsest, summary
from synaptree.report.picture import picture
from synaptree.results import Result, read

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: written by tools/tables.py -->\n", "<!-- end of results -->"


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


def written(path: Path, text: str) -> str:
    """Return the content of a document with `text` between its markers."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Rewrite or compare the documents."""
    groups = recorded()
    wanted = {
        path: written(path, text)
        for path, text in ((ROOT / "README.md", headline(groups)), (ROOT / "docs" / "results.md", tables(groups)))
    }
    if "--check" in sys.argv:
        return int(any(path.read_text(encoding="utf-8") != text for path, text in wanted.items()))
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    for name, group in groups.items():
        picture(group, ROOT / "docs" / "pictures" / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
