"""Pixel-wise scores of classes, from a confusion matrix that is added over sections and blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.metrics.sums import Score, Sums, computed, quotient

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Confusion(Sums):
    """Confusion matrix: pixels by true and predicted class."""

    counts: Numbers
    """(..., true class, predicted class)"""

    @classmethod
    def of(cls, truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> Confusion:
        """Confusion matrix of two class maps.

        Parameters
        ----------
        truth, predicted : same shape, integer
            Classes, 0 to ``classes`` - 1.
        classes
            Number of classes.

        Returns
        -------
        Confusion
            ``counts``: (class, class), integer.
        """
        codes = truth.astype(np.int64).ravel() * classes + predicted.ravel()
        return cls(np.bincount(codes, minlength=classes**2).reshape(classes, classes))

    def scores(self) -> dict[str, Any]:
        """Scores by name, each 0 to 1, higher is better.

        IoU = tp / (tp + fp + fn); Dice = 2 tp / (2 tp + fp + fn); accuracy = share of pixels whose class is right.
        With two classes, IoU and Dice are those of the foreground (class 1), and precision = tp / (tp + fp),
        recall = tp / (tp + fn) and the four counts are added. With more classes, IoU and Dice are means over the
        classes that occur, and the values of each class and the confusion matrix are added.

        Returns
        -------
        dict
            An undefined score is None, with the reason under ``<name>_reason``.
        """
        if self.counts.shape[-1] > 2:
            return computed(SCORES, self) | self._by_class()
        names = {(1, 1): "tp", (0, 1): "fp", (1, 0): "fn", (0, 0): "tn"}
        counts = {name: int(self.counts[index]) for index, name in names.items()}
        return computed(SCORES | FOREGROUND_SCORES, self) | counts

    def _by_class(self) -> dict[str, Any]:
        occur = np.flatnonzero(class_sizes(self) > 0)
        curves = {"iou_per_class": ious(self), "dice_per_class": dices(self)}
        found = {
            name: dict(zip(map(str, occur), values[occur].tolist(), strict=True)) for name, values in curves.items()
        }
        return found | {"confusion": self.counts.astype(int).tolist()}


def class_sizes(confusion: Confusion) -> Numbers:
    """2 tp + fp + fn of each class, (..., class); 0 for a class that does not occur."""
    sizes: Numbers = confusion.counts.sum(axis=-1) + confusion.counts.sum(axis=-2)
    return sizes


def ious(confusion: Confusion) -> Numbers:
    """Intersection over union of each class, (..., class); NaN for a class that does not occur."""
    tp = np.diagonal(confusion.counts, axis1=-2, axis2=-1)
    return quotient(tp, class_sizes(confusion) - tp)


def dices(confusion: Confusion) -> Numbers:
    """Dice coefficient of each class, (..., class); NaN for a class that does not occur."""
    return quotient(2 * np.diagonal(confusion.counts, axis1=-2, axis2=-1), class_sizes(confusion))


def foreground_or_mean(values: Numbers) -> Numbers:
    """Foreground value of two classes, or mean over the classes that are not NaN; (..., class) to (...)."""
    if values.shape[-1] == 2:
        foreground: Numbers = values[..., 1]
        return foreground
    return quotient(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


def accuracy(confusion: Confusion) -> Numbers:
    """Share of pixels whose class is right, (...)."""
    right = np.diagonal(confusion.counts, axis1=-2, axis2=-1).sum(axis=-1)
    return quotient(right, confusion.counts.sum(axis=(-2, -1)))


NO_FOREGROUND = "no foreground in truth or prediction"
NO_PIXEL = "no pixel to score"
SCORES: dict[str, Score[Confusion]] = {
    "iou": Score(lambda confusion: foreground_or_mean(ious(confusion)), NO_FOREGROUND),
    "dice": Score(lambda confusion: foreground_or_mean(dices(confusion)), NO_FOREGROUND),
    "accuracy": Score(accuracy, NO_PIXEL),
}
"""Scores by name."""
FOREGROUND_SCORES: dict[str, Score[Confusion]] = {
    "precision": Score(
        lambda confusion: quotient(confusion.counts[..., 1, 1], confusion.counts[..., :, 1].sum(axis=-1)),
        "no foreground in the prediction",
    ),
    "recall": Score(
        lambda confusion: quotient(confusion.counts[..., 1, 1], confusion.counts[..., 1, :].sum(axis=-1)),
        "no foreground in the truth",
    ),
}
"""Additional scores for two classes."""


def without_ignored(
    probability: Numbers, reference: NDArray[np.integer], ignore: int | None
) -> tuple[Numbers, NDArray[np.integer]]:
    """Flatten probabilities and truth, and drop the pixels with the value ``ignore`` in the truth.

    Parameters
    ----------
    probability : (class, *shape)
    reference : shape, integer
    ignore
        None keeps all pixels.

    Returns
    -------
    probability : (class, pixels)
    reference : (pixels,)
    """
    values, truth = probability.reshape(len(probability), -1), reference.ravel()
    if ignore is None:
        return values, truth
    counted = truth != ignore
    return values[:, counted], truth[counted]


def require_classes(truth: NDArray[np.integer], classes: int) -> None:
    """Raise ``UnetcliError`` if the truth has a class that the prediction lacks, i.e. outside 0 to ``classes`` - 1."""
    unknown = truth[(truth < 0) | (truth >= classes)]
    if unknown.size:
        raise UnetcliError(f"class {unknown[0]} in the truth; the prediction has classes 0 to {classes - 1}")
