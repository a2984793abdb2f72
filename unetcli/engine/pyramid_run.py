"""The step ``pyramid`` of a run: its folder, its receipts, and the task that any executor can be given."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import checksum
from unetcli.core.files import place_of, replacing, telling_unwritable
from unetcli.core.process import prepare
from unetcli.core.ranges import Ranges, numbers
from unetcli.engine.heartbeat import Heartbeat
from unetcli.engine.keeping import keep
from unetcli.engine.ownership import PYRAMID, claim, sweep_beside
from unetcli.engine.pyramid import Pyramid, place
from unetcli.engine.receipts import Ledger, ReceiptBook
from unetcli.engine.runfolder import Places, RunFolder
from unetcli.planning.plan import Plan
from unetcli.planning.pyramid_plan import PyramidPlan
from unetcli.planning.stages import pending
from unetcli.volumes.output import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidRun:
    """A pyramid that is being made, in a run folder of its own."""

    folder: RunFolder
    pyramid: Pyramid

    @classmethod
    def begin(
        cls,
        folder: RunFolder,
        output: Output,
        places: Places,
        levels: int | None,
        finest: Ledger,
        *,
        overwrite: bool = False,
    ) -> PyramidRun:
        """Freeze what is to be made, and make the empty levels; goes on where the same was begun before.

        For who holds the output's lock, once ``finest``, the ledger of level 0, is complete. What was made from other
        voxels, or of another plan, is forgotten and hidden; with ``overwrite`` whatever was made.
        """
        run = cls(folder=folder, pyramid=Pyramid(output, PyramidPlan.of(output.plan, levels)))
        frozen = run._frozen(output.plan, finest)
        claim(folder.path, PYRAMID, overwrite=overwrite)
        sweep_beside(folder.path, PYRAMID, ())
        folder.sweep([_frozen_file(folder)])
        folder.make()
        if overwrite or not _says(folder, frozen):
            run.pyramid.hide()
            folder.forget_run()
        if not run.pyramid.is_made:
            folder.forget_receipts()  # of levels that are gone
            run.pyramid.create()
        folder.publish_plan(output.plan)
        folder.tell_places(places)
        with replacing(_frozen_file(folder)) as draft:
            draft.write_text(frozen)
        return run

    def ledger(self) -> Ledger:
        """The receipts of its blocks."""
        return self.folder.ledger(self.pyramid.plan.blocks)

    def pending(self, ledger: Ledger) -> NDArray[np.intp]:
        """What can be made now. None at all: it is complete."""
        return pending(self.pyramid.plan.stages, ledger.refresh().missing)

    def close(self, ledger: Ledger) -> bool:
        """Have the levels show if nothing is missing; whether it is. For who holds the output's lock."""
        if not ledger.refresh().complete:
            return False
        self.pyramid.publish()
        return True

    def _frozen(self, plan: Plan, finest: Ledger) -> str:
        digest = checksum(finest.checksums.tobytes())
        return json.dumps({"finest": digest, "output": plan.to_json(), "pyramid": self.pyramid.plan.to_json()})


def build_blocks(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Make the blocks of a pyramid's run folder that have no receipt; how many were finished.

    A task (see :class:`unetcli.executors.contract.Task`). Blocks of one stage at a time: :meth:`PyramidRun.pending`.
    """
    prepare()
    run = RunFolder(Path(folder))
    pyramid = _pyramid(run, _frozen_file(run).read_text(), run.places())
    ledger, output, finished = run.ledger(pyramid.plan.blocks).refresh(), pyramid.output, 0
    todo = [number for number in numbers(blocks) if not ledger.done[number]]
    with (
        telling_unwritable(output.path),
        Heartbeat(run.workers, len(todo)) as beat,
        ReceiptBook(run.receipts, output.path) as book,
    ):
        for number in itertools.takewhile(lambda _: not stopping(), todo):
            block, attempt = pyramid.plan.block(number), int(ledger.attempts[number]) + 1
            build = functools.partial(pyramid.build, number)
            if keep(build, number, attempt, place(pyramid.plan, number), run, book):
                beat.done(block.box.size)
                finished += 1
            else:
                beat.set_aside()
    return finished


@functools.lru_cache(maxsize=1)
def _pyramid(run: RunFolder, frozen: str, places: Places) -> Pyramid:
    """Opened once for all calls of a process."""
    plan = run.plan()
    assert plan is not None
    return Pyramid(Output(place_of(places.output), plan), PyramidPlan.from_json(json.loads(frozen)["pyramid"]))


def _frozen_file(folder: RunFolder) -> Path:
    return folder.path / "pyramid.json"


def _says(folder: RunFolder, text: str) -> bool:
    try:
        return _frozen_file(folder).read_text() == text
    except FileNotFoundError:
        return False
