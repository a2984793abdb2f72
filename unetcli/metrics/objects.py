"""Object by object: which reference objects were found, missed, split or merged, and which result objects are extra.

Covered is what lies by more than half in another object, as in the cell tracking challenge. For lists and pictures;
the scores themselves are in :mod:`unetcli.metrics.cells`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.contingency import Contingency, Counts, Labels, Overlaps


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
    """The objects of one frame or volume, from its whole table."""
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
