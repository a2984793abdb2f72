"""The commands status and verify: progress of the runs on a store, and the check of their results."""

from __future__ import annotations

import json as json_text
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unetcli.cli import console
from unetcli.cli.requests import JsonOption
from unetcli.cli.terminal import Printable, shortened, unguarded
from unetcli.core.errors import counted
from unetcli.core.options import Heading
from unetcli.executors.options import RunRequest, VerifyRequest

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

    from unetcli.engine.status import HostTiming, StageStatus, Status, Watcher
    from unetcli.engine.verify import Damage, Verification
    from unetcli.engine.workers import Failure
    from unetcli.predict.checks import SeamReport

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "missing": "bright_black"}
WIDEST = 100
"""Largest width of the bar, in columns."""
SLOW = 1.5
"""Hosts that need this many times the median time per block are listed."""
NAMES = {"predict": "", "label": "labels", "evaluate": "evaluation"}
"""Name of a step after the path of the output, by its command."""
CLOSING = {
    "predict": "the same predict command with --close marks the output complete",
    "label": "the same label command marks the labels complete",
    "evaluate": "the same evaluate command computes the scores",
}
NOT_KNOWN = "not known yet"
SHOWN = 5
"""Number of failures that are listed; ``--json`` has all of them."""


def terminal() -> Console:
    """Console for the status; outside a terminal it is wide, so that no line is cut."""
    from rich.console import Console

    return Console(highlight=False, file=unguarded(sys.stdout), width=None if sys.stdout.isatty() else 200)


def line(found: Status) -> str:
    """Status of a step in one line."""
    head = "" if found.step == "predict" else f"{found.step}: "
    now = next((stage for stage in found.stages if stage.done < stage.blocks), None)
    where = f" ({now.name} {now.done} of {now.blocks})" if now and len(found.stages) > 1 else ""
    return f"{head}{found.done} of {found.blocks} blocks done{where}; {', '.join([*counts(found), pace(found)])}"


def counts(found: Status) -> list[str]:
    """Number of blocks in each state other than done, without zeros."""
    return [f"{number} {state}" for state in ("running", "failed", "missing") if (number := getattr(found, state))]


def pace(found: Status) -> str:
    """Speed and time left, or the reason why there are none."""
    if found.complete:
        return "complete"
    if not found.workers:
        return f"{counted(found.queued, 'job')} waiting" if found.queued else "not running"
    left = time_left(found)
    return f"{speed(found)}, {left if found.seconds_left is None else left + ' left'}"


def speed(found: Status) -> str:
    """Speed of all workers together, in voxels per second."""
    return console.speed(found.voxels_per_second, "voxels") if found.voxels_per_second else NOT_KNOWN


def time_left(found: Status) -> str:
    """Time until the step is done, at the present speed."""
    return NOT_KNOWN if found.seconds_left is None else console.duration(found.seconds_left)


def picture_of_all(found: list[Status]) -> RenderableType:
    """Status of all steps. Complete ones take one line if there are others."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for each in found:
        brief = each.complete and len(found) > 1
        parts += [_head(each)] if brief else [picture(each)]
        parts += [Text()] if not brief and each is not found[-1] else []
    return Group(*parts)


def picture(found: Status) -> RenderableType:
    """Status of a step for the terminal: bar, counts, speed, failures and advice."""
    from rich.console import Group
    from rich.constrain import Constrain
    from rich.text import Text

    parts: list[RenderableType] = [_head(found), Constrain(_bar(found), WIDEST), Text(), _facts(found)]
    workers = [failure for failure in found.failures if failure.block is None]
    blocks = [failure for failure in found.failures if failure.block is not None]
    for title, failures in (("failed workers", workers), ("failed blocks", blocks)):
        if failures:
            parts += [Text(), Text(f"{title}: {len(failures)}", style="bold red"), _failures(failures)]
    if text := advice(found):
        parts += [Text(), Text(text, style="yellow")]
    return Group(*parts)


def _head(found: Status) -> RenderableType:
    from rich.text import Text

    word, style = state(found)
    name = NAMES.get(found.command, found.command)
    return Text.assemble((found.output, "bold"), (f"  {name}" if name else "", "dim"), "  ", (word, f"bold {style}"))


def state(found: Status) -> tuple[str, str]:
    """State of a step in words, and its colour."""
    if found.complete:
        return "complete", "green"
    if found.workers:
        return "running", "cyan"
    if found.done == found.blocks:
        return "all blocks done, " + ("no scores" if found.step == "evaluate" else "not marked complete"), "yellow"
    return ("waiting", "cyan") if found.queued else ("not running", "yellow")


class _Scale:
    """Bar that shows how many blocks are in each state. A state with any block is visible."""

    def __init__(self, found: Status) -> None:
        self.found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        lengths = shares_of([getattr(self.found, state) for state in COLOURS], options.max_width)
        glyphs = "#=x." if options.ascii_only else "█▓▒░"
        parts = zip(glyphs, lengths, COLOURS.values(), strict=True)
        yield Text.assemble(*((glyph * length, style) for glyph, length, style in parts))


def shares_of(counts: list[int], width: int) -> list[int]:
    """Divide a width in proportion to counts. Counts above zero get at least one column.

    >>> shares_of([990, 1, 0, 9], 20)
    [18, 1, 0, 1]
    """
    total = max(sum(counts), 1)
    lengths = [max(count * width // total, 1) if count else 0 for count in counts]
    lengths[lengths.index(max(lengths))] += width - sum(lengths)
    return lengths


def percent(found: Status) -> str:
    """Percentage of blocks that are done; 100 % only if all are."""
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
        crowd = f"{counted(found.workers, 'worker')} on {counted(found.hosts, 'host')}"
        rows += [("speed", Text(f"{speed(found)} by {crowd}")), ("time left", Text(time_left(found)))]
    if found.queued:
        rows.append(("queue", Text(f"{counted(found.queued, 'job')} waiting ({found.queued_for or 'reason unknown'})")))
    if found.silent:
        silent = f"{counted(found.silent, 'worker')} on other hosts, not heard from yet"
        rows.append(("silent", Text(silent, style="yellow")))
    slow = slow_hosts(found)
    rows += [("slowest" if host is slow[0] else "", Text(f"{host.host}: {seconds(host)}")) for host in slow]
    if not slow and found.slowest_hosts:
        rows.append(("cost", Text(seconds(found.slowest_hosts[0]))))
    table = _grid()
    for name, text in rows:
        table.add_row(Text(f"{name:<9}", style="dim"), text)
    return table


def stage_line(stage: StageStatus) -> Text:
    """Progress of one stage."""
    from rich.text import Text

    rest = "".join(f", {number} {state}" for state in ("running", "failed") if (number := getattr(stage, state)))
    text = f"{stage.name:<8} {stage.done} of {stage.blocks}{rest}"
    return Text(text, style="green" if stage.done == stage.blocks else "red" if stage.failed else "")


def slow_hosts(found: Status) -> list[HostTiming]:
    """Hosts that need clearly more time per block than the median host, slowest first."""
    middle = found.median_seconds_per_block or 0.0
    return [host for host in found.slowest_hosts if host.seconds_per_block > SLOW * middle]


def seconds(host: HostTiming) -> str:
    """Time of a host per block, in total and for each stage."""
    stages = f"read {host.read_seconds:.3g}, forward {host.forward_seconds:.3g}, write {host.write_seconds:.3g}"
    return f"{host.seconds_per_block:.3g} s per block ({stages})"


def _failures(failures: list[Failure]) -> Table:
    from rich.text import Text

    table = _grid()
    for failure in failures[:SHOWN]:
        if failure.block is not None:
            table.add_row(
                f"  block {failure.block}", Text.assemble((f"{failure.place}\n", "dim"), shortened(failure.reason))
            )
        else:
            who = "worker" if failure.job == "-" else f"job {failure.job}"
            table.add_row(f"  {who}", Text.assemble((f"{failure.host}  ", "dim"), shortened(failure.reason)))
    if len(failures) > SHOWN:
        table.add_row("", f"and {len(failures) - SHOWN} more; --json lists all")
    return table


def _grid() -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def advice(found: Status) -> str | None:
    """Advice on what to do next, if anything."""
    if found.complete:
        return None
    if found.gone:
        return f"the output is gone; the same {found.command} command computes it again"
    if found.stopped:
        return f"stopped: {shortened(found.stopped)}"
    if found.levels_missing and not found.workers:
        return f"full resolution is done, coarser levels are missing; the same {found.command} command continues"
    if found.done == found.blocks:
        return "all blocks are done; " + CLOSING.get(found.command, f"the same {found.command} command completes it")
    if not found.workers and not found.silent and not found.queued:
        return f"no worker is running; the same {found.command} command continues"
    return None


REFRESH_SECONDS = 2.0
"""Interval on a terminal. A log gets one line per minute."""
AGAIN = "verify --repair computes them again; the same {} command computes those that have no receipt"
REPAIRS = {"evaluate": "the same evaluate command computes them again"}
INPUT = {
    "predict": "input: volume (sampled chunks) and model are unchanged",
    "label": "input: prediction (sampled chunks) and measured image are unchanged",
    "evaluate": "input: prediction and truth (sampled chunks) are unchanged",
}
SHOWN_DAMAGE = 20
"""Number of damaged blocks that are listed; ``--json`` has all of them."""

WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Refresh until everything is done.", rich_help_panel=Heading.RUN)
]


def status(request: RunRequest, watch: WatchOption = False, json: JsonOption = False) -> None:
    """Show the progress of predict, label and evaluate on OUTPUT.

    Lists running workers, waiting jobs and failures. It only reads files, so it works on any machine that sees them.
    The exit code is 0 if they can be read; scripts should use --json.
    """
    from unetcli.engine.status import Watcher
    from unetcli.registry import steps_of

    watchers = [Watcher(found) for found in steps_of(str(request.output), request.run_folder, request.step)]
    if not watch:
        found = [watcher.status() for watcher in watchers]
        console.print_json(as_dict(found)) if json else terminal().print(Printable(picture_of_all(found)))
    elif sys.stdout.isatty() and not json:
        refresh(watchers)
    else:
        write_lines(watchers, json)


def verify(request: VerifyRequest, json: JsonOption = False) -> None:
    """Read every block of OUTPUT back and compare its checksum.

    Checks predictions with their resolution levels, labels and evaluations. The exit code is 0 if everything is as it
    was computed, and 3 if blocks are damaged or missing, if --seams finds a difference, or if --input finds a change.
    """
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.registry import verify_output

    with console.progress("voxels") as report:
        found = verify_output(request, report, console.stop_on_sigterm)
    text = "\n".join(text for each in found for text in lines(each))
    console.print_json(as_dict(found)) if json else typer.echo(text)
    if not all(each.sound for each in found):
        raise typer.Exit(console.INCOMPLETE)


def as_dict(found: Sequence[Status | Verification]) -> dict[str, Any]:
    """JSON of the first step (the prediction if there is one), with the other steps inside."""
    return found[0].to_dict() | {"others": [other.to_dict() for other in found[1:]]}


def refresh(watchers: list[Watcher]) -> None:
    """Refresh the status on the terminal until everything is done."""
    from rich.live import Live

    with Live(console=terminal(), auto_refresh=False) as live:
        while True:
            found = [watcher.status(wait=False) for watcher in watchers]
            live.update(Printable(picture_of_all(found)), refresh=True)
            if all(each.complete for each in found):
                return
            time.sleep(REFRESH_SECONDS)


def write_lines(watchers: list[Watcher], json: bool) -> None:
    """Print a line for each step, or one line of JSON: at once, every minute, and when everything is done."""
    printed = float("-inf")
    while True:
        found = [watcher.status(wait=False) for watcher in watchers]
        complete = all(each.complete for each in found)
        if complete or time.monotonic() - printed >= console.SECONDS_PER_LINE:
            printed = time.monotonic()
            typer.echo(json_text.dumps(as_dict(found)) if json else "\n".join(map(line, found)))
        if complete:
            return
        time.sleep(REFRESH_SECONDS)


def lines(found: Verification) -> list[str]:
    """Result of the check of one step, in lines."""
    result = []
    if found.repaired:
        result += [f"{name_of(found)}: {counted(len(found.repaired), 'block')} repaired", *listed(found.repaired)]
    if found.checked or found.damaged:
        result += block_lines(found)
    if found.table:
        result.append(f"{found.table}; verify --repair writes it again")
    if found.seams:
        result += seam_lines(found.seams)
    if found.input_changes is not None:
        changes = [f"{change.source} {change.path}: {change.what}" for change in found.input_changes]
        result += changes or [INPUT.get(found.command, "input: unchanged")]
    return result


def name_of(found: Verification) -> str:
    """Path of the output, with the part that was checked."""
    return f"{found.output}, results of its evaluation" if found.command == "evaluate" else found.output


def block_lines(found: Verification) -> list[str]:
    """Number of intact blocks, and a list of damaged ones."""
    stored = found.checked if found.step == "evaluate" else found.blocks - found.not_kept
    head = f"{name_of(found)}: {stored - len(found.damaged)} of {stored} blocks are intact"
    if found.command != "label":
        return _with_damage(head, found)
    parts = "labels at all levels, table of objects" if found.complete else "labels, intermediate results"
    return _with_damage(f"{head} ({parts})", found)


def _with_damage(head: str, found: Verification) -> list[str]:
    if not found.damaged:
        return [head if found.complete else f"{head}; the same {found.command} command marks them complete"]
    return [head, *listed(found.damaged), REPAIRS.get(found.command, AGAIN.format(found.command))]


def listed(damaged: list[Damage]) -> list[str]:
    """Lines for the first damaged blocks."""
    first = [f"  block {damage.block} ({damage.place}): {shortened(damage.what)}" for damage in damaged[:SHOWN_DAMAGE]]
    return first + ([f"  and {more} more; --json lists all"] if (more := len(damaged) - SHOWN_DAMAGE) > 0 else [])


def seam_lines(seams: SeamReport) -> list[str]:
    """Result of computing windows again with other tiles."""
    head = (
        f"{counted(seams.windows, 'window')} across block borders recomputed with other tiles: "
        f"largest difference {seams.largest_difference:g}, {seams.allowed:g} allowed"
    )
    return [head, *(f"  {seam.place}: {seam.reason}" for seam in seams.exceeded)]
