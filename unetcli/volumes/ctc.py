"""Folders of the cell tracking challenge: results, gold and silver truth, frame by frame.

    01_RES/maskTTT.tif                 a result, one label image per frame
    01_GT/SEG/man_segTTT.tif           gold truth of some frames, perhaps of some objects only
    01_GT/SEG/man_seg_TTT_ZZZ.tif      the same of one section of a 3-D frame
    01_GT/TRA/man_trackTTT.tif         a marker in every object of every frame
    01_ST/SEG/man_segTTT.tif           silver truth: fused from results of many programs

A frame has three digits, or more. A label is one object of its frame, connected or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

Labels = NDArray[np.integer]
MASK, SEGMENTED, MARKED = "mask", "man_seg", "man_track"
NAMES = {
    MASK: re.compile(r"mask(\d{3,})\.tiff?"),
    SEGMENTED: re.compile(r"man_seg_?(\d{3,})(?:_(\d{3,}))?\.tiff?"),
    MARKED: re.compile(r"man_track(\d{3,})\.tiff?"),
}


@dataclass(frozen=True, slots=True, order=True)
class FrameKey:
    """A frame, or one section of it where ``section`` is not -1."""

    time: int
    section: int = -1

    def __str__(self) -> str:
        return f"frame {self.time}" + (f", section {self.section}" if self.section >= 0 else "")


@dataclass(frozen=True, slots=True, eq=False)
class FramePair:
    """Reference and result of one frame, (y, x) or (z, y, x) labels each."""

    key: FrameKey
    reference: Labels
    result: Labels

    def table(self, ignore: int | None = None) -> Contingency:
        """Pixels of each pair of labels; pixels whose reference is ``ignore`` count nowhere."""
        return Contingency.of(self.reference, self.result, ignore=ignore)


class Frames(Protocol):
    """Label images by time."""

    @property
    def place(self) -> str:
        """What to call it to a user."""

    def has(self, time: int) -> bool: ...

    def read(self, time: int) -> Labels: ...


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """The frames of a result folder."""

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
    """The frames of a label volume, counted along t, else along z; a single image is frame 0."""

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
        """The voxels of a frame, whatever they are."""
        frame: NDArray[Any]
        if self.axis is None:
            frame = self.volume.read(self.volume.whole())[0]
        else:
            place = self.volume.axes.index(self.axis)
            frame = self.volume.read(self.volume.part(place, time, time + 1))[0].squeeze(axis=place)
        return frame


@dataclass(frozen=True, slots=True)
class Challenge:
    """A result laid over a truth folder; every frame of the truth is there."""

    truth: Path
    result: Frames
    segmented: Mapping[FrameKey, Path]
    """Files for SEG and matching; there may be none."""
    marked: Mapping[FrameKey, Path]
    """Files for DET; there may be none."""

    def pairs(self) -> Iterator[FramePair]:
        """Frames whose objects are drawn, in order: what SEG is computed of."""
        return (self.pair(key, path) for key, path in self.segmented.items())

    def marker_pairs(self) -> Iterator[FramePair]:
        """Frames whose objects are marked, in order: what DET is computed of."""
        return (self.pair(key, path) for key, path in self.marked.items())

    def unsegmented(self) -> int | None:
        """Marked objects that are not drawn in frames that have drawn objects; None where that is not known.

        Not known without markers, and where single sections of 3-D frames are drawn.
        """
        if not self.marked or any(key.section >= 0 or key not in self.marked for key in self.segmented):
            return None
        missed = 0
        for key, path in self.segmented.items():
            table = Contingency.of(read_labels(self.marked[key]), read_labels(path))
            missed += int(CellSums.of(table).missed)
        return missed

    def is_partial(self) -> bool:
        """Whether the truth leaves objects out, as gold truth may: then a result object more is no error.

        Silver truth is taken for complete.
        """
        return not self.truth.name.endswith("_ST") and self.unsegmented() != 0

    def pair(self, key: FrameKey, path: Path) -> FramePair:
        """The result of a frame beside a file of the truth."""
        reference, result = read_labels(path), self.result.read(key.time)
        if key.section >= 0:
            result = section_of(result, key, self.result.place)
        if reference.shape != result.shape:
            raise UnetcliError(
                f"{path} is {shape(reference)}, but {key} of {self.result.place} is {shape(result)}: not the same place"
            )
        return FramePair(key, reference, result)


def is_challenge_truth(path: str | Path) -> bool:
    """Whether a folder has the layout of ``01_GT`` or ``01_ST``."""
    folder = Path(path)
    return any(
        sub.is_dir() and any(sub.glob(f"{name}*"))
        for sub, name in ((folder / "SEG", SEGMENTED), (folder / "TRA", MARKED))
    )


def is_challenge_result(path: str | Path) -> bool:
    """Whether a folder has the layout of ``01_RES``."""
    return any(NAMES[MASK].fullmatch(file.name) for file in Path(path).glob("mask*"))


def open_challenge(result: str | Path | Frames, truth: str | Path) -> Challenge:
    """A result (a folder of masks, a label volume, or its frames) against a truth folder.

    Silver truth has no markers of its own; those of the gold truth beside it are taken.

    Raises
    ------
    UnetcliError
        No truth there; a frame of the truth is missing in the result (which the challenge counts as an error too).
    """
    folder = Path(truth)
    segmented = numbered(folder / "SEG", SEGMENTED)
    gold = folder.with_name(re.sub("_ST$", "_GT", folder.name))
    marked = numbered(folder / "TRA", MARKED) or numbered(gold / "TRA", MARKED)
    if not segmented and not marked:
        raise UnetcliError(f"{folder}: neither SEG/man_segTTT.tif nor TRA/man_trackTTT.tif; expected 01_GT or 01_ST")
    frames = open_frames(result) if isinstance(result, str | Path) else result
    missing = sorted({key.time for key in (*segmented, *marked) if not frames.has(key.time)})
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UnetcliError(
            f"{frames.place}: frame {missing[0]}{more} missing, which the truth in {folder} has; "
            "a frame without objects needs a mask too"
        )
    return Challenge(folder, frames, segmented, marked)


def open_frames(path: str | Path) -> Frames:
    """A folder of masks, else a label volume."""
    if is_challenge_result(path):
        return MaskFolder(Path(path), numbered(Path(path), MASK))
    return VolumeFrames(open_volume(path))


def numbered(folder: Path, kind: str) -> dict[FrameKey, Path]:
    """Files of one kind by frame, in order; a name that tells no frame is refused."""
    found: dict[FrameKey, Path] = {}
    for path in sorted(folder.glob(f"{kind}*.tif*")):
        match = NAMES[kind].fullmatch(path.name)
        if match is None:
            raise UnetcliError(f"{path}: no frame in the name; expected {kind}TTT.tif, three digits or more")
        key = FrameKey(*(int(number) for number in match.groups() if number is not None))
        if key in found:
            raise UnetcliError(f"{path}: {key} is in {found[key].name} too")
        found[key] = path
    return dict(sorted(found.items()))


def read_labels(path: Path) -> Labels:
    """Labels of one file, (y, x) or (z, y, x)."""
    try:
        values = tifffile.imread(path)
    except Exception as error:
        raise UnetcliError(f"{path}: not a TIFF file that can be read ({error})") from error
    return require_labels(values, str(path))


def require_labels(values: NDArray[Any], place: str) -> Labels:
    """Refuse what cannot be labels."""
    if values.dtype.kind not in "bui":
        raise UnetcliError(f"{place}: {values.dtype}; expected integer labels, 0 for background")
    return values


def section_of(result: Labels, key: FrameKey, place: str) -> Labels:
    """The section that a 2-D truth is about."""
    if result.ndim != 3 or key.section >= len(result):
        raise UnetcliError(f"{place}: {key} is in the truth, but that frame is {shape(result)}")
    section: Labels = result[key.section]
    return section


def shape(labels: Labels) -> str:
    """Extent for people.

    >>> shape(np.zeros((5, 13, 22), int))
    '5 x 13 x 22'
    """
    return " x ".join(map(str, labels.shape))
