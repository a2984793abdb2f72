"""The label step: find objects block by block, merge them, write the final labels, build coarser levels."""

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
from unetcli.core.errors import UnetcliError, counted, pasted
from unetcli.core.files import Place, absolute, is_remote, parent_of, parse_place, remove_drafts_of, replacing
from unetcli.core.lock import hold
from unetcli.core.names import VolumeName
from unetcli.engine.levels import ImageStep, Pyramid, nearest, place
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import LABEL, RunFolder
from unetcli.engine.step import BlockResult, Change, Resources, StepPaths, require_continued, try_block
from unetcli.engine.verify import check_block
from unetcli.label import plan as label_plan
from unetcli.label.destination import ImageGroup, consolidate, grid_in_image, list_labels, make_labels_group
from unetcli.label.finding import find_nothing, find_objects, working_bytes
from unetcli.label.image import (
    Probabilities,
    attributes_of,
    compared,
    open_prediction,
    require_complete,
    spec_of,
)
from unetcli.label.merging import LabelFiles, merge
from unetcli.label.objects import table_place, unit
from unetcli.label.plan import FORMAT, LabelPlan, differences
from unetcli.label.request import NAME, STORE
from unetcli.planning.plan import Stage
from unetcli.volumes.image import Image, find_marker
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import fingerprint, same_data
from unetcli.volumes.store import require_no_links
from unetcli.volumes.volume import Volume, describe

log = logging.getLogger(__name__)

BASE_BYTES = 2 * 2**30
"""Memory a process needs to merge 10^7 objects, in bytes."""
VOXELS_PER_JOB = {"components": 4 * 10**9, "watershed": 5 * 10**8}
"""Voxels per SLURM job: some minutes of work on one core, compared with which starting a job costs little."""
LIST_SECONDS = 60.0
"""Seconds to wait for the lock of the list of labels, which other processes may be changing."""


@dataclass(frozen=True, kw_only=True)
class LabelPaths(StepPaths):
    """Current paths of the input and output of a labelling."""

    prediction: str
    output: str
    intensity: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelStep(ImageStep):
    """Labelling as a step of the engine; blocks are numbered as in :class:`LabelPlan`."""

    FORMAT = FORMAT
    command = LABEL

    folder: RunFolder
    plan: LabelPlan
    paths: LabelPaths

    # ---- identity

    @property
    def is_store(self) -> bool:
        """Whether the labels are a store of their own, and not in the group ``labels`` of an image."""
        return self.paths.output.endswith(STORE)

    @property
    def name(self) -> str:
        return NAME if self.is_store else self.paths.output.rpartition("/")[2]

    @property
    def output(self) -> Place:
        return parse_place(self.paths.output)

    @property
    def store(self) -> Place:
        """Image that the labels are in, or the labels themselves."""
        return self.output if self.is_store else parent_of(parent_of(self.output))

    @property
    def array(self) -> str:
        """Path of the array of full resolution in the store."""
        return "0" if self.is_store else f"labels/{self.name}/0"

    @property
    def is_in_prediction(self) -> bool:
        """Whether the labels lie in the image that they were made from."""
        return absolute(str(parse_place(self.paths.prediction))) == absolute(str(self.store))

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.plan.stages

    def place(self, number: int) -> str:
        stage = self.plan.stage(number)
        match stage.name:
            case label_plan.FIND | label_plan.NUMBER:
                found = describe(self.plan.box(number - stage.blocks.start), self.plan.axes)
            case label_plan.MERGE:
                found = "all blocks"
            case _:
                return place(self.plan.pyramid, number - self.plan.before_levels)
        return f"{stage.name}: {found}" if self.plan.in_folder(stage) else found

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        return self.plan.voxels(blocks)

    @property
    def writes_from(self) -> int:
        return self.plan.pieces + 1

    # ---- inputs and outputs

    @functools.cached_property
    def prediction(self) -> Volume:
        return open_prediction(self.paths.prediction, self.plan.settings.channel)

    @functools.cached_property
    def intensity(self) -> tuple[Volume, tuple[int, ...]] | None:
        """Volume that is averaged over each object, and the offset of the prediction in it."""
        if self.paths.intensity is None:
            return None
        return compared(open_volume(self.paths.intensity), self.prediction, parse_place(self.paths.prediction))

    @property
    def files(self) -> LabelFiles:
        return LabelFiles(self.folder.path)

    @property
    def own_files(self) -> tuple[Path, ...]:
        return (*self.files.merge_files, self.files.tables.folder)

    @property
    def image(self) -> Image:
        """The labels; available once the objects are merged, because their number decides the data type."""
        return self.pyramid.image

    @property
    def pyramid(self) -> Pyramid:
        """Coarser levels of the labels; available once the objects are merged."""
        dtype = self.files.merged().dtype
        if dtype not in self._pyramids:
            self._pyramids[dtype] = Pyramid(Image(self.output, spec_of(self.plan, dtype)), self.plan.pyramid, nearest)
        return self._pyramids[dtype]

    @functools.cached_property
    def _pyramids(self) -> dict[str, Pyramid]:
        """Pyramids opened so far, by data type of the labels."""
        return {}

    @functools.cached_property
    def _read_only(self) -> Image:
        """Labels opened for reading back, without their data type, which is lost if the merge is damaged."""
        return Image(self.output, spec_of(self.plan, ""))

    @functools.cached_property
    def _stored(self) -> zarr.Array[Any]:
        return self._read_only.level.open_to_read()

    # ---- in a worker

    def data(self, stage: Stage) -> Place:
        return self.folder.path if self.plan.in_folder(stage) else self.output

    def compute(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Generator[BlockResult]:
        pyramid = functools.cache(lambda: self.pyramid)  # reads the data type from a file
        for number in itertools.takewhile(lambda _: not stopping(), blocks):
            yield try_block(number, functools.partial(self.make, number, pyramid))

    def make(self, number: int, pyramid: Callable[[], Pyramid] | None = None) -> BlockResult:
        """Compute one block of any stage; repeatable, and dependent on the earlier stages only."""
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
        """Find the objects of a block and save its tables."""
        read = Probabilities(self.prediction, self.plan.settings.channel)
        brightness = read if (other := self.intensity) is None else lambda box: other[0].read(box.shifted(other[1]))[0]
        background = read.is_background(self.plan.extended(piece), self.plan.settings.threshold)
        tables = find_nothing(self.plan, piece) if background else find_objects(self.plan, piece, read, brightness)
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
        return BlockResult(number=number, checksum=self.files.merged_checksum(), files=self.files.merge_files)

    def _number(self, number: int, piece: int, pyramid: Pyramid) -> BlockResult:
        """Write the final labels of a block."""
        box = self.plan.box(piece)
        labels = self.files.tables.load(piece, ["labels"])["labels"]
        dtype = pyramid.image.spec.dtype
        values = self.files.numbers_of(piece).astype(dtype)[labels] if labels.size else np.zeros(box.shape, dtype)
        files = pyramid.write(0, box, values[np.newaxis])
        return BlockResult(number=number, checksum=checksum(values), files=files, voxels=box.size)

    def require_probabilities(self, highest: float) -> None:
        """Raise for a mask of 0 and 1 stored as uint8, which would mean probabilities of 0 and 1/255."""
        if self.prediction.dtype == np.uint8 and highest == 1:
            raise UnetcliError(
                f"{self.prediction.path}: values 0 and 1 as uint8 mean 0 and 1/255; store a mask as bool or 0 and 255"
            )

    # ---- reading back

    @property
    def block_bytes(self) -> int:
        return 8 * math.prod(self.plan.block_shape)

    @property
    def merging(self) -> int:
        """Number of the block that merges."""
        return self.plan.pieces

    def kept(self, ledger: Ledger) -> NDArray[np.bool_]:
        """Mask of the blocks whose results are kept: tables until the final labels are written, all else for good."""
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
                coarser = Pyramid(self._read_only, self.plan.pyramid, nearest)
                return coarser.checksum(number - self.plan.before_levels)

    def require_readable(self) -> None:
        if self.is_gone(self.ledger.refresh().done):
            raise UnetcliError(f"{self.output}: contains no labels; the same label command writes them again")

    def extra_checks(self, request: Any) -> dict[str, Any]:
        return {"table": self.table_damage()} if request.blocks and self.is_complete() else {}

    def table_damage(self) -> str | None:
        """Damage of the table of objects beside the labels; None if there is none."""
        if not self.table.exists():
            return f"{self.table}: missing"
        if not self.files.table.exists() or filecmp.cmp(self.table, self.files.table, shallow=False):
            return None  # if the copy in the run folder is missing, the merge is reported as damaged
        return f"{self.table}: the content has changed since it was written"

    # ---- in a launcher

    @property
    def table(self) -> Path:
        """Path of the table of objects, which appears once the labels are complete."""
        return table_place(self.store, self.name, self.folder.path)

    def has_arrays(self) -> bool:
        """Whether the arrays of all levels exist, with the data type that the merge chose."""
        if not (self.is_made() and self.files.summary_file.exists()):
            return False
        return self.image.level.exists() and self.pyramid.is_made

    def differences(self, frozen: LabelPlan) -> list[str]:
        return differences(frozen, self.plan)

    def continue_from(self, frozen: LabelPlan) -> None:
        require_continued(self, frozen, "start over with --overwrite, or choose another --name")

    def create(self) -> None:
        """Clear the receipts of labels whose arrays were deleted; the first stage that writes creates the arrays."""
        remove_drafts_of(self.table)
        if self.ledger.refresh().done[self.writes_from :].any() and not self.has_arrays():
            self.folder.clear_receipts(self.own_files)
            self.ledger.refresh()

    def prepare_stage(self, stage: Stage) -> None:
        if not self.plan.in_folder(stage) and not self.has_arrays():
            if not self.is_store:
                make_labels_group(self.store, self.plan.zarr_format)
            own = self._own_attributes()
            self.image.create(attributes_of(self.image, self._grid(), own, in_image=not self.is_store))
            if not self.image.level.exists():  # its metadata are damaged; no block of it has a receipt any more
                self.image.level.create(self.image.store)
            self.clear_cache()
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
        log.info(
            "%s of %s, %s", counted(plan.pieces, "block"), "x".join(map(str, plan.block_shape)), plan.settings.method
        )

    def finish(self) -> None:
        """Mark the labels complete at all levels, list them, and publish the table."""
        self._require_merged()
        if not self.is_complete():
            self.image.store.sweep()
            self.pyramid.publish()
            self.mark(self.image, complete=True)
        self._list(listed=True)
        if self.table != self.files.table:
            with replacing(self.table) as draft:
                shutil.copyfile(self.files.table, draft)
        self.files.tables.remove()

    def _require_merged(self) -> None:
        """Raise if the results of the merge, such as the table, are no longer those that its receipt states."""
        try:
            intact = self.files.merged_checksum() == self.ledger.checksum(self.merging)
        except FileNotFoundError:
            intact = False
        names = ", ".join(path.name for path in self.files.merge_files)
        if not intact:
            raise UnetcliError(
                f"{self.files.path}: the content of the merge ({names}) has changed since it was written; "
                f"`unetcli verify --repair {pasted(self.output)}` computes it again"
            )

    def _grid(self) -> tuple[Volume, tuple[int, ...]]:
        """Volume with the voxels of the labels, and the voxel of it at which they begin."""
        volume, place = open_volume(self.paths.prediction), parse_place(self.paths.prediction)
        image = None if self.is_store or self.is_in_prediction else ImageGroup.at(str(self.store))
        return (volume, (0,) * len(volume.axes)) if image is None else grid_in_image(image, volume, place)

    def _list(self, *, listed: bool) -> None:
        """List labels for viewers, or no longer, if they are in an image."""
        if self.is_store:
            return
        own = is_remote(self.store) or self.folder != RunFolder.of(self.store, self.name)
        lock = (self.folder.path if own else self.folder.path.parent) / "labels.lock"  # shared by all labels of a store
        with hold(lock, wait=LIST_SECONDS):
            remove_drafts_of(lock)
            list_labels(self.store, self.name, self.plan.zarr_format, listed=listed)
            consolidate(self.store)

    def _own_attributes(self) -> dict[str, Any]:
        """Content of the marker, except whether the labels are complete."""
        settings, parent = self.plan.settings, find_marker(parse_place(self.paths.prediction)) or {}
        own = {"method": settings.method, "threshold": settings.threshold, "objects": self.files.merged().objects}
        own |= {"of_incomplete": True} if self.plan.of_incomplete else {}
        return own | {name: parent[name] for name in ("extent", "region", "label_values") if name in parent}

    def resources(self, asked: Any) -> Resources:
        plan = self.plan
        blocks = max(1, VOXELS_PER_JOB[plan.settings.method] // math.prod(plan.block_shape))
        return Resources(host_bytes=BASE_BYTES + working_bytes(plan), blocks=blocks)

    # ---- repairing

    def moved(self, output: Place, device: str | None = None) -> LabelStep:
        paths = replace(self.paths, output=str(output))
        if self.is_in_prediction and not self.is_store:
            moved = absolute(str(parent_of(parent_of(parse_place(output)))))
            paths = replace(paths, prediction=str(replace(VolumeName.parse(paths.prediction), place=moved)))
        return replace(self, paths=paths)

    def require_ready(self) -> None:
        require_no_links(self.store, self.array)
        require_complete(self.paths.prediction)

    def input_changes(self) -> list[Change]:
        """Changes in the prediction and the averaged volume; up to 64 chunks of each are compared."""
        plan, paths = self.plan, self.paths
        volumes = [("prediction", paths.prediction, plan.prediction)]
        volumes += [("intensity", paths.intensity, plan.intensity)] if paths.intensity and plan.intensity else []
        found = [(source, path, describe_change(path, before)) for source, path, before in volumes]
        return [Change(source=source, path=path, what=what) for source, path, what in found if what]

    def reopen(self) -> None:
        if self.is_made():
            self.mark(self._read_only, complete=False)

    def with_dependents(self, damaged: Sequence[int]) -> Iterable[int]:
        """Damaged blocks to compute again: those of the labels. Tables are restored as they were, so they need none."""
        return [number for number in damaged if number > self.merging]

    def restore(self, damaged: Iterable[int], ledger: Ledger, stopping: Callable[[], bool]) -> bool:
        """Restore the tables and merge results that damaged blocks need; they have to come out as before."""
        with_receipt = {number for number in damaged if ledger.done[number]}
        for number in [*self._pieces_for(with_receipt), *({self.merging} & with_receipt)]:
            if stopping():
                return False
            if check_block(self, ledger, number) and self.make(number).checksum != ledger.checksum(number):
                raise UnetcliError(
                    f"{self.output}: cannot be repaired, {self.place(number)} does not come out as before: "
                    f"{self.paths.prediction} has changed since it was labelled; label --overwrite starts over"
                )
        return True

    def _pieces_for(self, damaged: Collection[int]) -> list[int]:
        """Pieces whose objects have to be found again: all for the merge, else those with damaged tables or labels."""
        n = self.plan.pieces
        if self.merging in damaged:
            return list(range(n))
        return sorted({number % (n + 1) for number in damaged if number < self.plan.before_levels})


def describe_change(place: str, before: str) -> str | None:
    """Phrase for a volume that no longer matches its fingerprint; None if it does."""
    try:
        return None if same_data(fingerprint(open_volume(place)), before) else "holds other values"
    except UnetcliError as error:
        return f"cannot be opened: {error}"
