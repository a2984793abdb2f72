"""Folders of the Cell Tracking Challenge: results, gold and silver truth, frame by frame.

    01_RES/maskTTT.tif                 result, one label image per frame

Frame numbers have three or more digits. A label is one object of its frame, connected or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import LabelError, UnetcliError, format_shape
from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency
from unetcli.volumes.labels import whole_numbers
from unetcli.volumes.opening import open_volume
from unetcli.volumes.tiff import read_tiff
from unetcli.volumes.truth_frames import MARKED, MASK, NAMES, SEGMENTED, FrameKey, files_by_frame
from unetcli.volumes.volume import Volume

Labels = NDArray[np.integer]


@dataclass(frozen=True, slots=True, eq=False)
class FramePair:
    """Reference and result labels of one frame, each (y, x) or (z, y, x)."""

    key: FrameKey
    reference: Labels
    result: Labels

    def table(self, ignore: int | None = None) -> Contingency:
        """Number of pixels of each pair of labels, without pixels whose reference label is ``ignore``."""
        return Contingency.of(self.reference, self.result, ignore=ignore)


class Frames(Protocol):
    """Label images by time."""

    @property
    def place(self) -> str:
        """Path, for messages to the user."""

    def has(self, time: int) -> bool: ...

    def read(self, time: int) -> Labels: ...


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """Frames of a result folder."""

    folder: Path
    files: Mapping[FrameKey, Path]

    @property
    def place(self) -> str:
        return str(self.folder)

    def has(self, time: int) -> bool:
        return FrameKey(time) in self.files

    def read(self, time: int) -> Labels:
        return read_labels(self.files[FrameKey(time)])


@dataclass(frozen=True, slots=True)
class VolumeFrames:
    """Frames of a label volume, counted along t, or along z if it has no t; a single image is frame 0."""

    volume: Volume

    @property
    def place(self) -> str:
        return self.volume.path

    @property
    def axis(self) -> str | None:
        return next((axis for axis in "tz" if axis in self.volume.axes), None)

    def has(self, time: int) -> bool:
        return time < (self.volume.extent[self.volume.axes.index(self.axis)] if self.axis else 1)

    def read(self, time: int) -> Labels:
        return require_labels(self.stored(time), self.volume.path)

    def stored(self, time: int) -> NDArray[Any]:
        """Voxels of a frame, of any dtype."""
        frame: NDArray[Any]
        if self.axis is None:
            frame = self.volume.read(self.volume.whole())[0]
        else:
            place = self.volume.axes.index(self.axis)
            frame = self.volume.read(self.volume.part(place, time, time + 1))[0].squeeze(axis=place)
        return frame


@dataclass(frozen=True, slots=True)
class Challenge:
    """A result with the truth folder it is compared with. The result has every frame of the truth."""

    truth: Path
    result: Frames
    segmented: Mapping[FrameKey, Path]
    """Truth files for SEG and for matching objects; may be empty."""
    marked: Mapping[FrameKey, Path]
    """Truth files for DET; may be empty."""

    def pairs(self) -> Iterator[FramePair]:
        """Frames with segmented objects, in order, from which SEG is computed."""
        return (self.pair(key, path) for key, path in self.segmented.items())

    def marker_pairs(self) -> Iterator[FramePair]:
        """Frames with marked objects, in order, from which DET is computed."""
        return (self.pair(key, path) for key, path in self.marked.items())

    def unsegmented(self) -> int | None:
        """Number of marked objects that are not segmented, in frames that have segmented objects.

        None, meaning unknown, if there are no markers or if only single sections of 3-D frames are segmented.
        """
        if not self.marked or any(key.section >= 0 or key not in self.marked for key in self.segmented):
            return None
        missed = 0
        for key, path in self.segmented.items():
            markers, reference = read_labels(self.marked[key]), read_labels(path)
            if markers.shape != reference.shape:
                raise UnetcliError(
                    f"{path} is {shape(reference)}, but {self.marked[key]} is {shape(markers)}: different shapes"
                )
            missed += int(CellSums.of(Contingency.of(markers, reference)).missed)
        return missed

    def is_partial(self) -> bool:
        """Whether the truth omits objects, as gold truth may; additional objects of the result are then no errors.

        Silver truth is assumed to be complete.
        """
        return not self.truth.name.endswith("_ST") and self.unsegmented() != 0

    def pair(self, key: FrameKey, path: Path) -> FramePair:
        """Read a truth file and the result of the same frame."""
        reference, result = read_labels(path), self.result.read(key.time)
        if key.section >= 0:
            result = select_section(result, key, self.result.place)
        if reference.shape != result.shape:
            raise UnetcliError(
                f"{path} is {shape(reference)}, but {key} of {self.result.place} is {shape(result)}: different shapes"
            )
        return FramePair(key, reference, result)


def is_challenge_result(path: str | Path) -> bool:
    """Whether a folder has the layout of ``01_RES``."""
    return any(NAMES[MASK].fullmatch(file.name) for file in Path(path).glob("mask*"))


def open_challenge(result: str | Path | Frames, truth: str | Path) -> Challenge:
    """Open a result together with the truth that it is compared with.

    Parameters
    ----------
    result
        Folder of masks, label volume, or frames.
    truth
        Folder such as ``01_GT`` or ``01_ST``. Silver truth has no markers; those of the gold truth beside it are used.

    Raises
    ------
    UnetcliError
        The folder contains no truth, or the result lacks a frame of the truth, which is also an error in the challenge.
    """
    folder = Path(truth)
    segmented = files_by_frame(folder / "SEG", SEGMENTED)
    gold = folder.with_name(re.sub("_ST$", "_GT", folder.name))
    marked = files_by_frame(folder / "TRA", MARKED) or files_by_frame(gold / "TRA", MARKED)
    if not segmented and not marked:
        raise UnetcliError(f"{folder}: neither SEG/man_segTTT.tif nor TRA/man_trackTTT.tif; expected 01_GT or 01_ST")
    frames = open_frames(result) if isinstance(result, str | Path) else result
    if missing := sorted({key.time for key in (*segmented, *marked) if not frames.has(key.time)}):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UnetcliError(
            f"{frames.place}: frame {missing[0]}{more} of the truth in {folder} is missing; "
            "frames without objects need a mask too"
        )
    return Challenge(folder, frames, segmented, marked)


def open_frames(path: str | Path) -> Frames:
    """Open a folder of masks or a label volume."""
    if is_challenge_result(path):
        return MaskFolder(Path(path), files_by_frame(Path(path), MASK))
    return VolumeFrames(open_volume(path))


def read_labels(path: Path) -> Labels:
    """Read the labels of one file, (y, x) or (z, y, x)."""
    return require_labels(read_tiff(str(path)), str(path))


def require_labels(values: NDArray[Any], place: str) -> Labels:
    """Return the values as integers or booleans; raises :class:`UnetcliError` if one is no whole number."""
    try:
        return whole_numbers(values)
    except LabelError as error:
        raise UnetcliError(f"{place}: {error}, 0 for background") from error


def select_section(result: Labels, key: FrameKey, place: str) -> Labels:
    """Select the section of a 3-D result that a 2-D truth file describes."""
    if result.ndim != 3 or key.section >= len(result):
        raise UnetcliError(f"{place}: the truth has {key}, but this frame of the result is {shape(result)}")
    section: Labels = result[key.section]
    return section


def shape(labels: Labels) -> str:
    """Format the shape of labels for the user."""
    return format_shape(labels.shape)
