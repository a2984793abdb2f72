"""Volumes: arrays with named axes, read by box and mirrored at their edges, and recognised by what they hold."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Moments, PerChannel, short_checksum
from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.geometry import Box, mirror_indices
from unetcli.core.options import Roi, Sections, resolve_sections

AXES = "tczyx"
UNNAMED = {2: "yx", 3: "zyx"}
"""What an array without axis names is taken for."""

METRES = {
    **dict.fromkeys(("picometer", "picometre", "pm"), 1e-12),
    **dict.fromkeys(("angstrom", "Å"), 1e-10),
    **dict.fromkeys(("nanometer", "nanometre", "nm"), 1e-9),
    **dict.fromkeys(("micrometer", "micrometre", "micron", "um", "µm", "μm"), 1e-6),
    **dict.fromkeys(("millimeter", "millimetre", "mm"), 1e-3),
    **dict.fromkeys(("centimeter", "centimetre", "cm"), 1e-2),
    **dict.fromkeys(("meter", "metre", "m"), 1.0),
}
"""Of OME-Zarr, and what people write; µ exists twice, as a sign and as a Greek letter."""
ALIKE = 0.01
"""Sizes that differ by a smaller share than this are rounded differently."""
Sizes = dict[str, tuple[float, str]]
"""Number and unit by axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """An array with named axes and voxel size.

    Boxes and extents leave the channel axis out and have the order t, z, y, x; data come as (c, t, z, y, x) with the
    axes that exist.
    """

    path: str
    array: Any
    """Anything with shape, dtype and slicing; a ``zarr.Array`` when opened from disk."""
    stored_axes: str
    """Letters of ``AXES``, one per axis of the array, in its order."""
    voxel_size: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    translation: dict[str, float] = field(default_factory=dict)
    assumed: str = ""
    """Axes whose letters are a guess: nothing stored says what they are."""

    @property
    def axes(self) -> str:
        """All axes but the channel's, in the order t, z, y, x."""
        return "".join(axis for axis in AXES if axis in self.stored_axes and axis != "c")

    @property
    def extent(self) -> tuple[int, ...]:
        return self._by_axis(self.array.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Stored chunk shape, like ``extent``."""
        return self._by_axis(getattr(self.array, "chunks", self.array.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """In this machine's byte order, whatever the stored one."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype.newbyteorder("=") if dtype.kind in "uif" else dtype

    @property
    def channels(self) -> int:
        return int(self.array.shape[self.stored_axes.index("c")]) if "c" in self.stored_axes else 1

    @property
    def chunk_channels(self) -> int:
        """Channels stored together in one chunk."""
        chunks = getattr(self.array, "chunks", self.array.shape)
        return int(chunks[self.stored_axes.index("c")]) if "c" in self.stored_axes else 1

    @property
    def section_axis(self) -> int | None:
        """Place in ``axes`` of the axis that counts sections: z, else t, else None (a single image)."""
        return next((self.axes.index(axis) for axis in "zt" if axis in self.axes), None)

    def read(self, box: Box, channel: int | None = None) -> NDArray[Any]:
        """Voxels of a box, which may reach outside, where the volume is mirrored.

        Returns
        -------
        (c, *box.shape), the volume's dtype
            One channel, or all where ``channel`` is None.

        Raises
        ------
        UnreadableBlock
            Where stored data are damaged.
        """
        indices = [mirror_indices(*side) for side in zip(box.start, box.stop, self.extent, strict=True)]
        low = tuple(int(i.min()) for i in indices)
        inner = Box(low, tuple(int(i.max()) + 1 for i in indices))
        voxels = self._stored(inner, channel)
        for axis, (index, first) in enumerate(zip(indices, low, strict=True), start=1):
            if len(index) != voxels.shape[axis] or index[0] != first:
                voxels = np.take(voxels, index - first, axis=axis)
        return voxels

    def inside(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """The stored voxel that a place, perhaps outside, is mirrored to."""
        return tuple(int(mirror_indices(p, p + 1, n)[0]) for p, n in zip(place, self.extent, strict=True))

    def whole(self) -> Box:
        return Box.of_shape(self.extent)

    def sections(self, first: int, stop: int) -> Box:
        """The volume's sections ``first..stop``."""
        return self.whole() if self.section_axis is None else self.part(self.section_axis, first, stop)

    def part(self, axis: int, first: int, stop: int) -> Box:
        """The volume between two places along an axis, which is counted as in ``axes``."""
        start, end = list(self.whole().start), list(self.extent)
        start[axis], end[axis] = first, stop
        return Box(tuple(start), tuple(end))

    def without_single_axes(self, keep: str = "") -> Volume:
        """The volume without leading axes of extent 1, but those to keep: a stack of one section is an image."""
        leading = [axis for axis in self.axes[:-2] if axis not in keep]
        single = [axis for axis in leading if self.array.shape[self.stored_axes.index(axis)] == 1]
        if not single:
            return self
        place = tuple(0 if axis in single else slice(None) for axis in self.stored_axes)
        kept = "".join(axis for axis in self.stored_axes if axis not in single)
        return replace(self, array=_Squeezed(self.array, place), stored_axes=kept)

    def channels_as_sections(self) -> Volume:
        """The volume with channels that are a guess taken for sections: z, and a guessed z before them for t."""
        taken = {"c": "z", "z": "t"}
        if "c" not in self.assumed or any(a in self.stored_axes and a not in self.assumed for a in "tz"):
            return self
        return self._renamed({a: b for a, b in taken.items() if a in self.stored_axes})

    def fitted_to(self, other: Volume) -> Volume:
        """The volume with guessed channels taken for sections, if it has the extent of another one so."""
        taken = self.channels_as_sections()
        return taken if taken.extent == other.extent else self

    def with_axes_of(self, other: Volume) -> Volume:
        """The volume with the letters of another one's axes, where its own are a guess."""
        letters = {a: b for a, b in zip(self.axes, other.axes, strict=False) if a != b}
        if len(self.axes) != len(other.axes) or not set(letters) <= set(self.assumed):
            return self
        return self._renamed(letters)

    def in_memory(self) -> Volume:
        """The same volume, read once."""
        everything = {axis: slice(None) for axis in self.stored_axes}
        return replace(self, array=self._slice(everything, self.whole()))

    def _renamed(self, letters: Mapping[str, str]) -> Volume:
        """Axes under other letters, in the same order; of guessed ones no size is known."""
        stored, assumed = ("".join(letters.get(a, a) for a in axes) for axes in (self.stored_axes, self.assumed))
        return replace(self, stored_axes=stored, assumed=assumed)

    def _by_axis(self, per_stored_axis: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(per_stored_axis[self.stored_axes.index(axis)]) for axis in self.axes)

    def _stored(self, box: Box, channel: int | None) -> NDArray[Any]:
        picks = dict(zip(self.axes, box.slices, strict=True))
        picks["c"] = slice(None) if channel is None else slice(channel, channel + 1)
        order = [self.stored_axes.index(axis) for axis in f"c{self.axes}" if axis in self.stored_axes]
        voxels = self._slice(picks, box).transpose(order)
        return voxels if "c" in self.stored_axes else voxels[np.newaxis]

    def _slice(self, picks: dict[str, slice], box: Box) -> NDArray[Any]:
        """Part of the array, in its own order of axes; damage is told with its place, ``box``."""
        try:
            return np.asarray(self.array[tuple(picks[axis] for axis in self.stored_axes)], self.dtype)
        except MemoryError:
            raise
        except Exception as error:  # codecs raise what they like: zlib.error, RuntimeError, ValueError, OSError..
            raise UnreadableBlock(f"{self.path}: cannot read {describe(box, self.axes)}: {error}") from error


class _Squeezed:
    """An array with some axes fixed at one index; still read lazily."""

    def __init__(self, array: Any, place: tuple[int | slice, ...]) -> None:
        self._array, self._place, self.dtype = array, place, array.dtype
        self.shape = self._left(array.shape)
        self.chunks = self._left(getattr(array, "chunks", array.shape))

    def __getitem__(self, picks: tuple[slice, ...]) -> NDArray[Any]:
        remaining = iter(picks)
        full = tuple(next(remaining) if isinstance(index, slice) else index for index in self._place)
        return np.asarray(self._array[full])

    def _left(self, per_axis: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n for n, index in zip(per_axis, self._place, strict=True) if isinstance(index, slice))


def describe(box: Box, axes: str) -> str:
    """A place for people.

    >>> describe(Box((3, 0), (4, 512)), "zy")
    'z 3:4, y 0:512'
    """
    return ", ".join(f"{axis} {a}:{b}" for axis, a, b in zip(axes, box.start, box.stop, strict=True))


def shape(volume: Volume) -> str:
    """Axes and extent for people."""
    return ", ".join(f"{axis} {n}" for axis, n in zip(volume.axes, volume.extent, strict=True))


def stored_names(array: Any) -> list[str] | None:
    """The axis names that a Zarr array carries, in its own metadata (v3) or xarray's attribute (v2)."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return [str(name or "") for name in names] if isinstance(names, list | tuple) else None


def axes_from_names(path: str, names: list[str] | None, dimensions: int) -> str:
    """Axis letters from stored names, or from the number of axes where nothing is stored."""
    if not names or not any(names):
        if dimensions in UNNAMED:
            return UNNAMED[dimensions]
        raise UnetcliError(
            f"{path}: {dimensions} axes without names; (z,) y, x is assumed for 2 or 3, "
            "more need axis names (OME-Zarr, or dimension_names)"
        )
    letters = "".join(str(name).lower()[:1] for name in names)
    if len(letters) != dimensions or len(set(letters)) != len(letters) or not set("yx") <= set(letters) <= set(AXES):
        raise UnetcliError(f"{path}: axes {', '.join(map(str, names))}; expected y, x and at most one each of t, c, z")
    return letters


def stated_sizes(volume: Volume) -> Sizes:
    """Voxel size along the axes of space; none where all are 1 without unit, which is what says nothing."""
    sizes = {axis: (volume.voxel_size[axis], volume.units.get(axis, "")) for axis in "zyx" if axis in volume.voxel_size}
    return {} if all(size == (1.0, "") for size in sizes.values()) else sizes


def require_same_voxels(one: Volume, other: Volume, otherwise: str) -> None:
    """Refuse two volumes whose voxels have stated sizes that differ; the error ends in what that means.

    Axes that only one of them states, and units that cannot be compared, are passed over.
    """
    sizes, others = stated_sizes(one), stated_sizes(other)
    if any(differ(sizes[axis], others[axis]) for axis in sizes.keys() & others.keys()):
        raise UnetcliError(
            f"{one.path} has voxels of {in_words(sizes)}, but {other.path} of {in_words(others)}: {otherwise}"
        )


def differ(one: tuple[float, str], other: tuple[float, str]) -> bool:
    """Whether two sizes differ, where their units can be compared.

    >>> differ((500, "nanometer"), (0.5, "micrometer")), differ((1, "um"), (500, "nm")), differ((1, "um"), (2, ""))
    (False, True, False)
    """
    (size, unit), (other_size, other_unit) = one, other
    scale, other_scale = METRES.get(unit, math.nan), METRES.get(other_unit, math.nan)
    if unit == other_unit:
        scale = other_scale = 1.0
    sizes = size * scale, other_size * other_scale
    return abs(sizes[0] - sizes[1]) > ALIKE * max(sizes)  # False for units that cannot be compared: NaN


def in_words(sizes: Sizes) -> str:
    """For people, in the order of the axes; the unit once where it is the same.

    >>> in_words({"y": (4.0, "nm"), "x": (4.0, "nm")}), in_words({"z": (0.05, "um"), "x": (4.0, "nm")})
    ('4 x 4 nm', '0.05 um x 4 nm')
    """
    units = {unit for _, unit in sizes.values()}
    if len(units) == 1:
        return f"{' x '.join(f'{size:g}' for size, _ in sizes.values())} {units.pop()}".rstrip()
    return " x ".join(f"{size:g} {unit or '(no unit)'}" for size, unit in sizes.values())


def resolve_region(sections: Sections, roi: Roi | None, volume: Volume) -> Box:
    """The part of a volume that is asked for; all of it where nothing is.

    Raises
    ------
    UnetcliError
        It lies outside, is empty, or is named twice.
    """
    if roi is not None:
        if sections != (None, None):
            raise UnetcliError("--roi and --sections: one of them; --roi names the sections too")
        return _resolve_roi(roi, volume)
    if sections == (None, None):
        return volume.whole()
    if volume.section_axis is None:
        raise UnetcliError(f"--sections: {volume.path} is a single image ({', '.join(volume.axes)})")
    return volume.sections(*resolve_sections(sections, volume.extent[volume.section_axis], volume.path))


def _resolve_roi(roi: Roi, volume: Volume) -> Box:
    """The region of interest, along the last axes that it names."""
    axes = volume.axes
    if len(roi) > len(axes):
        raise UnetcliError(f"--roi: {len(roi)} ranges, {volume.path} has axes {', '.join(axes)}")
    start, stop = list(volume.whole().start), list(volume.extent)
    for place, (first, end) in enumerate(roi, start=len(axes) - len(roi)):
        start[place] = 0 if first is None else first
        stop[place] = volume.extent[place] if end is None else end
        if not 0 <= start[place] < stop[place] <= volume.extent[place]:
            raise UnetcliError(
                f"--roi: {axes[place]} {start[place]}:{stop[place]}, {volume.path} has {axes[place]} "
                f"0:{volume.extent[place]}"
            )
    return Box(tuple(start), tuple(stop))


UNREADABLE = "-"
"""Stands in a fingerprint for a chunk that could not be read."""
SAMPLES = 64
SAMPLED_BYTES = 256 * 2**20
"""At most about this much is read, so that huge chunks do not make every start slow."""
SAMPLED_VOXELS = 2**24
"""At most this many voxels of a chunk are looked at."""


def sampled_boxes(volume: Volume) -> list[Box]:
    """Up to ``SAMPLES`` chunks, evenly spread over the volume in C order; always the same ones."""
    grid = [-(-n // chunk) for n, chunk in zip(volume.extent, volume.chunks, strict=True)]
    total = int(np.prod(grid, dtype=np.int64))
    chunk_bytes = int(np.prod(volume.chunks, dtype=np.int64)) * volume.dtype.itemsize * volume.channels
    count = min(SAMPLES, total, max(1, SAMPLED_BYTES // chunk_bytes))
    places = np.unique(np.linspace(0, total - 1, count, dtype=np.int64))
    return [_chunk(volume, np.unravel_index(place, grid)) for place in places]


def sampled_voxels(volume: Volume) -> Iterator[NDArray[Any] | None]:
    """Voxels of the sampled chunks, (c, *box.shape) each; None where one cannot be read."""
    for box in sampled_boxes(volume):
        try:
            yield volume.read(box)
        except UnreadableBlock:
            yield None


def fingerprint(volume: Volume) -> str:
    """Words: a digest of shape, axes and dtype, then one of each sampled chunk's voxels, ``-`` where unreadable.

    Compared by :func:`same_data`: a chunk that is mended later makes no other volume of it.
    """
    words = [short_checksum(json.dumps([volume.array.shape, volume.stored_axes, str(volume.dtype)]).encode())]
    samples = (UNREADABLE if voxels is None else short_checksum(voxels) for voxels in sampled_voxels(volume))
    return " ".join([*words, *samples])


def same_data(one: str, other: str) -> bool:
    """Whether two fingerprints agree wherever both could be taken.

    >>> same_data("a b -", "a - c"), same_data("a b", "a c")
    (True, False)
    """
    pairs = list(itertools.zip_longest(one.split(), other.split()))
    return all(UNREADABLE in pair or pair[0] == pair[1] for pair in pairs)


def sampled_statistics(volume: Volume, channel: int | None) -> tuple[PerChannel, PerChannel]:
    """Mean and standard deviation of each channel over the sampled chunks, leaving out what is not finite."""
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
