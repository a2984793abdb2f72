"""Labels in the store of their image: an OME-Zarr image below ``labels/``, listed there once it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, is_remote, place_of
from unetcli.core.geometry import ceil_to
from unetcli.label.plan import LabelPlan
from unetcli.volumes import ngff
from unetcli.volumes.level import Level
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import MARKER, group_file, marker
from unetcli.volumes.store import Store, store_at
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


@dataclass(frozen=True)
class LabelImage:
    """The labels of a plan at ``path``; their type is known once all objects are."""

    path: Place
    plan: LabelPlan
    dtype: str

    @cached_property
    def store(self) -> Store:
        return store_at(self.path)

    @cached_property
    def level(self) -> Level:
        """Full resolution."""
        return Level(
            store=self.store,
            name="0",
            axes=self.plan.axes,
            shape=self.plan.shape,
            chunks=self.plan.chunks,
            write_chunks=self.plan.write_chunks,
            outputs=1,
            dtype=self.dtype,
            zarr_format=self.plan.zarr_format,
        )

    def create(self, source: Volume, told: Mapping[str, Any]) -> None:
        """Make the empty image; in a folder it appears complete or not at all. One that is there already stays."""
        attributes = self._attributes(source, told)

        def make(store: Store) -> None:
            for name, text in ngff.documents(attributes, self.plan.zarr_format).items():
                store.replace_text(name, text)
            self.level.create(store)

        try:
            self.store.publish(make)
        except OSError:
            if marker(self.path) is None:
                raise

    def mark_complete(self, *, complete: bool = True) -> None:
        """Say in the group's metadata that every voxel has its label, or that some are made anew."""
        found = self.attributes()
        self.replace_attributes({**found, MARKER: {**found[MARKER], "complete": complete}})

    def attributes(self) -> dict[str, Any]:
        """Of the group; it has to be ours."""
        found = group_file(self.store)
        if found is None or MARKER not in found[1]:
            raise UnetcliError(f"{self.path}: no labels of unetcli (any more)")
        return found[1]

    def replace_attributes(self, attributes: dict[str, Any]) -> None:
        name, text = next(iter(ngff.documents(attributes, self.plan.zarr_format).items()))
        self.store.replace_text(name, text)

    def _attributes(self, source: Volume, told: Mapping[str, Any]) -> dict[str, Any]:
        axes = self.plan.axes
        grid = ngff.Grid(
            scale={axis: source.voxel_size.get(axis, 1.0) for axis in axes},
            translation={axis: source.translation.get(axis, 0.0) for axis in axes},
        )
        entry = ngff.image(str(self.path).rpartition("/")[2], axes, source.units, [grid])
        found = ngff.labels_of(ngff.attributes(entry, self.plan.zarr_format), source="../../")
        return {**found, MARKER: {"complete": False, "kind": KIND, **told}}


def require_ours(place: Place) -> None:
    """Raise unless a place for labels is free or holds labels of ours: nothing else is ever replaced."""
    store = store_at(place)
    found = group_file(store)
    ours = found is not None and (found[1].get(MARKER) or {}).get("kind") == KIND
    if not ours and not store.is_free():
        raise UnetcliError(f"{place}: exists and was not written by unetcli label; --name names other labels")


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
