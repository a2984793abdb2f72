"""Files with an image: which kind of file it is follows from its first bytes."""

from __future__ import annotations

import math
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import first_bytes
from unetcli.core.names import VolumeName
from unetcli.volumes import other_formats
from unetcli.volumes.hdf5 import open_hdf5
from unetcli.volumes.picture import open_picture
from unetcli.volumes.tiff import open_tiff
from unetcli.volumes.views import chunks_of
from unetcli.volumes.volume import Volume
from unetcli.volumes.zarr_image import open_zarr

MAX_VOXELS = 2**60
"""Largest size of a volume, 10^18 voxels, so that sizes and indices in bytes fit into 64 bits."""
MAGIC = {
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "HDF5": (b"\x89HDF\r\n\x1a\n", b"MATLAB 7.3"),
    "ZIP": (b"PK\x03\x04",),
}
"""First bytes of files by kind; tifffile and HDF5 check the rest of their files."""
HEAD = 16
"""Number of bytes that are read to find the kind; no format needs more."""


def open_file(name: VolumeName, *, parts: bool = False) -> Volume:
    """Open the file at the place of a name, which exists; see :func:`unetcli.volumes.opening.open_volume`."""
    path = Path(name.place)
    head = first_bytes(path, HEAD)
    kind = next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        other_formats.require_readable_file(path, head)
    match kind:
        case "PNG" | "JPEG":
            return open_picture(name)
        case "HDF5":
            return open_hdf5(name)
        case "ZIP":
            return open_zarr(name)
        case _:  # also of other files: the message says what is wrong
            return open_tiff(name, parts=parts)


def require_image(volume: Volume) -> Volume:
    """Return a volume; raises :class:`UnetcliError` if its data type or shape is none of an image."""
    if volume.dtype.kind not in "buif":
        raise UnetcliError(f"{volume.path}: dtype {volume.dtype}; expected integers, floats or booleans")
    if 0 in volume.array.shape:
        raise UnetcliError(f"{volume.path}: empty array, shape {tuple(volume.array.shape)}")
    if any(side < 1 for side in chunks_of(volume.array)):
        raise UnetcliError(f"{volume.path}: chunks of {tuple(chunks_of(volume.array))}; expected at least one voxel")
    if (voxels := math.prod(volume.array.shape)) > MAX_VOXELS:
        raise UnetcliError(f"{volume.path}: {voxels:.3g} voxels; expected at most {MAX_VOXELS:.3g}")
    return volume
