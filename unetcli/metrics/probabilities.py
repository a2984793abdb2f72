"""Scores of probabilities over all thresholds, and calibration, from histograms that are added over blocks.

Probabilities are counted in steps of 1/65535. A uint8 map (value / 255) lies on every 257th step, so its scores are
exact; other floats are rounded to the nearest step. Average precision is the sum of (R_n - R_(n-1)) P_n over falling
thresholds, without interpolation, as in scikit-learn. The expected calibration error (Naeini et al. 2015; Guo et al.
2017, eq. 3) is the mean over bins of equal width of |share that is right - mean probability|, weighted by pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.metrics.pixels import NO_PIXEL, require_classes, without_ignored
from unetcli.metrics.sums import Score, Sums, computed, json_list, quotient

STEPS, GREY = 65535, 257
"""Steps between probability 0 and 1, and steps between two grey values of a uint8 map."""
BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""
CURVE = tuple((np.arange(256) / 255).tolist())
"""Thresholds at which curves are reported."""
NO_FOREGROUND = "no foreground in the truth"

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class ProbabilitySums(Sums):
    """Histograms: pixels by predicted probability and by whether the prediction is right."""

    classes: Numbers
    """(..., class, step, 2): pixels where the class has probability step / ``STEPS`` and is wrong (0) or right (1).

    Two classes have one row, the foreground.
    """
    decision: Numbers
    """(..., step, 2): the same for calibration, of the foreground (two classes) or of the most probable class."""

    @classmethod
    def of(cls, probability: Numbers, reference: NDArray[np.integer], *, ignore: int | None = None) -> ProbabilitySums:
        """Histograms of one block.

        Parameters
        ----------
        probability : (class, *shape), uint8 (value / 255), bool or float in 0..1
            A single class is the foreground, which is every value of the reference except 0.
        reference : shape, integer
            True classes.
        ignore
            Value of the reference whose pixels are not counted.

        Returns
        -------
        ProbabilitySums
            ``classes``: (class, step, 2); ``decision``: (step, 2).

        Raises
        ------
        UnetcliError
            A value is not a probability, or the reference has a class that the prediction lacks.
        """
        values, truth = without_ignored(probability, reference, ignore)
        steps = quantised(values)
        if len(steps) == 1:
            rows = histogram(steps[0], truth != 0)[None]
            return cls(rows, rows[0])
        require_classes(truth, len(steps))
        rows = np.stack([histogram(row, truth == name) for name, row in enumerate(steps)])
        likeliest = values.argmax(axis=0)  # the first of equal classes, as in the predicted class map
        return cls(rows, histogram(np.take_along_axis(steps, likeliest[None], 0)[0], truth == likeliest))

    def to_grey_values(self) -> ProbabilitySums:
        """The same histograms in 256 grey values, exact for uint8 maps: 4 kB per class, to keep for many sections."""
        starts = np.searchsorted((np.arange(STEPS + 1) + GREY // 2) // GREY, np.arange(256))
        return self._mapped(lambda name: np.add.reduceat(getattr(self, name), starts, axis=-2))


def quantised(values: Numbers) -> NDArray[np.uint16]:
    """Probabilities rounded to steps of 1 / ``STEPS``; raises ``UnetcliError`` for values outside 0..1."""
    if values.dtype == np.uint8:
        return values * np.uint16(GREY)
    if values.dtype.kind not in "bf" or not ((values >= 0) & (values <= 1)).all():  # NaN fails too
        raise UnetcliError(f"values of {values.dtype}: expected probabilities as uint8 (value / 255) or 0 to 1")
    return (values.astype(np.float64) * STEPS + 0.5).astype(np.uint16)


def histogram(steps: NDArray[np.uint16], right: NDArray[np.bool_]) -> Numbers:
    """Pixels by step and by wrong (0) or right (1), (step, 2)."""
    return np.bincount(steps * np.intp(2) + right, minlength=2 * (STEPS + 1)).reshape(STEPS + 1, 2)


def average_precision(counts: Numbers) -> Numbers:
    """Average precision.

    Parameters
    ----------
    counts : (..., step, 2)
        Pixels that are wrong and right at each step of probability.

    Returns
    -------
    (...), float64, 0 to 1
        NaN if no pixel is right at any step, i.e. the class does not occur in the reference.
    """
    precision, recall = precision_recall(counts)
    gain = np.diff(recall, axis=-1, prepend=0)
    found: Numbers = np.where(np.isnan(recall[..., -1]), np.nan, (gain * np.nan_to_num(precision)).sum(axis=-1))
    return found


def precision_recall(counts: Numbers) -> tuple[Numbers, Numbers]:
    """Precision and recall at falling thresholds, (..., step) each, from (..., step, 2) counts."""
    right = counts[..., ::-1, 1].cumsum(axis=-1)
    taken = counts[..., ::-1, :].sum(axis=-1).cumsum(axis=-1)
    return quotient(right, taken), quotient(right, right[..., -1:])


def curve(counts: Numbers, thresholds: Sequence[float] = CURVE) -> dict[str, list[float | None]]:
    """Precision, recall and Dice of ``probability > threshold``.

    Parameters
    ----------
    counts : (step, 2)
        Pixels that are wrong and right at each step of probability.
    thresholds : 0 to 1

    Returns
    -------
    dict
        Lists ``threshold``, ``precision``, ``recall`` and ``dice``; None where a value is undefined.
    """
    steps = len(counts) - 1
    last_below = np.floor(np.asarray(thresholds) * steps + 1e-6).astype(int)  # the last step <= the threshold
    above = np.zeros((steps + 2, 2), counts.dtype)
    above[:-1] = counts[::-1].cumsum(axis=0)[::-1]  # pixels at each step or higher
    wrong, right = above[np.clip(last_below + 1, 0, steps + 1)].T
    everything = counts[:, 1].sum()
    return {
        "threshold": list(map(float, thresholds)),
        "precision": json_list(quotient(right, right + wrong)),
        "recall": json_list(quotient(right, everything)),
        "dice": json_list(quotient(2 * right, right + wrong + everything)),
    }


def reliability(counts: Numbers, bins: int = BINS) -> tuple[Numbers, Numbers, Numbers]:
    """Values of a reliability diagram.

    Parameters
    ----------
    counts : (..., step, 2)
        Pixels that are wrong and right at each step of probability.
    bins
        Number of bins of equal width over 0..1.

    Returns
    -------
    pixels, probability, right : (..., bin)
        Number of pixels, mean probability and share of right pixels; the latter two are NaN in empty bins.
    """
    step, last = np.arange(counts.shape[-2]), counts.shape[-2] - 1
    starts = np.searchsorted(np.minimum(step * bins // last, bins - 1), np.arange(bins))
    every = counts.sum(axis=-1)
    pixels = np.add.reduceat(every, starts, axis=-1)
    probability = np.add.reduceat(every * (step / last), starts, axis=-1)
    right = np.add.reduceat(counts[..., 1], starts, axis=-1)
    return pixels, quotient(probability, pixels), quotient(right, pixels)


def calibration_error(counts: Numbers, bins: int = BINS) -> Numbers:
    """Expected calibration error (Guo et al. 2017, eq. 3).

    Parameters
    ----------
    counts : (..., step, 2)
        Pixels that are wrong and right at each step of probability.
    bins
        Number of bins of equal width over 0..1.

    Returns
    -------
    (...), float64, 0 to 1
        0 is perfect; NaN without pixels.
    """
    pixels, probability, right = reliability(counts, bins)
    return quotient(np.nansum(pixels * np.abs(right - probability), axis=-1), pixels.sum(axis=-1))


def mean_average_precision(sums: ProbabilitySums) -> Numbers:
    """Mean average precision of the classes that occur in the reference, (...); of the foreground for two classes."""
    found = average_precision(sums.classes)
    return quotient(np.nansum(found, axis=-1), (~np.isnan(found)).sum(axis=-1))


SCORES: dict[str, Score[ProbabilitySums]] = {
    "average_precision": Score(mean_average_precision, NO_FOREGROUND),
    "calibration_error": Score(lambda sums: calibration_error(sums.decision), NO_PIXEL, higher_is_better=False),
}
"""Scores by name."""


def scores(sums: ProbabilitySums) -> dict[str, Any]:
    """Scores by name; an undefined one is None, with the reason under ``<name>_reason``.

    Parameters
    ----------
    sums
        Fields without leading axes.

    Returns
    -------
    dict
        ``SCORES`` and the values of the reliability diagram; for two classes also ``dice_best`` and
        ``dice_best_threshold``, the best of ``probability > threshold`` over the 256 grey values as thresholds; for
        more classes the average precision of each.
    """
    found = computed(SCORES, sums)
    found["calibration"] = reliability_table(sums.decision)
    if len(sums.classes) > 1:
        precision = enumerate(average_precision(sums.classes).tolist())
        found["average_precision_per_class"] = {str(name): value for name, value in precision if not np.isnan(value)}
        return found
    return found | best_dice(sums.classes[0])


def reliability_table(counts: Numbers) -> dict[str, list[Any]]:
    """The values of :func:`reliability` as lists."""
    pixels, probability, right = reliability(counts)
    return {"pixels": pixels.astype(int).tolist(), "probability": json_list(probability), "right": json_list(right)}


def best_dice(counts: Numbers) -> dict[str, Any]:
    """The highest Dice over all thresholds, and the lowest threshold that reaches it, from (step, 2) counts."""
    found = curve(counts)
    values = np.array(found["dice"], float)
    if not counts[:, 1].any():
        return {"dice_best": None, "dice_best_threshold": None, "dice_best_reason": NO_FOREGROUND}
    best = int(np.nanargmax(values))
    return {"dice_best": float(values[best]), "dice_best_threshold": found["threshold"][best]}
