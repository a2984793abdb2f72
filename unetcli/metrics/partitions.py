"""Two partitions of the same pixels, cells and segments: how they overlap, in pairs of pixels and in information.

For V_Rand and V_Info the predicted membrane is thinned to one pixel first, so that its width does not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Pairs of pixels: together in both partitions, in the segments only (fp), in the cells only (fn); exact."""

    tp: int
    fp: int
    fn: int

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def f_score(self) -> float | None:
        """2 tp / (2 tp + fp + fn); None where nothing is together in either."""
        weight = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / weight if weight else None


@dataclass(frozen=True, slots=True)
class Information:
    """What one partition tells about the other, in nats."""

    mutual: float
    entropies: float
    """Of the cells and of the segments, added up."""

    @property
    def f_score(self) -> float | None:
        """2 I / (H(cells) + H(segments)); None where both are one piece, so that there is nothing to tell."""
        return 2 * self.mutual / self.entropies if self.entropies else None


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The reference cells of a section: their pixels, cell after cell."""

    places: NDArray[np.int64]
    """Flat indices into the section."""
    stops: NDArray[np.int64]
    """(cells,): where the pixels of each cell end in ``places``."""

    @classmethod
    def of(cls, interior: NDArray[np.bool_], judged: NDArray[np.bool_] | None = None) -> Cells:
        """4-connected cells of a section (y, x); only ``judged`` pixels of them, if given, which may part no cell."""
        labels = components(interior)
        if judged is not None:
            labels[~judged] = 0
        sizes = np.bincount(labels.ravel())
        order = np.argsort(labels, axis=None, kind="stable")
        return cls(order[sizes[0] :], np.cumsum(sizes[1:][sizes[1:] > 0]))

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.diff(self.stops, prepend=0)


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """Sizes in pixels, inside the cells; a pixel without a segment is a segment of its own."""

    cells: NDArray[np.int64]
    segments: NDArray[np.int64]
    shared: NDArray[np.int64]
    """Of each pair of a cell and a segment that meet."""
    singles: int
    """Pixels of cells that belong to no segment."""

    @classmethod
    def of(cls, cells: Cells, segments: NDArray[np.int32]) -> Overlap:
        """Cells of a section against its segments (y, x), 0 where there is none."""
        from unetcli.metrics import kernels

        sizes = np.zeros(int(segments.max(initial=0)) + 1, np.int64)
        shared = np.empty(cells.places.size, np.int64)
        pairs = kernels.count_overlaps(cells.places, cells.stops, segments.ravel(), sizes, shared)
        return cls(cells.sizes, sizes[1:][sizes[1:] > 0], shared[:pairs].copy(), int(sizes[0]))

    @property
    def pairs(self) -> PairCounts:
        """Ordered pairs, a pixel with itself among them: the normalisation by N^2."""
        together = _sum_of_squares(self.shared) + self.singles
        in_segments = _sum_of_squares(self.segments) + self.singles
        return PairCounts(together, in_segments - together, _sum_of_squares(self.cells) - together)

    @property
    def different_pairs(self) -> PairCounts:
        """Pairs of two different pixels."""
        every = self.pairs
        return PairCounts((every.tp - int(self.cells.sum())) // 2, every.fp // 2, every.fn // 2)

    @property
    def information(self) -> Information:
        """Mutual information, and the entropies it is measured against."""
        cells, segments = self._entropy(self.cells, 0), self._entropy(self.segments, self.singles)
        mutual = cells + segments - self._entropy(self.shared, self.singles)
        return Information(min(max(mutual, 0.0), cells, segments), cells + segments)  # but for rounding it lies there

    def _entropy(self, sizes: NDArray[np.int64], singles: int) -> float:
        """In nats. ``fsum`` rounds once, so the same sizes in another order give the same number."""
        pixels = int(self.cells.sum())
        shares = sizes / max(pixels, 1)
        own = singles / pixels * math.log(pixels) if singles else 0.0
        return math.fsum([own, *(-shares * np.log(shares)).tolist()])


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """4-connected components of (y, x), from 1; 0 outside: a diagonal line one pixel wide separates."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)  # scipy's default in 2-D is 4-connected
    return labels


def _sum_of_squares(sizes: NDArray[np.int64]) -> int:
    """Exact, also where it is too large for 64 bits."""
    if int(sizes.sum()) < 2**31:
        return int(np.dot(sizes, sizes))
    return sum(size * size for size in sizes.tolist())


def thin(segments: NDArray[np.int32]) -> NDArray[np.int32]:
    """Segments grown over the membrane between them, (y, x) int32; 0 where two meet.

    A watershed (Vincent and Soille 1991) of the binary proposal, 4-connected, with the ties decided as in the official
    program of the ISBI 2012 challenge. ``segments``: 4-connected components of the proposal, 0 on membrane. Without
    any segment the whole section becomes one.

    >>> thin(np.array([[1, 0, 0, 0, 2], [1, 0, 0, 0, 2]], np.int32)).tolist()
    [[1, 1, 0, 2, 2], [1, 1, 0, 2, 2]]
    """
    from unetcli.metrics import kernels

    if not segments.any():
        return np.ones_like(segments)
    height, width = segments.shape
    basins = np.full((height + 2, width + 2), kernels.FRAME, np.int32)
    basins[1:-1, 1:-1] = np.where(segments > 0, segments, kernels.UNTOUCHED)
    queue = np.empty(segments.size, np.int64)
    kernels.flood(basins, queue, kernels.find_shores(basins, queue))
    return np.ascontiguousarray(basins[1:-1, 1:-1])
