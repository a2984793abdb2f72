"""Output of commands: results on stdout; log lines and progress on stderr."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn

import typer

from unetcli.cli.terminal import PrintableStream, printable, shortened, unguarded
from unetcli.core.process import Signals
from unetcli.core.streams import ProgressCallback, silent

USER, INCOMPLETE, BUG, INTERRUPTED = 1, 3, 70, 130
"""Exit codes."""
SECONDS_PER_LINE = 60
_logger = logging.getLogger("unetcli")


def set_up(*, verbose: bool, quiet: bool) -> None:
    """Log to stderr: everything, messages or warnings only."""
    _logger.handlers[:] = [_Handler()]
    _logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    _logger.propagate = False


def open_closed_streams() -> None:
    """Open /dev/null in the place of each standard stream that the caller closed (``2>&-``).

    Python has no stream there. Moreover, the next files to be opened would take the numbers of these streams, and
    whatever a library prints would go into them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            taken = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            if taken != number:
                os.dup2(taken, number)
                os.close(taken)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: PTH123, SIM115 - open until the process ends


def say(text: str) -> None:
    """Log one line."""
    _logger.info("%s", text)


def print_json(values: Any) -> None:
    """Print values as JSON on stdout."""
    typer.echo(json.dumps(values, indent=2))


def print_jobs(jobs: Iterable[str]) -> None:
    """Print the ids of jobs on stdout, one for each job array.

    >>> print_jobs(["12_0", "12_1", "15"])
    12 15
    """
    typer.echo(" ".join(dict.fromkeys(job.partition("_")[0] for job in jobs)))


def print_summary(summary: Any, *, as_json: bool) -> None:
    """Print the summary of a run: as JSON, or the ids of jobs still running, or the path of its output."""
    say(summary.sentence)
    if as_json:
        print_json(asdict(summary))
    elif summary.jobs:
        print_jobs(summary.jobs)
    else:
        print_path(summary.output)


def print_path(path: object) -> None:
    """Print a path on stdout: on a terminal with visible control characters, for scripts exactly as it is."""
    if isinstance(sys.stdout, PrintableStream) and not sys.stdout.isatty():
        sys.stdout.write_exactly(f"{path}\n")
        sys.stdout.flush()
    else:
        typer.echo(path)


def stop_on_sigterm() -> Callable[[], bool]:
    """Handle SIGTERM from now on; the returned function says whether it has arrived."""
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    return lambda: bool(received)


def leave(signals: Signals, *, requeue: bool = True) -> NoReturn:
    """Exit before the work is complete: with 130 after Ctrl-C, else with 3. Call it when all results are on disk.

    SLURM sends SIGUSR2 before the time limit; with ``requeue`` the job then returns to the queue. It does not after
    SIGTERM, which ``scancel`` sends as well: a cancelled job must not come back.
    """
    number = signals.stop()
    if requeue and number == signal.SIGUSR2:
        from unetcli.executors.slurm.worker import requeue_job

        requeue_job()
    raise typer.Exit(INTERRUPTED if number == signal.SIGINT else INCOMPLETE)


@contextmanager
def progress(unit: str) -> Iterator[ProgressCallback]:
    """Progress display: a bar on a terminal, otherwise a line per minute. Yields the function to report to."""
    if not _logger.isEnabledFor(logging.INFO):
        yield silent
    elif sys.stderr.isatty():
        with _bar(unit) as report:
            yield report
    else:
        yield Lines(unit)


class Lines:
    """Progress for a log file: one line per minute."""

    def __init__(self, unit: str, every: float = SECONDS_PER_LINE) -> None:
        self.unit, self.every = unit, every
        self.first: int | None = None
        self.started = self.printed = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if now - self.printed >= self.every:
            self.printed = now
            rate = (done - self.first) / (now - self.started)
            left = duration((total - done) / rate) if rate else "unknown"
            how = f"; {note}" if note else ""
            say(f"{amount(done)} of {amount(total)} {self.unit}, {speed(rate, self.unit)}, {left} left{how}")


@contextmanager
def _bar(unit: str) -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(f"{amount(task.completed)}/{amount(task.total or 0)} {speed(rate or 0, unit)}")

    class Note(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields.get("note", ""), no_wrap=True, overflow="ellipsis")

    # if the line is too long, the bar shrinks first, then the end of the note; the numbers never do
    left = TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7))
    columns = (
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        TaskProgressColumn(),
        Speed(Column(no_wrap=True)),
        left,
        Note(),
    )
    with Progress(*columns, console=Console(file=unguarded(sys.stderr)), transient=False, expand=True) as bar:
        task = bar.add_task(unit, total=None)

        def report(done: int, total: int, note: str = "") -> None:
            if bar.tasks[0].total is None:
                bar.reset(task, total=total, completed=done)
            bar.update(task, completed=done, note=note)

        _Handler.console = bar.console
        try:
            yield report
        finally:
            _Handler.console = None


class _Handler(logging.Handler):
    """Handler that writes to stderr, above the progress bar if there is one."""

    console: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        text = printable(shortened(f"{prefix}{record.getMessage()}"))
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def amount(value: float) -> str:
    """Format a count with three significant digits.

    >>> amount(950), amount(2_621_440), amount(81_000)
    ('950', '2.62 M', '81 k')
    """
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= factor:
            value = value / (factor if letter != "k" else 1e3)
            return f"{value:.3g} {letter}"
    return f"{value:.0f}"


def speed(rate: float, unit: str) -> str:
    """Format a rate.

    >>> speed(1.4e6, "voxels"), speed(0.25, "steps")
    ('1.4 M voxels/s', '0.25 steps/s')
    """
    return f"{amount(rate) if rate >= 1000 else format(rate, '.3g')} {unit}/s"


def duration(seconds: float) -> str:
    """Format a duration in at most two units.

    >>> duration(42), duration(200), duration(90_000)
    ('42 s', '3 min 20 s', '25 h 0 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
