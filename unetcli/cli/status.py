"""status and verify: how far all that is made of a store is, and whether it is what was computed."""

from __future__ import annotations

import json as json_text
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unetcli.cli import console
from unetcli.cli.requests import JsonOption
from unetcli.core.options import Heading
from unetcli.executors.options import RunRequest, VerifyRequest

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

    from unetcli.engine.status import HostPace, StageStatus, Status, Watcher
    from unetcli.engine.verify import Damage, Verification
    from unetcli.engine.workers import Failure
    from unetcli.predict.checks import SeamReport

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "missing": "bright_black"}
WIDEST = 100
"""Of the bar."""
SLOW = 1.5
"""A host that takes so many times as long as the middle one is told of."""
NAMES = {"predict": "", "label": "labels", "evaluate": "evaluation"}
"""What the head of the picture calls a step, by its command."""
CLOSING = {
    "predict": "the same predict command with --close marks the output complete",
    "label": "the same label command marks the labels complete",
    "evaluate": "the same evaluate command tells the scores",
}
NOT_KNOWN = "not known yet"
SHOWN = 5
"""Failures listed in full; ``--json`` has them all."""


def terminal() -> Console:
    """Where the picture goes; outside a terminal nothing is cut, however long."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def line(found: Status) -> str:
    """A look in one line."""
    head = "" if found.step == "predict" else f"{found.step}: "
    now = next((stage for stage in found.stages if stage.done < stage.blocks), None)
    where = f" ({now.name} {now.done} of {now.blocks})" if now and len(found.stages) > 1 else ""
    return f"{head}{found.done} of {found.blocks} blocks done{where}; {', '.join([*counts(found), pace(found)])}"


def counts(found: Status) -> list[str]:
    """How many blocks are in which state, where there are any beside the done ones."""
    return [f"{number} {state}" for state in ("running", "failed", "missing") if (number := getattr(found, state))]


def pace(found: Status) -> str:
    """Speed and time left, or why there are none."""
    if found.complete:
        return "complete"
    if not found.workers:
        return f"{count(found.queued, 'job')} waiting" if found.queued else "nobody works on it"
    left = time_left(found)
    return f"{speed(found)}, {left if found.seconds_left is None else left + ' left'}"


def speed(found: Status) -> str:
    """Voxels per second of all workers together."""
    return console.speed(found.voxels_per_second, "voxels") if found.voxels_per_second else NOT_KNOWN


def time_left(found: Status) -> str:
    """Time until all is done, at this speed."""
    return NOT_KNOWN if found.seconds_left is None else console.duration(found.seconds_left)


def picture_of_all(found: list[Status]) -> RenderableType:
    """All steps; those that are complete, in a line, where there are others."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for each in found:
        brief = each.complete and len(found) > 1
        parts += [_head(each)] if brief else [picture(each)]
        parts += [Text()] if not brief and each is not found[-1] else []
    return Group(*parts)


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
        else ("all done, not closed" if found.step != "evaluate" else "all counted, scores not told", "yellow")
        if found.done == found.blocks
        else ("waiting", "cyan")
        if found.queued
        else ("not running", "yellow")
    )
    name = NAMES.get(found.command, found.command)
    return Text.assemble((found.output, "bold"), (f"  {name}" if name else "", "dim"), "  ", (word, f"bold {style}"))


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
    if len(found.stages) > 1:
        rows += [("stages" if stage is found.stages[0] else "", stage_line(stage)) for stage in found.stages]
    if found.workers:
        crowd = f"{count(found.workers, 'worker')} on {count(found.hosts, 'host')}"
        rows += [("speed", Text(f"{speed(found)} by {crowd}")), ("time left", Text(time_left(found)))]
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


def stage_line(stage: StageStatus) -> Text:
    """How far one stage is."""
    from rich.text import Text

    rest = "".join(f", {number} {state}" for state in ("running", "failed") if (number := getattr(stage, state)))
    told = f"{stage.name:<8} {stage.done} of {stage.blocks}{rest}"
    return Text(told, style="green" if stage.done == stage.blocks else "red" if stage.failed else "")


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
    if found.gone:
        return f"it is gone; the same {found.command} command makes it anew"
    if found.stopped:
        return f"stopped: {found.stopped}"
    if found.levels_missing and not found.workers:
        return f"full resolution is there, coarser levels are missing; the same {found.command} command continues"
    if found.done == found.blocks:
        return "every block is there; " + CLOSING.get(found.command, f"the same {found.command} command completes it")
    if not found.workers and not found.silent and not found.queued:
        return f"nobody works on it; the same {found.command} command continues"
    return None


REFRESH_SECONDS = 2.0
"""On a terminal; a log gets a line a minute."""
AGAIN = "verify --repair computes them anew, as the same {} command does those without receipt"
REPAIRS = {"evaluate": "the same evaluate command counts them again"}
INPUT = {
    "predict": "input: volume (sampled chunks) and model are what they were",
    "label": "input: prediction (sampled chunks) and what was measured are what they were",
    "evaluate": "input: prediction and truth (sampled chunks) are what they were",
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

    with Live(console=terminal(), auto_refresh=False) as live:
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
            INPUT.get(found.command, "input: what it was")
        ]
    return told


def name_of(found: Verification) -> str:
    """The output, and which part of it."""
    return f"{found.output}, counts of its evaluation" if found.command == "evaluate" else found.output


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
    return [head, *listed(found.damaged), REPAIRS.get(found.command, AGAIN.format(found.command))]


def listed(damaged: list[Damage]) -> list[str]:
    """The first ones in full."""
    told = [f"  block {damage.block} ({damage.place}): {damage.what}" for damage in damaged[:SHOWN_DAMAGE]]
    return told + ([f"  and {len(damaged) - SHOWN_DAMAGE} more: --json tells all"] if len(damaged) > SHOWN else [])


def seam_lines(seams: SeamReport) -> list[str]:
    """How far other tiles give the same."""
    head = (
        f"{seams.windows} windows across borders computed anew in other tiles: "
        f"largest difference {seams.largest_difference:g}, {seams.allowed:g} allowed"
    )
    return [head, *(f"  {seam.place}: {seam.reason}" for seam in seams.exceeded)]
