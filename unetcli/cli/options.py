"""Option types used by more than one command, and what becomes of them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer

INCOMPLETE = 3

DeviceOption = Annotated[
    str | None,
    typer.Option(envvar="UNETCLI_DEVICE", help="cpu, cuda or the number of a GPU; a GPU by itself where there is one."),
]
SectionsOption = Annotated[
    str | None, typer.Option(metavar="A:B", help="Only sections A up to, not with, B (z, else t).")
]
ChannelOption = Annotated[int | None, typer.Option(metavar="N", help="Use this channel of several, from 0.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Start anew in place of what unetcli left there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")]


def print_json(values: Any) -> None:
    """Data for scripts, on stdout."""
    typer.echo(json.dumps(values, indent=2))


def stop_on_sigterm() -> Callable[[], bool]:
    """From now on SIGTERM asks for an orderly end; the function returned says whether it came."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    return lambda: bool(asked)
