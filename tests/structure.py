"""Figures about the structure of the package: ``python tests/structure.py``.

Prints modules, lines of code (without docstrings, comments and blank lines), functions over 50 lines, and circles of
imports between packages. A function's length counts its lines of code, its signature included.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

LONGEST_FUNCTION = 50
PACKAGE = Path(__file__).parents[1] / "unetcli"
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code.

    >>> sorted(code_lines('# why\\n\\ndef f():\\n    "A docstring."\\n    return 1  # one\\n'))
    [3, 5]
    """
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {line for token in tokens if token.type not in NOT_CODE for line in range(token.start[0], token.end[0] + 1)}
    return held - docstring_lines(ast.parse(text))


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines of docstrings, those of attributes included."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Each function of a module with its lines of code."""
    lines = code_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))


def modules() -> dict[str, str]:
    """Text of every module, by its dotted name; a package goes by its own name."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(text: str, *, at_import: bool = False) -> set[str]:
    """Dotted names of the package that a module imports; ``at_import``: only what its own import runs."""
    tree = ast.parse(text)
    nodes = ast.walk(tree) if not at_import else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name}
    return found


def room(name: str) -> str:
    """The package that a module lies in; a module at the top is a room of its own.

    >>> room("unetcli.volumes.store"), room("unetcli.lazy")
    ('volumes', 'lazy')
    """
    return name.split(".")[1] if "." in name else PACKAGE.name


def arrows(texts: dict[str, str]) -> dict[str, set[str]]:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = {}
    for name, text in texts.items():
        others = {room(other) for other in imported(text) if other in texts}
        found.setdefault(room(name), set()).update(others - {room(name), PACKAGE.name})
    return found


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of rooms that import each other, directly or through others.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    True
    """
    reached = {start: _reach(start, edges) for start in edges}
    groups = {
        frozenset({start} | {other for other in reached[start] if start in reached.get(other, set())})
        for start in edges
        if start in reached[start]
    }
    return [set(group) for group in groups]


def _reach(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for other in edges.get(waiting.pop(), set()) - found:
            found.add(other)
            waiting.append(other)
    return found


def main() -> None:
    texts = modules()
    print(f"modules: {len(texts)}")
    print(f"lines of code: {sum(len(code_lines(text)) for text in texts.values())}")
    for name, text in texts.items():
        for function, lines in functions(text):
            if lines > LONGEST_FUNCTION:
                print(f"over {LONGEST_FUNCTION} lines: {name}.{function} ({lines})")
    for group in circles(arrows(texts)):
        print(f"circle of packages: {', '.join(sorted(group))}")


if __name__ == "__main__":
    sys.exit(main())
