"""How many pixels bear each pair of labels: a sparse table that adds up over blocks, whatever their size or order.

Cells, variation of information and the Rand error all follow from it, so a volume is read once and in any pieces; so
does which objects were found, missed, split or merged, for lists and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError

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
