"""OME-Zarr images that unetcli writes, with a marker in their metadata that identifies them as its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import ZstdCodec

from unetcli.core.errors import UnetcliError, UnreadableBlock, format_shape, one_line
from unetcli.core.files import Place, is_remote, parent_of
from unetcli.core.geometry import Box
from unetcli.core.label_values import LabelValues
from unetcli.core.records import decoded, shown
from unetcli.volumes import ngff
from unetcli.volumes.absent import is_absent
from unetcli.volumes.codecs import CheckedZstd
from unetcli.volumes.pipelines import opening_to_write
from unetcli.volumes.store import Store, WriteOnlyStore, store_at
from unetcli.volumes.volume import Volume, describe

ZSTD_LEVEL = 3


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Description of an array. Sizes are in voxels, in the order of ``axes``, without the channel axis."""

    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    write_chunks: tuple[int, ...]
    """Shape of the shards; equal to ``chunks`` without sharding."""
    outputs: int
    """Number of channels; several channels have an axis c."""
    dtype: str
    zarr_format: int
    """3 (OME-Zarr 0.5) or 2 (OME-Zarr 0.4)."""


@dataclass(frozen=True, kw_only=True)
class Level(ArraySpec):
    """Array ``name`` of a store. Shapes and boxes have the order of ``axes``, without the channel axis."""

    store: Store
    name: str

    @property
    def stored_axes(self) -> str:
        """Axes of the stored array; several channels have an axis c before the spatial ones."""
        lead = "t" if "t" in self.axes else ""
        channels = "c" if self.outputs > 1 else ""
        return lead + channels + self.axes.removeprefix("t")

    @property
    def metadata_key(self) -> str:
        return f"{self.name}/{'zarr.json' if self.zarr_format == 3 else '.zarray'}"

    def like(self, name: str, **sizes: tuple[int, ...]) -> Level:
        """Copy of this description with another name and other sizes."""
        return replace(self, name=name, **sizes)  # type: ignore[arg-type]

    def exists(self) -> bool:
        """Whether the store contains an array with this description."""
        if self.store.read_text(self.metadata_key) is None:
            return False
        try:
            found = self.open_to_read()
        except UnetcliError:  # damaged metadata
            return False
        return (found.shape, found.chunks, found.shards or found.chunks, found.dtype) == (
            self._with_channels(self.shape, self.outputs),
            self._with_channels(self.chunks, 1),
            self._with_channels(self.write_chunks, 1),
            np.dtype(self.dtype),
        )

    def create(self, store: Store) -> None:
        """Create the empty array in ``store``, which may be a draft of this store."""
        v3 = self.zarr_format == 3
        codec = ZstdCodec if v3 else CheckedZstd
        with store.explain_errors():
            zarr.create_array(
                store.zarr(),
                name=self.name,
                shape=self._with_channels(self.shape, self.outputs),
                chunks=self._with_channels(self.chunks, 1),
                shards=self._with_channels(self.write_chunks, 1) if self.write_chunks != self.chunks else None,
                dtype=self.dtype,
                fill_value=0,
                compressors=codec(level=ZSTD_LEVEL, checksum=True),  # detects flipped bits
                dimension_names=list(self.stored_axes) if v3 else None,
                chunk_key_encoding={"name": "default" if v3 else "v2", "separator": "/"},
                zarr_format=3 if v3 else 2,
                overwrite=True,
            )

    def open(self) -> zarr.Array[Any]:
        """Open the array for writing whole chunks; see :class:`unetcli.volumes.store.WriteOnlyStore`."""
        with opening_to_write():
            return self._opened(WriteOnlyStore(self.store.zarr()), "r+")

    def write(self, array: zarr.Array[Any], box: Box, values: NDArray[Any]) -> None:
        """Write the voxels of a box and replace what is stored there.

        Parameters
        ----------
        array
            Array opened with :meth:`open`.
        box
            Region in voxels that consists of whole ``write_chunks``.
        values : (outputs, *box.shape)
        """
        stored = np.moveaxis(values, 0, self._lead) if self.outputs > 1 else values[0]
        with self.store.explain_errors():
            array[self._slices(box)] = stored

    def read(self, array: zarr.Array[Any], box: Box) -> NDArray[Any]:
        """Read the voxels of a box from an array opened with :meth:`open_to_read`.

        Returns
        -------
        (outputs, *box.shape)

        Raises
        ------
        UnreadableBlock
            Stored data are damaged.
        """
        place = f"{self.store.place}/{self.name}: cannot read {describe(box, self.axes)}"
        try:
            stored = np.asarray(array[self._slices(box)])
        except MemoryError:
            raise
        except Exception as error:  # codecs raise exceptions of any class
            raise UnreadableBlock(f"{place}: {one_line(error)}") from error
        return np.moveaxis(stored, self._lead, 0) if self.outputs > 1 else stored[np.newaxis]

    def is_absent(self, array: zarr.Array[Any], box: Box) -> bool:
        """Whether nothing is stored of a box of an array opened with :meth:`open_to_read`, so that its values are 0."""
        lead, channels = self._lead, (slice(0, self.outputs),) if self.outputs > 1 else ()
        return is_absent(array, (*box.slices[:lead], *channels, *box.slices[lead:]))

    def open_to_read(self) -> zarr.Array[Any]:
        return self._opened(self.store.zarr(), "r")

    def _opened(self, store: ZarrStore, mode: Literal["r", "r+"]) -> zarr.Array[Any]:
        try:
            with self.store.explain_errors():
                return zarr.open_array(store, path=self.name, mode=mode)
        except (OSError, MemoryError, UnetcliError):
            raise
        except Exception as error:  # damaged metadata raise exceptions of many classes
            place = f"{self.store.place}/{self.metadata_key}"
            raise UnetcliError(f"{place}: invalid metadata: {one_line(error, kind=True)}") from error

    def files(self, box: Box) -> Iterator[Path]:
        """Files of a box, which are synced after writing; chunks of zeros have no file."""
        for key in self.keys(box):
            yield from self.store.files(key)

    def keys(self, box: Box) -> Iterator[str]:
        """Keys of all chunks, or shards, of a box in the store."""
        ranges = [
            range(a // side, -(-b // side)) for a, b, side in zip(box.start, box.stop, self.write_chunks, strict=True)
        ]
        prefix = [self.name, "c"] if self.zarr_format == 3 else [self.name]
        for place in itertools.product(*ranges):
            for channel in range(self.outputs):
                yield "/".join([*prefix, *map(str, self._with_channels(place, channel))])

    @property
    def _lead(self) -> int:
        """Number of axes before the channel axis."""
        return int("t" in self.axes)

    def _slices(self, box: Box) -> tuple[slice, ...]:
        channels = (slice(None),) if self.outputs > 1 else ()
        return (*box.slices[: self._lead], *channels, *box.slices[self._lead :])

    def _with_channels(self, values: tuple[int, ...], channels: int) -> tuple[int, ...]:
        """Per-axis values in stored order, with ``channels`` for the channel axis if there is one."""
        by_axis = dict(zip(self.axes, values, strict=True)) | {"c": channels}
        return tuple(by_axis[axis] for axis in self.stored_axes)


MARKER = ngff.MARKER
VALUES = {
    "classes": tuple[str, ...],
    "complete": bool,
    "extent": tuple[int, ...],
    "kind": str,
    "label_values": LabelValues,
    "of_incomplete": bool,
    "outputs": int,
    "placed": bool,
    "region": tuple[tuple[int, int], ...],
    "single_class": str,
    "smallest_objects": tuple[int, ...],
    "truth": str,
}
"""Type of the values of a marker that are read."""
NESTING = 4
"""Maximum number of groups between labels and the prediction whose marker has their region."""


@dataclass(frozen=True)
class Image:
    """Image group at ``path``, a folder or URL; level 0 is the array ``0``."""

    path: Place
    spec: ArraySpec

    @cached_property
    def store(self) -> Store:
        return store_at(self.path)

    @cached_property
    def level(self) -> Level:
        """Level of full resolution; its boxes are in voxels from the start of the array."""
        return Level(store=self.store, name="0", **vars(self.spec))

    def create(self, attributes: dict[str, Any]) -> None:
        """Create the empty image, atomically if it is a folder. An existing image of unetcli is kept."""

        def make(store: Store) -> None:
            for name, text in ngff.documents(attributes, self.spec.zarr_format).items():
                store.replace_text(name, text)  # the marker is first, so that an interrupted creation can be repeated
            self.level.create(store)

        try:
            self.store.publish(make)
        except OSError:
            if marker(self.path) is None:
                raise

    def mark(self, *, complete: bool, **more: str) -> None:
        """Record in the marker whether all voxels have been written, and more."""
        found = self.attributes()
        self.replace_attributes({**found, MARKER: {**found[MARKER], "complete": complete, **more}})

    def attributes(self) -> dict[str, Any]:
        """Attributes of the group; raises :class:`UnetcliError` if unetcli did not write it."""
        found = group_file(self.store)
        if found is None or MARKER not in found[1]:
            raise UnetcliError(f"{self.path}: is not, or no longer, an output of unetcli")
        return found[1]

    def replace_attributes(self, attributes: dict[str, Any]) -> None:
        name, text = next(iter(ngff.documents(attributes, self.spec.zarr_format).items()))
        self.store.replace_text(name, text)


def image_attributes(spec: ArraySpec, path: Place, source: Volume, start: dict[str, int]) -> dict[str, Any]:
    """OME-Zarr attributes of an image with the voxel size of ``source``.

    ``start`` is the voxel of ``source``, by axis, at which the image begins.
    """
    axes = "".join(axis for axis in "tczyx" if axis in spec.axes or (axis == "c" and spec.outputs > 1))
    sizes = {axis: source.voxel_size.get(axis, 1.0) if axis != "c" else 1.0 for axis in axes}
    starts = {axis: source.translation.get(axis, 0.0) + start.get(axis, 0) * sizes[axis] for axis in spec.axes}
    grid = ngff.Grid(scale=sizes, translation={axis: starts.get(axis, 0.0) for axis in axes})
    name = str(path).rpartition("/")[2].removesuffix(".zarr")
    return ngff.attributes(ngff.image(name, axes, source.units, [grid]), spec.zarr_format)


def marker(place: Place) -> dict[str, Any] | None:
    """Read the marker of an output; None if unetcli did not write it or its creation was interrupted."""
    store = store_at(place)
    return _if_created(store, _marker(store))


def _if_created(store: Store, found: dict[str, Any] | None) -> dict[str, Any] | None:
    created = found is not None and any(store.read_text(f"0/{name}") for name in ("zarr.json", ".zarray"))
    return found if created else None


def find_marker(place: Place) -> dict[str, Any] | None:
    """Read the marker of a group, or of the group that contains an array."""
    return marker(place) or marker(parent_of(place))


def class_names(place: Place) -> tuple[str, ...]:
    """Names of the classes in an output of ``predict --output-classes``, or an array of it; empty for others."""
    return tuple((find_marker(place) or {}).get("classes", ()))


def find_region_marker(place: Place) -> Mapping[str, Any]:
    """Find the marker that has the region of a prediction, its levels or its labels; empty if there is none."""
    for _ in range(NESTING):
        if "region" in (found := marker(place) or {}):
            return found
        place = parent_of(place)
    return {}


def require_marked_shape(volume: Volume, place: Place, level: int = 0) -> None:
    """Check that an array has the shape that the marker of its image states.

    Parameters
    ----------
    volume
        The array, as opened from ``place``.
    place
        An output of unetcli, labels in it or an array of either. Other places are not checked.
    level
        Resolution level of the array; 0 is full resolution.

    Raises
    ------
    UnetcliError
        The shapes contradict each other, so that the array or the metadata are damaged.
    """
    region = (find_marker(place) or {}).get("region")
    if region is None:
        return
    inside = str(place).rpartition("/")[2]
    by = 2 ** (level or (int(inside) if inside.isdecimal() else 0))
    sides = [b - a for a, b in region]
    expected = tuple(-(-n // by) if axis in "yx" else n for axis, n in zip(volume.axes, sides, strict=False))
    if len(sides) != len(volume.axes) or volume.extent != expected:
        raise UnetcliError(
            f"{volume.path}: the array is {format_shape(volume.extent)}, but its metadata state {format_shape(sides)}"
            f"{f' at full resolution, {format_shape(expected)} at this level' if by > 1 else ''}: "
            "one of them is damaged; the command that wrote it, with --overwrite, writes it again"
        )


def require_own_output(place: Place, command: str, advice: str, kind: str | None = None) -> dict[str, Any] | None:
    """Check that a place is free or has an output of unetcli, and return its :func:`marker`.

    Parameters
    ----------
    command
        Command that writes such outputs, for the message.
    advice
        What the user can do instead, for the message.
    kind
        Kind of output that is accepted. Default: any.

    Raises
    ------
    UnetcliError
        The place has files that unetcli did not write, or an output of another kind.
    """
    store = store_at(place)
    found = _marker(store)
    own = found is not None and kind in (None, found.get("kind"))
    if not own and not store.is_free():
        raise UnetcliError(f"{place}: exists and was not written by unetcli {command}; {advice}")
    return _if_created(store, found)


def label_names(place: Place) -> list[str]:
    """Names of the labels of an image, whoever wrote them."""
    labels = f"{place}/labels"
    found = group_file(store_at(labels))
    with ngff.explain(labels):
        return sorted({*ngff.label_names(found[1] if found else {}), *_folders(labels)})


def require_no_foreign_labels(place: Place) -> None:
    """Raise :class:`UnetcliError` if an output that is to be deleted contains labels of other programs."""
    labels = f"{place}/labels"
    for name in label_names(place):
        inside = store_at(f"{labels}/{name}")
        if _marker(inside) is None and not inside.is_free():
            raise UnetcliError(
                f"{labels}/{name}: not written by unetcli, and --overwrite would delete it; move it elsewhere first"
            )


def _folders(place: str) -> list[str]:
    """Names in a folder without its metadata; empty for a URL, where only the list of labels is used."""
    if is_remote(place) or not Path(place).is_dir():
        return []
    return [path.name for path in Path(place).iterdir() if path.name not in (*ngff.ATTRIBUTES.values(), ".zgroup")]


def remove_output(place: Place) -> None:
    """Delete an output of unetcli; anything else is left in place."""
    store = store_at(place)
    if (found := group_file(store)) and MARKER in found[1]:
        store.remove(last=found[0])


def _marker(store: Store) -> dict[str, Any] | None:
    name, attributes = group_file(store) or ("", {})
    if MARKER not in attributes:
        return None
    with ngff.explain(f"{store.place}/{name}"):
        return checked_marker(attributes[MARKER])


def checked_marker(found: Any) -> dict[str, Any]:
    """Return a marker; raises ValueError if its values have other types than unetcli writes, or contradict each other.

    >>> checked_marker({"kind": "probabilities", "extent": [4, 100], "region": [[0, 4], [10]]})
    Traceback (most recent call last):
    ValueError: unetcli.region[1] is [10]; expected a list (a whole number, a whole number)
    """
    marker: dict[str, Any] = decoded(dict[str, Any], found, MARKER)
    values = {name: ngff.typed(kind, marker, name, where=MARKER) for name, kind in VALUES.items() if name in marker}
    if "region" in values:
        region, extent = values["region"], values.get("extent", ())
        if len(region) != len(extent) or any(not 0 <= a < b <= n for (a, b), n in zip(region, extent, strict=True)):
            raise ValueError(f"{MARKER}.region is {shown(region)}; expected a part of an extent of {shown(extent)}")
    return marker


def group_file(store: Store) -> tuple[str, dict[str, Any]] | None:
    """Name of the file with a group's attributes, and the attributes; None if there is no such file.

    Raises
    ------
    UnetcliError
        The file is damaged.
    """
    for name in ngff.ATTRIBUTES.values():
        if (text := store.read_text(name)) is not None:
            with ngff.explain(f"{store.place}/{name}"):
                return name, ngff.parse(name, text)
    return None
