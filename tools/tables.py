"""Write the tables of recorded results into README.md, between its two markers; `--check` only compares."""

import sys
from itertools import groupby
from pathlib import Path

from synaptree.cli.show import MARGINS
from synaptree.report.comparison import brief, markdown, summary
from synaptree.results import read

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: written by tools/tables.py -->\n", "<!-- end of results -->"


def tables() -> str:
    """Return one Markdown table for each recorded recipe: its telling rounds."""
    results = sorted(read([ROOT / "results"]), key=lambda result: result.recipe)
    parts = []
    for _, together in groupby(results, key=lambda result: result.recipe):
        group = list(together)
        parts.append(markdown(brief(summary(group), MARGINS.get(group[0].config["data"], 0.2))))
    return "\n".join(parts)


def main() -> int:
    """Rewrite or compare README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    wanted = f"{before}{BEGIN}\n{tables()}\n{END}{after}"
    if "--check" in sys.argv:
        return int(text != wanted)
    (ROOT / "README.md").write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
