"""Watershed of the distance map or the probability, block by block, with the result of the whole volume at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.geometry import Box
from unetcli.label.objects import in_order, is_foreground, neighbourhood, neighbours
from unetcli.label.plan import Settings

STEPS = {"distance": 16, "probability": 4096}
"""Heights are integers: this many steps per voxel of distance, or per unit of probability."""
GAUSSIAN_WIDTHS = 4.0
"""Radius at which the Gaussian is truncated, in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Computes heights from probabilities: the map upside down, so that objects are valleys, separated by passes."""

    axes: str
    voxel_size: tuple[float, ...]
    settings: Settings

    @functools.cached_property
    def touching(self) -> NDArray[np.bool_]:
        """Structuring element of the connectivity."""
        return neighbourhood(self.axes, self.settings.connectivity, three_d=self.settings.three_d)

    @property
    def joined(self) -> tuple[int, ...]:
        """Indices of the axes along which voxels can be neighbours."""
        return tuple(i for i, axis in enumerate(self.axes) if axis in ("zyx" if self.settings.three_d else "yx"))

    @property
    def sampling(self) -> tuple[float, ...]:
        """Voxel size along each joined axis, relative to the smallest; multiples of 1/16, to have integer squares."""
        sizes = [self.voxel_size[i] for i in self.joined]
        return tuple(round(size / min(sizes) * STEPS["distance"]) / STEPS["distance"] for size in sizes)

    @property
    def support(self) -> tuple[int, ...]:
        """Number of voxels on each side, along each axis, that a height depends on."""
        if self.settings.landscape == "distance":
            sides = [math.ceil(self.settings.reach / size) for size in self.sampling]
        else:
            sides = [int(GAUSSIAN_WIDTHS * self.settings.smoothing + 0.5)] * len(self.joined)
        return tuple(sides[self.joined.index(i)] if i in self.joined else 0 for i in range(len(self.axes)))

    @property
    def depth(self) -> float:
        """Smallest depth of a separate object, in units of height."""
        return self.settings.depth * STEPS[self.settings.landscape]

    def heights(self, probability: NDArray[Any], foreground: NDArray[np.bool_], inner: Box) -> NDArray[np.uint16]:
        """Heights in the part ``inner`` of the arrays, which extend ``support`` further, or to the volume's edge."""
        if self.settings.landscape == "distance":
            distance = np.sqrt(self._squares(foreground)[inner.slices], dtype=np.float32)
            return (self.settings.reach * STEPS["distance"] - np.rint(distance)).astype(np.uint16)
        smooth = self._smooth(probability)[inner.slices]
        return np.rint((1 - smooth) * STEPS["probability"]).astype(np.uint16)

    def _squares(self, foreground: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Squared distances to the background in steps, at most ``reach``; no background outside the volume."""
        from unetcli.label.kernels import distance_pass

        square = np.where(foreground, np.int32((self.settings.reach * STEPS["distance"]) ** 2), np.int32(0))
        for place, size in zip(self.joined, self.sampling, strict=True):
            lines = square.reshape(math.prod(square.shape[:place]), square.shape[place], -1)
            distance_pass(lines, round(size * STEPS["distance"]) ** 2)
        return square

    def _smooth(self, probability: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities from 0 to 1, smoothed within sections, or in three dimensions also along z."""
        scale = 255 if probability.dtype == np.uint8 else 1
        values = probability.astype(np.float64) / scale
        sigma = [self.settings.smoothing if i in self.joined else 0.0 for i in range(len(self.axes))]
        smooth: NDArray[np.float64] = ndimage.gaussian_filter(values, sigma, mode="mirror", truncate=GAUSSIAN_WIDTHS)
        return np.clip(smooth, 0, 1)


CELL_BITS = 5
"""Plateaus are divided into cells of 2^5 = 32 voxels a side with one minimum each, so that descents stay short."""
MARGIN = 32
"""Voxels around a block in which descents are followed; doubled as long as one leads further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basins:
    """Watershed of one block: the regions of its voxels, and the passes that are left to the merge."""

    labels: NDArray[np.int32]
    """Labels of the block's own voxels: 0 for background, else 1 + index of the region in ``names``."""
    count: int
    """Number of regions with voxels in the block; later ones in ``names`` are only mentioned by passes."""
    names: NDArray[np.int64]
    """Flat index of each region's minimum in the volume, in C order."""
    lowest: NDArray[np.int64]
    """Height of each minimum."""
    ends: NDArray[np.int64]
    """(n, 2) regions that meet at each pass."""
    height: NDArray[np.int64]
    """(n,) height of each pass."""
    order: NDArray[np.int64]
    """(n, 2) names of the two basins at each pass, by which passes of equal height are ordered."""


Read = Callable[[Box], NDArray[Any]]
"""Reads the stored probabilities of a box of the volume."""


def separate_section(
    probability: NDArray[Any],
    threshold: float = 0.5,
    *,
    depth: float = 1.5,
    landscape: str = "distance",
    connectivity: int = 4,
    min_size: int = 0,
) -> NDArray[np.int32]:
    """Instances of one section, with touching objects separated, as by ``label --method watershed``.

    Parameters
    ----------
    probability : (y, x), float or bool; or uint8 for value / 255
        Probability of foreground.
    depth : pixels, or probability
        Two objects are separate if their pass lies at least this far below both peaks.
    landscape : "distance" or "probability"
        Map that the watershed floods.
    connectivity : 4 or 8
        With 8, pixels that meet at a corner are neighbours too.
    min_size : pixels
        Smaller objects become background.

    Returns
    -------
    (y, x), int32
        0 is background; objects are numbered 1, 2, .. by their first pixel in C order.
    """
    settings = Settings(
        method="watershed", threshold=threshold, depth=depth, landscape=landscape, connectivity=connectivity
    )
    return in_order(separate(probability, Landscape(axes="yx", voxel_size=(1.0, 1.0), settings=settings)), min_size)


def separate(probability: NDArray[Any], land: Landscape) -> NDArray[np.int32]:
    """Watershed of a whole array; labels are in unspecified order."""
    whole = Box.of_shape(probability.shape)
    return find_basins(land, whole, whole, whole, lambda box: probability[box.slices]).labels


@dataclass(frozen=True, slots=True)
class Descents:
    """Minima at which the descents from all voxels of a box end."""

    basins: NDArray[np.int64]
    """Basin of each voxel, as an index in ``names``; -1 for background."""
    height: NDArray[np.uint16]
    """Height of each voxel."""
    names: NDArray[np.int64]
    """Flat index of each minimum in the volume, in C order; ascending."""
    lowest: NDArray[np.int64]
    """Height of each minimum."""


def find_basins(land: Landscape, own: Box, extended: Box, whole: Box, read: Read) -> Basins:
    """Basins of a block ``own``; ``extended`` adds the layer of voxels after it, ``whole`` is the volume."""
    margin = MARGIN
    while True:
        window = extended.grown(tuple(margin * (i in land.joined) for i in range(len(own.start)))).clipped(whole)
        if (paths := find_descents(land, window, extended, whole, read)) is not None:
            return join_within_block(land, own, extended, paths)
        margin *= 2


def find_descents(land: Landscape, window: Box, extended: Box, whole: Box, read: Read) -> Descents | None:
    """Descents from the voxels of ``extended``; None if one leaves the window."""
    from unetcli.label.kernels import follow_descents, lowest_neighbours

    outer = window.grown(land.support).clipped(whole)
    inner, probability = window.relative_to(outer), read(outer)
    foreground = is_foreground(probability, land.settings.threshold)
    height = land.heights(probability, foreground, inner)
    rank = ranks(height, foreground[inner.slices], window, land)
    below = np.empty(rank.shape, np.int64)
    lowest_neighbours(rank.ravel(), flat_steps(land, rank.shape), below.ravel())
    end_at_borders(below, window, whole, land)
    follow_descents(below.ravel())
    part = extended.relative_to(window)
    ends = below[unpadded(land, window)][part.slices]
    return _numbered(ends, height, window, part, whole, land)


def ranks(height: NDArray[np.uint16], foreground: NDArray[np.bool_], window: Box, land: Landscape) -> NDArray[Any]:
    """Ranks of the voxels of a window, different for neighbours, padded with background.

    Voxels are ranked by height, then by position in a cell of a grid that is fixed to the volume.
    """
    from unetcli.label.kernels import BACKGROUND

    place = np.zeros((1,) * height.ndim, np.uint32)
    for i in land.joined:
        along = np.arange(window.start[i], window.stop[i], dtype=np.uint32) % 2**CELL_BITS
        place = (place << CELL_BITS) + along.reshape([-1 if axis == i else 1 for axis in range(height.ndim)])
    rank = (height.astype(np.uint32) << (CELL_BITS * 3)) + place.astype(np.uint32)
    rank[~foreground] = BACKGROUND
    padding = [(1, 1) if i in land.joined else (0, 0) for i in range(height.ndim)]
    return np.pad(rank, padding, constant_values=BACKGROUND)


def flat_steps(land: Landscape, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Steps to all neighbours in a flattened array of this shape."""
    strides = np.cumprod((1, *shape[:0:-1]))[::-1]
    half = np.array(neighbours(land.touching)) @ strides
    return np.concatenate([-half, half])


def unpadded(land: Landscape, window: Box) -> tuple[slice, ...]:
    """Slices of the window in its padded array."""
    return tuple(slice(1, n + 1) if i in land.joined else slice(None) for i, n in enumerate(window.shape))


def end_at_borders(below: NDArray[np.int64], window: Box, whole: Box, land: Landscape) -> None:
    """End descents at the borders of the window beyond which the volume continues."""
    here = np.arange(below.size).reshape(below.shape)
    for border in borders(window, whole, land):
        layer = tuple(
            s if i != border[0] else slice(border[1] + 1, border[1] + 2) for i, s in enumerate(unpadded(land, window))
        )
        below[layer] = np.where(below[layer] >= 0, here[layer], -1)


def borders(window: Box, whole: Box, land: Landscape) -> list[tuple[int, int]]:
    """Axis and index of the outer layers of the window beyond which the volume continues."""
    first = [(i, 0) for i in land.joined if window.start[i] > whole.start[i]]
    last = [(i, window.shape[i] - 1) for i in land.joined if window.stop[i] < whole.stop[i]]
    return first + last


def _numbered(
    ends: NDArray[np.int64], height: NDArray[np.uint16], window: Box, part: Box, whole: Box, land: Landscape
) -> Descents | None:
    """Number the end points, which are flat indices in the padded window; None if one lies at a border."""
    pads = [2 if i in land.joined else 0 for i in range(height.ndim)]
    padded = tuple(n + pad for n, pad in zip(window.shape, pads, strict=True))
    found = np.zeros(int(np.prod(padded)), np.bool_)
    found[ends[ends >= 0]] = True
    minima = np.flatnonzero(found)
    place = [index - pad // 2 for index, pad in zip(np.unravel_index(minima, padded), pads, strict=True)]
    if any((place[axis] == layer).any() for axis, layer in borders(window, whole, land)):
        return None
    number = np.full(found.size + 1, -1, np.int64)
    number[minima] = np.arange(len(minima))
    in_volume = tuple(index + start for index, start in zip(place, window.start, strict=True))
    return Descents(
        basins=number[ends],  # -1, the background, selects the last entry
        height=height[part.slices],
        names=np.ravel_multi_index(in_volume, whole.stop).astype(np.int64),
        lowest=height[tuple(place)].astype(np.int64),
    )


def join_within_block(land: Landscape, own: Box, extended: Box, paths: Descents) -> Basins:
    """Join the basins that belong to one object, as far as the block alone decides it; defer the other passes."""
    from unetcli.label.kernels import regions_of

    ends, height = passes(paths, neighbours(land.touching))
    region, deferred = regions_of(ends, height, paths.lowest, may_extend(land, own, extended, paths), land.depth)
    own_basins = paths.basins[own.relative_to(extended).slices]
    inside = np.zeros(len(region) + 1, np.bool_)
    inside[np.append(region, -1)[own_basins]] = True
    inside[-1] = False
    first = np.flatnonzero(inside)
    left = region[ends[deferred]]
    beyond = np.setdiff1d(left, first)
    number = np.full(len(region) + 1, -1, np.int64)
    kept = np.concatenate([first, beyond]).astype(np.int64)
    number[kept] = np.arange(len(kept))
    return Basins(
        labels=(number[np.append(region, -1)[own_basins]] + 1).astype(np.int32),
        count=len(first),
        names=paths.names[kept],
        lowest=paths.lowest[kept],
        ends=number[left],
        height=height[deferred],
        order=paths.names[ends[deferred]],
    )


def may_extend(land: Landscape, own: Box, extended: Box, paths: Descents) -> NDArray[np.bool_]:
    """Whether each basin may extend beyond the block, or have passes there."""
    first = tuple(a + 1 if i in land.joined and a > 0 else a for i, a in enumerate(own.start))
    inner = Box(tuple(map(min, first, own.stop)), own.stop)
    rim = paths.basins.copy()
    rim[inner.relative_to(extended).slices] = -1
    found = np.zeros(len(paths.names) + 1, np.bool_)
    found[rim] = True
    return found[:-1]


def passes(paths: Descents, steps: Sequence[tuple[int, ...]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of touching basins, (n, 2), and the height of each pair's lowest pass, (n,); in ascending order."""
    found = []
    for step in steps:
        here = tuple(slice(max(0, -d), min(0, -d) or None) for d in step)
        there = tuple(slice(max(0, d), min(0, d) or None) for d in step)
        a, b = paths.basins[here], paths.basins[there]
        across = (a != b) & (a >= 0) & (b >= 0)
        height = np.maximum(paths.height[here][across], paths.height[there][across])
        a, b = a[across], b[across]
        found.append(np.stack([height.astype(np.int64), np.minimum(a, b), np.maximum(a, b)]))
    height, low, high = np.concatenate(found, axis=1)
    order = np.lexsort((height, high, low))
    height, low, high = height[order], low[order], high[order]
    lowest = np.ones(len(low), np.bool_)
    lowest[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    height, low, high = height[lowest], low[lowest], high[lowest]
    order = np.lexsort((high, low, height))
    return np.stack([low, high], axis=1)[order], height[order]
