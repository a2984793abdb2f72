"""Opening volumes from files: Zarr arrays, OME-Zarr images with their metadata, and TIFF stacks."""

from __future__ import annotations

import itertools
import json
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.files import is_remote, strip_scheme
from unetcli.volumes.store import missing_package, store_at
from unetcli.volumes.volume import Volume, axes_from_names, stored_names

SPATIAL = "zyx"
ATTRIBUTES = {3: "zarr.json", 2: ".zattrs"}
"""File with the attributes of a group, by Zarr format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Position of an array's voxels in physical space: voxel size and centre of the first voxel, by axis."""

    scale: Mapping[str, float]
    translation: Mapping[str, float]

    @classmethod
    def of(cls, image: Mapping[str, Any]) -> Grid:
        """Grid of the finest level of an image created by :func:`image`."""
        axes = [axis["name"] for axis in image["axes"]]
        scale, translation = image["datasets"][0]["coordinateTransformations"]
        return cls(
            scale=dict(zip(axes, scale["scale"], strict=True)),
            translation=dict(zip(axes, translation["translation"], strict=True)),
        )

    def downsampled(self, factors: Mapping[str, int]) -> Grid:
        """Grid of an array whose voxels are means over ``factors`` voxels, whose centres are shifted accordingly.

        >>> Grid(scale={"x": 4.0}, translation={"x": 1.0}).downsampled({"x": 2})
        Grid(scale={'x': 8.0}, translation={'x': 3.0})
        """
        return Grid(
            scale={axis: step * factors.get(axis, 1) for axis, step in self.scale.items()},
            translation={
                axis: first + (factors.get(axis, 1) - 1) / 2 * self.scale[axis]
                for axis, first in self.translation.items()
            },
        )

    def transforms(self) -> list[dict[str, Any]]:
        return [
            {"type": "scale", "scale": list(self.scale.values())},
            {"type": "translation", "translation": list(self.translation.values())},
        ]


def image(name: str, axes: str, units: Mapping[str, str], grids: Sequence[Grid]) -> dict[str, Any]:
    """Create a multiscales entry, in which level ``n`` is the array named ``n``."""
    return {"name": name, "axes": [_axis(axis, units.get(axis)) for axis in axes], "datasets": datasets(grids)}


def datasets(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """Create the entries of an image's levels; the finest grid comes first."""
    return [{"path": str(level), "coordinateTransformations": grid.transforms()} for level, grid in enumerate(grids)]


def attributes(entry: dict[str, Any], zarr_format: int) -> dict[str, Any]:
    """Attributes of the group of an image with this multiscales entry."""
    if zarr_format == 2:
        return {"multiscales": [{"version": "0.4", **entry}]}
    return {"ome": {"version": "0.5", "multiscales": [entry]}}


def images(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Multiscales entries of a group of OME-Zarr 0.5 or 0.4."""
    return list(_metadata(attributes).get("multiscales") or [])


def labels_attributes(attributes: dict[str, Any], source: str) -> dict[str, Any]:
    """Mark the attributes of an image as labels of the image at the relative path ``source``."""
    version = {} if "ome" in attributes else {"version": "0.4"}
    return with_metadata(attributes, **{"image-label": {**version, "source": {"image": source}}})


def is_labels(attributes: Mapping[str, Any]) -> bool:
    """Whether an image is marked as labels of another image."""
    return "image-label" in _metadata(attributes)


def label_names(attributes: Mapping[str, Any]) -> list[str]:
    """Names in the attributes of a group ``labels``."""
    return list(_metadata(attributes).get("labels") or [])


def with_label_names(attributes: dict[str, Any], names: Sequence[str], zarr_format: int) -> dict[str, Any]:
    """Replace the names in the attributes of a group ``labels``."""
    new = {"ome": {"version": "0.5"}} if zarr_format == 3 else {}
    return with_metadata({**new, **attributes}, labels=list(names))


def _metadata(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """OME-Zarr metadata among a group's attributes; only 0.5 stores it under the key ``ome``."""
    found: Mapping[str, Any] = attributes.get("ome", attributes)
    return found


def with_metadata(attributes: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """Set OME-Zarr metadata in a group's attributes, in the layout of 0.5 or 0.4."""
    if "ome" in attributes:
        return {**attributes, "ome": {**attributes["ome"], **metadata}}
    return {**attributes, **metadata}


def documents(attributes: Mapping[str, Any], zarr_format: int) -> dict[str, str]:
    """Content of a group's metadata files by name; the file with the attributes comes first."""
    if zarr_format == 2:
        files: dict[str, Any] = {".zattrs": attributes, ".zgroup": {"zarr_format": 2}}
    else:
        files = {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": attributes}}
    return {name: json.dumps(content, indent=2) for name, content in files.items()}


def parse(name: str, text: str) -> dict[str, Any]:
    """Parse the attributes in the text of a group's metadata file; raises ValueError if there are none."""
    found = json.loads(text)
    if name == "zarr.json" and isinstance(found, dict):
        found = found.get("attributes")
    if not isinstance(found, dict):
        raise ValueError(f"{name} contains no attributes")
    return found


def _axis(name: str, unit: str | None) -> dict[str, str]:
    kind = "space" if name in SPATIAL else {"t": "time", "c": "channel"}[name]
    return {"name": name, "type": kind} | ({"unit": unit} if unit else {})


SAMPLES, UNKNOWN = "s", "qi"
"""Axis letters of tifffile for the interleaved samples of a pixel, and for pages without stated meaning."""
BUDGET_BYTES = 2**30
"""Default size of a chunk cache, 1 GiB."""


def open_volume(path: str | Path, level: int = 0) -> Volume:
    """Open a volume for reading.

    Parameters
    ----------
    path
        Path or URL of a Zarr array (v2 or v3), an OME-Zarr image (0.4 or 0.5) or an array inside a store, or path of a
        TIFF stack.
    level
        Level of an OME-Zarr image; 0 is the full resolution.

    Raises
    ------
    UnetcliError
        The path or level does not exist, or its content is not an image: no array, an empty one, or an unsuitable
        dtype or number of axes.
    """
    name = strip_scheme(str(path))
    if is_remote(name):
        store_at(name).read_text("zarr.json")  # raises if it cannot be reached, while Zarr would leave hanging requests
    elif not Path(name).exists():
        raise UnetcliError(f"{name}: no such file or folder")
    if Path(name).is_file():
        if level:
            raise UnetcliError(f"{name}: no level {level}; a TIFF file has only level 0")
        return _checked(open_tiff(name))
    return _checked(open_zarr(name, level))


def _checked(volume: Volume) -> Volume:
    if volume.dtype.kind not in "buif":
        raise UnetcliError(f"{volume.path}: dtype {volume.dtype}; expected integers, floats or booleans")
    if 0 in volume.array.shape:
        raise UnetcliError(f"{volume.path}: empty array, shape {tuple(volume.array.shape)}")
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
        return zarr.open(path, mode="r")
    except FileNotFoundError as error:
        raise UnetcliError(f"{path}: contains no Zarr array or group") from error
    except ImportError as error:
        raise missing_package(path, error) from error
    except Exception as error:  # many classes: not found, bad JSON, unknown codec or data type
        raise UnetcliError(f"{path}: contains no Zarr array or group that can be opened ({one_line(error)})") from error


def _from_array(path: str, array: zarr.Array[Any]) -> Volume:
    names = stored_names(array)
    axes = axes_from_names(path, names, array.ndim)
    return Volume(path=path, array=array, stored_axes=axes, assumed="" if names and any(names) else axes)


def _from_group(path: str, group: zarr.Group, level: int) -> Volume:
    if not (found := images(group.attrs)):
        return _only_array(path, group, level)
    try:
        return _from_image(path, group, dict(found[0]), level)
    except (LookupError, TypeError, ValueError) as error:
        raise UnetcliError(f"{path}: invalid multiscales metadata ({error!r})") from error


def _from_image(path: str, group: zarr.Group, image: dict[str, Any], level: int) -> Volume:
    levels = len(image["datasets"])
    if 0 < levels <= level:
        raise UnetcliError(f"{path}: no level {level}; expected 0 <= level < {levels}")
    dataset = image["datasets"][level]
    array = group.get(dataset["path"])
    if not isinstance(array, zarr.Array):
        raise UnetcliError(f"{path}: its metadata list the level '{dataset['path']}', but there is no such array")
    entries = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", [])]
    axes = axes_from_names(path, [entry["name"] for entry in entries] or None, array.ndim)
    scale, translation = [1.0] * array.ndim, [0.0] * array.ndim
    for transform in [*dataset.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]:
        if transform["type"] == "scale":
            scale = [a * b for a, b in zip(scale, transform["scale"], strict=True)]
            translation = [a * b for a, b in zip(translation, transform["scale"], strict=True)]
        elif transform["type"] == "translation":
            translation = [a + b for a, b in zip(translation, transform["translation"], strict=True)]
    return Volume(
        path=path,
        array=array,
        stored_axes=axes,
        voxel_size=dict(zip(axes, scale, strict=True)),
        units={axis: entry["unit"] for axis, entry in zip(axes, entries, strict=False) if "unit" in entry},
        translation=dict(zip(axes, translation, strict=True)),
        channel_names=_channel_names(group.attrs, array.shape[axes.index("c")] if "c" in axes else 1),
    )


def _channel_names(attributes: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Labels of the channels in the rendering settings of an image (``omero``); empty unless there are ``count``."""
    found = _metadata(attributes).get("omero")
    channels = found.get("channels") if isinstance(found, dict) else None
    entries = channels if isinstance(channels, list) else []
    names = tuple(str(entry.get("label") or "") for entry in entries if isinstance(entry, dict))
    return names if len(names) == count and any(names) else ()


def _only_array(path: str, group: zarr.Group, level: int) -> Volume:
    """Open the only array, or the only image, in a group; raises :class:`UnetcliError` if there are several or none."""
    members = sorted(group.members(max_depth=None), key=lambda member: member[0])
    groups = [name for name, node in members if isinstance(node, zarr.Group) and images(node.attrs)]
    candidates = groups or [name for name, node in members if isinstance(node, zarr.Array)]
    if not candidates:
        raise UnetcliError(f"{path}: a Zarr group without arrays; expected an image or array")
    if len(candidates) > 1:
        named = ", ".join(f"{path}/{name}" for name in candidates)
        raise UnetcliError(f"{path}: a Zarr group with several arrays; choose one: {named}")
    return open_zarr(f"{path}/{candidates[0]}", level)


def open_tiff(path: str) -> Volume:
    """Open the only image series of a TIFF file, (c,) (t,) (z,) y, x, whose pages are read on demand."""
    try:
        with tifffile.TiffFile(path) as tif:
            _require_one_series(path, tif)
        store = tifffile.imread(path, aszarr=True, level=0)
        array = zarr.open_array(store, mode="r")
        weakref.finalize(array, store.close)  # the file stays open as long as the array lives
    except UnetcliError:
        raise
    except Exception as error:
        raise UnetcliError(f"{path}: not a readable TIFF file ({error})") from error
    names = stored_names(array)  # tifffile presents the file as Zarr v2, since 2026.5 as v3
    assert names is not None, f"tifffile {tifffile.__version__} names no axes"
    axes = axes_from_names(path, _axis_letters(names), array.ndim)
    return Volume(path=path, array=array, stored_axes=axes, assumed=_guessed_axes(axes, names))


def _require_one_series(path: str, tif: tifffile.TiffFile) -> None:
    if len(tif.series) != 1:
        shapes = ", ".join("x".join(map(str, series.shape)) for series in tif.series[:4])
        raise UnetcliError(f"{path}: {len(tif.series)} images of different shapes ({shapes}, ..); expected one stack")


def _guessed_axes(axes: str, names: list[str]) -> str:
    """Axes whose meaning the file does not state: pages without a name, and samples stored as pages.

    Without the option ``photometric``, tifffile writes a stack of three or four sections as one colour image.
    """
    found = "".join(name.lower()[:1] for name in names)
    guessed = UNKNOWN + (SAMPLES if SAMPLES in found.partition("y")[0] else "")
    return "".join(axis for axis, letter in zip(axes, found, strict=True) if letter in guessed)


def _axis_letters(names: list[str]) -> list[str]:
    """Convert tifffile's axis letters: samples are channels, unnamed pages are sections, a second such axis is time."""
    found = [name.lower()[:1] for name in names]
    for place, letter in reversed(list(enumerate(found))):
        if letter == SAMPLES:
            found[place] = "c"
        elif letter in UNKNOWN:
            found[place] = "z" if "z" not in found else "t"
    return found


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
