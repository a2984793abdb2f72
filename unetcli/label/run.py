"""label: from a request to complete labels on any executor, and their export for the Cell Tracking Challenge."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetcli.core.arrays import distinct
from unetcli.core.errors import UnetcliError, counted, pasted, require_no_warnings
from unetcli.core.files import parse_place, replacing_folder, require_apart, require_folder_for
from unetcli.core.geometry import Box
from unetcli.core.streams import ProgressCallback, silent
from unetcli.engine.run import RunOptions, RunOutcome, require_usable, run
from unetcli.engine.runfolder import LABEL, RunFolder, require_claimable
from unetcli.engine.step import require_continued
from unetcli.executors.options import ClusterOptions
from unetcli.label.defaults import TrainedObjects, resolve_objects
from unetcli.label.destination import Destination
from unetcli.label.image import (
    KIND,
    Probabilities,
    compared,
    is_incomplete,
    note_scale,
    open_prediction,
    require_complete,
    require_probabilities,
)
from unetcli.label.objects import components, in_order, is_foreground, neighbourhood, require_own_table, table_place
from unetcli.label.plan import BLOCK_VOXELS, FORMAT, LabelPlan, Settings, choose_block
from unetcli.label.request import REACHES, LabelRequest
from unetcli.label.step import LabelPaths, LabelStep
from unetcli.label.watershed import Landscape
from unetcli.metrics.cells import seg_sums
from unetcli.volumes.image import class_names, find_marker, require_marked_shape, require_own_output
from unetcli.volumes.label_values import trained_values, with_numbers
from unetcli.volumes.labels import open_labels
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import fingerprint
from unetcli.volumes.store import require_no_links
from unetcli.volumes.tiff import software_of
from unetcli.volumes.volume import Volume

log = logging.getLogger(__name__)

CANDIDATES = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Thresholds that ``--auto-threshold-from`` chooses from."""


def choose_threshold(
    prediction: Volume, truth: Volume, offset: tuple[int, ...], settings: Settings
) -> tuple[float, float]:
    """Threshold with the best SEG over all sections (in three dimensions, all volumes), and that SEG.

    Among equal scores the threshold nearest to 0.5 is chosen. One section or volume is held in memory at a time.

    Parameters
    ----------
    offset
        Position of the prediction in the truth, in voxels.

    Raises
    ------
    UnetcliError
        The truth holds no object.
    """
    land = Landscape(axes=prediction.axes, voxel_size=_sizes(prediction), settings=settings)
    read = Probabilities(prediction, settings.channel)
    overlap, objects = np.zeros(len(CANDIDATES)), 0
    single = _holds_one_value(truth)
    for box in _parts(prediction, settings):
        reference = truth.read(box.shifted(offset))[0]
        if single:
            reference = components(reference != 0, land.touching)[0]
        if not reference.any():
            continue
        for number, threshold in enumerate(CANDIDATES):
            labels = instances(read(box), replace(land, settings=replace(settings, threshold=threshold)))
            found, count = seg_sums(reference, labels)
            overlap[number] += found
        objects += count
    if not objects:
        raise UnetcliError(f"--auto-threshold-from {truth.path}: contains no objects, all values are 0")
    best = max(range(len(CANDIDATES)), key=lambda number: (overlap[number], -abs(CANDIDATES[number] - 0.5)))
    seg = float(overlap[best]) / objects
    log.info("threshold %.2f: SEG %.3f on %s (%d objects)", CANDIDATES[best], seg, truth.path, objects)
    return CANDIDATES[best], seg


def instances(probability: NDArray[Any], land: Landscape) -> NDArray[np.int32]:
    """Labels of an array in memory, equal to those of a block-wise run."""
    settings = land.settings
    if settings.method == "watershed":
        from unetcli.label.watershed import separate

        return in_order(separate(probability, land), settings.min_size)
    touching = neighbourhood(land.axes, settings.connectivity, three_d=settings.three_d)
    return in_order(components(is_foreground(probability, settings.threshold), touching)[0], settings.min_size)


def _parts(volume: Volume, settings: Settings) -> Iterator[Box]:
    """Sections of a volume, or in three dimensions its time points."""
    if not settings.three_d:
        yield from volume.whole().planes()
    elif "t" not in volume.axes:
        yield volume.whole()
    else:
        for time in range(volume.extent[0]):
            yield Box((time, 0, 0, 0), (time + 1, *volume.extent[1:]))


def _holds_one_value(truth: Volume) -> bool:
    """Whether all objects have the same value, so that they are found as connected components."""
    values: set[int] = set()
    for box in truth.whole().planes():
        values |= set(np.unique(truth.read(box)).tolist())
        if len(values - {0}) > 1:
            return False
    return True


def _sizes(volume: Volume) -> tuple[float, ...]:
    return tuple(volume.voxel_size.get(axis, 1.0) for axis in volume.axes)


THRESHOLD = 0.5
"""Default of ``--threshold``."""


def resolve_step(request: LabelRequest) -> LabelStep:
    """Resolve a request into a step; nothing is written yet.

    Raises
    ------
    UnetcliError
        The request cannot be carried out, for a reason that the user can correct.
    """
    if not request.allow_incomplete:
        require_complete(request.prediction)
    volume = open_volume(request.prediction)
    require_marked_shape(volume, parse_place(request.prediction))
    to = Destination.of(request, volume)
    other = "choose another --name"
    if request.output is not None:
        other = "choose another --output"
        require_apart(
            request.output,
            [each for each in (request.prediction, request.intensity, request.auto_threshold_from) if each],
        )
        require_folder_for(request.output)
    folder = RunFolder(request.run_folder) if request.run_folder else RunFolder.of(to.store, request.name)
    require_claimable(folder.path, LABEL, overwrite=request.overwrite)
    require_no_links(to.store, to.array)
    require_own_output(to.labels, LABEL, other, KIND)
    require_own_table(table_place(to.store, request.name, folder.path), volume.axes)
    frozen = None if request.overwrite else folder.read_plan(LabelPlan, FORMAT)
    paths = LabelPaths(prediction=request.prediction, output=str(to.labels), intensity=request.intensity)
    step = LabelStep(folder=folder, plan=make_plan(request, volume, to, frozen), paths=paths)
    if not request.overwrite:
        require_continued(step, frozen, f"start over with --overwrite, or {other}")
    require_no_warnings()
    return step


def make_plan(request: LabelRequest, volume: Volume, to: Destination, frozen: LabelPlan | None) -> LabelPlan:
    """Plan of a request; open choices are taken from the frozen plan if there is one, else made here."""
    settings = resolve_settings(request, volume, frozen)
    limit = request.block_voxels or BLOCK_VOXELS[settings.method]
    block = choose_block(volume.extent, volume.axes, to.write_chunks, limit, three_d=settings.three_d)
    return LabelPlan(
        axes=volume.axes,
        shape=volume.extent,
        chunks=to.chunks,
        write_chunks=to.write_chunks,
        block_shape=frozen.block_shape if frozen and not request.block_voxels else block,
        zarr_format=to.zarr_format,
        levels=to.levels,
        voxel_size=tuple(volume.voxel_size.get(axis, 1.0) for axis in volume.axes),
        settings=settings,
        automatic=request.auto_threshold_from is not None,
        prediction=fingerprint(volume),
        intensity=_intensity(request, volume),
        of_incomplete=is_incomplete(request.prediction),
    )


def resolve_settings(request: LabelRequest, volume: Volume, frozen: LabelPlan | None) -> Settings:
    """Resolve the options that affect the labels."""
    place = parse_place(request.prediction)
    neighbourhood(volume.axes, request.connectivity, three_d=request.three_d)  # raises if they do not fit
    channel = require_probabilities(volume, request.channel, class_names(place), request.kind)
    if find_marker(place) is None:
        note_scale(volume, channel)
    chosen = resolve_objects(request, TrainedObjects.of(place, channel))
    settings = Settings(
        method=chosen.method,
        threshold=THRESHOLD if request.threshold is None else request.threshold,
        three_d=request.three_d,
        connectivity=request.connectivity or (6 if request.three_d else 4),
        min_size=chosen.min_size,
        channel=channel,
        landscape=chosen.landscape,
        depth=chosen.depth,
        reach=request.reach or REACHES[request.three_d],
        smoothing=request.smoothing,
    )
    if request.auto_threshold_from is None:
        return settings
    if frozen and frozen.automatic:
        return replace(settings, threshold=frozen.settings.threshold)
    truth, _ = with_numbers(open_labels(request.auto_threshold_from), trained_values(place))
    truth, offset = compared(truth, volume, place)
    prediction = open_prediction(request.prediction, channel)
    return replace(settings, threshold=choose_threshold(prediction, truth, offset, settings)[0])


def _intensity(request: LabelRequest, prediction: Volume) -> str | None:
    if request.intensity is None:
        return None
    return fingerprint(compared(open_volume(request.intensity), prediction, parse_place(request.prediction))[0])


MAX_LABEL = 2**16 - 1
"""Largest label in an exported file, which holds uint16."""
SOFTWARE = "unetcli label"
"""Tag of exported files; only files with it are replaced."""


def frames(labels: Volume, *, three_d: bool) -> Iterator[Box]:
    """Box of each exported file: a time point; without a time axis a section, or in three dimensions the volume."""
    whole = labels.whole()
    axis = labels.axes.find("t") if "t" in labels.axes else -1 if three_d else labels.axes.find("z")
    for index in range(labels.extent[axis]) if axis >= 0 else ():
        start, stop = list(whole.start), list(whole.stop)
        start[axis], stop[axis] = index, index + 1
        yield Box(tuple(start), tuple(stop))
    if axis < 0:
        yield whole


def renumbered(labels: NDArray[Any], place: str) -> NDArray[np.uint16]:
    """Renumber the labels of one frame 1, 2, .. in ascending order.

    >>> renumbered(np.array([0, 70000, 9]), "frame 0").tolist()
    [0, 2, 1]
    """
    found, places = distinct(labels)
    objects = int(np.count_nonzero(found))
    if objects > MAX_LABEL:
        raise UnetcliError(
            f"--ctc: {place} has {objects} objects; a file can store {MAX_LABEL}; --min-size N removes small ones"
        )
    return (places + (0 if objects < len(found) else 1)).astype(np.uint16)


def require_exportable(folder: Path) -> None:
    """Raise unless the folder does not exist, is empty, or holds only an earlier export."""
    if folder.exists() and not (folder.is_dir() and all(map(_is_export, folder.iterdir()))):
        raise UnetcliError(f"--ctc {folder}: exists and holds other files; name another folder")
    if not (parent := folder.absolute().parent).is_dir():
        raise UnetcliError(f"--ctc {folder}: the folder {parent} does not exist")


def export(labels: Volume, folder: Path, *, three_d: bool) -> int:
    """Write all frames and return their number; the folder appears whole or not at all."""
    require_exportable(folder)
    boxes = list(frames(labels, three_d=three_d))
    digits = max(3, len(str(len(boxes) - 1)))
    with replacing_folder(folder) as draft:
        for number, box in enumerate(boxes):
            values = renumbered(labels.read(box)[0], f"frame {number} of {labels.path}")
            image = values.reshape(
                [n for axis, n in zip(labels.axes, values.shape, strict=True) if _kept(axis, three_d, labels)]
            )
            name = f"mask{number:0{digits}d}.tif"
            tifffile.imwrite(
                draft / name, image, photometric="minisblack", compression="zlib", software=SOFTWARE, metadata=None
            )
        require_exportable(folder)  # files may have been added meanwhile
    return len(boxes)


def _kept(axis: str, three_d: bool, labels: Volume) -> bool:
    """Whether exported files have this axis: sections have y and x, volumes and time points also z."""
    return axis in "yx" or (axis == "z" and (three_d or "t" in labels.axes))


def _is_export(path: Path) -> bool:
    if not (path.name.startswith("mask") and path.suffix == ".tif"):
        return False
    return software_of(str(path)) == SOFTWARE


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """Outcome of a call of label."""

    output: str
    table: str
    complete: bool
    objects: int | None
    """Number of objects; None if not known yet."""
    removed: int | None
    """Number of objects removed because they are below the minimum size."""
    provisional: int | None
    """Number of objects found in all blocks, before merging across blocks."""
    sizes: dict[str, float | int] | None
    """Minimum, median, mean and maximum size of the objects, in voxels."""
    dtype: str | None
    method: str
    threshold: float
    min_size: int
    """Size, in voxels, below which objects are removed."""
    depth: float | None
    """Depth of the watershed, in voxels or probability; None for components."""
    blocks: int
    """Number of blocks of all stages."""
    found_done: int
    made: int
    set_aside: list[dict[str, Any]]
    failed_jobs: list[str]
    jobs: list[str]
    """SLURM jobs left running by ``--detach``."""
    ctc_frames: int | None
    seconds: float
    warnings: tuple[str, ...] = ()
    """Warnings that this call gave: reasons to doubt the result."""

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.jobs:
            shown = f"`unetcli status {pasted(self.output)}` shows the progress"
            return f"{self.output}: {counted(len(self.jobs), 'SLURM job')}; {shown}; then the same command continues"
        if not self.complete:
            aside = f"{counted(len(self.set_aside), 'block')} set aside (see above); " if self.set_aside else ""
            jobs = f"{counted(len(self.failed_jobs), 'job')} failed; " if self.failed_jobs else ""
            return f"{self.output}: INCOMPLETE; {aside}{jobs}the same command continues"
        small = f", {self.removed} smaller than {self.min_size} voxels removed" if self.removed else ""
        already = "already " if not self.made else ""
        return f"{self.output}: {self.objects} objects above {self.threshold:g}{small}; {already}complete; {self.table}"


def label_volume(
    request: LabelRequest,
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
    where: ClusterOptions | None = None,
) -> LabelSummary:
    """Label a prediction block by block, in its ``labels`` group; continues where an earlier call stopped.

    Raises
    ------
    UnetcliError
        The request cannot be carried out, for a reason that the user can correct; nothing has been written.
    """
    started, frames = time.perf_counter(), list[int]()
    if request.ctc:
        require_exportable(request.ctc)
    step = resolve_step(request)
    options = RunOptions.of(request, where)

    def export_frames() -> None:
        if request.ctc:
            frames.append(export(open_volume(step.output), request.ctc, three_d=request.three_d))

    outcome = run(step, options, report, stopping, then=export_frames)
    require_usable(outcome, range(step.plan.pieces), "labels")
    return summarise(step, outcome, frames[0] if frames else None, time.perf_counter() - started)


def summarise(step: LabelStep, outcome: RunOutcome, frames: int | None, seconds: float) -> LabelSummary:
    """Summary of a call."""
    settings = step.plan.settings
    merged = step.files.merged() if step.files.summary_file.exists() else None
    found, done = int(outcome.found.sum()), int(outcome.done.sum())
    return LabelSummary(
        output=step.paths.output,
        table=str(step.table),
        complete=outcome.complete,
        **{name: getattr(merged, name, None) for name in ("objects", "removed", "provisional", "sizes", "dtype")},  # type: ignore[arg-type]
        method=settings.method,
        threshold=settings.threshold,
        min_size=settings.min_size,
        depth=settings.depth if settings.method == "watershed" else None,
        blocks=step.plan.blocks,
        found_done=found,
        made=done - found,
        **outcome.notes(),
        ctc_frames=frames,
        seconds=round(seconds, 3),
    )
