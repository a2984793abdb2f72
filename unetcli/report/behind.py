"""The image that a prediction was made of, section by section, to show errors on."""

from __future__ import annotations

import json
from typing import Any

from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import is_remote, place_of
from unetcli.core.geometry import Box
from unetcli.engine.runfolder import RunFolder
from unetcli.evaluate.result import Evaluation, Section
from unetcli.report.pictures import Image
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe


def image_of(evaluation: Evaluation, named: str | None) -> Image:
    """Grey values by section: of the volume named, else of the one that the prediction's run folder knows.

    Raises
    ------
    UnetcliError
        The volume named does not cover what was judged, or cannot be opened.
    """
    if named is not None:
        return sections_of(evaluation, open_volume(named, evaluation.request.level))
    known = predicted_volume(evaluation.request.prediction)
    try:
        return sections_of(evaluation, open_volume(known, evaluation.request.level)) if known else nothing
    except UnetcliError:  # moved, or another volume by now; nobody asked for it
        return nothing


def nothing(section: Section) -> None:
    """Of no section is there an image."""


def sections_of(evaluation: Evaluation, volume: Volume) -> Image:
    """Sections of a volume that lies as the truth does."""
    volume = volume.channels_as_sections() if len(volume.axes) < len(evaluation.axes) else volume
    fitting = volume if len(volume.axes) == len(evaluation.axes) else volume.without_single_axes()
    for section in evaluation.sections:
        require_inside(box_of(evaluation, section, fitting), fitting)

    def read(section: Section) -> NDArray[Any]:
        voxels = fitting.read(box_of(evaluation, section, fitting))
        return voxels.reshape(voxels.shape[0], *voxels.shape[-2:])

    return read


def box_of(evaluation: Evaluation, section: Section, volume: Volume) -> Box:
    """Where a section lies in the volume; of a frame in space, its middle section."""
    lead = volume.extent[:-2]
    place = tuple(place for place, _ in zip(section.place, lead, strict=False))
    place += tuple(n // 2 for n in lead[len(place) :])
    start, stop = evaluation.region.start[-2:], evaluation.region.stop[-2:]
    return Box((*place, *start), (*(first + 1 for first in place), *stop))


def require_inside(box: Box, volume: Volume) -> None:
    """Refuse an image that ends before what was judged."""
    if box.clipped(volume.whole()) != box:
        raise UnetcliError(
            f"--image {volume.path}: is {describe(volume.whole(), volume.axes)}, but {describe(box, volume.axes)} was "
            "judged; the image has to cover what the truth covers"
        )


def predicted_volume(prediction: str) -> str | None:
    """What a prediction of ours was made of, where its run folder still lies beside it."""
    if is_remote(place_of(prediction)):
        return None
    try:
        return str(json.loads(RunFolder.of(place_of(prediction)).plan_file.read_text())["sources"]["volume"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
