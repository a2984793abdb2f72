"""The command line: options in, one library call, a summary out. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from unetcli import __version__
from unetcli.cli import console
from unetcli.cli.commands import evaluate, in_force, label, plan, predict, read_alike, show, train, weights, worker
from unetcli.cli.requests import CommandGroup, GroupedCommand, configurable, takes_request
from unetcli.cli.status import status, verify
from unetcli.core.errors import Incomplete, UnetcliError
from unetcli.core.options import options_of
from unetcli.predict.request import PredictRequest

app = typer.Typer(
    name="unetcli",
    cls=CommandGroup,
    help="Train the 2015 U-Net from few annotated images, predict Zarr volumes of any size, score the result.",
    no_args_is_help=True,
    rich_markup_mode=None,  # half of the start-up time otherwise
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 you can put it right, 2 usage, 3 incomplete (run the same command again), "
    "70 our bug, 130 interrupted.",
)
NOT_OF_PLAN = {*options_of(PredictRequest), "dry_run"}
"""Options of predict: what plan does not have of them is passed over in a file that both share."""
app.command(cls=GroupedCommand)(configurable(takes_request(train, read_alike), in_force=in_force))
app.command(cls=GroupedCommand)(configurable(takes_request(weights)))
app.command(cls=GroupedCommand)(configurable(takes_request(plan), passed_over=NOT_OF_PLAN))
for command in (predict, status, verify, label, evaluate, show, worker):
    app.command(cls=GroupedCommand)(configurable(takes_request(command)))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"unetcli {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and stop.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more; tracebacks too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors; no progress.")] = False,
) -> None:
    console.set_up(verbose=verbose, quiet=quiet)


def main() -> None:
    """Run the command line; every way to end has its exit code."""
    try:
        app()
    except Incomplete as error:
        _fail(str(error), console.INCOMPLETE)
    except UnetcliError as error:
        _fail(str(error))
    except OSError as error:  # disk full, read-only, no permission: the user's to put right
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    except Exception:
        traceback.print_exc()
        typer.echo("unetcli: this is a bug of ours; please report the lines above with the command", err=True)
        sys.exit(console.BUG)


def _fail(message: str, code: int = console.USER) -> NoReturn:
    if logging.getLogger("unetcli").level == logging.DEBUG:  # -v
        traceback.print_exc()
    typer.echo(f"unetcli: {' '.join(message.split())}", err=True)
    sys.exit(code)
