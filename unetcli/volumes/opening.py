"""Volumes from files: Zarr arrays, OME-Zarr images and their metadata, TIFF stacks."""

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
"""By Zarr format: the file that holds a group's attributes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where the voxels of an array lie in the world; both by axis, in array order."""

    scale: Mapping[str, float]
    translation: Mapping[str, float]

    @classmethod
    def of(cls, image: Mapping[str, Any]) -> Grid:
        """The finest grid of an image that :func:`image` made."""
        axes = [axis["name"] for axis in image["axes"]]
        scale, translation = image["datasets"][0]["coordinateTransformations"]
        return cls(
            scale=dict(zip(axes, scale["scale"], strict=True)),
            translation=dict(zip(axes, translation["translation"], strict=True)),
        )

    def downsampled(self, factors: Mapping[str, int]) -> Grid:
        """The grid of means over ``factors`` voxels: its first voxel's centre lies half a step further on.

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
    """A multiscales entry; level ``n`` is the array named ``n``."""
    return {"name": name, "axes": [_axis(axis, units.get(axis)) for axis in axes], "datasets": datasets(grids)}


def datasets(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """The levels of an image, the finest first."""
    return [{"path": str(level), "coordinateTransformations": grid.transforms()} for level, grid in enumerate(grids)]


def attributes(entry: dict[str, Any], zarr_format: int) -> dict[str, Any]:
    """Attributes of the group of an image."""
    if zarr_format == 2:
        return {"multiscales": [{"version": "0.4", **entry}]}
    return {"ome": {"version": "0.5", "multiscales": [entry]}}


def images(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The multiscales entries of a group, from where 0.5 or 0.4 keeps them."""
    return list(_metadata(attributes).get("multiscales") or [])


def labels_of(attributes: dict[str, Any], source: str) -> dict[str, Any]:
    """Attributes of an image, as labels of the image at the path ``source`` from there."""
    version = {} if "ome" in attributes else {"version": "0.4"}
    return with_metadata(attributes, **{"image-label": {**version, "source": {"image": source}}})


def is_labels(attributes: Mapping[str, Any]) -> bool:
    """Whether an image says that it is labels of another one."""
    return "image-label" in _metadata(attributes)


def label_names(attributes: Mapping[str, Any]) -> list[str]:
    """What the group ``labels`` of an image lists."""
    return list(_metadata(attributes).get("labels") or [])


def with_label_names(attributes: dict[str, Any], names: Sequence[str], zarr_format: int) -> dict[str, Any]:
    """Attributes of a group ``labels`` with another list."""
    new = {"ome": {"version": "0.5"}} if zarr_format == 3 else {}
    return with_metadata({**new, **attributes}, labels=list(names))


def _metadata(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The OME-Zarr metadata among a group's attributes: 0.5 has a place of its own for them."""
    found: Mapping[str, Any] = attributes.get("ome", attributes)
    return found


def with_metadata(attributes: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """The attributes with other OME-Zarr metadata, where 0.5 or 0.4 keeps it."""
    if "ome" in attributes:
        return {**attributes, "ome": {**attributes["ome"], **metadata}}
    return {**attributes, **metadata}


def documents(attributes: Mapping[str, Any], zarr_format: int) -> dict[str, str]:
    """The files of a group with these attributes, by name; the one with the attributes first."""
    if zarr_format == 2:
        files: dict[str, Any] = {".zattrs": attributes, ".zgroup": {"zarr_format": 2}}
    else:
        files = {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": attributes}}
    return {name: json.dumps(content, indent=2) for name, content in files.items()}


def parse(name: str, text: str) -> dict[str, Any]:
    """The attributes in a group's file of that name; ValueError where there are none."""
    found = json.loads(text)
    if name == "zarr.json" and isinstance(found, dict):
        found = found.get("attributes")
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds no attributes")
    return found


def _axis(name: str, unit: str | None) -> dict[str, str]:
    kind = "space" if name in SPATIAL else {"t": "time", "c": "channel"}[name]
    return {"name": name, "type": kind} | ({"unit": unit} if unit else {})


SAMPLES, UNKNOWN = "s", "qi"
"""tifffile's letters: interleaved samples of a pixel, and a stack whose pages have no stated meaning."""
BUDGET_BYTES = 2**30


def open_volume(path: str | Path, level: int = 0) -> Volume:
    """Open for reading: Zarr v2 or v3 array, OME-Zarr 0.4 or 0.5 image, array inside a store, TIFF stack.

    Raises
    ------
    UnetcliError
        Path missing, no such level, no array there, empty array, or a dtype or axes that are no image.
    """
    name = strip_scheme(str(path))
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


def open_zarr(path: str, level: int = 0) -> Volume:
    """The array at ``path``, or a level of the image whose group is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # a stray file in the store is not the user's problem here
        node = _open(path)
        if isinstance(node, zarr.Group):
            return _from_group(path, node, level)
        if level:
            raise UnetcliError(f"{path}: level {level} asked for, but this is one array; name an image with levels")
        return _from_array(path, node)


def _open(path: str) -> zarr.Array[Any] | zarr.Group:
    try:
        return zarr.open(path, mode="r")
    except FileNotFoundError as error:
        raise UnetcliError(f"{path}: no Zarr array or group there") from error
    except ImportError as error:
        raise missing_package(path, error) from error
    except Exception as error:  # many classes: not found, bad JSON, unknown codec or data type
        raise UnetcliError(f"{path}: no Zarr array or group that can be opened ({one_line(error)})") from error


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
        raise UnetcliError(f"{path}: multiscales metadata that cannot be used ({error!r})") from error


def _from_image(path: str, group: zarr.Group, image: dict[str, Any], level: int) -> Volume:
    levels = len(image["datasets"])
    if 0 < levels <= level:
        raise UnetcliError(f"{path}: level {level} asked for, it has {levels}, counted from 0")
    dataset = image["datasets"][level]
    array = group.get(dataset["path"])
    if not isinstance(array, zarr.Array):
        raise UnetcliError(f"{path}: its metadata name level '{dataset['path']}', but no array is there")
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
    )


def _only_array(path: str, group: zarr.Group, level: int) -> Volume:
    """The one array (or image) of a plain group; several or none are refused by name."""
    members = sorted(group.members(max_depth=None), key=lambda member: member[0])
    groups = [name for name, node in members if isinstance(node, zarr.Group) and images(node.attrs)]
    candidates = groups or [name for name, node in members if isinstance(node, zarr.Array)]
    if not candidates:
        raise UnetcliError(f"{path}: a Zarr group with no array in it")
    if len(candidates) > 1:
        named = ", ".join(f"{path}/{name}" for name in candidates)
        raise UnetcliError(f"{path}: a Zarr group with several arrays; name one: {named}")
    return open_zarr(f"{path}/{candidates[0]}", level)


def open_tiff(path: str) -> Volume:
    """The one image series of a TIFF file, (c,) (t,) (z,) y, x; pages are read when asked for."""
    try:
        with tifffile.TiffFile(path) as tif:
            _require_one_series(path, tif)
        store = tifffile.imread(path, aszarr=True, level=0)
        array = zarr.open_array(store, mode="r")
        weakref.finalize(array, store.close)  # the file stays open as long as the array lives
    except UnetcliError:
        raise
    except Exception as error:
        raise UnetcliError(f"{path}: not a TIFF file that can be read ({error})") from error
    names = stored_names(array)  # tifffile gives a view of Zarr v2, from 2026.5 on of v3
    assert names is not None, f"tifffile {tifffile.__version__} names no axes"
    axes = axes_from_names(path, _letters(names), array.ndim)
    return Volume(path=path, array=array, stored_axes=axes, assumed=_unsaid(axes, names))


def _require_one_series(path: str, tif: tifffile.TiffFile) -> None:
    if len(tif.series) != 1:
        shapes = ", ".join("x".join(map(str, series.shape)) for series in tif.series[:4])
        raise UnetcliError(f"{path}: {len(tif.series)} images of different kind ({shapes}, ..); expected one stack")


def _unsaid(axes: str, names: list[str]) -> str:
    """Axes whose letters are a guess: pages without stated meaning, and samples that are pages.

    tifffile writes any stack of three or four sections as the samples of one colour image, unless told that it is grey.
    """
    found = "".join(name.lower()[:1] for name in names)
    guessed = UNKNOWN + (SAMPLES if SAMPLES in found.partition("y")[0] else "")
    return "".join(axis for axis, letter in zip(axes, found, strict=True) if letter in guessed)


def _letters(names: list[str]) -> list[str]:
    """Our letters for tifffile's: samples are channels, unlabelled pages are sections, beyond those time."""
    found = [name.lower()[:1] for name in names]
    for place, letter in reversed(list(enumerate(found))):
        if letter == SAMPLES:
            found[place] = "c"
        elif letter in UNKNOWN:
            found[place] = "z" if "z" not in found else "t"
    return found


def cached(volume: Volume, budget_bytes: int = BUDGET_BYTES) -> Volume:
    """The same volume; up to ``budget_bytes`` of decoded chunks are kept, those used last. At least one always is."""
    return replace(volume, array=_Chunks(volume.array, budget_bytes))


class _Chunks:
    """Slices of an array put together from whole chunks."""

    def __init__(self, array: Any, budget_bytes: int) -> None:
        self._array, self._budget = array, budget_bytes
        self.shape, self.dtype = tuple(array.shape), array.dtype
        self.chunks = tuple(getattr(array, "chunks", array.shape))
        self.size = array.size
        self._kept: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, picks: tuple[slice, ...]) -> NDArray[Any]:
        spans = [_span(pick, n) for pick, n in zip(picks, self.shape, strict=True)]
        result = np.empty([b - a for a, b in spans], self.dtype)
        places = [range(a // c, -(-b // c)) for (a, b), c in zip(spans, self.chunks, strict=True)]
        for place in itertools.product(*places):
            corner = [p * c for p, c in zip(place, self.chunks, strict=True)]
            low = [max(a, k) for (a, _), k in zip(spans, corner, strict=True)]
            high = [min(b, k + c) for (_, b), k, c in zip(spans, corner, self.chunks, strict=True)]
            there = tuple(slice(i - a, j - a) for i, j, (a, _) in zip(low, high, spans, strict=True))
            here = tuple(slice(i - k, j - k) for i, j, k in zip(low, high, corner, strict=True))
            result[there] = self._chunk(place)[here]
        return result

    def _chunk(self, place: tuple[int, ...]) -> NDArray[Any]:
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
            box = (slice(p * c, min((p + 1) * c, n)) for p, c, n in zip(place, self.chunks, self.shape, strict=True))
            chunk = self._kept[place] = np.asarray(self._array[tuple(box)])
            self._bytes += chunk.nbytes
            while self._bytes > self._budget and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return chunk


def _span(pick: slice, extent: int) -> tuple[int, int]:
    """First and stop of a slice; the same where it is empty."""
    first, stop, step = pick.indices(extent)
    if step != 1:
        raise NotImplementedError(f"slices with a step of {step}")
    return first, max(first, stop)
