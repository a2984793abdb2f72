"""The loop of every worker: the step computes the blocks, the worker records their receipts or failures."""

from __future__ import annotations

import functools
import itertools
import logging
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.files import explain_write_errors, publish
from unetcli.core.lock import job_id
from unetcli.core.memory import OutOfMemory, out_of_memory
from unetcli.core.process import prepare
from unetcli.core.ranges import Ranges, numbers
from unetcli.engine.receipts import (
    DONE,
    FAILED,
    UNUSABLE,
    VOID,
    BlockFailure,
    FailureBook,
    Ledger,
    Receipt,
    ReceiptBook,
)
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.step import BlockResult, DamagedResult, Step, is_unusable
from unetcli.engine.workers import Heartbeat
from unetcli.planning.plan import Stage

log = logging.getLogger(__name__)

SAME_FAILURES = 3
"""A worker stops if its first blocks, this many, fail with the same error: the blocks are not the cause."""
MAX_ATTEMPTS = 8
"""Attempts after which a block whose stored result is damaged each time is given up: the disk is at fault."""
STOP_POLL_SECONDS = 1.0
"""Time between two checks for the stop file."""


class SameFailures(UnetcliError):
    """The first blocks of a worker all failed with the same error."""


@dataclass(frozen=True, slots=True)
class StepTask:
    """The task that executors run for a step; pickled by the name of the step's class."""

    step: type[Step]

    def __call__(self, folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
        """Compute the blocks that have no receipt; return the number of blocks finished."""
        run = RunFolder(Path(folder))
        opened = _opened(self.step, run, run.plan_file.read_text(), run.paths_file.read_text())
        return work(opened, blocks, stopping)


@functools.lru_cache(maxsize=1)
def _opened(step: type[Step], folder: RunFolder, plan: str, paths: str) -> Step:
    """Open the step of a run folder, once per process unless the plan or the paths change."""
    return step.open(folder)


def work(step: Step, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Compute the blocks that have no receipt; return the number of blocks finished."""
    prepare()
    step.ledger.refresh()  # another worker may have finished some of them
    todo = [number for number in numbers(blocks) if not step.ledger.done[number]]
    return Worker(step, StopFile(step.folder, stopping)).run(todo) if todo else 0


@dataclass
class StopFile:
    """Reports whether to stop: asks the caller each time, and checks the stop file at most once a second."""

    folder: RunFolder
    stopping: Callable[[], bool]
    polled: float = 0.0
    found: bool = False

    def __call__(self) -> bool:
        if not self.found and time.monotonic() - self.polled > STOP_POLL_SECONDS:
            self.found, self.polled = self.folder.stop.exists(), time.monotonic()
        return self.found or self.stopping()


@dataclass
class Worker:
    """Computes blocks of one run in this process."""

    step: Step
    stopping: Callable[[], bool]
    finished: int = 0
    memory: OutOfMemory | None = None
    """The last error of a block that needs more memory than there is."""
    signatures: list[str] = field(default_factory=list)
    """Signatures of the failures before the first success."""

    def run(self, blocks: list[int]) -> int:
        """Compute each block and write its receipt; failures are recorded, and the other blocks go on."""
        with Heartbeat(self.step.folder.workers, len(blocks)) as beat:
            for stage, several in itertools.groupby(blocks, self.step.stage_of):
                self._run_stage(stage, list(several), beat)
        if self.memory and not self.finished and not self.step.ledger.refresh().done.any():
            raise self.memory  # no block of the run fits, so the request is to be changed
        return self.finished

    def _run_stage(self, stage: Stage, blocks: list[int], beat: Heartbeat) -> None:
        step, data = self.step, self.step.data(stage)
        with (
            explain_write_errors(data),
            ReceiptBook(step.folder.receipts, data) as book,
            closing(step.compute(blocks, self.stopping)) as results,
        ):
            for result in results:
                if result.error is None:
                    book.add(receipt_of(result, self._attempt(result.number)), result.files)
                    self.finished += 1
                    beat.done(result.voxels)
                else:
                    self._record(result, result.error, book)
                    beat.set_aside()

    def _attempt(self, number: int) -> int:
        return int(self.step.ledger.attempts[number]) + 1

    def _record(self, result: BlockResult, error: Exception, book: ReceiptBook) -> None:
        """Record the failure of a block; raise if continuing is pointless.

        A block that needs too much memory is set aside like others that fail: blocks differ in size at the edges, in
        the number of their objects and in what other processes use meanwhile, so that others may well go on. If no
        block fits, the first ones fail with the same error, which ends this worker.
        """
        memory = out_of_memory(error)
        if memory is not None:
            self.memory = memory
        if isinstance(error, DamagedResult) and self._attempt(error.block) <= MAX_ATTEMPTS:
            book.add(void_receipt(error.block, self._attempt(error.block)))
        failure = BlockFailure(
            block=result.number,
            place=self.step.place(result.number),
            kind=UNUSABLE if is_unusable(error) else FAILED,
            reason=one_line(memory or error, kind=True),
            traceback="".join(traceback.format_exception(error)),
            host=socket.gethostname(),
            job=job_id(),
        )
        FailureBook(self.step.folder.failures).add(failure)
        log.warning("block %d (%s) set aside: %s", failure.block, failure.place, failure.reason)
        if failure.kind == FAILED and not self.finished:
            self._stop_if_all_fail(failure)

    def _stop_if_all_fail(self, failure: BlockFailure) -> None:
        """Raise if the first blocks all failed with the same error and this host has finished no block."""
        self.signatures.append(signature(failure.reason))
        ledger = self.step.ledger
        if (
            len(self.signatures) != SAME_FAILURES
            or len(set(self.signatures)) > 1
            or (ledger.refresh().done & ledger.computed_on(failure.host)).any()
        ):
            return
        message = f"the first {SAME_FAILURES} blocks all failed with the same error on {failure.host}: {failure.reason}"
        if self.memory is None and not ledger.done.any():  # of memory, other hosts may have enough
            publish(self.step.folder.stop, f"{message}\n{failure.traceback}")
        raise SameFailures(message)


def signature(reason: str) -> str:
    """Replace the parts of a reason that differ from block to block: numbers and hexadecimal names of drafts.

    >>> signature("OSError: [Errno 5] c/0/12.0123456789abcdef.partial") == signature(
    ...     "OSError: [Errno 5] c/3/4.fedcba9876543210.partial")
    True
    """
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", reason)


def receipt_of(result: BlockResult, attempt: int) -> Receipt:
    """Return the receipt of a finished block."""
    same = ("checksum", "tile", "read_seconds", "forward_seconds", "write_seconds", "device")
    found = {name: getattr(result, name) for name in same}
    return Receipt(block=result.number, attempt=attempt, state=DONE, host=socket.gethostname(), job=job_id(), **found)


def void_receipt(block: int, attempt: int) -> Receipt:
    """Return a receipt that invalidates earlier attempts, so that the block is recomputed."""
    return Receipt(block=block, attempt=attempt, state=VOID, host=socket.gethostname(), job=job_id())


def void(step: Step, ledger: Ledger, blocks: Iterable[int]) -> None:
    """Invalidate the receipts of blocks; the change is on disk when this returns."""
    with ReceiptBook(step.folder.receipts, step.folder.path) as book:
        for number in blocks:
            if ledger.done[number]:
                book.add(void_receipt(number, int(ledger.attempts[number]) + 1))


def read_stop_reason(folder: RunFolder) -> str | None:
    """Return the contents of the stop file, a reason and a traceback; None if there is no such file."""
    return folder.stop.read_text(errors="replace") if folder.stop.is_file() else None
