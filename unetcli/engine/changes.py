"""Whether the input of a run is still what it was planned for, and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unetcli.core.arrays import file_sha256
from unetcli.core.errors import UnetcliError
from unetcli.engine.runfolder import Places
from unetcli.planning.plan import UNREADABLE, Plan
from unetcli.predict.skipping import open_mask
from unetcli.volumes.fingerprint import fingerprint, sampled_boxes
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that is not as it was when the run was planned."""

    source: str
    """``volume``, ``model`` or ``mask``."""
    path: str
    what: str


def changes(plan: Plan, places: Places) -> list[Change]:
    """What differs now; of a volume, shape, axes, type and up to 64 sampled chunks are looked at."""
    told = [("volume", places.volume, what) for what in volume_changes(plan, places.volume)]
    told += [("model", places.model, what) for what in model_changes(plan, Path(places.model))]
    if places.mask and plan.choices.mask:
        told += [("mask", places.mask, what) for what in mask_changes(plan, places.volume, places.mask)]
    return [Change(source=source, path=path, what=what) for source, path, what in told]


def volume_changes(plan: Plan, place: str) -> list[str]:
    """What is different about the volume, a phrase each."""
    try:
        volume = open_volume(place)
    except UnetcliError as error:
        return [f"cannot be opened: {error}"]
    before, now = plan.sources.volume_fingerprint.split(), fingerprint(volume).split()
    told = []
    if before[0] != now[0]:
        told.append(f"has other shape, axes or dtype: now {shape_of(volume)}; planned for {shape_planned(plan)}")
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
    return [] if now == plan.choices.mask else ["leaves other parts to be computed"]


def shape_of(volume: Volume) -> str:
    return f"{volume.axes} {'x'.join(map(str, volume.extent))}, {volume.channels} channels, {volume.dtype}"


def shape_planned(plan: Plan) -> str:
    return f"{plan.axes} {'x'.join(map(str, plan.extent))}"
