"""Volumes resampled to another voxel size as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unetcli.core.rescaling import Pixels, resample, resampled_extent
from unetcli.volumes.views import Selection, chunks_of
from unetcli.volumes.volume import Volume


def resampled(volume: Volume, sizes: Sequence[float] | None) -> Volume:
    """The volume on a grid of voxels of another size, float32; only the voxels that a box needs are read.

    Parameters
    ----------
    volume : Volume
    sizes
        Side of a resampled voxel along each axis, in voxels of the volume. None: the volume itself.
    """
    if sizes is None:
        return volume
    by = dict(zip(volume.axes, sizes, strict=True))
    step = volume.voxel_size
    shift = {axis: (by.get(axis, 1.0) - 1) / 2 * size for axis, size in step.items()}
    return replace(
        volume,
        array=Resampled(volume.array, [by.get(axis, 1.0) for axis in volume.stored_axes]),
        voxel_size={axis: size * by.get(axis, 1.0) for axis, size in step.items()},
        translation={axis: volume.translation.get(axis, 0.0) + moved for axis, moved in shift.items()},
    )


class Resampled:
    """Array on a grid of voxels of another size, whose side along each axis is given in voxels of the array."""

    def __init__(self, array: Any, sizes: Sequence[float]) -> None:
        self._array, self._sizes, self.dtype = array, tuple(sizes), np.dtype(np.float32)
        self.shape = tuple(map(resampled_extent, array.shape, sizes))
        self.chunks = tuple(map(resampled_extent, chunks_of(array), sizes))

    def __getitem__(self, selection: Selection) -> Pixels:
        parts = [slice(*part.indices(n)[:2]) for part, n in zip(selection, self.shape, strict=True)]
        return resample(self._read, parts, self._sizes, self._array.shape)

    def _read(self, selection: Selection) -> Any:
        return np.asarray(self._array[selection])
