"""Metadata of OME-Zarr: 0.4 and 0.5 written as dictionaries, 0.1 to 0.6 read with the type of every value checked.

Functions that read raise ValueError, whose message names the field, the value found and what was expected.
:func:`explain` adds the place.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.records import decoded, parse_json, shown

SPATIAL = "zyx"
MARKER = "unetcli"
"""Group attribute that identifies an output of unetcli, its kind, and whether it is complete."""
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Colours of the first classes, which people with a colour vision deficiency can distinguish (Okabe and Ito, 2008)."""
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Steps of the hue of further classes, which spread them evenly however many there are."""
ATTRIBUTES = {3: "zarr.json", 2: ".zattrs"}
"""File with the attributes of a group, by Zarr format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Position of an array's voxels in physical space: voxel size and centre of the first voxel, by axis."""

    scale: Mapping[str, float]
    translation: Mapping[str, float]

    @classmethod
    def of(cls, image: Mapping[str, Any]) -> Grid:
        """Grid of the finest level of an image."""
        found = read_image(image)
        axes = [axis.name for axis in found.axes]
        scale, translation = found.levels[0].transform(len(axes))
        return cls(
            scale=dict(zip(axes, scale, strict=True)),
            translation=dict(zip(axes, translation, strict=True)),
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
    """Multiscales entries of a group of OME-Zarr 0.5 or 0.4; raises ValueError if they are no list of objects."""
    found: list[dict[str, Any]] = typed(list[dict[str, Any]], _metadata(attributes), "multiscales", [])
    return found


def labels_attributes(attributes: dict[str, Any], source: str | None) -> dict[str, Any]:
    """Mark the attributes of an image as labels; ``source`` is the relative path of the image they belong to."""
    return _as_labels(attributes, **({"source": {"image": source}} if source else {}))


def class_attributes(attributes: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Mark the attributes of an image as labels whose values are classes, with their names and colours."""
    named = list(enumerate(names))
    return _as_labels(
        attributes,
        colors=[{"label-value": value, "rgba": list(class_colour(value))} for value, _ in named],
        properties=[{"label-value": value, "name": name} for value, name in named],
    )


def class_colour(value: int) -> tuple[int, int, int, int]:
    """Red, green, blue and opacity of a class; 0, the background, is transparent.

    >>> class_colour(0), class_colour(1), class_colour(9) == class_colour(1)
    ((0, 0, 0, 0), (230, 159, 0, 255), False)
    """
    if value == 0:
        return (0, 0, 0, 0)
    if value <= len(COLOURS):
        return (*COLOURS[value - 1], 255)
    red, green, blue = colorsys.hsv_to_rgb(value * GOLDEN_RATIO % 1, 0.7, 0.9)
    return (round(255 * red), round(255 * green), round(255 * blue), 255)


def _as_labels(attributes: dict[str, Any], **details: Any) -> dict[str, Any]:
    version = {} if "ome" in attributes else {"version": "0.4"}
    return with_metadata(attributes, **{"image-label": {**version, **details}})


def is_labels(attributes: Mapping[str, Any]) -> bool:
    """Whether an image is marked as labels of another image."""
    return "image-label" in _metadata(attributes)


def label_names(attributes: Mapping[str, Any]) -> list[str]:
    """Names in the attributes of a group ``labels``; raises ValueError if they are no list of names."""
    found: list[str] = typed(list[str], _metadata(attributes), "labels", [])
    return found


def with_label_names(attributes: dict[str, Any], names: Sequence[str], zarr_format: int) -> dict[str, Any]:
    """Replace the names in the attributes of a group ``labels``."""
    new = {"ome": {"version": "0.5"}} if zarr_format == 3 else {}
    return with_metadata({**new, **attributes}, labels=list(names))


def channel_names(attributes: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Labels of the channels in the rendering settings of an image (``omero``); empty unless there are ``count``."""
    found = _metadata(attributes).get("omero")
    channels = found.get("channels") if isinstance(found, dict) else None
    entries = channels if isinstance(channels, list) else []
    names = tuple(str(entry.get("label") or "") for entry in entries if isinstance(entry, dict))
    return names if len(names) == count and any(names) else ()


def default_axes(dimensions: int) -> list[str] | None:
    """Axis names of an image of OME-Zarr 0.1 or 0.2, which are always the same five; None for other arrays."""
    return list("tczyx") if dimensions == len("tczyx") else None


def wells(attributes: Mapping[str, Any]) -> list[str]:
    """Paths of the wells of a plate; empty for other groups."""
    return _listed_paths(attributes, "plate", "wells")


def fields_of_view(attributes: Mapping[str, Any]) -> list[str]:
    """Paths of the images of a well; empty for other groups."""
    return _listed_paths(attributes, "well", "images")


def _listed_paths(attributes: Mapping[str, Any], kind: str, members: str) -> list[str]:
    """Paths in the list of the members of a plate or a well."""
    holder = typed(dict[str, Any], _metadata(attributes), kind, {})
    found = typed(list[dict[str, Any]], holder, members, [], kind)
    return [typed(str, each, "path", where=f"{kind}.{members}[{n}]") for n, each in enumerate(found)]


def is_container(attributes: Mapping[str, Any]) -> bool:
    """Whether a group is a container of images, as bioformats2raw writes it."""
    return "bioformats2raw.layout" in _metadata(attributes)


def series_names(attributes: Mapping[str, Any]) -> list[str]:
    """Paths of the images of a container, in the attributes of its group ``OME``."""
    found: list[str] = typed(list[str], _metadata(attributes), "series", [])
    return found


def _metadata(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """OME-Zarr metadata among a group's attributes; only 0.5 stores it under the key ``ome``."""
    return decoded(dict[str, Any], attributes["ome"], "ome") if "ome" in attributes else attributes


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
    found = parse_json(text)
    if name == "zarr.json" and isinstance(found, dict):
        found = found.get("attributes")
    if not isinstance(found, dict):
        raise ValueError(f"{name} contains no attributes")
    return found


def _axis(name: str, unit: str | None) -> dict[str, str]:
    kind = "space" if name in SPATIAL else {"t": "time", "c": "channel"}[name]
    return {"name": name, "type": kind} | ({"unit": unit} if unit else {})


@contextmanager
def explain(place: str | Path) -> Iterator[None]:
    """Raise :class:`UnetcliError`, which names the place, for a ValueError about its metadata."""
    try:
        yield
    except ValueError as error:
        raise UnetcliError(f"{place}: invalid metadata: {one_line(error)}") from error


def typed(kind: Any, values: Mapping[str, Any], name: str, default: Any = None, where: str = "") -> Any:
    """Value of a key, which must have the type ``kind``; the default if the key is absent or null.

    Without a default, an absent key is an error.
    """
    place = f"{where}.{name}" if where else name
    if (found := values.get(name)) is None and default is not None:
        return default
    if name not in values:
        raise ValueError(f"no {place}")
    return decoded(kind, found, place)


@dataclass(frozen=True, slots=True)
class Axis:
    """Axis of an image; the unit is empty if it is not stated."""

    name: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Transform:
    """Scale or translation along all axes; the array's coordinates are transformed in the order of the list."""

    kind: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """Array at one resolution, and the transforms to physical space."""

    path: str
    transforms: tuple[Transform, ...]

    def transform(self, dimensions: int) -> tuple[list[float], list[float]]:
        """Voxel size, and centre of the first voxel, along each of the array's axes; 1 and 0 if not stated."""
        scale, translation = [1.0] * dimensions, [0.0] * dimensions
        for each in self.transforms:
            if len(each.values) != dimensions:
                raise ValueError(f"{each.kind} has {len(each.values)} numbers; expected {dimensions}, one per axis")
            if each.kind == "scale":
                scale = [a * b for a, b in zip(scale, each.values, strict=True)]
                translation = [a * b for a, b in zip(translation, each.values, strict=True)]
            else:
                translation = [a + b for a, b in zip(translation, each.values, strict=True)]
        return scale, translation


@dataclass(frozen=True, slots=True)
class Image:
    """Multiscales entry; the level of full resolution comes first. There are no axes in files before 0.3."""

    axes: tuple[Axis, ...]
    levels: tuple[Level, ...]


def read_image(entry: Mapping[str, Any]) -> Image:
    """Read a multiscales entry."""
    found = typed(list[dict[str, Any]], entry, "datasets")
    if not found:
        raise ValueError("datasets is []; expected at least one level")
    system = _intrinsic_system(entry, found[0])
    whole = () if system else _read_transforms(entry, "multiscales[0]")  # since 0.6, those lead to other systems
    levels = [
        Level(typed(str, level, "path", where=where), (*_read_transforms(level, where), *whole))
        for where, level in ((f"datasets[{n}]", level) for n, level in enumerate(found))
    ]
    axes = [_read_axis(axis, f"axes[{n}]") for n, axis in enumerate(typed(list[Any], system or entry, "axes", []))]
    return Image(tuple(axes), tuple(levels))


def _intrinsic_system(entry: Mapping[str, Any], level: Mapping[str, Any]) -> Mapping[str, Any]:
    """Coordinate system in which an image of OME-Zarr 0.6 places its levels; empty for earlier versions."""
    systems = typed(list[dict[str, Any]], entry, "coordinateSystems", [])
    outputs = [each.get("output") for each in typed(list[dict[str, Any]], level, "coordinateTransformations", [])]
    names = [output.get("name") if isinstance(output, dict) else output for output in outputs]
    named = (system for system in systems if system.get("name") in names)
    return next(named, systems[0] if systems else {})


def _read_axis(axis: Any, where: str) -> Axis:
    if isinstance(axis, str):  # OME-Zarr 0.3
        return Axis(axis)
    found = decoded(dict[str, Any], axis, where)
    return Axis(typed(str, found, "name", where=where), typed(str, found, "unit", "", where=where))


def _read_transforms(entry: Mapping[str, Any], where: str) -> tuple[Transform, ...]:
    """Scales and translations of a level or an image, also in sequences; transforms of other types are left out."""
    entries = _typed_transforms(entry, "coordinateTransformations", where)
    steps = [
        step
        for kind, each in entries
        for step in (_typed_transforms(each, "transformations", where) if kind == "sequence" else [(kind, each)])
    ]
    return tuple(_read_transform(kind, each, where) for kind, each in steps if kind in ("scale", "translation"))


def _typed_transforms(entry: Mapping[str, Any], key: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Transforms in a list of an entry, with the type of each."""
    return [
        (typed(str, each, "type", where=where), each) for each in typed(list[dict[str, Any]], entry, key, [], where)
    ]


def _read_transform(kind: str, entry: Mapping[str, Any], where: str) -> Transform:
    values = typed(tuple[float, ...], entry, kind, where=where)
    if not all(math.isfinite(value) and (value or kind == "translation") for value in values):
        raise ValueError(f"{where}.{kind} is {shown(list(values))}; expected finite numbers, and no scale of 0")
    return Transform(kind, tuple(map(float, values)))
