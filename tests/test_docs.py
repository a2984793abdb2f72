"""The pages are consistent with the repository: links, paths, tests, names and options that they mention exist."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from helpers import write_model

import unetcli
from unetcli.cli import app
from unetcli.metrics import cells

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(page for name in ("docs", "slurm", "examples") for page in (ROOT / name).rglob("*.md"))]
PAGES.sort()
WRITTEN = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages about the present version. The changelog may name what has been removed."""
GROUP: Any = typer.main.get_command(app)
OPTIONS = {
    name: {word for option in command.params for word in (*option.opts, *option.secondary_opts)} | {"--help"}
    for name, command in GROUP.commands.items()
}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SBATCH = {"--dependency"}
"""Options of sbatch that pages mention."""
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?<![\w./])(?<!from )unetcli (?:-[a-z] )*([a-z]+)([^;|&#]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def each(pages: list[Path]) -> pytest.MarkDecorator:
    """A test of each page."""
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


def spans(text: str) -> list[str]:
    """Inline code of a page, each span on one line.

    >>> spans("the `a\\nb` of\\n```\\nnot `this`\\n```\\n")
    ['a b']
    """
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def code(text: str) -> Iterator[str]:
    """Inline code, and the lines of code blocks (fenced, or indented by four spaces); continued lines are joined."""
    yield from spans(text)
    for block in [*FENCE.findall(text), *re.findall(r"^ {4}.*$", FENCE.sub("", text), re.MULTILINE)]:
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page.

    >>> sorted(anchors(ROOT / "README.md"))[:2]
    ['commands', 'documentation']
    """
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def defined(file: Path) -> set[str]:
    """Names of functions, classes and variables at the top of a module, and of its test functions."""
    nodes = ast.parse(file.read_text()).body
    assigned = [t for n in nodes for t in (n.targets if isinstance(n, ast.Assign) else [getattr(n, "target", None)])]
    targets = [target for target in assigned if isinstance(target, ast.Name)]
    named = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return {target.id for target in targets} | {node.name for node in named}


def is_page(target: Path) -> bool:
    """Whether a linked file exists. A page of each command is generated into docs/commands."""
    return target.exists() or (target.parent == ROOT / "docs" / "commands" and target.stem in OPTIONS)


@each(PAGES)
def test_every_relative_link_points_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert is_page(target), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@each(WRITTEN)
def test_every_path_of_the_repository_exists(page: Path) -> None:
    for span in spans(page.read_text()):
        if re.fullmatch(r"(tests|unetcli|examples|slurm|docs)/[\w./-]*", span):
            assert (ROOT / span).exists(), span


@each(WRITTEN)
def test_every_test_that_is_named_exists(page: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text()):
        assert (ROOT / file).exists(), file
        assert name in defined(ROOT / file), f"{file}::{name}"


@each(WRITTEN)
def test_every_python_name_that_is_mentioned_exists(page: Path) -> None:
    for span in spans(page.read_text()):
        if not re.fullmatch(r"unetcli(\.\w+)+", span):
            continue
        *module, last = span.split(".")
        place, package = ROOT.joinpath(*module), ROOT.joinpath(*module, last)
        if package.is_dir() or package.with_suffix(".py").exists():
            continue
        file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        assert last in defined(file), span


@each(WRITTEN)
def test_every_name_that_a_page_finds_in_a_file_is_defined_there(page: Path) -> None:
    for name, file in re.findall(r"`(\w+)` (?:in|of)\s+`((?:unetcli|tests)/[\w/]+\.py)`", page.read_text()):
        assert name in defined(ROOT / file), f"{name} in {file}"


@each(WRITTEN)
def test_every_option_is_one_that_its_command_has(page: Path) -> None:
    for line in code(page.read_text()):
        for command, rest in COMMAND.findall(line):
            assert command in OPTIONS, line
            unknown = set(OPTION.findall(rest)) - OPTIONS[command]
            assert not unknown, f"{line}: {command} has no {', '.join(sorted(unknown))}"
        if line.startswith("--"):
            assert OPTION.findall(line)[0] in SBATCH.union(*OPTIONS.values()), f"{line}: no command has it"


def test_the_readme_is_short_and_guarantees_name_tests() -> None:
    assert 120 <= len((ROOT / "README.md").read_text().splitlines()) <= 160
    assert len(re.findall(r"tests/[\w/]+\.py::test_\w+", (ROOT / "docs" / "guarantees.md").read_text())) > 20


def test_the_citation_names_the_version_and_the_developers() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {unetcli.__version__}\n" in citation
    assert "name: the unetcli developers" in citation


def test_the_readme_has_the_commands_of_the_first_steps() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert {"sh examples/quickstart.sh", "sh tests/run.sh"} <= set(lines)
    assert {name for name in OPTIONS if f"docs/commands/{name}.md" in "\n".join(lines)} == set(OPTIONS)


def test_the_metric_that_the_architecture_page_adds_can_be_computed() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    variables = dict(vars(cells))
    exec(textwrap.dedent(block), variables)
    assert variables["miss_rate"](cells.CellSums(**{field.name: 1.0 for field in fields(cells.CellSums)})) == 1


@pytest.mark.parametrize("name", ["lazy.md", "labelling.md", "file-formats.md"])
def test_the_python_code_of_the_pages_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page run in their order, in a folder with a small volume, its truth and a model of depth 3."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)
    monkeypatch.setenv("UNETCLI_DEVICE", "cpu")
    sample = ("--size", "96", "--sections", "14", "--train-sections", "1", ".")
    subprocess.run([sys.executable, ROOT / "examples" / "make_sample.py", *sample], check=True)
    write_model(tmp_path / "model", depth=3, base_channels=2)
    blocks = PYTHON.findall((ROOT / "docs" / name).read_text())
    variables: dict[str, Any] = {"probability": np.random.default_rng(0).random((96, 96), np.float32)}
    for block in blocks:
        exec(compile(block, name, "exec"), variables)
    assert blocks
    if name == "lazy.md":
        assert {"508", "516"} <= set(re.findall(r"\d+", capsys.readouterr().out.splitlines()[-1]))
