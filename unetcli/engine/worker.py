"""The one loop of every worker: blocks are computed by their step, and receipts or failures are put on record."""

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

ALIKE = 3
"""A worker whose first blocks fail alike, so many of them, ends: the fault is not the blocks'."""
MOST_ATTEMPTS = 8
"""A block whose stored result is damaged again and again is given up: the disk is at fault."""
STOP_LOOK_SECONDS = 1.0


class AllAlike(UnetcliError):
    """The first blocks of a worker all failed in the same way."""


@dataclass(frozen=True, slots=True)
class StepTask:
    """The task of a step that executors are given; travels to workers by the name of the step's class."""

    step: type[Step]

    def __call__(self, folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
        """Work off the blocks of the run folder that have no receipt; how many were finished."""
        run = RunFolder(Path(folder))
        opened = _opened(self.step, run, run.plan_file.read_text(), run.paths_file.read_text())
        return work(opened, blocks, stopping)


@functools.lru_cache(maxsize=1)
def _opened(step: type[Step], folder: RunFolder, plan: str, paths: str) -> Step:
    """The step of a run folder, opened once for all calls of a process, unless plan or paths changed."""
    return step.open(folder)


def work(step: Step, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Compute the blocks that have no receipt; how many were finished."""
    prepare()
    step.ledger.refresh()  # what another worker finished meanwhile is not done again
    todo = [number for number in numbers(blocks) if not step.ledger.done[number]]
    return Worker(step, StopFile(step.folder, stopping)).run(todo) if todo else 0


@dataclass
class StopFile:
    """Asks whether to stop: the caller, and at most once a second the run folder."""

    folder: RunFolder
    stopping: Callable[[], bool]
    looked: float = 0.0
    found: bool = False

    def __call__(self) -> bool:
        if not self.found and time.monotonic() - self.looked > STOP_LOOK_SECONDS:
            self.found, self.looked = self.folder.stop.exists(), time.monotonic()
        return self.found or self.stopping()


@dataclass
class Worker:
    """Works off blocks of one run, here and now."""

    step: Step
    stopping: Callable[[], bool]
    finished: int = 0
    alike: list[str] = field(default_factory=list)
    """Signatures of the failures before the first success."""

    def run(self, blocks: list[int]) -> int:
        """Compute each block and vouch for it; those that fail are put on record, the rest goes on."""
        with Heartbeat(self.step.folder.workers, len(blocks)) as beat:
            for stage, several in itertools.groupby(blocks, self.step.stage_of):
                self._run_stage(stage, list(several), beat)
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
        """Put a block's failure on record; raise where going on is useless."""
        if isinstance(error, DamagedResult) and self._attempt(error.block) <= MOST_ATTEMPTS:
            book.add(void_receipt(error.block, self._attempt(error.block)))
        failure = BlockFailure(
            block=result.number,
            place=self.step.place(result.number),
            kind=UNUSABLE if is_unusable(error) else FAILED,
            reason=one_line(error, kind=True),
            traceback="".join(traceback.format_exception(error)),
            host=socket.gethostname(),
            job=job_id(),
        )
        FailureBook(self.step.folder.failures).add(failure)
        log.warning("block %d (%s) set aside: %s", failure.block, failure.place, failure.reason)
        if failure.kind == FAILED and not self.finished:
            self._stop_if_alike(failure)

    def _stop_if_alike(self, failure: BlockFailure) -> None:
        """Raise once the first blocks all failed alike, unless this host finished others before."""
        self.alike.append(signature(failure.reason))
        ledger = self.step.ledger
        if (
            len(self.alike) != ALIKE
            or len(set(self.alike)) > 1
            or (ledger.refresh().done & ledger.made_by(failure.host)).any()
        ):
            return
        message = f"the first {ALIKE} blocks all failed alike on {failure.host}: {failure.reason}"
        if not ledger.done.any():
            publish(self.step.folder.stop, f"{message}\n{failure.traceback}")
        raise AllAlike(message)


def signature(reason: str) -> str:
    """A reason without what differs from block to block: numbers, and the hexadecimal digits of drafts.

    >>> signature("OSError: [Errno 5] c/0/12.0123456789abcdef.partial") == signature(
    ...     "OSError: [Errno 5] c/3/4.fedcba9876543210.partial")
    True
    """
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", reason)


def receipt_of(result: BlockResult, attempt: int) -> Receipt:
    """The receipt of a finished block."""
    same = ("checksum", "tile", "read_seconds", "forward_seconds", "write_seconds", "device")
    found = {name: getattr(result, name) for name in same}
    return Receipt(block=result.number, attempt=attempt, state=DONE, host=socket.gethostname(), job=job_id(), **found)


def void_receipt(block: int, attempt: int) -> Receipt:
    """The receipt that says: what earlier attempts wrote is to be computed again."""
    return Receipt(block=block, attempt=attempt, state=VOID, host=socket.gethostname(), job=job_id())


def void(step: Step, ledger: Ledger, blocks: Iterable[int]) -> None:
    """Take back the receipts of blocks; on disk when this returns."""
    with ReceiptBook(step.folder.receipts, step.folder.path) as book:
        for number in blocks:
            if ledger.done[number]:
                book.add(void_receipt(number, int(ledger.attempts[number]) + 1))


def why_stopped(folder: RunFolder) -> str | None:
    """What the stop file of a run says, with the traceback that led to it."""
    try:
        return folder.stop.read_text()
    except FileNotFoundError:
        return None
