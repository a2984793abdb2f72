"""Blocks worked off by an executor, and those that failed tried again on another host."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import to_ranges
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.troubles import FAILED, UNUSABLE, current_troubles
from unetcli.engine.worker import why_stopped
from unetcli.executors.contract import Executor, JobFailure, Task

log = logging.getLogger(__name__)

Report = Callable[[int, int], None]
"""Told of progress: voxels done by now, and in all."""

LOOK_SECONDS = 0.5
"""Between two looks at the receipts."""


class Counted(Protocol):
    """A plan, as far as progress needs it."""

    @property
    def blocks(self) -> int: ...

    def voxels(self, blocks: NDArray[np.bool_]) -> int: ...


@dataclass
class Progress:
    """Tells how far a run is, from its receipts."""

    plan: Counted
    ledger: Ledger
    report: Report
    blocks: NDArray[np.intp] | None = None
    """Of these; None: of all."""
    lines: int = -1
    looked: float = 0.0

    def __call__(self) -> None:
        """Look for new receipts, at most once in a while."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        if self.ledger.refresh().lines != self.lines:
            self.tell()

    def tell(self) -> None:
        self.lines = self.ledger.refresh().lines
        counted = np.ones(self.plan.blocks, np.bool_)
        if self.blocks is not None:
            counted[:] = False
            counted[self.blocks] = True
        self.report(self.plan.voxels(self.ledger.done & counted), self.plan.voxels(counted))


@dataclass(kw_only=True)
class Rounds:
    """One round over the missing ones of some blocks, then others over those that failed."""

    executor: Executor
    task: Task
    folder: RunFolder
    ledger: Ledger
    progress: Progress
    stopping: Callable[[], bool]
    retries: int
    failures: list[JobFailure] = field(default_factory=list)

    def run(self, blocks: NDArray[np.intp] | None = None) -> list[JobFailure]:
        """Have blocks (None: all) computed that have no receipt; every job that failed.

        Raises
        ------
        UnetcliError
            The first blocks all failed alike; the traceback is in the log.
        """
        wanted = np.arange(len(self.ledger.done)) if blocks is None else blocks
        self._round(wanted[~self.ledger.done[wanted]], [])
        for _ in range(self.retries):
            again, hosts = self._failed(wanted)
            if self.stopping() or not len(again) or any(failure.final for failure in self.failures):
                break
            log.info(
                "%d blocks failed; once more%s", len(again), f", elsewhere than {', '.join(hosts)}" if hosts else ""
            )
            self.failures.clear()
            self._round(again, hosts)
        return self.failures

    def _round(self, blocks: NDArray[np.intp], avoid: list[str]) -> None:
        if not len(blocks):
            return
        self.failures += self.executor.run(
            self.task,
            self.folder.path,
            to_ranges(blocks),
            tick=self.progress,
            stopping=self.stopping,
            avoid=avoid,
        )
        self.progress.tell()
        if why := why_stopped(self.folder):
            message, _, traceback = why.partition("\n")
            log.error("%s", traceback.rstrip())
            raise UnetcliError(message)

    def _failed(self, wanted: NDArray[np.intp]) -> tuple[NDArray[np.intp], list[str]]:
        """Blocks worth another try, and the hosts where they failed."""
        open_troubles = current_troubles(self.folder.troubles, self.ledger)
        unusable = [trouble.block for trouble in open_troubles if trouble.kind == UNUSABLE]
        hosts = {trouble.host for trouble in open_troubles if trouble.kind == FAILED}
        hosts |= {failure.host for failure in self.failures if failure.host}
        return np.setdiff1d(wanted[~self.ledger.done[wanted]], unusable), sorted(hosts)
