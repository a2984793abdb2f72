"""The OME-Zarr images that unetcli writes: arrays whose chunks appear whole, and a marker that says whose they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from unetcli.core.errors import UnetcliError, UnreadableBlock, one_line
from unetcli.core.files import Place, is_remote, parent_of
from unetcli.core.geometry import Box
from unetcli.volumes import opening as ngff
from unetcli.volumes.store import Store, Unread, store_at
from unetcli.volumes.volume import Volume, describe

ZSTD_LEVEL = 3


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Description of an array; sizes in voxels, in the order of ``axes``, without channels."""

    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    write_chunks: tuple[int, ...]
    """Shards, where they are larger than the chunks."""
    outputs: int
    """Channels; an axis of their own where there are several."""
    dtype: str
    zarr_format: int
    """3 (OME-Zarr 0.5) or 2 (OME-Zarr 0.4)."""


@dataclass(frozen=True, kw_only=True)
class Level(ArraySpec):
    """The array ``name`` in a store. Shapes and boxes are without the channel axis, in the order of ``axes``."""

    store: Store
    name: str

    @property
    def stored_axes(self) -> str:
        """The volume's axes, and c before the spatial ones where there are several values a voxel."""
        lead = "t" if "t" in self.axes else ""
        channels = "c" if self.outputs > 1 else ""
        return lead + channels + self.axes.removeprefix("t")

    @property
    def metadata_key(self) -> str:
        return f"{self.name}/{'zarr.json' if self.zarr_format == 3 else '.zarray'}"

    def like(self, name: str, **sizes: tuple[int, ...]) -> Level:
        """Another array of the same store and kind."""
        return replace(self, name=name, **sizes)  # type: ignore[arg-type]

    def exists(self) -> bool:
        """Whether an array of just this kind is there."""
        if self.store.read_text(self.metadata_key) is None:
            return False
        try:
            found = self.open_to_read()
        except (ValueError, KeyError, TypeError):  # its metadata are damaged
            return False
        return (found.shape, found.chunks, found.shards or found.chunks, found.dtype) == (
            self._with_channels(self.shape, self.outputs),
            self._with_channels(self.chunks, 1),
            self._with_channels(self.write_chunks, 1),
            np.dtype(self.dtype),
        )

    def create(self, store: Store) -> None:
        """Make the empty array, in a store that may be the draft of ours."""
        three = self.zarr_format == 3
        codec = ZstdCodec if three else numcodecs.Zstd
        with store.reaching():
            zarr.create_array(
                store.zarr(),
                name=self.name,
                shape=self._with_channels(self.shape, self.outputs),
                chunks=self._with_channels(self.chunks, 1),
                shards=self._with_channels(self.write_chunks, 1) if self.write_chunks != self.chunks else None,
                dtype=self.dtype,
                fill_value=0,
                compressors=codec(level=ZSTD_LEVEL, checksum=True),  # nothing else tells a flipped bit
                dimension_names=list(self.stored_axes) if three else None,
                chunk_key_encoding={"name": "default" if three else "v2", "separator": "/"},
                zarr_format=3 if three else 2,
                overwrite=True,
            )

    def open(self) -> zarr.Array[Any]:
        """The array to write whole chunks to, and only that: see :class:`unetcli.volumes.store.Unread`."""
        with self.store.reaching():
            return zarr.open_array(Unread(self.store.zarr()), path=self.name, mode="r+")

    def write(self, array: zarr.Array[Any], box: Box, values: NDArray[Any]) -> None:
        """Store ``(outputs, *box.shape)`` at a box that covers whole ``write_chunks``, whatever was there."""
        stored = np.moveaxis(values, 0, self._lead) if self.outputs > 1 else values[0]
        with self.store.reaching():
            array[self._slices(box)] = stored

    def read(self, array: zarr.Array[Any], box: Box) -> NDArray[Any]:
        """``(outputs, *box.shape)`` of an array that was opened with :meth:`open_to_read`.

        Raises
        ------
        UnreadableBlock
            Where stored data are damaged.
        """
        place = f"{self.store.place}/{self.name}: cannot read {describe(box, self.axes)}"
        for path in self.files(box):
            if path.exists() and not path.stat().st_size:  # an empty shard reads as zeros
                raise UnreadableBlock(f"{place}: {path} is empty")
        try:
            stored = np.asarray(array[self._slices(box)])
        except MemoryError:
            raise
        except Exception as error:  # codecs raise what they like
            raise UnreadableBlock(f"{place}: {one_line(error)}") from error
        return np.moveaxis(stored, self._lead, 0) if self.outputs > 1 else stored[np.newaxis]

    def open_to_read(self) -> zarr.Array[Any]:
        with self.store.reaching():
            return zarr.open_array(self.store.zarr(), path=self.name, mode="r")

    def files(self, box: Box) -> Iterator[Path]:
        """The files of a box that have to be synced; those of chunks that are all zero do not exist."""
        for key in self.keys(box):
            yield from self.store.files(key)

    def keys(self, box: Box) -> Iterator[str]:
        """The keys in the store of all chunks (shards) of a box."""
        ranges = [
            range(a // side, -(-b // side)) for a, b, side in zip(box.start, box.stop, self.write_chunks, strict=True)
        ]
        prefix = [self.name, "c"] if self.zarr_format == 3 else [self.name]
        for place in itertools.product(*ranges):
            for channel in range(self.outputs):
                yield "/".join([*prefix, *map(str, self._with_channels(place, channel))])

    @property
    def _lead(self) -> int:
        """How many axes come before the channels."""
        return int("t" in self.axes)

    def _slices(self, box: Box) -> tuple[slice, ...]:
        channels = (slice(None),) if self.outputs > 1 else ()
        return (*box.slices[: self._lead], *channels, *box.slices[self._lead :])

    def _with_channels(self, values: tuple[int, ...], channels: int) -> tuple[int, ...]:
        """Per-axis values in stored order, with that of the channel axis where there is one."""
        picks = dict(zip(self.axes, values, strict=True)) | {"c": channels}
        return tuple(picks[axis] for axis in self.stored_axes)


MARKER = "unetcli"
"""Attribute of the group that says that unetcli wrote it, what it is, and whether it is complete."""
NESTING = 4
"""Labels lie at most so many groups inside the prediction that says which region it is."""


@dataclass(frozen=True)
class Image:
    """The image group at ``path``, a folder or a URL; level 0 is the array ``0``."""

    path: Place
    spec: ArraySpec

    @cached_property
    def store(self) -> Store:
        return store_at(self.path)

    @cached_property
    def level(self) -> Level:
        """Full resolution; boxes in voxels from the start of the array."""
        return Level(store=self.store, name="0", **vars(self.spec))

    def create(self, attributes: dict[str, Any]) -> None:
        """Make the empty image; in a folder it appears complete or not at all. One that exists already stays."""

        def make(store: Store) -> None:
            for name, text in ngff.documents(attributes, self.spec.zarr_format).items():
                store.replace_text(name, text)  # first says whose it is, so that what is half made can be made again
            self.level.create(store)

        try:
            self.store.publish(make)
        except OSError:
            if marker(self.path) is None:
                raise

    def mark(self, *, complete: bool) -> None:
        """Say in the group's metadata whether every voxel is there."""
        found = self.attributes()
        self.replace_attributes({**found, MARKER: {**found[MARKER], "complete": complete}})

    def attributes(self) -> dict[str, Any]:
        """The attributes of the group, which has to be written by unetcli."""
        found = group_file(self.store)
        if found is None or MARKER not in found[1]:
            raise UnetcliError(f"{self.path}: no output of unetcli (any more)")
        return found[1]

    def replace_attributes(self, attributes: dict[str, Any]) -> None:
        name, text = next(iter(ngff.documents(attributes, self.spec.zarr_format).items()))
        self.store.replace_text(name, text)


def image_attributes(spec: ArraySpec, path: Place, source: Volume, start: dict[str, int]) -> dict[str, Any]:
    """OME-Zarr attributes of an image with the voxel size of ``source``, whose voxel ``start`` is its first one."""
    axes = "".join(axis for axis in "tczyx" if axis in spec.axes or (axis == "c" and spec.outputs > 1))
    sizes = {axis: source.voxel_size.get(axis, 1.0) if axis != "c" else 1.0 for axis in axes}
    starts = {axis: source.translation.get(axis, 0.0) + start.get(axis, 0) * sizes[axis] for axis in spec.axes}
    grid = ngff.Grid(scale=sizes, translation={axis: starts.get(axis, 0.0) for axis in axes})
    name = str(path).rpartition("/")[2].removesuffix(".zarr")
    return ngff.attributes(ngff.image(name, axes, source.units, [grid]), spec.zarr_format)


def marker(place: Place) -> dict[str, Any] | None:
    """What an output says of itself if unetcli wrote it, else None; None for one that is not wholly made, too."""
    store = store_at(place)
    return _if_made(store, _marker(store))


def _if_made(store: Store, found: dict[str, Any] | None) -> dict[str, Any] | None:
    made = found is not None and any(store.read_text(f"0/{name}") for name in ("zarr.json", ".zarray"))
    return found if made else None


def marker_around(place: Place) -> dict[str, Any] | None:
    """The marker of a group, or of the group that an array lies in."""
    return marker(place) or marker(parent_of(place))


def region_around(place: Place) -> Mapping[str, Any]:
    """What a prediction of unetcli says of its region, by itself or by the group that its labels or levels lie in."""
    for _ in range(NESTING):
        if "region" in (found := marker(place) or {}):
            return found
        place = parent_of(place)
    return {}


def require_ours(place: Place, command: str, way: str, kind: str | None = None) -> dict[str, Any] | None:
    """The :func:`marker`; raises unless a place is free or holds what unetcli wrote, of that kind.

    Parameters
    ----------
    command
        The command that would have written it.
    way
        What the user can do.
    """
    store = store_at(place)
    found = _marker(store)
    ours = found is not None and kind in (None, found.get("kind"))
    if not ours and not store.is_free():
        raise UnetcliError(f"{place}: exists and was not written by unetcli {command}; {way}")
    return _if_made(store, found)


def require_no_others(place: Place) -> None:
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


def remove_output(place: Place) -> None:
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
