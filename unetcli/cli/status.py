"""``unetcli status`` and ``unetcli verify``: what was made of an output, and whether it is as computed."""

from __future__ import annotations

import json as json_text
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unetcli.cli import console
from unetcli.cli.requests import JsonOption
from unetcli.core.options import Heading
from unetcli.engine.request import RunRequest, VerifyRequest

if TYPE_CHECKING:
    from unetcli.engine.status import Status, Watcher
    from unetcli.engine.verify import Damage, Verification
    from unetcli.predict.seams import Seams

REFRESH_SECONDS = 2.0
"""On a terminal; a log gets a line a minute."""
PARTS = {"pyramid": ", coarser levels", "evaluate": ", counts of its evaluation"}
"""Of what is made of an output, by step."""
AGAIN = "verify --repair computes them anew, as the same {} command does those without receipt"
REPAIRS = {
    "predict": AGAIN.format("predict"),
    "label": AGAIN.format("label"),
    "evaluate": "the same evaluate command counts them again",
}
INPUT = {
    "predict": "input: volume (sampled chunks) and model are what they were",
    "label": "input: prediction (sampled chunks) and what was measured are what they were",
}
SHOWN_DAMAGE = 20
"""Damaged blocks listed; ``--json`` has them all."""

WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Look again until all is done.", rich_help_panel=Heading.RUN)
]


def status(request: RunRequest, watch: WatchOption = False, json: JsonOption = False) -> None:
    """Say how far what is made of OUTPUT is, and who works on it.

    Predictions, labels and evaluations, with what failed. Reads files only, so it works wherever they are seen.
    Exits 0 whenever they can be read; scripts take --json.
    """
    from unetcli.cli.status_view import picture_of_all, terminal
    from unetcli.engine.status import Watcher
    from unetcli.registry import steps_of

    watchers = [Watcher(found) for found in steps_of(str(request.output), request.run_folder, request.step)]
    if not watch:
        found = [watcher.look() for watcher in watchers]
        console.print_json(as_dict(found)) if json else terminal().print(picture_of_all(found))
    elif sys.stdout.isatty() and not json:
        refresh(watchers)
    else:
        write_lines(watchers, json)


def verify(request: VerifyRequest, json: JsonOption = False) -> None:
    """Read every block made of OUTPUT back and compare checksums.

    Of predictions, levels, labels and evaluations. Exits 0 where all is as computed, 3 where blocks are damaged or
    missing, other tiles give other values, or the input is not what it was.
    """
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.registry import verify_output

    with console.progress("voxels") as report:
        found = verify_output(request, report, console.stop_on_sigterm)
    told = [text for each in found for text in lines(each)]
    console.print_json(as_dict(found)) if json else typer.echo("\n".join(told))
    if not all(each.sound for each in found):
        raise typer.Exit(console.INCOMPLETE)


def as_dict(found: Sequence[Status | Verification]) -> dict[str, Any]:
    """The first step, which is the prediction where there is one, and the others."""
    return found[0].to_dict() | {"others": [other.to_dict() for other in found[1:]]}


def refresh(watchers: list[Watcher]) -> None:
    """Looks that replace each other on the terminal, until all is done."""
    from rich.live import Live

    from unetcli.cli.status_view import picture_of_all, terminal

    with Live(console=terminal(), auto_refresh=False) as live:
        while True:
            found = [watcher.look(wait=False) for watcher in watchers]
            live.update(picture_of_all(found), refresh=True)
            if all(each.complete for each in found):
                return
            time.sleep(REFRESH_SECONDS)


def write_lines(watchers: list[Watcher], json: bool) -> None:
    """A line of text for each step, or one of JSON, at once, each minute and when all is done."""
    from unetcli.cli.status_view import line

    told = float("-inf")
    while True:
        found = [watcher.look(wait=False) for watcher in watchers]
        complete = all(each.complete for each in found)
        if complete or time.monotonic() - told >= console.SECONDS_PER_LINE:
            told = time.monotonic()
            typer.echo(json_text.dumps(as_dict(found)) if json else "\n".join(map(line, found)))
        if complete:
            return
        time.sleep(REFRESH_SECONDS)


def lines(found: Verification) -> list[str]:
    """What was found, for people."""
    told, name = [], name_of(found)
    if found.repaired:
        told += [f"{name}: {len(found.repaired)} blocks made anew", *listed(found.repaired)]
    if found.checked or found.damaged:
        told += block_lines(found)
    if found.table:
        told.append(f"{found.table}; verify --repair writes it anew")
    if found.seams:
        told += seam_lines(found.seams)
    if found.input_changes is not None:
        told += [f"{change.source} {change.path}: {change.what}" for change in found.input_changes] or [
            INPUT[found.command]
        ]
    return told


def name_of(found: Verification) -> str:
    """The output, and which part of it."""
    return found.output + PARTS.get(found.step, "")


def block_lines(found: Verification) -> list[str]:
    """How many blocks are sound, and which are not."""
    there = found.checked if found.step == "evaluate" else found.blocks - found.not_kept
    head = f"{name_of(found)}: {there - len(found.damaged)} of {there} blocks are what was computed"
    if found.command != "label":
        return _with_damage(head, found)
    told = "labels at all levels, and the table of objects" if found.complete else "labels, and what was found so far"
    return _with_damage(f"{head} ({told})", found)


def _with_damage(head: str, found: Verification) -> list[str]:
    if not found.damaged:
        return [head if found.complete else f"{head}; not closed yet: the same {found.command} command does"]
    return [head, *listed(found.damaged), REPAIRS[found.command]]


def listed(damaged: list[Damage]) -> list[str]:
    """The first ones in full."""
    told = [f"  block {damage.block} ({damage.place}): {damage.what}" for damage in damaged[:SHOWN_DAMAGE]]
    return told + ([f"  and {len(damaged) - SHOWN_DAMAGE} more: --json tells all"] if len(damaged) > SHOWN else [])


def seam_lines(seams: Seams) -> list[str]:
    """How far other tiles give the same."""
    head = (
        f"{seams.windows} windows across borders computed anew in other tiles: "
        f"largest difference {seams.largest_difference:g}, {seams.allowed:g} allowed"
    )
    return [head, *(f"  {seam.place}: {seam.reason}" for seam in seams.exceeded)]
