"""Resampling between two grids of voxels with one origin: linear interpolation, or averages when shrinking.

A resampled voxel depends on its index alone, so that any box of them has the same values, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Box

MOST = 16
"""Largest factor between the sides of the voxels of two grids."""
NEGLIGIBLE = 1e-6
"""Part of a voxel that does not count; sizes in files are rounded more than that."""

Pixels = NDArray[np.float32]


def exact_size(size: float) -> float:
    """A ratio of voxel sizes without the rounding errors of a conversion of units.

    >>> exact_size(0.008 / 0.004 * (1 + 1e-9)), exact_size(1.2345)
    (2.0, 1.2345)
    """
    near = float(Fraction(size).limit_denominator(1000))
    return near if abs(near - size) < NEGLIGIBLE * size else size


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """Voxels along one axis from which each resampled voxel is computed, and their weights, which add up to 1."""

    index: NDArray[np.intp]
    """(n, taps), intp."""
    weight: Pixels
    """(n, taps), float32."""

    @property
    def span(self) -> slice:
        """The voxels that are needed."""
        return slice(int(self.index.min()), int(self.index.max()) + 1)

    def __call__(self, voxels: NDArray[Any], axis: int) -> Pixels:
        """Resample voxels along an axis, which begin at the start of ``span``: float32.

        Products are added one after the other, so that the order of rounding does not depend on the box.
        """
        shape, first = [1] * voxels.ndim, self.span.start
        shape[axis] = len(self.index)
        found: Pixels = np.zeros((), np.float32)
        for place, weight in zip(self.index.T, self.weight.T, strict=True):
            found = found + np.take(voxels, place - first, axis=axis) * weight.reshape(shape)
        return found


def taps(start: int, stop: int, size: float, extent: int) -> Taps:
    """The voxels and weights of the resampled voxels ``start..stop`` along an axis.

    Voxel i of the resampled grid covers ``i * size`` to ``(i + 1) * size``. If it is larger than a voxel, its value is
    the mean of what it covers; else it is interpolated between the two nearest centres. At the edges of the volume, the
    value at the edge continues.

    Parameters
    ----------
    start, stop
        Half-open range of resampled voxels, not empty.
    size
        Side of a resampled voxel, in voxels.
    extent
        Number of voxels.

    Examples
    --------
    >>> taps(0, 2, 2, 3).weight.tolist()  # the second voxel covers only the last one
    [[0.5, 0.5], [1.0, 0.0]]
    >>> taps(0, 2, 0.5, 3).weight.tolist(), taps(0, 2, 0.5, 3).index.tolist()
    ([[1.0, 0.0], [0.75, 0.25]], [[0, 0], [0, 1]])
    """
    low = np.arange(start, stop)[:, np.newaxis] * float(size)
    if size >= 1:
        index = np.floor(low + NEGLIGIBLE) + np.arange(math.ceil(size) + 1)
        ends = np.minimum(np.minimum(low + size, index + 1), extent)
        weight = ends - np.maximum(low, index)
    else:
        place = np.clip(low + (size - 1) / 2, 0, extent - 1)  # of the centre
        index = np.floor(place) + np.arange(2)
        weight = np.maximum(1 - np.abs(place - index), 0)
    weight[weight < NEGLIGIBLE] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    heaviest = np.take_along_axis(index, weight.argmax(axis=1, keepdims=True), axis=1)
    index = np.where(weight > 0, index, heaviest).astype(np.intp)  # what has no weight may hold NaN, and is not read
    used = int(np.max(np.nonzero(weight)[1])) + 1
    return Taps(index[:, :used], weight[:, :used].astype(np.float32))


def resampled_extent(extent: int, size: float) -> int:
    """Number of resampled voxels that cover ``extent`` voxels.

    >>> resampled_extent(5, 2.0), resampled_extent(5, 0.5), resampled_extent(1, 4.0)
    (3, 10, 1)
    """
    return max(1, math.ceil(extent / size - NEGLIGIBLE))


def resample(
    read: Callable[[tuple[slice, ...]], NDArray[Any]],
    selection: Sequence[slice],
    sizes: Sequence[float],
    extents: Sequence[int],
) -> Pixels:
    """A part of a resampled array, float32.

    Parameters
    ----------
    read
        Reads a part of the array; it is called once, with the part that is needed.
    selection
        Half-open ranges of resampled voxels, with a start and a stop.
    sizes
        Side of a resampled voxel along each axis, in voxels of the array.
    extents
        Shape of the array.
    """
    along = {
        axis: taps(part.start, part.stop, size, extent)
        for axis, (part, size, extent) in enumerate(zip(selection, sizes, extents, strict=True))
        if size != 1
    }
    needed = tuple(along[axis].span if axis in along else part for axis, part in enumerate(selection))
    voxels: Pixels = read(needed).astype(np.float32)
    for axis, tap in along.items():
        voxels = tap(voxels, axis)
    return voxels


@dataclass(frozen=True, slots=True)
class Rescaling:
    """The grid of a volume, and one of voxels of another size that covers the same volume."""

    extent: tuple[int, ...]
    """Shape of the volume."""
    sizes: tuple[float, ...]
    """Side of a resampled voxel along each axis, in voxels of the volume."""

    @property
    def resampled(self) -> tuple[int, ...]:
        """Shape of the resampled volume."""
        return tuple(map(resampled_extent, self.extent, self.sizes))

    def needed(self, box: Box) -> Box:
        """Resampled voxels from which a box of the volume follows; see :meth:`mapped_back`."""
        rows = zip(box.start, box.stop, self.sizes, self.resampled, strict=True)
        sides = [(a, b) if size == 1 or a == b else _reach(a, b, size, extent) for a, b, size, extent in rows]
        return Box(tuple(a for a, _ in sides), tuple(b for _, b in sides))

    def affected(self, box: Box) -> Box:
        """Box of the volume that contains all voxels that depend on a box of resampled voxels."""
        sides = [
            (a, b) if size == 1 else (math.floor((a - 1) * size) - 1, math.ceil((b + 1) * size) + 1)
            for a, b, size in zip(box.start, box.stop, self.sizes, strict=True)
        ]
        return Box(tuple(a for a, _ in sides), tuple(b for _, b in sides)).clipped(Box.of_shape(self.extent))

    def mapped_back(self, values: Pixels, box: Box) -> Pixels:
        """Values (c, *box.shape) of a box of the volume, from those of the resampled voxels ``needed(box)``."""
        held, inverse = self.needed(box), tuple(1 / size for size in self.sizes)
        return resample(
            lambda needed: values[(slice(None), *(_moved(s, -a) for s, a in zip(needed[1:], held.start, strict=True)))],
            (slice(0, len(values)), *box.slices),
            (1.0, *inverse),
            (len(values), *self.resampled),
        )


def _reach(start: int, stop: int, size: float, resampled: int) -> tuple[int, int]:
    """Range of the resampled voxels that the voxels ``start..stop`` of the volume depend on."""
    first, last = (taps(place, place + 1, 1 / size, resampled).span for place in (start, stop - 1))
    return first.start, last.stop


def _moved(part: slice, offset: int) -> slice:
    return slice(part.start + offset, part.stop + offset)
