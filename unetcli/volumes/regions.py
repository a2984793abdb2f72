"""From ``--sections`` and ``--roi`` to a part of a volume."""

from __future__ import annotations

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.core.sections import Roi, Sections, resolve_sections
from unetcli.volumes.volume import Volume


def resolve_region(sections: Sections, roi: Roi | None, volume: Volume) -> Box:
    """The part of a volume that is asked for; all of it where nothing is.

    Raises
    ------
    UnetcliError
        It lies outside, is empty, or is named twice.
    """
    if roi is not None:
        if sections != (None, None):
            raise UnetcliError("--roi and --sections: one of them; --roi names the sections too")
        return _resolve_roi(roi, volume)
    if sections == (None, None):
        return volume.whole()
    if volume.section_axis is None:
        raise UnetcliError(f"--sections: {volume.path} is a single image ({', '.join(volume.axes)})")
    return volume.sections(*resolve_sections(sections, volume.extent[volume.section_axis], volume.path))


def _resolve_roi(roi: Roi, volume: Volume) -> Box:
    """The region of interest, along the last axes that it names."""
    axes = volume.axes
    if len(roi) > len(axes):
        raise UnetcliError(f"--roi: {len(roi)} ranges, {volume.path} has axes {', '.join(axes)}")
    start, stop = list(volume.whole().start), list(volume.extent)
    for place, (first, end) in enumerate(roi, start=len(axes) - len(roi)):
        start[place] = 0 if first is None else first
        stop[place] = volume.extent[place] if end is None else end
        if not 0 <= start[place] < stop[place] <= volume.extent[place]:
            raise UnetcliError(
                f"--roi: {axes[place]} {start[place]}:{stop[place]}, {volume.path} has {axes[place]} "
                f"0:{volume.extent[place]}"
            )
    return Box(tuple(start), tuple(stop))
