"""Volumes that label uses: the prediction, the volumes compared with it, and the labels stored in its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.files import Place, is_remote, parse_place, remove_abandoned_drafts
from unetcli.core.geometry import Box, ceil_to
from unetcli.label.objects import is_foreground
from unetcli.label.plan import LabelPlan
from unetcli.volumes import ngff
from unetcli.volumes.image import MARKER, ArraySpec, Image, find_marker, group_file, image_attributes
from unetcli.volumes.opening import open_volume
from unetcli.volumes.store import store_at
from unetcli.volumes.volume import Volume, describe


@dataclass
class Probabilities:
    """Reads one channel of a prediction; keeps the last box, so that boxes inside it are not read again."""

    volume: Volume
    channel: int
    highest: float = 0.0
    """Highest stored value read so far."""
    _last: tuple[Box, NDArray[Any]] | None = field(default=None, repr=False)

    def __call__(self, box: Box) -> NDArray[Any]:
        """Stored probabilities of a box inside the volume.

        Raises
        ------
        UnreadableBlock
            The data are damaged, or there are values outside 0 to 1.
        """
        if self._last is None or box.clipped(self._last[0]) != box:
            self._last = box, self._checked(box, self.volume.read(box, self.channel)[0])
        return self._last[1][box.relative_to(self._last[0]).slices]

    def is_background(self, box: Box, threshold: float) -> bool:
        """Whether nothing is stored of a box inside the volume, and the value of absent chunks is not foreground."""
        if not self.volume.is_absent(box):
            return False
        voxel = Box(box.start, tuple(a + 1 for a in box.start))
        return not is_foreground(self._checked(box, self.volume.read(voxel, self.channel)[0]), threshold).any()

    def _checked(self, box: Box, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype.kind == "f" and not ((values >= 0) & (values <= 1)).all():  # NaN fails too
            found = f"{values.min():g} to {values.max():g} in {describe(box, self.volume.axes)}"
            raise UnreadableBlock(f"{self.volume.path}: expected probabilities from 0 to 1, found {found}")
        self.highest = max(self.highest, float(values.max()))
        return values


def require_probabilities(volume: Volume, channel: int | None) -> int:
    """Channel to be labelled; ``None`` is possible if there is only one.

    Raises
    ------
    UnetcliError
        The channel does not exist, several exist and none is chosen, or the data type cannot hold probabilities.
    """
    if volume.dtype != np.uint8 and volume.dtype.kind not in "bf":
        raise UnetcliError(
            f"{volume.path}: data type {volume.dtype}; expected probabilities as uint8 (value / 255), float or bool"
        )
    last = volume.channels - 1
    if channel is None and last:
        raise UnetcliError(f"{volume.path} has channels 0 to {last}, one per class; --channel N chooses one")
    if channel is not None and not 0 <= channel <= last:
        raise UnetcliError(f"--channel {channel}: {volume.path} has channels 0 to {last}")
    return channel or 0


def compared(other: Volume, prediction: Volume, place: Place) -> tuple[Volume, tuple[int, ...]]:
    """A volume that is compared with a prediction, with its axes, and the prediction's offset in it."""
    other = other.channels_as_sections().with_single_axes_of(prediction)
    return other, offset_in(other, prediction, place)


def offset_in(other: Volume, prediction: Volume, place: Place) -> tuple[int, ...]:
    """Offset of a prediction in another volume, in voxels.

    The other volume has the shape of the prediction, or of the volume that the prediction is a region of.

    Raises
    ------
    UnetcliError
        The other volume has another shape, or several channels.
    """
    if other.channels != 1:
        raise UnetcliError(f"{other.path} has {other.channels} channels; expected one")
    if other.extent == prediction.extent:
        return (0,) * len(other.extent)
    marker = find_marker(place) or {}
    if tuple(marker.get("extent", ())) == other.extent:
        return tuple(first for first, _ in marker["region"])
    raise UnetcliError(f"{other.path} is {_shape(other)}; expected {_shape(prediction)}, like {prediction.path}")


def _shape(volume: Volume) -> str:
    return ", ".join(f"{axis} {n}" for axis, n in zip(volume.axes, volume.extent, strict=True))


def require_complete(prediction: str) -> None:
    """Raise if a prediction written by unetcli is not complete."""
    if is_incomplete(prediction):
        raise UnetcliError(f"{prediction}: not complete; run the same predict command again, or add --allow-incomplete")


def is_incomplete(prediction: str) -> bool:
    """Whether a prediction was written by unetcli and is not complete."""
    marker = find_marker(prediction)
    return marker is not None and not marker.get("complete")


KIND = "instances"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The image that the labels are made from and stored in."""

    place: Place
    volume: Volume
    """Full-resolution level of the image."""
    zarr_format: int
    levels: int

    @classmethod
    def open(cls, prediction: str) -> Parent:
        """Open an OME-Zarr image.

        Raises
        ------
        UnetcliError
            This is not an OME-Zarr image, so that labels cannot be stored in it, or it holds labels.
        """
        place, volume = parse_place(prediction), open_volume(prediction)
        found = group_file(store_at(place)) if is_remote(place) or Path(place).is_dir() else None
        with ngff.explain(place):
            images = [ngff.read_image(image) for image in ngff.images(found[1])] if found else []
        if found is None or not images:
            raise UnetcliError(
                f"{prediction}: not an OME-Zarr image, so labels cannot be stored in it; unetcli predict writes one"
            )
        if ngff.is_labels(found[1]):
            raise UnetcliError(f"{prediction}: holds labels; expected probabilities, as written by unetcli predict")
        formats = {name: number for number, name in ngff.ATTRIBUTES.items()}
        return cls(place=place, volume=volume, zarr_format=formats[found[0]], levels=len(images[0].levels))

    @property
    def chunks(self) -> tuple[int, ...]:
        """Chunk shape of the labels: that of the image, at most the volume's shape."""
        return tuple(map(min, self.volume.chunks, self.volume.extent))

    @property
    def write_chunks(self) -> tuple[int, ...]:
        """Shard shape of the labels if the image has shards, else the chunk shape."""
        shards = getattr(self.volume.array, "shards", None)
        if not shards:
            return self.chunks
        by_axis = dict(zip(self.volume.stored_axes, shards, strict=True))
        triples = zip(self.volume.axes, self.chunks, self.volume.extent, strict=True)
        return tuple(min(ceil_to(by_axis[axis], chunk), ceil_to(n, chunk)) for axis, chunk, n in triples)

    def labels(self, name: str) -> Place:
        """Path or address of the labels called ``name``."""
        return f"{self.place}/labels/{name}" if is_remote(self.place) else Path(self.place) / "labels" / name


def spec_of(plan: LabelPlan, dtype: str) -> ArraySpec:
    """Specification of the array of labels; the data type is known once all objects have been counted."""
    return ArraySpec(
        axes=plan.axes,
        shape=plan.shape,
        chunks=plan.chunks,
        write_chunks=plan.write_chunks,
        outputs=1,
        dtype=dtype,
        zarr_format=plan.zarr_format,
    )


def attributes_of(image: Image, source: Volume, own: Mapping[str, Any]) -> dict[str, Any]:
    """OME-Zarr metadata of the labels of ``source``, and the marker, which includes ``own``."""
    found = ngff.labels_attributes(image_attributes(image.spec, image.path, source, {}), source="../../")
    return {**found, MARKER: {"complete": False, "kind": KIND, **own}}


def make_labels_group(parent: Place, zarr_format: int) -> None:
    """Create the group that holds all labels of an image, unless it exists."""
    if not is_remote(parent):
        (Path(parent) / "labels").mkdir(exist_ok=True)
    if group_file(store_at(f"{parent}/labels")) is None:
        _write_list(parent, {}, [], zarr_format)


def list_labels(parent: Place, name: str, zarr_format: int, *, listed: bool) -> None:
    """Add labels to the list that viewers read, or remove them. Only one process at a time may call this."""
    for key in () if is_remote(parent) else ngff.documents({}, zarr_format):
        remove_abandoned_drafts(Path(parent) / "labels" / key)
    found = group_file(store_at(f"{parent}/labels"))
    attributes = found[1] if found else {}
    with ngff.explain(f"{parent}/labels"):
        names = ngff.label_names(attributes)
    if (name in names) != listed:
        _write_list(parent, attributes, [*names, name] if listed else [n for n in names if n != name], zarr_format)


def _write_list(parent: Place, attributes: dict[str, Any], names: list[str], zarr_format: int) -> None:
    store = store_at(f"{parent}/labels")
    for key, text in ngff.documents(ngff.with_label_names(attributes, names, zarr_format), zarr_format).items():
        store.replace_text(key, text)
