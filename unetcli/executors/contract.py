"""What every executor promises, and the simplest one: ``tests/executors/test_contract.py`` tests all of them."""

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
    """A function of the package (pickled by its name) over plain values.

    It reports in files of the run folder: receipts, failures, heartbeats. It may be called again with the same blocks,
    by another process, at any time: finished blocks are skipped.
    """

    def __call__(self, folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
        """Work off the blocks of the run folder; how many were finished. ``stopping`` is asked before each block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """A worker job that ended without finishing its blocks, and why."""

    job: str
    host: str
    reason: str
    """One line for people, as in ``killed, probably out of memory: raise --mem``."""
    final: bool = False
    """Whether trying again is not wanted: a person cancelled it, or it would end the same."""


class Executor(Protocol):
    """Runs a task over blocks; a failing job is reported and stops no other.

    ``tick`` is called at least every few seconds while waiting (it shows progress, from receipts); once ``stopping()``
    is true, what is at work is finished and the rest left. ``avoid`` names hosts where these blocks failed before.
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
    """Runs the task in this process, in one call; what it raises is raised, as there is no other worker to go on."""

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
    """Call ``tick`` again and again from a thread, as one block may take minutes, and once more at a good end.

    What a tick raises is raised when the block ends.
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
