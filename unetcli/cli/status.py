"""``unetcli status``."""

from __future__ import annotations

import json as json_text
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from unetcli.cli import options as o
from unetcli.cli import talk
from unetcli.cli.statuspicture import console, line, picture_of_all

if TYPE_CHECKING:
    from unetcli.engine.status import Status, Watcher

REFRESH_SECONDS = 2.0
"""On a terminal; a log gets a line a minute."""


def status(
    output: o.RunArgument,
    watch: o.WatchOption = False,
    step: o.StepOption = None,
    run_folder: o.AnyRunFolderOption = None,
    json: o.JsonOption = False,
) -> None:
    """Say how far what is made of OUTPUT is, and who works on it.

    Predictions, labels and evaluations, with what failed. Reads files only, so it works wherever they are seen.
    Exits 0 whenever they can be read; scripts take --json.
    """
    from unetcli.engine.status import Watcher
    from unetcli.registry import steps_of

    watchers = [Watcher(found) for found in steps_of(output, run_folder, step)]
    if not watch:
        show([watcher.look() for watcher in watchers], json)
    elif sys.stdout.isatty() and not json:
        refresh(watchers)
    else:
        write_lines(watchers, json)


def show(found: list[Status], json: bool) -> None:
    """One look, for people or for scripts."""
    if json:
        o.print_json(as_dict(found))
    else:
        console().print(picture_of_all(found))


def as_dict(found: list[Status]) -> dict[str, Any]:
    """The first step, which is the prediction where there is one, and the others."""
    return found[0].to_dict() | {"others": [other.to_dict() for other in found[1:]]}


def refresh(watchers: list[Watcher]) -> None:
    """Looks that replace each other on the terminal, until all is done."""
    from rich.live import Live

    with Live(console=console(), auto_refresh=False) as live:
        while True:
            found = [watcher.look(wait=False) for watcher in watchers]
            live.update(picture_of_all(found), refresh=True)
            if all(each.complete for each in found):
                return
            time.sleep(REFRESH_SECONDS)


def write_lines(watchers: list[Watcher], json: bool) -> None:
    """A line of text for each step, or one of JSON, at once, each minute and when all is done."""
    told = float("-inf")
    while True:
        found = [watcher.look(wait=False) for watcher in watchers]
        complete = all(each.complete for each in found)
        if complete or time.monotonic() - told >= talk.SECONDS_PER_LINE:
            told = time.monotonic()
            typer.echo(json_text.dumps(as_dict(found)) if json else "\n".join(map(line, found)))
        if complete:
            return
        time.sleep(REFRESH_SECONDS)
