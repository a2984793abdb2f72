"""Measure the structure of the package: ``python tests/structure.py``.

Prints the number of modules and lines of code (without docstrings, comments and blank lines), functions over 50 lines,
and import cycles between packages. The length of a function includes its signature.
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
    """Numbers of the lines that contain code.

    >>> sorted(code_lines('# why\\n\\ndef f():\\n    "A docstring."\\n    return 1  # one\\n'))
    [3, 5]
    """
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {line for token in tokens if token.type not in NOT_CODE for line in range(token.start[0], token.end[0] + 1)}
    return held - docstring_lines(ast.parse(text))


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines of docstrings, including those of attributes."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Functions of a module with their number of lines of code."""
    lines = code_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))


def modules() -> dict[str, str]:
    """Source text of all modules by dotted name; ``__init__`` modules have the name of their package."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(text: str, *, at_import: bool = False) -> set[str]:
    """Dotted names that a module imports from the package; with ``at_import`` only imports at module level."""
    tree = ast.parse(text)
    nodes = ast.walk(tree) if not at_import else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name}
    return found


def package_of(name: str) -> str:
    """Name of the package that contains a module; a top-level module counts as a package.

    >>> package_of("unetcli.volumes.store"), package_of("unetcli.lazy")
    ('volumes', 'lazy')
    """
    return name.split(".")[1] if "." in name else PACKAGE.name


def package_imports(texts: dict[str, str]) -> dict[str, set[str]]:
    """Packages that each package imports."""
    found: dict[str, set[str]] = {}
    for name, text in texts.items():
        others = {package_of(other) for other in imported(text) if other in texts}
        found.setdefault(package_of(name), set()).update(others - {package_of(name), PACKAGE.name})
    return found


def cycles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of packages that import each other, directly or indirectly.

    >>> cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
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
    for group in cycles(package_imports(texts)):
        print(f"import cycle: {', '.join(sorted(group))}")


if __name__ == "__main__":
    sys.exit(main())
