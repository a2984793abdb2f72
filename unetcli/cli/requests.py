"""From requests to commands: signatures that typer reads, and help under headings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from unetcli.core.options import Declared, Heading, Options, options_of

Command = Callable[..., None]
PAIRS = tuple[tuple[str, str], ...]
"""Type of an option of two words that is repeatable."""
WIDEST = 26
"""Columns of the names of options in help; a longer one has a line of its own."""

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print everything as JSON on stdout.", rich_help_panel=Heading.RUN)
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be done, with memory, speed and time.", rich_help_panel=Heading.RUN),
]


class GroupedCommand(TyperCommand):
    """A command whose help shows options under headings."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.params:  # an annotation for typer cannot say that an option of two words is repeatable
            if len((parameter.metavar or "").split()) == 2:
                parameter.nargs = 2

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """All headings in their order, with descriptions in one column."""
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in Heading}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                groups[getattr(parameter, "rich_help_panel", None) or Heading.OTHER].append(record)
        width = min(max(len(name) for group in groups.values() for name, _ in group), WIDEST)
        for heading, group in groups.items():
            if group:
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(width), text) for name, text in group], col_max=WIDEST)


def takes_request(
    command: Command, read: Callable[[type[Options], Mapping[str, Any]], Options] = lambda kind, given: kind.read(given)
) -> Command:
    """The command with the options of its first parameter, a request, in place of that parameter."""
    first, *own = inspect.signature(command, eval_str=True).parameters.values()

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        command(read(first.annotation, given), **{each.name: given[each.name] for each in own})

    shared = map(parameter_of, options_of(first.annotation).values())
    by_name = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    flat.__signature__ = inspect.Signature([*shared, *by_name])  # type: ignore[attr-defined]  # typer reads it
    return flat


def parameter_of(declared: Declared) -> inspect.Parameter:
    """The parameter that typer makes an option or argument of."""
    option, default = declared.option, declared.default
    if option.heading == Heading.ARGUMENTS:
        info = typer.Argument(metavar=option.metavar, help=option.help, rich_help_panel=option.heading)
    else:
        info = typer.Option(
            *names_of(declared),
            envvar=f"UNETCLI_{declared.name.upper()}" if option.env else None,
            metavar=option.metavar,
            help=option.help,
            min=option.min,
            max=option.max,
            parser=(lambda words: words) if declared.kind == PAIRS else None,
            rich_help_panel=option.heading,
        )
    if option.parse:
        default = option.text
    return inspect.Parameter(
        declared.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else None if default == () else default,
        annotation=Annotated[typed(declared), info],
    )


def names_of(declared: Declared) -> list[str]:
    """Names of an option on the command line, those that turn a flag off after a slash."""
    name = f"--{declared.name.replace('_', '-')}"
    if declared.option.negative:
        return [f"{name}/{declared.option.negative}"]
    return [name] if declared.option.short is None else [name, declared.option.short]


def typed(declared: Declared) -> Any:
    """What typer takes for a field: text for what is parsed later, and lists for tuples."""
    kind = declared.kind
    if declared.option.parse:
        return str if declared.option.text else str | None
    if kind == PAIRS:
        return list[Any] | None
    if kind == tuple[str, ...]:
        return list[str] | None
    parts = get_args(kind)
    if {str, Path} <= set(parts):  # a place
        return str | None if NoneType in parts else str
    return kind
