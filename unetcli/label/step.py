"""The step of label: objects are found block by block, merged, numbered, and shown at coarser levels."""

from __future__ import annotations

import filecmp
import functools
import itertools
import logging
import math
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, absolute, is_remote, parent_of, parse_place, remove_drafts_of, replacing
from unetcli.core.lock import hold
from unetcli.engine.levels import ImageStep, Pyramid, first_of, place
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import LABEL, RunFolder
from unetcli.engine.step import BlockResult, Change, Resources, StepPaths, attempt, require_continued
from unetcli.engine.verify import damage
from unetcli.label import plan as label_plan
from unetcli.label.finding import find_objects, working_bytes
from unetcli.label.image import (
    Parent,
    Probabilities,
    attributes_of,
    list_labels,
    make_labels_group,
    offset_in,
    require_complete,
    spec_of,
)
from unetcli.label.merging import LabelFiles, merge
from unetcli.label.objects import table_place, unit
from unetcli.label.plan import FORMAT, LabelPlan, differences
from unetcli.planning.plan import Stage
from unetcli.volumes.image import Image, find_marker
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe, fingerprint, same_data

log = logging.getLogger(__name__)

BASE_BYTES = 2 * 2**30
"""Memory of a process that merges 10^7 objects."""
VOXELS_PER_JOB = {"components": 4 * 10**9, "watershed": 5 * 10**8}
"""Some minutes of work on one core: then starting a job costs little."""
LIST_SECONDS = 60.0
"""How long the list of labels is waited for, which others may be changing."""


@dataclass(frozen=True, kw_only=True)
class LabelPaths(StepPaths):
    """Where the data of a labelling lie now."""

    prediction: str
    output: str
    intensity: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelStep(ImageStep):
    """Blocks are numbered as in the plan: found, merged by one block, numbered, halved level by level."""

    FORMAT = FORMAT
    command = LABEL

    folder: RunFolder
    plan: LabelPlan
    paths: LabelPaths

    # ---- what it is

    @property
    def name(self) -> str:
        return self.paths.output.rpartition("/")[2]

    @property
    def output(self) -> Place:
        return parse_place(self.paths.output)

    @property
    def store(self) -> Place:
        """The store that the labels lie in."""
        return parent_of(parent_of(self.output))

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.plan.stages

    def place(self, number: int) -> str:
        stage = self.plan.stage(number)
        match stage.name:
            case label_plan.FIND | label_plan.NUMBER:
                found = describe(self.plan.box(number - stage.blocks.start), self.plan.axes)
            case label_plan.MERGE:
                found = "the merging"
            case _:
                return place(self.plan.pyramid, number - self.plan.before_levels)
        return f"{stage.name}: {found}" if self.plan.in_folder(stage) else found

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        return self.plan.voxels(blocks)

    @property
    def writes_from(self) -> int:
        return self.plan.pieces + 1

    # ---- what it works on

    @functools.cached_property
    def prediction(self) -> Volume:
        return open_volume(self.paths.prediction)

    @functools.cached_property
    def intensity(self) -> tuple[Volume, tuple[int, ...]] | None:
        """The volume whose mean is taken, and where the prediction starts in it."""
        if self.paths.intensity is None:
            return None
        volume = open_volume(self.paths.intensity)
        return volume, offset_in(volume, self.prediction, parse_place(self.paths.prediction))

    @property
    def files(self) -> LabelFiles:
        return LabelFiles(self.folder.path)

    @property
    def own_files(self) -> tuple[Path, ...]:
        return (*self.files.of_merging, self.files.tables.folder)

    @property
    def image(self) -> Image:
        """The labels; to be asked for once the objects are merged, which says their type."""
        return self.pyramid.image

    @property
    def pyramid(self) -> Pyramid:
        """The coarser levels of the labels."""
        dtype = self.files.merged()["dtype"]
        if dtype not in self._pyramids:
            self._pyramids[dtype] = Pyramid(Image(self.output, spec_of(self.plan, dtype)), self.plan.pyramid, first_of)
        return self._pyramids[dtype]

    @functools.cached_property
    def _pyramids(self) -> dict[str, Pyramid]:
        """By type of the labels, opened once."""
        return {}

    @functools.cached_property
    def _read_only(self) -> Image:
        """The labels to be read back: their type does not matter, and the merging may be damaged."""
        return Image(self.output, spec_of(self.plan, ""))

    @functools.cached_property
    def _stored(self) -> zarr.Array[Any]:
        return self._read_only.level.open_to_read()

    # ---- in a worker

    def data(self, stage: Stage) -> Place:
        return self.folder.path if self.plan.in_folder(stage) else self.output

    def compute(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Generator[BlockResult]:
        pyramid = functools.cache(lambda: self.pyramid)  # its type is read from a file
        for number in itertools.takewhile(lambda _: not stopping(), blocks):
            yield attempt(number, functools.partial(self.make, number, pyramid))

    def make(self, number: int, pyramid: Callable[[], Pyramid] | None = None) -> BlockResult:
        """One block, of whatever stage; may be repeated, and needs the stages before, nothing else."""
        pyramid = pyramid or (lambda: self.pyramid)
        stage = self.plan.stage(number)
        piece = number - stage.blocks.start
        match stage.name:
            case label_plan.FIND:
                return self._find(number, piece)
            case label_plan.MERGE:
                return self._merge(number)
            case label_plan.NUMBER:
                return self._number(number, piece, pyramid())
            case _:
                first = self.plan.before_levels
                return pyramid().build(number - first, first)

    def _find(self, number: int, piece: int) -> BlockResult:
        """Find the objects of a block and keep what is known of them."""
        read = Probabilities(self.prediction, self.plan.settings.channel)
        brightness = read if (other := self.intensity) is None else lambda box: other[0].read(box.shifted(other[1]))[0]
        tables = find_objects(self.plan, piece, read, brightness)
        tables["highest"] = np.array([read.highest])
        return BlockResult(
            number=number,
            checksum=checksum(tables["labels"]),
            files=[self.files.tables.save(piece, tables)],
            voxels=self.plan.box(piece).size,
        )

    def _merge(self, number: int) -> BlockResult:
        """Merge the objects of all blocks."""
        load = self.files.tables.load
        highest = (float(load(piece, ["highest"])["highest"][0]) for piece in range(self.plan.pieces))
        self.require_probabilities(max(highest))
        merged = merge(self.plan, load)
        volume = self.prediction if self.intensity is None else self.intensity[0]
        factor = unit(volume.dtype, probability=self.intensity is None)
        self.files.save_merged(merged, self.plan.axes, factor)
        return BlockResult(number=number, checksum=self.files.merged_checksum(), files=self.files.of_merging)

    def _number(self, number: int, piece: int, pyramid: Pyramid) -> BlockResult:
        """Write the final labels of a block."""
        box = self.plan.box(piece)
        labels = self.files.tables.load(piece, ["labels"])["labels"]
        values = self.files.numbers_of(piece).astype(pyramid.image.spec.dtype)[labels]
        files = pyramid.write(0, box, values[np.newaxis])
        return BlockResult(number=number, checksum=checksum(values), files=files, voxels=box.size)

    def require_probabilities(self, highest: float) -> None:
        """Refuse a mask of 0 and 1 stored as uint8, which would read as probabilities of 0 and 1/255."""
        if self.prediction.dtype == np.uint8 and highest == 1:
            raise UnetcliError(
                f"{self.prediction.path}: 0 and 1 as uint8 mean 0 and 1/255; store a mask as bool or as 0 and 255"
            )

    # ---- reading back

    @property
    def block_bytes(self) -> int:
        return 8 * math.prod(self.plan.block_shape)

    @property
    def merging(self) -> int:
        """The block that merges."""
        return self.plan.pieces

    def kept(self, ledger: Ledger) -> NDArray[np.bool_]:
        """What was found is needed until it is numbered, everything else for good."""
        kept, n = np.ones(self.plan.blocks, np.bool_), self.plan.pieces
        if ledger.done[self.merging]:
            kept[:n] = ~ledger.done[n + 1 : 2 * n + 1]
        return kept

    def read_back(self, number: int) -> str:
        stage = self.plan.stage(number)
        piece = number - stage.blocks.start
        match stage.name:
            case label_plan.FIND:
                return checksum(self.files.tables.load(piece)["labels"])
            case label_plan.MERGE:
                return self.files.merged_checksum()
            case label_plan.NUMBER:
                return checksum(self._read_only.level.read(self._stored, self.plan.box(piece)))
            case _:
                coarser = Pyramid(self._read_only, self.plan.pyramid, first_of)
                return coarser.checksum(number - self.plan.before_levels)

    def require_readable(self) -> None:
        if self.is_gone(self.ledger.refresh().done):
            raise UnetcliError(f"{self.output}: no labels of unetcli; the same label command makes them")

    def look_closer(self, request: Any) -> dict[str, Any]:
        return {"table": self.wrong_with_table()} if request.blocks and self.is_complete() else {}

    def wrong_with_table(self) -> str | None:
        """What is wrong with the table of objects beside the labels; None: nothing."""
        if not self.table.exists():
            return f"{self.table}: not there"
        if not self.files.table.exists() or filecmp.cmp(self.table, self.files.table, shallow=False):
            return None  # without the run folder's, the merging is reported as damaged
        return f"{self.table}: other content than was written"

    # ---- in a launcher

    @property
    def table(self) -> Path:
        """Where the table of objects is, once all is complete."""
        return table_place(self.store, self.name, self.folder.path)

    def has_arrays(self) -> bool:
        """Whether the arrays of all levels are there, of the type that the merging chose."""
        if not (self.is_made() and self.files.summary_file.exists()):
            return False
        return self.image.level.exists() and self.pyramid.is_made

    def differences(self, frozen: LabelPlan) -> list[str]:
        return differences(frozen, self.plan)

    def continue_from(self, frozen: LabelPlan) -> None:
        require_continued(self, frozen, "--overwrite starts anew, --name names other labels")

    def create(self) -> None:
        """Forget labels whose arrays were deleted; all are made with the first stage that writes to them."""
        remove_drafts_of(self.table)
        if self.ledger.refresh().done[self.writes_from :].any() and not self.has_arrays():
            self.folder.clear_receipts(self.own_files)
            self.ledger.refresh()

    def prepare_stage(self, stage: Stage) -> None:
        if not self.plan.in_folder(stage) and not self.has_arrays():
            parent = Parent.open(self.paths.prediction)
            make_labels_group(self.store, self.plan.zarr_format)
            self.image.create(attributes_of(self.image, parent.volume, self._own_attributes()))
            self.look_again()
            self.pyramid.create()

    def discard(self) -> None:
        self._list(listed=False)
        self.table.unlink(missing_ok=True)
        super().discard()

    def sweep(self) -> None:
        self.files.tables.sweep()

    def announce(self, found: int) -> None:
        plan = self.plan
        log.info("%s -> %s", self.paths.prediction, self.paths.output)
        log.info("%d blocks of %s, %s", plan.pieces, "x".join(map(str, plan.block_shape)), plan.settings.method)

    def finish(self) -> None:
        """Show the labels at all levels, list them, and put the table in its place."""
        if not self.is_complete():
            self.image.store.sweep()
            self.pyramid.publish()
            self.mark(self.image, complete=True)
        self._list(listed=True)
        if self.table != self.files.table:
            with replacing(self.table) as draft:
                shutil.copyfile(self.files.table, draft)
        self.files.tables.remove()

    def _list(self, *, listed: bool) -> None:
        own = is_remote(self.store) or self.folder != RunFolder.of(self.store, self.name)
        lock = (self.folder.path if own else self.folder.path.parent) / "labels.lock"  # else of all labels of the store
        with hold(lock, wait=LIST_SECONDS):
            remove_drafts_of(lock)
            list_labels(self.store, self.name, self.plan.zarr_format, listed=listed)

    def _own_attributes(self) -> dict[str, Any]:
        """What the labels say of themselves, beside whether they are complete."""
        settings, parent = self.plan.settings, find_marker(self.paths.prediction) or {}
        own = {"method": settings.method, "threshold": settings.threshold, "objects": self.files.merged()["objects"]}
        own |= {"of_incomplete": True} if self.plan.of_incomplete else {}
        return own | {name: parent[name] for name in ("extent", "region") if name in parent}

    def resources(self, asked: Any) -> Resources:
        plan = self.plan
        blocks = max(1, VOXELS_PER_JOB[plan.settings.method] // math.prod(plan.block_shape))
        return Resources(host_bytes=BASE_BYTES + working_bytes(plan), blocks=blocks)

    # ---- repairing

    def moved(self, output: Place, device: str | None = None) -> LabelStep:
        prediction = absolute(str(parent_of(parent_of(parse_place(output)))))
        return replace(self, paths=replace(self.paths, output=str(output), prediction=prediction))

    def require_ready(self) -> None:
        require_complete(self.paths.prediction)

    def input_changes(self) -> list[Change]:
        """Whether what was labelled, and measured, is still the same; of a volume up to 64 chunks are looked at."""
        plan, paths = self.plan, self.paths
        volumes = [("prediction", paths.prediction, plan.prediction)]
        volumes += [("intensity", paths.intensity, plan.intensity)] if paths.intensity and plan.intensity else []
        found = [(source, path, what_changed(path, before)) for source, path, before in volumes]
        return [Change(source=source, path=path, what=what) for source, path, what in found if what]

    def reopen(self) -> None:
        if self.is_made():
            self.mark(self._read_only, complete=False)

    def also_void(self, damaged: Sequence[int]) -> Iterable[int]:
        """Tables come out as before, so that nothing made of them is damaged: only labels are computed again."""
        return [number for number in damaged if number > self.merging]

    def restore(self, damaged: Iterable[int], ledger: Ledger, stopping: Callable[[], bool]) -> bool:
        """Make again what the run folder held for damaged blocks. It has to come out as before."""
        with_receipt = {number for number in damaged if ledger.done[number]}
        for number in [*self._pieces_for(with_receipt), *({self.merging} & with_receipt)]:
            if stopping():
                return False
            if damage(self, ledger, number) and self.make(number).checksum != ledger.checksum(number):
                raise UnetcliError(
                    f"{self.output}: cannot be repaired, {self.place(number)} does not come out as before: "
                    f"{self.paths.prediction} is not what was labelled; label --overwrite starts anew"
                )
        return True

    def _pieces_for(self, damaged: Collection[int]) -> list[int]:
        """The blocks to be found again: all for the merging, else those that are damaged or to be numbered again."""
        n = self.plan.pieces
        if self.merging in damaged:
            return list(range(n))
        return sorted({number % (n + 1) for number in damaged if number < self.plan.before_levels})


def what_changed(place: str, before: str) -> str | None:
    """A phrase where a volume is not what its fingerprint says."""
    try:
        return None if same_data(fingerprint(open_volume(place)), before) else "holds other values"
    except UnetcliError as error:
        return f"cannot be opened: {error}"
