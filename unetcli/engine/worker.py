"""The last stage of a worker: store each finished block, then vouch for it with a receipt."""

from __future__ import annotations

import functools
import logging
import re
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError, UnreadableBlock, one_line
from unetcli.core.files import UNWRITABLE, publish, telling_unwritable
from unetcli.core.lock import job_id
from unetcli.core.process import prepare
from unetcli.core.ranges import Ranges, numbers
from unetcli.engine.heartbeat import Heartbeat
from unetcli.engine.receipts import DONE, Receipt, ReceiptBook
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.troubles import FAILED, UNUSABLE, Trouble, TroubleBook
from unetcli.engine.workbench import Workbench, workbench
from unetcli.volumes.volume import describe

if TYPE_CHECKING:
    from unetcli.predict.predictor import FinishedBlock

log = logging.getLogger(__name__)

ALIKE = 3
"""A worker whose first so many blocks fail alike ends: the fault is not the blocks'."""
STOP_LOOK_SECONDS = 1.0


class AllAlike(UnetcliError):
    """The first blocks of a worker all failed in the same way."""


def run_blocks(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Work off the blocks of a run folder that have no receipt; how many were finished.

    The task of every executor (see :class:`unetcli.executors.contract.Task`).
    """
    prepare()
    bench = workbench(folder)
    bench.ledger.refresh()  # what another worker finished meanwhile is not done again
    todo = [number for number in numbers(blocks) if not bench.ledger.done[number]]
    return Worker(bench, StopFile(bench.folder, stopping)).run(todo) if todo else 0


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
    """Computes blocks of one run, here and now."""

    bench: Workbench
    stopping: Callable[[], bool]
    finished: int = 0
    alike: list[str] = field(default_factory=list)
    """Signatures of the failures before the first success."""

    @functools.cached_property
    def array(self) -> Any:
        return self.bench.output.open()

    @functools.cached_property
    def troubles(self) -> TroubleBook:
        return TroubleBook(self.bench.folder.troubles)

    def run(self, blocks: list[int]) -> int:
        """Compute, store and vouch for each block; those that fail are noted, the rest goes on."""
        from unetcli.engine.canary import require_same_results  # torch

        bench = self.bench
        with telling_unwritable(bench.output.path), Heartbeat(bench.folder.workers, len(blocks)) as beat:
            require_same_results(bench)
            with ReceiptBook(bench.folder.receipts, bench.output.path) as book:
                for block in bench.predict(blocks, self.stopping):
                    if self._keep(block, book):
                        beat.done(block.block.box.size)
                    else:
                        beat.set_aside()
        return self.finished

    def _keep(self, block: FinishedBlock, book: ReceiptBook) -> bool:
        try:
            if block.error is not None:
                raise block.error
            self._store(block, book)
        except Exception as error:
            self._note(block, error)
            return False
        self.finished += 1
        return True

    def _store(self, block: FinishedBlock, book: ReceiptBook) -> None:
        assert block.values is not None
        output, number = self.bench.output, block.block.number
        started, box = time.perf_counter(), self.bench.plan.output_box(block.block)
        output.write(self.array, box, block.values)
        receipt = Receipt(
            block=number,
            attempt=int(self.bench.ledger.attempts[number]) + 1,
            state=DONE,
            checksum=checksum(block.values),
            tile=block.tile,
            read_seconds=block.read_seconds,
            forward_seconds=block.forward_seconds,
            write_seconds=time.perf_counter() - started,
            device=self.bench.plan.choices.device,
            host=socket.gethostname(),
            job=job_id(),
        )
        book.add(receipt, output.files(box))

    def _note(self, block: FinishedBlock, error: Exception) -> None:
        """Put a block's failure on record; raise where going on is useless."""
        if isinstance(error, OSError) and error.errno in UNWRITABLE and block.error is None:
            raise error
        trouble = Trouble(
            block=block.block.number,
            place=describe(block.block.box, self.bench.plan.axes),
            kind=UNUSABLE if is_unusable(error) else FAILED,
            reason=one_line(error, kind=True),
            traceback="".join(traceback.format_exception(error)),
            host=socket.gethostname(),
            job=job_id(),
        )
        self.troubles.add(trouble)
        log.warning("block %d (%s) set aside: %s", trouble.block, trouble.place, trouble.reason)
        if trouble.kind == FAILED and not self.finished:
            self._count(trouble)

    def _count(self, trouble: Trouble) -> None:
        """Raise once the first blocks all failed alike, unless this host finished others before."""
        self.alike.append(re.sub(r"\d+", "#", trouble.reason))
        ledger = self.bench.ledger
        if (
            len(self.alike) != ALIKE
            or len(set(self.alike)) > 1
            or (ledger.refresh().done & ledger.made_by(trouble.host)).any()
        ):
            return
        message = f"the first {ALIKE} blocks all failed alike on {trouble.host}: {trouble.reason}"
        if not ledger.done.any():
            publish(self.bench.folder.stop, f"{message}\n{trouble.traceback}")
        raise AllAlike(message)


def is_unusable(error: Exception) -> bool:
    """Whether the input itself is at fault, and not the way to it: trying again would not help."""
    cause = error.__cause__
    unreachable = isinstance(cause, OSError) and cause.errno is not None
    return isinstance(error, UnreadableBlock) and not unreachable


def why_stopped(folder: RunFolder) -> str | None:
    """What the stop file of a run says, with the traceback that led to it."""
    try:
        return folder.stop.read_text()
    except FileNotFoundError:
        return None
