"""Batches of blocks: how they are cut, and how a Dask worker works one off."""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import Ranges
from unetcli.executors.contract import Task

if TYPE_CHECKING:
    from distributed import Worker

LARGEST = 256
"""Blocks per batch at most: 10^6 blocks are 4,000 tasks for the scheduler then."""
PER_WORKER = 3
"""A batch is this part of what is left per worker: large first, single blocks last, so that workers end together."""
SCRATCH = "UNETCLI_WORKER_SCRATCH"
"""Variable that names the worker's own folder."""
LEAVE, BUSY = "leave", "busy"
"""Files there: one asks the worker to leave, the other says which process is at work."""


def batch_size(left: int, workers: int) -> int:
    """Blocks in the next batch.

    >>> batch_size(10**6, 2), batch_size(100, 4), batch_size(7, 4)
    (256, 9, 1)
    """
    return min(LARGEST, -(-left // (PER_WORKER * max(workers, 1))))


class Cutter:
    """Cuts batches off the front of many blocks, without ever listing them.

    >>> cutter = Cutter(((0, 3), (7, 9)))
    >>> cutter.cut(4), cutter.left, cutter.cut(4), cutter.left
    (((0, 3), (7, 8)), 1, ((8, 9),), 0)
    """

    def __init__(self, blocks: Ranges) -> None:
        self._ranges = deque(blocks)
        self.left = sum(stop - start for start, stop in blocks)

    def cut(self, size: int) -> Ranges:
        """The next blocks: that many, or what is left."""
        batch = []
        while size and self._ranges:
            start, stop = self._ranges.popleft()
            end = min(stop, start + size)
            batch.append((start, end))
            if end < stop:
                self._ranges.appendleft((end, stop))
            size -= end - start
            self.left -= end - start
        return tuple(batch)


class Outcome(NamedTuple):
    """What came of a batch; small, as it travels back."""

    done: int
    host: str
    left: bool = False
    """The worker was asked to leave, so blocks may be left."""
    error: str = ""
    """What the task raised, as one line."""
    details: str = ""
    """Its traceback, for the log."""


_one_at_a_time = threading.Lock()  # a worker of others may have several threads; the task takes the whole process
_stopped: set[str] = set()
"""Runs that were stopped, as this worker process was told."""


def request_stop(run: str) -> None:
    """Have batches of that run stop after their current block, in this worker process."""
    _stopped.add(run)


def run_batch(task: Task, folder: str, blocks: Ranges, run: str) -> Outcome:
    """Work off a batch on a Dask worker; an exception comes back as text, which any client can read."""
    from distributed import get_worker

    worker, host = get_worker(), socket.gethostname()
    key = worker.get_current_task()

    def stopping() -> bool:
        return run in _stopped or leaving() or not _is_wanted(worker, key)

    with _one_at_a_time:
        if stopping():
            return Outcome(0, host, left=leaving())
        try:
            with _busy():
                done = task(folder, blocks, stopping)
        except (Exception, SystemExit) as error:
            return Outcome(0, host, error=one_line(error), details=traceback.format_exc())
    return Outcome(done, host, left=leaving())


def _is_wanted(worker: Worker, key: object) -> bool:
    """False where the batch was given up: its client is gone, or the worker is closing."""
    state = worker.state.tasks.get(key)  # type: ignore[call-overload]
    return state is not None and state.state == "executing" and worker.status.name == "running"


def one_line(error: BaseException) -> str:
    """What was raised, as one line for people; what they can put right speaks for itself.

    >>> one_line(ValueError("two\\nlines")), one_line(UnetcliError("no model"))
    ('ValueError: two lines', 'no model')
    """
    kind = "" if isinstance(error, UnetcliError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def leaving() -> bool:
    """Whether this worker was asked to leave, as by SIGTERM."""
    scratch = os.environ.get(SCRATCH)
    return scratch is not None and (Path(scratch) / LEAVE).exists()


@contextmanager
def _busy() -> Iterator[None]:
    """Say in the worker's own folder that it works, for who asks it to leave."""
    scratch = os.environ.get(SCRATCH)
    mark = Path(scratch) / BUSY if scratch else None
    if mark:
        mark.write_text(str(os.getpid()))
    try:
        yield
    finally:
        if mark:
            mark.unlink(missing_ok=True)
