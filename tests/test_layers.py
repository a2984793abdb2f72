"""Imports point downwards. ``[tool.importlinter]`` in pyproject.toml says which package lies on which floor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from structure import imported, modules

PROJECT = Path(__file__).parents[1]
MODULES = modules()
LIGHT_PACKAGES = {"core", "planning"}
ALSO_LIGHT = {
    "api",
    "cli",
    "executors.options",
    "predict.request",
    "label.request",
    "evaluate.request",
    "train.request",
    "train.settings",
    "train.slurm",
    "engine.receipts",
    "engine.status",
}
WITHOUT_TORCH_AND_ZARR = sorted(
    {name for name in (found.removeprefix("unetcli.") for found in MODULES) if name.split(".")[0] in LIGHT_PACKAGES}
    | ALSO_LIGHT
)


def test_no_package_imports_one_on_a_floor_above() -> None:
    """In a process of its own: import-linter silences the loggers of the process that it runs in."""
    program = "import sys, importlinter.cli; sys.exit(importlinter.cli.lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_modules_import_each_other() -> None:
    """Counting imports inside functions and for type checkers too; commands and the app they register with may."""
    names = {name for name in MODULES if name.split(".")[1:2] not in ([], ["cli"], ["__main__"])}
    graph = {name: imported(MODULES[name]) & names - {name} for name in names}
    while leaves := {name for name, needs in graph.items() if not needs & set(graph)}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """What each light module loads when it is imported first in a fresh interpreter."""
    program = (
        "import importlib, json, os, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    read, write = os.pipe()\n"
        "    if not os.fork():\n"
        "        importlib.import_module('unetcli.' + name)\n"
        "        os.write(write, json.dumps(sorted({m.split('.')[0] for m in sys.modules})).encode())\n"
        "        os._exit(0)\n"
        "    os.close(write)\n"
        "    found[name] = json.loads(open(read).read())\n"
        "    os.wait()\n"
        "print(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", program, *WITHOUT_TORCH_AND_ZARR]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", WITHOUT_TORCH_AND_ZARR)
def test_planning_needs_neither_torch_nor_zarr(loaded: dict[str, list[str]], name: str) -> None:
    assert "unetcli" in loaded[name]
    assert not {"torch", "zarr"} & set(loaded[name])
