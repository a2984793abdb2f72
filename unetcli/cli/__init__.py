"""The command line: options in, one library call, a summary out. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, NoReturn

import typer

from unetcli import __version__
from unetcli.cli import talk
from unetcli.cli.configfile import configurable
from unetcli.cli.evaluate import evaluate
from unetcli.cli.label import label
from unetcli.cli.options import INCOMPLETE
from unetcli.cli.plan import plan
from unetcli.cli.plantable import NOT_OF_PLAN
from unetcli.cli.predict import predict
from unetcli.cli.show import show
from unetcli.cli.status import status
from unetcli.cli.train import TrainCommand, in_force, train
from unetcli.cli.verify import verify
from unetcli.cli.weights import weights
from unetcli.cli.worker import worker
from unetcli.core.errors import Incomplete, UnetcliError

USER, BUG = 1, 70

app = typer.Typer(
    name="unetcli",
    help="Train the 2015 U-Net from few annotated images, predict Zarr volumes of any size, score the result.",
    no_args_is_help=True,
    rich_markup_mode=None,  # half of the start-up time otherwise
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 you can put it right, 2 usage, 3 incomplete (run the same command again), "
    "70 our bug, 130 interrupted.",
)
app.command(cls=TrainCommand)(configurable(train, in_force=in_force))
for command in (weights, plan, predict, status, verify, label, evaluate, show, worker):
    app.command()(configurable(command, passed_over=NOT_OF_PLAN if command is plan else ()))


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
    talk.set_up(verbose=verbose, quiet=quiet)


def main() -> None:
    """Run the command line; every way to end has its exit code."""
    try:
        app()
    except Incomplete as error:
        _fail(str(error), INCOMPLETE)
    except UnetcliError as error:
        _fail(str(error))
    except OSError as error:  # disk full, read-only, no permission: the user's to put right
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    except Exception:
        traceback.print_exc()
        typer.echo("unetcli: this is a bug of ours; please report the lines above with the command", err=True)
        sys.exit(BUG)


def _fail(message: str, code: int = USER) -> NoReturn:
    if talk.is_verbose():
        traceback.print_exc()
    typer.echo(f"unetcli: {' '.join(message.split())}", err=True)
    sys.exit(code)
