"""Properties of the training data: voxel size, channels and grey values of the images, and objects in the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.label_values import LabelValues

PERCENTS = (1, 25, 50, 75, 99)
NEIGHBOURHOOD = 25
"""Side, in pixels, of the neighbourhood that the local contrast of a pixel refers to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyValues:
    """Grey values of one channel, measured in windows of several sections."""

    percentiles: tuple[float, ...]
    """Means of the percentiles ``PERCENTS`` over the windows."""
    spread: tuple[float, ...]
    """Standard deviation of each percentile over the windows."""
    polarity: float
    """Mean of :func:`polarity` over the windows."""
    polarity_spread: float
    """Standard deviation of the polarity over the windows."""
    windows: int
    """Number of windows."""

    def __post_init__(self) -> None:
        if not len(self.percentiles) == len(self.spread) == len(PERCENTS):
            raise UnetcliError(f"expected {len(PERCENTS)} percentiles of the grey values, each with its spread")

    @classmethod
    def of(cls, measures: NDArray[np.float64]) -> GreyValues:
        """Summarise windows; ``measures`` (windows, 6) are rows of :func:`measure` for one channel."""
        mean, std = measures.mean(0).tolist(), measures.std(0).tolist()
        return cls(
            percentiles=tuple(mean[:-1]),
            spread=tuple(std[:-1]),
            polarity=mean[-1],
            polarity_spread=std[-1],
            windows=len(measures),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Properties of the training images."""

    voxel_size: dict[str, float] = field(default_factory=dict)
    """Size by axis, as far as the images state it."""
    units: dict[str, str] = field(default_factory=dict)
    """Unit of the voxel size, by axis."""
    channels: tuple[str, ...] = ()
    """Names of the channels that the network takes; empty if the images do not name them."""
    grey: tuple[GreyValues, ...] = ()
    """Grey values of each channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingObjects:
    """Training truth, from which ``label`` takes its defaults, and ``evaluate`` the meaning of label values."""

    truth: str
    """Meaning of the training labels: binary, instances or classes."""
    smallest: tuple[int, ...] = ()
    """Pixels, in one section, of the smallest object of each stored probability; 0 where it is unknown."""
    values: LabelValues = field(default_factory=LabelValues)
    """Meaning of the values of the labels."""


def common_objects(models: Sequence[TrainingObjects | None]) -> TrainingObjects | None:
    """What several models know of the training truth; of different sizes of objects, none is known."""
    first = models[0]
    known = [model for model in models if model is not None]
    if first is None or len(known) < len(models) or len({(model.truth, model.values) for model in known}) > 1:
        return None
    return first if len({model.smallest for model in known}) == 1 else replace(first, smallest=())


def grey_values(windows: Iterable[NDArray[Any]]) -> tuple[GreyValues, ...]:
    """Grey values of each channel over windows (c, y, x); those without any finite value are left out."""
    used = (window for window in windows if all(np.isfinite(plane).any() for plane in window))
    measures = np.array([[measure(plane) for plane in window] for window in used])  # (windows, c, 6)
    return tuple(map(GreyValues.of, measures.swapaxes(0, 1))) if len(measures) else ()


def measure(plane: NDArray[Any]) -> NDArray[np.float64]:
    """The percentiles ``PERCENTS`` of the finite grey values of a plane (y, x), and its polarity: (6,), float64.

    >>> measure(np.arange(101.0).reshape(1, 101)).round(2).tolist()[:5]
    [1.0, 25.0, 50.0, 75.0, 99.0]
    """
    values = plane.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(len(PERCENTS) + 1)
    percentiles = np.percentile(finite, PERCENTS)
    return np.append(percentiles, polarity(np.nan_to_num(values, nan=percentiles[2], posinf=0, neginf=0)))


def polarity(plane: NDArray[np.float64]) -> float:
    """Whether what stands out in a plane (y, x) is bright (up to 1) or dark (down to -1).

    It is s / sqrt(1 + s^2), with the skewness s of the local contrast, the difference from the mean of the
    neighbourhood. It does not depend on brightness and contrast, and changes its sign if grey values are inverted.
    """
    from scipy.ndimage import uniform_filter

    contrast = plane - uniform_filter(plane, NEIGHBOURHOOD)
    variance = float(np.mean(contrast**2))
    skewness = float(np.mean(contrast**3)) / variance**1.5 if variance > 0 else 0.0
    return skewness / math.sqrt(1 + skewness**2)
