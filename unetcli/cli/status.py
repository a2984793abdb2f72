"""``unetcli status``."""

from __future__ import annotations

import json as json_text
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from unetcli.cli import options as o
from unetcli.cli import talk

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

    from unetcli.runs.paces import HostPace
    from unetcli.runs.status import Failure, Status, Watcher

REFRESH_SECONDS = 2.0
"""On a terminal; a log gets a line a minute."""
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "missing": "bright_black"}
WIDEST = 100
"""Of the bar."""
SLOW = 1.5
"""A host that takes so many times as long as the middle one is told of."""
SHOWN = 5
"""Failures listed in full; ``--json`` has them all."""


def status(
    output: o.PredictedArgument,
    watch: o.WatchOption = False,
    run_folder: o.RunFolderOption = None,
    json: o.JsonOption = False,
) -> None:
    """Say how far OUTPUT is, who works on it and what failed.

    Reads files only, so it works wherever they are seen. Exits 0 whenever they can be read; scripts take --json.
    """
    from unetcli.runs.status import Watcher

    watcher = Watcher(output, run_folder)
    if not watch:
        show(watcher.look(), json)
    elif sys.stdout.isatty() and not json:
        refresh(watcher)
    else:
        write_lines(watcher, json)


def show(found: Status, json: bool) -> None:
    """One look, for people or for scripts."""
    if json:
        o.print_json(found.to_dict())
    else:
        console().print(picture(found))


def refresh(watcher: Watcher) -> None:
    """Looks that replace each other on the terminal, until all is done."""
    from rich.live import Live

    with Live(console=console(), auto_refresh=False) as live:
        while True:
            found = watcher.look(wait=False)
            live.update(picture(found), refresh=True)
            if found.complete:
                return
            time.sleep(REFRESH_SECONDS)


def write_lines(watcher: Watcher, json: bool) -> None:
    """A line of text or JSON at once, each minute and when all is done."""
    told = float("-inf")
    while True:
        found = watcher.look(wait=False)
        if found.complete or time.monotonic() - told >= talk.SECONDS_PER_LINE:
            told = time.monotonic()
            typer.echo(json_text.dumps(found.to_dict()) if json else line(found))
        if found.complete:
            return
        time.sleep(REFRESH_SECONDS)


def console() -> Console:
    """Where the picture goes; outside a terminal nothing is cut, however long."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def line(found: Status) -> str:
    """A look in one line."""
    return f"{found.done} of {found.blocks} blocks done; {', '.join([*counts(found), pace(found)])}"


def counts(found: Status) -> list[str]:
    """How many blocks are in which state, where there are any beside the done ones."""
    return [f"{number} {state}" for state in ("running", "failed", "missing") if (number := getattr(found, state))]


def pace(found: Status) -> str:
    """Speed and time left, or why there are none."""
    if found.complete:
        return "complete"
    if not found.workers:
        return f"{count(found.queued, 'job')} waiting" if found.queued else "nobody works on it"
    left = "not known yet" if found.seconds_left is None else talk.duration(found.seconds_left) + " left"
    speed = talk.speed(found.voxels_per_second, "voxels") if found.voxels_per_second else "not known yet"
    return f"{speed}, {left}"


def picture(found: Status) -> RenderableType:
    """A look for people: a bar, the counts, the pace, what failed and what helps."""
    from rich.console import Group
    from rich.constrain import Constrain
    from rich.text import Text

    parts: list[RenderableType] = [_head(found), Constrain(_bar(found), WIDEST), Text(), _facts(found)]
    workers = [failure for failure in found.failures if failure.block is None]
    blocks = [failure for failure in found.failures if failure.block is not None]
    for title, failures in (("failed workers", workers), ("failed blocks", blocks)):
        if failures:
            parts += [Text(), Text(f"{title}: {len(failures)}", style="bold red"), _failures(failures)]
    if told := advice(found):
        parts += [Text(), Text(told, style="yellow")]
    return Group(*parts)


def _head(found: Status) -> RenderableType:
    from rich.text import Text

    word, style = (
        ("complete", "green")
        if found.complete
        else ("running", "cyan")
        if found.workers
        else ("all done, not closed", "yellow")
        if found.done == found.blocks
        else ("waiting", "cyan")
        if found.queued
        else ("not running", "yellow")
    )
    return Text.assemble((found.output, "bold"), "  ", (word, f"bold {style}"))


class _Scale:
    """The states of all blocks as lengths of a bar; each state that has any block shows."""

    def __init__(self, found: Status) -> None:
        self.found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        lengths = shares_of([getattr(self.found, state) for state in COLOURS], options.max_width)
        glyphs = "#=x." if options.ascii_only else "█▓▒░"
        parts = zip(glyphs, lengths, COLOURS.values(), strict=True)
        yield Text.assemble(*((glyph * length, style) for glyph, length, style in parts))


def shares_of(counts: list[int], width: int) -> list[int]:
    """Counts as lengths that fill a width; none that is not zero vanishes.

    >>> shares_of([990, 1, 0, 9], 20)
    [18, 1, 0, 1]
    """
    total = max(sum(counts), 1)
    lengths = [max(count * width // total, 1) if count else 0 for count in counts]
    lengths[lengths.index(max(lengths))] += width - sum(lengths)
    return lengths


def percent(found: Status) -> str:
    """Share of the blocks that are done; 100 % only where all are."""
    share = 100 * found.done / found.blocks
    return "100 %" if found.done == found.blocks else f"{min(share, 99.9):.1f} %"


def _bar(found: Status) -> Table:
    row = _grid()
    row.columns[0].ratio = 1
    row.add_row(_Scale(found), percent(found))
    row.expand = True
    return row


def _facts(found: Status) -> Table:
    from rich.text import Text

    glyphs = zip("█▓▒░", COLOURS.items(), strict=True)
    states = [
        part
        for glyph, (state, style) in glyphs
        for part in ((f"{glyph} ", style), f"{getattr(found, state):,} {state}   ".replace(",", " "))
    ]
    rows = [("blocks", Text.assemble(*states))]
    if found.workers:
        rate, left = pace(found).split(", ")
        crowd = f"{count(found.workers, 'worker')} on {count(found.hosts, 'host')}"
        rows += [("speed", Text(f"{rate} by {crowd}")), ("time left", Text(left.removesuffix(" left")))]
    if found.queued:
        rows.append(("queue", Text(f"{count(found.queued, 'job')} waiting ({found.queued_for or 'no reason told'})")))
    if found.silent:
        rows.append(("silent", Text(f"{count(found.silent, 'worker')} of other hosts, so far", style="yellow")))
    slow = slow_hosts(found)
    rows += [("slowest" if host is slow[0] else "", Text(f"{host.host}: {seconds(host)}")) for host in slow]
    if not slow and found.slowest_hosts:
        rows.append(("cost", Text(seconds(found.slowest_hosts[0]))))
    table = _grid()
    for name, text in rows:
        table.add_row(Text(f"{name:<9}", style="dim"), text)
    return table


def slow_hosts(found: Status) -> list[HostPace]:
    """Hosts that take clearly longer than others, the slowest first."""
    middle = found.median_seconds_per_block or 0.0
    return [host for host in found.slowest_hosts if host.seconds_per_block > SLOW * middle]


def seconds(host: HostPace) -> str:
    """Its time for a block, and where it goes."""
    stages = f"read {host.read_seconds:.3g}, forward {host.forward_seconds:.3g}, write {host.write_seconds:.3g}"
    return f"{host.seconds_per_block:.3g} s per block ({stages})"


def count(number: int, thing: str) -> str:
    """
    >>> count(1, "host"), count(3, "host")
    ('1 host', '3 hosts')
    """
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _failures(failures: list[Failure]) -> Table:
    from rich.text import Text

    table = _grid()
    for failure in failures[:SHOWN]:
        if failure.block is not None:
            table.add_row(f"  block {failure.block}", Text.assemble((f"{failure.place}\n", "dim"), failure.reason))
        else:
            who = "worker" if failure.job == "-" else f"job {failure.job}"
            table.add_row(f"  {who}", Text.assemble((f"{failure.host}  ", "dim"), failure.reason))
    if len(failures) > SHOWN:
        table.add_row("", f"and {len(failures) - SHOWN} more: --json tells all")
    return table


def _grid() -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def advice(found: Status) -> str | None:
    """What to do next, where there is something to do."""
    if found.complete:
        return None
    if found.stopped:
        return f"stopped: {found.stopped}"
    if found.done == found.blocks:
        return "every block is there; the same predict command with --close marks the output complete"
    if not found.workers and not found.silent and not found.queued:
        return "nobody works on it; the same predict command continues"
    return None
