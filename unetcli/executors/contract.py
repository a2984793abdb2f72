"""What every executor promises; ``tests/executors/test_contract.py`` holds each of them to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unetcli.core.ranges import Ranges


class Task(Protocol):
    """A function of the package (pickled by its name) over plain values.

    Everything it finds out it tells in files of the run folder: receipts, troubles, heartbeats. It may be called again
    with the same blocks, by another process, at any time: finished blocks are skipped.
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


SECONDS_PER_TICK = 1.0


class InProcess:
    """Runs the task here, in one call; what it raises is raised, for there is no other worker to go on."""

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
    """Call ``tick`` again and again from a thread, as one block may take minutes; a last time at a good end.

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
