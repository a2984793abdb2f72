"""The watershed of the distance map or the probability, block by block as of the whole volume."""

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
"""Heights are integers: so many to a voxel of distance, or to a probability of 1."""
GAUSSIAN_WIDTHS = 4.0
"""Where the Gaussian is cut off, in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """How heights follow from probabilities."""

    axes: str
    voxel_size: tuple[float, ...]
    settings: Settings

    @functools.cached_property
    def touching(self) -> NDArray[np.bool_]:
        """Which voxels around one touch it."""
        return neighbourhood(self.axes, self.settings.connectivity, three_d=self.settings.three_d)

    @property
    def joined(self) -> tuple[int, ...]:
        """Places of the axes along which voxels touch."""
        return tuple(i for i, axis in enumerate(self.axes) if axis in ("zyx" if self.settings.three_d else "yx"))

    @property
    def sampling(self) -> tuple[float, ...]:
        """Voxel size along each joined axis, the smallest being 1; in whole steps, so that squares are integers."""
        sizes = [self.voxel_size[i] for i in self.joined]
        return tuple(round(size / min(sizes) * STEPS["distance"]) / STEPS["distance"] for size in sizes)

    @property
    def support(self) -> tuple[int, ...]:
        """Voxels on each side, along each axis, that a height depends on."""
        if self.settings.landscape == "distance":
            sides = [math.ceil(self.settings.reach / size) for size in self.sampling]
        else:
            sides = [int(GAUSSIAN_WIDTHS * self.settings.smoothing + 0.5)] * len(self.joined)
        return tuple(sides[self.joined.index(i)] if i in self.joined else 0 for i in range(len(self.axes)))

    @property
    def depth(self) -> float:
        """The least depth of an object of its own, in heights."""
        return self.settings.depth * STEPS[self.settings.landscape]

    def heights(self, probability: NDArray[Any], foreground: NDArray[np.bool_], inner: Box) -> NDArray[np.uint16]:
        """Heights in the part ``inner`` of an array, which reaches ``support`` further, or to the volume's edge."""
        if self.settings.landscape == "distance":
            distance = np.sqrt(self._squares(foreground)[inner.slices], dtype=np.float32)
            return (self.settings.reach * STEPS["distance"] - np.rint(distance)).astype(np.uint16)
        smooth = self._smooth(probability)[inner.slices]
        return np.rint((1 - smooth) * STEPS["probability"]).astype(np.uint16)

    def _squares(self, foreground: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Squared distances to the background, at most ``reach``, in steps; what lies outside the volume is none."""
        from unetcli.label.kernels import spread

        square = np.where(foreground, np.int32((self.settings.reach * STEPS["distance"]) ** 2), np.int32(0))
        for place, size in zip(self.joined, self.sampling, strict=True):
            lines = square.reshape(math.prod(square.shape[:place]), square.shape[place], -1)
            spread(lines, round(size * STEPS["distance"]) ** 2)
        return square

    def _smooth(self, probability: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities 0 to 1, smoothed within sections, or along z too."""
        scale = 255 if probability.dtype == np.uint8 else 1
        values = probability.astype(np.float64) / scale
        sigma = [self.settings.smoothing if i in self.joined else 0.0 for i in range(len(self.axes))]
        smooth: NDArray[np.float64] = ndimage.gaussian_filter(values, sigma, mode="mirror", truncate=GAUSSIAN_WIDTHS)
        return np.clip(smooth, 0, 1)


CELL_BITS = 5
"""Flat ground is cut into cells of 32 voxels a side, each with a minimum of its own, so that no way down is long."""
MARGIN = 32
"""Voxels beside a block in which ways down are followed at first; more where one leads further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basins:
    """What a block knows: regions of its voxels, and passes that others have to decide on."""

    labels: NDArray[np.int32]
    """Of the block's own voxels: 0, or 1 + the place of their region in ``names``."""
    count: int
    """Regions with voxels in the block; those after them are only beyond a pass."""
    names: NDArray[np.int64]
    """Place of each region's minimum in the volume, in C order."""
    lowest: NDArray[np.int64]
    """Height of each minimum."""
    ends: NDArray[np.int64]
    """(n, 2) regions that meet at a pass."""
    height: NDArray[np.int64]
    """(n,) of the pass."""
    order: NDArray[np.int64]
    """(n, 2) names of the two basins that meet there, by which passes of one height are ordered."""


Read = Callable[[Box], NDArray[Any]]
"""Probabilities of a box of the volume."""


def separate_section(
    probability: NDArray[Any],
    threshold: float = 0.5,
    *,
    depth: float = 1.5,
    landscape: str = "distance",
    connectivity: int = 4,
    min_size: int = 0,
) -> NDArray[np.int32]:
    """Instances of one section, touching ones apart; parameters as of ``label --method watershed``.

    ``probability`` is (y, x), float, bool, or uint8 for value / 255. Returns (y, x), int32: 0 is background, objects
    are numbered 1, 2 .. by their first voxel in C order.
    """
    settings = Settings(
        method="watershed", threshold=threshold, depth=depth, landscape=landscape, connectivity=connectivity
    )
    scene = Landscape(axes="yx", voxel_size=(1.0, 1.0), settings=settings)
    return in_order(separate(probability, scene), min_size)


def separate(probability: NDArray[Any], scene: Landscape) -> NDArray[np.int32]:
    """The watershed of a whole array, in no order."""
    whole = Box.of_shape(probability.shape)
    return find_basins(scene, whole, whole, whole, lambda box: probability[box.slices]).labels


@dataclass(frozen=True, slots=True)
class Ways:
    """Where the ways down of all voxels of a box end."""

    basins: NDArray[np.int64]
    """Basin of each voxel, as its place in ``names``; -1 for background."""
    height: NDArray[np.uint16]
    """Of each voxel."""
    names: NDArray[np.int64]
    """Place of each minimum in the volume, in C order; rising."""
    lowest: NDArray[np.int64]
    """Height of each minimum."""


def find_basins(scene: Landscape, own: Box, extended: Box, whole: Box, read: Read) -> Basins:
    """Basins of a block ``own``; ``extended`` also has the voxels right behind it, ``whole`` is the volume."""
    margin = MARGIN
    while True:
        window = extended.grown(tuple(margin if i in scene.joined else 0 for i in range(len(own.start)))).clipped(whole)
        if (ways := ways_down(scene, window, extended, whole, read)) is not None:
            return tell(scene, own, extended, ways)
        margin *= 2


def ways_down(scene: Landscape, window: Box, extended: Box, whole: Box, read: Read) -> Ways | None:
    """Ways down from the voxels of ``extended``; None where one leaves the window."""
    from unetcli.label.kernels import descend, follow

    outer = window.grown(scene.support).clipped(whole)
    inner, probability = window.relative_to(outer), read(outer)
    foreground = is_foreground(probability, scene.settings.threshold)
    height = scene.heights(probability, foreground, inner)
    rank = ranks(height, foreground[inner.slices], window, scene)
    below = np.empty(rank.shape, np.int64)
    descend(rank.ravel(), flat_steps(scene, rank.shape), below.ravel())
    end_at_borders(below, window, whole, scene)
    follow(below.ravel())
    part = extended.relative_to(window)
    ends = below[unpadded(scene, window)][part.slices]
    return _numbered(ends, height, window, part, whole, scene)


def ranks(height: NDArray[np.uint16], foreground: NDArray[np.bool_], window: Box, scene: Landscape) -> NDArray[Any]:
    """An order of all voxels of a window in which no two neighbours are equal, padded with background.

    By height, then by the place in a cell of a grid that is fixed to the volume.
    """
    from unetcli.label.kernels import BACKGROUND

    place = np.zeros((1,) * height.ndim, np.uint32)
    for i in scene.joined:
        along = np.arange(window.start[i], window.stop[i], dtype=np.uint32) % 2**CELL_BITS
        place = (place << CELL_BITS) + along.reshape([-1 if axis == i else 1 for axis in range(height.ndim)])
    rank = (height.astype(np.uint32) << (CELL_BITS * 3)) + place.astype(np.uint32)
    rank[~foreground] = BACKGROUND
    padding = [(1, 1) if i in scene.joined else (0, 0) for i in range(height.ndim)]
    return np.pad(rank, padding, constant_values=BACKGROUND)


def flat_steps(scene: Landscape, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Steps to all neighbours in a flat array of a shape."""
    strides = np.cumprod((1, *shape[:0:-1]))[::-1]
    half = np.array(neighbours(scene.touching)) @ strides
    return np.concatenate([-half, half])


def unpadded(scene: Landscape, window: Box) -> tuple[slice, ...]:
    """What of a padded array is the window."""
    return tuple(slice(1, n + 1) if i in scene.joined else slice(None) for i, n in enumerate(window.shape))


def end_at_borders(below: NDArray[np.int64], window: Box, whole: Box, scene: Landscape) -> None:
    """Have ways end where they reach a border of the window behind which the volume goes on."""
    here = np.arange(below.size).reshape(below.shape)
    for border in borders(window, whole, scene):
        layer = tuple(
            s if i != border[0] else slice(border[1] + 1, border[1] + 2) for i, s in enumerate(unpadded(scene, window))
        )
        below[layer] = np.where(below[layer] >= 0, here[layer], -1)


def borders(window: Box, whole: Box, scene: Landscape) -> list[tuple[int, int]]:
    """Axis and place, in the window, of its layers behind which the volume goes on."""
    first = [(i, 0) for i in scene.joined if window.start[i] > whole.start[i]]
    last = [(i, window.shape[i] - 1) for i in scene.joined if window.stop[i] < whole.stop[i]]
    return first + last


def _numbered(
    ends: NDArray[np.int64], height: NDArray[np.uint16], window: Box, part: Box, whole: Box, scene: Landscape
) -> Ways | None:
    """Ends, as places in the padded window, numbered in their order; None where one lies at a border."""
    pads = [2 if i in scene.joined else 0 for i in range(height.ndim)]
    padded = tuple(n + pad for n, pad in zip(window.shape, pads, strict=True))
    found = np.zeros(int(np.prod(padded)), np.bool_)
    found[ends[ends >= 0]] = True
    minima = np.flatnonzero(found)
    place = [index - pad // 2 for index, pad in zip(np.unravel_index(minima, padded), pads, strict=True)]
    if any((place[axis] == layer).any() for axis, layer in borders(window, whole, scene)):
        return None
    number = np.full(found.size + 1, -1, np.int64)
    number[minima] = np.arange(len(minima))
    in_volume = tuple(index + start for index, start in zip(place, window.start, strict=True))
    return Ways(
        basins=number[ends],  # background, -1, is the last
        height=height[part.slices],
        names=np.ravel_multi_index(in_volume, whole.stop).astype(np.int64),
        lowest=height[tuple(place)].astype(np.int64),
    )


def tell(scene: Landscape, own: Box, extended: Box, ways: Ways) -> Basins:
    """Join what a block can tell to be one object, and say what it leaves to others."""
    from unetcli.label.kernels import joined

    ends, height = passes(ways, neighbours(scene.touching))
    region, deferred = joined(ends, height, ways.lowest, reaching_out(scene, own, extended, ways), scene.depth)
    mine = ways.basins[own.relative_to(extended).slices]
    inside = np.zeros(len(region) + 1, np.bool_)
    inside[np.append(region, -1)[mine]] = True
    inside[-1] = False
    first = np.flatnonzero(inside)
    left = region[ends[deferred]]
    beyond = np.setdiff1d(left, first)
    number = np.full(len(region) + 1, -1, np.int64)
    kept = np.concatenate([first, beyond]).astype(np.int64)
    number[kept] = np.arange(len(kept))
    return Basins(
        labels=(number[np.append(region, -1)[mine]] + 1).astype(np.int32),
        count=len(first),
        names=ways.names[kept],
        lowest=ways.lowest[kept],
        ends=number[left],
        height=height[deferred],
        order=ways.names[ends[deferred]],
    )


def reaching_out(scene: Landscape, own: Box, extended: Box, ways: Ways) -> NDArray[np.bool_]:
    """Whether each basin may reach beyond the block, or have passes there."""
    first = tuple(a + 1 if i in scene.joined and a > 0 else a for i, a in enumerate(own.start))
    inner = Box(tuple(map(min, first, own.stop)), own.stop)
    rim = ways.basins.copy()
    rim[inner.relative_to(extended).slices] = -1
    found = np.zeros(len(ways.names) + 1, np.bool_)
    found[rim] = True
    return found[:-1]


def passes(ways: Ways, steps: Sequence[tuple[int, ...]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each two basins that touch, the earlier first, and the height of their lowest pass; the lowest of all first."""
    told = []
    for step in steps:
        here = tuple(slice(max(0, -d), min(0, -d) or None) for d in step)
        there = tuple(slice(max(0, d), min(0, d) or None) for d in step)
        a, b = ways.basins[here], ways.basins[there]
        across = (a != b) & (a >= 0) & (b >= 0)
        height = np.maximum(ways.height[here][across], ways.height[there][across])
        a, b = a[across], b[across]
        told.append(np.stack([height.astype(np.int64), np.minimum(a, b), np.maximum(a, b)]))
    height, low, high = np.concatenate(told, axis=1)
    order = np.lexsort((height, high, low))
    height, low, high = height[order], low[order], high[order]
    lowest = np.ones(len(low), np.bool_)
    lowest[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    height, low, high = height[lowest], low[lowest], high[lowest]
    order = np.lexsort((high, low, height))
    return np.stack([low, high], axis=1)[order], height[order]
