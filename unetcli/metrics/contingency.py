"""Overlap of two segmentations: contingency tables of labels, partitions of one section, and components."""

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
    """Pairs of pixels that are together in both partitions (tp), only in segments (fp), only in cells (fn); exact."""

    tp: int
    fp: int
    fn: int

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def f_score(self) -> float | None:
        """F = 2 tp / (2 tp + fp + fn), 0 to 1; None if no pair is together in either partition."""
        weight = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / weight if weight else None


@dataclass(frozen=True, slots=True)
class Information:
    """Mutual information of two partitions, in nats."""

    mutual: float
    entropies: float
    """Entropy of the cells plus entropy of the segments."""

    @property
    def f_score(self) -> float | None:
        """F = 2 I / (H(cells) + H(segments)), 0 to 1; None if both partitions consist of one piece."""
        return 2 * self.mutual / self.entropies if self.entropies else None


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Pixels of the reference cells of a section, sorted by cell."""

    indices: NDArray[np.int64]
    """(pixels,): flat indices into the section."""
    stops: NDArray[np.int64]
    """(cells,): end of each cell in ``indices``."""

    @classmethod
    def of(cls, interior: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None) -> Cells:
        """4-connected cells of a section.

        Parameters
        ----------
        interior : (y, x), bool
            The reference: True inside cells.
        valid : (y, x), bool, optional
            Pixels that are counted. The other pixels still connect the parts of a cell.
        """
        labels = components(interior)
        if valid is not None:
            labels[~valid] = 0
        sizes = np.bincount(labels.ravel())
        order = np.argsort(labels, axis=None, kind="stable")
        return cls(order[sizes[0] :], np.cumsum(sizes[1:][sizes[1:] > 0]))

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.diff(self.stops, prepend=0)


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """Overlap of reference cells and segments in pixels; a cell pixel without a segment is a segment of its own."""

    cells: NDArray[np.int64]
    """Size of each cell."""
    segments: NDArray[np.int64]
    """Size of each segment within the cells."""
    shared: NDArray[np.int64]
    """Size of each intersection of a cell with a segment."""
    singletons: int
    """Number of cell pixels that belong to no segment."""

    @classmethod
    def of(cls, cells: Cells, segments: NDArray[np.int32]) -> Overlap:
        """Overlap of the cells of a section with its segments.

        Parameters
        ----------
        cells
            The reference cells.
        segments : (y, x), int32, contiguous
            Labels from 1; 0 outside segments.
        """
        from unetcli.metrics import kernels

        sizes = np.zeros(int(segments.max(initial=0)) + 1, np.int64)
        shared = np.empty(cells.indices.size, np.int64)
        pairs = kernels.count_overlaps(cells.indices, cells.stops, segments.ravel(), sizes, shared)
        return cls(cells.sizes, sizes[1:][sizes[1:] > 0], shared[:pairs].copy(), int(sizes[0]))

    @property
    def pairs(self) -> PairCounts:
        """Ordered pairs of pixels, each paired with itself too: the normalisation by N^2 (challenge since 2015)."""
        together = _sum_of_squares(self.shared) + self.singletons
        in_segments = _sum_of_squares(self.segments) + self.singletons
        return PairCounts(together, in_segments - together, _sum_of_squares(self.cells) - together)

    @property
    def different_pairs(self) -> PairCounts:
        """Unordered pairs of different pixels: the normalisation of the challenge before 2015."""
        every = self.pairs
        return PairCounts((every.tp - int(self.cells.sum())) // 2, every.fp // 2, every.fn // 2)

    @property
    def information(self) -> Information:
        """Mutual information of cells and segments, and the sum of their entropies."""
        cells, segments = self._entropy(self.cells, 0), self._entropy(self.segments, self.singletons)
        mutual = cells + segments - self._entropy(self.shared, self.singletons)
        return Information(min(max(mutual, 0.0), cells, segments), cells + segments)  # limits rounding errors

    def _entropy(self, sizes: NDArray[np.int64], singletons: int) -> float:
        """Entropy in nats. ``fsum`` rounds once, so the result does not depend on the order of the sizes."""
        pixels = int(self.cells.sum())
        shares = sizes / max(pixels, 1)
        own = singletons / pixels * math.log(pixels) if singletons else 0.0
        return math.fsum([own, *(-shares * np.log(shares)).tolist()])


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """4-connected components, so that a diagonal membrane one pixel wide separates two cells.

    Parameters
    ----------
    mask : (y, x), bool

    Returns
    -------
    (y, x), int32
        Labels from 1; 0 outside the mask.
    """
    from scipy import ndimage  # slow to import, and `status` does not need it

    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)  # scipy's default in 2-D is 4-connected
    return labels


def _sum_of_squares(sizes: NDArray[np.int64]) -> int:
    """Sum of squares, exact even beyond 64 bits."""
    if int(sizes.sum()) < 2**31:
        return int(np.dot(sizes, sizes))
    return sum(size * size for size in sizes.tolist())


def thin(segments: NDArray[np.int32]) -> NDArray[np.int32]:
    """Grow segments until only membrane one pixel wide remains between them.

    A 4-connected watershed (Vincent and Soille 1991) of the binary proposal; ties are resolved as in the official
    program of the ISBI 2012 challenge, whose V_Rand and V_Info depend on them (Arganda-Carreras et al. 2015).

    Parameters
    ----------
    segments : (y, x), int32
        4-connected components of the proposal; 0 on membrane.

    Returns
    -------
    (y, x), int32
        The grown segments; 0 where two of them meet. If there is no segment, the whole section is segment 1.

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
    kernels.flood(basins, queue, kernels.queue_basin_borders(basins, queue))
    return np.ascontiguousarray(basins[1:-1, 1:-1])


Labels = NDArray[np.uint64]
Counts = NDArray[np.int64]
NO_LABELS: Labels = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class Contingency:
    """Contingency table: number of pixels of each (reference label, result label) that occurs, sorted by the pair.

    Label 0 is background. All three arrays are (pairs,). Add only tables in which a label means the same object: those
    of the blocks of one frame or volume, not those of frames that are labelled independently.
    """

    reference: Labels
    result: Labels
    counts: Counts
    """Number of pixels of each pair, at least 1."""

    @classmethod
    def of(
        cls, reference: NDArray[np.integer], result: NDArray[np.integer], *, ignore: int | None = None
    ) -> Contingency:
        """Table of one block.

        Neighbouring pixels mostly have the same pair of labels, so only the starts of runs are sorted.

        Parameters
        ----------
        reference, result : same shape, integer
            Labels; 0 is background.
        ignore
            Value of the reference whose pixels are not counted.

        Raises
        ------
        UnetcliError
            Labels are not integers, or are negative.
        ValueError
            The shapes differ.
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
        """Table of pairs that are unsorted and may occur more than once; arguments (n,) each."""
        order = pair_order(reference, result)
        reference, result, counts = reference[order], result[order], counts[order]
        starts = run_starts(reference, result)
        return cls(reference[starts], result[starts], summed_runs(counts, starts))

    @classmethod
    def total(cls, tables: Sequence[Contingency]) -> Contingency:
        """Sum of any number of tables, sorted only once."""
        tables = [cls.of(NO_LABELS, NO_LABELS), *tables]
        return cls.summed(
            np.concatenate([table.reference for table in tables]),
            np.concatenate([table.result for table in tables]),
            np.concatenate([table.counts for table in tables]),
        )

    def __add__(self, other: Contingency) -> Contingency:
        return Contingency.total([self, other])


@dataclass(frozen=True, slots=True, eq=False)
class ObjectOverlaps:
    """Objects of a contingency table, and the pairs of objects that share pixels.

    Label 0 is not an object. The size of an object includes its pixels over background of the other image.
    """

    reference: Labels
    """(reference objects,): sorted labels."""
    reference_sizes: Counts
    """(reference objects,): sizes in pixels."""
    result: Labels
    """(result objects,): sorted labels."""
    result_sizes: Counts
    """(result objects,): sizes in pixels."""
    pairs: tuple[NDArray[np.intp], NDArray[np.intp]]
    """Indices into ``reference`` and ``result``, (pairs,) each, sorted by both labels."""
    shared: Counts
    """(pairs,): pixels of the intersection."""

    @classmethod
    def of(cls, table: Contingency) -> ObjectOverlaps:
        """Objects and pairs of a table."""
        reference, rows, reference_sizes = sizes(table.reference, table.counts)
        result, columns, result_sizes = sizes(table.result, table.counts)
        objects = (table.reference > 0) & (table.result > 0)
        pairs = rows[objects], columns[objects]
        return cls(reference, reference_sizes, result, result_sizes, pairs, table.counts[objects])

    @property
    def unions(self) -> Counts:
        """Pixels of the union of each pair, (pairs,)."""
        rows, columns = self.pairs
        unions: Counts = self.reference_sizes[rows] + self.result_sizes[columns] - self.shared
        return unions


def sizes(labels: Labels, counts: Counts) -> tuple[Labels, NDArray[np.intp], Counts]:
    """Sorted labels without 0, the index of each entry among them (-1 for background), and the size of each label."""
    order = np.argsort(labels, kind="stable")  # reference labels are sorted already, which costs no more than a copy
    ordered = labels[order]
    starts = run_starts(ordered)
    found, background = ordered[starts], int(labels.size > 0 and ordered[0] == 0)
    indices = np.empty(labels.size, np.intp)
    indices[order] = np.repeat(np.arange(starts.size) - background, np.diff(starts, append=labels.size))
    return found[background:], indices, summed_runs(counts[order], starts)[background:]


def run_starts(*columns: NDArray[Any]) -> NDArray[np.intp]:
    """Indices where a row of one or more columns differs from the row before it.

    >>> run_starts(np.array([4, 4, 4, 7]), np.array([1, 1, 2, 2])).tolist()
    [0, 2, 3]
    """
    changes = np.ones(columns[0].size, np.bool_)
    changes[1:] = False
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes)


def marginal(labels: Labels, counts: Counts) -> Counts:
    """Number of pixels of each label that occurs, sorted by label, including the background."""
    order = np.argsort(labels, kind="stable")
    return summed_runs(counts[order], run_starts(labels[order]))


def summed_runs(counts: Counts, starts: NDArray[np.intp]) -> Counts:
    """Sum of each run; ``reduceat`` itself fails without any run."""
    sums: Counts = np.add.reduceat(counts, starts) if starts.size else counts
    return sums


def pair_order(a: Labels, b: Labels) -> NDArray[np.intp]:
    """Order that sorts pairs; both labels are packed into one integer if they fit, which is several times faster."""
    bits = [int(labels.max(initial=0)).bit_length() for labels in (a, b)]
    if sum(bits) > 64 or bits[1] > 63:  # a shift by 64 is undefined
        return np.lexsort((b, a))
    return np.argsort(a << np.uint64(bits[1]) | b)


def as_labels(values: NDArray[Any]) -> Labels:
    """Convert labels to uint64; raises ``UnetcliError`` if they are not integers or negative."""
    if values.dtype.kind not in "bui":
        raise UnetcliError(f"labels of {values.dtype}: expected integers, 0 for background")
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise UnetcliError(f"label {values.min()}: expected 0 for background and positive labels")
    return values.astype(np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceObjects:
    """Reference objects sorted by label, and how each was detected; fields (object,)."""

    labels: Labels
    sizes: Counts
    result: Labels
    """Label of the result object that covers it; 0 if it was missed."""
    jaccard: NDArray[np.float64]
    """Intersection over union with that result object; 0 if it was missed."""
    shared_with: Counts
    """Number of other reference objects that the same result object covers; above 0, the objects are merged."""
    pieces: Counts
    """Number of result objects that it covers; above 1, the object is split."""


@dataclass(frozen=True, slots=True, eq=False)
class ResultObjects:
    """Result objects sorted by label, and what each one matches; fields (object,)."""

    labels: Labels
    sizes: Counts
    covers: Counts
    """Number of reference objects that it covers; above 1, it merges them."""
    inside: NDArray[np.bool_]
    """Whether a reference object covers it. An object that neither covers nor is covered is a false positive."""


def matched_objects(table: Contingency) -> tuple[ReferenceObjects, ResultObjects]:
    """Match the objects of one frame or volume, from its complete table.

    An object covers another one if it contains more than half of its pixels, as in the cell tracking challenge
    (Matula et al. 2015).
    """
    found = ObjectOverlaps.of(table)
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
