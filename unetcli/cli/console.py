"""What commands print: results on stdout; on stderr log lines, and progress as a bar or, in a log, a line a minute."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn

import typer

from unetcli.core.process import Signals
from unetcli.core.streams import ProgressCallback, silent

USER, INCOMPLETE, BUG, INTERRUPTED = 1, 3, 70, 130
"""Exit codes."""
SECONDS_PER_LINE = 60
_logger = logging.getLogger("unetcli")


def set_up(*, verbose: bool, quiet: bool) -> None:
    """Log to stderr at the level asked for."""
    _logger.handlers[:] = [_Handler()]
    _logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    _logger.propagate = False


def say(text: str) -> None:
    """Log one line."""
    _logger.info("%s", text)


def print_json(values: Any) -> None:
    """Data for scripts, on stdout."""
    typer.echo(json.dumps(values, indent=2))


def print_jobs(jobs: Iterable[str]) -> None:
    """Ids of whole job arrays, on stdout.

    >>> print_jobs(["12_0", "12_1", "15"])
    12 15
    """
    typer.echo(" ".join(dict.fromkeys(job.partition("_")[0] for job in jobs)))


def print_summary(summary: Any, *, as_json: bool) -> None:
    """What a step has done: all of it as JSON, the jobs it left at work, or its output."""
    say(summary.sentence)
    if as_json:
        print_json(asdict(summary))
    elif summary.jobs:
        print_jobs(summary.jobs)
    else:
        typer.echo(summary.output)


def stop_on_sigterm() -> Callable[[], bool]:
    """From now on SIGTERM asks for an orderly end; the function returned says whether it came."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    return lambda: bool(asked)


def leave(signals: Signals, *, requeue: bool = True) -> NoReturn:
    """Exit with work left to do: 130 after Ctrl-C, else 3. Call once all is safe on disk.

    SIGUSR2 is SLURM's warning of the time limit: the job goes back into the queue first, with ``requeue``. SIGTERM is
    not, as ``scancel`` sends it too, and a cancelled job must not come back.
    """
    number = signals.stop()
    if requeue and number == signal.SIGUSR2:
        from unetcli.executors.slurm.worker import requeue_job

        requeue_job()
    raise typer.Exit(INTERRUPTED if number == signal.SIGINT else INCOMPLETE)


@contextmanager
def progress(unit: str) -> Iterator[ProgressCallback]:
    """A report function that shows amount, rate and time left; units other than voxels are counted singly."""
    if not _logger.isEnabledFor(logging.INFO):
        yield silent
    elif sys.stderr.isatty():
        with _bar(unit) as report:
            yield report
    else:
        yield Lines(unit)


class Lines:
    """Progress for a log file: one line a minute."""

    def __init__(self, unit: str, every: float = SECONDS_PER_LINE) -> None:
        self.unit, self.every = unit, every
        self.first: int | None = None
        self.started = self.told = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if now - self.told >= self.every:
            self.told = now
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

    # where the line is too long the bar gives way, then the note's end, never what is between
    left = TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7))
    columns = (
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        TaskProgressColumn(),
        Speed(Column(no_wrap=True)),
        left,
        Note(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False, expand=True) as bar:
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
    """Lines to stderr; above the progress bar while there is one."""

    console: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        text = f"{prefix}{record.getMessage()}"
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def amount(value: float) -> str:
    """A count in three digits.

    >>> amount(950), amount(2_621_440), amount(81_000)
    ('950', '2.62 M', '81 k')
    """
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= factor:
            value = value / (factor if letter != "k" else 1e3)
            return f"{value:.3g} {letter}"
    return f"{value:.0f}"


def speed(rate: float, unit: str) -> str:
    """A rate in words.

    >>> speed(1.4e6, "voxels"), speed(0.25, "steps")
    ('1.4 M voxels/s', '0.25 steps/s')
    """
    return f"{amount(rate) if rate >= 1000 else format(rate, '.3g')} {unit}/s"


def duration(seconds: float) -> str:
    """A time in at most two units.

    >>> duration(42), duration(200), duration(90_000)
    ('42 s', '3 min 20 s', '25 h 0 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
