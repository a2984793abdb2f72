"""Labels in the store of their image: an OME-Zarr image below ``labels/``, listed there once it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, is_remote, place_of
from unetcli.core.geometry import ceil_to
from unetcli.label.plan import LabelPlan
from unetcli.volumes import ngff
from unetcli.volumes.image import MARKER, ArraySpec, Image, group_file, image_attributes
from unetcli.volumes.opening import open_volume
from unetcli.volumes.store import store_at
from unetcli.volumes.volume import Volume

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
        place, volume = place_of(prediction), open_volume(prediction)
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
    found = ngff.labels_of(image_attributes(image.spec, image.path, source, {}), source="../../")
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
