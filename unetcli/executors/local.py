"""Blocks worked off in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from unetcli.executors.contract import JobFailure, Task
from unetcli.ranges import Ranges


class InProcess:
    """The executor of one machine with one device."""

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
        def ask() -> bool:
            tick()
            return stopping()

        task(str(folder), blocks, ask)
        return []
