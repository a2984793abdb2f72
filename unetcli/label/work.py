"""The task of a labelling that any executor can be given: find objects, merge them, number voxels, make levels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.files import place_of, telling_unwritable
from unetcli.core.process import prepare
from unetcli.core.ranges import Ranges, numbers
from unetcli.engine.heartbeat import Heartbeat
from unetcli.engine.keeping import keep, void_receipt
from unetcli.engine.pyramid import Built, Pyramid, first_of, place
from unetcli.engine.receipts import Ledger, ReceiptBook
from unetcli.engine.runfolder import RunFolder
from unetcli.label import plan
from unetcli.label.finding import find_objects
from unetcli.label.folder import LabelFolder, LabelPlaces
from unetcli.label.image import LabelImage
from unetcli.label.inputs import Probabilities, offset_in
from unetcli.label.measures import unit
from unetcli.label.merging import merge
from unetcli.label.plan import LabelPlan
from unetcli.label.tables import DamagedTable
from unetcli.planning.stages import Stage
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe

MOST_ATTEMPTS = 8
"""A block whose tables are damaged again and again is given up: the disk is at fault."""


@dataclass(frozen=True)
class Bench:
    """Everything that a worker process needs of one labelling."""

    folder: LabelFolder
    plan: LabelPlan
    places: LabelPlaces

    @functools.cached_property
    def ledger(self) -> Ledger:
        """To be refreshed before it is believed."""
        return Ledger(self.folder.run.receipts, self.plan.blocks)

    @functools.cached_property
    def prediction(self) -> Volume:
        return open_volume(self.places.prediction)

    @functools.cached_property
    def intensity(self) -> tuple[Volume, tuple[int, ...]] | None:
        """The volume whose mean is taken, and where the prediction starts in it."""
        if self.places.intensity is None:
            return None
        volume = open_volume(self.places.intensity)
        return volume, offset_in(volume, self.prediction, place_of(self.places.prediction))

    @functools.cached_property
    def image(self) -> LabelImage:
        """The labels; to be asked for once the objects are merged."""
        return LabelImage(place_of(self.places.output), self.plan, self.folder.merged()["dtype"])

    @functools.cached_property
    def pyramid(self) -> Pyramid:
        return Pyramid(self.image, self.plan.pyramid, first_of)

    def make(self, number: int) -> Built:
        """One block, of whatever stage; may be repeated, and needs the stages before, nothing else."""
        stage = self.plan.stage(number)
        piece = number - stage.blocks.start
        match stage.name:
            case plan.FIND:
                return self.find(piece)
            case plan.MERGE:
                return self.merge()
            case plan.NUMBER:
                return self.number(piece)
            case _:
                return self.pyramid.build(number - self.plan.before_levels)

    def find(self, piece: int) -> Built:
        """Find the objects of a block and keep what is known of them."""
        read = Probabilities(self.prediction, self.plan.settings.channel)
        brightness = read if (other := self.intensity) is None else lambda box: other[0].read(box.shifted(other[1]))[0]
        tables = find_objects(self.plan, piece, read, brightness)
        tables["highest"] = np.array([read.highest])
        return Built(checksum(tables["labels"]), [self.folder.tables.save(piece, tables)])

    def merge(self) -> Built:
        """Merge the objects of all blocks."""
        load = self.folder.tables.load
        self.require_probabilities(
            max(float(load(piece, ["highest"])["highest"][0]) for piece in range(self.plan.pieces))
        )
        merged = merge(self.plan, load)
        volume = self.prediction if self.intensity is None else self.intensity[0]
        factor = unit(volume.dtype, probability=self.intensity is None)
        self.folder.save_merged(merged, self.plan.axes, factor)
        return Built(self.folder.merged_checksum(), self.folder.of_merging)

    def number(self, piece: int) -> Built:
        """Write the final labels of a block."""
        box, image = self.plan.box(piece), self.image
        labels = self.folder.tables.load(piece, ["labels"])["labels"]
        values = self.folder.numbers_of(piece).astype(image.dtype)[labels]
        image.level.write(self.written, box, values[np.newaxis])
        return Built(checksum(values), list(image.level.files(box)))

    @functools.cached_property
    def written(self) -> zarr.Array[Any]:
        return self.image.level.open()

    def require_probabilities(self, highest: float) -> None:
        """Refuse a mask of 0 and 1 stored as uint8, which would read as probabilities of 0 and 1/255."""
        if self.prediction.dtype == np.uint8 and highest == 1:
            raise UnetcliError(
                f"{self.prediction.path}: 0 and 1 as uint8 mean 0 and 1/255; store a mask as bool or as 0 and 255"
            )

    def describe(self, number: int) -> str:
        """The place of a block, for people."""
        stage = self.plan.stage(number)
        match stage.name:
            case plan.FIND | plan.NUMBER:
                return describe(self.plan.box(number - stage.blocks.start), self.plan.axes)
            case plan.MERGE:
                return "the merging"
            case _:
                return place(self.plan.pyramid, number - self.plan.before_levels)


def label_blocks(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Make the blocks of a labelling that have no receipt; how many were finished.

    A task (see :class:`unetcli.executors.contract.Task`). Blocks of one stage at a time: :meth:`LabelPlan.pending`.
    """
    prepare()
    run = RunFolder(Path(folder))
    bench = _bench(run, run.plan_file.read_text(), LabelFolder(run).places())
    bench.ledger.refresh()  # what another worker finished meanwhile is not done again
    todo = [number for number in numbers(blocks) if not bench.ledger.done[number]]
    finished = 0
    with telling_unwritable(bench.places.output), Heartbeat(run.workers, len(todo)) as beat:
        for stage, several in itertools.groupby(todo, bench.plan.stage):
            finished += _work(bench, stage, list(several), stopping, beat)
    return finished


def _work(bench: Bench, stage: Stage, blocks: list[int], stopping: Callable[[], bool], beat: Heartbeat) -> int:
    run, finished = bench.folder.run, 0
    with ReceiptBook(run.receipts, run.path if bench.plan.in_folder(stage) else place_of(bench.places.output)) as book:
        for number in blocks:
            if stopping():
                break
            make = functools.partial(_make, bench, number, book)
            if keep(make, number, int(bench.ledger.attempts[number]) + 1, bench.describe(number), run, book):
                beat.done(bench.plan.voxels_of(number))
                finished += 1
            else:
                beat.set_aside()
    return finished


def _make(bench: Bench, number: int, book: ReceiptBook) -> Built:
    """Make a block; what it needs of another one's tables and finds damaged is to be made again."""
    try:
        return bench.make(number)
    except DamagedTable as error:
        attempt = int(bench.ledger.attempts[error.piece]) + 1
        if attempt <= MOST_ATTEMPTS:
            book.add(void_receipt(error.piece, attempt))
        raise


@functools.lru_cache(maxsize=1)
def _bench(run: RunFolder, plan_text: str, places: LabelPlaces) -> Bench:
    """Opened once for all calls of a process."""
    return Bench(LabelFolder(run), LabelPlan.from_json(plan_text), places)
