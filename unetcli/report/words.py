"""What each score is called, what it says, and how it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unetcli.evaluate.result import Evaluation, Scores


@dataclass(frozen=True, slots=True)
class Measure:
    """A score for people."""

    metric: str
    key: str
    name: str
    meaning: str
    """A line that needs no other."""
    lower: bool = True
    """Whether lower is better."""
    digits: int = 4
    highest: float | None = 1.0
    """The worst it can be, or the best; None: no limit."""

    @property
    def path(self) -> str:
        """Of metric and key, as in ``em.rand_error``."""
        return f"{self.metric}.{self.key}"

    @property
    def best(self) -> str:
        return "0 is perfect" if self.lower else "1 is perfect"

    def of(self, scores: Scores) -> float | None:
        """The score, None where it is not defined or was not asked for."""
        value = scores.get(self.metric, {}).get(self.key)
        return None if value is None else float(value)

    def told(self, scores: Scores, what: str) -> Any:
        """What stands beside the score: threshold, interval, reason, note."""
        return scores.get(self.metric, {}).get(f"{self.key}_{what}")

    def written(self, value: float | None) -> str:
        """
        >>> MEASURES["em.rand_error"].written(0.25)
        '0.2500'
        """
        return "undefined" if value is None else f"{value:.{self.digits}f}"


def _measures() -> Iterator[Measure]:
    yield Measure(
        "em", "rand_error", "Rand error", "1 - F of pairs of pixels that share a cell: splits and merges, by area."
    )
    yield Measure(
        "em",
        "warping_error",
        "warping error",
        "Share of pixels where a cell is cut or two are joined, small shifts of the membrane forgiven.",
        digits=6,
    )
    yield Measure("em", "pixel_error", "pixel error", "1 - F of interior and membrane, pixel by pixel.")
    yield Measure("em", "pixel_disagreement", "pixel disagreement", "Share of pixels on the wrong side.")
    yield Measure(
        "em", "v_rand", "V_Rand", "How well cells agree in pairs of pixels, the width of membrane ignored.", False
    )
    yield Measure(
        "em", "v_info", "V_Info", "How well cells agree in information, the width of membrane ignored.", False
    )
    yield Measure("em", "rand_error_pairs", "Rand error (pairs)", "Rand error as it was normalised before 2015.")
    yield Measure(
        "em",
        "warping_error_classic",
        "warping error (classic)",
        "Every pixel that warping cannot bend away, holes and lost cells included.",
        digits=6,
    )
    yield Measure("cells", "seg", "SEG", "Mean overlap of each true cell with the one found in its place.", False)
    yield Measure("cells", "det", "DET", "1 - cost of putting the detections right, as a share of making them.", False)
    yield Measure(
        "cells", "f1", "F1", "Balance of precision and recall of objects that overlap by more than 0.5.", False
    )
    yield Measure("cells", "ap", "AP 0.5-0.95", "TP / (TP + FP + FN), mean over overlaps of 0.5 to 0.95.", False)
    yield Measure("cells", "pq", "panoptic quality", "Mean overlap of matched objects, times F1.", False)
    yield Measure("cells", "precision", "precision of objects", "Share of the found objects that are true.", False)
    yield Measure("cells", "recall", "recall of objects", "Share of the true objects that were found.", False)
    yield Measure("pixels", "iou", "IoU", "Shared foreground over all foreground; of several classes the mean.", False)
    yield Measure("pixels", "dice", "Dice", "Twice the shared foreground over the sum of both.", False)
    yield Measure("pixels", "accuracy", "accuracy", "Share of pixels of the right class.", False)
    yield Measure("pixels", "precision", "precision", "Share of the predicted foreground that is true.", False)
    yield Measure("pixels", "recall", "recall", "Share of the true foreground that was found.", False)
    yield Measure(
        "pixels", "average_precision", "average precision", "Precision over all thresholds, weighed by recall.", False
    )
    yield Measure("pixels", "calibration_error", "calibration error", "How far probabilities are from what is right.")
    yield Measure("pixels", "dice_best", "best Dice", "Dice at the threshold that suits it best.", False)
    yield Measure("voi", "split", "VOI split", "Nats lost where one object is cut into several.", highest=None)
    yield Measure("voi", "merge", "VOI merge", "Nats lost where several objects became one.", highest=None)
    yield Measure("voi", "adapted_rand_error", "adapted Rand error", "1 - F of pairs of pixels in true objects.")
    yield Measure(
        "voi",
        "adapted_rand_error_singletons",
        "adapted Rand error (singletons)",
        "The same, background inside objects being single pixels.",
    )


MEASURES = {measure.path: measure for measure in _measures()}
"""By path, the ones that matter most first."""
HEADLINES = {
    "em": ("rand_error", "warping_error", "pixel_error", "v_rand", "v_info"),
    "cells": ("seg", "det", "f1", "ap"),
    "pixels": ("iou", "dice", "accuracy", "average_precision", "calibration_error"),
    "voi": ("split", "merge", "adapted_rand_error"),
}
"""What the summary shows; all else is in the table of all numbers."""
METRIC_NAMES = {
    "em": "EM challenge: cells and membrane",
    "cells": "Cells",
    "pixels": "Pixels",
    "voi": "Variation of information",
}
SHOWN_FIRST = ("em", "cells", "voi", "pixels")
"""The order of the page: what is about objects before what is about pixels."""
RANKING = ("em.rand_error", "cells.seg", "cells.f1", "voi.adapted_rand_error", "pixels.iou", "pixels.accuracy")
"""Sections are ranked by the first of these that was scored."""


def metrics_of(evaluation: Evaluation) -> list[str]:
    """The metrics that were scored, in the order of the page."""
    return [metric for metric in SHOWN_FIRST if metric in evaluation.metrics]


def scored(evaluation: Evaluation, metric: str) -> list[Measure]:
    """The measures of one metric that the evaluation has, undefined ones too."""
    found = evaluation.scores.get(metric, {})
    return [measure for measure in MEASURES.values() if measure.metric == metric and measure.key in found]


def ranked_by(evaluation: Evaluation) -> Measure | None:
    """The measure that says which section is worst; None where no section has one."""
    for path in RANKING:
        if any(MEASURES[path].of(section.scores) is not None for section in evaluation.sections):
            return MEASURES[path]
    return None


def count(number: int, noun: str, plural: str = "") -> str:
    """
    >>> count(1, "section"), count(12000, "pixel"), count(0, "entry", "entries")
    ('1 section', '12,000 pixels', '0 entries')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def percent(share: float) -> str:
    """
    >>> percent(0.0834), percent(0.00007)
    ('8.3 %', '0.007 %')
    """
    return f"{100 * share:.1f} %" if share >= 0.001 or not share else f"{100 * share:.1g} %"
