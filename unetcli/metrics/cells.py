"""Measures of detected and segmented cells: those of the cell tracking challenge, and matching by overlap.

Challenge: SEG and DET as its program computes them (Ulman et al. 2017; Matula et al. 2015). A reference object matches
the result object that covers more than half of it, whatever else that object covers.

Matching: a pair matches at a threshold if its intersection over union (IoU) is greater, as in the Data Science Bowl
2018 (Caicedo et al. 2019). From 0.5 on, an object has at most one match, so the order of matching does not matter. AP
at a threshold is TP / (TP + FP + FN), as there and in StarDist and Cellpose (which use >= instead of >); ``ap`` is its
mean over 0.5, 0.55 .. 0.95. Panoptic quality: Kirillov et al. 2019, eq. 1.

An object is a label of one frame or of one volume, connected or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.contingency import Contingency, ObjectOverlaps
from unetcli.metrics.sums import Score, TableSums, computed, json_list, quotient, score_entries

TWENTIETHS = range(10, 20)
THRESHOLDS = tuple(k / 20 for k in TWENTIETHS)
"""IoU thresholds 0.5 to 0.95; as integer twentieths they compare exactly with an IoU, a ratio of integers."""
MISSED, MERGED, SPURIOUS = 10, 5, 1
"""Costs of DET (Matula et al. 2015): to add a missed object, split a merged one, delete a spurious one."""

Numbers = NDArray[Any]


def seg_sums(reference: NDArray[np.integer], result: NDArray[np.integer]) -> tuple[float, int]:
    """Sums of one frame for SEG of the cell tracking challenge (Ulman et al. 2017).

    SEG = sum of all J / number of all reference objects, pooled over frames. J of a reference object is its IoU with
    the result object that covers more than half of it, or 0 if there is none. Result objects without a match do not
    count, because the reference of the challenge is partial. A label is one object, connected or not.

    Parameters
    ----------
    reference, result : same shape, integer
        Labels; 0 is background.

    Returns
    -------
    jaccard : float
        Sum of J.
    references : int
        Number of reference objects.

    Raises
    ------
    UnetcliError
        Labels are not integers, or are negative.
    """
    sums = CellSums.of(Contingency.of(reference, result))
    return float(sums.jaccard), int(sums.references)


@dataclass(frozen=True, slots=True, eq=False)
class CellSums(TableSums):
    """Sums of a frame, a volume or single objects for the scores of cells; fields (...) unless stated otherwise."""

    references: Numbers
    """Number of reference objects."""
    results: Numbers
    """Number of result objects."""
    jaccard: Numbers
    """Sum of J, as in :func:`seg_sums`."""
    missed: Numbers
    """Number of reference objects that no result object covers by more than half."""
    merged: Numbers
    """Sum of k - 1 over the result objects that cover k > 1 reference objects by more than half."""
    spurious: Numbers
    """Number of result objects that cover no reference object by more than half."""
    matches: Numbers
    """(..., threshold): number of pairs whose IoU exceeds each of ``THRESHOLDS``."""
    matched_iou: Numbers
    """Sum of the IoU of the pairs matched at 0.5."""

    @classmethod
    def of(cls, table: Contingency) -> Self:
        """Sums of one frame or volume, from its complete table; fields are scalar arrays, or (threshold,)."""
        overlaps = ObjectOverlaps.of(table)
        references, results = np.zeros(overlaps.reference.size, np.intp), np.zeros(overlaps.result.size, np.intp)
        return cls._by_unit(overlaps, references, results, count=1).total()

    @classmethod
    def of_objects(cls, table: Contingency, max_units: int | None = None) -> Self:
        """Sums of each object of one frame or volume; their total is that of the frame.

        A pair matched at 0.5 is one unit, and so is each other reference object and each other result object. Units
        with a reference object come first, sorted by label.

        Parameters
        ----------
        table
            The complete table of the frame or volume.
        max_units
            More units than this are combined into random groups; the groups of reference objects are the same for
            every result. Default: no limit.

        Returns
        -------
        CellSums
            Fields (unit, ...).
        """
        overlaps = ObjectOverlaps.of(table)
        rows, columns = overlaps.pairs
        same = 2 * overlaps.shared > overlaps.unions
        references = np.arange(overlaps.reference.size)
        alone = overlaps.result.size - int(np.count_nonzero(same))
        results = np.full(overlaps.result.size, -1)
        results[columns[same]] = rows[same]
        results[results < 0] = references.size + np.arange(alone)
        count = references.size + alone
        if max_units is not None and count > max_units:
            units = np.concatenate([random_groups(references.size, max_units), random_groups(alone, max_units)])
            return cls._by_unit(overlaps, units[references], units[results], count=max_units)
        return cls._by_unit(overlaps, references, results, count=count)

    @classmethod
    def _by_unit(cls, overlaps: ObjectOverlaps, references: Numbers, results: Numbers, count: int) -> Self:
        """Sums by unit, given the unit (0 to count - 1) of each reference object and of each result object."""

        def by_unit(units: Numbers, weights: Numbers) -> Numbers:
            return np.bincount(units, weights, minlength=count)

        rows, columns = overlaps.pairs
        covering = 2 * overlaps.shared > overlaps.reference_sizes[rows]  # at most one per object: half is not enough
        covered = np.bincount(rows[covering], minlength=references.size)
        covers = np.bincount(columns[covering], minlength=results.size)
        iou = overlaps.shared / overlaps.unions
        matched = [20 * overlaps.shared > k * overlaps.unions for k in TWENTIETHS]
        units = references[rows]
        return cls(
            references=by_unit(references, np.ones(references.size)),
            results=by_unit(results, np.ones(results.size)),
            jaccard=by_unit(units, iou * covering),
            missed=by_unit(references, covered == 0),
            merged=by_unit(results, np.maximum(covers - 1, 0)),
            spurious=by_unit(results, covers == 0),
            matches=np.stack([by_unit(units, at) for at in matched], axis=-1),
            matched_iou=by_unit(units, iou * matched[0]),
        )


def random_groups(count: int, limit: int) -> NDArray[np.intp]:
    """Group (0 to limit - 1) of each of ``count`` objects: one object per group if possible, else random but fixed."""
    return np.arange(count) if count <= limit else np.random.default_rng(count).permutation(count) % limit


def seg(sums: CellSums) -> Numbers:
    """SEG: mean J of the reference objects, (...), 0 to 1 (Ulman et al. 2017)."""
    return quotient(sums.jaccard, sums.references)


def det(sums: CellSums) -> Numbers:
    """DET: 1 - AOGM-D / AOGM-D0, (...), 0 to 1 (Matula et al. 2015).

    AOGM-D is the cost of correcting the detection, at most AOGM-D0, the cost of adding every reference object.
    """
    cost = MERGED * sums.merged + MISSED * sums.missed + SPURIOUS * sums.spurious
    from_scratch = MISSED * sums.references
    return 1 - quotient(np.minimum(cost, from_scratch), from_scratch)


def precisions(sums: CellSums) -> Numbers:
    """Share of the result objects that are matched, (..., threshold)."""
    return quotient(sums.matches, sums.results[..., None])


def recalls(sums: CellSums) -> Numbers:
    """Share of the reference objects that are matched, (..., threshold)."""
    return quotient(sums.matches, sums.references[..., None])


def f1s(sums: CellSums) -> Numbers:
    """F1 = 2 TP / (2 TP + FP + FN), (..., threshold)."""
    return quotient(2 * sums.matches, (sums.references + sums.results)[..., None])


def aps(sums: CellSums) -> Numbers:
    """Average precision as TP / (TP + FP + FN), (..., threshold) (Caicedo et al. 2019)."""
    return quotient(sums.matches, (sums.references + sums.results)[..., None] - sums.matches)


def pq(sums: CellSums) -> Numbers:
    """Panoptic quality: mean IoU of the matched pairs times F1 at 0.5, (...), 0 to 1 (Kirillov et al. 2019, eq. 1)."""
    return quotient(2 * sums.matched_iou, sums.references + sums.results)


NO_REFERENCE, NO_OBJECT = "the reference has no object", "there is no object"
SCORES: dict[str, Score[CellSums]] = {
    "seg": Score(seg, NO_REFERENCE),
    "det": Score(det, NO_REFERENCE),
    "precision": Score(lambda sums: precisions(sums)[..., 0], "the result has no object"),
    "recall": Score(lambda sums: recalls(sums)[..., 0], NO_REFERENCE),
    "f1": Score(lambda sums: f1s(sums)[..., 0], NO_OBJECT),
    "ap": Score(lambda sums: aps(sums).mean(axis=-1), NO_OBJECT),
    "pq": Score(pq, NO_OBJECT),
}
"""Scores by name."""
CURVES = {"precision": precisions, "recall": recalls, "f1": f1s, "ap": aps}
COMPLETE_ONLY = ("precision", "f1", "ap", "pq")
"""Scores that need a complete reference: a result object without a match lowers them."""


def scores(
    frames: Sequence[CellSums], *, markers: Sequence[CellSums] | None = None, partial: bool = False
) -> dict[str, Any]:
    """Scores by name, pooled over the frames (or the one volume).

    Parameters
    ----------
    frames
        Sums of each frame or volume; may be empty.
    markers
        Sums of the result against the markers of the challenge's TRA folder, for DET. Default: ``frames``.
    partial
        The reference does not contain all objects: only ``seg``, ``det`` and ``recall`` are reported, which extra
        result objects do not lower wrongly.

    Returns
    -------
    dict
        Each score, 0 to 1, higher is better; an undefined one is None, with the reason under ``<name>_reason``.
        ``ap_frame_mean`` is the mean of ``ap`` over frames, as in the Data Science Bowl. ``<name>_by_threshold`` are
        lists over ``iou_thresholds``.
    """
    total = CellSums.pooled(frames)
    found = computed(SCORES, total) | det_entries(frames if markers is None else markers)
    found |= score_entries("ap_frame_mean", mean_ap(frames), NO_OBJECT)
    found["iou_thresholds"] = list(THRESHOLDS)
    found |= {f"{name}_by_threshold": json_list(curve(total)) for name, curve in CURVES.items()}
    if partial:
        found |= withheld_entries()
    counts = {"reference_objects": total.references, "result_objects": total.results, "matched": total.matches[0]}
    return found | {name: int(count) for name, count in counts.items()}


def mean_ap(frames: Sequence[CellSums]) -> float:
    """Mean of ``ap`` over the frames that have an object; NaN if no frame has one."""
    each = [float(SCORES["ap"](frame)) for frame in frames if frame.references + frame.results]
    return float(np.mean(each)) if each else float("nan")


def det_entries(frames: Sequence[CellSums]) -> dict[str, Any]:
    """DET; None if a frame has no object in reference or result, as the official program refuses such frames.

    The reason for None includes the value that follows from the definition.
    """
    total = CellSums.pooled(frames)
    empty = {
        "result": sum(frame.results == 0 for frame in frames),
        "reference": sum(frame.references == 0 for frame in frames),
    }
    if total.references and any(empty.values()):
        where = " and ".join(f"{count} of the {which}" for which, count in empty.items() if count)
        reason = f"frames without objects: {where}; the challenge's program refuses them ({det(total):.6f} with them)"
        return score_entries("det", np.nan, reason)
    return score_entries("det", det(total), NO_REFERENCE)


def withheld_entries() -> dict[str, Any]:
    """None and the reason for each score that a partial reference does not allow."""
    reason = "the reference is partial: a result object without a match may be correct"
    names = [*COMPLETE_ONLY, "ap_frame_mean"]
    curves = {f"{name}_by_threshold": None for name in CURVES if name in COMPLETE_ONLY}
    return dict.fromkeys(names) | {f"{name}_reason": reason for name in names} | curves
