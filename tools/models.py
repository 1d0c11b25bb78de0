"""Write the table of kinds of models into docs/models.md, from what tests/models declares. `--check` only compares."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "models"))

from model_kinds import KINDS, Kind  # noqa: E402 - found there

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- kinds of models: written by tools/models.py -->\n", "<!-- end of kinds of models -->"
HEADS = {
    "masks": "masks kept", "gradients": "`rigl`", "activity": "`dynamic_synaptic`", "nnrelief": "`nnrelief`",
    "compaction": "`compact`", "file": "`.syn`", "weights": "weights", "engine": "engine",
}  # fmt: skip


def table() -> str:
    """Return a row for each kind of model, and the sentences its cells point to."""
    sentences: list[str] = []
    rows = [[kind.title, *(cell(kind, link, sentences) for link in HEADS)] for kind in KINDS.values()]
    lines = [["model", *HEADS.values()], [":--", *(":-:" for _ in HEADS)], *rows]
    said = [f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *said, ""])


def cell(kind: Kind, link: str, sentences: list[str]) -> str:
    """Return the cell of a link; what it says beside is added to the sentences."""
    if link in kind.refuses:
        return f"no {number(quoted(kind.refuses[link]), sentences)}"
    if link not in kind.leaves:
        return "✓"
    said = kind.leaves[link]
    return f"✓ {number(f'left alone: `{said}`' if link == 'activity' else quoted(said), sentences)}"


def quoted(beginning: str) -> str:
    """Return the beginning of a sentence as code, in which single backticks are themselves."""
    return f"`` {beginning} ... ``"


def number(sentence: str, sentences: list[str]) -> str:
    """Return the number of a sentence, which is added where it is new."""
    if sentence not in sentences:
        sentences.append(sentence)
    return f"[{sentences.index(sentence) + 1}]"


def page(text: str) -> str:
    """Return the page with its table written anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        if page(text) != text:
            print(f"{PAGE.relative_to(ROOT)} is not what the tests declare: run python tools/models.py")
            return 1
        return 0
    PAGE.write_text(page(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
