"""One section of a volume as a picture, with labels or a probability over it: the library call behind ``show``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.colours import enlarged, label_colours, means_of, outlines, round_length, save_dots, stretched
from unetcli.config import stem
from unetcli.errors import UnetcliError
from unetcli.evaluation.pairing import region_around, shape
from unetcli.files import Place, place_of, require_apart
from unetcli.geometry import Box, ceil_to
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import marker_around
from unetcli.volumes.volume import Volume
from unetcli.volumes.voxels import stated_sizes

LARGEST, ROOMY, BAND_VOXELS = 2048, 1500, 2**24
"""Dots along the longer side at most, and what small sections are enlarged to by whole factors, if they fit;
voxels read at once, about."""
HEAT, OPACITY = (1.0, 0.45, 0.1), 0.6
SIGNATURE = "unetcli show"
"""In the file's metadata: what is ours may be replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowRequest:
    """A section of a volume to look at."""

    volume: str
    section: int | None = None
    """Along z, else t, counted as in the volume that was predicted; None: the middle one."""
    overlay: str | None = None
    output: Path | None = None
    channel: int | None = None
    """One of several; None: up to three are shown as red, green and blue."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A volume, and where it lies in the volume that it was predicted of, else in itself."""

    volume: Volume
    kind: str | None
    """As our own stores say: probabilities, instances or weights."""
    origin: tuple[int, ...]
    extent: tuple[int, ...]

    @classmethod
    def open(cls, name: str) -> Shown:
        volume, place = open_volume(name), place_of(name)
        said, region = marker_around(place) or {}, region_around(place)
        kind = said.get("kind")
        sides = region.get("region", ())
        if tuple(b - a for a, b in sides) == volume.extent:
            return cls(volume, kind, tuple(a for a, _ in sides), tuple(region["extent"]))
        return cls(volume.without_single_axes(), kind, *_itself(volume.without_single_axes()))

    @property
    def box(self) -> Box:
        """What it covers, in the coordinates of ``extent``."""
        return self.volume.whole().shifted(self.origin)

    @property
    def sections(self) -> range:
        axis = self.volume.section_axis
        return range(0) if axis is None else range(self.box.start[axis], self.box.stop[axis])

    def read(self, plane: Box, step: int, channel: int | None, *, mean: bool) -> NDArray[Any]:
        """(c, y, x) of a plane, every ``step``-th pixel or the mean of so many; zeros where nothing is covered."""
        bands = [self._band(band, step, channel, mean=mean) for band in _bands(plane, step)]
        return np.concatenate(bands, axis=1)

    def _band(self, band: Box, step: int, channel: int | None, *, mean: bool) -> NDArray[Any]:
        inside = band.clipped(self.box)
        place = (slice(None), *inside.relative_to(band).slices[-2:])
        channels = self.volume.channels if channel is None else 1
        values = np.zeros((channels, *band.shape[-2:]), self.volume.dtype)
        if inside.size:
            voxels = self.volume.read(inside.shifted(tuple(-o for o in self.origin)), channel)
            values[place] = voxels.reshape(channels, *inside.shape[-2:])
        return means_of(values, step) if mean and step > 1 else values[:, ::step, ::step]


def show(request: ShowRequest) -> Path:
    """Draw a section and its overlay; the picture's file.

    Raises
    ------
    UnetcliError
        Something cannot be read, there is no such section or channel, the overlay is of another shape, or the
        output is a file of others.
    """
    base = Shown.open(request.volume)
    plane = _plane(base, request)
    over = None if request.overlay is None else _fitting(request.overlay, base, plane)
    output = _output(request, base, plane)
    step = max(1, math.ceil(max(plane.shape[-2:]) / LARGEST))
    zoom = max(1, ROOMY // max(plane.shape[-2:]))
    colours = enlarged(_base_colours(base, plane, step, request.channel), zoom)
    if over is not None:
        _lay_over(colours, over, plane, step, zoom)
    save_dots(colours, _scale_bar(base.volume, step / zoom, colours.shape[1]), output, SIGNATURE)
    return output


def _itself(volume: Volume) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (0,) * len(volume.extent), volume.extent


def _plane(base: Shown, request: ShowRequest) -> Box:
    """The section asked for, else the middle one; of several times the first."""
    name, volume = request.volume, base.volume
    if request.channel is not None and not 0 <= request.channel < volume.channels:
        raise UnetcliError(f"--channel {request.channel}: {name} has {volume.channels}, counted from 0")
    axis, sections = volume.section_axis, base.sections
    if axis is None:
        if request.section not in (None, 0):
            raise UnetcliError(f"--section {request.section}: {name} is a single image ({shape(volume)})")
        return base.box
    section = sections[len(sections) // 2] if request.section is None else request.section
    if section not in sections:
        raise UnetcliError(
            f"--section {section}: {name} has sections {sections[0]} to {sections[-1]} along {volume.axes[axis]}"
        )
    start, stop = list(base.box.start), list(base.box.stop)
    for place in range(len(start) - 2):
        start[place] = section if place == axis else start[place]
        stop[place] = start[place] + 1
    return Box(tuple(start), tuple(stop))


def _fitting(name: str, base: Shown, plane: Box) -> Shown:
    """The overlay, where it is of the same volume and has the section."""
    over = Shown.open(name)
    if over.extent != base.extent:
        raise UnetcliError(
            f"{name} is {shape(over.volume)}, but {base.volume.path} is {shape(base.volume)}: no overlay of it"
        )
    if over.volume.channels > 1 and over.volume.dtype.kind in "bui" and over.kind != "probabilities":
        raise UnetcliError(f"{name}: {over.volume.channels} channels of integers; labels have one")
    if not plane.clipped(over.box).size:
        found, axis = over.sections, base.volume.section_axis
        where = f"sections {found[0]} to {found[-1]}" if found else "another part"
        asked = "the picture" if axis is None else f"section {plane.start[axis]}"
        raise UnetcliError(f"{name}: covers {where}, not {asked} of {base.volume.path}")
    return over


def _output(request: ShowRequest, base: Shown, plane: Box) -> Path:
    axis = base.volume.section_axis
    number = "" if axis is None else f".{base.volume.axes[axis]}{plane.start[axis]:02d}"
    output = request.output or Path(f"{stem(request.volume)}{number}.png")
    if output.suffix.lower() != ".png":
        raise UnetcliError(f"--output {output}: a PNG file is written; {output.with_suffix('.png')} would do")
    if not output.absolute().parent.is_dir():
        raise UnetcliError(f"--output {output}: no folder {output.absolute().parent}")
    inputs: list[Place] = [place_of(name) for name in (request.volume, request.overlay) if name is not None]
    require_apart(output, inputs)
    if output.exists() and not _is_ours(output):
        raise UnetcliError(f"{output}: exists, and show did not write it; --output names another place")
    return output


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return SIGNATURE.encode() in file.read(4096)


def _bands(plane: Box, step: int) -> list[Box]:
    """The plane cut into bands of rows that are read at once; each but the last has a multiple of ``step``."""
    top, bottom, width = plane.start[-2], plane.stop[-2], plane.shape[-1]
    rows = ceil_to(max(1, BAND_VOXELS // width), step)
    ends = [(row, min(row + rows, bottom)) for row in range(top, bottom, rows)]
    return [Box((*plane.start[:-2], a, plane.start[-1]), (*plane.stop[:-2], b, plane.stop[-1])) for a, b in ends]


def _base_colours(base: Shown, plane: Box, step: int, channel: int | None) -> NDArray[np.float32]:
    """(y, x, 3) in 0..1: grey values between their percentiles, probabilities as they are, labels in colours."""
    if base.kind == "instances":
        return label_colours(base.read(plane, step, channel, mean=False)[0])
    values = base.read(plane, step, channel, mean=True)[:3].astype(np.float32)
    top = _most(base.volume) if base.kind == "probabilities" else None
    greys = [np.clip(v / top, 0, 1) if top else stretched(v) for v in values]
    if len(greys) == 1:
        return np.repeat(greys[0][..., np.newaxis], 3, axis=-1)
    greys += [np.zeros_like(greys[0])] * (3 - len(greys))
    return np.stack(greys, axis=-1)


def _most(volume: Volume) -> float:
    """The stored value of probability 1."""
    return float(np.iinfo(volume.dtype).max) if volume.dtype.kind in "ui" else 1.0


def _lay_over(colours: NDArray[np.float32], over: Shown, plane: Box, step: int, zoom: int) -> None:
    """Labels as outlines, a probability as a transparent colour; of several classes the most probable one."""
    probable = over.kind == "probabilities" or over.volume.dtype.kind == "f"
    values = over.read(plane, step, None, mean=probable)
    if probable and len(values) == 1:
        share = np.clip(np.nan_to_num(values[0].astype(np.float32)) / _most(over.volume), 0, 1)
        opacity = OPACITY * enlarged(share, zoom)[..., np.newaxis]
        colours *= 1 - opacity
        colours += opacity * np.array(HEAT, np.float32)
        return
    labels = enlarged(values.argmax(axis=0) if probable else values[0], zoom)
    edge = outlines(labels, dots=min(zoom, 2))
    colours[edge] = label_colours(labels[edge])


def _scale_bar(volume: Volume, pixels_per_dot: float, width: int) -> tuple[float, str] | None:
    """Length in dots, and what it says; about a fifth of the width. None where no voxel size is stated."""
    size, unit = stated_sizes(volume).get("x", (0.0, ""))
    if not size > 0:
        return None
    per_dot = size * pixels_per_dot
    length = round_length(per_dot * width / 5)
    short = {"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "angstrom": "Å"}.get(unit, unit)
    return length / per_dot, f"{length:g} {short}".strip()
