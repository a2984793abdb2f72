"""The last stage of a worker: store each finished block, then vouch for it with a receipt."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetcli.lock import job_id
from unetcli.model import load_network
from unetcli.output import Output
from unetcli.plan import Plan
from unetcli.receipts import DONE, Receipt, ReceiptBook, checksum
from unetcli.runfolder import RunFolder
from unetcli.volume import Volume, describe

if TYPE_CHECKING:
    from unetcli.inference import FinishedBlock

log = logging.getLogger(__name__)

Report = Callable[[int], None]
"""Told of each block: voxels of the output that are done now."""


@dataclass(slots=True)
class Tally:
    """What a worker has done."""

    computed: int = 0
    voxels: int = 0
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    """Block, place and reason, of blocks whose input cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Computes blocks of one plan, here and now."""

    plan: Plan
    output: Output
    folder: RunFolder
    source: Volume
    model: Path
    device: str | None = None
    """Which one of the plan's kind."""

    def run(
        self, blocks: Iterable[int], attempts: Mapping[int, int], report: Report, stopping: Callable[[], bool]
    ) -> Tally:
        """Compute, store and vouch for each block; those with unusable input are set aside.

        ``attempts`` holds how often a block was vouched for before; a redone block's receipt counts one more.
        """
        from unetcli.device import exact_float32, resolve_device  # torch: not needed where everything is done
        from unetcli.inference import Predictor, predict_blocks

        exact_float32()
        choices, tally = self.plan.choices, Tally()
        predictor = Predictor(load_network(self.model), choices, resolve_device(self.device or choices.device))
        array = self.output.open()
        with ReceiptBook(self.folder.receipts, Path(self.output.path)) as book:
            for finished in predict_blocks(self.plan, predictor, self.source, blocks, stopping):
                if finished.error is not None:
                    self._set_aside(finished, tally)
                    continue
                self._store(finished, array, book, attempts.get(finished.block.number, 0) + 1)
                tally.computed += 1
                tally.voxels += finished.block.box.size
                report(finished.block.box.size)
        return tally

    def _store(self, finished: FinishedBlock, array: Any, book: ReceiptBook, attempt: int) -> None:
        assert finished.values is not None
        started, box = time.perf_counter(), self.plan.output_box(finished.block)
        self.output.write(array, box, finished.values)
        receipt = Receipt(
            block=finished.block.number,
            attempt=attempt,
            state=DONE,
            checksum=checksum(finished.values),
            read_seconds=finished.read_seconds,
            forward_seconds=finished.forward_seconds,
            write_seconds=time.perf_counter() - started,
            device=self.plan.choices.device,
            host=socket.gethostname(),
            job=job_id(),
        )
        book.add(receipt, list(self.output.files(box)))

    def _set_aside(self, finished: FinishedBlock, tally: Tally) -> None:
        place = describe(finished.block.box, self.plan.axes)
        log.warning("block %d (%s) set aside: %s", finished.block.number, place, finished.error)
        note = {"block": finished.block.number, "place": place, "reason": str(finished.error)}
        tally.set_aside.append(note)
        with self.folder.set_aside.open("a") as file:
            file.write(json.dumps(note) + "\n")
