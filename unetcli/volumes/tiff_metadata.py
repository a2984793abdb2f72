"""Voxel size, units and channel names of a TIFF series: OME-XML, ImageJ's description, resolution tags, Aperio's.

Units are named as in OME-Zarr.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

UNITS = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometers", "micrometre"), "micrometer"),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre"), "nanometer"),
    **dict.fromkeys(("pm", "picometer", "picometre"), "picometer"),
    **dict.fromkeys(("å", "angstrom"), "angstrom"),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), "millimeter"),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), "centimeter"),
    **dict.fromkeys(("m", "meter", "metre"), "meter"),
    **dict.fromkeys(("inch", "in", "inches"), "inch"),
    **dict.fromkeys(("s", "sec", "second", "seconds"), "second"),
    **dict.fromkeys(("ms", "msec", "millisecond"), "millisecond"),
    **dict.fromkeys(("min", "minute", "minutes"), "minute"),
    **dict.fromkeys(("h", "hour", "hours"), "hour"),
}
"""Units of OME-Zarr by the names in files, in lower case; µ has two code points. "pixel" is no unit of length."""
INCH_IN_CM = 2.54
SCREEN_AND_PRINT = (1, 72, 75, 90, 96, 100, 120, 144, 150, 180, 200, 220, 240, 250, 300, 350, 360, 400, 450, 500, 600)
MORE_PRINT = (720, 800, 1200, 1440, 2400, 4800)
"""Dots per inch that programs write whatever the image shows; they are no pixel sizes."""
NO_UNIT, INCH, CENTIMETER = 1, 2, 3
"""Values of the tag ResolutionUnit."""
LETTERS = {"X": "x", "Y": "y", "Z": "z"}


@dataclass(frozen=True, slots=True)
class TiffMetadata:
    """Statements of a file about a series, by axis; empty where it states nothing."""

    voxel_size: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()

    def coarser(self, factors: Mapping[str, float]) -> TiffMetadata:
        """Metadata of a level whose voxels are larger by these factors."""
        sizes = {axis: size * factors.get(axis, 1.0) for axis, size in self.voxel_size.items()}
        return TiffMetadata(sizes, self.units, self.channel_names)


def read_metadata(tif: Any, number: int) -> TiffMetadata:
    """Metadata of series ``number`` of an open file."""
    if tif.is_ome:
        return from_ome(tif.ome_metadata, number)
    page = tif.series[number].keyframe
    if tif.is_imagej:
        return from_imagej(tif.imagej_metadata or {}, _resolution(page))
    if (found := re.search(r"\|\s*MPP\s*=\s*([\d.]+)", str(page.description))) and tif.is_svs:
        return _plane(float(found[1]), float(found[1]), "micrometer")
    return from_resolution(_resolution(page), int(page.tags.valueof("ResolutionUnit", NO_UNIT) or NO_UNIT))


def from_ome(xml: str, number: int) -> TiffMetadata:
    """Metadata of image ``number`` of OME-XML."""
    pixels = [element for element in ElementTree.fromstring(xml).iter() if _name(element) == "Pixels"]
    if number >= len(pixels):
        return TiffMetadata()
    sizes, units = dict[str, float](), dict[str, str]()
    for letter, axis in LETTERS.items():
        unit = UNITS.get(pixels[number].get(f"PhysicalSize{letter}Unit", "µm").lower())
        size = _positive(pixels[number].get(f"PhysicalSize{letter}"))
        if unit and size:
            sizes[axis], units[axis] = _metric(size, unit)
    unit = UNITS.get(pixels[number].get("TimeIncrementUnit", "s").lower())
    if unit and (size := _positive(pixels[number].get("TimeIncrement"))):
        sizes["t"], units["t"] = size, unit
    channels = [element for element in pixels[number] if _name(element) == "Channel"]
    names = tuple(element.get("Name", "") for element in channels)
    whole = len(names) == int(pixels[number].get("SizeC", "0")) and any(names)
    return TiffMetadata(sizes, units, names if whole else ())


def from_imagej(stated: Mapping[str, Any], resolution: tuple[float, float]) -> TiffMetadata:
    r"""Metadata in ImageJ's description, with its resolution in pixels per unit.

    >>> from_imagej({"unit": "\\u00B5m", "spacing": 0.5}, (10.0, 10.0)).voxel_size
    {'y': 0.1, 'x': 0.1, 'z': 0.5}
    """
    text = str(stated.get("unit") or "").replace("\\u00B5", "µ").replace("\\u00b5", "µ")
    unit = UNITS.get(text.strip().lower())
    if unit is None or not all(resolution):
        return TiffMetadata()
    found = _plane(1 / resolution[1], 1 / resolution[0], unit)
    if spacing := _positive(stated.get("spacing"), negative=True):
        found.voxel_size["z"], found.units["z"] = _metric(spacing, unit)
    if interval := _positive(stated.get("finterval")):
        found.voxel_size["t"], found.units["t"] = interval, "second"
    return found


def from_resolution(resolution: tuple[float, float], unit: int) -> TiffMetadata:
    """Pixel size from resolution tags, unless they are of a screen or printer.

    >>> from_resolution((10000, 10000), CENTIMETER).voxel_size, from_resolution((300, 300), INCH).voxel_size
    ({'y': 1.0, 'x': 1.0}, {})
    """
    if unit not in (INCH, CENTIMETER) or not all(resolution):
        return TiffMetadata()
    cm = 1.0 if unit == CENTIMETER else INCH_IN_CM
    dots = {round(value * INCH_IN_CM / cm, 0) for value in resolution}
    if dots <= {*SCREEN_AND_PRINT, *MORE_PRINT} or (unit == CENTIMETER and set(resolution) == {1.0}):
        return TiffMetadata()
    return _plane(cm * 1e4 / resolution[1], cm * 1e4 / resolution[0], "micrometer")


def _plane(y: float, x: float, unit: str) -> TiffMetadata:
    (height, named), (width, _) = _metric(y, unit), _metric(x, unit)
    return TiffMetadata({"y": height, "x": width}, {"y": named, "x": named})


def _metric(size: float, unit: str) -> tuple[float, str]:
    """Length in a metric unit; inches become micrometers."""
    return (size * INCH_IN_CM * 1e4, "micrometer") if unit == "inch" else (size, unit)


def _resolution(page: Any) -> tuple[float, float]:
    """Pixels per unit along x and y; 0 if the file does not state it."""
    return _ratio(page.tags.valueof("XResolution")), _ratio(page.tags.valueof("YResolution"))


def _ratio(value: Any) -> float:
    if isinstance(value, tuple) and len(value) == 2:
        return float(value[0] / value[1]) if value[1] else 0.0
    return 0.0


def _positive(value: Any, *, negative: bool = False) -> float:
    """Value as a positive finite number; 0 if it is none. ImageJ writes negative steps of stacks that go down."""
    try:
        number = abs(float(value)) if negative else float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if number > 0 and math.isfinite(number) else 0.0


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
