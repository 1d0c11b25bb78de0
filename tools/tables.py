"""Write the tables of recorded results into README.md, between its two markers, and their pictures into docs/.

`--check` only compares the tables.
"""

import sys
from itertools import groupby
from pathlib import Path

from synaptree.cli.show import MARGINS
from synaptree.report.comparison import brief, markdown, summary
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


def tables(groups: dict[str, list[Result]]) -> str:
    """Return one Markdown table for each method and recipe: its telling rounds."""
    margins = (MARGINS.get(group[0].config["data"], 0.2) for group in groups.values())
    return "\n".join(
        markdown(brief(summary(group), margin)) for group, margin in zip(groups.values(), margins, strict=True)
    )


def main() -> int:
    """Rewrite or compare README.md."""
    groups = recorded()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    wanted = f"{before}{BEGIN}\n{tables(groups)}\n{END}{rest.split(END)[1]}"
    if "--check" in sys.argv:
        return int(text != wanted)
    (ROOT / "README.md").write_text(wanted, encoding="utf-8")
    for name, group in groups.items():
        picture(group, ROOT / "docs" / "pictures" / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
