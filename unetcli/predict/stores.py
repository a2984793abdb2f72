"""Data of a prediction: their paths, whether they changed since planning, and the image that is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unetcli.core.arrays import file_sha256
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place
from unetcli.engine.step import Change, StepPaths
from unetcli.model.training_data import TrainingObjects
from unetcli.planning.plan import ModelSource, Plan
from unetcli.predict.skipping import open_mask
from unetcli.volumes import ngff
from unetcli.volumes.image import MARKER, ArraySpec, image_attributes
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import UNREADABLE, fingerprint, sampled_boxes
from unetcli.volumes.volume import Volume, describe


@dataclass(frozen=True, kw_only=True)
class Paths(StepPaths):
    """Current paths of the input and output of a prediction."""

    volume: str
    model: str
    output: str
    mask: str | None = None
    others: tuple[str, ...] = ()
    """Further models, in the order of the plan."""
    device: str | None = None
    """Device of the plan's kind, if the user named one."""

    @property
    def models(self) -> tuple[str, ...]:
        """Paths of all models."""
        return (self.model, *self.others)


def input_changes(plan: Plan, paths: Paths) -> list[Change]:
    """Changes of volume, model and mask since planning.

    Of a volume, shape, axes, dtype and up to 64 sampled chunks are compared.
    """
    found = [("volume", paths.volume, what) for what in volume_changes(plan, paths.volume)]
    for planned, path in zip(plan.sources.models, paths.models, strict=True):
        found += [("model", path, what) for what in model_changes(planned, Path(path))]
    if paths.mask and plan.settings.mask:
        found += [("mask", paths.mask, what) for what in mask_changes(plan, paths.volume, paths.mask)]
    return [Change(source=source, path=path, what=what) for source, path, what in found]


def volume_changes(plan: Plan, path: str) -> list[str]:
    """Changes of the volume since planning, one phrase each."""
    try:
        volume = open_volume(path)
    except UnetcliError as error:
        return [f"cannot be opened: {error}"]
    before, now = plan.sources.volume_fingerprint.split(), fingerprint(volume).split()
    changes = []
    if before[0] != now[0]:
        planned = "x".join(map(str, plan.extent))
        changes.append(f"has another shape, axes or dtype: now {shape_of(volume)}, planned with {plan.axes} {planned}")
    if len(before) != len(now):
        return changes or ["has another chunk shape, so its contents cannot be compared"]
    boxes = sampled_boxes(volume) if not changes else []
    for box, old, new in zip(boxes, before[1:], now[1:], strict=bool(boxes)):
        if old != new and old != UNREADABLE:
            what = "can no longer be read" if new == UNREADABLE else "has changed"
            changes.append(f"chunk at {describe(box, volume.axes)} {what}")
    return changes


def model_changes(planned: ModelSource, file: Path) -> list[str]:
    """Changes of the model file since planning, one phrase each."""
    if not file.is_file():
        return ["no longer exists"]
    return [] if is_planned(planned, file) else ["has changed"]


def require_planned_models(plan: Plan, paths: Paths) -> None:
    """Raise UnetcliError if a model is not the one that was planned with: its blocks would not fit the others."""
    for planned, path in zip(plan.sources.models, paths.models, strict=True):
        for what in model_changes(planned, Path(path)):
            raise UnetcliError(
                f"{path}: {what} since the run was planned; restore it, or start over with predict --overwrite"
            )


def is_planned(planned: ModelSource, file: Path) -> bool:
    """Whether a file is the model that was planned with."""
    return file.is_file() and file_sha256(file) == planned.fingerprint


def mask_changes(plan: Plan, volume: str, mask: str) -> list[str]:
    """Changes of the cells that the mask selects, one phrase each."""
    try:
        opened = open_mask(mask, open_volume(volume, parts=True), plan.footprint)
        now = opened and opened.fingerprint(plan.region)
    except UnetcliError as error:
        return [f"cannot be opened: {error}"]
    return [] if now == plan.settings.mask else ["selects other cells"]


def shape_of(volume: Volume) -> str:
    return f"{volume.axes} {'x'.join(map(str, volume.extent))}, {volume.channels} channels, {volume.dtype}"


KIND, CLASSES = "probabilities", "classes"


def spec_of(plan: Plan) -> ArraySpec:
    """Specification of the array of probabilities or classes that a plan writes."""
    return ArraySpec(
        axes=plan.axes,
        shape=plan.region.shape,
        chunks=plan.chunks,
        write_chunks=plan.write_chunks,
        outputs=plan.settings.outputs,
        dtype=plan.settings.dtype,
        zarr_format=plan.zarr_format,
    )


def attributes_of(
    plan: Plan,
    path: Place,
    source: Volume,
    objects: TrainingObjects | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Attributes of the output: OME-Zarr metadata, and the marker of unetcli, which has the model's ``objects``.

    An output of classes has the metadata of labels, with their names and colours.
    """
    start = dict(zip(plan.axes, plan.region.start, strict=True))
    own = {
        "complete": False,
        "kind": KIND,
        "outputs": plan.settings.outputs,
        "extent": list(plan.extent),
        "region": [[a, b] for a, b in zip(plan.region.start, plan.region.stop, strict=True)],
        "model": " ".join(model.fingerprint for model in plan.sources.models),
        "placed": source.places,
    }
    if objects is not None:
        own |= {"truth": objects.truth, "smallest_objects": list(objects.smallest)}
        own |= {"label_values": asdict(objects.values)} if objects.values.table else {}
    found = image_attributes(spec_of(plan), path, source, start)
    if plan.settings.output_classes:
        own |= {"kind": CLASSES, "classes": list(class_names)}
        found = ngff.class_attributes(found, class_names)
    return {**found, MARKER: own}
