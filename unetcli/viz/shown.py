"""A volume to look at: a plane of it thinned to some dots, from the coarsest level that will do, window by window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import place_of
from unetcli.core.geometry import Box, ceil_to
from unetcli.evaluate.pairing import region_around
from unetcli.viz.colours import means_of
from unetcli.volumes.image import marker_around
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

WINDOW_VOXELS = 2**22
"""Read at once, about."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A volume, and where it lies in the volume that it was predicted of, else in itself."""

    volume: Volume
    kind: str | None
    """As our own stores say: probabilities, instances or weights."""
    origin: tuple[int, ...]
    extent: tuple[int, ...]
    levels: dict[int, Volume]
    """The volume, and its coarser levels, by how many of its pixels make one of theirs along a side."""

    @classmethod
    def open(cls, name: str, dots: int) -> Shown:
        """With levels, where a side of the plane is longer than so many dots."""
        volume, place = open_volume(name), place_of(name)
        kind = (marker_around(place) or {}).get("kind")
        levels = {1: volume} | (dict(coarser(name, volume)) if max(volume.extent[-2:]) > dots else {})
        origin, extent = placed(volume, region_around(place))
        several = [axis for axis, n in zip(volume.axes, extent, strict=True) if n > 1 or axis in volume.axes[-2:]]
        levels = {factor: level.without_single_axes(keep="".join(several)) for factor, level in levels.items()}
        kept = [volume.axes.index(axis) for axis in several]
        return cls(levels[1], kind, tuple(origin[i] for i in kept), tuple(extent[i] for i in kept), levels)

    @property
    def box(self) -> Box:
        """What it covers, in the coordinates of ``extent``."""
        return self.volume.whole().shifted(self.origin)

    @property
    def sections(self) -> range:
        axis = self.volume.section_axis
        return range(0) if axis is None else range(self.box.start[axis], self.box.stop[axis])

    def step(self, dots: int) -> int:
        """Of how many pixels a dot is made, along a side, for a plane of at most so many dots.

        A multiple of the coarsest level that is still large enough, so that nothing finer has to be read.
        """
        longest = max(self.volume.extent[-2:])
        factor = max(factor for factor in self.levels if factor == 1 or math.ceil(longest / factor) >= dots)
        return factor * max(1, math.ceil(math.ceil(longest / factor) / dots))

    def read(self, plane: Box, step: int, channel: int | None, *, mean: bool) -> NDArray[Any]:
        """(c, y, x) of a plane, every ``step``-th pixel or the mean of so many; zeros where nothing is covered."""
        factor = self._factor(plane, step)
        channels = self.volume.channels if channel is None else 1
        averaged = mean and step > factor
        shape = (channels, *(math.ceil(n / step) for n in plane.shape[-2:]))
        dots = np.zeros(shape, np.float32 if averaged else self.volume.dtype)
        for window in windows(plane, step, self.volume.chunks[-2:]):
            values = self._values(window, factor, channel)
            rest = step // factor
            made = means_of(values, rest) if averaged else values[:, ::rest, ::rest]
            top, left = ((a - b) // step for a, b in zip(window.start[-2:], plane.start[-2:], strict=True))
            dots[:, top : top + made.shape[1], left : left + made.shape[2]] = made
        return dots

    def _factor(self, plane: Box, step: int) -> int:
        """Of the coarsest level whose pixels make up dots of a plane, and lie where its own do."""
        apart = [a - b for a, b in zip(plane.start[-2:], self.origin[-2:], strict=True)]
        fitting = [n for n in self.levels if step % n == 0 and all(distance % n == 0 for distance in apart)]
        return max(fitting)

    def _values(self, window: Box, factor: int, channel: int | None) -> NDArray[Any]:
        """(c, y, x) of a window at a level."""
        channels = self.volume.channels if channel is None else 1
        shape = tuple(math.ceil(n / factor) for n in window.shape[-2:])
        values = np.zeros((channels, *shape), self.volume.dtype)
        inside = window.clipped(self.box)
        if inside.size:
            place = tuple(
                slice(part.start // factor, math.ceil(part.stop / factor))
                for part in inside.relative_to(window).slices[-2:]
            )
            own = at_level(inside.shifted(tuple(-o for o in self.origin)), factor)
            voxels = self.levels[factor].read(own, channel)
            values[:, *place] = voxels.reshape(channels, *own.shape[-2:])
        return values


def placed(volume: Volume, said: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a volume starts in the one that it was predicted of, and that one's extent; else in itself."""
    sides = said.get("region", ())
    if tuple(b - a for a, b in sides) == volume.extent:
        return tuple(a for a, _ in sides), tuple(said["extent"])
    return (0,) * len(volume.extent), volume.extent


def at_level(box: Box, factor: int) -> Box:
    """A box of full resolution in pixels of a level; only the plane is coarser there."""
    start = (*box.start[:-2], *(a // factor for a in box.start[-2:]))
    stop = (*box.stop[:-2], *(math.ceil(b / factor) for b in box.stop[-2:]))
    return Box(start, stop)


def coarser(name: str, volume: Volume) -> Iterator[tuple[int, Volume]]:
    """Levels of an image that halve its planes again and again and leave other axes as they are, with their factors."""
    for number in itertools.count(1):
        try:
            level = open_volume(name, number)
        except UnetcliError:  # none, or none that can be used
            return
        if (level.axes, level.channels) != (volume.axes, volume.channels) or not is_coarser(level, volume, 2**number):
            return
        yield 2**number, level


def is_coarser(level: Volume, volume: Volume, factor: int) -> bool:
    """Whether a level has the volume's sections, of so many times fewer pixels; a rest at the far edge may be cut."""
    pairs = list(zip(level.extent, volume.extent, strict=True))
    halved = (max(1, m // factor) <= n <= math.ceil(m / factor) for n, m in pairs[-2:])
    return all(n == m for n, m in pairs[:-2]) and all(halved)


def windows(plane: Box, step: int, chunks: tuple[int, ...]) -> Iterator[Box]:
    """A plane cut into windows of whole chunks, about; all but the last have a multiple of ``step`` along a side."""
    rows = ceil_to(max(1, min(chunks[0], WINDOW_VOXELS // min(chunks[1], plane.shape[-1]))), step)
    columns = ceil_to(max(1, min(plane.shape[-1], max(chunks[1], WINDOW_VOXELS // rows))), step)
    (top, left), (bottom, right) = plane.start[-2:], plane.stop[-2:]
    for y, x in itertools.product(range(top, bottom, rows), range(left, right, columns)):
        stop = (*plane.stop[:-2], min(y + rows, bottom), min(x + columns, right))
        yield Box((*plane.start[:-2], y, x), stop)
