"""The volumes of label: probabilities and what lies beside them, and the labels in the store of their image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.files import Place, is_remote, parse_place
from unetcli.core.geometry import Box, ceil_to
from unetcli.label.plan import LabelPlan
from unetcli.volumes import opening as ngff
from unetcli.volumes.image import MARKER, ArraySpec, Image, find_marker, group_file, image_attributes
from unetcli.volumes.opening import open_volume
from unetcli.volumes.store import store_at
from unetcli.volumes.volume import Volume, describe


@dataclass
class Probabilities:
    """One channel of a prediction; a box inside the last one is not read again."""

    volume: Volume
    channel: int
    highest: float = 0.0
    """Of all that was read so far, as stored."""
    _last: tuple[Box, NDArray[Any]] | None = field(default=None, repr=False)

    def __call__(self, box: Box) -> NDArray[Any]:
        """Stored probabilities of a box inside the volume.

        Raises
        ------
        UnreadableBlock
            They are damaged, or no probabilities.
        """
        if self._last is None or box.clipped(self._last[0]) != box:
            self._last = box, self._checked(box, self.volume.read(box, self.channel)[0])
        return self._last[1][box.relative_to(self._last[0]).slices]

    def _checked(self, box: Box, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype.kind == "f" and not ((values >= 0) & (values <= 1)).all():  # NaN fails too
            place = describe(box, self.volume.axes)
            raise UnreadableBlock(f"{self.volume.path}: in {place} there are values that are no probabilities 0 to 1")
        self.highest = max(self.highest, float(values.max()))
        return values


def require_probabilities(volume: Volume, channel: int | None) -> int:
    """The channel to be labelled.

    Raises
    ------
    UnetcliError
        There is no such channel, or one has to be named, or these cannot be probabilities.
    """
    if volume.dtype != np.uint8 and volume.dtype.kind not in "bf":
        raise UnetcliError(
            f"{volume.path}: {volume.dtype}; expected probabilities as uint8 (value / 255), float or boolean"
        )
    last = volume.channels - 1
    if channel is None and last:
        raise UnetcliError(f"{volume.path}: channels 0 to {last}, one per class; --channel N names the one to label")
    if channel is not None and not 0 <= channel <= last:
        raise UnetcliError(f"--channel {channel}: {volume.path} has channels 0 to {last}")
    return channel or 0


def offset_in(other: Volume, prediction: Volume, place: Place) -> tuple[int, ...]:
    """Where a prediction starts in another volume: they have one shape, or it is a region of a volume of that shape."""
    if other.channels != 1:
        raise UnetcliError(f"{other.path}: {other.channels} channels; expected one")
    if other.extent == prediction.extent:
        return (0,) * len(other.extent)
    ours = find_marker(place) or {}
    if tuple(ours.get("extent", ())) == other.extent:
        return tuple(first for first, _ in ours["region"])
    raise UnetcliError(f"{other.path} is {_shape(other)}, but {prediction.path} is {_shape(prediction)}: not the same")


def _shape(volume: Volume) -> str:
    return ", ".join(f"{axis} {n}" for axis, n in zip(volume.axes, volume.extent, strict=True))


def require_complete(prediction: str) -> None:
    """Refuse a prediction of unetcli that is not finished."""
    if is_incomplete(prediction):
        raise UnetcliError(f"{prediction}: not complete; run its predict command again, or --allow-incomplete")


def is_incomplete(prediction: str) -> bool:
    """Whether a prediction is ours and not finished."""
    ours = find_marker(prediction)
    return ours is not None and not ours.get("complete")


KIND = "instances"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The image that labels are made of and stored with."""

    place: Place
    volume: Volume
    """Its finest level."""
    zarr_format: int
    levels: int

    @classmethod
    def open(cls, prediction: str) -> Parent:
        """An OME-Zarr image.

        Raises
        ------
        UnetcliError
            It is something else, which has no place for labels.
        """
        place, volume = parse_place(prediction), open_volume(prediction)
        found = group_file(store_at(place)) if is_remote(place) or Path(place).is_dir() else None
        image = next(iter(ngff.images(found[1])), None) if found else None
        if found is None or image is None:
            raise UnetcliError(
                f"{prediction}: no OME-Zarr image, which labels could go into; unetcli predict writes one"
            )
        if ngff.is_labels(found[1]):
            raise UnetcliError(f"{prediction}: holds labels; expected probabilities, as unetcli predict writes them")
        formats = {name: number for number, name in ngff.ATTRIBUTES.items()}
        return cls(place=place, volume=volume, zarr_format=formats[found[0]], levels=len(image["datasets"]))

    @property
    def chunks(self) -> tuple[int, ...]:
        """Of the labels: the image's, no larger than the volume."""
        return tuple(map(min, self.volume.chunks, self.volume.extent))

    @property
    def write_chunks(self) -> tuple[int, ...]:
        """The image's shards, else its chunks."""
        shards = getattr(self.volume.array, "shards", None)
        if not shards:
            return self.chunks
        by_axis = dict(zip(self.volume.stored_axes, shards, strict=True))
        triples = zip(self.volume.axes, self.chunks, self.volume.extent, strict=True)
        return tuple(min(ceil_to(by_axis[axis], chunk), ceil_to(n, chunk)) for axis, chunk, n in triples)

    def labels(self, name: str) -> Place:
        """Where labels of a name are."""
        return f"{self.place}/labels/{name}" if is_remote(self.place) else Path(self.place) / "labels" / name


def spec_of(plan: LabelPlan, dtype: str) -> ArraySpec:
    """The array that holds the labels of a plan; their type is known once all objects are."""
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
    """OME-Zarr metadata of labels of ``source``, and the marker with what they say of themselves."""
    found = ngff.labels_attributes(image_attributes(image.spec, image.path, source, {}), source="../../")
    return {**found, MARKER: {"complete": False, "kind": KIND, **own}}


def make_labels_group(parent: Place, zarr_format: int) -> None:
    """The group that all labels of an image lie in, where there is none yet."""
    if not is_remote(parent):
        (Path(parent) / "labels").mkdir(exist_ok=True)
    if group_file(store_at(f"{parent}/labels")) is None:
        _write_list(parent, {}, [], zarr_format)


def list_labels(parent: Place, name: str, zarr_format: int, *, listed: bool) -> None:
    """Have labels in the list that viewers look at, or not. For one process at a time."""
    found = group_file(store_at(f"{parent}/labels"))
    attributes = found[1] if found else {}
    names = list(ngff.label_names(attributes))
    if (name in names) != listed:
        _write_list(parent, attributes, [*names, name] if listed else [n for n in names if n != name], zarr_format)


def _write_list(parent: Place, attributes: dict[str, Any], names: list[str], zarr_format: int) -> None:
    store = store_at(f"{parent}/labels")
    for key, text in ngff.documents(ngff.with_label_names(attributes, names, zarr_format), zarr_format).items():
        store.replace_text(key, text)
