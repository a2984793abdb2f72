"""Calibration of a network: its logits are scaled and shifted, so that the softmax of them gives probabilities.

Loss weights change what the softmax of a network means: with the logits of a network that was trained with them, a
pixel of probability 0.5 is foreground more or less often than in one of two cases. A saved model has the calibration
in the weights of its last layer already; the record in its header says how it was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError

LIKELIHOOD, LOSS_WEIGHTS = "likelihood of the held-out pixels", "loss weights"
"""How a calibration is found."""
LEAST = 1e-38
"""Smallest probability whose logarithm is taken; float32 holds no smaller ones with all digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A calibrated logit of class k is ``scale`` z_k + ``shift[k]``, for a logit z_k of the trained network.

    Raises
    ------
    UnetcliError
        A value is not finite, or the scale is not above 0.
    """

    scale: float
    shift: tuple[float, ...]
    """One value per class."""
    method: str
    """``LIKELIHOOD`` or ``LOSS_WEIGHTS``."""
    by_loss_weights: tuple[int, ...] = ()
    """Classes whose shift follows from the loss weights: with ``LIKELIHOOD``, those with too few held-out pixels."""
    sections: tuple[tuple[int, int], ...] = ()
    """Held-out sections of each pair of images and labels that it was fitted on, half-open."""
    pixels: int = 0
    """Number of pixels that it was fitted on."""
    error_before: float | None = None
    """Expected calibration error of these sections without it; None without held-out sections."""
    error_after: float | None = None
    """The same error with it. Both are of the pixels that it was fitted on, and therefore optimistic."""

    def __post_init__(self) -> None:
        if not (self.scale > 0 and all(map(math.isfinite, (self.scale, *self.shift)))):
            found = f"scale {self.scale} and shift {self.shift}"
            raise UnetcliError(f"calibration with {found}; expected a scale above 0 and finite numbers")

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        """Calibrate the probabilities of a network.

        Parameters
        ----------
        probabilities : (classes, ...)
            Softmax of the logits.

        Returns
        -------
        (classes, ...), float32

        Examples
        --------
        >>> Calibration(scale=2.0, shift=(0.0, 0.0), method="").apply(np.array([0.2, 0.8])).round(4).tolist()
        [0.058800000697374344, 0.9412000179290771]
        """
        logits = self.scale * logarithms(probabilities) + _upright(self.shift, probabilities.ndim)
        powers = np.exp(logits - logits.max(axis=0))
        return np.asarray(powers / powers.sum(axis=0), np.float32)


def logarithms(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits of a network up to a constant of each pixel, which no softmax depends on: (classes, ...)."""
    return np.log(np.maximum(probabilities.astype(np.float64), LEAST))


def _upright(values: tuple[float, ...], dimensions: int) -> NDArray[np.float64]:
    """One value per class, in the shape (classes, 1, 1, ..)."""
    return np.asarray(values, np.float64).reshape(-1, *(1,) * (dimensions - 1))
