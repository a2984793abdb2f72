"""Draw one section of a volume, with labels or a probability over it: the library call behind ``show``.

A large section is downsampled. It is read window by window, from the coarsest level that is fine enough.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import parse_place, require_apart, stem
from unetcli.core.geometry import Box, ceil_to
from unetcli.viz.png import enlarged, label_colours, means, outlines, require_own_picture, rgb, save_pixels, stretched
from unetcli.viz.request import ShowRequest
from unetcli.volumes.image import find_marker, find_region_marker
from unetcli.volumes.opening import open_volume
from unetcli.volumes.places import stated_sizes
from unetcli.volumes.volume import Volume, shape

LARGEST, ROOMY = 2048, 1500
"""Longer side of a picture in pixels: the limit, and the size up to which small sections are enlarged."""
WINDOW_VOXELS = 2**22
"""Approximate number of voxels read at a time."""
HEAT, OPACITY = (1.0, 0.45, 0.1), 0.6
SIGNATURE = "unetcli show"
"""Written to the metadata of pictures; only pictures with it are replaced."""


def show(request: ShowRequest) -> Path:
    """Draw a section and its overlay, and return the path of the picture.

    Raises
    ------
    UnetcliError
        An input cannot be read, the section or channel does not exist, the overlay has another shape, or the output
        is a file that ``show`` did not write.
    """
    base = SectionView.open(request.volume)
    plane = _plane(base, request)
    over = None if request.overlay is None else _open_overlay(request.overlay, base, plane)
    output = _output(request, base, plane)
    step = base.step()
    zoom = max(1, ROOMY // max(plane.shape[-2:]))
    colours = enlarged(_base_colours(base, plane, step, request.channel), zoom)
    if over is not None:
        _draw_overlay(colours, over, plane, step, zoom)
    save_pixels(colours, _scale_bar(base.volume, step / zoom, colours.shape[1]), output, SIGNATURE)
    return output


@dataclass(frozen=True, slots=True)
class SectionView:
    """Volume whose planes can be read at reduced resolution."""

    volume: Volume
    kind: str | None
    """Content of a store written by unetcli: probabilities, classes, instances or weights; None for other stores."""
    origin: tuple[int, ...]
    """Start in the volume that it was predicted from; zero unless it is a region of that volume."""
    extent: tuple[int, ...]
    """Extent of the volume that it was predicted from, else of the volume itself."""
    levels: dict[int, Volume]
    """The volume and its coarser levels, by downsampling factor in the plane."""

    @classmethod
    def open(cls, name: str) -> SectionView:
        """Open a volume, and its coarser levels if its planes are larger than a picture."""
        volume, place = open_volume(name), parse_place(name)
        kind = (find_marker(place) or {}).get("kind")
        levels = {1: volume} | (dict(_coarser(name, volume)) if max(volume.extent[-2:]) > LARGEST else {})
        region = find_region_marker(place)
        sides = region.get("region", ())
        is_part = tuple(b - a for a, b in sides) == volume.extent
        origin = tuple(a for a, _ in sides) if is_part else (0,) * len(volume.extent)
        extent = tuple(region["extent"]) if is_part else volume.extent
        several = [axis for axis, n in zip(volume.axes, extent, strict=True) if n > 1 or axis in volume.axes[-2:]]
        levels = {factor: level.without_single_axes(keep="".join(several)) for factor, level in levels.items()}
        kept = [volume.axes.index(axis) for axis in several]
        return cls(levels[1], kind, tuple(origin[i] for i in kept), tuple(extent[i] for i in kept), levels)

    @property
    def box(self) -> Box:
        """Region that the volume covers, in the coordinates of ``extent``."""
        return self.volume.whole().shifted(self.origin)

    @property
    def sections(self) -> range:
        axis = self.volume.section_axis
        return range(0) if axis is None else range(self.box.start[axis], self.box.stop[axis])

    def step(self) -> int:
        """Downsampling factor from the volume to the picture.

        A multiple of the factor of the coarsest level that is large enough, so that no finer level has to be read.
        """
        longest = max(self.volume.extent[-2:])
        factor = max(factor for factor in self.levels if factor == 1 or math.ceil(longest / factor) >= LARGEST)
        return factor * max(1, math.ceil(math.ceil(longest / factor) / LARGEST))

    def read(self, plane: Box, step: int, channel: int | None, *, mean: bool) -> NDArray[Any]:
        """Read a plane as (c, y, x), downsampled by ``step``; zeros where the volume does not cover it.

        With ``mean``, blocks of pixels are averaged; otherwise every ``step``-th pixel is taken.
        """
        factor = self._factor(plane, step)
        rest, averaged = step // factor, mean and step > factor
        channels = self.volume.channels if channel is None else 1
        size = (channels, *(math.ceil(n / step) for n in plane.shape[-2:]))
        dots = np.zeros(size, np.float32 if averaged else self.volume.dtype)
        for window in _windows(plane, step, self.volume.chunks[-2:]):
            values = self._values(window, factor, channel)
            thinned = means(values, rest) if averaged else values[:, ::rest, ::rest]
            top, left = ((a - b) // step for a, b in zip(window.start[-2:], plane.start[-2:], strict=True))
            dots[:, top : top + thinned.shape[1], left : left + thinned.shape[2]] = thinned
        return dots

    def _factor(self, plane: Box, step: int) -> int:
        """Factor of the coarsest level that divides ``step`` and whose pixels are aligned with the plane."""
        apart = [a - b for a, b in zip(plane.start[-2:], self.origin[-2:], strict=True)]
        return max(n for n in self.levels if step % n == 0 and all(distance % n == 0 for distance in apart))

    def _values(self, window: Box, factor: int, channel: int | None) -> NDArray[Any]:
        """Values (c, y, x) of a window at a level."""
        channels = self.volume.channels if channel is None else 1
        values = np.zeros((channels, *(math.ceil(n / factor) for n in window.shape[-2:])), self.volume.dtype)
        inside = window.clipped(self.box)
        if inside.size:
            place = _at_level(inside.relative_to(window), factor).slices[-2:]
            own = _at_level(inside.relative_to(self.box), factor)
            values[:, *place] = self.levels[factor].read(own, channel).reshape(channels, *own.shape[-2:])
        return values


def _coarser(name: str, volume: Volume) -> Iterator[tuple[int, Volume]]:
    """Coarser levels with their factors, as long as each halves the planes and leaves the other axes unchanged."""
    for number in itertools.count(1):
        try:
            level = open_volume(name, number)
        except UnetcliError:  # no such level, or not a usable one
            return
        factor, planes = 2**number, zip(level.extent[-2:], volume.extent[-2:], strict=True)
        halved = all(max(1, m // factor) <= n <= math.ceil(m / factor) for n, m in planes)  # may be rounded down
        own, whole = ((v.axes, v.channels, v.extent[:-2]) for v in (level, volume))
        if own != whole or not halved:
            return
        yield factor, level


def _at_level(box: Box, factor: int) -> Box:
    """Convert a box to pixels of a level, which is coarser only in the plane."""
    start = (*box.start[:-2], *(a // factor for a in box.start[-2:]))
    return Box(start, (*box.stop[:-2], *(math.ceil(b / factor) for b in box.stop[-2:])))


def _windows(plane: Box, step: int, chunks: tuple[int, ...]) -> Iterator[Box]:
    """Divide a plane into windows of about whole chunks; their sides are multiples of ``step`` but at the far edges."""
    rows = ceil_to(max(1, min(chunks[0], WINDOW_VOXELS // min(chunks[1], plane.shape[-1]))), step)
    columns = ceil_to(max(1, min(plane.shape[-1], max(chunks[1], WINDOW_VOXELS // rows))), step)
    (top, left), (bottom, right) = plane.start[-2:], plane.stop[-2:]
    for y, x in itertools.product(range(top, bottom, rows), range(left, right, columns)):
        stop = (*plane.stop[:-2], min(y + rows, bottom), min(x + columns, right))
        yield Box((*plane.start[:-2], y, x), stop)


def _plane(base: SectionView, request: ShowRequest) -> Box:
    """Box of the requested section, by default the middle one, at the first time point."""
    name, volume = request.volume, base.volume
    if request.channel is not None and not 0 <= request.channel < volume.channels:
        raise UnetcliError(f"--channel {request.channel}: {name} has channels 0 to {volume.channels - 1}")
    axis, sections = volume.section_axis, base.sections
    if axis is None:
        if request.section not in (None, 0):
            raise UnetcliError(
                f"--section {request.section}: {name} is a single image ({shape(volume)}); omit --section"
            )
        return base.box
    section = sections[len(sections) // 2] if request.section is None else request.section
    if section not in sections:
        raise UnetcliError(
            f"--section {section}: {name} has sections {sections[0]} to {sections[-1]} along {volume.axes[axis]}"
        )
    place = [section if number == axis else first for number, first in enumerate(base.box.start[:-2])]
    return Box((*place, *base.box.start[-2:]), (*(first + 1 for first in place), *base.box.stop[-2:]))


def _open_overlay(name: str, base: SectionView, plane: Box) -> SectionView:
    """Open the overlay; raises unless it belongs to the same volume and covers the section."""
    over = SectionView.open(name)
    if over.extent != base.extent:
        raise UnetcliError(
            f"--overlay {name} is {shape(over.volume)}; expected {shape(base.volume)}, like {base.volume.path}"
        )
    if over.volume.channels > 1 and over.volume.dtype.kind in "bui" and over.kind != "probabilities":
        raise UnetcliError(
            f"--overlay {name} has {over.volume.channels} integer channels; expected labels in one channel"
        )
    if not plane.clipped(over.box).size:
        found, axis = over.sections, base.volume.section_axis
        where = f"sections {found[0]} to {found[-1]}" if found else "another region"
        wanted = "the image" if axis is None else f"section {plane.start[axis]}"
        raise UnetcliError(f"--overlay {name} covers {where}, not {wanted} of {base.volume.path}")
    return over


def _output(request: ShowRequest, base: SectionView, plane: Box) -> Path:
    """Path of the picture; raises if it is not a PNG, or is a file that ``show`` did not write."""
    axis = base.volume.section_axis
    number = "" if axis is None else f".{base.volume.axes[axis]}{plane.start[axis]:02d}"
    output = request.output or Path(f"{stem(request.volume)}{number}.png")
    if output.suffix.lower() != ".png":
        example = output.with_suffix(".png") if output.name else output / f"{stem(request.volume)}.png"
        raise UnetcliError(f"--output {output}: expected a PNG file, such as {example}")
    if not output.absolute().parent.is_dir():
        raise UnetcliError(f"--output {output}: the folder {output.absolute().parent} does not exist")
    require_apart(output, [parse_place(name) for name in (request.volume, request.overlay) if name is not None])
    require_own_picture(output, SIGNATURE)
    return output


def _base_colours(base: SectionView, plane: Box, step: int, channel: int | None) -> NDArray[np.float32]:
    """Colours (y, x, 3) in 0..1: grey values with stretched contrast, probabilities unchanged, labels in colours."""
    if base.kind in ("instances", "classes"):
        return label_colours(base.read(plane, step, channel, mean=False)[0])
    values = base.read(plane, step, channel, mean=True)[:3].astype(np.float32)
    top = _full_scale(base.volume) if base.kind == "probabilities" else None
    return rgb(np.clip(values / top, 0, 1) if top else np.stack([stretched(channel) for channel in values]))


def _full_scale(volume: Volume) -> float:
    """Stored value of probability 1."""
    return float(np.iinfo(volume.dtype).max) if volume.dtype.kind in "ui" else 1.0


def _draw_overlay(colours: NDArray[np.float32], over: SectionView, plane: Box, step: int, zoom: int) -> None:
    """Draw labels as outlines, a probability as a transparent colour, several classes as outlines of the likeliest."""
    probable = over.kind == "probabilities" or over.volume.dtype.kind == "f"
    values = over.read(plane, step, None, mean=probable)
    if probable and len(values) == 1:
        share = np.clip(np.nan_to_num(values[0].astype(np.float32)) / _full_scale(over.volume), 0, 1)
        opacity = OPACITY * enlarged(share, zoom)[..., np.newaxis]
        colours *= 1 - opacity
        colours += opacity * np.array(HEAT, np.float32)
        return
    labels = enlarged(values.argmax(axis=0) if probable else values[0], zoom)
    edge = outlines(labels, dots=min(zoom, 2))
    colours[edge] = label_colours(labels[edge])


def _scale_bar(volume: Volume, pixels_per_dot: float, width: int) -> tuple[float, str] | None:
    """Length in pixels, about a fifth of the width, and text of a scale bar; None if the voxel size is unknown."""
    size, unit = stated_sizes(volume).get("x", (0.0, ""))
    if not size > 0:
        return None
    per_dot = size * pixels_per_dot
    length = round_length(per_dot * width / 5)
    short = {"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "angstrom": "Å"}.get(unit, unit)
    return length / per_dot, f"{length:g} {short}".strip()


def round_length(most: float) -> float:
    """Largest of 1, 2, 5, 10, 20, .. (and 0.5, 0.2, ..) that is at most ``most``.

    >>> round_length(437.0), round_length(0.7)
    (200.0, 0.5)
    """
    power = 10.0 ** math.floor(math.log10(most))
    return next(float(f"{factor * power:.6g}") for factor in (5, 2, 1) if factor * power <= most * (1 + 1e-9))
