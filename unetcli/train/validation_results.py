"""Results of a validation: metrics of predicted sections, and what the log keeps of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.geometry import Box
from unetcli.metrics.cells import SCORES as CELL_SCORES
from unetcli.metrics.cells import seg_sums
from unetcli.metrics.contingency import Cells, Overlap, PairCounts, components
from unetcli.metrics.em_counts import LEVELS, PixelCounts, above, pixel_counts
from unetcli.metrics.em_counts import SCORES as EM_SCORES
from unetcli.metrics.pixels import SCORES as PIXEL_SCORES
from unetcli.metrics.pixels import Confusion
from unetcli.metrics.probabilities import STEPS, ProbabilitySums, calibration_error, reliability_table
from unetcli.metrics.sums import Score
from unetcli.model.calibration import Calibration
from unetcli.train.dataset import AnnotatedVolume
from unetcli.train.settings import IGNORED

PICTURED = 2
"""Number of sections in the picture of a validation: those of the first blocks."""
SCORES: dict[str, Score[Any]] = {**EM_SCORES, **PIXEL_SCORES, **CELL_SCORES}
HALF = 0.5
"""Probability above which a pixel is foreground for iou and seg, which choose no threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Results of a validation."""

    metrics: ValidationMetrics | None
    """None if there is no held-out pixel with ground truth."""
    calibration: Calibration | None
    """Calibration of the network, with which the metrics are computed; None without calibration."""
    reliability: dict[str, list[Any]] | None
    """Values of a reliability diagram: ``pixels``, ``probability`` and ``right`` of each bin."""
    pictured: list[ValidatedSection]
    """The first sections, for a picture."""

    def to_dict(self) -> dict[str, Any]:
        """Columns of the log."""
        columns = self.metrics.to_dict() if self.metrics else {}
        columns |= {"reliability": self.reliability} if self.reliability else {}
        return columns | ({"calibration": asdict(self.calibration)} if self.calibration else {})


def is_better(measure: str, new: float, old: float) -> bool:
    """Whether a value of a measure is better than another one."""
    return new > old if SCORES[measure].higher_is_better else new < old


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationMetrics:
    """Metrics on the held-out sections."""

    loss: float
    """Cross-entropy with the class weights of the training, without border weights."""
    pixel_disagreement: float
    """Fraction of wrong pixels; for two classes, at the best of 11 thresholds."""
    threshold: float | None
    """Threshold of ``pixel_disagreement``; None for more than two classes, where the likeliest class counts."""
    iou: float | None
    """Intersection over union: of the foreground at 0.5, or the mean over more than two classes."""
    measure: str
    """Measure that selects the model."""
    selected: float | None
    """Value of ``measure``; None if it is undefined on these sections."""
    calibration_error: float | None = None
    """Expected calibration error."""

    def to_dict(self) -> dict[str, Any]:
        """Columns of the log; the value of ``measure`` has the name of the measure."""
        return {
            "validation_loss": self.loss,
            "pixel_disagreement": self.pixel_disagreement,
            "threshold": self.threshold,
            "iou": self.iou,
            "calibration_error": self.calibration_error,
            self.measure: self.selected,
        }


@dataclass(frozen=True, slots=True, eq=False)
class ValidatedSection:
    """Prediction and ground truth of one section."""

    pair: AnnotatedVolume
    box: Box
    values: NDArray[np.float32]
    """(outputs, y, x): predicted probabilities of each class, or of two classes that of the foreground alone."""
    classes: NDArray[np.uint8]
    """(y, x): ground truth; ``IGNORED`` where there is none."""

    @property
    def has_truth(self) -> NDArray[np.bool_]:
        """(y, x): pixels with ground truth, which are evaluated."""
        return np.asarray(self.classes != IGNORED)

    @property
    def per_class(self) -> NDArray[np.float32]:
        """(classes, y, x): probability of each class."""
        return np.concatenate([1 - self.values, self.values]) if len(self.values) == 1 else self.values

    @property
    def foreground(self) -> NDArray[np.float32]:
        """(y, x): probability of the foreground, for two classes."""
        return np.asarray(self.values[-1])

    @property
    def decision(self) -> NDArray[np.float32]:
        """(1 or classes, y, x): probabilities as the calibration error counts them, for two classes the foreground."""
        return self.values[-1:] if len(self.values) <= 2 else self.values


@dataclass(slots=True, kw_only=True)
class ValidationSums:
    """Sums over sections, from which the results of a validation are computed."""

    metrics: MetricSums
    before: NDArray[np.int64] = field(default_factory=lambda: np.zeros((STEPS + 1, 2), np.int64))
    """(step, 2): pixels by probability and by wrong or right, without calibration."""
    after: NDArray[np.int64] = field(default_factory=lambda: np.zeros((STEPS + 1, 2), np.int64))
    """The same with calibration."""
    pictured: list[ValidatedSection] = field(default_factory=list)

    @classmethod
    def of(cls, class_weights: NDArray[np.float32], measure: str) -> ValidationSums:
        return cls(metrics=MetricSums(class_weights, measure))

    def add(self, item: ValidatedSection, calibration: Calibration | None) -> None:
        """Add a section, as the network predicts it."""
        if calibration is not None:
            self.before += _decisions(item)
            item = replace(item, values=calibration.apply(item.per_class))
        self.after += _decisions(item)
        self.metrics.add(item)
        if len(self.pictured) < PICTURED:
            self.pictured.append(item)

    def result(self, calibration: Calibration | None) -> Validation:
        """The results; the calibration gets the errors before and after it."""
        metrics = self.metrics.result()
        if metrics is None:
            return Validation(metrics=None, calibration=calibration, reliability=None, pictured=self.pictured)
        after = _rounded(float(calibration_error(self.after)))
        if calibration is not None:
            before = _rounded(float(calibration_error(self.before)))
            calibration = replace(calibration, error_before=before, error_after=after)
        return Validation(
            metrics=replace(metrics, calibration_error=after),
            calibration=calibration,
            reliability=reliability_table(self.after),
            pictured=self.pictured,
        )


def _decisions(item: ValidatedSection) -> NDArray[np.int64]:
    return ProbabilitySums.of(item.decision, item.classes, ignore=IGNORED).decision


@dataclass(slots=True)
class MetricSums:
    """Sums over sections, from which the metrics are computed."""

    weights: NDArray[np.float32]
    """(classes,): w_c of each class."""
    measure: str
    """Measure that selects the model; seg and rand_error are computed only for it."""
    loss: float = 0.0
    weight: float = 0.0
    confusion: Confusion | None = None
    levels: list[PixelCounts] = field(default_factory=lambda: [PixelCounts(0, 0, 0, 0) for _ in LEVELS])
    rand: list[PairCounts] = field(default_factory=lambda: [PairCounts(0, 0, 0) for _ in LEVELS])
    seg: tuple[float, int] = (0.0, 0)

    def add(self, item: ValidatedSection) -> None:
        """Add a section."""
        has_truth = item.has_truth
        truth, per_class = item.classes[has_truth].astype(np.int64), item.per_class[:, has_truth]
        weight = self.weights[truth]
        likelihood = np.take_along_axis(per_class, truth[None], axis=0)[0]
        self.loss += float((-np.log(np.maximum(likelihood, 1e-12)) * weight).sum())
        self.weight += float(weight.sum())
        likeliest = per_class.argmax(0) if len(per_class) > 2 else (per_class[1] > HALF).astype(np.int64)
        confusion = Confusion.of(truth, likeliest, len(per_class))
        self.confusion = confusion if self.confusion is None else self.confusion + confusion
        if len(per_class) == 2:
            self._add_levels(item, has_truth)
        if self.measure == "seg":  # components above 0.5 against the objects, or the components of a binary truth
            found = ndimage.label((item.foreground > HALF) & has_truth)[0]
            total, objects = seg_sums(item.pair.instances(item.box), found)
            self.seg = (self.seg[0] + total, self.seg[1] + objects)

    def _add_levels(self, item: ValidatedSection, has_truth: NDArray[np.bool_]) -> None:
        interior = (item.classes > 0) & has_truth
        cells = Cells.of(interior, has_truth) if self.measure == "rand_error" else None
        for place, level in enumerate(LEVELS):
            proposal = above(item.foreground, level)
            self.levels[place] += pixel_counts(proposal, interior, has_truth)
            if cells is not None:
                self.rand[place] += Overlap.of(cells, components(proposal)).pairs

    def result(self) -> ValidationMetrics | None:
        """Compute the metrics; None if no pixel had ground truth."""
        if self.confusion is None or not self.confusion.counts.sum():
            return None
        wrong = [counts.fp + counts.fn for counts in self.levels]
        place, binary = int(np.argmin(wrong)), len(self.confusion.counts) == 2
        pixels = int(self.confusion.counts.sum())
        mistaken = wrong[place] if binary else pixels - int(self.confusion.counts.trace())
        iou = self.confusion.scores()["iou"]
        values = {
            "pixel_disagreement": mistaken / pixels,
            "iou": iou,
            "seg": self.seg[0] / self.seg[1] if self.seg[1] else None,
            "pixel_error": _lowest([counts.f_score for counts in self.levels]),
            "rand_error": _lowest([counts.f_score for counts in self.rand]),
        }
        return ValidationMetrics(
            loss=round(self.loss / self.weight, 6) if self.weight else 0.0,
            pixel_disagreement=round(mistaken / pixels, 6),
            threshold=LEVELS[place] if binary else None,
            iou=_rounded(iou),
            measure=self.measure,
            selected=_rounded(values[self.measure]),
        )


def describe_row(row: dict[str, Any], metrics: ValidationMetrics | None) -> str:
    """Describe a validation in one line."""
    text = f"step {row['step']}: loss {row['loss']:.4f}"
    if metrics is None:
        return f"{text} (saved)"
    text += f"; held out: loss {metrics.loss:.4f}, pixel disagreement {metrics.pixel_disagreement:.4f}"
    if metrics.measure != "pixel_disagreement" and metrics.selected is not None:
        text += f", {metrics.measure.replace('_', ' ')} {metrics.selected:.4f}"
    return text + (" (best so far, saved)" if row["best"] else "")


def _lowest(f_scores: list[float | None]) -> float | None:
    """Lowest error over the thresholds: 1 - the highest F-score."""
    defined = [1 - score for score in f_scores if score is not None]
    return min(defined, default=None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
