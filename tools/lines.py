"""Count lines of code: no blanks, comments or docstrings. `make lines` fails where a limit is passed."""

import ast
import io
import sys
import tokenize
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "synaptree"
LIMITS = {"core": 1150}
FILE_LIMIT, METHOD_LIMIT = 400, 80


def code_lines(text: str) -> int:
    """Return the number of lines that hold code."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> int:
    counts = {path.relative_to(SOURCE): code_lines(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
    over = []
    for package in sorted({path.parts[0] if len(path.parts) > 1 else "." for path in counts}):
        files = {p: n for p, n in counts.items() if (p.parts[0] if len(p.parts) > 1 else ".") == package}
        total, limit = sum(files.values()), LIMITS.get(package)
        print(f"{total:6d}  {package}" + (f"  (limit {limit})" if limit else ""))
        for path, lines in files.items():
            print(f"        {lines:5d}  {path}")
            if lines > FILE_LIMIT:
                over.append(f"{path}: {lines} lines of code, more than {FILE_LIMIT}")
            elif package == "methods" and lines > METHOD_LIMIT:
                print(f"               more than {METHOD_LIMIT}: worth another thought")
        if limit and total > limit:
            over.append(f"{package}: {total} lines of code, more than {limit}")
    print(f"{sum(counts.values()):6d}  in all")
    print(*over, sep="\n")
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
