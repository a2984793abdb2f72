"""Fitting of a calibration: to held-out pixels by their likelihood, or from the loss weights of the training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.model.calibration import LIKELIHOOD, LOSS_WEIGHTS, Calibration, logarithms
from unetcli.train.dataset import Dataset, DatasetStatistics
from unetcli.train.settings import IGNORED, TrainingConfig

MIN_PIXELS = 1000
"""Held-out pixels that a class needs for a fitted shift."""
MIN_ANNOTATED = 0.5
"""Fraction of the held-out pixels that needs ground truth: sparse annotation does not show how frequent classes are."""
MAX_PIXELS = 2**18
"""Pixels that a calibration is fitted to; of more, every n-th one is taken."""
MAX_WINDOWS = 16
"""Windows of the training sections in which loss weights are measured."""
SCALES = (0.2, 5.0)
"""Limits of the scale."""
RIDGE = 1e-4
"""Weight of the squared deviations from the calibration by loss weights, in the mean negative log-likelihood."""
DIGITS = 6
"""Significant digits that are kept; rounding removes what depends on the order of sums."""

Classes = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutPixels:
    """Pixels of the held-out sections that have ground truth."""

    probabilities: Probabilities
    """(classes, n): softmax of the network."""
    truth: Classes
    """(n,): class of each pixel."""
    annotated: float
    """Fraction of the pixels that has ground truth."""

    @classmethod
    def of(cls, sections: Iterable[tuple[Probabilities, Classes]], classes: int) -> HeldOutPixels:
        """Collect pixels of sections: probabilities (classes, y, x) and classes (y, x), ``IGNORED`` without truth."""
        found = [(values[:, truth != IGNORED], truth[truth != IGNORED], truth.size) for values, truth in sections]
        if not found:
            return cls(np.zeros((classes, 0), np.float32), np.zeros(0, np.uint8), 0.0)
        values, truth, sizes = zip(*found, strict=True)
        every = np.concatenate(truth)
        return cls(np.concatenate(values, axis=1), every, every.size / max(1, sum(sizes)))


def by_loss_weights(mean_weights: NDArray[np.floating]) -> Calibration:
    """Calibration that undoes loss weights: of the logit of a class, the logarithm of its mean weight is subtracted.

    A network that minimises a weighted cross-entropy learns probabilities in proportion to weight times frequency.

    Parameters
    ----------
    mean_weights : (classes,)
        Mean loss weight of the pixels of each class, border weights included; 0 for a class that does not occur in the
        training sections, whose logit stays.

    Examples
    --------
    >>> by_loss_weights(np.array([1.0, 4.0])).shift
    (0.693147, -0.693147)
    """
    weights = np.asarray(mean_weights, np.float64)
    known = weights > 0
    logs = np.log(np.where(known, weights, 1.0))
    changes = np.where(known, logs.mean(where=known) - logs, 0.0)
    shift = tuple(_rounded(value) for value in changes.tolist())
    return Calibration(scale=1.0, shift=shift, method=LOSS_WEIGHTS, by_loss_weights=tuple(range(len(shift))))


def fitted(pixels: HeldOutPixels, start: Calibration, sections: tuple[tuple[int, int], ...]) -> Calibration:
    """Calibration of the greatest likelihood on held-out pixels, with a slight preference for ``start``.

    Classes with fewer than ``MIN_PIXELS`` pixels keep the shift of ``start``.

    Parameters
    ----------
    pixels : HeldOutPixels
    start : Calibration
        Calibration by loss weights.
    sections
        Held-out sections of each pair, for the record.

    Returns
    -------
    Calibration
        ``start`` if fewer than ``MIN_ANNOTATED`` of the pixels have ground truth, or if fewer than two classes have
        enough of them.
    """
    counts = np.bincount(pixels.truth, minlength=len(start.shift))
    rare = tuple(int(k) for k in np.flatnonzero(counts < MIN_PIXELS))
    if pixels.annotated < MIN_ANNOTATED or len(start.shift) - len(rare) < 2:
        return start
    step = -(-pixels.truth.size // MAX_PIXELS)
    logs, truth = logarithms(pixels.probabilities[:, ::step]), pixels.truth[::step]
    scale, shift = _most_likely(logs, truth, np.array(start.shift), free=counts >= MIN_PIXELS)
    return Calibration(
        scale=scale,
        shift=shift,
        method=LIKELIHOOD,
        by_loss_weights=rare,
        sections=sections,
        pixels=int(truth.size),
    )


def _most_likely(
    logs: NDArray[np.float64], truth: Classes, start: NDArray[np.float64], free: NDArray[np.bool_]
) -> tuple[float, tuple[float, ...]]:
    """Scale and shifts that minimise the mean negative log-likelihood plus the ridge; shifts that are not free stay."""
    from scipy.optimize import minimize

    own = np.arange(len(start))[:, None] == truth  # (classes, n)

    def loss_and_gradient(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        change = np.zeros(len(start))
        change[free] = values[1:]
        logits = values[0] * logs + (start + change)[:, None]
        logits -= logits.max(axis=0)
        powers = np.exp(logits)
        total = powers.sum(axis=0)
        residual = powers / total - own
        loss = float(np.mean(np.log(total) - logits[truth, np.arange(truth.size)]))
        deviation = values - np.concatenate([[1.0], np.zeros(values.size - 1)])
        gradient = np.concatenate([[np.mean((residual * logs).sum(axis=0))], residual.mean(axis=1)[free]])
        return loss + RIDGE * float(deviation @ deviation), gradient + 2 * RIDGE * deviation

    first = np.concatenate([[1.0], np.zeros(int(free.sum()))])
    limits = [SCALES, *((None, None),) * int(free.sum())]
    found = minimize(loss_and_gradient, first, jac=True, bounds=limits, method="L-BFGS-B", tol=1e-10).x
    start[free] += found[1:]
    return _rounded(float(found[0])), tuple(_rounded(value) for value in start.tolist())


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def mean_loss_weights(dataset: Dataset, statistics: DatasetStatistics, config: TrainingConfig) -> NDArray[np.float64]:
    """Mean loss weight of the pixels of each class, (classes,), border weights included.

    Measured in up to ``MAX_WINDOWS`` windows. A class that does not occur there has its class weight.
    """
    table = statistics.class_weights(balance=config.balance).astype(np.float64)
    border, counts = np.zeros(len(table)), np.zeros(len(table), np.int64)
    for pair, box in dataset.windows(MAX_WINDOWS):
        classes, weights = pair.window(box)
        known = classes != IGNORED
        border += np.bincount(classes[known], weights[known], minlength=len(table))[: len(table)]
        counts += np.bincount(classes[known], minlength=len(table))[: len(table)]
    return table + border / np.maximum(counts, 1)
