"""Which parts of a volume are not computed: cells of a grid that is fixed to the volume, so that blocks do not show.

Skipped are cells that a mask rules out, and cells that are all dark. What lies in them is stored as background.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import AxisFootprint, Box, Footprint, ceil_to, mirror_indices
from unetcli.planning.plan import Settings
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

CELL = 64
"""Side of a cell along the axes that the network sees; 1 along the others."""
HASHED_SIDE, HASHED_SECTIONS = 2048, 32
"""Voxels a side, and sections, that are looked at together for a mask's fingerprint."""

Cells = NDArray[np.bool_]
"""Which cells of a box of cells are computed."""


def cell_sides(footprint: Footprint) -> tuple[int, ...]:
    """Sides of a cell, per axis."""
    return tuple(1 if axis == AxisFootprint() else CELL for axis in footprint.axes)


def cells_of(box: Box, sides: Sequence[int]) -> Box:
    """The cells that a box of voxels touches.

    >>> cells_of(Box((3, 65), (4, 129)), (1, 64))
    Box(start=(3, 1), stop=(4, 3))
    """
    start = tuple(a // side for a, side in zip(box.start, sides, strict=True))
    return Box(start, tuple(-(-b // side) for b, side in zip(box.stop, sides, strict=True)))


def voxels_of(cells: Box, sides: Sequence[int], extent: Sequence[int]) -> Box:
    """The voxels of a volume that lie in some cells.

    >>> voxels_of(Box((3, 1), (4, 3)), (1, 64), (9, 150))
    Box(start=(3, 64), stop=(4, 150))
    """
    start = tuple(a * side for a, side in zip(cells.start, sides, strict=True))
    stop = tuple(b * side for b, side in zip(cells.stop, sides, strict=True))
    return Box(start, stop).clipped(Box.of_shape(extent))


@dataclass(frozen=True, slots=True, eq=False)
class ActiveCells:
    """Which cells around a block are computed."""

    sides: tuple[int, ...]
    box: Box
    """In cells."""
    cells: Cells

    def __bool__(self) -> bool:
        return bool(self.cells.any())

    def meets(self, box: Box) -> bool:
        """Whether any voxel of a box is computed."""
        return bool(self.cells[cells_of(box, self.sides).relative_to(self.box).slices].any())

    def voxels(self, box: Box) -> NDArray[np.bool_]:
        """The voxels of a box that are computed, ``box.shape``."""
        indices = [
            np.arange(a, b) // side - first
            for a, b, side, first in zip(box.start, box.stop, self.sides, self.box.start, strict=True)
        ]
        return self.cells[np.ix_(*indices)]

    def but(self, cells: Cells) -> ActiveCells:
        """Less those that are not among ``cells``."""
        return ActiveCells(self.sides, self.box, self.cells & cells)


def all_kept(block: Box, sides: tuple[int, ...]) -> ActiveCells:
    """Every cell around a block."""
    box = cells_of(block, sides)
    return ActiveCells(sides, box, np.ones(box.shape, np.bool_))


def bright(voxels: NDArray[Any], box: Box, sides: Sequence[int], threshold: float) -> Cells:
    """The cells of a box of voxels, (c, *box.shape), in which not every value is below a threshold.

    NaN is below nothing: a cell that holds one is not passed over in silence.
    """
    found: NDArray[np.bool_] = np.any(~(voxels < threshold), axis=0)
    spans = [
        [(max(c * side, a) - a, min((c + 1) * side, b) - a) for c in range(a // side, -(-b // side))]
        for a, b, side in zip(box.start, box.stop, sides, strict=True)
    ]
    return any_within(found, spans)


def any_within(values: NDArray[np.bool_], spans: Sequence[Sequence[tuple[int, int]]]) -> NDArray[np.bool_]:
    """Whether any value is true within spans along each axis.

    >>> any_within(np.array([True, False, False, True]), [[(0, 1), (1, 3), (2, 4)]]).tolist()
    [True, False, True]
    """
    for axis, along in enumerate(spans):
        if list(along) != [(i, i + 1) for i in range(values.shape[axis])]:
            before = (slice(None),) * axis
            values = np.stack([values[(*before, slice(a, b))].any(axis=axis) for a, b in along], axis=axis)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A volume that is zero where nothing is computed; as large as the input, or coarser by whole factors."""

    volume: Volume
    extent: tuple[int, ...]
    """Of the input."""
    factors: tuple[int, ...]
    """Voxels of the input to one of the mask, per axis."""
    sides: tuple[int, ...]
    """Of a cell."""

    @classmethod
    def over(cls, volume: Volume, source: Volume, sides: tuple[int, ...]) -> Mask:
        """The mask for an input volume.

        Raises
        ------
        UnetcliError
            It has other axes, or another extent.
        """
        volume = volume.with_axes_of(source)
        if volume.axes != source.axes or volume.channels != 1:
            channels = f" and {volume.channels} channels" if volume.channels > 1 else ""
            raise UnetcliError(
                f"--mask {volume.path}: axes {', '.join(volume.axes)}{channels}; "
                f"expected {', '.join(source.axes)}, as {source.path} has, and one channel"
            )
        factors = tuple(factor(n, m) for n, m in zip(source.extent, volume.extent, strict=True))
        if 0 in factors:
            raise UnetcliError(
                f"--mask {volume.path}: shape {_show(volume.extent)}; expected {_show(source.extent)}, as "
                f"{source.path} has, or coarser by a whole factor along each axis"
            )
        return cls(volume=volume, extent=source.extent, factors=factors, sides=sides)

    def kept(self, block: Box) -> ActiveCells:
        """Which cells around a box of voxels, inside the volume, the mask leaves to be computed."""
        cells = cells_of(block, self.sides)
        spans = [self._spans(axis, a, b) for axis, (a, b) in enumerate(zip(cells.start, cells.stop, strict=True))]
        box = Box(tuple(along[0][0] for along in spans), tuple(along[-1][1] for along in spans))
        inside = [[(a - first, b - first) for a, b in along] for along, first in zip(spans, box.start, strict=True)]
        return ActiveCells(self.sides, cells, any_within(self._nonzero(box), inside))

    def rules_out(self, window: Box) -> NDArray[np.bool_]:
        """The voxels of a window, mirrored where it reaches outside, that lie in no cell left to be computed."""
        indices = [mirror_indices(*side) for side in zip(window.start, window.stop, self.extent, strict=True)]
        kept = self.kept(Box(tuple(int(i.min()) for i in indices), tuple(int(i.max()) + 1 for i in indices)))
        cells = [i // side - first for i, side, first in zip(indices, self.sides, kept.box.start, strict=True)]
        return ~kept.cells[np.ix_(*cells)]

    def fingerprint(self, region: Box) -> str:
        """Hex digest of which cells of a region are left: all that the result depends on, whatever the resolution."""
        digest = Checksum()
        for box in hashed_boxes(cells_of(region, self.sides), self.sides):
            kept = self.kept(voxels_of(box, self.sides, self.extent))
            digest.add(np.packbits(kept.cells))
        return digest.hexdigest()

    def _spans(self, axis: int, first: int, stop: int) -> list[tuple[int, int]]:
        """Along one axis, the mask's voxels that each of the cells ``first..stop`` touches."""
        side, by, last = self.sides[axis], self.factors[axis], self.volume.extent[axis] - 1
        ends = [(cell * side, min((cell + 1) * side, self.extent[axis]) - 1) for cell in range(first, stop)]
        return [(min(a // by, last), min(b // by, last) + 1) for a, b in ends]

    def _nonzero(self, box: Box) -> NDArray[np.bool_]:
        """Where the mask is not zero; read by rows of chunks, so that wide integers take no more memory than a row."""
        chunk, start, stop = self.volume.chunks[-2], box.start[-2], box.stop[-2]
        edges = [start, *range(ceil_to(start + 1, chunk), stop, chunk), stop]
        rows = []
        for a, b in itertools.pairwise(edges):
            row = Box((*box.start[:-2], a, box.start[-1]), (*box.stop[:-2], b, box.stop[-1]))
            rows.append(self.volume.read(row)[0] != 0)
        return np.concatenate(rows, axis=-2)


def open_mask(path: str | None, source: Volume, footprint: Footprint) -> Mask | None:
    """The mask at a path for an input volume, or None where there is none."""
    return None if path is None else Mask.over(open_volume(path), source, cell_sides(footprint))


def factor(extent: int, coarse: int) -> int:
    """Voxels to one, where ``coarse`` are ``extent`` taken together by a whole factor; 0 where no factor gives that.

    Pyramids drop what is left over at the end, or have one voxel more for it; few voxels may fit several factors, of
    which a power of two, or one without a rest, or the smallest is meant.

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
    """A box of cells in pieces that a mask is looked at in, in C order."""
    steps = [1] * len(sides)
    steps[-2:] = [HASHED_SIDE // side for side in sides[-2:]]
    if len(sides) > 2:
        steps[-3] = max(1, HASHED_SECTIONS // sides[-3])
    corners = [range(a, b, step) for a, b, step in zip(cells.start, cells.stop, steps, strict=True)]
    for corner in itertools.product(*corners):
        yield Box(corner, tuple(a + step for a, step in zip(corner, steps, strict=True))).clipped(cells)


def background(settings: Settings) -> NDArray[Any]:
    """What is stored of a voxel that is not computed, (outputs,): no foreground; of several classes, the first."""
    values = np.zeros(settings.outputs, settings.dtype)
    if settings.outputs > 1:
        values[0] = 255 if settings.dtype == "uint8" else 1
    return values


def _show(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
