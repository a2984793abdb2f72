"""Volumes: arrays with named axes that are read by box, mirrored at their edges and identified by their content."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Moments, PerChannel, short_checksum
from unetcli.core.errors import UnetcliError, UnreadableBlock, one_line
from unetcli.core.geometry import Box, mirror_indices
from unetcli.core.options import Roi, Sections, resolve_sections

AXES = "tczyx"
DEFAULT_AXES = {2: "yx", 3: "zyx"}
"""Axes of an array without axis names, by their number."""

METRES_PER_UNIT = {
    **dict.fromkeys(("picometer", "picometre", "pm"), 1e-12),
    **dict.fromkeys(("angstrom", "Å"), 1e-10),
    **dict.fromkeys(("nanometer", "nanometre", "nm"), 1e-9),
    **dict.fromkeys(("micrometer", "micrometre", "micron", "um", "µm", "μm"), 1e-6),
    **dict.fromkeys(("millimeter", "millimetre", "mm"), 1e-3),
    **dict.fromkeys(("centimeter", "centimetre", "cm"), 1e-2),
    **dict.fromkeys(("meter", "metre", "m"), 1.0),
}
"""Names of units in OME-Zarr, and common abbreviations; µ has two code points, a sign and a Greek letter."""
SIZE_TOLERANCE = 0.01
"""Relative difference up to which two voxel sizes count as equal, as files round them differently."""
TOLERATED_SHIFT = 0.5
"""Difference between two origins, in voxels, up to which they count as equal. Programs place the origin of an image at
the corner or at the centre of its first voxel."""
LONGEST = 300
"""Characters of the longest reason shown for data that cannot be read; some codecs quote whole values."""
Sizes = dict[str, tuple[float, str]]
"""Voxel size and its unit, by axis."""


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
        return self._by_axis(getattr(self.array, "chunks", self.array.shape))

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
        chunks = getattr(self.array, "chunks", self.array.shape)
        return int(chunks[self.stored_axes.index("c")]) if "c" in self.stored_axes else 1

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
        return replace(self, array=_Squeezed(self.array, place), stored_axes=kept)

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

    def in_memory(self) -> Volume:
        """Read the array into memory."""
        everything = {axis: slice(None) for axis in self.stored_axes}
        return replace(self, array=self._slice(everything, self.whole()))

    def _renamed(self, letters: Mapping[str, str]) -> Volume:
        """Change axis letters, in the same order. Voxel sizes stay, as guessed axes have none."""
        stored, assumed = ("".join(letters.get(a, a) for a in axes) for axes in (self.stored_axes, self.assumed))
        return replace(self, stored_axes=stored, assumed=assumed)

    def _by_axis(self, per_stored_axis: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(per_stored_axis[self.stored_axes.index(axis)]) for axis in self.axes)

    def _stored(self, box: Box, channel: int | None) -> NDArray[Any]:
        slices = dict(zip(self.axes, box.slices, strict=True))
        slices["c"] = slice(None) if channel is None else slice(channel, channel + 1)
        order = [self.stored_axes.index(axis) for axis in f"c{self.axes}" if axis in self.stored_axes]
        voxels = self._slice(slices, box).transpose(order)
        return voxels if "c" in self.stored_axes else voxels[np.newaxis]

    def _slice(self, slices: dict[str, slice], box: Box) -> NDArray[Any]:
        """Read part of the array, in the order of its own axes; errors name the region ``box``."""
        try:
            return np.asarray(self.array[tuple(slices[axis] for axis in self.stored_axes)], self.dtype)
        except MemoryError:
            raise
        except Exception as error:  # codecs raise zlib.error, RuntimeError, ValueError, OSError and others
            raise UnreadableBlock(
                f"{self.path}: cannot read {describe(box, self.axes)}: {one_line(error)[:LONGEST]}"
            ) from error


class _Squeezed:
    """Array with some axes fixed at one index, which is read lazily."""

    def __init__(self, array: Any, place: tuple[int | slice, ...]) -> None:
        self._array, self._place, self.dtype = array, place, array.dtype
        self.shape = self._left(array.shape)
        self.chunks = self._left(getattr(array, "chunks", array.shape))

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        remaining = iter(selection)
        full = tuple(next(remaining) if isinstance(index, slice) else index for index in self._place)
        return np.asarray(self._array[full])

    def _left(self, per_axis: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n for n, index in zip(per_axis, self._place, strict=True) if isinstance(index, slice))


def describe(box: Box, axes: str) -> str:
    """Format a box for the user.

    >>> describe(Box((3, 0), (4, 512)), "zy")
    'z 3:4, y 0:512'
    """
    return ", ".join(f"{axis} {a}:{b}" for axis, a, b in zip(axes, box.start, box.stop, strict=True))


def shape(volume: Volume) -> str:
    """Format the axes and extent of a volume for the user."""
    return ", ".join(f"{axis} {n}" for axis, n in zip(volume.axes, volume.extent, strict=True))


def stored_names(array: Any) -> list[str] | None:
    """Axis names of a Zarr array, from its metadata (v3) or the attribute of xarray (v2); None without names."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return [str(name or "") for name in names] if isinstance(names, list | tuple) else None


def axes_from_names(path: str, names: list[str] | None, dimensions: int) -> str:
    """Axis letters for stored names, or the default for the number of axes if there are no names.

    Raises
    ------
    UnetcliError
        The axes are not those of an image, or are too many to be guessed.
    """
    if not names or not any(names):
        if dimensions in DEFAULT_AXES:
            return DEFAULT_AXES[dimensions]
        raise UnetcliError(
            f"{path}: {dimensions} axes without names; expected axis names (OME-Zarr, or dimension_names), "
            "or 2 or 3 axes, which are taken as (z,) y, x"
        )
    letters = "".join(str(name).lower()[:1] for name in names)
    if len(letters) != dimensions or len(set(letters)) != len(letters) or not set("yx") <= set(letters) <= set(AXES):
        raise UnetcliError(f"{path}: axes {', '.join(map(str, names))}; expected y, x and at most one each of t, c, z")
    return letters


def stated_sizes(volume: Volume) -> Sizes:
    """Voxel size along the spatial axes; empty if all are 1 without unit, as in files that do not state it."""
    sizes = {axis: (volume.voxel_size[axis], volume.units.get(axis, "")) for axis in "zyx" if axis in volume.voxel_size}
    return {} if all(size == (1.0, "") for size in sizes.values()) else sizes


def require_same_voxels(one: Volume, other: Volume, otherwise: str) -> None:
    """Raise :class:`UnetcliError` if the stated voxel sizes of two volumes differ.

    Axes whose size only one of the volumes states are not compared, nor are units that cannot be converted.

    Parameters
    ----------
    otherwise
        End of the message, which says what the difference implies.
    """
    sizes, others = stated_sizes(one), stated_sizes(other)
    if any(sizes_differ(sizes[axis], others[axis]) for axis in sizes.keys() & others.keys()):
        raise UnetcliError(
            f"{one.path} has voxels of {format_sizes(sizes)}, but {other.path} of {format_sizes(others)}: {otherwise}"
        )


def require_same_place(
    one: Volume,
    other: Volume,
    otherwise: str,
    *,
    offset: Sequence[int] | None = None,
    factors: Sequence[int] | None = None,
) -> None:
    """Raise :class:`UnetcliError` if two volumes state origins that differ by more than half a voxel.

    Axes whose place only one of the volumes states are not compared, nor are units that cannot be converted.

    Parameters
    ----------
    offset : voxels
        Where ``other`` begins in ``one``, along its axes. Default: at its origin.
    factors
        Voxels of ``one`` per voxel of ``other``, which may then differ by half of that. Default: 1.
    otherwise
        End of the message, which says what the difference implies.
    """
    if not (one.places and other.places):
        return
    moved, by = offset or (0,) * len(one.axes), factors or (1,) * len(one.axes)
    for axis, first, factor in zip(one.axes, moved, by, strict=True):
        if axis in other.axes and axis in "zyx" and abs(_shift(one, other, axis, first)) > TOLERATED_SHIFT * factor:
            raise UnetcliError(
                f"{one.path} begins at {_origin(one)}, but {other.path} at {_origin(other)}"
                f"{f', expected {_origin(one, moved)}' if any(moved) else ''}: {otherwise}"
            )


def _shift(one: Volume, other: Volume, axis: str, first: int) -> float:
    """Distance along an axis of the other origin from voxel ``first`` of one volume, in its voxels; NaN if unknown."""
    units = [volume.units.get(axis, "") for volume in (one, other)]
    scale = [METRES_PER_UNIT.get(unit, math.nan) for unit in units] if units[0] != units[1] else [1.0, 1.0]
    size = one.voxel_size.get(axis, 1.0) * scale[0]
    begins = [volume.translation.get(axis, 0.0) * by for volume, by in zip((one, other), scale, strict=True)]
    return (begins[1] - begins[0]) / size - first if size else math.nan


def _origin(volume: Volume, offset: Sequence[int] = ()) -> str:
    """Place of a voxel for the user, in the unit of each axis."""
    moved = dict(zip(volume.axes, offset, strict=False))
    places = {
        axis: (
            volume.translation.get(axis, 0.0) + moved.get(axis, 0) * volume.voxel_size.get(axis, 1.0),
            volume.units.get(axis, ""),
        )
        for axis in volume.axes
        if axis in "zyx"
    }
    return ", ".join(f"{axis} {place:g} {unit}".rstrip() for axis, (place, unit) in places.items())


def sizes_differ(one: tuple[float, str], other: tuple[float, str], tolerance: float = SIZE_TOLERANCE) -> bool:
    """Whether two sizes differ by more than a relative tolerance; False if their units cannot be converted.

    >>> sizes_differ((500, "nanometer"), (0.5, "micrometer")), sizes_differ((1, "um"), (500, "nm"))
    (False, True)
    """
    (size, unit), (other_size, other_unit) = one, other
    scale, other_scale = METRES_PER_UNIT.get(unit, math.nan), METRES_PER_UNIT.get(other_unit, math.nan)
    if unit == other_unit:
        scale = other_scale = 1.0
    sizes = size * scale, other_size * other_scale
    return abs(sizes[0] - sizes[1]) > tolerance * max(sizes)  # False for NaN, from units that are not known


def format_sizes(sizes: Sizes) -> str:
    """Format voxel sizes for the user, in the order of the axes; a common unit is given once.

    >>> format_sizes({"y": (4.0, "nm"), "x": (4.0, "nm")}), format_sizes({"z": (0.05, "um"), "x": (4.0, "nm")})
    ('4 x 4 nm', '0.05 um x 4 nm')
    """
    units = {unit for _, unit in sizes.values()}
    if len(units) == 1:
        return f"{' x '.join(f'{size:g}' for size, _ in sizes.values())} {units.pop()}".rstrip()
    return " x ".join(f"{size:g} {unit or '(no unit)'}" for size, unit in sizes.values())


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


UNREADABLE = "-"
"""Word in a fingerprint for a chunk that could not be read."""
SAMPLES = 64
"""Maximum number of sampled chunks."""
SAMPLED_BYTES = 256 * 2**20
"""Approximate limit of the bytes read, so that huge chunks do not make every start slow."""
LEAST_PLANES = 4
"""Least number of chunks whose grey values are measured, if there are as many."""
PLANE_SIDE = 1024
"""Largest side of the middle of a chunk whose grey values are measured."""
SAMPLED_VOXELS = 2**24
"""Maximum number of voxels used of a chunk."""


def sampled_boxes(volume: Volume) -> list[Box]:
    """Boxes of up to ``SAMPLES`` chunks, spread evenly over the volume in C order; the choice is deterministic."""
    grid = [-(-n // chunk) for n, chunk in zip(volume.extent, volume.chunks, strict=True)]
    total = int(np.prod(grid, dtype=np.int64))
    places = np.unique(np.linspace(0, total - 1, _sample_count(volume, total, 1), dtype=np.int64))
    return [_chunk(volume, np.unravel_index(place, grid)) for place in places]


def _sample_count(volume: Volume, total: int, least: int) -> int:
    """Number of chunks, of ``total``, that are sampled; ``least`` of them are read whatever their size."""
    chunk_bytes = int(np.prod(volume.chunks, dtype=np.int64)) * volume.dtype.itemsize * volume.channels
    return min(SAMPLES, total, max(least, SAMPLED_BYTES // chunk_bytes))


def sampled_planes(volume: Volume, region: Box, channel: int | None) -> Iterator[NDArray[Any]]:
    """Yield the middle of up to ``SAMPLES`` chunks of a region that can be read, the first ones far apart.

    Of huge chunks, such as pages of a TIFF file of slides, only ``LEAST_PLANES`` are read.

    Yields
    ------
    (c, y, x), the volume's dtype
        At most ``PLANE_SIDE`` voxels along y and x.
    """
    chunks = volume.chunks
    first = [a // c for a, c in zip(region.start, chunks, strict=True)]
    grid = [-(-b // c) - n for b, c, n in zip(region.stop, chunks, first, strict=True)]
    total = math.prod(grid)
    places = np.unique(np.linspace(0, total - 1, _sample_count(volume, total, LEAST_PLANES), dtype=np.int64))
    for place in (*places[::4], *places[2::4], *places[1::4], *places[3::4]):
        corner = [(n + int(k)) * c for n, k, c in zip(first, np.unravel_index(place, grid), chunks, strict=True)]
        chunk = Box(tuple(corner), tuple(a + c for a, c in zip(corner, chunks, strict=True))).clipped(region)
        sides = [1] * (len(chunks) - 2) + [min(PLANE_SIDE, n) for n in chunk.shape[-2:]]
        start = [a + (n - side) // 2 for a, n, side in zip(chunk.start, chunk.shape, sides, strict=True)]
        try:
            voxels = volume.read(Box(tuple(start), tuple(a + s for a, s in zip(start, sides, strict=True))), channel)
        except UnreadableBlock:
            continue
        yield voxels.reshape(len(voxels), *sides[-2:])


def sampled_voxels(volume: Volume) -> Iterator[NDArray[Any] | None]:
    """Voxels of each sampled chunk, (c, *box.shape); None for a chunk that cannot be read."""
    for box in sampled_boxes(volume):
        try:
            yield volume.read(box)
        except UnreadableBlock:
            yield None


def fingerprint(volume: Volume) -> str:
    """Fingerprint of a volume's content.

    Consists of checksums, separated by blanks: one of shape, axes and dtype, and one of each sampled chunk; ``-``
    stands for an unreadable chunk. :func:`same_data` compares fingerprints, ignoring unreadable chunks.
    """
    words = [short_checksum(json.dumps([volume.array.shape, volume.stored_axes, str(volume.dtype)]).encode())]
    samples = (UNREADABLE if voxels is None else short_checksum(voxels) for voxels in sampled_voxels(volume))
    return " ".join([*words, *samples])


def same_data(one: str, other: str) -> bool:
    """Whether two fingerprints agree in all chunks that both could read.

    >>> same_data("a b -", "a - c"), same_data("a b", "a c")
    (True, False)
    """
    pairs = list(itertools.zip_longest(one.split(), other.split()))
    return all(UNREADABLE in pair or pair[0] == pair[1] for pair in pairs)


def sampled_statistics(volume: Volume, channel: int | None) -> tuple[PerChannel, PerChannel]:
    """Mean and standard deviation of the finite voxels of the sampled chunks.

    Parameters
    ----------
    channel
        Channel to use. Default: all channels.

    Returns
    -------
    mean, standard deviation
        One number each, or one per channel if there are several.
    """
    found = Moments()
    for voxels in sampled_voxels(volume):
        if voxels is not None:
            found.add(voxels if channel is None else voxels[channel : channel + 1])
    return found.mean, found.std


def _chunk(volume: Volume, place: tuple[Any, ...]) -> Box:
    corner = tuple(int(p) * c for p, c in zip(place, volume.chunks, strict=True))
    shape = list(volume.chunks)
    while math.prod(shape) * volume.channels > SAMPLED_VOXELS:
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
    return Box(corner, tuple(a + n for a, n in zip(corner, shape, strict=True))).clipped(volume.whole())
