"""Labels as the cell tracking challenge wants them: ``maskTTT.tif``, uint16, a file for each frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetcli.core.arrays import distinct
from unetcli.core.errors import UnetcliError
from unetcli.core.files import draft_of, remove_aside, sync_all
from unetcli.core.geometry import Box
from unetcli.volumes.volume import Volume

MOST = 2**16 - 1
SOFTWARE = "unetcli label"


def frames(labels: Volume, *, three_d: bool) -> Iterator[Box]:
    """What each file holds: a time point; without times a section, or the whole where objects go through sections."""
    whole = labels.whole()
    axis = labels.axes.find("t") if "t" in labels.axes else -1 if three_d else labels.axes.find("z")
    for index in range(labels.extent[axis]) if axis >= 0 else ():
        start, stop = list(whole.start), list(whole.stop)
        start[axis], stop[axis] = index, index + 1
        yield Box(tuple(start), tuple(stop))
    if axis < 0:
        yield whole


def renumbered(labels: NDArray[Any], place: str) -> NDArray[np.uint16]:
    """Labels of one frame as 1, 2 .. in their order.

    >>> renumbered(np.array([0, 70000, 9]), "frame 0").tolist()
    [0, 2, 1]
    """
    found, places = distinct(labels)
    objects = int(np.count_nonzero(found))
    if objects > MOST:
        raise UnetcliError(
            f"--ctc: {place} has {objects} objects, its files hold {MOST}; --min-size N removes small ones"
        )
    return (places + (0 if objects < len(found) else 1)).astype(np.uint16)


def require_exportable(folder: Path) -> None:
    """Raise unless a folder is free, empty, or holds nothing but an export of ours."""
    if folder.exists() and not (folder.is_dir() and all(map(_is_ours, folder.iterdir()))):
        raise UnetcliError(f"--ctc {folder}: exists and holds other files; name another folder")
    if not (parent := folder.absolute().parent).is_dir():
        raise UnetcliError(f"--ctc {folder}: the folder {parent} does not exist")


def export(labels: Volume, folder: Path, *, three_d: bool) -> int:
    """Write all frames; the folder appears whole or not at all. How many there are."""
    require_exportable(folder)
    boxes, draft = list(frames(labels, three_d=three_d)), draft_of(folder.absolute())
    digits = max(3, len(str(len(boxes) - 1)))
    draft.mkdir()
    try:
        for number, box in enumerate(boxes):
            values = renumbered(labels.read(box)[0], f"frame {number} of {labels.path}")
            image = values.reshape(
                [n for axis, n in zip(labels.axes, values.shape, strict=True) if _kept(axis, three_d, labels)]
            )
            name = f"mask{number:0{digits}d}.tif"
            tifffile.imwrite(
                draft / name, image, photometric="minisblack", compression="zlib", software=SOFTWARE, metadata=None
            )
        sync_all(list(draft.iterdir()), draft)
        remove_aside(folder)
        draft.rename(folder)
    finally:
        remove_aside(draft)
    return len(boxes)


def _kept(axis: str, three_d: bool, labels: Volume) -> bool:
    """Whether a frame has an axis: a section has y and x, a time point z too."""
    return axis in "yx" or (axis == "z" and (three_d or "t" in labels.axes))


def _is_ours(path: Path) -> bool:
    if not (path.name.startswith("mask") and path.suffix == ".tif"):
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.pages[0].tags["Software"].value == SOFTWARE)  # type: ignore[union-attr]
    except Exception:  # whatever is wrong with it, it is none of ours
        return False
