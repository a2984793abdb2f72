"""Skipping parts of a volume: cells that a mask excludes, and dark cells, are not computed but stored as background.

The grid of cells is fixed to the volume, so that the result does not depend on the blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum
from unetcli.core.errors import UnetcliError, format_shape
from unetcli.core.geometry import AxisFootprint, Box, Footprint, ceil_to, mirror_indices
from unetcli.planning.plan import Settings
from unetcli.volumes.opening import open_volume
from unetcli.volumes.places import format_sizes, in_one_unit, sizes_differ, stated_sizes
from unetcli.volumes.volume import Volume

CELL = 64
"""Side of a cell, in voxels, along the axes that the network convolves; 1 along the others."""
READ_VOXELS = 2**22
"""Approximate voxels of a mask that are read at a time."""
HASHED_SIDE, HASHED_SECTIONS = 2048, 32
"""In-plane side in voxels, and sections, of the parts in which a mask is read for its fingerprint."""

Cells = NDArray[np.bool_]
"""Mask over a box of cells: True for each cell that is computed."""


def cell_sides(footprint: Footprint) -> tuple[int, ...]:
    """Side of a cell along each axis, in voxels."""
    return tuple(1 if axis == AxisFootprint() else CELL for axis in footprint.axes)


def cells_of(box: Box, sides: Sequence[int]) -> Box:
    """Box of the cells that a box of voxels overlaps.

    >>> cells_of(Box((3, 65), (4, 129)), (1, 64))
    Box(start=(3, 1), stop=(4, 3))
    """
    start = tuple(a // side for a, side in zip(box.start, sides, strict=True))
    return Box(start, tuple(-(-b // side) for b, side in zip(box.stop, sides, strict=True)))


def voxels_of(cells: Box, sides: Sequence[int], extent: Sequence[int]) -> Box:
    """Box of the voxels of a volume that lie in a box of cells.

    >>> voxels_of(Box((3, 1), (4, 3)), (1, 64), (9, 150))
    Box(start=(3, 64), stop=(4, 150))
    """
    start = tuple(a * side for a, side in zip(cells.start, sides, strict=True))
    stop = tuple(b * side for b, side in zip(cells.stop, sides, strict=True))
    return Box(start, stop).clipped(Box.of_shape(extent))


@dataclass(frozen=True, slots=True, eq=False)
class ActiveCells:
    """The cells around a block, and which of them are computed."""

    sides: tuple[int, ...]
    """Sides of a cell, in voxels."""
    box: Box
    """Position in the grid of cells."""
    cells: Cells
    """box.shape, bool: True for each cell that is computed."""

    def __bool__(self) -> bool:
        return bool(self.cells.any())

    def overlaps(self, box: Box) -> bool:
        """Whether any voxel of a box is computed."""
        return bool(self.cells[cells_of(box, self.sides).relative_to(self.box).slices].any())

    def voxels(self, box: Box) -> NDArray[np.bool_]:
        """Mask of the voxels of a box that are computed, ``box.shape``."""
        indices = [
            np.arange(a, b) // side - first
            for a, b, side, first in zip(box.start, box.stop, self.sides, self.box.start, strict=True)
        ]
        return self.cells[np.ix_(*indices)]

    def intersection(self, cells: Cells) -> ActiveCells:
        """The cells that are also in ``cells``, a mask of the same shape."""
        return ActiveCells(self.sides, self.box, self.cells & cells)


def all_active(block: Box, sides: tuple[int, ...]) -> ActiveCells:
    """All cells around a block."""
    box = cells_of(block, sides)
    return ActiveCells(sides, box, np.ones(box.shape, np.bool_))


def bright_cells(voxels: NDArray[Any], box: Box, sides: Sequence[int], threshold: float) -> Cells:
    """Cells in which a value reaches the threshold.

    NaN is not below any threshold, so a cell with NaN is not skipped and the NaN is reported.

    Parameters
    ----------
    voxels : (c, *box.shape)
        Grey values of whole cells.
    box : Box
        Position of the voxels in the volume.
    sides : voxels
        Sides of a cell.
    threshold : grey value

    Returns
    -------
    (cells along each axis of the box), bool
    """
    found: NDArray[np.bool_] = np.any(~(voxels < threshold), axis=0)
    spans = [
        [(max(c * side, a) - a, min((c + 1) * side, b) - a) for c in range(a // side, -(-b // side))]
        for a, b, side in zip(box.start, box.stop, sides, strict=True)
    ]
    return any_within(found, spans)


def any_within(values: NDArray[np.bool_], spans: Sequence[Sequence[tuple[int, int]]]) -> NDArray[np.bool_]:
    """Whether any value is True within spans along each of the first axes; spans may overlap.

    >>> any_within(np.array([True, False, False, True]), [[(0, 1), (1, 3), (2, 4)]]).tolist()
    [True, False, True]
    """
    for axis, along in enumerate(spans):
        if not _are_single(along, values.shape[axis]):
            values = _any_along(values, axis, along)
    return values


def _are_single(spans: Sequence[tuple[int, int]], n: int) -> bool:
    """Whether spans are the single positions of an axis, one after the other."""
    return list(spans) == [(i, i + 1) for i in range(n)]


def _any_along(values: NDArray[np.bool_], axis: int, spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Whether any value is True within spans along one axis."""
    along = np.moveaxis(values, axis, 0)
    return np.stack([along[a:b].any(axis=0) for a, b in spans], axis=axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Volume that is 0 in the parts to skip; its voxels are those of the input, or whole factors larger or smaller."""

    volume: Volume
    extent: tuple[int, ...]
    """Extent of the input, in voxels."""
    factors: tuple[Fraction, ...]
    """Voxels of the input per voxel of the mask, along each axis; a half if the mask is twice as fine."""
    sides: tuple[int, ...]
    """Sides of a cell, in voxels of the input."""

    @classmethod
    def over(cls, volume: Volume, source: Volume, sides: tuple[int, ...]) -> Mask:
        """Create the mask of an input volume.

        Raises
        ------
        UnetcliError
            The mask has other axes than the input, several channels, or voxels or an extent that do not fit.
        """
        volume = volume.channels_as_sections().with_axes_of(source).with_sections_of(source)
        volume = volume.with_single_axes_of(source)
        if volume.axes != source.axes or volume.channels != 1:
            channels = f" and {volume.channels} channels" if volume.channels > 1 else ""
            raise UnetcliError(
                f"--mask {volume.path}: axes {', '.join(volume.axes)}{channels}; "
                f"expected {', '.join(source.axes)} (as in {source.path}) and one channel"
            )
        factors = mask_factors(volume, source)
        if 0 in factors:
            raise UnetcliError(
                f"--mask {volume.path}: shape {_grid(volume)}; expected {_grid(source)} (as in {source.path}), or "
                "larger or smaller voxels by a whole factor along each axis, over the same extent"
            )
        return cls(volume=volume, extent=source.extent, factors=factors, sides=sides)

    def active_cells(self, block: Box) -> ActiveCells:
        """The cells around a box of voxels inside the volume; those with a nonzero voxel of the mask are computed."""
        cells = cells_of(block, self.sides)
        spans = [self._spans(axis, a, b) for axis, (a, b) in enumerate(zip(cells.start, cells.stop, strict=True))]
        box = Box(tuple(along[0][0] for along in spans), tuple(along[-1][1] for along in spans))
        inside = [[(a - first, b - first) for a, b in along] for along, first in zip(spans, box.start, strict=True)]
        return ActiveCells(self.sides, cells, any_within(self._nonzero(box, inside[-1]), inside[:-1]))

    def excluded(self, window: Box) -> NDArray[np.bool_]:
        """Mask of the voxels of a window, ``window.shape``, whose cell is not computed; mirrored outside the volume."""
        indices = [mirror_indices(*side) for side in zip(window.start, window.stop, self.extent, strict=True)]
        box = Box(tuple(int(i.min()) for i in indices), tuple(int(i.max()) + 1 for i in indices))
        active = self.active_cells(box)
        cells = [i // side - first for i, side, first in zip(indices, self.sides, active.box.start, strict=True)]
        return ~active.cells[np.ix_(*cells)]

    def fingerprint(self, region: Box) -> str:
        """Hex digest of the active cells of a region; the same for masks of any resolution that select these cells."""
        digest = Checksum()
        for box in hashed_boxes(cells_of(region, self.sides), self.sides):
            digest.add(np.packbits(self.active_cells(voxels_of(box, self.sides, self.extent)).cells))
        return digest.hexdigest()

    def _spans(self, axis: int, first: int, stop: int) -> list[tuple[int, int]]:
        """Half-open ranges of the mask's voxels under each of the cells ``first..stop`` of one axis."""
        side, end, extent = self.sides[axis], self.extent[axis], self.volume.extent[axis]
        coarse, fine = self.factors[axis].as_integer_ratio()
        ends = [(fine * cell * side, fine * min((cell + 1) * side, end)) for cell in range(first, stop)]
        return [(min(a // coarse, extent - 1), min(-(-b // coarse), extent)) for a, b in ends]

    def _nonzero(self, box: Box, spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
        """Whether any voxel of the mask is nonzero in each row of a box, within spans along the last axis.

        A few rows of chunks are read at a time to save memory.
        """
        start, stop, single = box.start[-2], box.stop[-2], _are_single(spans, box.shape[-1])
        step = ceil_to(max(1, READ_VOXELS * box.shape[-2] // box.size), self.volume.chunks[-2])
        edges = [start, *range(ceil_to(start + 1, step), stop, step), stop]
        rows = []
        for a, b in itertools.pairwise(edges):
            row = Box((*box.start[:-2], a, box.start[-1]), (*box.stop[:-2], b, box.stop[-1]))
            found = self.volume.read(row)[0] != 0
            rows.append(found if single else _any_along(found, -1, spans))
        return np.concatenate(rows, axis=-2)


def open_mask(path: str | None, source: Volume, footprint: Footprint) -> Mask | None:
    """Open the mask of an input volume; None if there is no path.

    Raises
    ------
    UnetcliError
        The mask cannot be opened or does not fit the volume, see :meth:`Mask.over`.
    """
    return None if path is None else Mask.over(open_volume(path), source, cell_sides(footprint))


def mask_factors(mask: Volume, source: Volume) -> tuple[Fraction, ...]:
    """Voxels of an input per voxel of its mask, along each axis; 0 if no whole factor, or one over it, fits.

    They follow from the voxel sizes that both state, as two levels of an image do, and else from the extents. Voxels
    without a stated size may have the size 1, as those of the finest level of an image whose unit is its pixel. Volumes
    of the same extent are paired voxel by voxel.
    """
    if mask.extent == source.extent:
        return (Fraction(1),) * len(source.extent)
    sizes, others = stated_sizes(source), stated_sizes(mask)
    found = []
    for axis, extent, masked in zip(source.axes, source.extent, mask.extent, strict=True):
        own, other = in_one_unit(sizes.get(axis, (1.0, "")), others.get(axis, (1.0, "")))
        comparable = own > 0 and other > 0  # NaN is not
        by = factor_of_sizes(own, other, extent, masked) if comparable else Fraction(0)
        if not by and not (comparable and axis in sizes and axis in others):
            by = Fraction(factor(extent, masked))
        found.append(by)
    return tuple(found)


def factor_of_sizes(size: float, other: float, extent: int, masked: int) -> Fraction:
    """Factor between the voxel sizes of an input and its mask; 0 if it is not whole or the extents contradict it.

    >>> factor_of_sizes(4, 16, 1001, 250), factor_of_sizes(8, 4, 500, 1001), factor_of_sizes(4, 6, 30, 20)
    (Fraction(4, 1), Fraction(1, 2), Fraction(0, 1))
    """
    by = round(max(other / size, size / other))
    coarse, fine = (by, 1) if other >= size else (1, by)
    whole = not sizes_differ((other * fine, ""), (size * coarse, ""))
    return Fraction(coarse, fine) if whole and abs(extent * fine - masked * coarse) < by else Fraction(0)


def _grid(volume: Volume) -> str:
    """Shape and, if stated, voxel size of a volume, for the user."""
    sizes = stated_sizes(volume)
    return format_shape(volume.extent) + (f" in voxels of {format_sizes(sizes)}" if sizes else "")


def factor(extent: int, coarse: int) -> int:
    """Downsampling factor that makes ``coarse`` voxels of ``extent``; 0 if no whole factor does.

    A remainder at the end may be dropped or be one more voxel. If several factors fit, a power of two is preferred,
    then a factor without remainder, then the smallest.

    >>> [factor(1000, n) for n in (1000, 500, 333, 334, 600)]
    [1, 2, 3, 3, 0]
    >>> factor(1001, 500), factor(1001, 501), factor(7, 2)
    (2, 2, 4)
    """
    if coarse == 1:
        return extent
    fitting = range(extent // (coarse + 1) + 1, (extent - 1) // (coarse - 1) + 1)
    return min(fitting, key=lambda n: (n & (n - 1) != 0, extent != n * coarse, n), default=0)


def hashed_boxes(cells: Box, sides: Sequence[int]) -> Iterator[Box]:
    """Parts of a box of cells, in C order, in which a mask is read for its fingerprint."""
    steps = [1] * len(sides)
    steps[-2:] = [HASHED_SIDE // side for side in sides[-2:]]
    if len(sides) > 2:
        steps[-3] = max(1, HASHED_SECTIONS // sides[-3])
    corners = [range(a, b, step) for a, b, step in zip(cells.start, cells.stop, steps, strict=True)]
    for corner in itertools.product(*corners):
        yield Box(corner, tuple(a + step for a, step in zip(corner, steps, strict=True))).clipped(cells)


def background(settings: Settings) -> NDArray[Any]:
    """Stored values (outputs,) of a voxel that is not computed: foreground probability 0, or class 0 with certainty."""
    values = np.zeros(settings.outputs, settings.dtype)
    if settings.outputs > 1:
        values[0] = 255 if settings.dtype == "uint8" else 1
    return values
