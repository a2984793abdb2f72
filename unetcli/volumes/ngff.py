"""OME-Zarr metadata of an image group: 0.5 in ``zarr.json``, 0.4 in ``.zattrs``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    return {
        "name": name,
        "axes": [_axis(axis, units.get(axis)) for axis in axes],
        "datasets": datasets(grids),
    }


def datasets(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """The levels of an image, the finest first."""
    return [{"path": str(level), "coordinateTransformations": grid.transforms()} for level, grid in enumerate(grids)]


def with_image(attributes: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """A group's attributes with another multiscales entry."""
    return _with(attributes, multiscales=[entry])


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
    return _with(attributes, **{"image-label": {**version, "source": {"image": source}}})


def is_labels(attributes: Mapping[str, Any]) -> bool:
    """Whether an image says that it is labels of another one."""
    return "image-label" in _metadata(attributes)


def label_names(attributes: Mapping[str, Any]) -> list[str]:
    """What the group ``labels`` of an image lists."""
    return list(_metadata(attributes).get("labels") or [])


def with_label_names(attributes: dict[str, Any], names: Sequence[str], zarr_format: int) -> dict[str, Any]:
    """Attributes of a group ``labels`` with another list."""
    new = {"ome": {"version": "0.5"}} if zarr_format == 3 else {}
    return _with({**new, **attributes}, labels=list(names))


def _metadata(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The OME-Zarr metadata among a group's attributes: 0.5 has a place of its own for them."""
    found: Mapping[str, Any] = attributes.get("ome", attributes)
    return found


def _with(attributes: dict[str, Any], **metadata: Any) -> dict[str, Any]:
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
