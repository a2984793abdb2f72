"""Pixel-wise scores from a confusion matrix, which adds up over sections and blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Counts of (true class, predicted class)."""

    counts: NDArray[np.int64]

    @classmethod
    def of(cls, truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> Confusion:
        """Counts over two class maps of the same shape, values 0..classes-1."""
        codes = truth.astype(np.int64).ravel() * classes + predicted.ravel()
        return cls(np.bincount(codes, minlength=classes**2).reshape(classes, classes))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts)

    def scores(self) -> dict[str, Any]:
        """Scores by name: of the foreground for two classes; beyond, means over the classes that occur.

        IoU = tp / (tp + fp + fn), Dice = 2 tp / (2 tp + fp + fn), accuracy = share of pixels that agree. A score
        without any pixel to judge is None, with the reason under ``<name>_reason``.
        """
        accuracy = self.counts.trace() / self.counts.sum()
        if len(self.counts) > 2:
            return self._class_scores(accuracy)
        tp, fp, fn, tn = (int(self.counts[place]) for place in ((1, 1), (0, 1), (1, 0), (0, 0)))
        scores: dict[str, Any] = {"iou": None, "dice": None, "accuracy": float(accuracy)}
        if tp + fp + fn:
            scores |= {"iou": tp / (tp + fp + fn), "dice": 2 * tp / (2 * tp + fp + fn)}
        else:
            reason = "no foreground in truth or prediction"
            scores |= {"iou_reason": reason, "dice_reason": reason}
        return scores | {"tp": tp, "fp": fp, "fn": fn, "tn": tn}

    def _class_scores(self, accuracy: float) -> dict[str, Any]:
        tp = self.counts.diagonal()
        sizes = self.counts.sum(0) + self.counts.sum(1)  # 2 tp + fp + fn
        occur = sizes > 0
        iou, dice = tp[occur] / (sizes - tp)[occur], 2 * tp[occur] / sizes[occur]
        return {
            "iou": float(iou.mean()),
            "dice": float(dice.mean()),
            "accuracy": float(accuracy),
            "iou_per_class": dict(zip(map(str, np.flatnonzero(occur)), iou.tolist(), strict=True)),
            "confusion": self.counts.tolist(),
        }
