"""Truth folders of the Cell Tracking Challenge: names of their files, and their frames as a volume.

    01_GT/SEG/man_segTTT.tif           gold truth of some frames, possibly with some objects only
    01_GT/SEG/man_seg_TTT_ZZZ.tif      gold truth of one section of a 3-D frame
    01_GT/TRA/man_trackTTT.tif         a marker in every object of every frame
    01_ST/SEG/man_segTTT.tif           silver truth, fused from the results of many programs
    01/tTTT.tif                        images

Frame numbers have three or more digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unetcli.core.errors import UnetcliError, counted, note
from unetcli.core.names import VolumeName
from unetcli.volumes.stack import FRAME, files_of_pattern, image_files, open_stack
from unetcli.volumes.views import PickedSections
from unetcli.volumes.volume import Volume

MASK, SEGMENTED, MARKED = "mask", "man_seg", "man_track"
NAMES = {
    MASK: re.compile(r"mask(\d{3,})\.tiff?"),
    SEGMENTED: re.compile(r"man_seg_?(\d{3,})(?:_(\d{3,}))?\.tiff?"),
    MARKED: re.compile(r"man_track(\d{3,})\.tiff?"),
}


@dataclass(frozen=True, slots=True, order=True)
class FrameKey:
    """Number of a frame, and of one section of it; -1 stands for the whole frame."""

    time: int
    section: int = -1

    def __str__(self) -> str:
        return f"frame {self.time}" + (f", section {self.section}" if self.section >= 0 else "")


def is_challenge_truth(path: str | Path) -> bool:
    """Whether a folder has the layout of ``01_GT`` or ``01_ST``."""
    folder = Path(path)
    return any(any((folder / sub).glob(f"{name}*")) for sub, name in (("SEG", SEGMENTED), ("TRA", MARKED)))


def files_by_frame(folder: Path, kind: str) -> dict[FrameKey, Path]:
    """Files of one kind by frame, in order; raises :class:`UnetcliError` for a name without frame number."""
    found: dict[FrameKey, Path] = {}
    for path in sorted(folder.glob(f"{kind}*.tif*")):
        if (match := NAMES[kind].fullmatch(path.name)) is None:
            raise UnetcliError(f"{path}: no frame number in the name; expected {kind}TTT.tif with 3 or more digits")
        key = FrameKey(*(int(number) for number in match.groups() if number is not None))
        if key in found:
            raise UnetcliError(f"{path}: {key} is also in {found[key].name}; remove one of them")
        found[key] = path
    return dict(sorted(found.items()))


def segmented_files(folder: Path) -> dict[FrameKey, Path]:
    """Segmented truth of a folder, either of frames or of sections of them."""
    files = files_by_frame(folder / "SEG", SEGMENTED)
    if not files:
        raise UnetcliError(f"{folder}: markers only; expected SEG/man_segTTT.tif, which outlines the objects")
    if len({key.section >= 0 for key in files}) > 1:
        raise UnetcliError(f"{folder}: truth of frames and of single sections; expected only one kind in SEG")
    return files


def open_truth(name: VolumeName, folder: Path) -> Volume:
    """Open the segmented frames of a truth folder, or sections of them, as a volume along t; others are left out."""
    volume = open_stack(name, list(segmented_files(folder).values()), axis="t")
    return volume if "t" in volume.axes else volume.with_new_axes("t")


def with_truth_frames(images: Volume, labels: str) -> Volume:
    """The images that a truth folder has labels of; all images if the labels are no such folder.

    Raises
    ------
    UnetcliError
        The images lack a frame of the truth.
    """
    folder = Path(VolumeName.parse(labels).place)
    if not folder.is_dir() or not is_challenge_truth(folder):
        return images
    keys, axis = list(segmented_files(folder)), next((axis for axis in "tz" if axis in images.axes), None)
    if axis is None:
        raise UnetcliError(f"{images.path}: a single image, but {folder} has {counted(len(keys), 'frame')}")
    numbers = frame_numbers(images)
    if lost := [key for key in keys if key.time not in numbers]:
        raise UnetcliError(
            f"{images.path}: {lost[0]} of the truth in {folder} is missing; it has {len(numbers)} frames"
        )
    times = [numbers.index(key.time) for key in keys]
    what = "frame" if keys[0].section < 0 else "section"
    note(f"{folder}: truth of {counted(len(keys), what)}; other frames of {images.path} are not used")
    if keys[0].section < 0:
        return images if times == list(range(len(numbers))) else images.picked(axis, times)
    return _sections(images, times, keys)


def frame_numbers(images: Volume) -> list[int]:
    """Number of each frame: those in the names of the challenge's files, else counted from 0."""
    name = VolumeName.parse(images.path)
    folder, files = Path(name.place), list[Path]()
    if folder.is_dir():
        files = image_files(folder)
    elif name.is_pattern and not folder.exists():
        files = files_of_pattern(name.place)
    if files and all(FRAME.fullmatch(path.stem) for path in files):
        return [int(path.stem[1:]) for path in files]
    axis = next(axis for axis in "tz" if axis in images.axes)
    return list(range(images.extent[images.axes.index(axis)]))


def _sections(images: Volume, times: Sequence[int], keys: Sequence[FrameKey]) -> Volume:
    """Single sections of 3-D frames, along t."""
    if images.axes != "tzyx":
        raise UnetcliError(f"{images.path}: axes {', '.join(images.axes)}; the truth has single sections of t, z, y, x")
    depth = images.extent[1]
    if beyond := [key for key in keys if key.section >= depth]:
        raise UnetcliError(f"{images.path}: {depth} sections; the truth has {beyond[0]}")
    places = [(time, key.section) for time, key in zip(times, keys, strict=True)]
    t, z = images.stored_axes.index("t"), images.stored_axes.index("z")
    return replace(
        images,
        array=PickedSections(images.array, (t, z), places),
        stored_axes=images.stored_axes.replace("z", ""),
    )
