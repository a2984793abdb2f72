"""The pages in docs/commands."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
from command_pages import EXAMPLES, FOLDER, pages

from unetcli.cli import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_pages_are_up_to_date() -> None:
    written = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    assert written == {path.name: text for path, text in pages()}, "run: python tests/command_pages.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_lists_every_option_once(command: str) -> None:
    text = (FOLDER / f"{command}.md").read_text()
    listed = re.findall(r"^- `(--[\w-]+)", text, re.MULTILINE)
    options = [p for p in COMMANDS[command].params if p.param_type_name == "option"]
    assert sorted(listed) == sorted(next(name for name in option.opts if name.startswith("--")) for option in options)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_in_examples_exist(command: str) -> None:
    known = {name for parameter in COMMANDS[command].params for name in [*parameter.opts, *parameter.secondary_opts]}
    for example in EXAMPLES[command]:
        assert {word for word in shlex.split(example.line) if word.startswith("-")} <= known
