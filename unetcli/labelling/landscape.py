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

from unetcli.geometry import Box
from unetcli.labelling.components import neighbourhood
from unetcli.labelling.plan import Settings

STEPS = {"distance": 16, "probability": 4096}
"""Heights are integers: so many to a voxel of distance, or to a probability of 1."""
SIXTEENTHS = 16
"""Voxel sizes count in so many parts of the smallest: squares of distances are exact then."""
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
        """Voxel size along each joined axis, the smallest being 1."""
        sizes = [self.voxel_size[i] for i in self.joined]
        return tuple(round(size / min(sizes) * SIXTEENTHS) / SIXTEENTHS for size in sizes)

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
            steps, top = self._distance(foreground, inner), self.settings.reach * STEPS["distance"]
            return (top - steps).astype(np.uint16)
        smooth = self._smooth(probability)[inner.slices]
        return np.rint((1 - smooth) * STEPS["probability"]).astype(np.uint16)

    def _distance(self, foreground: NDArray[np.bool_], inner: Box) -> NDArray[np.uint16]:
        result = np.empty(inner.shape, np.uint16)
        lead = [i for i in range(len(self.axes)) if i not in self.joined]
        for place in np.ndindex(*(inner.shape[i] for i in lead)):
            picks: list[Any] = list(inner.slices)
            target: list[Any] = [slice(None)] * len(self.axes)
            whole: list[Any] = [slice(None)] * len(self.axes)
            for axis, index in zip(lead, place, strict=True):
                whole[axis], target[axis] = index + inner.start[axis], index
            part = [picks[axis] for axis in self.joined]
            result[tuple(target)] = self._steps(foreground[tuple(whole)])[tuple(part)]
        return result

    def _steps(self, foreground: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Distance to the background, at most ``reach``, in steps; what lies outside the volume is none."""
        reach = self.settings.reach
        if foreground.all():
            return np.full(foreground.shape, reach * STEPS["distance"], np.float32)
        distance = ndimage.distance_transform_edt(foreground, self.sampling)
        found: NDArray[np.float32] = np.rint(np.minimum(distance, reach) * STEPS["distance"]).astype(np.float32)
        return found

    def _smooth(self, probability: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities 0 to 1, smoothed within sections, or along z too."""
        scale = 255 if probability.dtype == np.uint8 else 1
        values = probability.astype(np.float64) / scale
        sigma = [self.settings.smoothing if i in self.joined else 0.0 for i in range(len(self.axes))]
        smooth: NDArray[np.float64] = ndimage.gaussian_filter(values, sigma, mode="mirror", truncate=GAUSSIAN_WIDTHS)
        return np.clip(smooth, 0, 1)
