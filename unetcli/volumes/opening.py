"""Opening volumes from files: Zarr arrays, OME-Zarr images and TIFF stacks, and a cache for their chunks."""

from __future__ import annotations

import itertools
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.files import is_remote, strip_scheme
from unetcli.volumes import codecs, ngff
from unetcli.volumes.store import store_at
from unetcli.volumes.tiff import open_tiff
from unetcli.volumes.volume import Volume, axes_from_names, stored_names

codecs.register()
MAX_VOXELS = 2**60
"""Largest size of a volume, 10^18 voxels, so that sizes and indices in bytes fit into 64 bits."""
BUDGET_BYTES = 2**30
"""Default size of a chunk cache, 1 GiB."""


def open_volume(path: str | Path, level: int = 0, *, parts: bool = False) -> Volume:
    """Open a volume for reading.

    Parameters
    ----------
    path
        Path or URL of a Zarr array (v2 or v3), an OME-Zarr image (0.4 or 0.5) or an array inside a store, or path of a
        TIFF stack.
    level
        Level of an OME-Zarr image; 0 is the full resolution.
    parts
        Open a TIFF stack although images are missing; reading them is an error, as reading a damaged chunk is.

    Raises
    ------
    UnetcliError
        The path or level does not exist, or its content is not an image: no array, an empty one, an unsuitable dtype
        or number of axes, or a TIFF stack that is not whole.
    """
    name = strip_scheme(str(path))
    if is_remote(name):
        store_at(name).read_text("zarr.json")  # raises if it cannot be reached, while Zarr would leave hanging requests
    elif not Path(name).exists():
        raise UnetcliError(f"{name}: no such file or folder")
    if Path(name).is_file():
        if level:
            raise UnetcliError(f"{name}: no level {level}; a TIFF file has only level 0")
        return _checked(open_tiff(name, parts=parts))
    return _checked(open_zarr(name, level))


def _checked(volume: Volume) -> Volume:
    if volume.dtype.kind not in "buif":
        raise UnetcliError(f"{volume.path}: dtype {volume.dtype}; expected integers, floats or booleans")
    if 0 in volume.array.shape:
        raise UnetcliError(f"{volume.path}: empty array, shape {tuple(volume.array.shape)}")
    if (voxels := math.prod(volume.array.shape)) > MAX_VOXELS:
        raise UnetcliError(f"{volume.path}: {voxels:.3g} voxels; expected at most {MAX_VOXELS:.3g}")
    return volume


def open_zarr(path: str, level: int = 0) -> Volume:
    """Open the array at ``path``, or a level of the image whose group is at ``path``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # about other files in the store, which do no harm
        node = _open(path)
        if isinstance(node, zarr.Group):
            return _from_group(path, node, level)
        if level:
            raise UnetcliError(f"{path}: no level {level}, as this is a single array; expected the path of an image")
        return _from_array(path, node)


def _open(path: str) -> zarr.Array[Any] | zarr.Group:
    try:
        return zarr.open(store_at(path).zarr(), mode="r")
    except UnetcliError:
        raise
    except FileNotFoundError as error:
        raise UnetcliError(f"{path}: contains no Zarr array or group") from error
    except Exception as error:  # many classes: not found, bad JSON, unknown codec or data type
        raise UnetcliError(f"{path}: contains no Zarr array or group that can be opened ({one_line(error)})") from error


def _from_array(path: str, array: zarr.Array[Any]) -> Volume:
    names = stored_names(array)
    axes = axes_from_names(path, names, array.ndim)
    return Volume(path=path, array=array, stored_axes=axes, assumed="" if names and any(names) else axes)


def _from_group(path: str, group: zarr.Group, level: int) -> Volume:
    with ngff.explain(path):
        if not (found := ngff.images(group.attrs)):
            return _only_array(path, group, level)
        image = ngff.read_image(found[0])
        if not 0 <= level < len(image.levels):
            raise UnetcliError(f"{path}: no level {level}; expected 0 <= level < {len(image.levels)}")
        return _from_image(path, group, image, image.levels[level])


def _from_image(path: str, group: zarr.Group, image: ngff.Image, level: ngff.Level) -> Volume:
    try:
        array = group.get(level.path)
    except Exception as error:  # of many classes, as in opening
        raise UnetcliError(f"{path}: its level '{level.path}' cannot be opened ({one_line(error)})") from error
    if not isinstance(array, zarr.Array):
        raise UnetcliError(f"{path}: its metadata list the level '{level.path}', but there is no such array")
    axes = axes_from_names(path, [axis.name for axis in image.axes] or None, array.ndim)
    scale, translation = level.transform(array.ndim)
    return Volume(
        path=path,
        array=array,
        stored_axes=axes,
        voxel_size=dict(zip(axes, scale, strict=True)),
        units={axis: entry.unit for axis, entry in zip(axes, image.axes, strict=False) if entry.unit},
        translation=dict(zip(axes, translation, strict=True)),
        places=_states_place(level, group.attrs),
        channel_names=ngff.channel_names(group.attrs, array.shape[axes.index("c")] if "c" in axes else 1),
    )


def _states_place(level: ngff.Level, attributes: Mapping[str, Any]) -> bool:
    """Whether an image states its place; outputs of unetcli do so only if their input did."""
    stated = any(transform.kind == "translation" for transform in level.transforms)
    marker = attributes.get(ngff.MARKER)
    return stated and (not isinstance(marker, Mapping) or marker.get("placed") is True)


def _only_array(path: str, group: zarr.Group, level: int) -> Volume:
    """Open the only array, or the only image, in a group; raises :class:`UnetcliError` if there are several or none."""
    members = sorted(group.members(max_depth=None), key=lambda member: member[0])
    groups = [name for name, node in members if isinstance(node, zarr.Group) and ngff.images(node.attrs)]
    candidates = groups or [name for name, node in members if isinstance(node, zarr.Array)]
    if not candidates:
        raise UnetcliError(f"{path}: a Zarr group without arrays; expected an image or array")
    if len(candidates) > 1:
        named = ", ".join(f"{path}/{name}" for name in candidates)
        raise UnetcliError(f"{path}: a Zarr group with several arrays; choose one: {named}")
    return open_zarr(f"{path}/{candidates[0]}", level)


def cached(volume: Volume, budget_bytes: int = BUDGET_BYTES) -> Volume:
    """Return the volume with a cache of up to ``budget_bytes`` for the decoded chunks used last, or for one chunk."""
    return replace(volume, array=_ChunkCache(volume.array, budget_bytes))


class _ChunkCache:
    """Array that assembles slices from whole chunks, which it caches."""

    def __init__(self, array: Any, budget_bytes: int) -> None:
        self._array, self._budget = array, budget_bytes
        self.shape, self.dtype = tuple(array.shape), array.dtype
        self.chunks = tuple(getattr(array, "chunks", array.shape))
        self.size = array.size
        self._cached: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        spans = [_span(part, n) for part, n in zip(selection, self.shape, strict=True)]
        result = np.empty([b - a for a, b in spans], self.dtype)
        places = [range(a // c, -(-b // c)) for (a, b), c in zip(spans, self.chunks, strict=True)]
        for place in itertools.product(*places):
            corner = [p * c for p, c in zip(place, self.chunks, strict=True)]
            low = [max(a, k) for (a, _), k in zip(spans, corner, strict=True)]
            high = [min(b, k + c) for (_, b), k, c in zip(spans, corner, self.chunks, strict=True)]
            target = tuple(slice(i - a, j - a) for i, j, (a, _) in zip(low, high, spans, strict=True))
            source = tuple(slice(i - k, j - k) for i, j, k in zip(low, high, corner, strict=True))
            result[target] = self._chunk(place)[source]
        return result

    def _chunk(self, place: tuple[int, ...]) -> NDArray[Any]:
        with self._lock:
            if place in self._cached:
                self._cached.move_to_end(place)
                return self._cached[place]
            box = (slice(p * c, min((p + 1) * c, n)) for p, c, n in zip(place, self.chunks, self.shape, strict=True))
            chunk = self._cached[place] = np.asarray(self._array[tuple(box)])
            self._bytes += chunk.nbytes
            while self._bytes > self._budget and len(self._cached) > 1:
                self._bytes -= self._cached.popitem(last=False)[1].nbytes
            return chunk


def _span(part: slice, extent: int) -> tuple[int, int]:
    """Start and stop of a slice, which are equal if it is empty."""
    first, stop, step = part.indices(extent)
    if step != 1:
        raise NotImplementedError(f"slices with a step of {step}")
    return first, max(first, stop)
