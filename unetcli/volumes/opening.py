"""One door to everything that can be read as a volume."""

from __future__ import annotations

from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import is_remote, plain
from unetcli.volumes.omezarr import open_zarr
from unetcli.volumes.store import store_at
from unetcli.volumes.tiff import open_tiff
from unetcli.volumes.volume import Volume


def open_volume(path: str | Path, level: int = 0) -> Volume:
    """Open for reading: Zarr v2 or v3 array, OME-Zarr 0.4 or 0.5 image, array inside a store, TIFF stack.

    Raises
    ------
    UnetcliError
        Path missing, no such level, no array there, empty array, or a dtype or axes that are no image.
    """
    name = plain(str(path))
    if is_remote(name):
        store_at(name).read_text("zarr.json")  # whether it can be reached; Zarr would leave requests behind that hang
    elif not Path(name).exists():
        raise UnetcliError(f"{name}: no such file or folder")
    if Path(name).is_file():
        if level:
            raise UnetcliError(f"{name}: level {level} asked for, but a TIFF file has only 0")
        return _checked(open_tiff(name))
    return _checked(open_zarr(name, level))


def _checked(volume: Volume) -> Volume:
    if volume.dtype.kind not in "buif":
        raise UnetcliError(f"{volume.path}: dtype {volume.dtype}; expected integers, floats or booleans")
    if 0 in volume.array.shape:
        raise UnetcliError(f"{volume.path}: empty array, shape {tuple(volume.array.shape)}")
    return volume
