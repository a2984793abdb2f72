"""Zarr arrays and OME-Zarr images (0.1 to 0.6), in folders, at URLs and in ZIP files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr
from zarr.errors import ZarrUserWarning

from unetcli.core.errors import UnetcliError, format_shape, listed, one_line
from unetcli.core.files import is_remote
from unetcli.core.names import VolumeName
from unetcli.volumes import ngff
from unetcli.volumes.axes import axes_from_names, stored_names
from unetcli.volumes.pipelines import opening_to_read
from unetcli.volumes.store import Store, store_at
from unetcli.volumes.volume import Volume
from unetcli.volumes.zip_archive import ZipArchive, archive_of


def open_zarr(name: VolumeName) -> Volume:
    """Open the array, or the image whose group is, at the place of a name; see :func:`open_volume`."""
    store, inside = _store_of(name.place)
    with warnings.catch_warnings(), opening_to_read(store) as opened:
        warnings.simplefilter("ignore", ZarrUserWarning)  # about other files in the store, which do no harm
        # newer versions of zarr take other chunks where the stored ones are impossible, and read no data then
        warnings.filterwarnings("error", r"(?s).*stored chunk .* invalid", ZarrUserWarning)
        try:
            node = zarr.open(opened, path=inside, mode="r")
        except UnetcliError:
            raise
        except FileNotFoundError as error:
            raise UnetcliError(f"{name.place}: contains no Zarr array or group") from error
        except Exception as error:  # many classes: not found, bad JSON, unknown codec or data type
            raise UnetcliError(
                f"{name.place}: contains no Zarr array or group that can be opened ({one_line(error)})"
            ) from error
        if isinstance(node, zarr.Group):
            return _from_group(name, node)
        return _from_array(name, node)


def _store_of(place: str) -> tuple[Store | ZipArchive, str]:
    """Store of a path or URL, and the path inside of it; only of ZIP files is that not empty."""
    path = Path(place)
    if is_remote(place) or path.is_dir():
        return store_at(place), ""
    file, inside = (path, "") if path.is_file() else archive_of(path) or (path, "")
    archive = ZipArchive.open(file)
    return archive, "/".join(part for part in (archive.root, inside) if part)


def _from_array(name: VolumeName, array: zarr.Array[Any]) -> Volume:
    name.require_no_choice(", as this is a single array; expected the path of an image")
    names = stored_names(array)
    axes = axes_from_names(name.place, names, array.shape, name.axes)
    assumed = "" if name.axes or (names and any(names)) else axes
    return Volume(path=str(name), array=array, stored_axes=axes, assumed=assumed)


def _from_group(name: VolumeName, group: zarr.Group) -> Volume:
    level = name.level or 0
    with ngff.explain(name.place):
        if not (found := ngff.images(group.attrs)):
            return _member(name, group)
        if name.series:
            raise UnetcliError(f"{name.place}: no series {name.series}, as this is a single image; expected its path")
        image = ngff.read_image(found[0])
        if not 0 <= level < len(image.levels):
            raise UnetcliError(f"{name.place}: no level {level}; expected 0 <= level < {len(image.levels)}")
        return _from_image(name, group, image, image.levels[level])


def _from_image(name: VolumeName, group: zarr.Group, image: ngff.Image, level: ngff.Level) -> Volume:
    try:
        array = group.get(level.path)
    except Exception as error:  # of many classes, as in opening
        raise UnetcliError(f"{name.place}: its level '{level.path}' cannot be opened ({one_line(error)})") from error
    if not isinstance(array, zarr.Array):
        raise UnetcliError(f"{name.place}: its metadata list the level '{level.path}', but there is no such array")
    names = [axis.name for axis in image.axes] or ngff.default_axes(array.ndim)
    axes = axes_from_names(name.place, names, array.shape, name.axes)
    scale, translation = level.transform(array.ndim)
    return Volume(
        path=str(name),
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


def _member(name: VolumeName, group: zarr.Group) -> Volume:
    """Open the only image, or the only array, in a group, or the series of a container that is chosen.

    Raises
    ------
    UnetcliError
        There are several, or none; the message lists them.
    """
    if series := container_series(group):
        return _from_container(name, series)
    try:
        members = sorted(group.members(max_depth=None), key=lambda member: member[0])
    except Exception as error:  # of many classes, as in opening
        raise UnetcliError(f"{name.place}: what it contains cannot be opened ({one_line(error)})") from error
    groups = [path for path, node in members if isinstance(node, zarr.Group) and ngff.images(node.attrs)]
    candidates = groups or [path for path, node in members if isinstance(node, zarr.Array)]
    if not candidates:
        raise UnetcliError(f"{name.place}: a Zarr group without arrays; expected an image or array")
    if len(candidates) > 1:
        named = listed([f"{name.place}/{path}" for path in candidates], "arrays")
        raise UnetcliError(f"{name.place}: a Zarr group with several arrays; choose one: {named}")
    return open_zarr(replace(name, place=f"{name.place}/{candidates[0]}"))


def container_series(group: zarr.Group) -> list[str]:
    """Paths of the images in a plate, a well, or a container as bioformats2raw writes it; empty for other groups."""
    if wells := ngff.wells(group.attrs):
        return [f"{well}/{field}" for well in wells for field in _fields_of_view(group, well)]
    if fields := ngff.fields_of_view(group.attrs):
        return fields
    if not ngff.is_container(group.attrs):
        return []
    if "OME" in group and (named := ngff.series_names(group["OME"].attrs)):
        return named
    found = [path for path, node in group.members() if isinstance(node, zarr.Group) and ngff.images(node.attrs)]
    return sorted(found, key=lambda path: (not path.isdecimal(), int(path) if path.isdecimal() else 0, path))


def _fields_of_view(plate: zarr.Group, well: str) -> list[str]:
    """Paths of the images of a well in a plate. Rows need not be groups, so the well is opened by itself."""
    try:
        return ngff.fields_of_view(zarr.open_group(plate.store, path=f"{plate.path}/{well}".strip("/"), mode="r").attrs)
    except FileNotFoundError:
        return []


def _from_container(name: VolumeName, series: Sequence[str]) -> Volume:
    chosen = name.series
    if chosen is None and len(series) > 1:
        places = [replace(name, place=f"{name.place}/{path}", series=None, axes="", channel="") for path in series[:4]]
        shapes = [
            f":series={n} ({'' if path.isdecimal() else f'{path}, '}{format_shape(open_zarr(place).array.shape)})"
            for n, (path, place) in enumerate(zip(series, places, strict=False))
        ]
        more = f" and {len(series) - 4} more" if len(series) > 4 else ""
        raise UnetcliError(
            f"{name.place}: holds {len(series)} images; choose one as part of the name: {name.place}"
            f"{', '.join(shapes)}{more}"
        )
    if chosen is not None and chosen >= len(series):
        raise UnetcliError(f"{name.place}: no series {chosen}; expected 0 <= series < {len(series)}")
    place = f"{name.place}/{series[chosen or 0]}"
    return replace(open_zarr(replace(name, place=place, series=None)), path=str(name))
