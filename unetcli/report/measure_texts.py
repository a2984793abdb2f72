"""The words of a report: its measures, and the kinds of errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import distinct
from unetcli.evaluate.result import Evaluation, Scores, Section, SectionImages
from unetcli.metrics.contingency import ReferenceObjects, ResultObjects
from unetcli.metrics.em_counts import errors_at
from unetcli.metrics.warping import ErrorKind


@dataclass(frozen=True, slots=True)
class Measure:
    """A score, as people read it."""

    path: str
    """Metric and key, as in ``em.rand_error``."""
    name: str
    meaning: str
    """A line that needs no other."""
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
        """The score; None where it is not defined or was not asked for."""
        value = scores.get(self.metric, {}).get(self.key)
        return None if value is None else float(value)

    def detail(self, scores: Scores, what: str) -> Any:
        """What stands beside the score: threshold, interval, reason, note, interval_reason."""
        return scores.get(self.metric, {}).get(f"{self.key}_{what}")

    def text(self, value: float | None) -> str:
        """
        >>> MEASURES["em.rand_error"].text(0.25)
        '0.2500'
        """
        return "undefined" if value is None else f"{value:.{self.digits}f}"

    def interval_text(self, interval: Any) -> str:
        """Both ends with as many digits as the score; a hyphen where there is none.

        >>> MEASURES["em.rand_error"].interval_text([0.25, 0.5]), MEASURES["em.rand_error"].interval_text(None)
        ('0.2500 to 0.5000', '-')
        """
        return f"{self.text(interval[0])} to {self.text(interval[1])}" if interval and None not in interval else "-"


_error, _score = Measure, partial(Measure, lower=False)
_ALL = (
    _error("em.rand_error", "Rand error", "1 - F of pairs of pixels that share a cell: splits and merges, by area."),
    _error(
        "em.warping_error",
        "warping error",
        "Share of pixels where a cell is cut or two are joined, small shifts of the membrane forgiven.",
        digits=6,
    ),
    _error("em.pixel_error", "pixel error", "1 - F of interior and membrane, pixel by pixel."),
    _error("em.pixel_disagreement", "pixel disagreement", "Share of pixels on the wrong side."),
    _score("em.v_rand", "V_Rand", "How well cells agree in pairs of pixels, the width of membrane ignored."),
    _score("em.v_info", "V_Info", "How well cells agree in information, the width of membrane ignored."),
    _error("em.rand_error_pairs", "Rand error (pairs)", "Rand error as it was normalised before 2015."),
    _error(
        "em.warping_error_classic",
        "warping error (classic)",
        "Every pixel that warping cannot bend away, holes and lost cells included.",
        digits=6,
    ),
    _score("cells.seg", "SEG", "Mean overlap of each true cell with the one found in its place."),
    _score("cells.det", "DET", "1 - cost of putting the detections right, as a share of making them."),
    _score("cells.f1", "F1", "Balance of precision and recall of objects that overlap by more than 0.5."),
    _score("cells.ap", "AP 0.5-0.95", "TP / (TP + FP + FN), mean over overlaps of 0.5 to 0.95."),
    _score("cells.pq", "panoptic quality", "Mean overlap of matched objects, times F1."),
    _score("cells.precision", "precision of objects", "Share of the found objects that are true."),
    _score("cells.recall", "recall of objects", "Share of the true objects that were found."),
    _score("pixels.iou", "IoU", "Shared foreground over all foreground; of several classes the mean."),
    _score("pixels.dice", "Dice", "Twice the shared foreground over the sum of both."),
    _score("pixels.accuracy", "accuracy", "Share of pixels of the right class."),
    _score("pixels.precision", "precision", "Share of the predicted foreground that is true."),
    _score("pixels.recall", "recall", "Share of the true foreground that was found."),
    _score("pixels.average_precision", "average precision", "Precision over all thresholds, weighed by recall."),
    _error("pixels.calibration_error", "calibration error", "How far probabilities are from what is right."),
    _score("pixels.dice_best", "best Dice", "Dice at the threshold that suits it best."),
    _error("voi.split", "VOI split", "Nats lost where one object is cut into several."),
    _error("voi.merge", "VOI merge", "Nats lost where several objects became one."),
    _error("voi.adapted_rand_error", "adapted Rand error", "1 - F of pairs of pixels in true objects."),
    _error(
        "voi.adapted_rand_error_singletons",
        "adapted Rand error (singletons)",
        "The same, background inside objects being single pixels.",
    ),
)
MEASURES = {measure.path: measure for measure in _ALL}
"""By path, the ones that matter most first."""
HEADLINES = {
    "em": ("rand_error", "warping_error", "pixel_error", "v_rand", "v_info"),
    "cells": ("seg", "det", "f1", "ap"),
    "pixels": ("iou", "dice", "accuracy", "average_precision", "calibration_error"),
    "voi": ("split", "merge", "adapted_rand_error"),
}
"""The scores of the summary; all others are in the table of all numbers."""
METRIC_NAMES = {
    "em": "EM challenge: cells and membrane",
    "cells": "Cells",
    "voi": "Variation of information",
    "pixels": "Pixels",
}
"""In the order of the page: what is about objects before what is about pixels."""
RANKING = ("em.rand_error", "cells.seg", "cells.f1", "voi.adapted_rand_error", "pixels.iou", "pixels.accuracy")
"""Sections are ranked by the first of these that was scored."""
UNET = "Ronneberger, Fischer and Brox, “U-Net: Convolutional Networks for Biomedical Image Segmentation”, MICCAI 2015"


@dataclass(frozen=True, slots=True)
class Published:
    """A table of a paper."""

    title: str
    columns: tuple[tuple[str, str], ...]
    """The measure that is shown for this evaluation (a path in ``MEASURES``) and the name of each column."""
    rows: dict[str, tuple[str, ...]]
    """The published figures by method, with as many digits as were published."""
    source: str
    comparable: tuple[str, ...]
    """Whether figures of other data may be compared with them."""

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
            "The published figures were measured by the organisers on 30 test sections whose labels were never made "
            "public, so nobody can repeat them. Yours come from other sections: they lie on the same scale, but are "
            "no rank in that list.",
            "They come close to comparable on held-out sections of that challenge's own training stack. For other "
            "tissue, pixel size or annotators, a difference says as much about the data as about the network.",
            "Like theirs, every score takes the threshold that suits it best on the very sections it is computed on.",
        ),
    ),
    Published(
        "Cell tracking challenge of ISBI 2015 (mean overlap of true cells, SEG)",
        (("cells.seg", "PhC-U373"), ("cells.seg", "DIC-HeLa")),
        {
            "U-Net (2015)": ("0.9203", "0.7756"),
            "second best of 2015": ("0.83", "0.46"),
            "KTH-SE (2014)": ("0.7953", "0.4607"),
        },
        f"{UNET}, table 2.",
        (
            "The published figures are for two particular data sets, glioblastoma cells in phase contrast and HeLa "
            "cells in differential interference contrast, on hidden test sequences. SEG is computed here exactly as "
            "the challenge computes it, but on your frames and your truth.",
            "For other cells they are orientation only. Even for the same two, public truth is of training sequences, "
            "and partly (silver truth) made by programs.",
        ),
    ),
)


def metrics_of(evaluation: Evaluation) -> list[str]:
    """The metrics that were scored, in the order of the page."""
    return [metric for metric in METRIC_NAMES if metric in evaluation.metrics]


def scored(evaluation: Evaluation, metric: str) -> list[Measure]:
    """The measures of one metric that the evaluation has, undefined ones too."""
    found = evaluation.scores.get(metric, {})
    return [measure for measure in MEASURES.values() if measure.metric == metric and measure.key in found]


def headlines(evaluation: Evaluation, metric: str) -> list[Measure]:
    """The scored measures of one metric that the summary shows."""
    return [measure for measure in scored(evaluation, metric) if measure.key in HEADLINES[metric]]


def ranked_by(evaluation: Evaluation) -> Measure | None:
    """The measure that says which section is worst; None where no section has one."""
    measures = (MEASURES[path] for path in RANKING)
    return next((m for m in measures if any(m.value(s.scores) is not None for s in evaluation.sections)), None)


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "section"), count(12000, "pixel")
    ('1 section', '12,000 pixels')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """
    >>> percent(0.0834), percent(0.00007)
    ('8.3 %', '0.007 %')
    """
    return f"{100 * share:.1f} %" if share >= 0.001 or not share else f"{100 * share:.1g} %"


SPLIT, MERGE, MISSED, EXTRA, WRONG = "split", "merge", "missed", "extra", "wrong"
NAMES = {
    SPLIT: ("S", "split: one cell cut into several"),
    MERGE: ("M", "merge: several cells joined into one"),
    MISSED: ("-", "missed: a true cell that was not found"),
    EXTRA: ("+", "extra: a found cell that the truth does not have"),
    WRONG: ("!", "wrong: a patch of wrong pixels"),
}
"""By kind of error: the letter of its sign, and its name."""
NEAR = 2
"""Dilations by which pixels of a split or merge grow together to one mark."""
LEAST_PATCH = 12
"""Pixels of the smallest patch of wrong pixels that is marked."""
SQUARE = np.ones((3, 3), bool)
"""Neighbourhood of a pixel: corners count."""
Places = dict[int, tuple[float, float, float]]
"""By label: y and x of the middle of its bounding box, and half its longer side, in pixels."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An error and where it is; y, x and radius in pixels of the section."""

    kind: str
    y: float
    x: float
    radius: float
    size: int
    """Pixels that it is about."""
    text: str

    def scaled(self, factor: int) -> dict[str, Any]:
        """For a picture that is thinner by ``factor``."""
        shrunk = {name: round(getattr(self, name) / factor, 1) for name in ("y", "x", "radius")}
        return asdict(self) | shrunk


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One true object, or one found object without a counterpart."""

    section: Section
    label: int
    """The true object; 0: none."""
    fate: str
    overlap: float
    size: int
    result: int
    """The found object in its place; 0: none."""
    place: tuple[float, float, float]
    """y, x and radius, in pixels of the section."""


def splits_and_merges(images: SectionImages, level: float) -> list[Mark]:
    """Splits and merges of the warping error at a threshold; pixels that lie together are one mark."""
    assert images.probability is not None
    interior = images.reference != 0
    found = errors_at(images.probability[0], interior, level, images.valid)
    marks = []
    for kind, name, what in ((ErrorKind.SPLIT, SPLIT, "too much"), (ErrorKind.MERGE, MERGE, "missing")):
        pixels = np.zeros(interior.shape, bool)
        pixels[tuple(found.of(kind).T)] = True
        reach = ndimage.binary_dilation(pixels, SQUARE, iterations=NEAR)
        marks += [Mark(name, *at, size, f"{size} px of membrane {what}") for at, size in _patches(pixels, reach)]
    return largest_first(marks)


def wrong_patches(wrong: NDArray[np.bool_]) -> list[Mark]:
    """The connected patches of wrong pixels that are worth looking at."""
    found = [(at, size) for at, size in _patches(wrong, wrong) if size >= LEAST_PATCH]
    return largest_first([Mark(WRONG, *at, size, f"{size} wrong pixels") for at, size in found])


def _patches(pixels: NDArray[np.bool_], reach: NDArray[np.bool_]) -> Iterator[tuple[tuple[float, float, float], int]]:
    """Place and number of pixels of each group that is connected within ``reach``."""
    groups, count = ndimage.label(reach, SQUARE)
    groups[~pixels] = 0
    sizes = np.bincount(groups.ravel(), minlength=count + 1)
    for label, place in places_of(groups).items():
        yield place, int(sizes[label])


def object_errors(objects: tuple[ReferenceObjects, ResultObjects], places: tuple[Places, Places]) -> list[Mark]:
    """What went wrong with objects: of the reference and of the result."""
    reference, result = objects
    marks = []
    for label, pieces, found, size in zip(*_lists(reference, "labels", "pieces", "result", "sizes"), strict=True):
        if pieces > 1:
            marks.append(Mark(SPLIT, *places[0][label], size, f"true cell {label} lies in {pieces} pieces"))
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


def fates(reference: ReferenceObjects) -> list[str]:
    """What became of each reference object: found, merge, split or missed; merge goes before split."""
    conditions = [reference.shared_with > 0, reference.pieces > 1, reference.result == 0]
    found: list[str] = np.select(conditions, [MERGE, SPLIT, MISSED], "found").tolist()
    return found


def object_rows(
    section: Section, objects: tuple[ReferenceObjects, ResultObjects], places: tuple[Places, Places]
) -> Iterator[ObjectRow]:
    """Every true object of a section, and every found one without a counterpart, for the table."""
    reference, result = objects
    columns = _lists(reference, "labels", "jaccard", "sizes", "result")
    for fate, label, overlap, size, found in zip(fates(reference), *columns, strict=True):
        yield ObjectRow(section, label, fate, overlap, size, found, places[0][label])
    for label, covers, inside, size in zip(*_lists(result, "labels", "covers", "inside", "sizes"), strict=True):
        if not covers and not inside:
            yield ObjectRow(section, 0, EXTRA, 0.0, size, label, places[1][label])


def _lists(objects: ReferenceObjects | ResultObjects, *names: str) -> list[list[Any]]:
    """Columns of a table of objects as plain values."""
    return [getattr(objects, name).tolist() for name in names]


def largest_first(marks: list[Mark]) -> list[Mark]:
    return sorted(marks, key=lambda mark: -mark.size)


def places_of(labels: NDArray[Any]) -> Places:
    """The place of each label (y, x) that is not 0."""
    names, compact = distinct(labels)
    boxes = ndimage.find_objects(compact.astype(np.int32) + 1)
    return {int(name): _middle(box) for name, box in zip(names, boxes, strict=True) if name}


def _middle(box: tuple[slice, ...]) -> tuple[float, float, float]:
    y, x = ((side.start + side.stop - 1) / 2 for side in box)
    return y, x, max(side.stop - side.start for side in box) / 2
