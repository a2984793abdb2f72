"""The landscape that a watershed floods: low where an object's core is, high where two objects touch.

Every height is decided by what lies within a fixed reach, so that it is the same whatever block it is computed in.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.geometry import Box
from unetcli.label.components import neighbourhood
from unetcli.label.plan import Settings

STEPS = {"distance": 16, "probability": 4096}
"""Heights are integers: so many to a voxel of distance, or to a probability of 1."""
GAUSSIAN_WIDTHS = 4.0
"""Where the Gaussian is cut off, in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """How heights follow from probabilities."""

    axes: str
    voxel_size: tuple[float, ...]
    settings: Settings

    @functools.cached_property
    def touching(self) -> NDArray[np.bool_]:
        """Which voxels around one touch it."""
        return neighbourhood(self.axes, self.settings.connectivity, three_d=self.settings.three_d)

    @property
    def joined(self) -> tuple[int, ...]:
        """Places of the axes along which voxels touch."""
        return tuple(i for i, axis in enumerate(self.axes) if axis in ("zyx" if self.settings.three_d else "yx"))

    @property
    def sampling(self) -> tuple[float, ...]:
        """Voxel size along each joined axis, the smallest being 1; in whole steps, so that squares are integers."""
        sizes = [self.voxel_size[i] for i in self.joined]
        return tuple(round(size / min(sizes) * STEPS["distance"]) / STEPS["distance"] for size in sizes)

    @property
    def support(self) -> tuple[int, ...]:
        """Voxels on each side, along each axis, that a height depends on."""
        if self.settings.landscape == "distance":
            sides = [math.ceil(self.settings.reach / size) for size in self.sampling]
        else:
            sides = [int(GAUSSIAN_WIDTHS * self.settings.smoothing + 0.5)] * len(self.joined)
        return tuple(sides[self.joined.index(i)] if i in self.joined else 0 for i in range(len(self.axes)))

    @property
    def depth(self) -> float:
        """The least depth of an object of its own, in heights."""
        return self.settings.depth * STEPS[self.settings.landscape]

    def heights(self, probability: NDArray[Any], foreground: NDArray[np.bool_], inner: Box) -> NDArray[np.uint16]:
        """Heights in the part ``inner`` of an array, which reaches ``support`` further, or to the volume's edge."""
        if self.settings.landscape == "distance":
            distance = np.sqrt(self._squares(foreground)[inner.slices], dtype=np.float32)
            return (self.settings.reach * STEPS["distance"] - np.rint(distance)).astype(np.uint16)
        smooth = self._smooth(probability)[inner.slices]
        return np.rint((1 - smooth) * STEPS["probability"]).astype(np.uint16)

    def _squares(self, foreground: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Squared distances to the background, at most ``reach``, in steps; what lies outside the volume is none."""
        from unetcli.label.kernels import spread

        square = np.where(foreground, np.int32((self.settings.reach * STEPS["distance"]) ** 2), np.int32(0))
        for place, size in zip(self.joined, self.sampling, strict=True):
            lines = square.reshape(math.prod(square.shape[:place]), square.shape[place], -1)
            spread(lines, round(size * STEPS["distance"]) ** 2)
        return square

    def _smooth(self, probability: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities 0 to 1, smoothed within sections, or along z too."""
        scale = 255 if probability.dtype == np.uint8 else 1
        values = probability.astype(np.float64) / scale
        sigma = [self.settings.smoothing if i in self.joined else 0.0 for i in range(len(self.axes))]
        smooth: NDArray[np.float64] = ndimage.gaussian_filter(values, sigma, mode="mirror", truncate=GAUSSIAN_WIDTHS)
        return np.clip(smooth, 0, 1)
