"""Pixel-wise scores of classes, from a confusion matrix, which adds up over sections and blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.metrics.sums import Sums, quotient, stated

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Confusion(Sums):
    """Counts of (true class, predicted class)."""

    counts: Numbers
    """(..., true class, predicted class)"""

    @classmethod
    def of(cls, truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> Confusion:
        """Counts over two class maps of the same shape, values 0..classes-1."""
        codes = truth.astype(np.int64).ravel() * classes + predicted.ravel()
        return cls(np.bincount(codes, minlength=classes**2).reshape(classes, classes))

    def scores(self) -> dict[str, Any]:
        """Scores by name: of the foreground for two classes; beyond, means over the classes that occur.

        IoU = tp / (tp + fp + fn), Dice = 2 tp / (2 tp + fp + fn), accuracy = share of pixels that agree; for two
        classes precision = tp / (tp + fp) and recall = tp / (tp + fn) too. A score without any pixel to judge is None,
        with the reason under ``<name>_reason``.
        """
        if self.counts.shape[-1] > 2:
            return self._told(SCORES) | self._by_class()
        names = {(1, 1): "tp", (0, 1): "fp", (1, 0): "fn", (0, 0): "tn"}
        counts = {name: int(self.counts[place]) for place, name in names.items()}
        return self._told(SCORES | FOREGROUND_SCORES) | counts

    def _told(self, names: dict[str, Callable[[Confusion], Numbers]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, score in names.items():
            found |= stated(name, score(self), NOTHING[name])
        return found

    def _by_class(self) -> dict[str, Any]:
        occur = np.flatnonzero(class_sizes(self) > 0)
        curves = {"iou_per_class": ious(self), "dice_per_class": dices(self)}
        found = {
            name: dict(zip(map(str, occur), values[occur].tolist(), strict=True)) for name, values in curves.items()
        }
        return found | {"confusion": self.counts.astype(int).tolist()}


def class_sizes(confusion: Confusion) -> Numbers:
    """(..., class): 2 tp + fp + fn, which is 0 for a class that does not occur."""
    sizes: Numbers = confusion.counts.sum(axis=-1) + confusion.counts.sum(axis=-2)
    return sizes


def ious(confusion: Confusion) -> Numbers:
    """(..., class); NaN for a class that does not occur."""
    tp = np.diagonal(confusion.counts, axis1=-2, axis2=-1)
    return quotient(tp, class_sizes(confusion) - tp)


def dices(confusion: Confusion) -> Numbers:
    """(..., class); NaN for a class that does not occur."""
    return quotient(2 * np.diagonal(confusion.counts, axis1=-2, axis2=-1), class_sizes(confusion))


def foreground_or_mean(values: Numbers) -> Numbers:
    """Of two classes the foreground's value; of more the mean over those that occur; (..., class) to (...)."""
    if values.shape[-1] == 2:
        foreground: Numbers = values[..., 1]
        return foreground
    return quotient(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


def accuracy(confusion: Confusion) -> Numbers:
    """Share of the pixels whose class is right."""
    right = np.diagonal(confusion.counts, axis1=-2, axis2=-1).sum(axis=-1)
    return quotient(right, confusion.counts.sum(axis=(-2, -1)))


SCORES: dict[str, Callable[[Confusion], Numbers]] = {
    "iou": lambda confusion: foreground_or_mean(ious(confusion)),
    "dice": lambda confusion: foreground_or_mean(dices(confusion)),
    "accuracy": accuracy,
}
"""Scores by name, from counts with any leading axes; NaN where there is nothing to judge."""
FOREGROUND_SCORES: dict[str, Callable[[Confusion], Numbers]] = {
    "precision": lambda confusion: quotient(confusion.counts[..., 1, 1], confusion.counts[..., :, 1].sum(axis=-1)),
    "recall": lambda confusion: quotient(confusion.counts[..., 1, 1], confusion.counts[..., 1, :].sum(axis=-1)),
}
"""Further ones for two classes."""
NOTHING = {
    "iou": "no foreground in truth or prediction",
    "dice": "no foreground in truth or prediction",
    "accuracy": "no pixel to judge",
    "precision": "no foreground in the prediction",
    "recall": "no foreground in the truth",
}
"""Why a score is not defined."""


def without_ignored(
    probability: Numbers, reference: NDArray[np.integer], ignore: int | None
) -> tuple[Numbers, NDArray[np.integer]]:
    """(c, n) probabilities and (n,) truth of the pixels that count; ``probability`` (c, *shape of the reference)."""
    values, truth = probability.reshape(len(probability), -1), reference.ravel()
    if ignore is None:
        return values, truth
    counted = truth != ignore
    return values[:, counted], truth[counted]


def require_classes(truth: NDArray[np.integer], classes: int) -> None:
    """Refuse a class that the prediction does not have."""
    foreign = truth[(truth < 0) | (truth >= classes)]
    if foreign.size:
        raise UnetcliError(f"class {foreign[0]} in the truth; the prediction has classes 0 to {classes - 1}")
