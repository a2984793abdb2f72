"""Tables of pixels per pair of labels, partitions and components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError


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
    from scipy import ndimage  # slow to import; status does without

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


Labels = NDArray[np.uint64]
Counts = NDArray[np.int64]
NOTHING: Labels = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class Contingency:
    """Pixels of each (reference label, result label) that occurs, sorted by the pair; background is label 0.

    Labels mean the same object in all tables that are added: add the blocks of one frame or of one volume, not tables
    of frames whose labels start anew.
    """

    reference: Labels
    result: Labels
    counts: Counts
    """Pixels of each pair, all positive."""

    @classmethod
    def of(
        cls, reference: NDArray[np.integer], result: NDArray[np.integer], *, ignore: int | None = None
    ) -> Contingency:
        """Table of one block of any shape; pixels whose reference is ``ignore`` count nowhere.

        Neighbours mostly bear the same pair, so runs are counted first and only runs are sorted.

        Raises
        ------
        UnetcliError
            Labels that are no integers, or negative.
        """
        if reference.shape != result.shape:
            raise ValueError(f"reference of {reference.shape}, result of {result.shape}")
        a, b = reference.ravel(), result.ravel()
        if ignore is not None:
            counted = a != ignore
            a, b = a[counted], b[counted]
        starts = run_starts(a, b)
        return cls.summed(as_labels(a[starts]), as_labels(b[starts]), np.diff(starts, append=a.size))

    @classmethod
    def summed(cls, reference: Labels, result: Labels, counts: Counts) -> Contingency:
        """Table of pairs that may occur more than once, in any order."""
        order = pair_order(reference, result)
        reference, result, counts = reference[order], result[order], counts[order]
        starts = run_starts(reference, result)
        return cls(reference[starts], result[starts], summed_runs(counts, starts))

    @classmethod
    def total(cls, tables: Sequence[Contingency]) -> Contingency:
        """Sum of many tables, sorted once."""
        tables = [cls.of(NOTHING, NOTHING), *tables]
        return cls.summed(
            np.concatenate([table.reference for table in tables]),
            np.concatenate([table.result for table in tables]),
            np.concatenate([table.counts for table in tables]),
        )

    def __add__(self, other: Contingency) -> Contingency:
        return Contingency.total([self, other])


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """The objects of a table, and the pairs of them that share pixels."""

    reference: Labels
    reference_sizes: Counts
    result: Labels
    result_sizes: Counts
    pairs: tuple[NDArray[np.intp], NDArray[np.intp]]
    """Places in ``reference`` and in ``result`` of each pair; in the order of both labels."""
    shared: Counts
    """Pixels of each pair."""

    @classmethod
    def of(cls, table: Contingency) -> Overlaps:
        """Objects are the labels that are not 0; their sizes count all their pixels, over background too."""
        reference, rows, reference_sizes = sizes(table.reference, table.counts)
        result, columns, result_sizes = sizes(table.result, table.counts)
        objects = (table.reference > 0) & (table.result > 0)
        pairs = rows[objects], columns[objects]
        return cls(reference, reference_sizes, result, result_sizes, pairs, table.counts[objects])

    @property
    def unions(self) -> Counts:
        """Pixels of either object of each pair."""
        rows, columns = self.pairs
        unions: Counts = self.reference_sizes[rows] + self.result_sizes[columns] - self.shared
        return unions


def sizes(labels: Labels, counts: Counts) -> tuple[Labels, NDArray[np.intp], Counts]:
    """Labels that are not 0, sorted; the place of each entry among them (-1: background); pixels of each."""
    order = np.argsort(labels, kind="stable")  # of the reference, in order already, as fast as a copy
    ordered = labels[order]
    starts = run_starts(ordered)
    found, background = ordered[starts], int(labels.size > 0 and ordered[0] == 0)
    places = np.empty(labels.size, np.intp)
    places[order] = np.repeat(np.arange(starts.size) - background, np.diff(starts, append=labels.size))
    return found[background:], places, summed_runs(counts[order], starts)[background:]


def run_starts(*columns: NDArray[Any]) -> NDArray[np.intp]:
    """Where a row of one or more columns of values differs from the one before it.

    >>> run_starts(np.array([4, 4, 4, 7]), np.array([1, 1, 2, 2])).tolist()
    [0, 2, 3]
    """
    changes = np.ones(columns[0].size, np.bool_)
    changes[1:] = False
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes)


def marginal(labels: Labels, counts: Counts) -> Counts:
    """Pixels of each label that occurs, background included, in the order of labels."""
    order = np.argsort(labels, kind="stable")
    return summed_runs(counts[order], run_starts(labels[order]))


def summed_runs(counts: Counts, starts: NDArray[np.intp]) -> Counts:
    """Sum of each run; there may be none, which ``reduceat`` does not take."""
    sums: Counts = np.add.reduceat(counts, starts) if starts.size else counts
    return sums


def pair_order(a: Labels, b: Labels) -> NDArray[np.intp]:
    """Order that sorts pairs; packed into one word where both labels fit, which sorts several times faster."""
    bits = [int(labels.max(initial=0)).bit_length() for labels in (a, b)]
    if sum(bits) > 64 or bits[1] > 63:  # a shift by 64 is not defined
        return np.lexsort((b, a))
    return np.argsort(a << np.uint64(bits[1]) | b)


def as_labels(values: NDArray[Any]) -> Labels:
    """Integers as uint64, refused where one has no place there."""
    if values.dtype.kind not in "bui":
        raise UnetcliError(f"labels of {values.dtype}: expected integers, 0 for background")
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise UnetcliError(f"label {values.min()}: expected 0 for background and positive labels")
    return values.astype(np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceObjects:
    """What became of each reference object, in the order of labels; all (object,)."""

    labels: Labels
    sizes: Counts
    result: Labels
    """The result object that covers it; 0: missed."""
    jaccard: NDArray[np.float64]
    """Intersection over union with that; 0: missed."""
    shared_with: Counts
    """Other reference objects that the same result object covers; above 0: merged."""
    pieces: Counts
    """Result objects that it covers; above 1: split."""


@dataclass(frozen=True, slots=True, eq=False)
class ResultObjects:
    """What each result object stands for, in the order of labels; all (object,)."""

    labels: Labels
    sizes: Counts
    covers: Counts
    """Reference objects that it covers; above 1: it merges them."""
    inside: NDArray[np.bool_]
    """Whether a reference object covers it; extra (a false positive) is what neither covers nor is covered."""


def matched_objects(table: Contingency) -> tuple[ReferenceObjects, ResultObjects]:
    """The objects of one frame or volume, from its whole table.

    An object is covered by another one in which it lies by more than half, as in the cell tracking challenge.
    """
    found = Overlaps.of(table)
    rows, columns = found.pairs
    covering = 2 * found.shared > found.reference_sizes[rows]  # at most one result object per reference object
    covered = 2 * found.shared > found.result_sizes[columns]  # at most one reference object per result object
    covers = np.bincount(columns[covering], minlength=found.result.size)
    match = np.full(found.reference.size, -1)
    match[rows[covering]] = columns[covering]
    hit, iou = match >= 0, np.zeros(match.size)
    iou[rows[covering]] = found.shared[covering] / found.unions[covering]
    result, others = np.zeros(match.size, np.uint64), np.zeros(match.size, np.int64)
    result[hit], others[hit] = found.result[match[hit]], covers[match[hit]] - 1
    pieces = np.bincount(rows[covered], minlength=match.size)
    inside = np.bincount(columns[covered], minlength=covers.size) > 0
    return (
        ReferenceObjects(found.reference, found.reference_sizes, result, iou, others, pieces),
        ResultObjects(found.result, found.result_sizes, covers, inside),
    )
