"""Zarr stores and OME-Zarr groups (0.4 on Zarr v2, 0.5 on Zarr v3) as volumes."""

from __future__ import annotations

import warnings
from typing import Any

import zarr
from zarr.errors import ZarrUserWarning

from unetcli.core.errors import UnetcliError
from unetcli.volumes.ngff import images
from unetcli.volumes.store import missing_package, one_line
from unetcli.volumes.volume import Volume, axes_from_names, stored_names


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


def multiscale(group: zarr.Group) -> dict[str, Any] | None:
    """The group's first multiscales entry, from where 0.5 or 0.4 keeps it."""
    found = images(group.attrs)
    return dict(found[0]) if found else None


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
    image = multiscale(group)
    if image is None:
        return _only_array(path, group, level)
    try:
        return _from_image(path, group, image, level)
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
    images = [name for name, node in members if isinstance(node, zarr.Group) and multiscale(node)]
    arrays = [name for name, node in members if isinstance(node, zarr.Array)]
    candidates = images or arrays
    if not candidates:
        raise UnetcliError(f"{path}: a Zarr group with no array in it")
    if len(candidates) > 1:
        named = ", ".join(f"{path}/{name}" for name in candidates)
        raise UnetcliError(f"{path}: a Zarr group with several arrays; name one: {named}")
    return open_zarr(f"{path}/{candidates[0]}", level)
