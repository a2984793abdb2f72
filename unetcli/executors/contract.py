"""The executor protocol, which ``tests/executors/test_contract.py`` tests, and the executor for this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unetcli.core.ranges import Ranges

SECONDS_PER_TICK = 1.0


class Task(Protocol):
    """A module-level function of the package with plain values as arguments.

    It is pickled by name, so a process that runs it needs the ``sys.path`` of the launcher.

    It reports through files of the run folder: receipts, failures and heartbeats. Another process may call it again
    with the same blocks at any time; finished blocks are skipped.
    """

    def __call__(self, folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
        """Process blocks of the run folder and return how many were finished.

        ``stopping`` is called before each block; once it returns True, no further block is started.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """A worker job that ended without finishing its blocks, with the reason."""

    job: str
    host: str
    reason: str
    """One line for the user, such as ``killed, probably out of memory: raise --mem``."""
    final: bool = False
    """Whether the job must not be retried: the user cancelled it, or it would fail again."""


class Executor(Protocol):
    """Runs a task over blocks. A job that fails is reported and does not stop the others.

    ``tick`` is called every few seconds while waiting; it shows the progress recorded in receipts. Once ``stopping()``
    returns True, blocks in progress are finished and no others are started. ``avoid`` names hosts on which these
    blocks failed before.
    """

    def run(
        self,
        task: Task,
        folder: Path,
        blocks: Ranges,
        *,
        tick: Callable[[], None],
        stopping: Callable[[], bool],
        avoid: Sequence[str] = (),
    ) -> list[JobFailure]: ...


class InProcess:
    """Runs the task in this process, in one call. Its exceptions propagate, as no other worker could continue."""

    def run(
        self,
        task: Task,
        folder: Path,
        blocks: Ranges,
        *,
        tick: Callable[[], None],
        stopping: Callable[[], bool],
        avoid: Sequence[str] = (),
    ) -> list[JobFailure]:
        with ticking(tick):
            task(str(folder), blocks, stopping)
        return []


@contextmanager
def ticking(tick: Callable[[], None], every: float = SECONDS_PER_TICK) -> Iterator[None]:
    """Call ``tick`` every few seconds from a thread, as one block may take minutes, and once more on success.

    An exception raised by ``tick`` is raised when the ``with`` block ends.
    """
    ended, raised = threading.Event(), list[Exception]()

    def work() -> None:
        try:
            while not ended.wait(every):
                tick()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if raised:
        raise raised[0]
    tick()
