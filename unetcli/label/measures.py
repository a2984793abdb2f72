"""Size, place and brightness of objects, as sums that add up over blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Box
from unetcli.label.components import first_voxels

FRACTION = 2**24
"""Probabilities in float are summed as integers of so many parts: then the sum does not depend on the order."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of ``n`` objects, or of the parts of them in one block; coordinates are the volume's."""

    size: NDArray[np.int64]
    """(n,) voxels."""
    first: NDArray[np.int64]
    """(n,) place of the first voxel in C order, counted in the volume."""
    start: NDArray[np.int64]
    """(n, axes) of the bounding box."""
    stop: NDArray[np.int64]
    """(n, axes), not included."""
    places: NDArray[np.int64]
    """(n, axes) sums of the coordinates of all voxels."""
    bright: NDArray[np.float64]
    """(n,) sums of intensities, in units of :func:`unit`."""

    @classmethod
    def none(cls, count: int, axes: int) -> Self:
        """Of objects that have no voxels yet."""
        big = np.iinfo(np.int64).max
        return cls(
            size=np.zeros(count, np.int64),
            first=np.full(count, big),
            start=np.full((count, axes), big),
            stop=np.zeros((count, axes), np.int64),
            places=np.zeros((count, axes), np.int64),
            bright=np.zeros(count),
        )

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def add(self, part: Measures, to: NDArray[np.int64]) -> None:
        """Take in parts of objects; ``to`` says of which."""
        np.add.at(self.size, to, part.size)
        np.minimum.at(self.first, to, part.first)
        np.add.at(self.bright, to, part.bright)
        for axis in range(self.start.shape[1]):
            np.minimum.at(self.start[:, axis], to, part.start[:, axis])
            np.maximum.at(self.stop[:, axis], to, part.stop[:, axis])
            np.add.at(self.places[:, axis], to, part.places[:, axis])

    def picked(self, which: NDArray[Any] | slice) -> Measures:
        """Of some of the objects, in a given order."""
        return Measures(*(getattr(self, field.name)[which] for field in fields(self)))


NAMES = tuple(field.name for field in fields(Measures))


def measure(
    labels: NDArray[np.int32], count: int, box: Box, shape: Iterable[int], brightness: NDArray[Any]
) -> Measures:
    """Of the objects 1 .. ``count``, some of which may have no voxels, in a block that is ``box`` of a volume."""
    places = np.flatnonzero(labels)
    which = labels.ravel()[places] - 1
    size = np.bincount(which, minlength=count)
    result = Measures.none(count, len(box.start))
    first = np.unravel_index(first_voxels(labels, count)[size > 0], labels.shape)
    moved = tuple(index + a for index, a in zip(first, box.start, strict=True))
    result.first[size > 0] = np.ravel_multi_index(moved, tuple(shape))
    result.size[:] = size
    result.bright[:] = np.bincount(which, amounts(brightness).ravel()[places], count)
    for axis, (extent, offset) in enumerate(zip(labels.shape, box.start, strict=True)):
        along = places // math.prod(labels.shape[axis + 1 :]) % extent
        np.minimum.at(result.start[:, axis], which, along + offset)
        np.maximum.at(result.stop[:, axis], which, along + offset + 1)
        # Below 2**53 sums of integers are exact in float64.
        result.places[:, axis] = np.bincount(which, along, count).astype(np.int64) + size * offset
    return result


def amounts(values: NDArray[Any]) -> NDArray[Any]:
    """Intensities as they are summed: float16 and float32 in integer parts, so that sums of probabilities are exact."""
    return np.rint(values * np.float64(FRACTION)) if values.dtype.kind == "f" else values


def unit(dtype: np.dtype[Any], *, probability: bool) -> float:
    """What a sum of :func:`amounts` has to be multiplied with."""
    if dtype.kind == "f":
        return 1 / FRACTION
    return 1 / 255 if probability and dtype == np.uint8 else 1.0
