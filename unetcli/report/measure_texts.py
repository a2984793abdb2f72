"""Names and explanations of the measures, published scores, and the errors that the report marks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import distinct
from unetcli.evaluate.request import METRICS
from unetcli.evaluate.result import Evaluation, Scores, Section, SectionImages
from unetcli.metrics.contingency import ReferenceObjects, ResultObjects
from unetcli.metrics.em_counts import errors_at
from unetcli.metrics.warping import ErrorKind


@dataclass(frozen=True, slots=True)
class Measure:
    """Name and explanation of a score."""

    path: str
    """Metric and key, as in ``em.rand_error``."""
    name: str
    meaning: str
    """Explanation in one sentence."""
    lower: bool = True
    """Whether lower is better."""
    digits: int = 4

    @property
    def metric(self) -> str:
        return self.path.partition(".")[0]

    @property
    def key(self) -> str:
        return self.path.partition(".")[2]

    @property
    def best(self) -> str:
        return "0 is perfect" if self.lower else "1 is perfect"

    def value(self, scores: Scores) -> float | None:
        """Return the score; None if it is undefined or was not computed."""
        value = scores.get(self.metric, {}).get(self.key)
        return None if value is None else float(value)

    def detail(self, scores: Scores, what: str) -> Any:
        """Return one of the score's details: threshold, interval, reason, note or interval_reason."""
        return scores.get(self.metric, {}).get(f"{self.key}_{what}")

    def text(self, value: float | None) -> str:
        """Format a score.

        >>> MEASURES["em.rand_error"].text(0.25)
        '0.2500'
        """
        return "undefined" if value is None else f"{value:.{self.digits}f}"

    def interval_text(self, interval: Any) -> str:
        """Format an interval with the digits of the score; a hyphen if there is none.

        >>> MEASURES["em.rand_error"].interval_text([0.25, 0.5]), MEASURES["em.rand_error"].interval_text(None)
        ('0.2500 to 0.5000', '-')
        """
        return f"{self.text(interval[0])} to {self.text(interval[1])}" if interval and None not in interval else "-"


_error, _score = Measure, partial(Measure, lower=False)
_ALL = (
    _error("em.rand_error", "Rand error", "1 - F over pairs of pixels in one cell; counts splits and merges by area."),
    _error(
        "em.warping_error",
        "warping error",
        "Share of pixels that split a cell or merge two; small shifts of the membrane do not count.",
        digits=6,
    ),
    _error("em.pixel_error", "pixel error", "1 - F of the pixels, interior against membrane."),
    _error("em.pixel_disagreement", "pixel disagreement", "Share of misclassified pixels."),
    _score("em.v_rand", "V_Rand", "Agreement of cells by pairs of pixels; membrane width does not count."),
    _score("em.v_info", "V_Info", "Agreement of cells by information; membrane width does not count."),
    _error("em.rand_error_pairs", "Rand error (pairs)", "Rand error as normalised before 2015."),
    _error(
        "em.warping_error_classic",
        "warping error (classic)",
        "Share of pixels that warping cannot correct, including holes and lost cells.",
        digits=6,
    ),
    _score("cells.seg", "SEG", "Mean IoU of each true cell and the found cell that covers over half of it."),
    _score("cells.det", "DET", "1 - cost of correcting the detections, relative to adding all of them."),
    _score("cells.f1", "F1", "Harmonic mean of precision and recall of objects matched at IoU > 0.5."),
    _score("cells.ap", "AP 0.5-0.95", "TP / (TP + FP + FN), averaged over IoU thresholds from 0.5 to 0.95."),
    _score("cells.pq", "panoptic quality", "Mean IoU of matched objects, times F1."),
    _score("cells.precision", "precision of objects", "Share of the found objects that match a true object."),
    _score("cells.recall", "recall of objects", "Share of the true objects that were found."),
    _score("pixels.iou", "IoU", "Intersection over union of the foreground; of several classes, the mean."),
    _score("pixels.dice", "Dice", "Twice the intersection of the foreground over the sum of both areas."),
    _score("pixels.accuracy", "accuracy", "Share of pixels with the correct class."),
    _score("pixels.precision", "precision", "Share of the predicted foreground that is correct."),
    _score("pixels.recall", "recall", "Share of the true foreground that was found."),
    _score("pixels.average_precision", "average precision", "Mean precision over all thresholds, weighted by recall."),
    _error("pixels.calibration_error", "calibration error", "Mean difference of probability and observed share."),
    _score("pixels.dice_best", "best Dice", "Dice at the threshold that maximises it."),
    _error("voi.split", "VOI split", "Information lost where one object is split into several, in nats."),
    _error("voi.merge", "VOI merge", "Information lost where several objects are merged, in nats."),
    _error("voi.adapted_rand_error", "adapted Rand error", "1 - F over pairs of pixels inside true objects."),
    _error(
        "voi.adapted_rand_error_singletons",
        "adapted Rand error (singletons)",
        "The same, with background inside true objects counted as single pixels.",
    ),
)
MEASURES = {measure.path: measure for measure in _ALL}
"""Measures by path, the most important first."""
HEADLINES = {
    "em": ("rand_error", "warping_error", "pixel_error", "v_rand", "v_info"),
    "cells": ("seg", "det", "f1", "ap"),
    "pixels": ("iou", "dice", "accuracy", "average_precision", "calibration_error"),
    "voi": ("split", "merge", "adapted_rand_error"),
}
"""Scores of the summary, by metric; the others are only in the table of all scores."""
METRIC_NAMES = {
    "em": "EM challenge: cells and membrane",
    "cells": "Cells",
    "voi": "Variation of information",
    "pixels": "Pixels",
}
"""Metrics in the order of the page: objects before pixels."""
RANKING = ("em.rand_error", "cells.seg", "cells.f1", "voi.adapted_rand_error", "pixels.iou", "pixels.accuracy")
"""Sections are ranked by the first of these scores that they have, else by the leading score of a metric."""
UNET = "Ronneberger, Fischer and Brox, “U-Net: Convolutional Networks for Biomedical Image Segmentation”, MICCAI 2015"


@dataclass(frozen=True, slots=True)
class Published:
    """Scores published in a paper, to show beside those of the evaluation."""

    title: str
    columns: tuple[tuple[str, str], ...]
    """Path in ``MEASURES`` and name of each column."""
    rows: dict[str, tuple[str, ...]]
    """Published scores by method, one per column, with the digits that were published."""
    source: str
    comparable: tuple[str, ...]
    """Paragraphs that explain how far scores of other data compare with the published ones."""

    @property
    def metric(self) -> str:
        return MEASURES[self.columns[0][0]].metric


PUBLISHED = (
    Published(
        "EM segmentation challenge of ISBI 2012 (membranes in the fly's nerve cord)",
        (("em.warping_error", "warping error"), ("em.rand_error", "Rand error"), ("em.pixel_error", "pixel error")),
        {
            "human": ("0.000005", "0.0021", "0.0010"),
            "U-Net (2015)": ("0.000353", "0.0382", "0.0611"),
            "DIVE-SCI": ("0.000355", "0.0305", "0.0584"),
            "IDSIA, sliding window (2012)": ("0.000420", "0.0504", "0.0613"),
        },
        f"{UNET}, table 1, ranking of March 2015.",
        (
            "The organisers computed the published scores on 30 test sections whose labels were never made public. "
            "Your scores come from other sections: the scale is the same, but they are not a rank in that list.",
            "Scores on held-out sections of the challenge's own training stack come closest. With other tissue, pixel "
            "size or annotators, a difference says as much about the data as about the network.",
            "As in the challenge, each score uses the threshold that is best on the evaluated sections themselves.",
        ),
    ),
    Published(
        "Cell tracking challenge of ISBI 2015 (mean IoU of the true cells, SEG)",
        (("cells.seg", "PhC-U373"), ("cells.seg", "DIC-HeLa")),
        {
            "U-Net (2015)": ("0.9203", "0.7756"),
            "second best of 2015": ("0.83", "0.46"),
            "KTH-SE (2014)": ("0.7953", "0.4607"),
        },
        f"{UNET}, table 2.",
        (
            "The published scores are for the hidden test sequences of two data sets: glioblastoma cells in phase "
            "contrast and HeLa cells in differential interference contrast. SEG is computed here exactly as in the "
            "challenge, but on your frames and your truth.",
            "For other cells, the published scores are only a rough guide. Even for these two data sets, the public "
            "truth is of the training sequences, and some of it (silver truth) was made by programs.",
        ),
    ),
)


def metrics_of(evaluation: Evaluation) -> list[str]:
    """Metrics of the evaluation, in the order of the page."""
    return [metric for metric in METRIC_NAMES if metric in evaluation.metrics]


def scored(evaluation: Evaluation, metric: str) -> list[Measure]:
    """Measures of one metric that the evaluation has, including undefined ones."""
    found = evaluation.scores.get(metric, {})
    return [measure for measure in MEASURES.values() if measure.metric == metric and measure.key in found]


def headlines(evaluation: Evaluation, metric: str) -> list[Measure]:
    """Measures of one metric that the summary shows."""
    return [measure for measure in scored(evaluation, metric) if measure.key in HEADLINES[metric]]


def ranked_by(evaluation: Evaluation) -> Measure | None:
    """Measure that sections are ranked by; None if no section has a score to rank by."""
    paths = (*RANKING, *(f"{name}.{metric.leading}" for name, metric in METRICS.items()))
    measures = (MEASURES[path] for path in paths)
    return next((m for m in measures if any(m.value(s.scores) is not None for s in evaluation.sections)), None)


def count(number: int, noun: str) -> str:
    """Format a number and its noun.

    >>> count(1, "section"), count(12000, "pixel")
    ('1 section', '12,000 pixels')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Format a share as a percentage.

    >>> percent(0.0834), percent(0.00007)
    ('8.3 %', '0.007 %')
    """
    return f"{100 * share:.1f} %" if share >= 0.001 or not share else f"{100 * share:.1g} %"


SPLIT, MERGE, MISSED, EXTRA, WRONG = "split", "merge", "missed", "extra", "wrong"
NAMES = {
    SPLIT: ("S", "split: one cell divided into several"),
    MERGE: ("M", "merge: several cells joined into one"),
    MISSED: ("-", "missed: a true cell that was not found"),
    EXTRA: ("+", "extra: a found cell that is not in the truth"),
    WRONG: ("!", "wrong: a patch of misclassified pixels"),
}
"""Letter and description of each kind of error."""
NEAR = 2
"""Number of dilations that join nearby pixels of a split or merge to one mark."""
LEAST_PATCH = 12
"""Size in pixels of the smallest patch of misclassified pixels that is marked."""
SQUARE = np.ones((3, 3), bool)
"""Neighbourhood of a pixel, including diagonal neighbours."""
Places = dict[int, tuple[float, float, float]]
"""Centre y and x of each label's bounding box, and half its longer side, in pixels."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An error at a place in the section; y, x and radius are in pixels."""

    kind: str
    y: float
    x: float
    radius: float
    size: int
    """Number of pixels of the error or its object."""
    text: str

    def scaled(self, factor: int) -> dict[str, Any]:
        """Fields of the mark for a picture that is downsampled by ``factor``."""
        shrunk = {name: round(getattr(self, name) / factor, 1) for name in ("y", "x", "radius")}
        return asdict(self) | shrunk


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One true object, or one found object that matches no true object."""

    section: Section
    label: int
    """Label of the true object; 0 if there is none."""
    outcome: str
    """``found`` or a kind of error."""
    overlap: float
    size: int
    result: int
    """Label of the found object; 0 if there is none."""
    place: tuple[float, float, float]
    """Centre y, x and radius, in pixels of the section."""


def splits_and_merges(images: SectionImages, level: float) -> list[Mark]:
    """Splits and merges of the warping error at threshold ``level``, one mark for each group of nearby pixels."""
    assert images.probability is not None
    interior = images.reference != 0
    found = errors_at(images.probability[0], interior, level, images.valid)
    marks = []
    for kind, name, adjective in ((ErrorKind.SPLIT, SPLIT, "extra"), (ErrorKind.MERGE, MERGE, "missing")):
        pixels = np.zeros(interior.shape, bool)
        pixels[tuple(found.of(kind).T)] = True
        reach = ndimage.binary_dilation(pixels, SQUARE, iterations=NEAR)
        marks += [Mark(name, *at, size, f"{size} px of {adjective} membrane") for at, size in _patches(pixels, reach)]
    return largest_first(marks)


def wrong_patches(wrong: NDArray[np.bool_]) -> list[Mark]:
    """Connected patches of at least ``LEAST_PATCH`` misclassified pixels; ``wrong`` is (y, x)."""
    found = [(at, size) for at, size in _patches(wrong, wrong) if size >= LEAST_PATCH]
    return largest_first([Mark(WRONG, *at, size, f"{size} misclassified px") for at, size in found])


def _patches(pixels: NDArray[np.bool_], reach: NDArray[np.bool_]) -> Iterator[tuple[tuple[float, float, float], int]]:
    """Place and number of pixels of each group of ``pixels`` that ``reach`` connects."""
    groups, count = ndimage.label(reach, SQUARE)
    groups[~pixels] = 0
    sizes = np.bincount(groups.ravel(), minlength=count + 1)
    for label, place in places_of(groups).items():
        yield place, int(sizes[label])


def object_errors(objects: tuple[ReferenceObjects, ResultObjects], places: tuple[Places, Places]) -> list[Mark]:
    """Split, missed, merged and extra objects; both arguments are for the reference and the result, in this order."""
    reference, result = objects
    marks = []
    for label, pieces, found, size in zip(*_lists(reference, "labels", "pieces", "result", "sizes"), strict=True):
        if pieces > 1:
            marks.append(Mark(SPLIT, *places[0][label], size, f"true cell {label} in {pieces} pieces"))
        elif not found:
            marks.append(Mark(MISSED, *places[0][label], size, f"true cell {label}, {size} px"))
    for label, covers, inside, size in zip(*_lists(result, "labels", "covers", "inside", "sizes"), strict=True):
        if covers > 1:
            joined = reference.labels[reference.result == label].tolist()
            named = ", ".join(map(str, joined[:4])) + (" .." if len(joined) > 4 else "")
            marks.append(Mark(MERGE, *places[1][label], size, f"found cell {label} joins true cells {named}"))
        elif not covers and not inside:
            marks.append(Mark(EXTRA, *places[1][label], size, f"found cell {label}, {size} px"))
    return largest_first(marks)


def outcomes(reference: ReferenceObjects) -> list[str]:
    """Outcome of each reference object: found, merge, split or missed. Merge takes precedence over split."""
    conditions = [reference.shared_with > 0, reference.pieces > 1, reference.result == 0]
    found: list[str] = np.select(conditions, [MERGE, SPLIT, MISSED], "found").tolist()
    return found


def object_rows(
    section: Section, objects: tuple[ReferenceObjects, ResultObjects], places: tuple[Places, Places]
) -> Iterator[ObjectRow]:
    """Rows for all true objects of a section, then for the found objects that match none."""
    reference, result = objects
    columns = _lists(reference, "labels", "jaccard", "sizes", "result")
    for outcome, label, overlap, size, found in zip(outcomes(reference), *columns, strict=True):
        yield ObjectRow(section, label, outcome, overlap, size, found, places[0][label])
    for label, covers, inside, size in zip(*_lists(result, "labels", "covers", "inside", "sizes"), strict=True):
        if not covers and not inside:
            yield ObjectRow(section, 0, EXTRA, 0.0, size, label, places[1][label])


def _lists(objects: ReferenceObjects | ResultObjects, *names: str) -> list[list[Any]]:
    """Columns of a table of objects, as lists of plain values."""
    return [getattr(objects, name).tolist() for name in names]


def largest_first(marks: list[Mark]) -> list[Mark]:
    return sorted(marks, key=lambda mark: -mark.size)


def places_of(labels: NDArray[Any]) -> Places:
    """Place of each label except 0; ``labels`` is (y, x), integer."""
    names, compact = distinct(labels)
    boxes = ndimage.find_objects(compact.astype(np.int32) + 1)
    return {int(name): _middle(box) for name, box in zip(names, boxes, strict=True) if name}


def _middle(box: tuple[slice, ...]) -> tuple[float, float, float]:
    y, x = ((side.start + side.stop - 1) / 2 for side in box)
    return y, x, max(side.stop - side.start for side in box) / 2
