"""From options, environment variables and files to requests."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from unetcli.core.errors import UnetcliError
from unetcli.core.options import Declared, Heading, Options, options_of
from unetcli.core.records import read_toml, to_toml, toml_value

Values = Mapping[str, Any]
CONFIG, PRINT_CONFIG = "config", "print_config"

PrintConfigOption = Annotated[
    bool, typer.Option("--print-config", help="Print the options in force as such a file and stop.")
]


def configurable(
    command: Command, *, in_force: Callable[[Values], Values] = dict, passed_over: Collection[str] = ()
) -> Command:
    """The command with ``--config`` and ``--print-config``.

    Parameters
    ----------
    in_force
        From the options as they came in to those that ``--print-config`` prints, for a command that chooses some by
        itself. Names are those of the command's parameters, so that the file can be read back.
    passed_over
        Keys that are allowed and mean nothing here, so that commands can share a file.
    """
    signature = inspect.signature(command, eval_str=True)
    kinds = {name: get_args(parameter.annotation)[0] for name, parameter in signature.parameters.items()}

    def read(context: typer.Context, config: Path | None) -> Path | None:
        if config is not None and not context.resilient_parsing:  # resilient: only completing in a shell
            context.default_map = dict(_defaults(context, config, kinds, passed_over))
        return config

    @functools.wraps(command)
    def configured(*, config: Path | None, print_config: bool, **options: Any) -> None:
        if print_config:
            typer.echo(to_toml(in_force(options)), nl=False)
        else:
            command(**options)

    told = "Take options from this file, each a key; the command line goes first, then $UNETCLI_.., then the file."
    option = typer.Option("--config", metavar="TOML", callback=read, is_eager=True, help=told)
    own = [_parameter(CONFIG, None, Annotated[Path | None, option]), _parameter(PRINT_CONFIG, False, PrintConfigOption)]
    configured.__signature__ = signature.replace(  # type: ignore[attr-defined]  # typer reads it
        parameters=[*signature.parameters.values(), *own]
    )
    return configured


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _defaults(
    context: typer.Context, file: Path, kinds: Mapping[str, Any], passed_over: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Parameters and their values in the file, as Typer wants them in place of defaults."""
    parameters = {str(parameter.name): parameter for parameter in context.command.params}
    for key, name, value in _named(context, file, passed_over):
        where = f"{file}: {key} is {_shown(value)}"
        kind = _of_words(parameters[name], kinds[name])
        if not fits(value, kind):
            raise UnetcliError(f"{where}; {expected(kind)} would do")
        try:  # Typer judges ranges and choices now, where the file can still be named
            parameters[name].process_value(context, _typed(value))
        except typer.BadParameter as error:
            raise UnetcliError(f"{where}; {error.message.removesuffix('.')}") from None
        yield name, _typed(value)


def _named(context: typer.Context, file: Path, passed_over: Collection[str]) -> Iterator[tuple[str, str, Any]]:
    """Key, parameter and value of each line that counts."""
    known, seen = keys(context), set[str]()
    for key, value in read_toml(file).items():
        if name := known.get(_plain(key)):
            if name in seen:
                raise UnetcliError(f"{file}: {key} is there twice, written in two ways; once would do")
            seen.add(name)
            yield key, name, value
        elif _plain(key) not in passed_over:
            raise UnetcliError(f"{file}: unknown key {key!r}; {_advice(key, known, context)}")


def keys(context: typer.Context) -> dict[str, str]:
    """By each key of a file, with underscores, the parameter it is for."""
    names: dict[str, str] = {}
    for parameter in context.command.params:
        if parameter.name not in (CONFIG, PRINT_CONFIG):
            words = [word for word in parameter.opts if word.startswith("--")]
            names |= {_plain(word): str(parameter.name) for word in (str(parameter.name), *words)}
    return names


def _plain(key: str) -> str:
    return key.removeprefix("--").replace("-", "_")


def _advice(key: str, known: Collection[str], context: typer.Context) -> str:
    if near := get_close_matches(_plain(key), known, n=1):
        return f"did you mean {near[0].replace('_', '-')!r}?"
    return f"`unetcli {context.info_name} --help` lists the options, each is a key"


def _of_words(parameter: Any, kind: Any) -> Any:
    """What a parameter takes: an annotation, as of Typer, cannot say that an option of several words is repeatable."""
    if parameter.multiple and parameter.nargs > 1:
        return list[tuple[(str,) * parameter.nargs]]  # type: ignore[misc]
    return kind


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of TOML can be what a parameter of this type takes.

    A whole number passes for text, as ``tile = 572`` is what one writes for an option that takes ``auto`` too.

    >>> fits(3, float), fits(True, int), fits("3", int), fits(["a"], list[str] | None), fits(572, str)
    (True, False, False, True, True)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(fits(value, part) for part in parts if part is not NoneType)
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(parts) and all(map(fits, value, parts))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, {int: int, float: int | float, Path: str}.get(kind, str | int))


def expected(kind: Any) -> str:
    """What would fit, in words.

    >>> expected(int | None), expected(list[str] | None), expected(list[tuple[str, float]])
    ('a whole number', 'a list of text', 'a list of lists [text, a number]')
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(expected(part) for part in parts if part is not NoneType)
    if origin is list:
        return f"a list of {expected(parts[0]).replace('a list', 'lists', 1).removeprefix('a ')}"
    if origin is tuple:
        return f"a list [{', '.join(map(expected, parts))}]"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text")


def _typed(value: Any) -> Any:
    """As it would be typed; Typer turns that into what the parameter takes."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return value if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    try:
        return toml_value(value)
    except TypeError:
        return "a table" if isinstance(value, dict) else str(value)


Command = Callable[..., None]
PAIRS = tuple[tuple[str, str], ...]
"""Type of an option of two words that is repeatable."""
COMMON = ("version", "verbose", "quiet")
"""Options that every command knows; flags, which typer checks without pydantic."""
WIDEST = 26
"""Columns of the names of options in help; a longer one has a line of its own."""

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print everything as JSON on stdout.", rich_help_panel=Heading.RUN)
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be done, with memory, speed and time.", rich_help_panel=Heading.RUN),
]


class CommandGroup(TyperGroup):
    """All commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command.

        Where there are none, --help and the options of shell completion are left out: to check that they have no value,
        typer would import pydantic, which takes longer than the help of a command.
        """
        options = self.params
        if args and not args[0].startswith("-"):
            self.params, self.add_help_option = [each for each in options if each.name in COMMON], False
        try:
            return super().parse_args(ctx, args)
        finally:
            self.params, self.add_help_option = options, True


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
