"""Images of a TIFF series that its file promises and does not hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

CUT = "the data end beyond the end of the file, as in a copy that was cut off; copy it again"
MAX_IMAGES = 10**7


@dataclass(frozen=True, eq=False)
class Missing:
    """Images of a series that cannot be read; an image is a page, or as large a part of data stored without pages."""

    planes: NDArray[np.bool_]
    """Whether each image is missing, in the order of the file."""
    reason: str

    def __str__(self) -> str:
        found = np.flatnonzero(self.planes)
        which = f"image {found[0]}" if len(found) == 1 else f"images {found[0]} to {found[-1]}"
        between = "" if len(found) == found[-1] - found[0] + 1 else ", with gaps"
        return f"not whole: {len(found)} of {len(self.planes)} images are missing ({which}{between}): {self.reason}"

    def __len__(self) -> int:
        return int(self.planes.sum())


def find_missing(tif: Any, series: Any) -> Missing | None:
    """Images that the description promises and the files do not hold; None if there are none."""
    keyframe = series.keyframe
    count = math.prod(series.shape) // math.prod(keyframe.shape)
    if count > MAX_IMAGES:
        raise ValueError(f"{count} images; expected at most {MAX_IMAGES}")
    if len(series.pages) == 1 and series.dataoffset is not None:
        ends = series.dataoffset + np.arange(1, count + 1, dtype=np.int64) * keyframe.nbytes
        faults = [CUT if end > keyframe.parent.filehandle.size else "" for end in ends.tolist()]
    else:
        faults = [_fault(series.pages[i], keyframe) for i in range(len(series.pages))]
        faults += ["the file has fewer pages"] * (count - len(faults))
    reason = absent_files(tif) or next(filter(None, faults), "")
    return Missing(np.array([bool(fault) for fault in faults]), reason) if any(faults) else None


def _fault(page: Any, keyframe: Any) -> str:
    """Why a page cannot be read as part of a series; empty if it can."""
    if page is None or page.keyframe is None:
        return "there is no such page"
    own = page.keyframe
    if own is not keyframe and (own.shape, own.dtype) != (keyframe.shape, keyframe.dtype):
        return f"{page.parent.filename} has another size or data type than the first file of the set"
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    if len(offsets) != len(counts) or not len(offsets):
        return "the page does not say where its data are"
    if ((offsets == 0) != (counts == 0)).any():  # both are 0 for a tile that a sparse file does not store
        return "the page does not say where all of its data are"
    return CUT if (offsets + counts).max() > page.parent.filehandle.size else ""


def absent_files(tif: Any) -> str:
    """Sentence about files that the OME-XML of an OME-TIFF names and that are not there; empty if there are none."""
    if not tif.is_ome:
        return ""
    root, folder = ElementTree.fromstring(tif.ome_metadata), Path(tif.filehandle.dirname)
    names = dict.fromkeys(name for element in root.iter() if (name := element.get("FileName")))
    absent = [name for name in names if not (folder / name).is_file()]
    if not absent:
        return ""
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return f"its OME-XML names {absent[0]}{more}, not found in {folder}; put all files of the set into one folder"


class WithoutMissing:
    """Array of a series some of whose images are missing; reading them raises ValueError."""

    def __init__(self, array: Any, missing: Missing) -> None:
        self._array, self._missing = array, missing
        self.shape, self.dtype, self.chunks = array.shape, array.dtype, array.chunks
        sizes = [math.prod(self.shape[:axis]) for axis in range(len(self.shape) + 1)]
        self._leading = sizes.index(len(missing.planes))
        self._planes = missing.planes.reshape(self.shape[: self._leading])

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        if self._planes[selection[: self._leading]].any():
            raise ValueError(str(self._missing))
        return np.asarray(self._array[selection])
