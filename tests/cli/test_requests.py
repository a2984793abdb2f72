"""Help of the commands, made from the options of their requests."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from unetcli.cli import app
from unetcli.core.options import Heading

GROUP: Any = typer.main.get_command(app)


def help_of(command: str) -> list[str]:
    return CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"}).stdout.splitlines()


def headings(lines: list[str]) -> list[str]:
    return [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]


def options_of_help(command: str) -> list[str]:
    """Lines of the help from the first heading on."""
    lines = help_of(command)
    return lines[lines.index(f"{headings(lines)[0]}:") :]


@pytest.mark.parametrize("command", GROUP.commands)
def test_help_shows_every_option_once_under_a_heading_in_80_columns(command: str) -> None:
    lines = help_of(command)
    assert max(map(len, lines)) <= 80
    assert headings(lines) == [heading for heading in Heading if heading in headings(lines)]
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", "\n".join(options_of_help(command)), re.MULTILINE)
    options = [p for p in GROUP.commands[command].params if p.param_type_name == "option"]
    names = [next(name for name in option.opts if name.startswith("--")) for option in options]
    assert sorted(shown) == sorted([*names, "--help"])


@pytest.mark.parametrize("command", GROUP.commands)
def test_descriptions_stand_in_one_column(command: str) -> None:
    found = (re.match(r"  \S.*?  +(?=\S)|   {4,}", line) for line in options_of_help(command))
    assert len({len(start[0]) for start in found if start}) == 1


def test_options_of_a_cluster_stand_together() -> None:
    for command in ("predict", "label", "evaluate"):
        assert headings(help_of(command))[-4:] == ["Run control", "Cluster", "SLURM", "Other options"]
