"""Volumes: arrays with named axes that are read by box, mirrored at their edges and identified by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import PerChannel
from unetcli.core.errors import LabelError, UnetcliError, UnreadableBlock, one_line
from unetcli.core.geometry import Box, mirror_indices
from unetcli.core.options import Roi, Sections, resolve_sections
from unetcli.volumes.absent import is_absent
from unetcli.volumes.axes import AXES
from unetcli.volumes.views import Filled, Fractions, OneClass, Picked, Rearranged, chunks_of

LONGEST = 300
"""Characters of the longest reason shown for data that cannot be read; codecs and tifffile may quote whole values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """An array with named axes and voxel size.

    Boxes and extents have the order t, z, y, x and no channel axis. Voxels are returned as (c, t, z, y, x), without the
    axes that the array does not have.
    """

    path: str
    array: Any
    """Any array with shape, dtype and slicing; a ``zarr.Array`` if opened from disk."""
    stored_axes: str
    """Letters of ``AXES``, one per axis of the array, in its order."""
    voxel_size: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    translation: dict[str, float] = field(default_factory=dict)
    places: bool = False
    """Whether the file states where the volume lies; if not, ``translation`` says nothing about it."""
    channel_names: tuple[str, ...] = ()
    """Names of the channels; empty if the file does not state them."""
    assumed: str = ""
    """Axes whose letters are guessed, as the file does not name them."""

    @property
    def axes(self) -> str:
        """All axes except the channel axis, in the order t, z, y, x."""
        return "".join(axis for axis in AXES if axis in self.stored_axes and axis != "c")

    @property
    def extent(self) -> tuple[int, ...]:
        return self._by_axis(self.array.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of the stored chunks, with the same axes as ``extent``."""
        return self._by_axis(chunks_of(self.array))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels that are read, in the native byte order."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype.newbyteorder("=") if dtype.kind in "uif" else dtype

    @property
    def channels(self) -> int:
        return int(self.array.shape[self.stored_axes.index("c")]) if "c" in self.stored_axes else 1

    @property
    def chunk_channels(self) -> int:
        """Number of channels in one chunk."""
        return int(chunks_of(self.array)[self.stored_axes.index("c")]) if "c" in self.stored_axes else 1

    @property
    def section_axis(self) -> int | None:
        """Index in ``axes`` of the axis that counts sections: z, else t; None for a single image."""
        return next((self.axes.index(axis) for axis in "zt" if axis in self.axes), None)

    def read(self, box: Box, channel: int | None = None) -> NDArray[Any]:
        """Read the voxels of a box. Outside of its extent, the volume is mirrored.

        Parameters
        ----------
        box
            Region in voxels, in the order of ``axes``; may extend beyond the volume.
        channel
            Channel to read. Default: all channels.

        Returns
        -------
        (c, *box.shape), the volume's dtype

        Raises
        ------
        UnreadableBlock
            Stored data are damaged.
        """
        indices = [mirror_indices(*side) for side in zip(box.start, box.stop, self.extent, strict=True)]
        low = tuple(int(i.min()) for i in indices)
        inner = Box(low, tuple(int(i.max()) + 1 for i in indices))
        voxels = self._stored(inner, channel)
        for axis, (index, first) in enumerate(zip(indices, low, strict=True), start=1):
            if len(index) != voxels.shape[axis] or index[0] != first:
                voxels = np.take(voxels, index - first, axis=axis)
        return voxels

    def is_absent(self, box: Box) -> bool:
        """Whether nothing is stored of a box inside the volume, so that all its voxels are equal; False if unknown."""
        return is_absent(self.array, self._selection(box, slice(0, self.channels)))

    def mirrored(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """Stored voxel that mirroring shows at ``place``, which may lie outside of the volume."""
        return tuple(int(mirror_indices(p, p + 1, n)[0]) for p, n in zip(place, self.extent, strict=True))

    def whole(self) -> Box:
        return Box.of_shape(self.extent)

    def sections(self, first: int, stop: int) -> Box:
        """Box of the sections ``first..stop``; the whole volume if it is a single image."""
        return self.whole() if self.section_axis is None else self.part(self.section_axis, first, stop)

    def part(self, axis: int, first: int, stop: int) -> Box:
        """Box of the volume between two positions along one axis, given by its index in ``axes``."""
        start, end = list(self.whole().start), list(self.extent)
        start[axis], end[axis] = first, stop
        return Box(tuple(start), tuple(end))

    def without_single_axes(self, keep: str = "") -> Volume:
        """Drop leading axes of extent 1, except those in ``keep``: a stack of one section becomes an image."""
        leading = [axis for axis in self.axes[:-2] if axis not in keep]
        single = [axis for axis in leading if self.array.shape[self.stored_axes.index(axis)] == 1]
        if not single:
            return self
        place = tuple(0 if axis in single else slice(None) for axis in self.stored_axes)
        kept = "".join(axis for axis in self.stored_axes if axis not in single)
        return replace(self, array=Rearranged(self.array, place), stored_axes=kept)

    def with_single_axes_of(self, other: Volume) -> Volume:
        """Give the volume the axes of the other one, if those that only one of them has are of extent 1."""
        fitted = self.without_single_axes(keep=other.axes)
        missing = [axis for axis in other.axes if axis not in fitted.axes]
        extents = dict(zip(other.axes, other.extent, strict=True))
        if not set(fitted.axes) <= set(other.axes) or any(extents[axis] > 1 for axis in missing):
            return self
        return fitted.with_new_axes("".join(missing)) if missing else fitted

    def with_new_axes(self, letters: str) -> Volume:
        """Add axes of extent 1 before the others."""
        axes = (*(None for _ in letters), *(slice(None) for _ in self.stored_axes))
        return replace(self, array=Rearranged(self.array, axes), stored_axes=letters + self.stored_axes)

    def picked(self, axis: str, positions: Sequence[int]) -> Volume:
        """The volume with only some positions along an axis."""
        return replace(self, array=Picked(self.array, self.stored_axes.index(axis), positions))

    def filled(self, values: PerChannel) -> Volume:
        """Replace NaN and infinity by a value, or by one for each channel."""
        if self.dtype.kind != "f":
            return self
        own = np.reshape(np.asarray(values), [-1 if axis == "c" else 1 for axis in self.stored_axes])
        return replace(self, array=Filled(self.array, own))

    def channels_as_sections(self) -> Volume:
        """Interpret a guessed channel axis as sections z, and a guessed z axis before it as t."""
        if "c" not in self.assumed or any(a in self.stored_axes and a not in self.assumed for a in "tz"):
            return self
        return self._renamed({a: b for a, b in (("c", "z"), ("z", "t")) if a in self.stored_axes})

    def fitted_to(self, other: Volume) -> Volume:
        """Interpret guessed channels as sections if this gives the volume the extent of the other volume."""
        fitted = self.channels_as_sections()
        return fitted if fitted.extent == other.extent else self

    def with_axes_of(self, other: Volume) -> Volume:
        """Replace guessed axis letters by those of the other volume."""
        letters = {a: b for a, b in zip(self.axes, other.axes, strict=False) if a != b}
        if len(self.axes) != len(other.axes) or not set(letters) <= set(self.assumed):
            return self
        return self._renamed(letters)

    def with_sections_of(self, other: Volume) -> Volume:
        """Give the axis of a stack's sections, t or z, the name that it has in the other stack, of equal length."""
        names = {self.axes[:1], other.axes[:1]}
        both = len(self.axes) == len(other.axes) == 3 and names == {"t", "z"}
        return self._renamed({self.axes[0]: other.axes[0]}) if both and self.extent[0] == other.extent[0] else self

    def of_class(self, value: int) -> Volume:
        """The voxels of a map of classes that are of one class, as bool."""
        return replace(self, array=OneClass(self.array, value))

    def as_fractions(self) -> Volume:
        """The volume with unsigned integers as fractions of the largest value of their type, float32."""
        return replace(self, array=Fractions(self.array))

    def in_memory(self) -> Volume:
        """Read the array into memory."""
        return replace(self, array=self._slice((slice(None),) * len(self.stored_axes), self.whole()))

    def _renamed(self, letters: Mapping[str, str]) -> Volume:
        """Change axis letters, in the same order. Voxel sizes stay, as guessed axes have none."""
        stored, assumed = ("".join(letters.get(a, a) for a in axes) for axes in (self.stored_axes, self.assumed))
        return replace(self, stored_axes=stored, assumed=assumed)

    def _by_axis(self, per_stored_axis: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(per_stored_axis[self.stored_axes.index(axis)]) for axis in self.axes)

    def _stored(self, box: Box, channel: int | None) -> NDArray[Any]:
        channels = slice(None) if channel is None else slice(channel, channel + 1)
        order = [self.stored_axes.index(axis) for axis in f"c{self.axes}" if axis in self.stored_axes]
        voxels = self._slice(self._selection(box, channels), box).transpose(order)
        return voxels if "c" in self.stored_axes else voxels[np.newaxis]

    def _selection(self, box: Box, channels: slice) -> tuple[slice, ...]:
        """Slices of a box and of channels, in the order of the array's own axes."""
        slices = {**dict(zip(self.axes, box.slices, strict=True)), "c": channels}
        return tuple(slices[axis] for axis in self.stored_axes)

    def _slice(self, selection: tuple[slice, ...], box: Box) -> NDArray[Any]:
        """Read part of the array, in the order of its own axes; errors name the region ``box``."""
        try:
            return np.asarray(self.array[selection], self.dtype)
        except (MemoryError, UnreadableBlock):
            raise
        except LabelError as error:
            raise UnetcliError(f"{self.path}: {describe(box, self.axes)}: {error}") from error
        except Exception as error:  # codecs raise zlib.error, RuntimeError, ValueError, OSError and others
            raise UnreadableBlock(
                f"{self.path}: cannot read {describe(box, self.axes)}: {one_line(error)[:LONGEST]}"
            ) from error


def describe(box: Box, axes: str) -> str:
    """Format a box for the user.

    >>> describe(Box((3, 0), (4, 512)), "zy")
    'z 3:4, y 0:512'
    """
    return ", ".join(f"{axis} {a}:{b}" for axis, a, b in zip(axes, box.start, box.stop, strict=True))


def shape(volume: Volume) -> str:
    """Format the axes and extent of a volume for the user."""
    return ", ".join(f"{axis} {n}" for axis, n in zip(volume.axes, volume.extent, strict=True))


def aligned(one: Volume, other: Volume) -> tuple[Volume, Volume]:
    """Two volumes without axes of extent 1, if they have the same extent without them; else as they are.

    A 5-D image with t and c of extent 1 is paired with labels z, y, x in this way.
    """
    if one.extent == other.extent:
        return one, other
    short, shorter = one.without_single_axes(), other.without_single_axes()
    return (short, shorter) if short.extent == shorter.extent else (one, other)


def resolve_region(sections: Sections, roi: Roi | None, volume: Volume) -> Box:
    """Box of the sections or region of interest that the user requests; the whole volume by default.

    Raises
    ------
    UnetcliError
        The region is empty or exceeds the volume, or both options are given.
    """
    if roi is not None:
        if sections != (None, None):
            raise UnetcliError("--roi and --sections: expected only one; --roi can select sections too")
        return _resolve_roi(roi, volume)
    if sections == (None, None):
        return volume.whole()
    if volume.section_axis is None:
        raise UnetcliError(f"--sections: {volume.path} is a single image ({', '.join(volume.axes)}); omit --sections")
    return volume.sections(*resolve_sections(sections, volume.extent[volume.section_axis], volume.path))


def _resolve_roi(roi: Roi, volume: Volume) -> Box:
    """Box of a region of interest, whose ranges apply to the last axes of the volume."""
    axes = volume.axes
    if len(roi) > len(axes):
        raise UnetcliError(f"--roi: {len(roi)} ranges, but {volume.path} has only the axes {', '.join(axes)}")
    start, stop = list(volume.whole().start), list(volume.extent)
    for place, (first, end) in enumerate(roi, start=len(axes) - len(roi)):
        start[place] = 0 if first is None else first
        stop[place] = volume.extent[place] if end is None else end
        if not 0 <= start[place] < stop[place] <= volume.extent[place]:
            raise UnetcliError(
                f"--roi: {axes[place]} {start[place]}:{stop[place]} is not a range inside {volume.path}, which has "
                f"{axes[place]} 0:{volume.extent[place]}"
            )
    return Box(tuple(start), tuple(stop))
