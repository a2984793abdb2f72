"""Boxes and mirrored indices: the arithmetic of windows that may reach outside their volume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open region ``start..stop`` of a volume, in voxels, axes in array order.

    A box may reach outside its volume; what lies there is mirrored when it is read.

    >>> Box((0, 4), (2, 10)).shape
    (2, 6)
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop) or any(a > b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"no box: start {self.start}, stop {self.stop}")

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """The whole of an array of that shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def shifted(self, offset: Sequence[int]) -> Box:
        """The box moved by ``offset``."""
        moved = [tuple(v + d for v, d in zip(side, offset, strict=True)) for side in (self.start, self.stop)]
        return Box(moved[0], moved[1])

    def relative_to(self, other: Box) -> Box:
        """The box in coordinates that start where ``other`` starts."""
        return self.shifted(tuple(-v for v in other.start))

    def grown(self, margin: Sequence[int]) -> Box:
        """``margin`` voxels more on both sides of every axis."""
        return Box(
            tuple(v - m for v, m in zip(self.start, margin, strict=True)),
            tuple(v + m for v, m in zip(self.stop, margin, strict=True)),
        )

    def clipped(self, other: Box) -> Box:
        """What both boxes share; empty where they do not meet.

        >>> Box((-3,), (5,)).clipped(Box((0,), (4,)))
        Box(start=(0,), stop=(4,))
        """
        start = tuple(min(max(a, low), high) for a, low, high in zip(self.start, other.start, other.stop, strict=True))
        stop = tuple(max(min(b, high), a) for b, high, a in zip(self.stop, other.stop, start, strict=True))
        return Box(start, stop)

    def planes(self) -> Iterator[Box]:
        """The box cut into planes of its last two axes, in C order.

        >>> [plane.start for plane in Box((3, 0, 0), (5, 8, 8)).planes()]
        [(3, 0, 0), (4, 0, 0)]
        """
        for lead in np.ndindex(self.shape[:-2]):
            first = tuple(a + i for a, i in zip(self.start, lead, strict=False))
            yield Box(first + self.start[-2:], tuple(a + 1 for a in first) + self.stop[-2:])


def hull(boxes: Sequence[Box]) -> Box:
    """The smallest box around others, of which there is one at least.

    >>> hull([Box((0, 4), (2, 6)), Box((1, 1), (3, 2))])
    Box(start=(0, 1), stop=(3, 6))
    """
    start = tuple(map(min, zip(*(box.start for box in boxes), strict=True)))
    return Box(start, tuple(map(max, zip(*(box.stop for box in boxes), strict=True))))


def mirror_indices(start: int, stop: int, extent: int) -> NDArray[np.intp]:
    """Indices into ``range(extent)`` for ``start..stop``, mirrored at both edges as often as needed.

    The edge voxel is not repeated, as in ``numpy.pad(mode="reflect")`` and in the tiling code of the paper's authors.

    >>> mirror_indices(-2, 6, extent=4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    >>> mirror_indices(-2, 2, extent=1).tolist()
    [0, 0, 0, 0]
    """
    period = max(2 * (extent - 1), 1)
    folded = np.arange(start, stop) % period
    return np.minimum(folded, period - folded) if extent > 1 else np.zeros(stop - start, np.intp)


def ceil_to(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``value``.

    >>> ceil_to(513, 512)
    1024
    """
    return -(-value // multiple) * multiple
