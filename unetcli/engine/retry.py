"""Rounds over the missing blocks: one over all of them, then others over those that failed, on other hosts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import to_ranges
from unetcli.engine.failures import FAILED, UNUSABLE, current_failures
from unetcli.engine.receipts import Ledger
from unetcli.engine.step import Step
from unetcli.engine.worker import StepTask, why_stopped
from unetcli.executors.contract import Executor, JobFailure

log = logging.getLogger(__name__)

Report = Callable[[int, int], None]
"""Told of progress: voxels done by now, and in all."""

LOOK_SECONDS = 0.5
"""Between two looks at the receipts."""


@dataclass
class Progress:
    """Reports how far a run is, from its receipts."""

    step: Step
    report: Report
    blocks: NDArray[np.intp] | None = None
    """Blocks that count. Default: all."""
    lines: int = -1
    looked: float = 0.0

    def __call__(self) -> None:
        """Look for new receipts, at most once in a while."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        if self.step.ledger.refresh().lines != self.lines:
            self.tell()

    def tell(self) -> None:
        ledger = self.step.ledger.refresh()
        self.lines, counted = ledger.lines, np.ones(self.step.blocks, np.bool_)
        if self.blocks is not None:
            counted[:] = False
            counted[self.blocks] = True
        self.report(self.step.voxels(ledger.done & counted), self.step.voxels(counted))


@dataclass(kw_only=True)
class Rounds:
    """One round over the missing ones of some blocks, then others over those that failed."""

    step: Step
    executor: Executor
    progress: Progress
    stopping: Callable[[], bool]
    retries: int
    failures: list[JobFailure] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        return self.step.ledger

    def run(self, wanted: NDArray[np.intp]) -> list[JobFailure]:
        """Have those of the blocks computed that have no receipt; every job that failed in the last round.

        Raises
        ------
        UnetcliError
            The first blocks all failed alike; the traceback is in the log.
        """
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
            StepTask(type(self.step)),
            self.step.folder.path,
            to_ranges(blocks),
            tick=self.progress,
            stopping=self.stopping,
            avoid=avoid,
        )
        self.progress.tell()
        if why := why_stopped(self.step.folder):
            message, _, traceback = why.partition("\n")
            log.error("%s", traceback.rstrip())
            raise UnetcliError(message)

    def _failed(self, wanted: NDArray[np.intp]) -> tuple[NDArray[np.intp], list[str]]:
        """Blocks worth another try, and the hosts where they failed."""
        open_failures = current_failures(self.step.folder.failures, self.ledger)
        unusable = [failure.block for failure in open_failures if failure.kind == UNUSABLE]
        hosts = {failure.host for failure in open_failures if failure.kind == FAILED}
        hosts |= {failure.host for failure in self.failures if failure.host}
        return np.setdiff1d(wanted[~self.ledger.done[wanted]], unusable), sorted(hosts)
