"""Figures of a network on held-out sections: what each section adds, and the scores that come of the sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.geometry import Box
from unetcli.metrics.cells import seg_sums
from unetcli.metrics.em_counts import LEVELS, PixelCounts, above, pixel_counts
from unetcli.metrics.partitions import Cells, Overlap, PairCounts, components
from unetcli.metrics.pixels import Confusion
from unetcli.train.corpus import Annotated
from unetcli.train.targets import IGNORED

HIGHER_IS_BETTER = ("iou", "seg")
HALF = 0.5
"""Probability above which a pixel is foreground where no level is chosen: iou and seg."""


def better(measure: str, new: float, old: float) -> bool:
    """Whether one value of a measure beats another."""
    return new > old if measure in HIGHER_IS_BETTER else new < old


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Figures on the held-out sections."""

    loss: float
    """Cross-entropy with class weights as in training."""
    pixel_disagreement: float
    """Share of wrong pixels, at the best of the 11 levels for two classes."""
    threshold: float | None
    """That level; None beyond two classes, where the likeliest class is taken."""
    iou: float | None
    """Of the foreground at 0.5; beyond two classes their mean."""
    measure: str
    selected: float | None
    """The measure that the model is chosen by; None where it is undefined on these sections."""

    def to_dict(self) -> dict[str, Any]:
        """As in the log; the selected measure under its own name."""
        told = {"validation_loss": self.loss, "pixel_disagreement": self.pixel_disagreement}
        return {**told, "threshold": self.threshold, "iou": self.iou, self.measure: self.selected}


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One section as the network sees it, beside its truth."""

    pair: Annotated
    box: Box
    values: NDArray[np.float32]
    """(outputs, y, x)"""
    classes: NDArray[np.uint8]
    """(y, x)"""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Where there is truth."""
        counted: NDArray[np.bool_] = self.classes != IGNORED
        return counted

    @property
    def per_class(self) -> NDArray[np.float32]:
        """(classes, y, x): the probability of each."""
        return np.concatenate([1 - self.values, self.values]) if len(self.values) == 1 else self.values


@dataclass(slots=True)
class Sums:
    """What sections add up to."""

    weights: NDArray[np.float32]
    """w_c of each class."""
    measure: str
    loss: float = 0.0
    weight: float = 0.0
    confusion: Confusion | None = None
    levels: list[PixelCounts] = field(default_factory=lambda: [PixelCounts(0, 0, 0, 0) for _ in LEVELS])
    rand: list[PairCounts] = field(default_factory=lambda: [PairCounts(0, 0, 0) for _ in LEVELS])
    seg: tuple[float, int] = (0.0, 0)

    def add(self, item: Judged) -> None:
        """One section more."""
        counted = item.counted
        truth, per_class = item.classes[counted].astype(np.int64), item.per_class[:, counted]
        weight = self.weights[truth]
        likelihood = np.take_along_axis(per_class, truth[None], axis=0)[0]
        self.loss += float((-np.log(np.maximum(likelihood, 1e-12)) * weight).sum())
        self.weight += float(weight.sum())
        likeliest = per_class.argmax(0) if len(per_class) > 2 else (per_class[1] > HALF).astype(np.int64)
        confusion = Confusion.of(truth, likeliest, len(per_class))
        self.confusion = confusion if self.confusion is None else self.confusion + confusion
        if len(per_class) == 2:
            self._add_levels(item, counted)
        if self.measure == "seg":
            self._add_seg(item)

    def _add_levels(self, item: Judged, counted: NDArray[np.bool_]) -> None:
        interior = (item.classes > 0) & counted
        cells = Cells.of(interior, counted) if self.measure == "rand_error" else None
        for place, level in enumerate(LEVELS):
            proposal = above(item.values[0], level)
            self.levels[place] += pixel_counts(proposal, interior, counted)
            if cells is not None:
                self.rand[place] += Overlap.of(cells, components(proposal)).pairs

    def _add_seg(self, item: Judged) -> None:
        """Connected components above 0.5 against the instances; of a binary truth, its components."""
        found = ndimage.label((item.values[0] > HALF) & item.counted)[0]
        total, objects = seg_sums(item.pair.instances(item.box), found)
        self.seg = (self.seg[0] + total, self.seg[1] + objects)

    def result(self) -> Validation | None:
        """The figures; None where no section had any truth."""
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
        return Validation(
            loss=round(self.loss / self.weight, 6) if self.weight else 0.0,
            pixel_disagreement=round(mistaken / pixels, 6),
            threshold=LEVELS[place] if binary else None,
            iou=_rounded(iou),
            measure=self.measure,
            selected=_rounded(values[self.measure]),
        )


def describe_row(row: dict[str, Any], result: Validation | None) -> str:
    """One line about a look at the held-out sections."""
    text = f"step {row['step']}: loss {row['loss']:.4f}"
    if result:
        text += f"; held out: loss {result.loss:.4f}, pixel disagreement {result.pixel_disagreement:.4f}"
        if result.measure != "pixel_disagreement" and result.selected is not None:
            text += f", {result.measure.replace('_', ' ')} {result.selected:.4f}"
    if not result:
        return f"{text} (kept: nothing is held out to judge by)"
    return text + (" (best so far, kept)" if row["best"] else "")


def note_of(value: float, best: float | None) -> str:
    """The held-out measure for the progress bar."""
    return f"held out {value:.3f}" + (f", best {best:.3f}" if best is not None else "")


def _lowest(f_scores: list[float | None]) -> float | None:
    """1 - the best F over the levels."""
    defined = [1 - score for score in f_scores if score is not None]
    return min(defined, default=None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
