"""One worker, in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unetcli.core.ranges import Ranges
from unetcli.executors.contract import JobFailure, Task

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
