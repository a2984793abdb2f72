"""The content of the built wheel, and the declarations of pyproject.toml about it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built by the build backend itself from a copy of the checkout: no network, nothing left behind."""
    pytest.importorskip("setuptools", "77")
    copy = tmp_path_factory.mktemp("project")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    shutil.copytree(ROOT / "unetcli", copy / "unetcli", ignore=shutil.ignore_patterns("__pycache__"))
    program = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(copy / done.stdout.splitlines()[-1])


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "unetcli").rglob("*") if path.is_file()}
    assert held == {file for file in files if "__pycache__" not in file}
    assert "unetcli/py.typed" in held


def test_the_metadata_names_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    files = {name.partition(".dist-info/")[2]: name for name in wheel.namelist()}
    metadata = wheel.read(files["METADATA"]).decode()
    assert "License-Expression: BSD-3-Clause\n" in metadata
    assert "Classifier: Typing :: Typed\n" in metadata
    assert "licenses/LICENSE" in files
    assert "unetcli = unetcli.cli:main" in wheel.read(files["entry_points.txt"]).decode()


def test_every_requirement_is_pinned_in_one_file_of_constraints() -> None:
    """The first file pins what users install; the second adds what only tests and development need."""
    used, tools = (pins(ROOT / name) for name in ("constraints.txt", "tests/constraints.txt"))
    assert not used & tools
    project = PYPROJECT["project"]
    assert names(project["dependencies"], *project["optional-dependencies"].values()) <= used
    assert names(*PYPROJECT["dependency-groups"].values()) <= tools


def names(*lists: list[Any]) -> set[str]:
    """Names of the packages that lists of requirements are for; a group that includes another one holds a table."""
    return {name_of(requirement) for each in lists for requirement in each if isinstance(requirement, str)}


def pins(file: Path) -> set[str]:
    """Names of the packages that a file of constraints pins."""
    return {name_of(line) for line in file.read_text().splitlines() if "==" in line}


def name_of(requirement: str) -> str:
    """The normalised name of the package that a requirement is for.

    >>> name_of("moto[server]>=5.1"), name_of("pre_commit==4.7.0")
    ('moto', 'pre-commit')
    """
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()
