"""Scores of probabilities: precision and recall over thresholds, and calibration; from histograms that add up.

Probabilities are counted in steps of 1/65535: a uint8 map (value / 255) lies on every 257th and is scored exactly, as
it would be as floats; other floats are scored to a step. Average precision is the sum of (R_n - R_(n-1)) P_n over
falling thresholds, without interpolation, as scikit-learn has it. Calibration: expected calibration error over bins of
equal width (Naeini et al. 2015; Guo et al. 2017): mean of |share that is right - mean probability|, weighed by pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.metrics.pixels import require_classes, without_ignored
from unetcli.metrics.sums import Sums, listed, quotient, stated

STEPS, GREY = 65535, 257
"""Steps of a probability, and of a grey value of a uint8 map."""
BINS = 15
"""Of the calibration, as in Guo et al. 2017."""
CURVE = tuple((np.arange(256) / 255).tolist())
"""Thresholds at which curves are told."""

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class ProbabilitySums(Sums):
    """Pixels by probability and by what is true there."""

    classes: Numbers
    """(..., class, step, 2): pixels where the class is predicted with step / steps, and is wrong (0) or right (1).

    For two classes, one row: the foreground.
    """
    decision: Numbers
    """(..., step, 2): the same for what calibration looks at: the foreground of two classes, else the likeliest."""

    @classmethod
    def of(cls, probability: Numbers, reference: NDArray[np.integer], *, ignore: int | None = None) -> ProbabilitySums:
        """Counts of one block.

        Parameters
        ----------
        probability : (class, *shape), uint8 (value / 255), bool or float in 0..1
            One class: that of the foreground, which is whatever is not 0 in the reference.
        reference : shape, integer

        Raises
        ------
        UnetcliError
            A value that is no probability; a class in the reference that the prediction does not have.
        """
        values, truth = without_ignored(probability, reference, ignore)
        steps = in_steps(values)
        if len(steps) == 1:
            rows = histogram(steps[0], truth != 0)[None]
            return cls(rows, rows[0])
        require_classes(truth, len(steps))
        rows = np.stack([histogram(row, truth == name) for name, row in enumerate(steps)])
        likeliest = values.argmax(axis=0)  # of equals the first, as where a class is decided on
        return cls(rows, histogram(np.take_along_axis(steps, likeliest[None], 0)[0], truth == likeliest))

    def in_grey_values(self) -> ProbabilitySums:
        """The same in 255 steps, 512 times 8 bytes a class: to keep for many sections. Exact for uint8 maps."""
        starts = np.searchsorted((np.arange(STEPS + 1) + GREY // 2) // GREY, np.arange(256))
        return self._made(lambda name: np.add.reduceat(getattr(self, name), starts, axis=-2))


def in_steps(values: Numbers) -> NDArray[np.uint16]:
    """Probabilities in the nearest steps of 1 / ``STEPS``."""
    if values.dtype == np.uint8:
        return values * np.uint16(GREY)
    if values.dtype.kind not in "bf" or not ((values >= 0) & (values <= 1)).all():  # NaN fails too
        raise UnetcliError(f"values of {values.dtype}: expected probabilities as uint8 (value / 255) or 0 to 1")
    return (values.astype(np.float64) * STEPS + 0.5).astype(np.uint16)


def histogram(steps: NDArray[np.uint16], right: NDArray[np.bool_]) -> Numbers:
    """(step, 2): pixels by step, and by wrong or right."""
    return np.bincount(steps * np.intp(2) + right, minlength=2 * (STEPS + 1)).reshape(STEPS + 1, 2)


def average_precision(counts: Numbers) -> Numbers:
    """Average precision of (..., step, 2) counts; NaN where nothing is to be found."""
    precision, recall = falling(counts)
    gain = np.diff(recall, axis=-1, prepend=0)
    found: Numbers = np.where(np.isnan(recall[..., -1]), np.nan, (gain * np.nan_to_num(precision)).sum(axis=-1))
    return found


def falling(counts: Numbers) -> tuple[Numbers, Numbers]:
    """Precision and recall, each (..., step), of the pixels from the highest step down to each."""
    right = counts[..., ::-1, 1].cumsum(axis=-1)
    taken = counts[..., ::-1, :].sum(axis=-1).cumsum(axis=-1)
    return quotient(right, taken), quotient(right, right[..., -1:])


def curve(counts: Numbers, thresholds: Sequence[float] = CURVE) -> dict[str, list[float | None]]:
    """Precision, recall and Dice of ``probability > threshold``, from (step, 2) counts."""
    steps = len(counts) - 1
    places = np.floor(np.asarray(thresholds) * steps + 1e-6).astype(int)  # the last step that is not above
    above = np.zeros((steps + 2, 2), counts.dtype)
    above[:-1] = counts[::-1].cumsum(axis=0)[::-1]  # from each step up
    wrong, right = above[np.clip(places + 1, 0, steps + 1)].T
    everything = counts[:, 1].sum()
    return {
        "threshold": list(map(float, thresholds)),
        "precision": listed(quotient(right, right + wrong)),
        "recall": listed(quotient(right, everything)),
        "dice": listed(quotient(2 * right, right + wrong + everything)),
    }


def reliability(counts: Numbers, bins: int = BINS) -> tuple[Numbers, Numbers, Numbers]:
    """Pixels, mean probability and share that is right, each (..., bin); bins of equal width over 0..1."""
    step, last = np.arange(counts.shape[-2]), counts.shape[-2] - 1
    starts = np.searchsorted(np.minimum(step * bins // last, bins - 1), np.arange(bins))
    every = counts.sum(axis=-1)
    pixels = np.add.reduceat(every, starts, axis=-1)
    probability = np.add.reduceat(every * (step / last), starts, axis=-1)
    right = np.add.reduceat(counts[..., 1], starts, axis=-1)
    return pixels, quotient(probability, pixels), quotient(right, pixels)


def calibration_error(counts: Numbers, bins: int = BINS) -> Numbers:
    """Expected calibration error of (..., step, 2) counts; NaN without pixels."""
    pixels, probability, right = reliability(counts, bins)
    return quotient(np.nansum(pixels * np.abs(right - probability), axis=-1), pixels.sum(axis=-1))


def mean_average_precision(sums: ProbabilitySums) -> Numbers:
    """Mean over the classes that occur in the reference; of two classes, the foreground's."""
    found = average_precision(sums.classes)
    return quotient(np.nansum(found, axis=-1), (~np.isnan(found)).sum(axis=-1))


SCORES = {
    "average_precision": mean_average_precision,
    "calibration_error": lambda sums: calibration_error(sums.decision),
}
"""Scores by name, from sums with any leading axes; NaN where there is nothing to judge."""


def scores(sums: ProbabilitySums, bins: int = BINS) -> dict[str, Any]:
    """Scores by name. A score without any pixel to judge is None, with the reason under ``<name>_reason``.

    For two classes ``dice_best`` and ``dice_best_threshold`` too: the best of ``probability > threshold`` over the
    256 grey values as thresholds.
    """
    found = stated("average_precision", mean_average_precision(sums), "no foreground in the truth")
    found |= stated("calibration_error", calibration_error(sums.decision, bins), "no pixel to judge")
    found["calibration"] = reliability_table(sums.decision, bins)
    if len(sums.classes) > 1:
        precision = enumerate(average_precision(sums.classes).tolist())
        found["average_precision_per_class"] = {str(name): value for name, value in precision if not np.isnan(value)}
        return found
    return found | best_dice(sums.classes[0])


def reliability_table(counts: Numbers, bins: int) -> dict[str, list[Any]]:
    """What a reliability diagram shows."""
    pixels, probability, right = reliability(counts, bins)
    return {"pixels": pixels.astype(int).tolist(), "probability": listed(probability), "right": listed(right)}


def best_dice(counts: Numbers) -> dict[str, Any]:
    """The best Dice over thresholds, and the lowest threshold that gives it."""
    told = curve(counts)
    values = np.array(told["dice"], float)
    if not counts[:, 1].any():
        reason = "no foreground in the truth"
        return {"dice_best": None, "dice_best_threshold": None, "dice_best_reason": reason}
    place = int(np.nanargmax(values))
    return {"dice_best": float(values[place]), "dice_best_threshold": told["threshold"][place]}
