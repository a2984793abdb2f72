"""Folders and patterns of image files as one volume, a file per section or time point, read one file at a time."""

from __future__ import annotations

import glob
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, counted, format_shape, listed, note, one_line, pasted, warn, without_notes
from unetcli.core.files import absolute
from unetcli.core.names import VolumeName
from unetcli.volumes.axes import axes_from_names
from unetcli.volumes.image_file import open_file, require_image
from unetcli.volumes.views import chunks_of
from unetcli.volumes.volume import Volume

TIFF_ENDINGS = (".tif", ".tiff", ".btf", ".tf8")
ENDINGS = {**dict.fromkeys(TIFF_ENDINGS, "TIFF"), ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Kind of a file by the ending of its name."""
OPEN_FILES = 4
"""Number of files that a stack holds open, with the voxels of pictures, which are decoded as a whole."""
FRAME = re.compile(r"t\d{3,}")
"""Stem of the names of the Cell Tracking Challenge, which count time."""


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder in natural order; raises :class:`UnetcliError` if they are of different kinds."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    kinds = Counter(ENDINGS[path.suffix.lower()] for path in found if path.is_file())
    if len(kinds) > 1:
        named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise UnetcliError(
            f"{folder}: files of several kinds ({named}); expected one kind, or a quoted pattern such as "
            f"{pasted(f'{folder}/*{sorted(found)[0].suffix}')}"
        )
    return sorted((path for path in found if path.is_file()), key=natural)


def files_of_pattern(pattern: str) -> list[Path]:
    """Files that a pattern such as ``slices/*.tif`` matches, in natural order; raises if there are none."""
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207  # may be absolute
    if files := sorted((path for path in found if path.is_file()), key=natural):
        return files
    raise UnetcliError(f"{pattern}: no file matches this pattern")


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Key that sorts names as people count, ``s2`` before ``s10``.

    >>> sorted([Path("s10.tif"), Path("s2.tif")], key=natural)
    [PosixPath('s2.tif'), PosixPath('s10.tif')]
    """
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part], str(path)


def open_stack(name: VolumeName, files: Sequence[Path], parts: bool = False, axis: str = "") -> Volume:
    """Open files of equal shape as one volume, in the given order.

    Parameters
    ----------
    name
        Name of the volume.
    files
        At least one file.
    parts
        Accept files that cannot be read; reading their sections is an error.
    axis
        Axis along which files are counted, which may have gaps. Default: z; t if the files have an axis z, or
        names of the challenge.

    Raises
    ------
    UnetcliError
        A file cannot be read, or has another shape or data type than the first.
    """
    files = [path.absolute() for path in files]  # so that a warning is the same in every process
    if len(files) == 1:
        note(f"{absolute(name.place)}: holds one file; {files[0].name} is read")
        return require_image(open_file(replace(name, place=str(files[0])), parts=parts)).without_single_axes()
    name.require_no_choice("; files that are read as one volume have neither series nor levels")
    first = _open_first(files, parts)
    shared = Shared.of(first)
    broken = dict(_faults(files, shared, parts))
    if not axis:
        _warn_of_gaps(absolute(name.place), files)
        axis = "t" if "z" in first.axes or all(FRAME.fullmatch(path.stem) for path in files) else "z"
    if axis in first.stored_axes:
        raise UnetcliError(f"{name.place}: files with axes {', '.join(first.axes)}; expected images or stacks z, y, x")
    array = FileStack(files, shared, broken)
    axes = axis + first.stored_axes
    named = not first.assumed and axis == "t"
    note(
        f"{absolute(name.place)}: {counted(len(files), 'file')} are read as one volume, {axes} "
        f"{format_shape(array.shape)}"
    )
    return replace(
        first,
        path=str(name),
        array=array,
        stored_axes=axes_from_names(name.place, None, array.shape, name.axes) if name.axes else axes,
        assumed="" if name.axes else first.assumed if named else axis + first.assumed,
    )


def open_one(path: Path) -> Volume:
    """Open one file of a stack, without axes of extent 1."""
    return require_image(open_file(VolumeName(place=str(path)))).without_single_axes()


def _open_first(files: Sequence[Path], parts: bool) -> Volume:
    """The first file that can be read; without ``parts``, the first file."""
    for place, path in enumerate(files):
        try:
            return open_one(path)
        except UnetcliError:
            if not parts or place == len(files) - 1:
                raise
    raise AssertionError("no files")


@dataclass(frozen=True, slots=True)
class Shared:
    """Properties that all files of a stack share."""

    path: str
    """File that the others are compared with."""
    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, volume: Volume) -> Shared:
        array = volume.array
        return cls(volume.path, volume.stored_axes, tuple(array.shape), chunks_of(array), volume.dtype)

    def require(self, path: Path, found: Volume) -> None:
        """Raise :class:`UnetcliError` if a file differs from the first one."""
        own = Shared.of(found)
        if (own.axes, own.shape, own.dtype) != (self.axes, self.shape, self.dtype):
            one, other = (f"{format_shape(s.shape)} ({s.axes}) of {s.dtype}" for s in (own, self))
            raise UnetcliError(
                f"{path} is {one}, but {self.path} is {other}; expected files of equal shape and data type"
            )


def _faults(files: Sequence[Path], first: Shared, parts: bool) -> Iterator[tuple[int, str]]:
    """Numbers of the files that cannot be read, with the reason; raises for them unless ``parts``."""
    for number, path in enumerate(files):
        try:
            with without_notes():
                first.require(path, open_one(path))
        except UnetcliError as error:
            if not parts or "expected files of equal" in str(error):
                raise
            warn(one_line(error))
            yield number, one_line(error)


def _warn_of_gaps(place: str, files: Sequence[Path]) -> None:
    """Warn if a number is missing in the names, which differ in one number only."""
    numbers = numbering(files)
    if numbers and (missing := sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))):
        few = listed([str(number) for number in missing[:5]], "numbers") if len(missing) < 5 else f"{missing[0]}, .."
        warn(
            f"{place}: {counted(len(missing), 'number')} of {numbers[0]} to {numbers[-1]} missing in the names of its "
            f"files ({few}); sections before and after a gap are read as neighbours"
        )


def numbering(files: Sequence[Path]) -> list[int]:
    """Numbers in the names of files, if only one number differs and each occurs once; else empty.

    >>> numbering([Path("a2_ch1.tif"), Path("a3_ch1.tif"), Path("a5_ch1.tif")])
    [2, 3, 5]
    """
    split = [re.split(r"(\d+)", path.stem) for path in files]
    if len({len(parts) for parts in split}) != 1:
        return []
    columns = [set(column) for column in zip(*split, strict=True)]
    varying = [place for place, column in enumerate(columns) if len(column) > 1]
    if len(varying) != 1 or varying[0] % 2 == 0:
        return []
    numbers = [int(parts[varying[0]]) for parts in split]
    return numbers if sorted(set(numbers)) == numbers else []


class FileStack:
    """Array of the voxels of files, which are opened when they are read.

    Parameters
    ----------
    files
        One per position along the first axis.
    shared
        Shape and data type of each file.
    broken
        Reasons of the files that cannot be read, by number.
    """

    def __init__(self, files: Sequence[Path], shared: Shared, broken: Mapping[int, str]) -> None:
        self._files, self._shared, self._broken = tuple(files), shared, dict(broken)
        self.shape = (len(files), *shared.shape)
        self.dtype, self.chunks = shared.dtype, (1, *shared.chunks)
        self._held = OrderedDict[int, Volume]()
        self._lock = threading.Lock()

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        numbers = range(len(self._files))[selection[0]]
        sides = [len(range(n)[part]) for n, part in zip(self.shape[1:], selection[1:], strict=True)]
        result = np.empty((len(numbers), *sides), self.dtype)
        for place, number in enumerate(numbers):
            result[place] = self._file(number).array[tuple(selection[1:])]
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_held", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _held=OrderedDict(), _lock=threading.Lock())

    def _file(self, number: int) -> Volume:
        if number in self._broken:
            raise ValueError(self._broken[number])
        with self._lock:
            if number not in self._held:
                with without_notes():
                    self._held[number] = open_one(self._files[number])
                self._shared.require(self._files[number], self._held[number])
            self._held.move_to_end(number)
            while len(self._held) > OPEN_FILES:
                self._held.popitem(last=False)
            return self._held[number]
