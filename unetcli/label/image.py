"""Volumes that label uses: the prediction, the volumes compared with it, and the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock, note
from unetcli.core.files import Place, parse_place
from unetcli.core.geometry import Box
from unetcli.label.objects import is_foreground
from unetcli.label.plan import LabelPlan
from unetcli.volumes import ngff
from unetcli.volumes.image import MARKER, ArraySpec, Image, class_names, find_marker, image_attributes
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import sampled_voxels
from unetcli.volumes.volume import Volume, describe, shape


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


def open_prediction(prediction: str, channel: int) -> Volume:
    """Open the volume whose objects are found; of a map of classes, the class ``channel`` as a mask."""
    volume = open_volume(prediction)
    if class_names(parse_place(prediction)):
        return volume.of_class(channel)
    return volume.as_fractions() if _is_wide(volume) else volume


def _is_wide(volume: Volume) -> bool:
    """Whether values are whole numbers of more than 8 bits."""
    return volume.dtype.kind == "u" and volume.dtype != np.uint8


def require_probabilities(
    volume: Volume, channel: int | None, classes: Sequence[str] = (), kind: str | None = None
) -> int:
    """Channel to be labelled; ``None`` is possible if there is only one.

    Of a map of ``classes``, this is the class to be labelled; of two classes, that is the foreground by default.
    With the ``kind`` probability, whole numbers of more than 8 bits are fractions of their largest value.

    Raises
    ------
    UnetcliError
        The channel does not exist, several exist and none is chosen, or the data type cannot hold probabilities.
    """
    if classes:
        return _chosen_class(volume, channel, classes)
    if volume.dtype != np.uint8 and volume.dtype.kind not in "bf" and not (_is_wide(volume) and kind):
        way = f"; --kind probability reads value / {np.iinfo(volume.dtype).max}" if _is_wide(volume) else ""
        raise UnetcliError(
            f"{volume.path}: data type {volume.dtype}; expected probabilities as uint8 (value / 255), float (0 to 1) "
            f"or bool{way}"
        )
    last = volume.channels - 1
    if channel is None and last:
        raise UnetcliError(f"{volume.path} has channels 0 to {last}, one per class; --channel N chooses one")
    if channel is not None and not 0 <= channel <= last:
        raise UnetcliError(f"--channel {channel}: {volume.path} has channels 0 to {last}")
    return channel or 0


def note_scale(volume: Volume, channel: int) -> None:
    """Say how the values of a volume that unetcli did not write are read as probabilities.

    Raises
    ------
    UnetcliError
        A sample of floats is not in the range 0 to 1.
    """
    if volume.dtype.kind == "u":
        note(f"{volume.path}: probabilities are value / {np.iinfo(volume.dtype).max}, as its values are {volume.dtype}")
    if volume.dtype.kind != "f":
        return
    ends = [(found[channel].min(), found[channel].max()) for found in sampled_voxels(volume) if found is not None]
    low, high = min((a for a, _ in ends), default=0), max((b for _, b in ends), default=1)
    if not 0 <= low <= high <= 1:  # NaN fails too
        raise UnetcliError(f"{volume.path}: values from {low:g} to {high:g}; expected probabilities from 0 to 1")
    note(f"{volume.path}: its values are taken as probabilities")


def _chosen_class(volume: Volume, channel: int | None, classes: Sequence[str]) -> int:
    named = ", ".join(f"{value} ({name})" for value, name in enumerate(classes))
    if channel is None and len(classes) > 2:
        raise UnetcliError(f"{volume.path} has the classes {named}; --channel N chooses one")
    if channel is not None and not 0 <= channel < len(classes):
        raise UnetcliError(f"--channel {channel}: {volume.path} has the classes {named}")
    return 1 if channel is None else channel


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
    if (offset := find_offset(other, prediction, place)) is None:
        raise UnetcliError(f"{other.path} is {shape(other)}; expected {shape(prediction)}, like {prediction.path}")
    return offset


def find_offset(other: Volume, prediction: Volume, place: Place) -> tuple[int, ...] | None:
    """Offset of a prediction in another volume, as :func:`offset_in`; None if the shapes do not fit."""
    if other.extent == prediction.extent:
        return (0,) * len(other.extent)
    marker = find_marker(place) or {}
    if tuple(marker.get("extent", ())) == other.extent:
        return tuple(first for first, _ in marker["region"])
    return None


def require_complete(prediction: str) -> None:
    """Raise :class:`UnetcliError` if a prediction written by unetcli is not complete."""
    if is_incomplete(prediction):
        raise UnetcliError(f"{prediction}: not complete; run the same predict command again, or add --allow-incomplete")


def is_incomplete(prediction: str) -> bool:
    """Whether a prediction was written by unetcli and is not complete."""
    marker = find_marker(parse_place(prediction))
    return marker is not None and not marker.get("complete")


KIND = "instances"


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


def attributes_of(
    image: Image, grid: tuple[Volume, Sequence[int]], own: Mapping[str, Any], *, in_image: bool
) -> dict[str, Any]:
    """OME-Zarr metadata of labels, and the marker, which includes ``own``.

    Parameters
    ----------
    image
        The labels.
    grid
        Volume with the voxels of the labels, and the voxel of it at which they begin.
    in_image
        Whether the labels lie in the group of an image.
    """
    volume, first = grid
    start = dict(zip(volume.axes, first, strict=True))
    found = image_attributes(image.spec, image.path, volume, start)
    found = ngff.labels_attributes(found, source="../../" if in_image else None)
    return {**found, MARKER: {"complete": False, "kind": KIND, **own, "placed": volume.places}}
