"""The command line. Commands import torch, zarr and other slow packages only when they run."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from functools import cache
from importlib.util import find_spec
from typing import Annotated, Any, NoReturn

import typer

if find_spec("fcntl") is None:  # the imports below would fail
    sys.exit("unetcli: runs on Linux and macOS only (this Python has no file locks, fcntl); on Windows, use WSL")

from unetcli import __version__
from unetcli.cli import console
from unetcli.cli.commands import evaluate, label, plan, predict, read_request, resolved, show, train, weights, worker
from unetcli.cli.requests import CommandGroup, GroupedCommand, configurable, takes_request
from unetcli.cli.status import status, verify
from unetcli.cli.terminal import STDOUT, drop_stdout, guard_streams, shortened
from unetcli.core.errors import Incomplete, UnetcliError
from unetcli.core.memory import exit_on_bad_alloc, out_of_memory
from unetcli.core.options import options_of
from unetcli.predict.request import PredictRequest

app = typer.Typer(
    name="unetcli",
    cls=CommandGroup,
    help="Train a U-Net from a few annotated images, segment volumes of any size, and score the result.",
    no_args_is_help=True,
    rich_markup_mode=None,  # half of the start-up time otherwise
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 error that you can fix, 2 wrong usage, 3 incomplete (run the same command again), "
    "70 bug in unetcli, 130 interrupted.",
)
SKIPPED_BY_PLAN = {*options_of(PredictRequest), "dry_run"}
"""Options that plan skips in a configuration file, so that predict and plan can share one."""
app.command(cls=GroupedCommand)(configurable(takes_request(train, read_request), resolve=resolved))
app.command(cls=GroupedCommand)(configurable(takes_request(weights)))
app.command(cls=GroupedCommand)(configurable(takes_request(plan), skipped=SKIPPED_BY_PLAN))
for command in (predict, status, verify, label, evaluate, show, worker):
    app.command(cls=GroupedCommand)(configurable(takes_request(command)))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"unetcli {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001  # its callback prints it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more, and tracebacks of errors.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors, no progress.")] = False,
) -> None:
    console.set_up(verbose=verbose, quiet=quiet)


@cache
def command_line() -> Any:
    """All commands with their options, which are built once."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line and exit with the code that fits the outcome."""
    console.open_closed_streams()
    guard_streams()
    exit_on_bad_alloc(console.USER)
    try:
        command_line()()
    except Incomplete as error:
        _fail(str(error), console.INCOMPLETE)
    except UnetcliError as error:
        _fail(str(error))
    except OSError as error:  # disk full, read-only, no permission: the user can fix it
        if error.filename == STDOUT:
            drop_stdout()
        if memory := out_of_memory(error):
            _fail(str(memory))
        _fail(f"{error.filename or _unnamed()}: {error.strerror or error}")
    except Exception as error:
        if memory := out_of_memory(error):
            _fail(str(memory))
        traceback.print_exc()
        typer.echo("unetcli: this is a bug in unetcli; please report the lines above and the command", err=True)
        sys.exit(console.BUG)


def _unnamed() -> str:
    """Place of an error of the operating system that names no file."""
    try:
        os.getcwd()  # noqa: PTH109 - only whether it exists
    except OSError:
        return "current folder"
    return "file system"


def _fail(message: str, code: int = console.USER) -> NoReturn:
    if logging.getLogger("unetcli").level == logging.DEBUG:  # -v
        traceback.print_exc()
    typer.echo(shortened(f"unetcli: {' '.join(message.split())}"), err=True)
    sys.exit(code)
