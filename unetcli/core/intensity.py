"""Mean and standard deviation of grey values: channels of an image have ranges of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PerChannel = float | tuple[float, ...]
"""A number for every channel, in their order; a plain one is meant for all of them."""


def stored(values: float | Sequence[float]) -> PerChannel:
    """As it was before a way through JSON, which has lists for tuples.

    >>> stored([1.5, 2.0]), stored(1.5)
    ((1.5, 2.0), 1.5)
    """
    return values if isinstance(values, int | float) else tuple(values)


def along(values: PerChannel, axes: int) -> NDArray[np.float64]:
    """To compute with an array of so many axes, the channels' first.

    >>> along((1.5, 2.0), 3).shape, along(1.5, 3).shape
    ((2, 1, 1), ())
    """
    found = np.asarray(values, np.float64)
    return found.reshape(-1, *(1,) * (axes - 1)) if found.ndim else found


@dataclass(slots=True)
class Moments:
    """Mean and standard deviation of each channel of values that come piece by piece; only finite ones count."""

    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    def add(self, values: NDArray[Any]) -> None:
        """Values (c, ..) of a place."""
        exact = values.reshape(len(values), -1).astype(np.float64)
        if not (finite := np.isfinite(exact)).all():
            exact[~finite] = 0
        self.count = self.count + finite.sum(1)
        self.total = self.total + exact.sum(1)
        self.squares = self.squares + (exact**2).sum(1)

    @property
    def mean(self) -> PerChannel:
        """0 where there are no values."""
        return _each(self._mean)

    @property
    def std(self) -> PerChannel:
        """Never zero: 1 where all values are equal."""
        variance = self.squares / np.maximum(self.count, 1) - self._mean**2
        deviation = np.sqrt(np.maximum(variance, 0))
        return _each(np.where(deviation > 0, deviation, 1.0))

    @property
    def _mean(self) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self.total / np.maximum(self.count, 1)
        return mean


def _each(values: NDArray[np.float64]) -> PerChannel:
    """A plain number of an only channel."""
    return float(values[0]) if len(values) == 1 else tuple(values.tolist())
