"""From what a user of label asks for to a plan: what is left open is chosen once, and taken from the frozen plan."""

from __future__ import annotations

from dataclasses import replace

from unetcli.engine.ownership import LABEL, require_claimable
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.step import require_continued
from unetcli.label.components import neighbourhood
from unetcli.label.image import KIND, Parent
from unetcli.label.inputs import is_incomplete, offset_in, require_complete, require_probabilities
from unetcli.label.objects import require_our_table, table_place
from unetcli.label.plan import BLOCK_VOXELS, FORMAT, LabelPlan, Settings, choose_block
from unetcli.label.request import DEPTHS, REACHES, LabelRequest
from unetcli.label.step import LabelPaths, LabelStep
from unetcli.label.threshold import choose_threshold
from unetcli.planning.pyramid_plan import largest_possible_levels
from unetcli.volumes.fingerprint import fingerprint
from unetcli.volumes.image import require_ours
from unetcli.volumes.opening import open_volume

THRESHOLD = 0.5
OTHERS = "--name names other labels"


def resolve_step(request: LabelRequest) -> LabelStep:
    """Resolve a request; nothing is written yet.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right.
    """
    if not request.allow_incomplete:
        require_complete(request.prediction)
    parent = Parent.open(request.prediction)
    folder = RunFolder(request.run_folder) if request.run_folder else RunFolder.of(parent.place, request.name)
    require_claimable(folder.path, LABEL, overwrite=request.overwrite)
    require_ours(parent.labels(request.name), LABEL, OTHERS, KIND)
    require_our_table(table_place(parent.place, request.name, folder.path), parent.volume.axes)
    frozen = None if request.overwrite else folder.read_plan(LabelPlan, FORMAT)
    paths = LabelPaths(
        prediction=request.prediction, output=str(parent.labels(request.name)), intensity=request.intensity
    )
    step = LabelStep(folder=folder, plan=make_plan(request, parent, frozen), paths=paths)
    if not request.overwrite:
        require_continued(step, frozen, f"--overwrite starts anew, {OTHERS}")
    return step


def make_plan(request: LabelRequest, parent: Parent, frozen: LabelPlan | None) -> LabelPlan:
    """The plan that a request means; what it leaves open is taken from the frozen one, else chosen."""
    volume, write_chunks = parent.volume, parent.write_chunks
    settings = resolve_settings(request, parent, frozen)
    limit = request.block_voxels or BLOCK_VOXELS[settings.method]
    block = choose_block(volume.extent, volume.axes, write_chunks, limit, three_d=settings.three_d)
    return LabelPlan(
        axes=volume.axes,
        shape=volume.extent,
        chunks=parent.chunks,
        write_chunks=write_chunks,
        block_shape=frozen.block_shape if frozen and not request.block_voxels else block,
        zarr_format=parent.zarr_format,
        levels=min(parent.levels, largest_possible_levels(volume.extent, volume.axes)),
        voxel_size=tuple(volume.voxel_size.get(axis, 1.0) for axis in volume.axes),
        settings=settings,
        automatic=request.auto_threshold_from is not None,
        prediction=fingerprint(volume),
        intensity=_intensity(request, parent),
        of_incomplete=is_incomplete(request.prediction),
    )


def resolve_settings(request: LabelRequest, parent: Parent, frozen: LabelPlan | None) -> Settings:
    """All that shows in the labels."""
    neighbourhood(parent.volume.axes, request.connectivity, three_d=request.three_d)  # refuses what cannot be
    settings = Settings(
        method=request.method,
        threshold=THRESHOLD if request.threshold is None else request.threshold,
        three_d=request.three_d,
        connectivity=request.connectivity or (6 if request.three_d else 4),
        min_size=request.min_size,
        channel=require_probabilities(parent.volume, request.channel),
        landscape=request.landscape,
        depth=DEPTHS.get(request.landscape, 0.0) if request.depth is None else request.depth,
        reach=request.reach or REACHES[request.three_d],
        smoothing=request.smoothing,
    )
    if request.auto_threshold_from is None:
        return settings
    if frozen and frozen.automatic:
        return replace(settings, threshold=frozen.settings.threshold)
    truth = open_volume(request.auto_threshold_from)
    offset = offset_in(truth, parent.volume, parent.place)
    return replace(settings, threshold=choose_threshold(parent.volume, truth, offset, settings)[0])


def _intensity(request: LabelRequest, parent: Parent) -> str | None:
    if request.intensity is None:
        return None
    volume = open_volume(request.intensity)
    offset_in(volume, parent.volume, parent.place)
    return fingerprint(volume)
