"""The image that a prediction was made of, for the pictures of a report."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from unetcli.errors import UnetcliError
from unetcli.evaluation.result import Evaluation, Section
from unetcli.geometry import Box
from unetcli.report.pictures import Image
from unetcli.volumes.opening import open_volume


def image_of(evaluation: Evaluation, name: str) -> Image:
    """Reads grey values (c, y, x) of a section from the volume ``name``, which lies on the truth voxel by voxel.

    Raises
    ------
    UnetcliError
        It cannot be opened, or does not reach over all that was judged.
    """
    volume, region = open_volume(name), evaluation.region
    if len(volume.extent) != len(region.stop):
        volume = volume.without_single_axes()
    apart = len(volume.extent) != len(region.stop)
    if apart or any(stop > side for stop, side in zip(region.stop, volume.extent, strict=True)):
        raise UnetcliError(
            f"--image {name}: extent {volume.extent}; what was judged ends at {region.stop} ({evaluation.axes}), "
            "the image has to lie on the truth voxel by voxel"
        )

    def read(section: Section) -> NDArray[Any]:
        start = (*section.place, *region.start[-2:])
        stop = (*(place + 1 for place in section.place), *region.stop[-2:])
        voxels = volume.read(Box(start, stop))
        return voxels.reshape(volume.channels, *region.shape[-2:])

    return read
