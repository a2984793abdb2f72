"""Print the requirements of a test lane, derived from pyproject.toml: ``requirements.py newest|lowest``."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
USED = [*PYPROJECT["project"]["dependencies"], *EXTRAS["s3"], *EXTRAS["tensorboard"]]
TOOLS = PYPROJECT["dependency-groups"]["test"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text() + (ROOT / "tests/constraints.txt").read_text()
PINS = dict(re.findall(r"^([\w.-]+)(==.+)$", CONSTRAINTS, re.MULTILINE))


def newest() -> Iterator[str]:
    """Requirements of pyproject.toml without torch."""
    return (requirement for requirement in [*USED, *TOOLS] if name(requirement) != "torch")


def lowest() -> Iterator[str]:
    """Requirements pinned to their lower bounds; torch and the test tools are pinned as in the constraints files."""
    for requirement in USED:
        yield pinned(requirement) if name(requirement) == "torch" else re.sub(">=([^,]+).*", r"==\1", requirement)
    yield "aiobotocore[boto3]"  # s3fs needs it; with its boto3, or pip tries a hundred versions
    yield from (pinned(tool) for tool in TOOLS if name(tool) != "import-linter")  # needs a newer rich


def name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def pinned(requirement: str) -> str:
    return re.sub(">=.*", PINS[name(requirement)], requirement)


if __name__ == "__main__":
    print(*{"newest": newest, "lowest": lowest}[sys.argv[1]](), sep="\n")
