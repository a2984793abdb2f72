"""PNG and JPEG files, whose header is read when they are opened, and whose pixels when the first voxel is read."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, note, one_line
from unetcli.core.files import absolute
from unetcli.core.names import VolumeName
from unetcli.volumes.axes import axes_from_names
from unetcli.volumes.volume import Volume

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
JPEG_END = b"\xff\xd9"
TAIL_BYTES = 2**16
"""Bytes at the end of a file in which its end marker must be; some programs append their own data."""
PNG, JPEG = "PNG", "JPEG"
COLOURS = {"1": 1, "L": 1, "P": 1, "I;16": 1, "I": 1, "LA": 1, "RGB": 3, "RGBA": 3}
"""Channels that are read by mode of Pillow; the alpha channel is left out."""
STORED = {**COLOURS, "LA": 2, "RGBA": 4}
"""Samples that are stored."""


@dataclass(frozen=True, slots=True)
class Header:
    """Properties that the first bytes of a file state."""

    kind: str
    width: int
    height: int
    mode: str
    dtype: np.dtype[Any]

    @property
    def channels(self) -> int:
        return COLOURS[self.mode]


def open_picture(name: VolumeName) -> Volume:
    """Open a PNG or JPEG file, y, x or y, x, c.

    Raises
    ------
    UnetcliError
        The file is damaged or cut off, or has colours other than grey or red, green and blue.
    """
    name.require_no_choice("; a picture has only one image")
    header = read_header(Path(name.place))
    if header.mode == "P":
        note(f"{absolute(name.place)}: the numbers of its palette's colours are read, as for labels")
    if STORED[header.mode] > header.channels:
        note(f"{absolute(name.place)}: the alpha channel is left out")
    array = Picture(Path(name.place), header)
    names = ["y", "x", "c"][: len(array.shape)]
    axes = axes_from_names(name.place, names, array.shape, name.axes)
    return Volume(path=str(name), array=array, stored_axes=axes)


def read_header(path: Path) -> Header:
    """Read the header of a file, and check that it has an end."""
    from PIL import JpegImagePlugin, PngImagePlugin  # tens of milliseconds

    with path.open("rb") as file:
        kind = PNG if file.read(4) == b"\x89PNG" else JPEG
        end = PNG_END if kind == PNG else JPEG_END
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        if end not in file.read():
            raise UnetcliError(
                f"{path}: not a whole {kind} file ({path.stat().st_size:,} bytes): its end is missing; expected an "
                "undamaged copy"
            )
        file.seek(0)
        try:
            image = (PngImagePlugin.PngImageFile if kind == PNG else JpegImagePlugin.JpegImageFile)(file)
        except Exception as error:  # SyntaxError, OSError, ValueError, struct.error..
            raise UnetcliError(f"{path}: not a readable {kind} file ({one_line(error)})") from error
        file.seek(0)
        deep = kind == PNG and file.read(25)[24:] == b"\x10"  # bits per sample; Pillow reduces RGB to 8
    if image.mode not in COLOURS:
        raise UnetcliError(f"{path}: colours of mode {image.mode}; expected grey values or RGB; save it as such a file")
    return Header(kind, image.width, image.height, image.mode, np.dtype("uint16" if deep else "uint8"))


class Picture:
    """Array of a file that is decoded as a whole when the first voxel is read, and then kept."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._header, self.dtype = path, header, header.dtype
        self.shape = (header.height, header.width, *([header.channels] if header.channels > 1 else []))
        self.chunks = self.shape
        self._voxels: NDArray[Any] | None = None
        self._lock = threading.Lock()

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        with self._lock:
            if self._voxels is None:
                self._voxels = self._decoded()
        return self._voxels[selection]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"} | {"_voxels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def _decoded(self) -> NDArray[Any]:
        values = decode(self._path, self._header)
        if values.ndim > len(self.shape) or values.shape[-1] > self.shape[-1]:  # alpha
            values = values[..., 0] if self._header.channels == 1 else values[..., : self._header.channels]
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"{self._path}: {values.shape} of {values.dtype}; its header says {self.shape}")
        return values


def decode(path: Path, header: Header) -> NDArray[Any]:
    """Stored samples of a file, (y, x) or (y, x, sample); raises an exception of any class if it is damaged."""
    import imagecodecs

    if header.mode == "P" or header.kind == JPEG:
        from PIL import JpegImagePlugin, PngImagePlugin

        plugin = PngImagePlugin.PngImageFile if header.kind == PNG else JpegImagePlugin.JpegImageFile
        with path.open("rb") as file, plugin(file) as image:  # Pillow keeps the numbers, and refuses what is cut off
            return np.asarray(image)
    return np.asarray(imagecodecs.png_decode(path.read_bytes()))
