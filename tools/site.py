"""Hooks of the documentation: pages made from the registry and from files outside docs/, and links between them."""

import inspect
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "native/README.md": "kernels.md",
    "src/synaptree/format/SPEC.md": "format.md",
}  # fmt: skip
"""File outside docs/ -> the page it becomes."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the cards of the methods, and the files that lie elsewhere."""
    files.append(File.generated(config, "methods.md", content=cards()))
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=linked((ROOT / source).read_text(), source)))
    return files


def on_page_markdown(markdown: str, *, page: object, **_: object) -> str:
    """Let links out of docs/ lead to the page a file became, or else show its path."""
    name = page.file.src_uri
    return markdown if name in ELSEWHERE.values() else linked(markdown, f"docs/{name}")


def cards() -> str:
    """Return a page with the card of every registered method."""
    from synaptree.methods import METHODS

    parts = ["# Methods\n\nThe card of each method, as in its source. `synaptree methods NAME` shows it too.\n"]
    for name, build in METHODS.items():
        call = ",\n".join(f"    {option!s}" for option in inspect.signature(build).parameters.values())
        code = f"```python\n{name}(\n{call},\n)\n```"
        parts.append(f"## {name}\n\n{code}\n\n{card(inspect.getdoc(build) or '')}\n")
    return "\n".join(parts)


def card(text: str) -> str:
    """Return a docstring as Markdown: options as a list, the labels of its parts in bold."""
    text = re.sub(r"(?m)^Args:\n((?: {4}.*\n|\n)+)", lambda found: f"**Options:**\n\n{options(found[1])}\n", text)
    return re.sub(r"(?m)(^|\. |\n)(Rule|When to use it|When not|Paper|Differs):", r"\1\n\n**\2:**", text)


def options(block: str) -> str:
    """Return the lines of an `Args:` block as a list."""
    lines = [line[4:] for line in block.splitlines()]
    return "\n".join(re.sub(r"^(\w+): ", r"- `\1`: ", line) for line in lines)


def linked(markdown: str, source: str) -> str:
    """Return the text of the file `source` with links that hold on the site."""

    def link(found: re.Match[str]) -> str:
        label, target = found[1], found[2]
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        there = (ROOT / source).parent.joinpath(path).resolve()
        place = there.relative_to(ROOT).as_posix() if there.is_relative_to(ROOT) else path
        if page := ELSEWHERE.get(place):
            return f"[{label}]({page}{'#' + anchor if anchor else ''})"
        if place.startswith("docs/"):
            return f"[{label}]({place.removeprefix('docs/')}{'#' + anchor if anchor else ''})"
        return f"{label} (`{place}`)"

    return re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)", link, markdown)
