"""Count wording that needs rewriting: ``python tests/wording.py [-v]``.

Reads every docstring, comment and text of the package. Counts docstrings that begin in mid-sentence ("Of ..",
"Those ..") and words that are no standard terms ("told", "judged", "anew"). ``-v`` prints each place.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "unetcli"
FRAGMENT = re.compile(r"(Of|Those|That|What|Which|Whose|Where|By|As|So|Such|With|From|Also|Not|Then|To)\b")
"""First words of docstrings that only make sense after the name above them."""
DIALECT = re.compile(
    r"\b(tell|tells|told|telling|judge|judges|judged|judging|anew|by itself|by themselves|ours|theirs)\b", re.IGNORECASE
)


class Text(NamedTuple):
    """A docstring, comment or string of a module, with its line."""

    line: int
    text: str
    docstring: bool


def texts(source: str) -> Iterator[Text]:
    """Every comment, docstring and string of a module.

    >>> [text.text for text in texts('"Of it."\\nx = f"told {1}"  # anew\\n')]
    ['Of it.', 'told ', '# anew']
    """
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(node.lineno, node.value, id(node) in docstrings)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(token.start[0], token.string, False)


def is_fragment(text: Text) -> bool:
    """Whether a docstring begins in mid-sentence.

    >>> is_fragment(Text(1, "Of a process.", True)), is_fragment(Text(1, "Memory of a process.", True))
    (True, False)
    """
    return text.docstring and FRAGMENT.match(text.text.strip()) is not None


def main(arguments: list[str]) -> None:
    """Print both counts, and with -v every place."""
    fragments = words = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for text in texts(path.read_text()):
            found = DIALECT.findall(text.text)
            if "-v" in arguments and (found or is_fragment(text)):
                print(f"{path.relative_to(PACKAGE.parent)}:{text.line}: {' '.join(text.text.split())[:90]}")
            fragments, words = fragments + is_fragment(text), words + len(found)
    print(f"docstrings that begin in mid-sentence: {fragments}\nwords of a dialect: {words}")


if __name__ == "__main__":
    main(sys.argv[1:])
