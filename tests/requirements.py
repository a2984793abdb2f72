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
USED = [*PYPROJECT["project"]["dependencies"], *EXTRAS["s3"], *EXTRAS["tensorboard"], *EXTRAS["h5py"]]
TOOLS = PYPROJECT["dependency-groups"]["test"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text() + (ROOT / "tests/constraints.txt").read_text()
PINS = dict(re.findall(r"^([\w.-]+)(==.+)$", CONSTRAINTS, re.MULTILINE))


def newest() -> Iterator[str]:
    """Requirements of pyproject.toml without torch."""
    return (requirement for requirement in [*USED, *TOOLS] if name(requirement) != "torch")


def lowest() -> Iterator[str]:
    """Requirements pinned to their lower bounds; torch and the test tools are pinned as in the constraints files."""
    for requirement in [*USED, *TOOLS]:
        match name(requirement):
            case "import-linter":  # needs a newer rich, and the lane runs no test of it
                continue
            case "scikit-image":  # later ones compute other scores with the oldest SciPy
                yield bounded(requirement)
            case "torch":
                yield pinned(requirement)
            case _:
                yield bounded(requirement) if requirement in USED else pinned(requirement)
    yield "aiobotocore[boto3]"  # s3fs needs it; with its boto3, or pip tries a hundred versions


def bounded(requirement: str) -> str:
    return re.sub(">=([^,]+).*", r"==\1", requirement)


def name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def pinned(requirement: str) -> str:
    return re.sub(">=.*", PINS[name(requirement)], requirement)


if __name__ == "__main__":
    print(*{"newest": newest, "lowest": lowest}[sys.argv[1]](), sep="\n")
