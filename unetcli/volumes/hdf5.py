"""Datasets of HDF5 files, which are opened by their path in every process and read by one thread at a time."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, format_shape, listed, note, one_line
from unetcli.core.files import absolute
from unetcli.core.names import VolumeName
from unetcli.volumes.axes import axes_from_names, given_names
from unetcli.volumes.volume import Volume

if TYPE_CHECKING:
    import h5py

_reading = threading.RLock()
"""HDF5 serialises its calls too, but a thread that waits for this lock can be interrupted."""
LEAST_SIDE = 16
"""Datasets that are narrower in y or x are tables, not images, when one is looked for."""
CHUNK_VOXELS = 2**20
"""Voxels that are read at a time from a dataset without chunks."""


def open_hdf5(name: VolumeName) -> Volume:
    """Open the dataset that a name states, or the only image in a file.

    Raises
    ------
    UnetcliError
        h5py is not installed, the file is damaged, or there are several images, which the message lists.
    """
    if name.level or name.series:
        raise UnetcliError(f"{name.place}: an HDF5 file has no series or levels; expected {name.place}:/path/inside")
    with _reading, _opened(name.place) as file:
        inside = name.inside or _only_image(name.place, file)
        dataset = _dataset(name.place, file, inside)
        _require_whole(name.place, dataset)
        array = Dataset(Path(name.place), inside, dataset)
        names = _axis_names(dataset)
        sizes = _element_size(dataset)
    axes = axes_from_names(f"{name.place}:{inside}", names, array.shape, name.axes)
    assumed = "" if name.axes or names else axes
    spatial = [axis for axis in axes if axis in "zyx"]
    voxel_size = dict(zip(spatial, sizes, strict=True)) if len(sizes) == len(spatial) else {}
    units = dict.fromkeys(voxel_size, "micrometer")
    return Volume(path=str(name), array=array, stored_axes=axes, assumed=assumed, voxel_size=voxel_size, units=units)


def _opened(path: str) -> h5py.File:
    try:
        import h5py
    except ImportError as error:
        raise UnetcliError(f'{path}: an HDF5 file needs h5py; pip install "unetcli[h5py]"') from error
    try:
        return h5py.File(path, "r", locking=False)  # locks fail on many network file systems
    except OSError as error:
        raise UnetcliError(f"{path}: not a whole HDF5 file ({one_line(error)}); expected an undamaged copy") from error


def _dataset(path: str, file: h5py.File, inside: str) -> h5py.Dataset:
    import h5py

    try:
        found = file.get(inside)
    except (OSError, RuntimeError, KeyError) as error:
        raise UnetcliError(f"{path}:{inside}: cannot be opened ({one_line(error)})") from error
    if isinstance(found, h5py.Dataset):
        return found
    what = "a group" if isinstance(found, h5py.Group) else "no such dataset"
    raise UnetcliError(f"{path}:{inside}: {what}; expected {_choices(path, file)}")


def _only_image(path: str, file: h5py.File) -> str:
    images = _images(file)
    if len(images) != 1:
        raise UnetcliError(f"{path}: {len(images) or 'no'} images; expected {_choices(path, file)}")
    if images[0].count("/") > 1 or len(file) > 1:
        note(f"{absolute(path)}: {images[0]} is read, its only image")
    return images[0]


def _choices(path: str, file: h5py.File) -> str:
    """The images of a file for the user, as names of volumes."""
    found = [f"{path}:{inside} ({format_shape(file[inside].shape)})" for inside in _images(file)]
    return f"one of {listed(found, 'images')}" if found else "a file with an array y, x or z, y, x"


def _images(file: h5py.File) -> list[str]:
    """Paths of the datasets with numbers in two to five axes."""
    import h5py

    found = list[str]()

    def visit(inside: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and 2 <= node.ndim <= 5 and node.dtype.kind in "buif":
            sides = sorted(node.shape)[-2:]
            if min(sides) >= LEAST_SIDE:
                found.append(f"/{inside}")

    file.visititems(visit)
    return found


def _require_whole(path: str, dataset: h5py.Dataset) -> None:
    """Raise :class:`UnetcliError` if the voxels are in other files that do not exist, which HDF5 reads as zeros."""
    sources = [source.file_name for source in dataset.virtual_sources()] if dataset.is_virtual else []
    sources += [source[0] for source in dataset.external or ()]
    folder = Path(path).absolute().parent
    absent = sorted({source for source in sources if source != "." and not (folder / source).is_file()})
    if absent:
        raise UnetcliError(f"{path}:{dataset.name}: refers to {listed(absent, 'files')}, not found in {folder}")


def _axis_names(dataset: h5py.Dataset) -> list[str] | None:
    """Names of the axes: ilastik's axistags, else the labels of the dimensions; None without names."""
    if (tags := dataset.attrs.get("axistags")) is not None:
        try:
            return [str(axis["key"]) for axis in json.loads(tags)["axes"]]
        except (ValueError, KeyError, TypeError):
            return None
    return given_names([dimension.label for dimension in dataset.dims])


def _element_size(dataset: h5py.Dataset) -> list[float]:
    """Voxel size in micrometers that Fiji's HDF5 plugins write (z, y, x); empty without it."""
    found = np.ravel(dataset.attrs.get("element_size_um", [])).tolist()
    return [float(size) for size in found] if all(isinstance(size, float) and size > 0 for size in found) else []


class Dataset:
    """Array of a dataset; the file is opened again in every process that reads it, as HDF5 does not survive a fork."""

    def __init__(self, path: Path, inside: str, dataset: h5py.Dataset) -> None:
        self._path, self._inside = path, inside
        self.shape, self.dtype = tuple(dataset.shape), dataset.dtype
        self.chunks = dataset.chunks or _thin(self.shape)
        self._process = -1
        self._file: Any = None
        self._dataset: Any = None

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        with _reading:
            return np.asarray(self._opened()[selection])

    def _opened(self) -> Any:
        if self._process != os.getpid():
            file = _opened(str(self._path))
            found = _dataset(str(self._path), file, self._inside)
            if (tuple(found.shape), found.dtype) != (self.shape, self.dtype):
                raise ValueError(f"{self._path}:{self._inside} has changed its shape or data type since it was opened")
            self._file, self._dataset, self._process = file, found, os.getpid()
        return self._dataset

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": -1, "_file": None, "_dataset": None}


def _thin(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Parts in which a dataset without chunks is read: sections, or rows of them.

    >>> _thin((40, 512, 512)), _thin((30000, 20000))
    ((1, 512, 512), (52, 20000))
    """
    sides, voxels = list(shape), 1
    for axis in reversed(range(len(shape))):
        sides[axis] = max(1, min(shape[axis], CHUNK_VOXELS // voxels))
        voxels *= sides[axis]
    if len(shape) > 2:
        sides[:-2] = [1] * (len(shape) - 2)
    return tuple(sides)
