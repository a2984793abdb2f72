"""Blocks that cover a region once, and the stages in which they are worked off. Integers only."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Box, ceil_to


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of equal sides that cover a region once, numbered in C order; those at the edges are cut.

    All sizes in voxels, axes in array order.
    """

    region: Box
    block_shape: tuple[int, ...]
    origin: tuple[int, ...] | None = None
    """Block edges lie on multiples of the sides, counted from here. Default: from the start of the region."""

    @functools.cached_property
    def edges(self) -> tuple[tuple[int, ...], ...]:
        """Where blocks begin and the last one ends, along each axis."""
        origin = self.region.start if self.origin is None else self.origin
        sides = zip(self.region.start, self.region.stop, origin, self.block_shape, strict=True)
        return tuple(cuts(start, stop, first, side) for start, stop, first, side in sides)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(len(along) - 1 for along in self.edges)

    @functools.cached_property
    def blocks(self) -> int:
        return math.prod(self.shape)

    def place(self, number: int) -> tuple[int, ...]:
        """Position of a block in the grid.

        Raises
        ------
        IndexError
            There is no block of that number.
        """
        if not 0 <= number < self.blocks:
            raise IndexError(f"block {number} of {self.blocks}")
        place, rest = [], number
        for n in reversed(self.shape):
            rest, index = divmod(rest, n)
            place.append(index)
        return tuple(reversed(place))

    def number(self, place: Sequence[int]) -> int | None:
        """The block at a position of the grid; None outside."""
        if not all(0 <= i < n for i, n in zip(place, self.shape, strict=True)):
            return None
        return int(np.ravel_multi_index(tuple(place), self.shape)) if place else 0

    def box(self, number: int) -> Box:
        """The voxels of a block."""
        sides = [along[i : i + 2] for i, along in zip(self.place(number), self.edges, strict=True)]
        return Box(tuple(a for a, _ in sides), tuple(b for _, b in sides))

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        """Voxels of the blocks that a mask over ``range(blocks)`` picks.

        Only the first and the last block along an axis can be cut, so that at most 3 parts an axis are counted and no
        size is computed for each of 10^7 blocks.
        """
        picked, total = blocks.reshape(self.shape), 0
        for part in itertools.product(*map(_equal_parts, self.edges)):
            slices, sides = zip(*part, strict=True) if part else ((), ())
            total += int(np.count_nonzero(picked[slices])) * math.prod(sides)
        return total

    def touching(self, box: Box) -> NDArray[np.intp]:
        """Numbers of the blocks that share voxels with a box, rising."""
        ranges = [
            range(int(np.searchsorted(along, a, "right")) - 1, int(np.searchsorted(along, b, "left")))
            for along, a, b in zip(self.edges, box.start, box.stop, strict=True)
        ]
        places = np.array(list(itertools.product(*(range(max(r.start, 0), r.stop) for r in ranges))), np.intp)
        numbers = np.ravel_multi_index(tuple(places.reshape(-1, len(self.shape)).T), self.shape)
        return np.asarray(numbers, np.intp)


def _equal_parts(edges: tuple[int, ...]) -> list[tuple[slice, int]]:
    """Blocks along one axis as ranges of equal sides, and these."""
    first, last, count = edges[1] - edges[0], edges[-1] - edges[-2], len(edges) - 1
    parts = [(slice(0, 1), first)]
    if count > 2:
        parts.append((slice(1, -1), edges[2] - edges[1]))
    if count > 1:
        parts.append((slice(-1, None), last))
    return parts


def cuts(start: int, stop: int, first: int, side: int) -> tuple[int, ...]:
    """Where pieces of a side begin, on multiples of it counted from ``first``, and where the last ends.

    A piece that could hold the whole range is not cut.

    >>> cuts(3, 22, first=1, side=8), cuts(3, 8, first=1, side=8)
    ((3, 9, 17, 22), (3, 8))
    """
    if side >= stop - start:
        return (start, stop)
    return (start, *range(first + ceil_to(start - first + 1, side), stop, side), stop)


@dataclass(frozen=True, slots=True)
class Stage:
    """A range of blocks that needs the stages before it, and nothing of each other."""

    name: str
    blocks: range


def stage_of(stages: Sequence[Stage], number: int) -> Stage:
    """The stage of a block.

    Raises
    ------
    IndexError
        There is no block of that number.
    """
    for stage in stages:
        if number in stage.blocks:
            return stage
    raise IndexError(f"block {number} of {stages[-1].blocks.stop}")


def within(numbers: NDArray[np.intp], blocks: range) -> NDArray[np.intp]:
    """Those of rising numbers that are in a range.

    >>> within(np.array([0, 3, 4, 9]), range(3, 9)).tolist()
    [3, 4]
    """
    start, stop = np.searchsorted(numbers, [blocks.start, blocks.stop])
    return numbers[start:stop]


def pending(stages: Sequence[Stage], missing: NDArray[np.intp]) -> NDArray[np.intp]:
    """Missing blocks of the first stage that has some: what can be worked off now. Empty once nothing is missing.

    >>> pending([Stage("find", range(3)), Stage("merge", range(3, 4))], np.array([1, 2, 3])).tolist()
    [1, 2]
    """
    parts = (within(missing, stage.blocks) for stage in stages)
    return next((part for part in parts if len(part)), missing[:0])
