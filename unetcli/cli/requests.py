"""Requests from options, environment variables and configuration files, and the help that lists the options."""

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
from unetcli.core.options import DeclaredOption, Heading, Options, options_of
from unetcli.core.records import read_toml, to_toml, toml_value

Values = Mapping[str, Any]
CONFIG, PRINT_CONFIG = "config", "print_config"

PrintConfigOption = Annotated[bool, typer.Option("--print-config", help="Print all options as such a file and exit.")]


def configurable(
    command: Command, *, resolve: Callable[[Values], Values] = dict, skipped: Collection[str] = ()
) -> Command:
    """Add ``--config`` and ``--print-config`` to a command.

    Parameters
    ----------
    resolve
        Function from the options given to those that ``--print-config`` prints, for a command that chooses some
        defaults at run time. Names are those of the command's parameters, so that the file can be read back.
    skipped
        Keys that the file may have although the command has no such option, so that commands can share a file.
    """
    signature = inspect.signature(command, eval_str=True)
    kinds = {name: get_args(parameter.annotation)[0] for name, parameter in signature.parameters.items()}

    def read(context: typer.Context, config: Path | None) -> Path | None:
        if config is not None and not context.resilient_parsing:  # resilient: the shell asks for completions
            context.default_map = dict(_defaults(context, config, kinds, skipped))
        return config

    @functools.wraps(command)
    def configured(*, config: Path | None, print_config: bool, **options: Any) -> None:  # noqa: ARG001  # read above
        if print_config:
            typer.echo(to_toml(resolve(options)), nl=False)
        else:
            command(**options)

    text = "Read options from this file, one key each; the command line and the environment take precedence."
    option = typer.Option("--config", metavar="TOML", callback=read, is_eager=True, help=text)
    own = [_parameter(CONFIG, None, Annotated[Path | None, option]), _parameter(PRINT_CONFIG, False, PrintConfigOption)]
    configured.__signature__ = signature.replace(  # type: ignore[attr-defined]  # typer reads it
        parameters=[*signature.parameters.values(), *own]
    )
    return configured


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _defaults(
    context: typer.Context, file: Path, kinds: Mapping[str, Any], skipped: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Parameters and their values in the file, in the form that Typer expects of defaults."""
    parameters = {str(parameter.name): parameter for parameter in context.command.params}
    for key, name, value in _named(context, file, skipped):
        where = f"{file}: {key} is {_shown(value)}"
        kind = _of_words(parameters[name], kinds[name])
        value = [value] if kind == SEVERAL and isinstance(value, str) else value
        if not fits(value, kind):
            raise UnetcliError(f"{where}; expected {expected(kind)}")
        try:  # Typer checks ranges and choices here, so that the message can name the file
            parameters[name].process_value(context, _typed(value))
        except typer.BadParameter as error:
            raise UnetcliError(f"{where}; {error.message.removesuffix('.')}") from None
        yield name, _typed(value)


def _named(context: typer.Context, file: Path, skipped: Collection[str]) -> Iterator[tuple[str, str, Any]]:
    """Key, parameter and value of each line of the file, without skipped keys."""
    known, seen = keys(context), set[str]()
    for key, value in read_toml(file).items():
        if name := known.get(_plain(key)):
            if name in seen:
                raise UnetcliError(f"{file}: {key} is given twice, in two spellings; remove one of them")
            seen.add(name)
            yield key, name, value
        elif _plain(key) not in skipped:
            raise UnetcliError(f"{file}: unknown key {key!r}; {_advice(key, known, context)}")


def keys(context: typer.Context) -> dict[str, str]:
    """Name of the parameter for each key that a file may have; keys are written with underscores."""
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
    return f"`unetcli {context.info_name} --help` lists the options; each of them is a key"


def _of_words(parameter: Any, kind: Any) -> Any:
    """Type of a parameter's value; annotations cannot express that an option of several words is repeatable."""
    if parameter.multiple and parameter.nargs > 1:
        return list[tuple[(str,) * parameter.nargs]]  # type: ignore[misc]
    return kind


def fits(value: Any, kind: Any) -> bool:
    """Whether a TOML value fits a parameter of this type.

    A whole number is accepted as text, so that ``tile = 572`` works for an option that also takes ``auto``.

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
    """Describe the values that fit a type.

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
    """Value as a user would type it, which Typer converts to the type of the parameter."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return value if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    try:
        return toml_value(value)
    except TypeError:
        return "a table" if isinstance(value, dict) else str(value)


Command = Callable[..., None]
SEVERAL = list[Path] | None
"""Type of a repeatable option of paths; a file may have a single one as text."""
PAIRS = tuple[tuple[str, str], ...]
"""Type of a repeatable option of two words."""
COMMON = ("version", "verbose", "quiet")
"""Options before the command. They are flags, which Typer checks without pydantic."""
WIDEST = 26
"""Width of the column of option names in help; a longer name has a line of its own."""

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=Heading.RUN)
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be done, and the memory and time.", rich_help_panel=Heading.RUN),
]


class CommandGroup(TyperGroup):
    """The program, with all commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command.

        If there are none, leave out ``--help`` and the options for shell completion: to check that they have no value,
        Typer would import pydantic, which doubles the time of ``unetcli predict --help``.
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
        for parameter in self.params:  # annotations cannot express that an option of two words is repeatable
            if len((parameter.metavar or "").split()) == 2:
                parameter.nargs = 2

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; more paths than the command takes are usually a pattern that the shell has expanded."""
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            ctx.fail(f"Got unexpected extra argument{'s' * (len(rest) > 1)} ({_few(rest)}){_quoting(rest)}")
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options under their headings, with descriptions in one column."""
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in Heading}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                groups[getattr(parameter, "rich_help_panel", None) or Heading.OTHER].append(record)
        width = min(max(len(name) for group in groups.values() for name, _ in group), WIDEST)
        for heading, group in groups.items():
            if group:
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(width), text) for name, text in group], col_max=WIDEST)


def _few(words: list[str]) -> str:
    return " ".join(words) if len(words) <= 3 else f"{' '.join(words[:3])} .. {len(words)} in all"


def _quoting(paths: list[str]) -> str:
    """Advice for paths that the shell has made of a pattern; empty if they are not such paths."""
    first = Path(paths[0])
    if not first.is_file():
        return ""
    pattern = first.with_name(f"*{first.suffix}")
    return f"; several files are one volume if their pattern is quoted: '{pattern}', or name their folder"


def takes_request(
    command: Command, read: Callable[[type[Options], Mapping[str, Any]], Options] = lambda kind, given: kind.read(given)
) -> Command:
    """Replace the first parameter of a command, a request, by the options of that request."""
    first, *own = inspect.signature(command, eval_str=True).parameters.values()

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        command(read(first.annotation, given), **{each.name: given[each.name] for each in own})

    shared = map(parameter_of, options_of(first.annotation).values())
    by_name = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    flat.__signature__ = inspect.Signature([*shared, *by_name])  # type: ignore[attr-defined]  # typer reads it
    return flat


def parameter_of(declared: DeclaredOption) -> inspect.Parameter:
    """Function parameter from which Typer makes an option or argument."""
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


def names_of(declared: DeclaredOption) -> list[str]:
    """Names of an option on the command line; the name that turns a flag off comes after a slash."""
    name = f"--{declared.name.replace('_', '-')}"
    if declared.option.negative:
        return [f"{name}/{declared.option.negative}"]
    return [name] if declared.option.short is None else [name, declared.option.short]


def typed(declared: DeclaredOption) -> Any:
    """Type of a field for Typer: text for values that are parsed later, and lists for tuples."""
    kind = declared.kind
    if declared.option.parse:
        return str if declared.option.text else str | None
    if kind == PAIRS:
        return list[Any] | None
    if kind == tuple[str, ...]:
        return list[str] | None
    parts = get_args(kind)
    if tuple[Path, ...] in parts:  # one path or several
        return SEVERAL
    if {str, Path} <= set(parts):  # a path or a URL
        return str | None if NoneType in parts else str
    return kind
