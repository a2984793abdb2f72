"""Opening of volumes by their names: the kind of file, and the part of the file that is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import is_remote, strip_scheme
from unetcli.core.names import VolumeName
from unetcli.volumes import other_formats, truth_frames
from unetcli.volumes.image_file import open_file, require_image
from unetcli.volumes.stack import files_of_pattern, image_files, open_stack
from unetcli.volumes.store import METADATA, store_at
from unetcli.volumes.views import Rearranged
from unetcli.volumes.volume import Volume
from unetcli.volumes.zarr_image import open_zarr
from unetcli.volumes.zip_archive import archive_of


def open_volume(path: str | Path, level: int = 0, *, parts: bool = False) -> Volume:
    """Open a volume for reading; nothing but metadata is read until voxels are.

    Parameters
    ----------
    path
        Name of the volume, as in :class:`unetcli.core.names.VolumeName`: path or URL of a Zarr array (v2 or v3), an
        OME-Zarr image (0.1 to 0.6), a container of images, a plate or an array inside a store; path of a ZIP file of
        these, of a TIFF, PNG, JPEG or HDF5 file, of a folder of images, or a pattern of their names.
    level
        Level of an OME-Zarr image or a pyramidal TIFF file, counted from the one in the name; 0 is the full resolution.
    parts
        Open TIFF files although images are missing; reading them is an error, as reading a damaged chunk is.

    Raises
    ------
    UnetcliError
        The path or level does not exist, or its content is not an image: no array, an empty one, an unsuitable dtype
        or number of axes, several images, or a file that is not whole.
    """
    name = VolumeName.parse(strip_scheme(str(path)))
    found = _open(replace(name, level=(name.level or 0) + level), parts)
    found = replace(found, path=str(name))
    return require_image(one_channel(found, name.channel) if name.channel else found)


def _open(name: VolumeName, parts: bool) -> Volume:
    path = Path(name.place)
    if is_remote(name.place):
        store_at(name.place).read_text("zarr.json")  # raises if it cannot be reached; Zarr would leave hanging requests
        return open_zarr(name)
    if not path.exists():
        if name.is_pattern:
            return open_stack(name, files_of_pattern(name.place), parts)
        if archive_of(path):
            return open_zarr(name)
        raise UnetcliError(f"{name.place}: no such file or folder")
    return _open_folder(name, path, parts) if path.is_dir() else open_file(name, parts=parts)


def _open_folder(name: VolumeName, path: Path, parts: bool) -> Volume:
    if any((path / file).exists() for file in METADATA):
        return open_zarr(name)
    other_formats.require_readable_folder(path)
    if truth_frames.is_challenge_truth(path):
        return truth_frames.open_truth(name, path)
    if files := image_files(path):
        return open_stack(name, files, parts)
    return open_zarr(name)  # raises, or finds arrays below


def one_channel(volume: Volume, wanted: str) -> Volume:
    """One channel of a volume, by its name in the file, or else by its number."""
    names, lower = volume.channel_names, [name.lower() for name in volume.channel_names]
    if wanted in names or lower.count(wanted.lower()) == 1:
        number = names.index(wanted) if wanted in names else lower.index(wanted.lower())
    elif wanted.isascii() and wanted.isdecimal() and int(wanted) < volume.channels:
        number = int(wanted)
    else:
        known = f"channels {', '.join(map(repr, names))}; expected one of them, or" if names else "no names; expected"
        raise UnetcliError(f"--channel {wanted}: {volume.path} has {known} a number from 0 to {volume.channels - 1}")
    if "c" not in volume.stored_axes:
        return volume
    place = [number if axis == "c" else slice(None) for axis in volume.stored_axes]
    return replace(
        volume,
        array=Rearranged(volume.array, place),
        stored_axes=volume.stored_axes.replace("c", ""),
        channel_names=names[number : number + 1],
    )
