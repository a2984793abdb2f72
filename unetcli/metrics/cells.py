"""Measures of detected and segmented cells: those of the cell tracking challenge, and of matching by overlap.

Challenge: SEG and DET as its program computes them (Ulman et al. 2017; Matula et al. 2015). A reference object and the
result object that covers more than half of it belong together, whatever else that covers.

Matching: a pair is matched at a threshold if its intersection over union is greater, as in the data science bowl 2018
(Caicedo et al. 2019). From 0.5 on an object has one match at most, so nothing depends on an order. AP at a threshold
is TP / (TP + FP + FN), as there and in StarDist and Cellpose (which take >= for >); ``ap`` is its mean over
0.5, 0.55 .. 0.95. Panoptic quality: Kirillov et al. 2019.

An object is a label of one frame, or of one volume; connected or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.contingency import NOTHING, Contingency, Overlaps
from unetcli.metrics.sums import Sums, listed, quotient, stated

TWENTIETHS = range(10, 20)
THRESHOLDS = tuple(k / 20 for k in TWENTIETHS)
"""0.5 to 0.95 in steps of 0.05; as twentieths they compare exactly with an overlap, which is a ratio of integers."""
MISSED, MERGED, SPURIOUS = 10, 5, 1
"""What it costs to put a detection right: add a missed object, part a merged one, delete a spurious one."""

Numbers = NDArray[Any]


def seg_sums(reference: NDArray[np.integer], result: NDArray[np.integer]) -> tuple[float, int]:
    """What one frame, (y, x) labels each, adds to SEG: the sum of J, and the number of reference objects.

    SEG = sum of all J / number of all reference objects, pooled over frames (cell tracking challenge, 2017). J of a
    reference object is its intersection over union with the result object that covers more than half of it, else 0.
    Result objects without counterpart do not count: the challenge's truth is partial. A label is one object, connected
    or not.
    """
    sums = CellSums.of(Contingency.of(reference, result))
    return float(sums.jaccard), int(sums.references)


@dataclass(frozen=True, slots=True, eq=False)
class CellSums(Sums):
    """What a frame, a volume or one object adds to the scores of cells."""

    references: Numbers
    """Reference objects."""
    results: Numbers
    """Result objects."""
    jaccard: Numbers
    """Sum of J, as in :func:`seg_sums`."""
    missed: Numbers
    """Reference objects that no result object covers by more than half."""
    merged: Numbers
    """k - 1 for each result object that covers k > 1 reference objects by more than half."""
    spurious: Numbers
    """Result objects that cover no reference object by more than half."""
    matches: Numbers
    """(..., threshold): pairs whose intersection over union is greater than each of ``THRESHOLDS``."""
    matched_iou: Numbers
    """Sum of the intersection over union of the pairs matched at 0.5."""

    @classmethod
    def of(cls, table: Contingency) -> CellSums:
        """Sums of one frame or volume, from its whole table."""
        overlaps = Overlaps.of(table)
        references, results = np.zeros(overlaps.reference.size, np.intp), np.zeros(overlaps.result.size, np.intp)
        return cls._by_unit(overlaps, references, results, count=1).total()

    @classmethod
    def of_objects(cls, table: Contingency, most: int | None = None) -> CellSums:
        """Sums of each object of one frame or volume, (object, ...), which add up to those of the frame.

        A pair matched at 0.5 is one object; so is each other reference object, and each other result object. Reference
        objects come first, in the order of labels. Where there are more than ``most`` units, they are put together at
        random: reference objects in the same groups for whatever result.
        """
        overlaps = Overlaps.of(table)
        rows, columns = overlaps.pairs
        same = 2 * overlaps.shared > overlaps.unions
        references = np.arange(overlaps.reference.size)
        alone = overlaps.result.size - int(np.count_nonzero(same))
        results = np.full(overlaps.result.size, -1)
        results[columns[same]] = rows[same]
        results[results < 0] = references.size + np.arange(alone)
        count = references.size + alone
        if most is not None and count > most:
            units = np.concatenate([groups(references.size, most), groups(alone, most)])
            return cls._by_unit(overlaps, units[references], units[results], count=most)
        return cls._by_unit(overlaps, references, results, count=count)

    @classmethod
    def _by_unit(cls, overlaps: Overlaps, references: Numbers, results: Numbers, count: int) -> CellSums:
        """Sums by unit, given the unit, 0..count-1, of each reference object and of each result object."""

        def by_unit(units: Numbers, weights: Numbers) -> Numbers:
            return np.bincount(units, weights, minlength=count)

        rows, columns = overlaps.pairs
        covering = 2 * overlaps.shared > overlaps.reference_sizes[rows]  # exactly half is no match; one match at most
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


def groups(count: int, most: int) -> NDArray[np.intp]:
    """The group, 0 to most - 1, of each of some objects: one each as far as that goes, else at random, always alike."""
    return np.arange(count) if count <= most else np.random.default_rng(count).permutation(count) % most


def seg(sums: CellSums) -> Numbers:
    """Mean J of the reference objects."""
    return quotient(sums.jaccard, sums.references)


def det(sums: CellSums) -> Numbers:
    """1 - cost of putting the detection right / cost of making it anew, not below 0."""
    cost = MERGED * sums.merged + MISSED * sums.missed + SPURIOUS * sums.spurious
    anew = MISSED * sums.references
    return 1 - quotient(np.minimum(cost, anew), anew)


def precisions(sums: CellSums) -> Numbers:
    """(..., threshold): share of the result objects that are matched."""
    return quotient(sums.matches, sums.results[..., None])


def recalls(sums: CellSums) -> Numbers:
    """(..., threshold): share of the reference objects that are matched."""
    return quotient(sums.matches, sums.references[..., None])


def f1s(sums: CellSums) -> Numbers:
    """(..., threshold): 2 TP / (2 TP + FP + FN)."""
    return quotient(2 * sums.matches, (sums.references + sums.results)[..., None])


def aps(sums: CellSums) -> Numbers:
    """(..., threshold): TP / (TP + FP + FN)."""
    return quotient(sums.matches, (sums.references + sums.results)[..., None] - sums.matches)


def pq(sums: CellSums) -> Numbers:
    """Panoptic quality: mean intersection over union of the matched pairs, times F1 at 0.5."""
    return quotient(2 * sums.matched_iou, sums.references + sums.results)


SCORES: dict[str, Callable[[CellSums], Numbers]] = {
    "seg": seg,
    "det": det,
    "precision": lambda sums: precisions(sums)[..., 0],
    "recall": lambda sums: recalls(sums)[..., 0],
    "f1": lambda sums: f1s(sums)[..., 0],
    "ap": lambda sums: aps(sums).mean(axis=-1),
    "pq": pq,
}
"""Scores by name, from sums with any leading axes; NaN where there is nothing to judge."""
CURVES = {"precision": precisions, "recall": recalls, "f1": f1s, "ap": aps}
OF_ALL_OBJECTS = ("precision", "f1", "ap", "pq")
"""Scores that hold every result object without counterpart against the result."""


def scores(
    frames: Sequence[CellSums], *, markers: Sequence[CellSums] | None = None, partial: bool = False
) -> dict[str, Any]:
    """Scores by name, pooled over the frames (or the one volume); ``*_by_threshold`` as ``iou_thresholds`` say.

    Parameters
    ----------
    markers
        Sums against the markers of the challenge's TRA folder, of which DET is computed; else against ``frames``.
    partial
        The reference leaves objects out: what holds extra result objects against the result is None.
        ``seg``, ``det`` and ``recall`` stay.

    A score that is not defined is None, with the reason under ``<name>_reason``. ``ap_frame_mean`` is the mean of the
    frames' own ``ap``, as the data science bowl took it.
    """
    total = pooled(frames)
    found: dict[str, Any] = {}
    for name, score in SCORES.items():
        found |= stated(name, score(total), nothing(name))
    found |= stated_det(frames if markers is None else markers)
    found |= stated("ap_frame_mean", mean_ap(frames), nothing("ap"))
    found["iou_thresholds"] = list(THRESHOLDS)
    found |= {f"{name}_by_threshold": listed(curve(total)) for name, curve in CURVES.items()}
    if partial:
        found |= withheld()
    counts = {"reference_objects": total.references, "result_objects": total.results, "matched": total.matches[0]}
    return found | {name: int(count) for name, count in counts.items()}


def pooled(frames: Sequence[CellSums]) -> CellSums:
    """Sum over frames, of which there may be none."""
    return sum(frames, start=CellSums.of(Contingency.of(NOTHING, NOTHING)))


def mean_ap(frames: Sequence[CellSums]) -> float:
    """Mean of ``ap`` over the frames that have an object; NaN if none has."""
    each = [float(SCORES["ap"](frame)) for frame in frames if frame.references + frame.results]
    return float(np.mean(each)) if each else float("nan")


def stated_det(frames: Sequence[CellSums]) -> dict[str, Any]:
    """DET, withheld where the challenge's program refuses: a frame without object in reference or result.

    The number that the definition would give is told in the reason.
    """
    total = pooled(frames)
    empty = {
        "result": sum(frame.results == 0 for frame in frames),
        "reference": sum(frame.references == 0 for frame in frames),
    }
    if total.references and any(empty.values()):
        where = " and ".join(f"{count} of the {which}" for which, count in empty.items() if count)
        reason = f"frames without object: {where}; the challenge's program refuses them ({det(total):.6f} with them)"
        return stated("det", np.nan, reason)
    return stated("det", det(total), nothing("det"))


def nothing(name: str) -> str:
    """Why a score is not defined."""
    if name == "precision":
        return "the result has no object"
    return "the reference has no object" if name in ("seg", "det", "recall") else "there is no object"


def withheld() -> dict[str, Any]:
    """Scores that a partial reference cannot give."""
    reason = "the reference is partial: a result object without counterpart may be right"
    names = [*OF_ALL_OBJECTS, "ap_frame_mean"]
    curves = {f"{name}_by_threshold": None for name in CURVES if name in OF_ALL_OBJECTS}
    return dict.fromkeys(names) | {f"{name}_reason": reason for name in names} | curves
