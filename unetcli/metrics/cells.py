"""Measures of detected and segmented cells: those of the cell tracking challenge, and of matching by overlap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.contingency import Contingency, Overlaps


def seg_sums(reference: NDArray[np.integer], result: NDArray[np.integer]) -> tuple[float, int]:
    """What one frame, (y, x) labels each, adds to SEG: the sum of J, and the number of reference objects.

    SEG = sum of all J / number of all reference objects, pooled over frames (cell tracking challenge, 2017). J of a
    reference object is its intersection over union with the result object that covers more than half of it, else 0.
    Result objects without counterpart do not count: the challenge's truth is partial. A label is one object, connected
    or not.
    """
    jaccard = jaccards(Overlaps.of(Contingency.of(reference, result)))
    return float(jaccard.sum()), jaccard.size


def jaccards(overlaps: Overlaps) -> NDArray[np.float64]:
    """J of each reference object, as in :func:`seg_sums`."""
    rows, _ = overlaps.pairs
    covered = 2 * overlaps.shared > overlaps.reference_sizes[rows]  # exactly half is no match; one match at most
    found = np.zeros(overlaps.reference.size)
    found[rows[covered]] = overlaps.shared[covered] / overlaps.unions[covered]
    return found
