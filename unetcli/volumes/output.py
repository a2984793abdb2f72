"""The volume that predict writes: an OME-Zarr image whose chunks appear whole, marked until it is complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import is_remote, parent_of
from unetcli.core.geometry import Box
from unetcli.planning.plan import Plan
from unetcli.volumes import ngff
from unetcli.volumes.level import Level
from unetcli.volumes.store import Store, store_at
from unetcli.volumes.volume import Volume

MARKER = "unetcli"
NESTING = 4
"""Labels lie so many groups inside the prediction that says which region it is, at most."""


@dataclass(frozen=True)
class Output:
    """The image group at ``path``, a folder or a URL, of one plan; level 0 is the array ``0``."""

    path: Path | str
    plan: Plan

    @cached_property
    def store(self) -> Store:
        return store_at(self.path)

    @cached_property
    def level(self) -> Level:
        """Full resolution; boxes in coordinates of the output."""
        return Level(
            store=self.store,
            name="0",
            axes=self.plan.axes,
            shape=self.plan.region.shape,
            chunks=self.plan.chunks,
            write_chunks=self.plan.write_chunks,
            outputs=self.plan.choices.outputs,
            dtype=self.plan.choices.dtype,
            zarr_format=self.plan.zarr_format,
        )

    def create(self, source: Volume) -> None:
        """Make the empty image; in a folder it appears complete or not at all.

        An output made meanwhile by another launcher stays as it is.
        """
        attributes = self._attributes(source)

        def make(store: Store) -> None:
            for name, text in ngff.documents(attributes, self.plan.zarr_format).items():
                store.replace_text(name, text)  # first says whose it is, so that what is half made can be made again
            self.level.create(store)

        try:
            self.store.publish(make)
        except OSError:
            if marker(self.path) is None:
                raise

    def open(self) -> zarr.Array[Any]:
        """The array, for writing blocks and nothing else."""
        return self.level.open()

    def write(self, array: zarr.Array[Any], box: Box, values: NDArray[Any]) -> None:
        """Store ``(outputs, *box.shape)`` at a box (output coordinates) of whole blocks, whatever was there before."""
        self.level.write(array, box, values)

    def read(self, box: Box) -> NDArray[Any]:
        """``(outputs, *box.shape)`` of a box; raises :class:`UnreadableBlock`, with the place, where damaged."""
        return self.level.read(self._readable, box)

    def files(self, box: Box) -> Iterator[Path]:
        """The files of a box that have to be synced; those of chunks that are all zero do not exist."""
        return self.level.files(box)

    def mark_complete(self) -> None:
        """Say in the group's metadata that every block is there."""
        self._mark(complete=True)

    def mark_incomplete(self) -> None:
        """Say in the group's metadata that blocks are missing, or made anew."""
        self._mark(complete=False)

    def _mark(self, *, complete: bool) -> None:
        found = self.attributes()
        self.replace_attributes({**found, MARKER: {**found[MARKER], "complete": complete}})

    def attributes(self) -> dict[str, Any]:
        """Of the group; it has to be ours."""
        found = _attributes(self.store)
        if found is None or MARKER not in found:
            raise UnetcliError(f"{self.path}: no output of unetcli (any more)")
        return found

    def replace_attributes(self, attributes: dict[str, Any]) -> None:
        name, text = next(iter(ngff.documents(attributes, self.plan.zarr_format).items()))
        self.store.replace_text(name, text)

    @cached_property
    def _readable(self) -> zarr.Array[Any]:
        return self.level.open_to_read()

    def _attributes(self, source: Volume) -> dict[str, Any]:
        axes = self.level.stored_axes
        name = str(self.path).rpartition("/")[2].removesuffix(".zarr")
        image = ngff.image(name, axes, source.units, [self._grid(source)])
        return {**ngff.attributes(image, self.plan.zarr_format), MARKER: self._marker()}

    def _grid(self, source: Volume) -> ngff.Grid:
        region = dict(zip(self.plan.axes, self.plan.region.start, strict=True))
        sizes = {axis: source.voxel_size.get(axis, 1.0) if axis != "c" else 1.0 for axis in self.level.stored_axes}
        starts = {axis: source.translation.get(axis, 0.0) + first * sizes[axis] for axis, first in region.items()}
        return ngff.Grid(scale=sizes, translation={axis: starts.get(axis, 0.0) for axis in sizes})

    def _marker(self) -> dict[str, Any]:
        return {
            "complete": False,
            "kind": "probabilities",
            "outputs": self.plan.choices.outputs,
            "extent": list(self.plan.extent),
            "region": [[a, b] for a, b in zip(self.plan.region.start, self.plan.region.stop, strict=True)],
            "model": self.plan.sources.model_fingerprint,
        }


def marker(place: Path | str) -> dict[str, Any] | None:
    """What an output says of itself if unetcli wrote it, else None; None for one that is not wholly made, too."""
    store = store_at(place)
    found = _marker(store)
    made = found is not None and any(store.read_text(f"0/{name}") for name in ("zarr.json", ".zarray"))
    return found if made else None


def marker_around(place: Path | str) -> dict[str, Any] | None:
    """The marker of a group, or of the group that an array lies in."""
    return marker(place) or marker(parent_of(place))


def region_around(place: Path | str) -> Mapping[str, Any]:
    """What a prediction of ours says of its region, by itself or by the group that its labels or levels lie in."""
    for _ in range(NESTING):
        if "region" in (found := marker(place) or {}):
            return found
        place = parent_of(place)
    return {}


def require_ours(place: Path | str) -> None:
    """Raise :class:`UnetcliError` unless ``place`` is free or a prediction of ours: nothing else is ever replaced."""
    store = store_at(place)
    if _marker(store) is None and not store.is_free():
        raise UnetcliError(f"{place}: exists and was not written by unetcli predict; --output names another place")


def require_no_others(place: Path | str) -> None:
    """Raise where labels that others made lie in an output that is to be deleted."""
    labels = f"{place}/labels"
    found = group_file(store_at(labels))
    names = {*ngff.label_names(found[1] if found else {}), *_folders(labels)}
    for name in sorted(names):
        inside = store_at(f"{labels}/{name}")
        if _marker(inside) is None and not inside.is_free():
            raise UnetcliError(
                f"{labels}/{name}: in the way of --overwrite, and not written by unetcli; move it elsewhere first"
            )


def _folders(place: str) -> list[str]:
    """Names of what a folder holds; of a remote one only its own list of labels is known."""
    if is_remote(place) or not Path(place).is_dir():
        return []
    return [path.name for path in Path(place).iterdir() if path.name not in (*ngff.ATTRIBUTES.values(), ".zgroup")]


def remove_output(place: Path | str) -> None:
    """Delete a prediction of ours; anything else stays."""
    store = store_at(place)
    if (found := group_file(store)) and MARKER in found[1]:
        store.remove(last=found[0])


def _marker(store: Store) -> dict[str, Any] | None:
    found = (_attributes(store) or {}).get(MARKER)
    return found if isinstance(found, dict) else None


def _attributes(store: Store) -> dict[str, Any] | None:
    found = group_file(store)
    return found[1] if found else None


def group_file(store: Store) -> tuple[str, dict[str, Any]] | None:
    """The file that holds a group's attributes, and those."""
    for name in ngff.ATTRIBUTES.values():
        text = store.read_text(name)
        if text is not None:
            try:
                return name, ngff.parse(name, text)
            except ValueError:
                return None
    return None
