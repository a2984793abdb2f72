"""The data of a prediction: where they lie, whether they changed, and the image that is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetcli.core.arrays import file_sha256
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place
from unetcli.engine.step import Change, StepPaths
from unetcli.planning.plan import Plan
from unetcli.predict.skipping import open_mask
from unetcli.volumes.image import MARKER, ArraySpec, image_attributes
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import UNREADABLE, Volume, describe, fingerprint, sampled_boxes


@dataclass(frozen=True, kw_only=True)
class Paths(StepPaths):
    """Where the data of a prediction lie now."""

    volume: str
    model: str
    output: str
    mask: str | None = None
    device: str | None = None
    """Which device of the plan's kind, where the user said so."""


def input_changes(plan: Plan, paths: Paths) -> list[Change]:
    """What differs now; of a volume, shape, axes, type and up to 64 sampled chunks are looked at."""
    found = [("volume", paths.volume, what) for what in volume_changes(plan, paths.volume)]
    found += [("model", paths.model, what) for what in model_changes(plan, Path(paths.model))]
    if paths.mask and plan.settings.mask:
        found += [("mask", paths.mask, what) for what in mask_changes(plan, paths.volume, paths.mask)]
    return [Change(source=source, path=path, what=what) for source, path, what in found]


def volume_changes(plan: Plan, place: str) -> list[str]:
    """What is different about the volume, a phrase each."""
    try:
        volume = open_volume(place)
    except UnetcliError as error:
        return [f"cannot be opened: {error}"]
    before, now = plan.sources.volume_fingerprint.split(), fingerprint(volume).split()
    told = []
    if before[0] != now[0]:
        planned = "x".join(map(str, plan.extent))
        told.append(f"has other shape, axes or dtype: now {shape_of(volume)}; planned for {plan.axes} {planned}")
    if len(before) != len(now):
        return told or ["is stored in other chunks, so that its contents cannot be compared"]
    boxes = sampled_boxes(volume) if not told else []
    for box, old, new in zip(boxes, before[1:], now[1:], strict=bool(boxes)):
        if old != new and old != UNREADABLE:
            what = "cannot be read any more" if new == UNREADABLE else "holds other values"
            told.append(f"chunk at {describe(box, volume.axes)} {what}")
    return told


def model_changes(plan: Plan, file: Path) -> list[str]:
    """What is different about the model, a phrase each."""
    if not file.is_file():
        return ["is not there any more"]
    return [] if file_sha256(file) == plan.sources.model_fingerprint else ["holds other bytes"]


def mask_changes(plan: Plan, volume: str, mask: str) -> list[str]:
    """Whether a mask rules out other cells now."""
    try:
        opened = open_mask(mask, open_volume(volume), plan.footprint)
        now = opened and opened.fingerprint(plan.region)
    except UnetcliError as error:
        return [f"cannot be opened: {error}"]
    return [] if now == plan.settings.mask else ["leaves other parts to be computed"]


def shape_of(volume: Volume) -> str:
    return f"{volume.axes} {'x'.join(map(str, volume.extent))}, {volume.channels} channels, {volume.dtype}"


KIND = "probabilities"


def spec_of(plan: Plan) -> ArraySpec:
    """The array that holds a plan's probabilities."""
    return ArraySpec(
        axes=plan.axes,
        shape=plan.region.shape,
        chunks=plan.chunks,
        write_chunks=plan.write_chunks,
        outputs=plan.settings.outputs,
        dtype=plan.settings.dtype,
        zarr_format=plan.zarr_format,
    )


def attributes_of(plan: Plan, path: Place, source: Volume) -> dict[str, Any]:
    """What the output says of itself: OME-Zarr metadata, and the marker."""
    start = dict(zip(plan.axes, plan.region.start, strict=True))
    own = {
        "complete": False,
        "kind": KIND,
        "outputs": plan.settings.outputs,
        "extent": list(plan.extent),
        "region": [[a, b] for a, b in zip(plan.region.start, plan.region.stop, strict=True)],
        "model": plan.sources.model_fingerprint,
    }
    return {**image_attributes(spec_of(plan), path, source, start), MARKER: own}
