"""One array of an output: chunks (shards) that are replaced whole, by one writer each, and read back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from unetcli.core.errors import UnreadableBlock, one_line
from unetcli.core.geometry import Box
from unetcli.volumes.store import Store, Unread
from unetcli.volumes.volume import describe

ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The array ``name`` in a store. Shapes and boxes are without the channel axis, in the order of ``axes``."""

    store: Store
    name: str
    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    write_chunks: tuple[int, ...]
    """Shards, where they are larger than the chunks."""
    outputs: int
    """Channels; an axis of their own where there are several."""
    dtype: str
    zarr_format: int

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
        found = self.open_to_read()
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
